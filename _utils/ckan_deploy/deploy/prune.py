"""Old releases go, with what they left outside their directories."""

from __future__ import annotations

from ckan_deploy.releases import choice
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import app_server, shared_files
from ckan_deploy.sources import origins


def prune(site: Site, keep: int | None = None) -> list[str]:
    """
    Remove old releases. Kept are the newest good ones, the current one and the one a rollback would go to.

    site
        The site.
    keep
        How many good releases to keep; by default ``ckan:keep``.

    Returns the ids removed.
    """
    manifests, current = site.releases.manifests(), site.releases.current()
    if not current:
        return []
    gone = choice.prunable(manifests, current, site.settings.keep if keep is None else keep)
    for release in gone:
        path = site.releases.directory(release)
        app_server.stop(site, path, drain=False)
        app_server.forget(site, path)
        site.releases.remove(release)
    if gone:
        shared_files.forget(site)
    kept = [
        pin
        for manifest in manifests
        if manifest.id not in gone and manifest.resolution
        for pin in manifest.resolution.extensions.values()
    ]
    origins.forget(kept, site.paths.shared)
    return gone


def end_standby(site: Site) -> list[str]:
    """
    Stop the app servers of releases that serve no more.

    site
        The site.

    Returns the ids of the releases whose servers were stopped.
    """
    app_server.forget_standby(site)
    stopped = []
    for manifest in site.releases.manifests():
        # One that is checked belongs to a deploy that is under way.
        if manifest.state in ("retired", "bad") and manifest.id != site.releases.current():
            if app_server.stop(site, site.releases.directory(manifest.id)):
                stopped.append(manifest.id)
    return stopped
