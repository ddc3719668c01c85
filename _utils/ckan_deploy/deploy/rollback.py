"""Back to a release that was live, on one host."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from ckan_deploy.build import ini
from ckan_deploy.database import changes, compatibility
from ckan_deploy.deploy import switch
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases import choice, lock, stage
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import app_server, health, maintenance


def rollback_target(site: Site, to: str = "", force: bool = False) -> str:
    """
    Return the release that ``rollback`` would go to. Changes nothing.

    site
        The site.
    to
        A release asked for by name.
    force
        Take one that is marked bad, too.

    Raises ``FormulaError`` when there is none, or when it is not whole.
    """
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
    accept_schema: bool = False, downgrade: bool = False, restore: str = "",
) -> dict[str, Any]:  # fmt: skip
    """
    Go back to the next older release that was live and is not bad, or to a named one. The one left is marked bad.

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

    Returns ``{"current": id, "left": id}``, and ``warnings`` where there are any. Raises ``FormulaError`` when there is
    no such release, or it does not start or answer; the host then serves what it served before.
    """
    target = rollback_target(site, to, force)
    found: dict[str, Any] = {}
    if finish or accept_schema:
        found = compatibility.way_back(site, target, accept_schema, downgrade, restore)
    changes_database = bool(found.get("downgrade") or found.get("restore"))
    closed = _closed(site, by) if changes_database and found["maintenance"] else contextlib.nullcontext()
    undone: dict[str, Any] = {}
    with lock.held(site, "rollback", target, by, job), closed:
        if changes_database:
            undone = changes.downgrade(site, target, by, job, found["restore"])
        elif accept_schema:
            for name, state in found["different"].items():
                compatibility.accept(site, name, ",".join(state["knows"]), ",".join(state["at"]), by)
        left = site.releases.current()
        try:
            done = go(
                site, target, "bad", by, reason or "rolled back", job, finish, restored=bool(undone.get("kept_as"))
            )
        except FormulaError as exc:
            if undone:
                # The release that serves again must find its database.
                changes.upgrade(site, left, by, job, undone.get("kept_as", ""))
            raise FormulaError(str(exc)) from exc
    done["left"] = done.pop("previous")
    return {**done, **({"undone": undone["undone"]} if undone else {})}


def go(
    site: Site, release: str, left_state: str, by: str, reason: str, job: str, finishing: bool = True,
    restored: bool = False,
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

    Returns ``{"current": id, "previous": id}``, and ``warnings`` where there are any.
    """
    with stage.running(site, "rollback", release, by, job, reason) as warned:
        left = site.releases.current()
        switch.start(site, release)
        switch.switch(site, release, left_state, by, reason)
        if finishing:
            try:
                health.health(site, release)
            except FormulaError as exc:
                switch.switch(site, left, "retired", by, str(exc))
                raise FormulaError(f"{exc}; this host is back on {left}") from exc
            app_server.stop_others(site, site.releases.directory(release))
            index, told = switch.reindex(site, release, by, job, restored)
            warned += told + switch.follow(site) + switch.watch(site, release)
            if index:
                site.release(release).note(by, index=index)
        return {"current": release, "previous": left, **({"warnings": warned} if warned else {})}


@contextlib.contextmanager
def _closed(site: Site, by: str) -> Iterator[None]:
    """Visitors get the maintenance page for a while; where somebody else has turned it on it stays."""
    closed = maintenance.on(site, "rollback", by, stop_workers=True)["changed"]
    try:
        yield
    finally:
        if closed:
            maintenance.off(site, by)
