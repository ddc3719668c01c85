"""Restores that are killed, and dumps on a full disk, with a real PostgreSQL: the old database is there or the new."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckan_deploy.database import backup, restore
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases import lock
from ckan_deploy.releases.site import Site
from crash import kill
from fakes import fake_site
from parts.postgres import Postgres
from parts.process import sandbox, stop_all

pytestmark = pytest.mark.crash

PASSWORD = "word-of-ckan"
RESTORES, SIZES = 20, 40
ROWS = "select title from package order by id limit 1"
_CALLS: dict[str, int] = {}


class Portal:
    """A database, a dump of it from before it was changed, and a site that is told of it."""

    def __init__(self, cluster: Postgres, root: Path) -> None:
        self.cluster, self.root = cluster, root
        cluster.create_database("saved", "ckan_default", PASSWORD)
        cluster.sql("postgres", "alter role ckan_default createdb")
        cluster.sql("saved", "create table package (id serial, title text); insert into package (title) "
                    "select 'dumped ' || n || repeat(md5(n::text), 20) from generate_series(1, 400) n; "
                    "alter table package owner to ckan_default")  # fmt: skip
        self.bring()
        backup.dump(self.site(), "before")
        cluster.sql("saved", "update package set title = replace(title, 'dumped', 'newer')")
        self.bring()

    def site(self) -> Site:
        database = {"host": "127.0.0.1", "port": self.cluster.port, "password": PASSWORD}
        return fake_site(self.root, disk_free_mb=0, database=database)

    def names(self, also: str = "") -> list[str]:
        sql = f"select datname from pg_database where datname like 'ckan%' {also}"
        return self.cluster.sql("postgres", sql).split()

    def bring(self) -> None:
        """The database as it is before a restore, and no other."""
        for name in self.names():
            self.cluster.sql("postgres", f'drop database "{name}" with (force)')
        self.cluster.sql("postgres", "create database ckan_default owner ckan_default template saved")

    def title(self) -> str:
        return self.cluster.sql("ckan_default", ROWS).split()[0]


@pytest.fixture(scope="module")
def portal() -> Iterator[Portal]:
    place, root = sandbox("ckan-c-"), Path(tempfile.mkdtemp(prefix="ckan-c-", dir="/tmp"))
    yield Portal(Postgres(place).start(), root)
    stop_all(place)
    shutil.rmtree(place)
    shutil.rmtree(root)


def restored(portal: Portal) -> None:
    restore.restore(portal.site(), "before", "before")


@pytest.mark.parametrize("number", range(1, RESTORES + 1), ids=[f"restore-{n}" for n in range(1, RESTORES + 1)])
def test_killed_restore(portal: Portal, number: int):
    if not _CALLS:
        portal.bring()
        assert not kill.run(lambda: restored(portal)).said  # makes what each one finds then
        portal.bring()
        done = kill.run(lambda: restored(portal))
        assert not done.said and portal.title() == "dumped", done.said
        _CALLS["restore"] = len(done.calls)
    portal.bring()
    at = 1 + (number - 1) * _CALLS["restore"] // RESTORES
    ended = kill.run(lambda: restored(portal), at, together=bool(number % 2))
    where = f"a restore was killed at call {at} of {_CALLS['restore']}: {ended.calls[-1]}"
    site = portal.site()
    assert ended.killed and lock.busy(site) == "", where
    # What is left is named, and goes. One that was killed together with psql in the moment of its creation stays a day.
    made = {name for name in portal.names("and shobj_description(oid, 'pg_database') like 'made for a restore%'")}
    bare = set(portal.names()) - made - {"ckan_default"}
    bare = {name for name in bare if number % 2 and "_new_" in name and "running psql" in ended.calls[-1]}
    said = restore.sweep(site)
    assert all(any(name in line for line in said) for name in made), f"{where}: {made}, {said}"
    left = [name for name in portal.names() if name not in ("ckan_default", *bare)]
    title = portal.title()
    assert title in ("dumped", "newer") and len(left) == (title == "dumped"), f"{where}: {title}, {left}"
    assert not left or left[0].startswith("ckan_default_old_"), where
    restored(portal)
    assert portal.title() == "dumped" and restore.sweep(site) == [], where
    assert sorted(os.listdir(site.paths.backups)) == ["before.dump", "before.properties.json"], where


@pytest.mark.parametrize("number", range(1, SIZES + 1), ids=[f"full-backups-{n}" for n in range(1, SIZES + 1)])
def test_full_backups(portal: Portal, number: int):
    if "ckan_default" not in portal.names():
        portal.bring()
    site = portal.site()
    dump = Path(site.paths.backups, "before.dump")
    room = dump.stat().st_size * 6 // 5 // 1024 * number // SIZES + 4
    folder = Path(site.paths.backups)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}k", "tmpfs", folder], check=True)
    try:
        (folder / "mine.dump").write_text("theirs")
        said = ""
        try:
            backup.dump(site, "new")
        except FormulaError as exc:
            said = str(exc)
        whole = ["new.dump", "new.properties.json"]
        left = sorted(os.listdir(folder))
        assert left == (["mine.dump"] if said else ["mine.dump", *whole]), f"{room} KB, {said}: {left}"
        subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
        backup.dump(site, "again")
        assert set(os.listdir(folder)) - set(left) == {"again.dump", "again.properties.json"}
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
