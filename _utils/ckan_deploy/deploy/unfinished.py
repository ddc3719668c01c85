"""What a deploy left undone that died after its switch: the release serves, and the stage finish is missing."""

from __future__ import annotations

import contextlib

from ckan_deploy.errors import FormulaError
from ckan_deploy.releases import choice
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import services, uwsgi


def unfinished(site: Site) -> str:
    """
    Say what of the finish of the current release is missing.

    site
        The site.

    Returns a sentence, ``''`` where nothing is missing. While a deploy is between its switch and its end that is so,
    too; the deploy lock tells.
    """
    found = site.releases.find(site.releases.current())
    if not found or not found.finish_due:
        return ""
    said, manifests = [], site.releases.manifests()
    # One that is newer and not live yet is of a deploy that has come since.
    begun = [manifest.id for manifest in manifests if manifest.state in choice.UNFINISHED and manifest.id > found.id]
    said += [f"the app server of {name} runs on" for name in uwsgi.releases(site) if name not in (found.id, *begun)]
    if site.settings.all_services:
        with contextlib.suppress(FormulaError):  # what keeps supervisor from being asked is told elsewhere
            rows = services.status(site)["services"]
            said += [f"{row['kind']} {row['service']} is on {row['release'] or row['state']}" for row in rows
                     if row["release"] != found.id]  # fmt: skip
    old = choice.prunable(manifests, found.id, site.settings.keep, _wanted(site))
    said += [f"{', '.join(old)} {'is' if len(old) == 1 else 'are'} to be pruned"] if old else []
    return f"the finish of {found.id} is missing: {'; '.join(said)}" if said else ""


def _wanted(site: Site) -> list[str]:
    with contextlib.suppress(FormulaError):
        wanted = site.environment.wanted
        return [wanted.release] if wanted else []
    return []
