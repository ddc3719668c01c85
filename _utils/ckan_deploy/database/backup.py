"""
Dumps of CKAN's database on the host that migrates it: made before a migration, read back, kept a few. What the database
is besides its tables stands in a file beside each. ``restore`` puts them back.

PostgreSQL's own programs do the work: ``postgres`` runs them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ckan_deploy.build import ini
from ckan_deploy.database import names, postgres, properties
from ckan_deploy.database.properties import Properties
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases import ids
from ckan_deploy.releases.site import Site
from ckan_deploy.system import disk, files

MB = 2**20
# The end of the name of the file that stands beside a dump.
BESIDE = ".properties.json"
HINT = "; or set ckan:backup:when to never, and have a hook before the stage migrate make your own"
# Size, version of the server, and the tables that pg_dump would fail on.
_ASKED = """
select pg_database_size(current_database()), current_setting('server_version_num')::int / 10000, (
  select string_agg(format('%I.%I', nspname, relname), ', ' order by nspname, relname)
  from pg_class c join pg_namespace n on n.oid = relnamespace
  where relkind in ('r', 'p', 'S') and nspname !~ '^(pg_|information_schema$)'
    and not (has_schema_privilege(n.oid, 'usage') and case relkind when 'S' then has_sequence_privilege(c.oid, 'select')
      else has_table_privilege(c.oid, 'select') end)
    and not exists (select from pg_depend where classid = 'pg_class'::regclass and objid = c.oid and deptype = 'e'))
"""


def before(site: Site, name: str, found: Mapping[str, Mapping[str, Any]], pending: bool) -> dict[str, Any]:
    """
    Dump the database before it is changed, if ``backup:when`` asks for that; old dumps of deploys go afterwards.

    site
        The site.
    name
        What to call the dump: after the release that is about to migrate the database. Where there is one of that name
        it stays: it was made before a migration that was tried already.
    found
        Where the database is, by ``core`` and plugins: what ``probe.schema`` returned. An empty database is not dumped.
    pending
        Whether a migration is to come.

    Returns ``{"file", "size_mb", "seconds"}``, with ``warnings`` where there are any, ``{}`` where nothing was to be
    dumped. Raises ``FormulaError``; nothing is left of a dump that failed.
    """
    when = site.settings.backup.when
    holds = any(state["at"] for state in found.values())
    if not holds or when == "never" or (when == "before_migration" and not pending):
        return {}
    file = _path(site, name)
    made = {"file": file, "size_mb": _size(file), "seconds": 0.0} if os.path.exists(file) else _dump(site, name)
    warnings = _prune(site)
    return {**made, **({"warnings": warnings} if warnings else {})}


def dump(site: Site, name: str = "") -> dict[str, Any]:
    """
    Dump the database now.

    site
        The site.
    name
        What to call it; by default a stamp of now.

    Returns ``{"file", "size_mb", "seconds"}``. Raises ``InvalidArgument`` for what is no plain name, ``FormulaError``
    where there can be no dump, or where there is one of that name already.
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
    return [{"name": name.removesuffix(".dump"), "file": file, "size_mb": _size(file)} for name, file in files]


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
    file = file_of(site, name)
    listed = postgres.run(site, ["pg_restore", "--list", file])
    found = {}
    for table in sorted(re.findall(r"TABLE DATA \S+ (\w*alembic_version) ", listed)):
        text = postgres.run(site, ["pg_restore", "--data-only", f"--table={table}", "--file=-", file])
        rows = re.search(r"^COPY .*?;\n(.*?)^\\\.$", text, flags=re.S | re.M)
        plugin = table.removesuffix("alembic_version").removesuffix("_") or "core"
        found[plugin] = sorted(rows.group(1).split()) if rows else []
    return {plugin: some for plugin, some in found.items() if some}


def file_of(site: Site, name: str) -> str:
    """
    Return the file of a dump on this host.

    site
        The site.
    name
        The dump, as ``list_dumps`` names it.

    Raises ``InvalidArgument`` for what is no plain name, ``FormulaError`` where there is no such dump here.
    """
    file = _path(site, names.dump(name))
    if not os.path.isfile(file):
        have = ", ".join(dump["name"] for dump in list_dumps(site)) or "none"
        raise FormulaError(f"there is no dump {name} on this host; the dumps here: {have}.")
    return file


def properties_of(site: Site, name: str) -> Properties:
    """
    Return what a database was besides its tables when it was dumped.

    site
        The site.
    name
        The dump, as ``list_dumps`` names it. One that came without the file beside it has what the database is now, and
        where that is gone what a new one is by default.

    Raises ``FormulaError`` where the file beside the dump cannot be read.
    """
    beside = _beside(file_of(site, name))
    try:
        if text := files.read(beside):
            return Properties.of(json.loads(text))
    except (KeyError, TypeError, ValueError) as exc:
        raise FormulaError(
            f"{beside} is not what a dump has beside it ({exc}); bring the right one here, or remove it to take what "
            "the database is now."
        ) from exc
    about = site.settings.database
    sql = f"select 1 from pg_database where datname = {postgres.literal(about.name)}"
    return properties.read(site) if postgres.admin(site, sql).strip() else Properties()


@contextlib.contextmanager
def tables_only(site: Site) -> Iterator[str]:
    """
    Have a dump of the database without its rows for a while, for a trial.

    site
        The site.

    Yields its file. Raises ``FormulaError`` where it cannot be made.
    """
    with _alone(site) as folder:
        part = os.path.join(folder, "trial.part")
        try:
            _pg_dump(site, part, "--schema-only")
            yield part
        finally:
            _remove(part)


def ready(site: Site) -> None:
    """
    Say in time what is in the way of a dump: a missing or too old ``pg_dump``, a table that may not be read, no room.

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
    for program in ("pg_dump", "pg_restore"):
        if not shutil.which(program):
            raise FormulaError(f"{program} is missing on this host; install postgresql-client{HINT}.")
    version = re.search(r"\) (\d+)", postgres.run(site, ["pg_dump", "--version"]))
    own = int(version[1]) if version else 0
    size, server, unreadable = (*postgres.run(site, [*postgres.PSQL, "-c", _ASKED]).strip().split("|", 2), "")[:3]
    if own < int(server):
        raise FormulaError(
            f"pg_dump of this host is version {own} and cannot read PostgreSQL {server}; install postgresql-client-"
            f"{server}{HINT}."
        )
    if unreadable:
        user = postgres.identifier(site.settings.database.user)
        raise FormulaError(
            f"{site.settings.database.user} may not read {unreadable} in the database, so it cannot be dumped; have "
            f"somebody who may type in psql: grant select on {unreadable} to {user}{HINT}."
        )
    free, needed = disk.free_mb(site.paths.backups), int(size) // MB
    if free < needed + site.settings.disk_free_mb:
        raise FormulaError(
            f"a dump of the database may take {needed} MB, and {free} MB are free at {site.paths.backups} "
            f"(ckan:disk_free_mb stay free); make room, or name another place in ckan:paths:backups{HINT}."
        )


def _dump(site: Site, name: str) -> dict[str, Any]:
    file, begun = _path(site, name), time.monotonic()
    _refuse_taken(name, file)
    ready(site)
    with _alone(site) as folder:
        _refuse_taken(name, file)  # by another process, meanwhile
        _sweep(folder)
        part = f"{file}.part"
        try:
            _pg_dump(site, part)
            if "TABLE DATA" not in postgres.run(site, ["pg_restore", "--list", part]):
                raise FormulaError("the dump holds no table; nothing was migrated.")
            about = json.dumps(properties.read(site).to_json(), indent=1, ensure_ascii=False) + "\n"
            files.write(_beside(file), about, mode=0o600, durable=True)
            os.rename(part, file)
        finally:
            _sweep(folder)
        files.sync_directory(folder)
    return {"file": file, "size_mb": _size(file), "seconds": round(time.monotonic() - begun, 1)}


def _refuse_taken(name: str, file: str) -> None:
    if os.path.lexists(file):
        raise FormulaError(f"there is a dump {name} already ({file}); give another name, or move that one away.")


def _pg_dump(site: Site, part: str, *options: str) -> None:
    # Made by us, so that nobody else can read it for a moment. pg_dump makes sure that it outlives a power failure.
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
    postgres.run(site, ["pg_dump", "-Fc", "--no-password", *options, "-f", part])


@contextlib.contextmanager
def _alone(site: Site) -> Iterator[str]:
    """The directory of the dumps, while no other process of this host makes one."""
    folder = site.paths.backups
    os.makedirs(folder, mode=0o700, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(descriptor)


def _sweep(folder: str) -> None:
    """Remove what a dump that was killed has left: its part, and the file beside a dump that there is not."""
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        alone = name.endswith(BESIDE) and not os.path.exists(path.removesuffix(BESIDE) + ".dump")
        if name.endswith((".part", f"{BESIDE}.tmp")) or alone:
            _remove(path)


def _prune(site: Site) -> list[str]:
    """Remove the dumps that are too many, of those that deploys have made; returns what could not be removed."""
    made = [old for old in list_dumps(site) if ids.ID_PATTERN.fullmatch(old["name"])]
    failed = []
    for old in made[site.settings.backup.keep :]:
        try:
            os.unlink(old["file"])
            _remove(_beside(old["file"]))
        except OSError as exc:
            failed.append(f"the old dump {old['file']} could not be removed ({exc.strerror}); remove it")
    return failed


def _path(site: Site, name: str) -> str:
    return os.path.join(site.paths.backups, f"{name}.dump")


def _beside(file: str) -> str:
    return file.removesuffix(".dump") + BESIDE


def _size(file: str) -> float:
    return round(os.path.getsize(file) / MB, 1)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
