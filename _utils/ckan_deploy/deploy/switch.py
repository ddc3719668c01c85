"""
The switch from one release to another: what a release needs before visitors are sent to it, the rename of ``current``,
and what is noted of both.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import Any, NamedTuple

from ckan_deploy.database import search_index
from ckan_deploy.errors import FormulaError, sentence
from ckan_deploy.releases.ids import now
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import app_server, draining, services, shared_files
from ckan_deploy.settings import fingerprint

# So long the end of a run waits for requests of the release before; after that supervisor alone sees to their end.
DRAIN_SECONDS = 3


class Settled(NamedTuple):
    """
    What followed a release: the releases whose app servers have ended, those whose are still at requests, the releases
    that were pruned, warnings, and a sentence for each service or app server that does not stay up; ``steady`` is for
    the manifest.
    """

    stopped: list[str]
    draining: list[str]
    pruned: list[str]
    warnings: list[str]
    down: list[str]
    steady: dict[str, str]


def start(site: Site, release: str) -> dict[str, Any]:
    """
    Make a release ready for visitors: its files, its web assets, its app server.

    site
        The site.
    release
        Its id.

    Returns ``{"started": bool, "seconds"}``. Raises ``FormulaError`` when it does not answer.
    """
    # What is asked for now is not stopped by a job that was meant for the deploy before.
    draining.forget_standby(site)
    path = site.releases.directory(release)
    shared_files.own(site, path)
    shared_files.publish(site)
    # One that has served has had its pages asked for.
    return app_server.start(site, path, warm=site.release(release).state == "checked")


def settle(
    site: Site, release: str, standby: str = "", again: bool = False, ahead: Callable[[], None] | None = None,
    prune: Callable[[], tuple[list[str], list[str]]] | None = None,
) -> Settled:  # fmt: skip
    """
    Bring what belongs to a release that serves now to it, all of it side by side: the app servers of other releases
    finish their requests and end, services and cron jobs change over, and all is watched for ``stable_seconds``.

    site
        The site.
    release
        The id of the release.
    standby
        A release whose app server stays, too.
    again
        The release has served before, with the database as it is. Where all of it stayed up when it was watched then,
        with the same services, it has to run, and is not watched once more.
    ahead
        Called meanwhile: makes what the next release will have as well.
    prune
        Called after that, when the services have changed over: what one still runs from is spared. Returns the ids of
        the releases that are gone, and warnings.

    Raises ``FormulaError`` where an app server cannot be stopped, when all the rest is done.
    """
    seconds = None if site.settings.web.wait_for_drain else DRAIN_SECONDS
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        stopping = pool.submit(draining.stop_others, site, site.releases.directory(release), standby, seconds)
        warned = follow(site)
        # Not before: while services boot, the cores are busy.
        preparing = pool.submit(ahead or (lambda: None))
        pruning = pool.submit(lambda: (stopping.result(), preparing.result(), prune())[2]) if prune else None
        started_with = fingerprint.of_services(site.settings)
        known = again and site.release(release).manifest.steady == started_with
        wrong = down(site) if known else watch(site, release)
        ended = stopping.result()
        pruned, problems = pruning.result() if pruning else ([], [])
    steady = started_with if site.settings.stable_seconds and not wrong else {}
    return Settled(ended.stopped, ended.draining, pruned, [*warned, *problems], wrong, steady)


def switch(site: Site, release: str, left_state: str, by: str, reason: str) -> dict[str, str]:
    """
    Rename ``current``, and write down what that means for the release that comes and the one that is left.

    site
        The site.
    release
        The release to go to.
    left_state
        What the one that is left becomes: ``retired``, ``bad`` or ``failed``.
    by, reason
        Who asked, and why.

    Returns ``{"current": id, "previous": id}``.
    """
    previous = site.releases.current()
    if previous == release:
        return {"current": release, "previous": previous}
    wanted = site.release(release)
    # Before the rename, so that a deploy that dies here can still be reverted, or finished.
    before = {"previous": previous, "previous_link": site.releases.foreign_link()} if wanted.state == "checked" else {}
    wanted.note(finish_due=now(), **before)
    site.releases.point(release)
    app_server.switched(site)
    wanted.become("live", by, bad_reason="", came_after=previous)
    if previous:
        left = site.release(previous)
        if left.state == "checked":
            # A switch that was cut short between the rename and its note.
            left.become("live", by)
        noted = {"bad_reason": reason} if left_state == "bad" else {}
        if left.state != "failed":  # a revert that was cut short
            left.become(left_state, by, reason, **noted)
    return {"current": release, "previous": previous}


def back(site: Site, release: str, link: str) -> None:
    """
    Let ``current`` name again what it named before a switch. Needs no disk but for the link itself.

    site
        The site.
    release
        The release, '' where it was none of ours.
    link
        What ``current`` held then, '' for no link.
    """
    if release:
        site.releases.point(release)
    else:
        site.releases.restore_link(link)
    app_server.switched(site)


def serving(site: Site, release: str, by: str, reason: str = "") -> list[str]:
    """
    Note that a release serves again, after ``back``.

    site, release, by, reason
        The site, the release ('' for none of ours), who asked, and why.

    Returns warnings: ``current`` alone says what is served.
    """
    try:
        if release:
            site.release(release).become("live", by, reason, bad_reason="")
    except (FormulaError, OSError) as exc:
        return [f"the manifest of {release} does not say that it is live again ({sentence(exc)})"]
    return []


def follow(site: Site, files: bool = True) -> list[str]:
    """
    Bring services and cron jobs to the current release.

    site
        The site.
    files
        As for ``services.follow``.

    Returns warnings: what does not follow is one, since the site is served.
    """
    try:
        return list(services.follow(site, files)["warnings"])
    except (FormulaError, OSError) as exc:
        return [str(exc)]


def watch(site: Site, release: str) -> list[str]:
    """
    Wait until the app server of a release and the services have been up for ``stable_seconds``.

    site
        The site.
    release
        The id of the release.

    Returns a sentence for each that does not stay up: the site is served, but a deploy is not good.
    """
    try:
        return list(filter(None, [app_server.watch(site, release), *services.watch(site)]))
    except (FormulaError, OSError) as exc:
        return [sentence(exc)]


def down(site: Site) -> list[str]:
    """
    Return what ``watch`` says of the current release, without any wait.

    site
        The site.
    """
    release = site.releases.current()
    try:
        unsteady = app_server.unsteady(site, release) if release else ""
        return [*([f"the app server of {release} {unsteady}"] if unsteady else []), *services.down(site)]
    except (FormulaError, OSError) as exc:
        return [sentence(exc)]


def reindex(site: Site, release: str, by: str, job: str, force: bool = False) -> tuple[dict[str, Any], list[str]]:
    """
    Bring the search index to a release, on this host alone.

    site, release, by, job
        The site, the release, who asked, and the run that it belongs to.
    force
        Rebuild it in any case.

    Returns what the index is made of now, and warnings: what goes wrong is one, since the site is served.
    """
    try:
        done = search_index.rebuild(site, release, force, by, job)
    except FormulaError as exc:
        return {}, [f"the search index was not rebuilt: {exc}"]
    return done["index"], done["warnings"]
