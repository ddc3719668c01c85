"""
Restores on a real PostgreSQL: what comes back is what was dumped, its encoding, rights and settings included. Without
CKAN: a database with two of its tables is enough for that.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from ckan_deploy.database import backup, postgres, restore
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.ids import new_id
from ckan_deploy.releases.site import Site
from daemon.conftest import eventually
from fakes import REPO, fake_site
from parts import system
from parts.portal import next_second
from parts.postgres import Postgres
from parts.process import sandbox, stop_all

pytestmark = pytest.mark.integration

PASSWORD = r"pass:w\ord-of-ckan"
ADMIN = {"admin_user": "boss", "admin_password": "word-of-the-boss"}
COMMENT = "the portal's, of {{city}} %s"
ROWS = "select string_agg(title, ',' order by title) from package"
DATABASES = "select string_agg(datname, ' ' order by datname) from pg_database where datname like 'ckan%'"


class Database:
    """CKAN's database on a cluster of its own, and a site that is told of it."""

    def __init__(self, cluster: Postgres, root: Path) -> None:
        self.cluster, self.root = cluster, root

    def site(self, **more: Any) -> Site:
        database = {"host": "127.0.0.1", "port": self.cluster.port, "password": PASSWORD, **more}
        return fake_site(self.root, disk_free_mb=0, database=database)

    def sql(self, statement: str, database: str = "ckan_default") -> str:
        return self.cluster.sql(database, statement)

    def seen(self) -> list[str]:
        return self.cluster.seen("ckan_default")

    def as_ckan(self, statements: str) -> None:
        # By a session of its own: that of a superuser would have more rights than the role it sets.
        postgres.run(self.site(), [*postgres.PSQL, "-c", statements])

    def names(self) -> str:
        return self.sql(DATABASES, "postgres")


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    place = sandbox("ckan-r-")
    postgres = Postgres(place, locale=getattr(request, "param", "C")).start()
    for role in ("metabase login", "dba", "boss superuser login password 'word-of-the-boss'"):
        postgres.sql("postgres", f"create role {role}")
    yield postgres
    stop_all(place)
    shutil.rmtree(place)


@pytest.fixture
def database(cluster: Postgres) -> Iterator[Database]:
    # pytest's own directories are too long for a socket.
    root = Path(tempfile.mkdtemp(prefix="ckan-r-", dir="/tmp"))
    cluster.create_database("ckan_default", "ckan_default", PASSWORD)
    cluster.sql("postgres", "alter role ckan_default createdb")
    made = Database(cluster, root)
    made.as_ckan(
        "create table package (id serial primary key, title text); "
        "insert into package (title) values ('Straßenbäume – données'); "
        "create table alembic_version (version_num text); insert into alembic_version values ('c1')"
    )
    yield made
    shutil.rmtree(root)
    for name in made.names().split():
        cluster.sql("postgres", f'alter database "{name}" is_template false')
        cluster.sql("postgres", f'drop database "{name}" with (force)')
    for role in cluster.sql("postgres", "select rolname from pg_roles where rolname = 'gone'").split():
        cluster.sql("postgres", f"drop role {role}")


def by_owner(database: Database) -> None:
    """What the owner of a database can make, and give back."""
    for statement in (
        "alter database ckan_default connection limit 80", "revoke connect on database ckan_default from public",
        "grant connect on database ckan_default to metabase with grant option",
        f"comment on database ckan_default is {postgres.literal(COMMENT)}",
        "alter database ckan_default set statement_timeout = '45s'",
        "alter database ckan_default set search_path = \"$user\", public, '', 'o''dd, \"one'",
    ):  # fmt: skip
        database.sql(statement)
    database.as_ckan(
        "grant select on package to metabase; grant update (title) on package to metabase with grant option; "
        "grant usage on sequence package_id_seq to metabase; grant usage on schema public to metabase; "
        "alter default privileges in schema public grant select on tables to metabase; "
        "create function twice(n int) returns int language sql as 'select 2 * n'; "
        "revoke all on function twice(int) from public; grant execute on function twice(int) to metabase"
    )


def by_others(database: Database) -> None:
    """What only a superuser can make, and give back."""
    database.sql("create extension dblink; create extension hstore; comment on extension dblink is 'to the archive'")
    database.sql(
        "create table notes (id int); alter table notes owner to dba; grant select on notes to ckan_default, metabase; "
        "create table mine (id int); grant select on mine to ckan_default; insert into mine values (7); "
        "create view shown as select title from package; alter view shown owner to dba; alter schema public owner to "
        "ckan_default; create function secret() returns int language c as 'dblink', 'dblink_get_connections'"
    )
    database.sql("alter role metabase in database ckan_default set default_transaction_read_only = on")
    database.sql("alter database ckan_default set ckan.colour = 'it''s \"blue\"'")
    database.sql("alter database ckan_default set session_preload_libraries = 'auto_explain'")


@pytest.mark.parametrize("cluster", ["C.UTF-8", "C"], indirect=True)
def test_f03_a_restore_gives_back_encoding_rights_limits_comment_and_settings(database: Database):
    by_owner(database)
    site, before = database.site(), database.seen()
    assert before[0].startswith("class") and any("UTF8" in line for line in before)
    backup.dump(site, "before")
    database.as_ckan("delete from package; drop function twice(int)")
    told = restore.restore(site, "before", "before")
    assert database.seen() == before and not told.get("differs"), told
    assert database.sql(ROWS) == "Straßenbäume – données"
    # The database of before is kept, and can be used.
    assert database.cluster.sql(told["kept_as"], "select count(*) from package") == "0"
    restore.take_again(site, told["kept_as"])
    assert database.sql("select count(*) from package") == "0" and database.names() == "ckan_default"


def test_h10_extensions_owners_and_settings_that_need_a_superuser_come_back_by_the_administrator(database: Database):
    by_owner(database)
    by_others(database)
    site, before = database.site(**ADMIN), database.seen()
    backup.dump(site, "before")
    with restore.copied(site, "before") as copy:
        assert database.cluster.sql(copy, ROWS) == "Straßenbäume – données"
        said = [line.replace("made for a restore by web1", COMMENT) for line in database.cluster.seen(copy)]
        assert said == before
    told = restore.restore(site, "before", "before")
    assert database.seen() == before and not told.get("differs"), told
    assert database.sql("select * from mine") == "7"
    assert database.sql("select obj_description(oid, 'pg_extension') from pg_extension where extname = 'dblink'") == (
        "to the archive"
    )


def test_h10_postgis_comes_back_by_the_administrator_and_without_one_it_is_known_before(database: Database):
    system.ensure_packages([Postgres.package("postgis-3")])
    database.sql("create extension postgis")
    database.sql("insert into spatial_ref_sys (srid, auth_name, srtext) values (998999, 'city', 'of our own')")
    database.as_ckan(
        "create table package_extent (id int, place geometry(point, 4326)); create index on package_extent using gist "
        "(place); insert into package_extent values (1, 'srid=4326;point(16.37 48.2)')"
    )
    with pytest.raises(FormulaError, match="extension postgis, which only a superuser .* ckan:database:admin_user"):
        restore.trial(database.site())
    site, before = database.site(**ADMIN), database.cluster.seen("ckan_default")
    assert restore.trial(site) == []
    backup.dump(site, "before")
    for name in (restore.restore(site, "before", "before")["database"], "a copy"):
        with restore.copied(site, "before") if name == "a copy" else nullcontext(name) as there:
            assert database.cluster.sql(there, "select st_astext(place) from package_extent") == "POINT(16.37 48.2)"
            assert database.cluster.sql(there, "select auth_name from spatial_ref_sys where srid = 998999") == "city"
            assert len(database.cluster.seen(there)) == len(before)
    assert database.seen() == before


def test_h10_without_an_administrator_it_is_known_before_that_a_restore_cannot_work(database: Database):
    database.sql("create extension dblink")
    with pytest.raises(FormulaError, match="extension dblink, which only a superuser .* ckan:database:admin_user"):
        restore.trial(database.site())
    assert database.names() == "ckan_default"
    assert restore.trial(database.site(**ADMIN)) == []
    assert database.names() == "ckan_default"
    # What is said helps: a restore by hand says the same, and touches nothing.
    backup.dump(database.site(), "before")
    with pytest.raises(FormulaError, match="dblink, .* ckan:database:admin_user"):
        restore.restore(database.site(), "before", "before")
    assert database.names() == "ckan_default" and database.sql(ROWS) == "Straßenbäume – données"
    restore.restore(database.site(**ADMIN), "before", "before")


def test_what_a_restore_cannot_give_back_is_said_before_and_after(database: Database):
    by_owner(database)
    database.sql("alter role metabase in database ckan_default set work_mem = '8MB'")
    database.sql("create table notes (id int); alter table notes owner to dba; grant select on notes to ckan_default")
    site = database.site()
    differs = restore.trial(site)
    assert len(differs) == 2 and "alter role metabase in database ckan_default set work_mem" in str(differs), differs
    assert "alter table public.notes owner to dba" in str(differs)
    backup.dump(site, "before")
    told = restore.restore(site, "before", "before")["differs"]
    assert [f"a restore would not give back: {each}" for each in told] == differs


def test_a_connection_that_could_not_be_ended_is_known_before(database: Database):
    site = database.site()
    backup.dump(site, "before")
    said = "postgres is connected to ckan_default, and ckan_default may not end that"
    client = database.cluster.hold("ckan_default", "lock table package in access share mode")
    try:
        for tried in (lambda: restore.trial(site), lambda: restore.restore(site, "before", "before")):
            with pytest.raises(FormulaError, match=said):
                tried()
        assert database.names() == "ckan_default" and database.sql(ROWS) == "Straßenbäume – données"
        restore.restore(database.site(**ADMIN), "before", "before")
    finally:
        client.kill()
        client.wait()


def test_a_role_that_is_gone_is_named_and_the_rights_of_others_come_back(database: Database):
    database.sql("create role gone login")
    by_owner(database)
    database.as_ckan("grant select on package to gone; grant select on alembic_version to gone, metabase")
    site = database.site()
    backup.dump(site, "before")
    database.sql("drop owned by gone; drop role gone")
    before = database.seen()
    told = restore.restore(site, "before", "before")
    assert database.seen() == before
    assert told["differs"] and all("gone" in line for line in told["differs"]), told


def test_a_dump_is_restored_where_the_database_is_gone(database: Database):
    by_owner(database)
    site, before = database.site(**ADMIN), database.seen()
    backup.dump(site, "before")
    database.sql("drop database ckan_default with (force)", "postgres")
    told = restore.restore(site, "before", "before")
    assert (told["kept_as"], database.seen()) == ("", before)


def test_the_provider_of_a_collation_and_the_tablespace_come_back(database: Database):
    place = database.cluster.directory / f"space-{database.root.name}"
    place.mkdir()
    shutil.chown(place, "postgres")
    database.sql(f"create tablespace elsewhere location '{place}'", "postgres")
    database.sql("drop database ckan_default with (force)", "postgres")
    database.sql(
        "create database ckan_default owner ckan_default template template0 encoding 'UTF8' locale_provider icu "
        "icu_locale 'de-AT' lc_collate 'C.UTF-8' lc_ctype 'C.UTF-8' tablespace elsewhere is_template true", "postgres",
    )  # fmt: skip
    database.as_ckan("create table package (id int, title text)")
    try:
        before = database.seen()
        site = database.site(**ADMIN)
        backup.dump(site, "before")
        restore.restore(site, "before", "before")
        assert database.seen() == before and "icu" not in before[0] and any("de-AT" in line for line in before)
    finally:
        for name in database.names().split():
            database.sql(f'alter database "{name}" is_template false', "postgres")
            database.sql(f'drop database "{name}" with (force)', "postgres")
        database.sql("drop tablespace elsewhere", "postgres")


def test_code_of_the_database_s_owner_does_not_run_as_the_administrator(database: Database):
    # A check that runs while rows come in, and names that break a line of SQL.
    database.as_ckan(
        "create function evil(t text) returns bool language plpgsql as $$ begin "
        "perform set_config('role', 'none', false); "
        "if (select rolsuper from pg_roles where rolname = session_user) then "
        "alter role ckan_default superuser; end if; return true; end $$; "
        "alter table package add check (evil(title)); "
        'create table "x\nGRANT dba TO ckan_default;\ny" (id int); '
        'grant select on "x\nGRANT dba TO ckan_default;\ny" to metabase; '
        'create table "EXTENSION - x boss" (id int check (evil(\'x\'))); insert into "EXTENSION - x boss" values (1)'
    )
    by_others(database)
    site = database.site(**ADMIN)
    backup.dump(site, "before")
    restore.restore(site, "before", "before")
    assert database.sql("select rolsuper from pg_roles where rolname = 'ckan_default'") == "f"
    assert database.sql("select count(*) from pg_auth_members where member = 'ckan_default'::regrole") == "0"
    assert database.sql('select count(*) from "EXTENSION - x boss"') == "1"


KILLED = """
import sys
from pathlib import Path
from ckan_deploy.database import restore
from fakes import fake_site
host, port, password, root = sys.argv[1:]
site = fake_site(root, disk_free_mb=0, database={"host": host, "port": int(port), "password": password})
restore.restore(site, "before", "before")
"""


def killed(database: Database) -> None:
    """A restore that is killed with all its programs while rows come in."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, "127.0.0.1", str(database.cluster.port), PASSWORD, str(database.root)],
        env={**os.environ, "PYTHONPATH": f"{REPO}/_utils:{REPO}/test"}, start_new_session=True,
    )  # fmt: skip
    copies = "select count(*) from pg_stat_activity where datname ~ '_new_' and query ilike 'copy%'"
    try:
        eventually(lambda: database.sql(copies, "postgres") != "0" or process.poll() is not None, True, 60)
        assert process.poll() is None
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    eventually(lambda: database.sql("select count(pg_terminate_backend(pid)) from pg_stat_activity where datname ~ "
                                    "'_new_'", "postgres"), "0", 30)  # fmt: skip


def test_what_a_killed_restore_left_is_swept_and_nothing_else(database: Database):
    site, of_another_host = database.site(), f"ckan_default_new_{new_id()}"
    others = (of_another_host, "ckan_default_newer", "ckan_default_old_20200101000000Z", "ckan_default_new_2020",
              "ckan_other_new_20200101000000Z", "ckan_default_new_20200101000000Zx")  # fmt: skip
    for name in (*others, "ckan_default_rehearsal_20200101000000Z"):
        database.sql(f'create database "{name}" owner ckan_default template template0', "postgres")
    database.sql(f"comment on database \"{of_another_host}\" is 'made for a restore by web9'", "postgres")
    # Slow enough to be met.
    database.as_ckan(
        "create function slow(t text) returns bool language sql as $$ "
        "select case when current_database() ~ '_new_' then pg_sleep(1) is not null else true end $$; "
        "insert into package (title) select 'x' from generate_series(1, 20); "
        "alter table package add check (slow(title))"
    )
    next_second()
    backup.dump(site, "before")
    before = database.seen()
    killed(database)
    # It had swept what was older than a day itself.
    assert database.seen() == before and "rehearsal" not in database.names()
    # And as if it had been killed in the moment of the change of names.
    database.sql("alter database ckan_default allow_connections false", "postgres")
    said = restore.sweep(site)
    assert len(said) == 2 and "ckan_default takes connections again" in said, said
    assert database.names().split() == sorted(["ckan_default", *others]) and database.seen() == before
    assert restore.sweep(site) == []


def test_the_password_comes_by_a_file_without_a_name(database: Database):
    assert postgres.run(database.site(), ["psql", "-XAtq", "-c", "select current_user"]) == "ckan_default"
    # It is the password that let it in.
    with pytest.raises(FormulaError, match="password authentication failed"):
        postgres.run(database.site(password="another-one"), ["psql", "-XAtq", "-c", "select 1"])
    listed = postgres.run(database.site(), ["sh", "-c", "stat -L -c '%h %a' $PGPASSFILE"])
    assert listed == "0 600"


def test_a_table_that_ckan_s_user_may_not_read_is_said_before_a_dump(database: Database):
    database.sql("create table notes (id int)")
    with pytest.raises(FormulaError, match="ckan_default may not read public.notes .* grant select on public.notes to"):
        backup.ready(database.site())
