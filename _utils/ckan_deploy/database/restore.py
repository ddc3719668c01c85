"""
Dumps put back: into a new database beside the site's own, made with all that the old one was, and then the two change
names. A copy for a rehearsal is made in the same way, and so is a trial without rows, by which it is known before the
portal is closed that a restore would work.

What a dump holds is its owner's own code, so nobody runs it with more rights: the site's user restores what is not of a
superuser, the administrator what is, and what belongs to the database itself.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from ckan_deploy.database import archive, backup, names, postgres, properties
from ckan_deploy.database.properties import Properties
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases import stage
from ckan_deploy.releases.ids import ID_FORMAT
from ckan_deploy.releases.site import Site
from ckan_deploy.system import disk

# After which a database that a restore has left over goes, whichever host that was on.
DAY = 86400
# Whether who asks may make databases, and whose connections to the site's own they may not end.
_MAY = (
    "select rolcreatedb or rolsuper, (select bool_or(other.rolsuper)::text || '|' || string_agg(distinct usename, ', ')"
    " from pg_stat_activity join pg_roles other on other.oid = usesysid where {named} and not me.rolsuper and "
    "(other.rolsuper or not (pg_has_role(usesysid, 'member') or pg_has_role('pg_signal_backend', 'member')))) "
    "from pg_roles me where rolname = current_user"
)


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

    Returns ``{"database", "kept_as": name of the database of before, '' where there was none, "seconds"}``, with
    ``differs``, sentences, where not all came back, and ``warnings`` where there are any. Raises ``InvalidArgument``
    for what is no plain name, ``FormulaError`` with one sentence; the database is as it was then.
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
    begun, file = time.monotonic(), backup.file_of(site, name)
    warnings, wanted = sweep(site), backup.properties_of(site, name)
    new, differs = _made(site, file, wanted, "new")
    try:
        kept = _change_names(site, new, "old", wanted.comment)
    except FormulaError:
        _leave(site, new)
        raise
    told = {"database": site.settings.database.name, "kept_as": kept, "seconds": round(time.monotonic() - begun, 1)}
    return {**told, **({"differs": differs} if differs else {}), **({"warnings": warnings} if warnings else {})}


def take_again(site: Site, kept_as: str) -> None:
    """
    Undo what ``restore`` did: the database of before takes its name again. The one from the dump goes.

    site
        The site.
    kept_as
        The name that the database of before was kept under.

    Raises ``InvalidArgument`` for any other name, ``FormulaError``; the database is as it was then.
    """
    kept = names.kept(site, kept_as)
    found = postgres.admin(site, f"select shobj_description(oid, 'pg_database') from pg_database where {_named(kept)}")
    dumped = _change_names(site, kept, "dump", found or None)
    _leave(site, dumped)


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
    file = backup.file_of(site, name)
    sweep(site)
    new, _ = _made(site, file, backup.properties_of(site, name), "rehearsal")
    try:
        yield new
    finally:
        _leave(site, new)


def trial(site: Site) -> list[str]:
    """
    Try whether a restore would work: the tables of the database, without rows, are dumped into a new database, which is
    then removed. About a second.

    site
        The site.

    Returns sentences: what such a restore would not give back, and what a dead one has left that was removed. Raises
    ``FormulaError`` with what keeps a restore from working.
    """
    warnings = sweep(site)
    if problem := _no_room(site):
        raise FormulaError(problem)
    with backup.tables_only(site) as file:
        new, differs = _made(site, file, properties.read(site), names.trial(site))
    _leave(site, new)
    return [*warnings, *(f"a restore would not give back: {each}" for each in differs)]


def sweep(site: Site) -> list[str]:
    """
    Remove the databases that a dead restore or rehearsal of this host has left, and those of any host that are older
    than a day. Only what has such a name, with its stamp, is looked at.

    site
        The site.

    Returns sentences: what was removed, and what could not be.
    """
    mark, own = _mark(site), site.settings.database.name
    sql = (
        f"select datname, shobj_description(oid, 'pg_database') is not distinct from {postgres.literal(mark)} from "
        f"pg_database where not datistemplate and datname ~ {postgres.literal(names.left_over(site))}"
    )
    told: list[str] = []
    old = time.strftime(ID_FORMAT, time.gmtime(time.time() - DAY))
    for row in postgres.admin(site, sql).splitlines():
        name, _, marked = row.rpartition("|")
        if marked != "t" and name[-len(old) :] > old:
            continue
        try:
            _drop(site, name)
        except FormulaError as exc:
            told.append(f"{name}, which a restore has left on the database server, could not be removed: {exc}")
            continue
        told.append(f"{name}, which a restore that was interrupted has left on the database server, was removed")
        closed = f"select datname from pg_database where {_named(own)} and not datallowconn"
        if marked == "t" and postgres.admin(site, closed):
            # It was killed while the two changed names.
            postgres.admin(site, f"alter database {postgres.identifier(own)} allow_connections true")
            told.append(f"{own} takes connections again")
    return told


def obstacle(site: Site) -> str:
    """
    Say what keeps the administrator from putting a database in the place of the site's own, ``''`` for nothing.

    site
        The site.
    """
    about = site.settings.database
    me, server = about.admin_user or about.user, about.host
    sql = _MAY.format(named=_named(about.name))
    quoted = postgres.identifier(me)
    may, superuser, who = (*postgres.admin(site, sql).strip().split("|", 2), "", "")[:3]
    if may != "t":
        return (
            f"{me} may not make databases on {server}; name somebody who may in ckan:database:admin_user and "
            f"admin_password, or have a superuser type in psql: alter role {quoted} createdb"
        )
    if who:
        # Those of a superuser only another one may end.
        right = "" if superuser == "true" else f", or have one type in psql: grant pg_signal_backend to {quoted}"
        return (
            f"{who} is connected to {about.name}, and {me} may not end that for a restore; wait for it, or name a "
            f"superuser in ckan:database:admin_user and admin_password{right}"
        )
    return ""


def _no_room(site: Site) -> str:
    """Say whether the database server lacks the room for another such database: only where it is on this host."""
    about = site.settings.database
    if about.host not in ("localhost", "127.0.0.1", "::1") and not about.host.startswith("/"):
        return ""
    # Nothing for whoever may not read it.
    place = postgres.admin(site, "select setting from pg_settings where name = 'data_directory'").strip()
    size = postgres.run(site, [*postgres.PSQL, "-c", "select pg_database_size(current_database()) / 1048576"])
    if not place or not os.path.isdir(place) or (free := disk.free_mb(place)) >= int(size):
        return ""
    return (
        f"a second database beside {about.name} takes {size.strip()} MB, and {free} MB are free at {place}, where "
        "PostgreSQL has its data; make room"
    )


def _made(site: Site, file: str, wanted: Properties, what: str) -> tuple[str, list[str]]:
    """A new database with what a dump has; returns its name, and what it lacks."""
    if problem := obstacle(site):
        raise FormulaError(f"{problem}.")
    listed = archive.Archive.of(site, file, wanted.extensions)
    new, owner = _unused(site, what), site.settings.database.user
    quoted = postgres.identifier(new)
    made = f"create database {quoted} owner {postgres.identifier(owner)} template template0 {wanted.create}"
    mark = f"comment on database {quoted} is {postgres.literal(_mark(site))}"
    # One program for both: it goes on where this process is killed, and what is left is known as ours.
    postgres.run(site, [*postgres.PSQL, "-c", made, "-c", mark], postgres.administrator(site))
    try:
        listed.restore(site, new)
        _each(site, new, wanted.owners)
        failed = listed.give_rights(site, new)
        _each(site, "postgres", [quoted.join(parts) for parts in wanted.statements])
        now = properties.read(site, new)
    except BaseException:
        _leave(site, new)
        raise
    return new, [*wanted.lacking(now, site.settings.database.name), *failed]


def _each(site: Site, database: str, statements: Sequence[str]) -> None:
    """Run statements as the administrator, each by itself. What fails is found by a comparison."""
    for begin in range(0, len(statements), 100):
        words = [word for said in statements[begin : begin + 100] for word in ("-c", said)]
        postgres.complaints(site, ["psql", "-X", "-q", *words], postgres.administrator(site, database))


def _leave(site: Site, database: str) -> None:
    """Remove a database that is done with. Where somebody is connected to it, as monitoring may be, a sweep does it."""
    with contextlib.suppress(FormulaError):
        _drop(site, database)


def _drop(site: Site, database: str) -> None:
    quoted = postgres.identifier(database)
    # A template cannot be dropped; whatever this says, the other says it, too.
    words = ["-c", f"alter database {quoted} is_template false", "-c", f"drop database if exists {quoted}"]
    said = postgres.complaints(site, ["psql", "-X", "-q", *words], postgres.administrator(site))
    if wrong := [line for line in said if "does not exist" not in line]:
        raise FormulaError(wrong[-1])


def _change_names(site: Site, new: str, what: str, comment: str | None) -> str:
    """
    A database takes the name of the site's own: both renames at once, or none. Returns the name that the one of before
    is kept under, ``''`` where there was none.

    It is one program, which goes on where this process is killed, and lets connections in again whatever happens.
    """
    own = site.settings.database.name
    kept = _unused(site, what) if _exists(site, own) else ""
    now, then, later = (postgres.identifier(each) for each in (own, kept, new))
    about = f"comment on database {now} is {postgres.literal(comment) if comment is not None else 'null'}"
    moved = f"alter database {now} rename to {then}; " if kept else ""
    if what == "dump" and kept:
        about += f"; comment on database {then} is {postgres.literal(_mark(site))}"
    change = f"{moved}alter database {later} rename to {now}; {about}"
    left = [
        f"alter database {now} allow_connections false",
        # Each statement by itself: psql puts those of one -c into one transaction.
        f"select count(pg_terminate_backend(pid)) from pg_stat_activity where {_named(own)}",
    ]
    again = [f"alter database {now} allow_connections true"]
    again += [f"alter database {then} allow_connections true"] if kept else []
    words = [word for said in [*(left if kept else []), change, *again] for word in ("-c", said)]
    said = postgres.complaints(site, ["psql", "-X", "-q", *words], postgres.administrator(site))
    if _exists(site, new) or not _exists(site, own):
        raise FormulaError(f"{said[0] if said else 'the databases did not change names'}; {own} has kept its name")
    return kept


def _unused(site: Site, what: str) -> str:
    """
    A new name for a database. The stamp in it is of a second, and a restore that was killed in that one has it.
    """
    while _exists(site, name := names.beside(site, what)):
        time.sleep(0.1)
    return name


def _exists(site: Site, database: str) -> bool:
    return bool(postgres.admin(site, f"select 1 from pg_database where {_named(database)}").strip())


def _named(database: str) -> str:
    return f"datname = {postgres.literal(database)}"


def _mark(site: Site) -> str:
    """The comment of a database that is being made: whose it is. One that takes the site's name gets its own."""
    return f"made for a restore by {site.host.id}"
