"""
What came of the requests of app servers that were told to stop: noted in the manifests of their releases, since
supervisor sees to their end when no deploy is there any more.
"""

from __future__ import annotations

import calendar
import contextlib
import os
import time
from collections.abc import Iterable

from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.ids import now
from ckan_deploy.releases.manifest import Manifest
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import uwsgi
from ckan_deploy.system import supervisor

FORMAT = "%Y-%m-%dT%H:%M:%SZ"


def told(site: Site, names: Iterable[str], stays: str) -> None:
    """
    Note that app servers were told to stop.

    site
        The site.
    names
        The releases.
    stays
        The release for which they were, ``''`` for none.
    """
    for name in names:
        _note(site, name, {"told": now(), "limit": site.settings.web.drain_timeout, "stays": stays})


def ended(site: Site, path: str, when: float) -> None:
    """
    Note that the app server of a release has ended, if it was told to and that is not noted yet.

    site
        The site.
    path
        The directory of the release.
    when
        When, in seconds of the epoch.
    """
    manifest = _manifest(site, os.path.basename(path))
    if manifest and manifest.drain and "seconds" not in manifest.drain:
        _note(site, manifest.id, {**manifest.drain, "seconds": _since(manifest, when)})


def outcomes(site: Site, stays: str = "") -> dict[str, str]:
    """
    Say what came of the requests of app servers that were told to stop.

    site
        The site.
    stays
        Only of those that were told for this release, since it went live the last time.

    Returns ``{release: what}``, of all releases that there are.
    """
    manifests = site.releases.manifests()
    lives = [event["at"] for manifest in manifests if manifest.id == stays for event in manifest.events
             if event["state"] == "live"]  # fmt: skip
    since = max(lives, default="")
    noted = [manifest for manifest in manifests if manifest.drain and manifest.drain["told"] >= since]
    wanted = [manifest for manifest in noted if stays in ("", manifest.drain["stays"])]
    return {manifest.id: _outcome(site, manifest) for manifest in wanted}


def _outcome(site: Site, manifest: Manifest) -> str:
    drain = manifest.drain
    if "seconds" in drain:
        return _sentence(drain["seconds"], drain["limit"])
    program = uwsgi.program(site, manifest.id)
    try:
        last = supervisor.ends(site.settings.web.supervisor_conf, program)
    except FormulaError as exc:
        return f"was told to stop at {drain['told']}, and what came of it cannot be seen ({str(exc).rstrip('.')})"
    if last is None:
        return f"was told to stop at {drain['told']}, and supervisor was started anew before its end was seen"
    if not last:
        return f"still finishes requests, for {_since(manifest, time.time())} s now"
    return _sentence(_since(manifest, last), drain["limit"])


def _sentence(seconds: int, limit: int) -> str:
    if seconds < limit:
        return f"finished its requests and ended, {seconds} s after it was told to"
    return f"was ended at its limit of {limit} s (web:drain_timeout): requests may have been cut off"


def _since(manifest: Manifest, when: float) -> int:
    return max(0, round(when - calendar.timegm(time.strptime(manifest.drain["told"], FORMAT))))


def _manifest(site: Site, release: str) -> Manifest | None:
    with contextlib.suppress(FormulaError, OSError):
        return site.releases.find(release)
    return None


def _note(site: Site, release: str, drain: dict[str, object]) -> None:
    # Nothing fails for it, not even on a full disk.
    with contextlib.suppress(FormulaError, OSError):
        site.release(release).note(drain=drain)
