"""Old releases go, with what they left outside their directories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import frozen

from ckan_deploy.build import ahead, layers, sharing
from ckan_deploy.errors import FormulaError, sentence
from ckan_deploy.releases import choice, lock
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import app_server, draining, in_use, shared_files
from ckan_deploy.sources import origins
from ckan_deploy.system import arguments

# The current release, and one to go back to.
LEAST = 2


@frozen
class Pruned:
    """
    What a prune came to: the releases that are gone, which ones were kept since something runs from them, and what
    cannot be removed; a sentence each.
    """

    gone: list[str]
    spared: list[str]
    problems: list[str]


def prune(site: Site, keep: int | None = None, job: str = "") -> list[str]:
    """
    Remove old releases, when nobody else is at work on this host. Kept are the newest good ones, the current one, the
    one a rollback would go to, the one that the environment is on, and those that a process still runs from. A host
    that builds for others keeps its newest build.

    site
        The site.
    keep
        How many good releases to keep, 2 or more; by default ``ckan:keep``.
    job
        The run of the master that this belongs to.

    Returns the ids removed. Raises ``InvalidArgument`` for another ``keep``, ``FormulaError`` where somebody else is at
    work, and, when all the rest is done, for what cannot be removed.
    """
    if keep is not None:
        arguments.whole("keep", keep, LEAST)
    with lock.held(site, "prune", job=job):
        done = old(site, keep)
        # Whoever makes room by hand wants all of it.
        _attempt(done.problems, ahead.forget, site)
    if done.problems:
        gone = f"removed: {', '.join(done.gone)}; " if done.gone else ""
        raise FormulaError(f"{gone}{'; '.join(done.problems)}.")
    return done.gone


def old(site: Site, keep: int | None = None) -> Pruned:
    """
    Do what ``prune`` does, for who holds the host lock. One that cannot be removed does not keep the others.

    site, keep
        As for ``prune``.
    """
    current, only = site.releases.current(), site.settings.build.only
    if not current and not only:
        return Pruned([], [], [])
    found = site.releases.manifests()
    wanted = site.environment.wanted
    spare = [wanted.release] if wanted else []
    keep = site.settings.keep if keep is None else keep
    going = choice.all_but_newest(found) if only else choice.prunable(found, current, keep, spare)
    used = in_use.releases(site) if going else {}
    spared = [f"release {release} was kept, since {used[release]} runs from it" for release in going if release in used]
    problems: list[str] = []
    # Rests of earlier removals.
    problems += site.releases.sweep()
    for release in going:
        if release not in used:
            _attempt(problems, _remove, site, release)
    kept = site.releases.manifests()
    gone = [release for release in going if release not in {manifest.id for manifest in kept}]
    if gone:
        _attempt(problems, shared_files.forget, site)
    _attempt(problems, app_server.forget, site, {manifest.id for manifest in kept})
    pins = [pin for manifest in kept if manifest.resolution for pin in manifest.resolution.pins()]
    _attempt(problems, origins.forget, pins, site.paths.shared)
    _attempt(problems, layers.forget, {manifest.layer for manifest in kept}, site.paths.shared)
    _attempt(problems, sharing.forget, site.paths.shared)
    return Pruned(gone, spared, list(dict.fromkeys(problems)))


def end_standby(site: Site, release: str = "") -> list[str]:
    """
    Stop the app servers of releases that serve no more, when nobody else is at work on this host.

    site
        The site.
    release
        Only that of this one; by default of all.

    Returns the ids of the releases whose servers were stopped. Raises ``FormulaError`` where somebody is at work; the
    scheduler asks again.
    """
    # Not a deploy: who locks these out means no switch.
    with lock.held(site, "end_standby", locked=False):
        if not release:
            draining.forget_standby(site)
        stopped = []
        for manifest in [site.releases.read(release)] if release else site.releases.manifests():
            # One that is checked belongs to a deploy that is under way.
            if manifest.state in ("retired", "bad") and manifest.id != site.releases.current():
                if draining.stop(site, site.releases.directory(manifest.id)):
                    stopped.append(manifest.id)
        return stopped


def _remove(site: Site, release: str) -> None:
    path = site.releases.directory(release)
    draining.stop(site, path, drain=False)
    site.releases.remove(release)


def _attempt(problems: list[str], function: Callable[..., Any], *args: Any) -> None:
    try:
        function(*args)
    except (FormulaError, OSError) as exc:
        problems.append(sentence(exc))
