"""
The stages that change the database besides a deploy's migration: brought back to what an older release knows, brought
forward again, given back as it was before a deploy that failed.
"""

from __future__ import annotations

from typing import Any

from ckan_deploy.database import backup, compatibility, names, probe
from ckan_deploy.database.restore import put_back, take_again
from ckan_deploy.releases import stage
from ckan_deploy.releases.ids import check_id, new_id
from ckan_deploy.releases.site import Site


def downgrade(site: Site, release: str, by: str = "", job: str = "", restore: str = "") -> dict[str, Any]:
    """
    Take the database back to what a release knows: by the scripts of the current one, with a dump of it before, unless
    ``backup:when`` is ``never``; or by a dump that is put in its place.

    site
        The site.
    release
        The release whose revisions it is brought back to.
    by, job
        Who asked, and the run of the master that this belongs to.
    restore
        The dump.

    Returns ``{"undone": {"core" or plugin: [revisions]}, "backup": {...}, "kept_as": database, "warnings": [...]}``.
    Raises ``InvalidArgument`` for what is no release or no name of a dump, ``FormulaError`` that says what the database
    holds.
    """
    check_id(release)
    restore = names.dump(restore) if restore else ""
    with stage.running(site, "downgrade", release, by, job) as warned:
        current_id = site.releases.current()
        found = compatibility.way_back(site, release, downgrade=not restore, restore=restore)
        undone = {name: state.get("revisions", state["at"]) for name, state in found["different"].items()}
        if found["restore"]:
            done = put_back(site, restore)
            warned += [f"the restore did not give back: {each}" for each in done.get("differs", [])]
            warned += done.get("warnings", [])
            return {"undone": undone, "kept_as": done["kept_as"], "warnings": warned}
        # Not named after the current release: that one's dump is of before its migration.
        dumped = backup.before(site, new_id(), found["different"], True)
        warned += dumped.pop("warnings", [])
        if found["downgrade"]:
            probe.downgrade(site, site.releases.directory(current_id), found["downgrade"])
        return {"undone": undone, **({"backup": dumped} if dumped else {}), "warnings": warned}


def upgrade(site: Site, release: str, by: str = "", job: str = "", kept_as: str = "") -> dict[str, str]:
    """
    Bring the database to the heads of a release that was live: after a downgrade or a restore whose rollback failed.

    site
        The site.
    release
        The release.
    by, job
        Who asked, and the run of the master that this belongs to.
    kept_as
        After a restore: the database of before, which takes its name again.

    Returns ``{"current": id}``. Raises ``InvalidArgument`` for what is no release or no database that a restore has
    kept, ``FormulaError`` that says what the database holds.
    """
    path = site.releases.directory(release)
    kept_as = names.kept(site, kept_as) if kept_as else ""
    with stage.running(site, "upgrade", release, by, job):
        if kept_as:
            take_again(site, kept_as)
        probe.migrate(site, path)
        return {"current": site.releases.current()}


def give_back(site: Site, release: str, by: str = "", job: str = "", closed: bool = False) -> dict[str, Any]:
    """
    Put the dump of before in the place of a database that a release has migrated, for a deploy that failed while the
    portal was closed on all hosts: nobody has written to it since. A database that the release before gets along with
    is left alone.

    site
        The site.
    release
        The release that migrated it; the dump has its name.
    by, job
        Who asked, and the run of the master that this belongs to.
    closed
        Whether the portal is in maintenance mode.

    Returns ``{"kept_as": the name that the migrated database has now, "differs": [what did not come back]}``;
    ``kept_as`` is ``''`` where it was left alone. Raises ``InvalidArgument`` for what is no release, ``FormulaError``
    with why it could not be given back.
    """
    check_id(release)
    with stage.running(site, "give back", release, by, job):
        current_id = site.releases.current()
        before = current_id if current_id != release else site.releases.read(release).previous
        if not (before and closed and compatibility.compare(site, site.releases.directory(before), "")):
            return {"kept_as": "", "differs": []}
        done = put_back(site, release)
        return {"kept_as": str(done["kept_as"]), "differs": done.get("differs", [])}
