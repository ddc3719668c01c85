"""Back to a release that was live, on one host."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

from ckan_deploy.build import ini
from ckan_deploy.database import changes, compatibility
from ckan_deploy.deploy import candidates, stages, switch
from ckan_deploy.errors import FormulaError, sentence
from ckan_deploy.releases import choice, diff, hooks, lock, stage
from ckan_deploy.releases.ids import check_id
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import app_server, draining, health, maintenance, shared_files, uwsgi
from ckan_deploy.system import arguments


def rollback_target(site: Site, to: str = "", force: bool = False) -> str:
    """
    Return the release that ``rollback`` would go to. Changes nothing.

    site
        The site.
    to
        A release asked for by name.
    force
        Take one that is marked bad, too.

    Raises ``FormulaError`` when there is none, when it is not whole, or when ``current`` cannot be switched.
    """
    if problem := site.releases.link_problem():
        raise FormulaError(f"{problem}; then roll back again.")
    target = choice.rollback_target(site.releases.manifests(), site.releases.current(), to, force)
    path = site.releases.directory(target)
    for part in (os.path.join(path, "bin/python"), ini.path(site, path)):
        if not os.path.exists(part):
            raise FormulaError(
                f"release {target} is not whole on this host: {part} is missing; name another one, or deploy."
            )
    return target


def rollback(
    site: Site, to: str = "", reason: str = "", force: bool = False, by: str = "", finish: bool = True, job: str = "",
    accept_schema: bool = False, downgrade: bool = False, restore: str = "", starts: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """
    Go back to the next older release that was live and is not bad, or to a named one. The one left is marked bad,
    unless it is older than the named one.

    site
        The site.
    to
        A release by name.
    reason
        Why; stands in the manifest of the release that is left.
    force
        Go to a release that is marked bad, too.
    by, job
        Who asked, and the run of the master that this belongs to.
    finish
        Stop the app server of the release that is left, and its services. False in a rollback of a fleet, which has
        compared the database before, and does that last.
    accept_schema
        The older code gets along with the database as it is; remembered for this pair.
    downgrade
        Undo the migrations that the release does not know, by the scripts of the one that is left.
    restore
        Put a dump of this host in the place of the database.
    starts
        Go through the stage ``start`` first, to a release that is named.

    Returns ``{"current": id, "left": id}``, and ``warnings`` where there are any. Raises ``FormulaError`` when there is
    no such release, or it does not start or answer; the host then serves what it served before.
    """
    if arguments.flag("starts", starts):
        stages.start(site, check_id(to), by, job)
    target = rollback_target(site, to, force)
    undone: dict[str, Any] = {}
    with lock.held(site, "rollback", target, by, job), contextlib.ExitStack() as closing:
        if rollback_target(site, to, force) != target:
            raise FormulaError(f"another one has changed the releases here meanwhile; roll back again (to {target}).")
        found: dict[str, Any] = {}
        if finish or accept_schema:
            found = _compared(site, target, accept_schema, downgrade, restore)
        changes_database = bool(found.get("downgrade") or found.get("restore"))
        if changes_database and found["maintenance"]:
            closing.enter_context(_closed(site, by))
        if changes_database:
            undone = changes.downgrade(site, target, by, job, found["restore"])
        elif accept_schema:
            for name, state in found["different"].items():
                compatibility.accept(site, name, ",".join(state["knows"]), ",".join(state["at"]), by)
        left = site.releases.current()
        # Forward again: the older one was good.
        state = "bad" if target < left else "retired"
        try:
            done = go(
                site, target, state, by, reason or "rolled back", job, finish, restored=bool(undone.get("kept_as")),
                again=not changes_database,
            )  # fmt: skip
        except FormulaError as exc:
            if undone and left and site.releases.current() == left:
                # The release that serves again must find its database.
                changes.upgrade(site, left, by, job, undone.get("kept_as", ""))
            raise FormulaError(str(exc)) from exc
    done["left"] = done.pop("previous")
    warned = [*undone.get("warnings", []), *done.pop("warnings", [])]
    return {
        **done, **({"undone": undone["undone"]} if undone else {}), **({"warnings": warned} if warned else {})
    }  # fmt: skip


def boot(site: Site, release: str, by: str = "", job: str = "") -> dict[str, Any]:
    """
    Start the app server of a release that a fleet may go back to, while that looks whether it can. The stage ``start``
    does it where this does not: where that has hooks.

    site
        The site.
    release
        The release.
    by, job
        Who asked, and the run of the master that this belongs to.

    Returns ``{"started": whether it was, and did not run before}``. Raises ``FormulaError`` where it does not answer;
    it is stopped again then.
    """
    with lock.held(site, "start", release, by, job):
        if not _boots(site, release, "start"):
            return {"started": False}
        path = site.releases.directory(release)
        with candidates.booted(site, path, functools.partial(_start, site, path)) as server:
            server.keep()
        if release not in uwsgi.releases(site):
            raise FormulaError(f"the app server of {release} does not start; the stage start says why")
        return {"started": True}


def go(
    site: Site, release: str, left_state: str, by: str, reason: str, job: str, finishing: bool = True,
    restored: bool = False, again: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """
    Go to a release that was live before; one that does not answer is left again.

    site, release
        The site, and the release.
    left_state
        What the release that is left becomes: ``retired`` or ``bad``.
    by, reason, job
        Who asked, why, and the run of the master that this belongs to.
    finishing
        As ``finish`` of ``rollback``.
    restored
        The database is another one than that which the search index was filled from.
    again
        As for ``switch.settle``.

    Returns ``{"current": id, "previous": id}``, and ``warnings`` where there are any.
    """
    changed = diff.from_current(site.releases, site.releases.read(release).resolution)
    with stage.running(site, "rollback", release, by, job, reason, changed=changed) as warned:
        left, link = site.releases.current(), site.releases.foreign_link()
        ran = release in uwsgi.releases(site)
        try:
            switch.start(site, release)
            switch.switch(site, release, left_state, by, reason)
            if finishing:
                health.health(site, release)
        except BaseException as exc:
            raise FormulaError(f"{sentence(exc)}; {_back(site, release, left, link, by, ran)}") from exc
        if finishing:
            warned += _finish(site, release, by, job, restored, again)
        return {"current": release, "previous": left, **({"warnings": warned} if warned else {})}


def _compared(site: Site, release: str, accept_schema: bool, downgrade: bool, restore: str) -> dict[str, Any]:
    """
    Do what ``compatibility.way_back`` does. The app server of the release boots meanwhile, but not where the database
    is to be changed for it.
    """
    compare = functools.partial(compatibility.way_back, site, release, accept_schema, downgrade, restore)
    if downgrade or restore or not _boots(site, release, "rollback"):
        return compare()
    path = site.releases.directory(release)
    with candidates.booted(site, path, functools.partial(_start, site, path)) as server:
        found = compare()
        server.keep()
        return found


def _boots(site: Site, release: str, before: str) -> bool:
    """Whether there is an app server to be started, and no hook that wants to be called before that."""
    there = release in uwsgi.releases(site) or release == site.releases.current()
    return site.settings.web.app == "uwsgi" and not there and not hooks.there(site, before)


def _start(site: Site, path: str) -> None:
    shared_files.own(site, path)
    app_server.start(site, path)


def _back(site: Site, release: str, left: str, link: str, by: str, ran: bool) -> str:
    """
    Leave a release again that does not serve; ``ran`` is whether its app server did before. Returns where the host is
    now, for a message.
    """
    switched, problem = site.releases.current() == release != left, ""
    try:
        if switched:
            switch.back(site, left, link)
            switch.serving(site, left, by)
            site.release(release).become("retired", by)
        if not ran:
            draining.stop(site, site.releases.directory(release), drain=switched)
    except (FormulaError, OSError) as exc:
        problem = f" ({sentence(exc)})"
    now, was = site.releases.current(), left or link or "no release"
    if now == left:
        return f"this host is back on {was}{problem}" if switched else f"this host serves {was} as before{problem}"
    return f"this host is on {now or 'no release'}{problem}"


def _finish(site: Site, release: str, by: str, job: str, restored: bool, again: bool) -> list[str]:
    """What follows a rollback: the release is served, so what fails here is a warning."""
    try:
        index, warned = switch.reindex(site, release, by, job, restored)
        done = switch.settle(site, release, again=again)
        warned = [*warned, *done.warnings, *done.down]
        site.release(release).note(by, finish_due="", steady=done.steady, **({"index": index} if index else {}))
        return warned
    except Exception as exc:
        typed = f"ckan_release.finish {release} prune=False"
        return [f"{release} is live, but not all has followed it: {sentence(exc)}; mend that, then type: {typed}"]


@contextlib.contextmanager
def _closed(site: Site, by: str) -> Iterator[None]:
    """Visitors get the maintenance page for a while; where somebody else has turned it on it stays."""
    closed = maintenance.on(site, "rollback", by, stop_workers=True)["changed"]
    try:
        yield
    finally:
        if closed:
            maintenance.off(site, by)
