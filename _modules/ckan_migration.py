"""
What a release does to the database before it is served: a dump, a rehearsal on a copy, the migrations of CKAN and its
plugins, the permissions of the datastore, and the commands that set extensions up.

``ckan_app`` migrates, ``ckan_backup`` dumps; whether a release can live with a database is the business of
``ckan_schema``.
"""

from __future__ import annotations

import time

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_migration"


def __virtual__() -> str:
    return __virtualname__


def foresee(settings: dict, manifest: dict, checked: dict) -> dict:
    """
    Say how a release will migrate what its check found pending, and look whether it can be dumped before.

    settings
        The settings.
    manifest
        The manifest of the release.
    checked
        What ``ckan_app.check`` returned.

    Returns ``{"maintenance": whether visitors get the page of maintenance meanwhile, "warnings": [sentences]}``. Raises
    ``CommandExecutionError`` with what is in the way of a dump.

    CLI Example: not for the command line; use ``ckan_release.check``.
    """
    live = __salt__["ckan_store.current"](settings["paths"])
    served = __salt__["ckan_store.read"](settings["paths"], live) if live else {}
    closes = __salt__["ckan_schema.closes"](settings, served, manifest, checked["pending"])
    if not any(state["at"] for state in checked["schema"].values()):
        return {"maintenance": closes, "warnings": []}
    __salt__["ckan_backup.ready"](settings)
    warnings = []
    if closes and (why := __salt__["ckan_backup.obstacle"](settings)):
        warnings.append(f"after a failure the database would stay migrated: {why}")
    return {"maintenance": closes, "warnings": warnings}


def run(settings: dict, release: str, checked: dict) -> dict:
    """
    Bring the database to the heads of a release, where its check found something pending.

    settings
        The settings.
    release
        The release.
    checked
        What its check found: see ``ckan_app.check``.

    Returns ``{"migrated": bool, "migration": {"host", "before", "after", "seconds", "backup", "rehearsal", "commands"},
    "warnings": [sentences]}``; ``migration`` is ``{}`` where nothing was done. Raises ``CommandExecutionError`` that
    names what failed, says what the database holds, and what runs on it.

    CLI Example: not for the command line; use ``ckan_release.migrate``.
    """
    found, pending = checked.get("schema", {}), bool(checked.get("pending"))
    path = __salt__["ckan_store.directory"](settings["paths"], release)
    warnings = _datastore(settings, path, checked.get("datastore", ""))
    commands = __salt__["ckan_app.init_commands"](settings)
    dumped = __salt__["ckan_backup.before"](settings, release, found, pending)
    migration = {"backup": dumped} if dumped else {}
    if pending or commands:
        leave = __salt__["ckan_schema.unknown"](settings, found)["leave"]
        if dumped and settings["migration"]["rehearse"]:
            migration["rehearsal"] = _rehearse(settings, path, release, leave)
        try:
            result = __salt__["ckan_app.migrate"](path, settings, leave)
        except CommandExecutionError as exc:
            kept = f"; the dump of before is {dumped['file']} on {__grains__['id']}" if dumped else ""
            raise CommandExecutionError(f"{exc}{_what_runs(settings)}{kept}") from exc
        migration.update({name: result[name] for name in ("before", "after", "seconds") if name in result})
    if commands:
        migration["commands"] = [" ".join(words) for words in commands]
    if migration:
        migration["host"] = __grains__["id"]
    return {"migrated": pending, "migration": migration, "warnings": warnings}


def _what_runs(settings: dict) -> str:
    """After a migration that failed: who meets that database now, and what to do."""
    if __salt__["ckan_maintenance.status"]()["on"]:
        # Visitors wait, and the database is given back before they come in again.
        return "; mend the migration and deploy again"
    live = __salt__["ckan_store.current"](settings["paths"])
    runs = f"the live release {live} runs on it" if live else "no release runs on it yet"
    return f"; {runs}; mend the migration and deploy again, it goes on from there"


def _rehearse(settings: dict, path: str, release: str, leave: list[str]) -> dict:
    """Migrate a copy of the database; returns how long copy and migration took, in seconds."""
    begun = time.monotonic()
    with __salt__["ckan_backup.copied"](settings, release) as name:
        copied = time.monotonic() - begun
        there = {**settings, "database": {**settings["database"], "name": name}}
        with __salt__["ckan_ini.lent"](path, there) as ini:
            try:
                result = __salt__["ckan_app.migrate"](path, there, leave, ini)
            except CommandExecutionError as exc:
                text = f"the rehearsal on a copy failed, the database is untouched: {exc}"
                raise CommandExecutionError(text) from exc
    return {"copy_seconds": round(copied, 1), "seconds": result["seconds"]}


def _datastore(settings: dict, path: str, lacks: str) -> list[str]:
    """The datastore gets its permissions, where somebody is named who may give them; else what to type is a warning."""
    if not lacks:
        return []
    if not settings["database"]["admin_user"]:
        ini = __salt__["ckan_ini.path"](path, settings)
        return [
            f"the datastore lacks {lacks}; have an administrator of PostgreSQL run the output of: "
            f"{path}/bin/ckan -c {ini} datastore set-permissions; or name one in ckan:database:admin_user"
        ]
    sql = __salt__["ckan_app.datastore_sql"](path, settings)
    __salt__["ckan_postgres.admin"](sql, settings, settings["datastore"])
    return []
