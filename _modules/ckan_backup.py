"""
Dumps of CKAN's database on the host that migrates it: made before a migration, read back, kept a few, restored.

PostgreSQL's own programs do the work: ``ckan_postgres`` runs them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_backup"
__func_alias__ = {"list_": "list"}

MB = 2**20
HINT = "; or set ckan:backup:when to never, and have a hook before the stage migrate make your own"


def __virtual__() -> str:
    return __virtualname__


def before(settings: dict, release: str, found: dict, pending: bool) -> dict:
    """
    Dump the database before a release migrates it, if ``backup:when`` asks for that; old dumps go afterwards.

    settings
        The settings.
    release
        The release that is about to migrate it; the dump is named after it.
    found
        Where the database is: what ``ckan_app.schema`` returned. An empty database is not dumped.
    pending
        Whether a migration is to come.

    Returns ``{"file", "size_mb", "seconds"}``, ``{}`` where nothing was to be dumped. Raises ``CommandExecutionError``;
    nothing is left of a dump that failed.

    CLI Example: not for the command line; use ``ckan_backup.dump``.
    """
    when = settings["backup"]["when"]
    holds = any(state["at"] for state in found.values())
    if not holds or when == "never" or (when == "before_migration" and not pending):
        return {}
    made = _dump(settings, release)
    for old in list_()[settings["backup"]["keep"] :]:
        os.unlink(old["file"])
    return made


def dump(name: str = "") -> dict:
    """
    Dump the database now.

    name
        What to call it; by default a stamp of now.

    Returns ``{"file", "size_mb", "seconds"}``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_backup.dump
    """
    __salt__["ckan_settings.refresh"]()
    return _dump(__salt__["ckan_settings.get"](), name or __salt__["ckan_release.new_id"]())


def list_() -> list[dict]:
    """
    Return the dumps on this host, newest first: ``[{"name", "file", "size_mb"}]``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_backup.list
    """
    folder = __salt__["ckan_settings.get"]()["paths"]["backups"]
    names = sorted(os.listdir(folder), reverse=True) if os.path.isdir(folder) else []
    files = [(name, os.path.join(folder, name)) for name in names if name.endswith(".dump")]
    return [
        {"name": name.removesuffix(".dump"), "file": file, "size_mb": round(os.path.getsize(file) / MB, 1)}
        for name, file in files
    ]


def heads(name: str) -> dict:
    """
    Return the revisions that the database of a dump is at.

    name
        The dump, as ``list`` names it.

    Returns ``{"core" or plugin: [revisions]}``. Raises ``CommandExecutionError`` where there is no such dump here.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_backup.heads 20261125021500Z
    """
    settings = __salt__["ckan_settings.get"]()
    file = _file(settings, str(name))
    tables = re.findall(r"TABLE DATA \S+ (\w*alembic_version) ", _postgres(["pg_restore", "--list", file], settings))
    found = {}
    for table in sorted(tables):
        text = _postgres(["pg_restore", "--data-only", f"--table={table}", "--file=-", file], settings)
        rows = re.search(r"^COPY .*?;\n(.*?)^\\\.$", text, flags=re.S | re.M)
        plugin = table.removesuffix("alembic_version").removesuffix("_") or "core"
        found[plugin] = sorted(rows.group(1).split()) if rows else []
    return {plugin: some for plugin, some in found.items() if some}


def restore(name: str, confirm: str = "") -> dict:
    """
    Put a dump in the place of the database: into a new database first, then the two change names. The one of before is
    kept under another name, so nothing is lost, also where this is interrupted.

    What came into the portal after the dump is missing then. Visitors are cut off for the moment of the change.

    name
        The dump, as ``list`` names it.
    confirm
        The same name again.

    Returns ``{"database", "kept_as": name of the database of before, "seconds"}``. Raises ``CommandExecutionError``
    with one sentence; the database is as it was then.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_backup.restore 20261125021500Z confirm=20261125021500Z
    """
    __salt__["ckan_settings.refresh"]()
    settings = __salt__["ckan_settings.get"]()
    about = settings["database"]
    if str(confirm) != str(name):
        raise CommandExecutionError(
            f"this puts the dump {name} in the place of the database {about['name']} on {about['host']}, and what came "
            f"into it since is missing then; to go on, type the name again: confirm={name}"
        )
    with __salt__["ckan_stage.running"](settings, "restore", str(name)):
        return put_back(settings, str(name))


def put_back(settings: dict, name: str) -> dict:
    """
    Do what ``restore`` does, without a question.

    settings
        The settings.
    name
        The dump.

    Returns and raises as ``restore`` does.

    CLI Example: not for the command line; use ``ckan_backup.restore``.
    """
    begun, about = time.monotonic(), settings["database"]
    new = _restored(settings, name, "new")
    kept = _new_name(settings, "old")
    try:
        _change_names(settings, new, kept)
    except CommandExecutionError:
        _as_admin(f'drop database if exists "{new}"', settings)
        raise
    return {"database": about["name"], "kept_as": kept, "seconds": round(time.monotonic() - begun, 1)}


def take_again(settings: dict, kept_as: str) -> None:
    """
    Undo what ``restore`` did: the database of before takes its name again. The one from the dump goes.

    settings
        The settings.
    kept_as
        The name that the database of before was kept under.

    Raises ``CommandExecutionError``; the database is as it was then.

    CLI Example: not for the command line; ``ckan_schema.upgrade`` uses it.
    """
    dumped = _new_name(settings, "dump")
    _change_names(settings, kept_as, dumped)
    # Somebody may be connected again; then it stays, and is in nobody's way.
    with contextlib.suppress(CommandExecutionError):
        _as_admin(f'drop database "{dumped}"', settings)


@contextlib.contextmanager
def copied(settings: dict, name: str) -> Iterator[str]:
    """
    Have a copy of the database for a while, made from a dump.

    settings
        The settings.
    name
        The dump.

    Yields the name of the copy. Raises ``CommandExecutionError`` with one sentence.

    CLI Example: not for the command line; ``ckan_release.migrate`` uses it.
    """
    new = _restored(settings, name, "rehearsal")
    try:
        yield new
    finally:
        _as_admin(f'drop database if exists "{new}"', settings)


def obstacle(settings: dict) -> str:
    """
    Say what would keep this host from putting the dump of a deploy in the place of the database, ``''`` for nothing.

    settings
        The settings.

    CLI Example: not for the command line; ``ckan_release.check`` uses it.
    """
    return "ckan:backup:when is never" if settings["backup"]["when"] == "never" else _may_not(settings)


def _may_not(settings: dict) -> str:
    about = settings["database"]
    may = _as_admin("select rolcreatedb or rolsuper from pg_roles where rolname = current_user", settings).strip()
    if may == "t":
        return ""
    return (
        f"{about['admin_user'] or about['user']} may not make databases on {about['host']}; name somebody who may in "
        "ckan:database:admin_user and admin_password"
    )


def _new_name(settings: dict, what: str) -> str:
    # Names of PostgreSQL have at most 63 bytes.
    return f"{settings['database']['name'][:40]}_{what}_{__salt__['ckan_release.new_id']()}"


def _restored(settings: dict, name: str, what: str) -> str:
    """A new database with what a dump has; returns its name."""
    about = settings["database"]
    file = _file(settings, name)
    _postgres(["pg_restore", "--list", file], settings)
    if problem := _may_not(settings):
        raise CommandExecutionError(f"{problem}.")
    new = _new_name(settings, what)
    _as_admin(f'create database "{new}" owner "{about["user"]}" template template0', settings)
    try:
        _postgres(["pg_restore", "--no-owner", "--no-privileges", "--exit-on-error", "-d", new, file], settings)
    except CommandExecutionError:
        _as_admin(f'drop database if exists "{new}"', settings)
        raise
    return new


def _change_names(settings: dict, new: str, kept: str) -> None:
    """The new database takes the name of the one of before: both renames at once, or none."""
    name = settings["database"]["name"]
    _as_admin(f'alter database "{name}" allow_connections false', settings)
    try:
        # Each statement by itself: psql puts those of one -c into one transaction.
        gone = f"select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = '{name}'"
        _as_admin(gone, settings)
        both = f'alter database "{name}" rename to "{kept}"; alter database "{new}" rename to "{name}"'
        _as_admin(both, settings)
    except CommandExecutionError:
        _as_admin(f'alter database "{name}" allow_connections true', settings)
        raise
    _as_admin(f'alter database "{kept}" allow_connections true', settings)


def ready(settings: dict) -> None:
    """
    Say in time what is in the way of a dump: a missing or too old ``pg_dump``, no room.

    settings
        The settings.

    Raises ``CommandExecutionError`` with one sentence.

    CLI Example: not for the command line; ``ckan_release.check`` uses it.
    """
    if settings["backup"]["when"] == "never":
        return
    if not __salt__["ckan_ini.own_database"](settings):
        raise CommandExecutionError(
            f"ckan:config names another database in sqlalchemy.url than ckan:database does; name it there{HINT}."
        )
    if not shutil.which("pg_dump"):
        raise CommandExecutionError(f"pg_dump is missing on this host; install postgresql-client{HINT}.")
    own = int(re.search(r"\) (\d+)", _postgres(["pg_dump", "--version"], settings)).group(1))
    size, server = _postgres(
        ["psql", "-X", "-A", "-t", "-c",
         "select pg_database_size(current_database()), current_setting('server_version_num')::int / 10000"], settings
    ).strip().split("|")  # fmt: skip
    if own < int(server):
        raise CommandExecutionError(
            f"pg_dump of this host is version {own} and cannot read PostgreSQL {server}; install postgresql-client-"
            f"{server}{HINT}."
        )
    free, needed = __salt__["ckan_plan.free_mb"](settings["paths"]["backups"]), int(size) // MB
    if free < needed + settings["disk_free_mb"]:
        raise CommandExecutionError(
            f"a dump of the database may take {needed} MB, and {free} MB are free at {settings['paths']['backups']} "
            f"(ckan:disk_free_mb stay free); make room, or name another place in ckan:paths:backups{HINT}."
        )


def _postgres(command: list[str], settings: dict) -> str:
    return __salt__["ckan_postgres.run"](command, settings)


def _as_admin(sql: str, settings: dict) -> str:
    return __salt__["ckan_postgres.admin"](sql, settings)


def _file(settings: dict, name: str) -> str:
    file = os.path.join(settings["paths"]["backups"], f"{name}.dump")
    if not os.path.isfile(file):
        have = ", ".join(dump["name"] for dump in list_()) or "none"
        raise CommandExecutionError(f"there is no dump {name} on this host; the dumps here: {have}.")
    return file


def _dump(settings: dict, name: str) -> dict:
    ready(settings)
    folder = settings["paths"]["backups"]
    os.makedirs(folder, mode=0o700, exist_ok=True)
    file = os.path.join(folder, f"{name}.dump")
    part, begun = f"{file}.part", time.monotonic()
    try:
        # Made by us, so that nobody else can read it for a moment.
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        _postgres(["pg_dump", "-Fc", "--no-password", "-f", part], settings)
        if "TABLE DATA" not in _postgres(["pg_restore", "--list", part], settings):
            raise CommandExecutionError("the dump holds no table; nothing was migrated.")
        os.rename(part, file)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
    seconds = round(time.monotonic() - begun, 1)
    return {"file": file, "size_mb": round(os.path.getsize(file) / MB, 1), "seconds": seconds}
