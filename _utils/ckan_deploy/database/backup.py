"""
Dumps of CKAN's database on the host that migrates it: made before a migration, read back, kept a few, restored.

PostgreSQL's own programs do the work: ``postgres`` runs them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ckan_deploy.build import ini
from ckan_deploy.database import names, postgres
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases import ids, stage
from ckan_deploy.releases.site import Site
from ckan_deploy.system import disk

MB = 2**20
HINT = "; or set ckan:backup:when to never, and have a hook before the stage migrate make your own"


def before(site: Site, release: str, found: Mapping[str, Mapping[str, Any]], pending: bool) -> dict[str, Any]:
    """
    Dump the database before a release migrates it, if ``backup:when`` asks for that; old dumps go afterwards.

    site
        The site.
    release
        The release that is about to migrate it; the dump is named after it.
    found
        Where the database is, by ``core`` and plugins: what ``probe.schema`` returned. An empty database is not dumped.
    pending
        Whether a migration is to come.

    Returns ``{"file", "size_mb", "seconds"}``, ``{}`` where nothing was to be dumped. Raises ``FormulaError``; nothing
    is left of a dump that failed.
    """
    when = site.settings.backup.when
    holds = any(state["at"] for state in found.values())
    if not holds or when == "never" or (when == "before_migration" and not pending):
        return {}
    made = _dump(site, release)
    for old in list_dumps(site)[site.settings.backup.keep :]:
        os.unlink(old["file"])
    return made


def dump(site: Site, name: str = "") -> dict[str, Any]:
    """
    Dump the database now.

    site
        The site.
    name
        What to call it; by default a stamp of now.

    Returns ``{"file", "size_mb", "seconds"}``. Raises ``InvalidArgument`` for what is no plain name, ``FormulaError``
    where there can be no dump.
    """
    return _dump(site, names.dump(name) if name else ids.new_id())


def list_dumps(site: Site) -> list[dict[str, Any]]:
    """
    Return the dumps on this host, newest first: ``[{"name", "file", "size_mb"}]``.

    site
        The site.
    """
    folder = site.paths.backups
    found = sorted(os.listdir(folder), reverse=True) if os.path.isdir(folder) else []
    files = [(name, os.path.join(folder, name)) for name in found if name.endswith(".dump")]
    return [
        {"name": name.removesuffix(".dump"), "file": file, "size_mb": round(os.path.getsize(file) / MB, 1)}
        for name, file in files
    ]


def heads(site: Site, name: str) -> dict[str, list[str]]:
    """
    Return the revisions that the database of a dump is at.

    site
        The site.
    name
        The dump, as ``list_dumps`` names it.

    Returns ``{"core" or plugin: [revisions]}``. Raises ``InvalidArgument`` for what is no plain name, ``FormulaError``
    where there is no such dump here.
    """
    file = _file(site, name)
    listed = postgres.run(site, ["pg_restore", "--list", file])
    found = {}
    for table in sorted(re.findall(r"TABLE DATA \S+ (\w*alembic_version) ", listed)):
        text = postgres.run(site, ["pg_restore", "--data-only", f"--table={table}", "--file=-", file])
        rows = re.search(r"^COPY .*?;\n(.*?)^\\\.$", text, flags=re.S | re.M)
        plugin = table.removesuffix("alembic_version").removesuffix("_") or "core"
        found[plugin] = sorted(rows.group(1).split()) if rows else []
    return {plugin: some for plugin, some in found.items() if some}


def restore(site: Site, name: str, confirm: str = "") -> dict[str, Any]:
    """
    Put a dump in the place of the database: into a new database first, then the two change names. The one of before is
    kept under another name, so nothing is lost, also where this is interrupted.

    What came into the portal after the dump is missing then. Visitors are cut off for the moment of the change.

    site
        The site.
    name
        The dump, as ``list_dumps`` names it.
    confirm
        The same name again.

    Returns ``{"database", "kept_as": name of the database of before, "seconds"}``. Raises ``InvalidArgument`` for what
    is no plain name, ``FormulaError`` with one sentence; the database is as it was then.
    """
    name, about = names.dump(name), site.settings.database
    if str(confirm) != name:
        raise FormulaError(
            f"this puts the dump {name} in the place of the database {about.name} on {about.host}, and what came "
            f"into it since is missing then; to go on, type the name again: confirm={name}"
        )
    with stage.running(site, "restore", name):
        return put_back(site, name)


def put_back(site: Site, name: str) -> dict[str, Any]:
    """
    Do what ``restore`` does, without a question.

    site
        The site.
    name
        The dump.

    Returns and raises as ``restore`` does.
    """
    begun = time.monotonic()
    new = _restored(site, name, "new")
    kept = names.beside(site, "old")
    try:
        _change_names(site, new, kept)
    except FormulaError:
        _drop(site, new)
        raise
    return {
        "database": site.settings.database.name, "kept_as": kept, "seconds": round(time.monotonic() - begun, 1),
    }  # fmt: skip


def take_again(site: Site, kept_as: str) -> None:
    """
    Undo what ``restore`` did: the database of before takes its name again. The one from the dump goes.

    site
        The site.
    kept_as
        The name that the database of before was kept under.

    Raises ``InvalidArgument`` for any other name, ``FormulaError``; the database is as it was then.
    """
    kept, dumped = names.kept(site, kept_as), names.beside(site, "dump")
    _change_names(site, kept, dumped)
    # Somebody may be connected again; then it stays, and is in nobody's way.
    with contextlib.suppress(FormulaError):
        postgres.admin(site, f"drop database {postgres.identifier(dumped)}")


@contextlib.contextmanager
def copied(site: Site, name: str) -> Iterator[str]:
    """
    Have a copy of the database for a while, made from a dump.

    site
        The site.
    name
        The dump.

    Yields the name of the copy. Raises ``FormulaError`` with one sentence.
    """
    new = _restored(site, name, "rehearsal")
    try:
        yield new
    finally:
        _drop(site, new)


def obstacle(site: Site) -> str:
    """
    Say what would keep this host from putting the dump of a deploy in the place of the database, ``''`` for nothing.

    site
        The site.
    """
    return "ckan:backup:when is never" if site.settings.backup.when == "never" else _may_not(site)


def ready(site: Site) -> None:
    """
    Say in time what is in the way of a dump: a missing or too old ``pg_dump``, no room.

    site
        The site.

    Raises ``FormulaError`` with one sentence.
    """
    if site.settings.backup.when == "never":
        return
    if not ini.own_database(site):
        raise FormulaError(
            f"ckan:config names another database in sqlalchemy.url than ckan:database does; name it there{HINT}."
        )
    if not shutil.which("pg_dump"):
        raise FormulaError(f"pg_dump is missing on this host; install postgresql-client{HINT}.")
    version = re.search(r"\) (\d+)", postgres.run(site, ["pg_dump", "--version"]))
    own = int(version[1]) if version else 0
    size, server = postgres.run(
        site,
        ["psql", "-X", "-A", "-t", "-c",
         "select pg_database_size(current_database()), current_setting('server_version_num')::int / 10000"],
    ).strip().split("|")  # fmt: skip
    if own < int(server):
        raise FormulaError(
            f"pg_dump of this host is version {own} and cannot read PostgreSQL {server}; install postgresql-client-"
            f"{server}{HINT}."
        )
    free, needed = disk.free_mb(site.paths.backups), int(size) // MB
    if free < needed + site.settings.disk_free_mb:
        raise FormulaError(
            f"a dump of the database may take {needed} MB, and {free} MB are free at {site.paths.backups} "
            f"(ckan:disk_free_mb stay free); make room, or name another place in ckan:paths:backups{HINT}."
        )


def _may_not(site: Site) -> str:
    about = site.settings.database
    sql = "select rolcreatedb or rolsuper from pg_roles where rolname = current_user"
    if postgres.admin(site, sql).strip() == "t":
        return ""
    return (
        f"{about.admin_user or about.user} may not make databases on {about.host}; name somebody who may in "
        "ckan:database:admin_user and admin_password"
    )


def _restored(site: Site, name: str, what: str) -> str:
    """A new database with what a dump has; returns its name."""
    file = _file(site, name)
    postgres.run(site, ["pg_restore", "--list", file])
    if problem := _may_not(site):
        raise FormulaError(f"{problem}.")
    new, owner = names.beside(site, what), site.settings.database.user
    quoted = postgres.identifier(new)
    postgres.admin(site, f"create database {quoted} owner {postgres.identifier(owner)} template template0")
    try:
        postgres.run(site, ["pg_restore", "--no-owner", "--no-privileges", "--exit-on-error", "-d", new, file])
    except FormulaError:
        _drop(site, new)
        raise
    return new


def _drop(site: Site, database: str) -> None:
    postgres.admin(site, f"drop database if exists {postgres.identifier(database)}")


def _change_names(site: Site, new: str, kept: str) -> None:
    """The new database takes the name of the one of before: both renames at once, or none."""
    name = site.settings.database.name
    now, then, later = (postgres.identifier(each) for each in (name, kept, new))
    postgres.admin(site, f"alter database {now} allow_connections false")
    try:
        # Each statement by itself: psql puts those of one -c into one transaction.
        where = f"datname = {postgres.literal(name)}"
        postgres.admin(site, f"select count(pg_terminate_backend(pid)) from pg_stat_activity where {where}")
        both = f"alter database {now} rename to {then}; alter database {later} rename to {now}"
        postgres.admin(site, both)
    except FormulaError:
        postgres.admin(site, f"alter database {now} allow_connections true")
        raise
    postgres.admin(site, f"alter database {then} allow_connections true")


def _file(site: Site, name: str) -> str:
    name = names.dump(name)
    file = os.path.join(site.paths.backups, f"{name}.dump")
    if not os.path.isfile(file):
        have = ", ".join(dump["name"] for dump in list_dumps(site)) or "none"
        raise FormulaError(f"there is no dump {name} on this host; the dumps here: {have}.")
    return file


def _dump(site: Site, name: str) -> dict[str, Any]:
    ready(site)
    folder = site.paths.backups
    os.makedirs(folder, mode=0o700, exist_ok=True)
    file = os.path.join(folder, f"{name}.dump")
    part, begun = f"{file}.part", time.monotonic()
    try:
        # Made by us, so that nobody else can read it for a moment.
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        postgres.run(site, ["pg_dump", "-Fc", "--no-password", "-f", part])
        if "TABLE DATA" not in postgres.run(site, ["pg_restore", "--list", part]):
            raise FormulaError("the dump holds no table; nothing was migrated.")
        os.rename(part, file)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
    seconds = round(time.monotonic() - begun, 1)
    return {"file": file, "size_mb": round(os.path.getsize(file) / MB, 1), "seconds": seconds}
