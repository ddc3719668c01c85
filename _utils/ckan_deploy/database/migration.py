"""
What a release does to the database before it is served: a dump, a rehearsal on a copy, the migrations of CKAN and its
plugins, the permissions of the datastore, and the commands that set extensions up.

``probe`` migrates, ``backup`` dumps; whether a release can live with a database is the business of ``compatibility``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from ckan_deploy.build import ini
from ckan_deploy.database import backup, compatibility, postgres, probe, restore
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases import hooks
from ckan_deploy.releases.manifest import Manifest
from ckan_deploy.releases.site import Site


def foresee(
    site: Site, manifest: Manifest, checked: Mapping[str, Any], forced: bool = False
) -> dict[str, Any]:  # fmt: skip
    """
    Say how a release will migrate what its check found pending, and look whether it can be dumped before.

    site
        The site.
    manifest
        The manifest of the release.
    checked
        What ``probe.check`` returned.
    forced
        Visitors get the maintenance page whatever the settings say.

    Returns ``{"maintenance": whether visitors get the maintenance page meanwhile, "warnings": [sentences]}``. Raises
    ``FormulaError`` with what is in the way of a dump, or of a restore after a failure behind the maintenance page.
    """
    live = site.releases.current()
    served = compatibility.version_of(site.releases.read(live)) if live else ""
    closes = forced or compatibility.closes(site, served, compatibility.version_of(manifest), checked["pending"])
    if not any(state["at"] for state in checked["schema"].values()):
        return {"maintenance": closes, "warnings": []}
    backup.ready(site)
    if not closes:
        return {"maintenance": False, "warnings": []}
    if site.settings.backup.when == "never":
        # Whoever says so sees to it: such as by a hook before the stage migrate.
        said = "after a failure the database would stay migrated: ckan:backup:when is never"
        return {"maintenance": True, "warnings": [said]}
    try:
        return {"maintenance": True, "warnings": restore.trial(site)}
    except FormulaError as exc:
        raise FormulaError(
            "visitors would get the maintenance page for this migration, and after a failure the database could not be "
            f"given back: {str(exc).rstrip('.')}{backup.HINT}"
        ) from exc


def due(site: Site, checked: Mapping[str, Any]) -> bool:
    """
    Say whether ``run`` has anything to do, or the hooks of its stage.

    site
        The site.
    checked
        What the check of the release found: see ``probe.check``.
    """
    return bool(
        checked.get("pending") or checked.get("datastore") or probe.init_commands(site)
        or site.settings.backup.when == "always" or hooks.there(site, "migrate")
    )  # fmt: skip


def run(site: Site, release: str, checked: Mapping[str, Any], closed: bool) -> dict[str, Any]:
    """
    Bring the database to the heads of a release, where its check found something pending.

    site
        The site.
    release
        The release.
    checked
        What its check found: see ``probe.check``.
    closed
        Whether the portal is in maintenance mode.

    Returns ``{"migrated": bool, "migration": {"host", "before", "after", "seconds", "backup", "rehearsal", "commands"},
    "warnings": [sentences]}``; ``migration`` is ``{}`` where nothing was done. Raises ``FormulaError`` that names what
    failed, says what the database holds, and what runs on it.
    """
    found, pending = checked.get("schema", {}), bool(checked.get("pending"))
    path = site.releases.directory(release)
    warnings = _datastore(site, path, checked.get("datastore", ""))
    commands = probe.init_commands(site)
    dumped = backup.before(site, release, found, pending)
    warnings += dumped.pop("warnings", [])
    migration: dict[str, Any] = {"backup": dumped} if dumped else {}
    if pending or commands:
        leave = compatibility.unknown(site, found)["leave"]
        if dumped and site.settings.migration.rehearse:
            migration["rehearsal"] = _rehearse(site, path, release, leave)
        try:
            result = probe.migrate(site, path, leave)
        except FormulaError as exc:
            kept = f"; the dump of before is {dumped['file']} on {site.host.id}" if dumped else ""
            raise FormulaError(f"{exc}{_what_runs(site, closed)}{kept}") from exc
        migration.update({name: result[name] for name in ("before", "after", "seconds") if name in result})
    if commands:
        migration["commands"] = [" ".join(words) for words in commands]
    if migration:
        migration["host"] = site.host.id
    return {"migrated": pending, "migration": migration, "warnings": warnings}


def _what_runs(site: Site, closed: bool) -> str:
    """After a migration that failed: who meets that database now, and what to do."""
    if closed:
        # Visitors wait, and the database is given back before they come in again.
        return "; mend the migration and deploy again"
    live = site.releases.current()
    runs = f"the live release {live} runs on it" if live else "no release runs on it yet"
    return f"; {runs}; mend the migration and deploy again, it goes on from there"


def _rehearse(site: Site, path: str, release: str, leave: Sequence[str]) -> dict[str, float]:
    """Migrate a copy of the database; returns how long copy and migration took, in seconds."""
    begun = time.monotonic()
    with restore.copied(site, release) as name:
        copied = time.monotonic() - begun
        database = attrs.evolve(site.settings.database, name=name)
        there = attrs.evolve(site, settings=attrs.evolve(site.settings, database=database))
        with ini.lent(there, path) as place:
            try:
                result = probe.migrate(there, path, leave, place)
            except FormulaError as exc:
                text = f"the rehearsal on a copy failed, the database is untouched: {exc}"
                raise FormulaError(text) from exc
    return {"copy_seconds": round(copied, 1), "seconds": result["seconds"]}


def _datastore(site: Site, path: str, lacks: str) -> list[str]:
    """The datastore gets its permissions, where somebody is named who may give them; else what to type is a warning."""
    if not lacks:
        return []
    user = site.settings.database.admin_user
    if not user:
        return [_by_hand(site, path, f"the datastore lacks {lacks}")]
    try:
        postgres.admin(site, probe.datastore_sql(site, path), site.settings.datastore)
    except FormulaError as exc:
        # As where nobody is named: the portal works but for the datastore.
        return [_by_hand(site, path, f"the datastore lacks {lacks}, which {user} could not give it ({_cause(exc)})")]
    return []


def _by_hand(site: Site, path: str, what: str) -> str:
    command = f"{path}/bin/ckan -c {ini.path(site, path)} datastore set-permissions"
    way = f"have a superuser of PostgreSQL run the output of: {command}; or name one in ckan:database:admin_user"
    return f"{what}; {way}"


def _cause(exc: FormulaError) -> str:
    """What PostgreSQL said, without the line of a file that nobody has."""
    return re.sub(r"^psql:[^ ]*: *(?:(?:ERROR|error): *)?", "", " ".join(str(exc).split())).rstrip(".")
