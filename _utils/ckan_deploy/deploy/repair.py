"""What releases share is brought back to what was installed, when nobody else is at work on this host."""

from __future__ import annotations

from typing import Any

from ckan_deploy.build import ahead, repair
from ckan_deploy.releases import lock
from ckan_deploy.releases.site import Site


def repaired(site: Site, accept: bool = False, by: str = "") -> dict[str, Any]:
    """
    Bring shared files that were changed back to what was installed. The current release keeps what it has.

    site
        The site.
    accept
        Keep the changes, for later releases as well.
    by
        Who asked.

    Returns ``{"repaired": [paths], "accepted": [paths], "kept": id}``; the last one is the current release where it
    keeps a change, else ''.
    Raises ``FormulaError`` where somebody else is at work, and, when all the rest is done, for what cannot be brought
    back.
    """
    with lock.held(site, "repair", by=by, locked=False):
        ahead.forget(site)
        if accept:
            return {"repaired": [], "accepted": repair.accept(site), "kept": ""}
        return {**repair.repair(site), "accepted": []}
