"""
Migrations of a real extension on the real CKAN and PostgreSQL: run once, interrupted, undone; and a rollback over them.

The database goes from revision to revision, as it does on a portal. A test says at which it begins (`Site.known`), and
that costs a deploy only where those before it have left another. Those of A19 come first, and follow one another.
"""

from __future__ import annotations

import json
import re
import stat
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from daemon.conftest import eventually
from parts.process import sandbox
from parts.real import PASSWORD, RealPortal
from parts.visitors import Visitors
from stub import repos

pytestmark = pytest.mark.integration

R1 = {
    "revision": "r1",
    "upgrade": "op.execute('create table trees (id int)')",
    "downgrade": "op.execute('drop table trees')",
}
R2 = {
    "revision": "r2",
    "upgrade": "op.execute('alter table trees add column name text')",
    "downgrade": "op.execute('alter table trees drop column name')",
}
R3 = {
    "revision": "r3",
    "upgrade": "op.execute('alter table trees add column height int')",
    "downgrade": "op.execute('alter table trees drop column height')",
}
R3_BROKEN = {**R3, "upgrade": "op.execute('alter table shrubs add column height int')"}
R3_ONE_WAY = {**R3, "downgrade": "raise NotImplementedError()"}
# As it is from the middle of this file on.
CHAIN = [R1, R2, R3_ONE_WAY, {"revision": "r4", "upgrade": "pass"}]
R7 = {"revision": "r7", "upgrade": "op.execute('alter table trees add column age int')"}
FULL = [*CHAIN, R7]
# Two more that can be undone.
MORE = [
    {"revision": name, "upgrade": "op.execute('select 1')", "downgrade": "op.execute('select 1')"}
    for name in ("s8", "s9")
]
# Until somebody takes that right away, for two minutes at most.
WAITS = """do $$ begin for turn in 1..1200 loop
    exit when not (select rolcreatedb from pg_roles where rolname = 'ckan_default');
    perform pg_sleep(0.1);
end loop; end $$"""


class Site(RealPortal):
    """A portal that can be asked where its database is: of UTF-8, in a cluster that was made without."""

    locale = "C"
    synced = True

    def write_pillar(self, settings) -> None:
        # Whether services stay up is the subject of others.
        super().write_pillar({"stable_seconds": 0, **settings})

    def at(self) -> dict[str, list[str]]:
        return self.fleet.ask("web1", "ckan_app.heads")

    def manifest(self, host: str = "web1") -> dict:
        return self.fleet.ask(host, "ckan_release.show")

    def good_deploy(self, **more) -> str:
        done = self.deploy(**more)
        assert done["code"] == 0, done["text"][-3000:]
        return self.current("web1")

    def known(self, *revisions: dict[str, str]) -> str:
        """See to an origin and a live release with these migrations, and a database at the last; returns the id."""
        names = [told["revision"] for told in revisions]
        at = self.postgres.sql("ckan_default", "select version_num from mycity_alembic_version")
        source = self.root("web1") / "usr/lib/ckan/current/src/ckanext-mycity"
        there = sorted(path.stem for path in (source / "ckanext/mycity/migration/mycity/versions").glob("*.py"))
        repos.commit_revisions(self.mycity, *revisions, text=f"Up to {names[-1]}")
        return self.current("web1") if (there, at) == (names, names[-1]) else self.good_deploy()

    def sample(self) -> None:
        """See to datasets, and to a token of the administrator."""
        if not self.token:
            self.add_sample_data()

    def set_at(self, revision: str) -> None:
        """Say that the database is at a revision; for those that change nothing."""
        self.postgres.sql("ckan_default", f"update mycity_alembic_version set version_num = '{revision}'")

    def may_make_databases(self, may: bool = True) -> None:
        self.postgres.sql("postgres", f"alter role ckan_default {'createdb' if may else 'nocreatedb'}")


@pytest.fixture(scope="module")
def site():
    with Site(sandbox("ckan-i-"), say=print) as portal:
        repos.commit_revisions(portal.mycity, R1, text="Trees")
        portal.set_up()
        yield portal


def test_the_first_release_migrates_core_and_plugin_and_dumps_no_empty_database(site: Site):
    assert site.at()["mycity"] == ["r1"]
    told = [site.manifest(host).get("migration") for host in site.hosts]
    assert site.at()["core"] and any(one and one["after"]["mycity"]["at"] == ["r1"] for one in told)
    assert not any("backup" in (one or {}) for one in told)
    code, pending = site.call("web1", "ckan_app.pending_migrations")
    assert (code, pending) == (0, {})


def test_a19_a_a_migration_that_fails_half_way_switches_nothing_and_a_rerun_goes_on_from_there(site: Site):
    before = site.current("web1")
    repos.commit_revisions(site.mycity, R1, R2, R3_BROKEN, text="Higher trees")
    done = site.deploy()
    assert done["code"] == 1
    told = done["summary"]
    assert "web1 failed at migrate: the migration of mycity failed" in told and "shrubs" in told
    assert "mycity: it came to r2, r3 is next" in told
    assert f"the live release {before} runs on it" in told and f"{site.hosts[0]}, {site.hosts[1]} on {before}" in told
    assert {site.current(host) for host in site.hosts} == {before}
    assert site.at()["mycity"] == ["r2"]
    # The dump of before it all is there, for root only, and can be read.
    dumps = site.call("web1", "ckan_backup.list")[1]
    assert len(dumps) == 1 and dumps[0]["file"] in told
    assert stat.S_IMODE((site.root("web1") / "var/backups/ckan/default").stat().st_mode) == 0o700
    listed = subprocess.run(["pg_restore", "--list", dumps[0]["file"]], capture_output=True, text=True, check=True)
    assert "TABLE DATA public trees" in listed.stdout and "TABLE DATA public mycity_alembic_version" in listed.stdout
    # A highstate, or a second look, changes nothing.
    assert site.get("/")[0] == 200
    # This time on a copy first, where it takes longer.
    sleeps = "; op.execute(\"select pg_sleep(6) where current_database() like '%rehearsal%'\")"
    repos.commit_revisions(site.mycity, R1, R2, {**R3, "upgrade": R3["upgrade"] + sleeps}, text="Higher trees")
    site.may_make_databases()
    site.write_pillar({**site.settings, "migration": {"rehearse": True}})
    release = site.good_deploy()
    site.may_make_databases(False)
    site.write_pillar(site.settings)
    told = site.manifest()["migration"]
    assert told["rehearsal"]["seconds"] > told["seconds"] + 1, told
    repos.commit_revisions(site.mycity, R1, R2, R3, text="Higher trees")
    assert site.postgres.sql("postgres", "select count(*) from pg_database where datname like '%rehearsal%'") == "0"
    assert site.at()["mycity"] == ["r3"]
    for host in site.hosts:
        told = site.manifest(host)["migration"]
        assert (told["host"], told["before"]["mycity"]["at"], told["after"]["mycity"]["at"]) == ("web1", ["r2"], ["r3"])
        assert told["backup"]["file"].endswith(f"{release}.dump")
    assert PASSWORD not in json.dumps(site.manifest("web1"))


def test_a19_b_a_rollback_over_a_migration_is_refused_with_what_is_possible(site: Site):
    before = site.current("web1")
    done = site.deploy("rollback")
    assert done["code"] == 1
    assert "the database does not fit release" in done["summary"]
    assert "mycity is at r3, and that release knows it up to r1; newer are r2, r3" in done["summary"]
    assert "downgrade, which undoes mycity r3, r2" in done["summary"] and "accept_schema" in done["summary"]
    assert {site.current(host) for host in site.hosts} == {before} and site.at()["mycity"] == ["r3"]
    code, told = site.call("web2", "ckan_release.rollback")
    assert code == 1 and "mycity is at r3" in told and site.current("web2") == before, told


def test_a19_b_accepted_it_goes_back_without_a_migration_and_the_next_deploy_works(site: Site):
    newer = site.current("web1")
    done = site.deploy("rollback", accept_schema=True, reason="the trees fall")
    assert done["code"] == 0, done["text"][-3000:]
    assert "accepted: the database has r3 of mycity" in done["text"]
    assert site.current("web1") < newer and site.at()["mycity"] == ["r3"]
    repos.commit_revisions(site.mycity, *CHAIN, text="Higher trees again")
    assert site.good_deploy() > newer
    assert site.at()["mycity"] == ["r4"]


def test_two_heads_are_refused_by_the_check(site: Site):
    before = site.current("web1")
    one = {"revision": "r5", "before": "r4", "upgrade": "pass"}
    other = {"revision": "r6", "before": "r4", "upgrade": "pass"}
    repos.commit_revisions(site.mycity, *CHAIN, one, other, text="Two heads")
    done = site.deploy()
    assert done["code"] == 1
    assert "failed at check: the migrations of mycity have several heads (r5, r6)" in done["summary"]
    repos.commit_revisions(site.mycity, *CHAIN, text="One head")
    assert site.current("web1") == before


def test_a_lock_that_is_not_to_be_had_stops_the_migration_and_not_the_portal(site: Site):
    site.known(*CHAIN)
    before = site.current("web1")
    repos.commit_revisions(site.mycity, *FULL, text="Older trees")
    site.write_pillar({**site.settings, "migration": {"lock_timeout": 1, "attempts": 2}})
    holder = site.postgres.hold("ckan_default", "lock table trees in access share mode")
    try:
        done = site.deploy()
    finally:
        holder.kill()
    assert done["code"] == 1
    assert "a lock of the database was not to be had within 1 s, 2 times" in done["summary"]
    assert "mycity: it is at r4 as before, r7 is next" in done["summary"] and site.current("web1") == before
    site.good_deploy()
    assert site.at()["mycity"] == ["r7"]


@pytest.mark.parametrize(
    ("sql", "back", "said"),
    [
        ("alter database ckan_default set default_transaction_read_only = on",
         "alter database ckan_default reset default_transaction_read_only", "the database takes no changes"),
        ("alter role ckan_default password 'another'", None, "refuses user ckan_default; correct database:password"),
        ("alter role ckan_default connection limit 0", "alter role ckan_default connection limit -1",
         "has no connection left"),
        ("alter database ckan_default allow_connections false", "alter database ckan_default allow_connections true",
         'type in psql: alter database "ckan_default" allow_connections true'),
    ],
)  # fmt: skip
def test_a_database_in_trouble_is_said_in_one_sentence(site: Site, sql: str, back: str | None, said: str):
    site.postgres.sql("postgres", sql)
    try:
        code, told = site.call("web1", "ckan_schema.upgrade", site.current("web1"))
    finally:
        site.postgres.sql("postgres", back or f"alter role ckan_default password '{PASSWORD}'")
    assert code == 1 and said in told and "Traceback" not in told and PASSWORD not in told


def test_a_table_made_by_hand_is_said(site: Site):
    site.known(*FULL)
    before = site.current("web1")
    site.postgres.sql("ckan_default", "set role ckan_default; create table shrubs (id int)")
    again = {"revision": "r8", "upgrade": "op.execute('create table shrubs ()')"}
    repos.commit_revisions(site.mycity, *FULL, again)
    done = site.deploy()
    assert done["code"] == 1 and "shrubs" in done["summary"] and "it was made by hand or by" in done["summary"]
    assert site.current("web1") == before and site.at()["mycity"] == ["r7"]
    site.postgres.sql("ckan_default", "drop table shrubs")


def test_two_hosts_told_to_migrate_at_once_do_it_once(site: Site):
    site.known(*FULL)
    site.postgres.sql("ckan_default", "alter table trees drop column age")
    site.postgres.sql("ckan_default", "update mycity_alembic_version set version_num = 'r4'")
    release = site.current("web1")
    with ThreadPoolExecutor(2) as pool:
        told = list(pool.map(lambda host: site.call(host, "ckan_schema.upgrade", release), site.hosts))
    assert [code for code, _ in told] == [0, 0], told
    assert site.at()["mycity"] == ["r7"]
    assert site.postgres.sql("ckan_default", "select count(*) from trees where age is null") != ""


@pytest.mark.long
def test_a19_b_what_was_accepted_is_remembered_and_the_older_code_can_be_corrected(site: Site):
    site.known(*FULL)
    repos.commit_revisions(site.mycity, *FULL, *MORE, text="Higher trees")
    newer = site.good_deploy()
    done = site.deploy("rollback", accept_schema=True, reason="the trees fall")
    assert done["code"] == 0, done["text"][-3000:]
    older = site.current("web1")
    assert older < newer and site.at()["mycity"] == ["s9"]
    # There and back again: not asked a second time.
    assert site.deploy("rollback", to=newer, force=True)["code"] == 0
    assert site.deploy("rollback", to=older, force=True)["code"] == 0
    # A correction of the older code, on the newer database.
    repos.commit_revisions(site.mycity, *FULL, text="Trees, corrected")
    corrected = site.good_deploy()
    assert corrected > newer and site.at()["mycity"] == ["s9"]
    repos.commit_revisions(site.mycity, *FULL, *MORE, text="Higher trees again")
    site.good_deploy()
    assert site.at()["mycity"] == ["s9"]
    site.set_at("r7")


@pytest.mark.long
def test_a_rollback_with_downgrade_undoes_what_the_release_does_not_know(site: Site):
    site.known(*FULL)
    repos.commit_revisions(site.mycity, *FULL, *MORE, text="To be undone")
    newer = site.good_deploy()
    (site.root("web1") / "usr/lib/ckan/shared/accepted_schema.json").unlink(missing_ok=True)
    done = site.deploy("rollback", downgrade=True)
    assert done["code"] == 0, done["text"][-3000:]
    assert "undone in the database: s9, s8 of mycity" in done["text"]
    assert site.at()["mycity"] == ["r7"] and site.current("web1") < newer
    # What is newer than the database is refused, too: a deploy migrates.
    code, told = site.call("web1", "ckan_release.rollback", f"to={newer}", "force=True")
    assert code == 1 and "mycity is at r7, before s8, s9 of that release" in told and "a deploy, which migrates" in told
    site.good_deploy(force=True)
    assert site.at()["mycity"] == ["s9"]
    site.set_at("r7")


@pytest.mark.long
def test_a_migration_that_cannot_be_undone_is_named(site: Site):
    site.known(*FULL)
    repos.commit_revisions(site.mycity, *FULL, {"revision": "r8", "upgrade": "pass"}, text="One way")
    site.good_deploy()
    done = site.deploy("rollback", downgrade=True)
    assert done["code"] == 1
    assert "no downgrade, since r8 of mycity cannot be undone" in done["summary"]
    assert site.at()["mycity"] == ["r8"]
    site.set_at("r7")


@pytest.mark.long
def test_a_revision_that_nobody_knows_is_refused_by_deploy_and_rollback(site: Site):
    site.known(*FULL)
    before = site.current("web1")
    site.postgres.sql("ckan_default", "update mycity_alembic_version set version_num = 'zz'")
    try:
        repos.commit_revisions(site.mycity, *FULL, text="Unknown")
        done = site.deploy()
        assert done["code"] == 1 and "failed at check: the database is newer: mycity is at zz" in done["summary"]
        assert "ckan_schema.accept mycity r7 zz" in done["summary"]
        done = site.deploy("rollback", downgrade=True)
        assert done["code"] == 1 and "mycity is at zz" in done["summary"] and "downgrade, which" not in done["summary"]
    finally:
        site.postgres.sql("ckan_default", "update mycity_alembic_version set version_num = 'r7'")
    assert site.current("web1") == before


@pytest.mark.long
def test_a_migration_that_is_killed_leaves_the_database_as_it_was_and_the_next_run_says_where_it_is(site: Site):
    site.known(*FULL)
    before = site.current("web1")
    sleeps = {"revision": "r8", "upgrade": "op.execute('drop table trees; select pg_sleep(8)')"}
    repos.commit_revisions(site.mycity, *FULL, sleeps, text="Killed")
    run = site.begin()
    eventually(lambda: "pg_sleep" in site.postgres.sql("ckan_default", "select string_agg(query, ' ') from "
               "pg_stat_activity where pid <> pg_backend_pid()"), True, 120)  # fmt: skip
    for process in psutil.process_iter(["cmdline", "name"]):
        words = process.info["cmdline"] or []
        if "migrate" in words and any(str(site.sandbox) in word for word in words) and "python" in process.info["name"]:
            for child in [*process.children(recursive=True), process]:
                child.kill()
    done = site.end(run)
    assert done["code"] == 1 and "failed at migrate" in done["summary"]
    assert {site.current(host) for host in site.hosts} == {before}
    # What the dead client had begun is undone by PostgreSQL, when its statement has ended.
    eventually(lambda: site.postgres.sql("ckan_default", "select to_regclass('trees') is not null"), "t", 30)
    assert site.at()["mycity"] == ["r7"]
    repos.commit_revisions(site.mycity, *FULL, text="Not killed")
    site.good_deploy()


PAUSES = {"revision": "r8", "upgrade": "op.execute('select pg_sleep(2)')", "downgrade": "op.execute('select 1')"}


def test_under_maintenance_visitors_get_the_page_for_as_long_as_the_migration_takes(site: Site):
    site.known(*FULL)
    site.write_pillar({**site.settings, "migration": {"when": "maintenance"}})
    repos.commit_revisions(site.mycity, *FULL, PAUSES, text="In maintenance")
    site.may_make_databases()
    with Visitors(site.front_port, threads=2) as visitors:
        done = site.deploy()
    assert done["code"] == 0 and "a restore would not give back" not in done["text"], done["text"][-3000:]
    assert site.postgres.sql("postgres", "select count(*) from pg_database where datname ~ '_trial'") == "0"
    site.may_make_databases(False)
    assert visitors.failed and {answer for answer in visitors.failed if "503" not in str(answer)} == set()
    assert site.get("/")[0] == 200 and site.at()["mycity"] == ["r8"]
    site.write_pillar(site.settings)
    assert site.deploy("rollback", downgrade=True)["code"] == 0
    assert site.at()["mycity"] == ["r7"]
    repos.commit_revisions(site.mycity, *FULL, text="After maintenance")


@pytest.mark.long
def test_visitors_stay_in_where_nothing_is_pending_or_the_database_could_not_be_given_back(site: Site):
    site.known(*FULL)
    site.write_pillar({**site.settings, "migration": {"when": "maintenance"}})
    repos.commit_revisions(site.mycity, *FULL, text="Nothing pending")
    with Visitors(site.front_port, threads=2) as visitors:
        site.good_deploy()
    assert visitors.failed == []
    repos.commit_revisions(site.mycity, *FULL, PAUSES, text="In maintenance")
    site.may_make_databases(False)
    with Visitors(site.front_port, threads=2) as visitors:
        done = site.deploy()
    site.write_pillar(site.settings)
    assert done["code"] == 1 and "failed at check: visitors would get the maintenance page" in done["summary"]
    assert "ckan_default may not make databases" in done["summary"] and visitors.failed == []


@pytest.mark.long
def test_a_database_that_cannot_be_given_back_keeps_the_portal_closed_and_it_is_said_what_to_type(site: Site):
    site.known(*FULL)
    before = site.current("web1")
    site.write_pillar({**site.settings, "migration": {"when": "maintenance"}})
    broken = {"revision": "r9", "upgrade": "op.execute('nonsense')"}
    waits = {"revision": "r8", "upgrade": f"op.execute({WAITS!r})"}
    repos.commit_revisions(site.mycity, *FULL, waits, broken, text="Stays closed")
    # Somebody takes a right away when the check has seen it.
    site.may_make_databases()
    run = site.begin()
    waiting = "select count(*) from pg_stat_activity where query like '%rolcreatedb%' and pid <> pg_backend_pid()"
    eventually(lambda: run.poll() is not None or site.postgres.sql("ckan_default", waiting) == "1", True, 240)
    site.may_make_databases(False)
    done = site.end(run)
    assert done["code"] == 1 and "mycity: it came to r8, r9 is next" in done["summary"], done["text"][-3000:]
    assert "ckan_default may not make databases" in done["summary"] and "the portal stays closed" in done["summary"]
    release, confirm = re.search(r"salt web1 ckan_backup.restore (\w+) (confirm=\w+)", done["summary"]).groups()
    assert site.get("/")[0] == 503 and {site.current(host) for host in site.hosts} == {before}
    # What is said is what helps.
    site.may_make_databases()
    code, told = site.call("web1", "ckan_schema.mismatch", before)
    assert code == 0 and told == f"mycity is at r8 in the database, and {before} knows it up to r7"
    code, told = site.call("web1", "ckan_backup.restore", release, confirm)
    assert code == 0, told
    for host in site.hosts:
        assert site.call(host, "ckan_maintenance.off")[0] == 0
    assert site.get("/")[0] == 200 and site.at()["mycity"] == ["r7"]
    # With the right to make databases nobody has to.
    repos.commit_revisions(site.mycity, *FULL, {**waits, "upgrade": "pass"}, broken, text="Given back")
    done = site.deploy()
    assert done["code"] == 1 and "the database is as it was before the migration" in done["summary"]
    assert site.get("/")[0] == 200 and site.at()["mycity"] == ["r7"]
    site.may_make_databases(False)
    site.write_pillar(site.settings)
    repos.commit_revisions(site.mycity, *FULL, text="Open again")


@pytest.mark.long
def test_a_deploy_that_fails_after_its_migration_says_in_what_the_database_differs(site: Site):
    site.known(*FULL)
    before = site.current("web1")
    repos.commit_revisions(site.mycity, *FULL, {"revision": "r8", "upgrade": "pass"}, text="Dies")
    repos.commit_broken(site.mycity, "not like this", "switch")
    done = site.deploy()
    assert done["code"] == 1 and " at verify: " in done["summary"], done["text"][-3000:]
    assert f"mycity is at r8 in the database, and {before} knows it up to r7" in done["summary"]
    assert {site.current(host) for host in site.hosts} == {before} and site.get("/")[0] == 200
    site.postgres.sql("ckan_default", "update mycity_alembic_version set version_num = 'r7'")
    repos.commit_revisions(site.mycity, *FULL, text="Lives")


def test_commands_that_set_an_extension_up_run_on_one_host_after_the_migrations(site: Site):
    site.known(*FULL)
    extension = {**site.settings["extensions"]["ckanext-mycity"], "init": ["search-index list-orphans"]}
    site.write_pillar({**site.settings, "extensions": {"ckanext-mycity": extension}})
    site.good_deploy(force=True)
    assert site.manifest("web2")["migration"]["commands"] == ["search-index list-orphans"]
    before = site.current("web1")
    for command, said in (
        ("search-index nonsense", "failed at check: ckan:extensions:ckanext-mycity:init:0: CKAN has no command"),
        ("dataset show nonsense", "failed at migrate: ckan dataset show nonsense failed"),
    ):
        wrong = {**extension, "init": [command]}
        site.write_pillar({**site.settings, "extensions": {"ckanext-mycity": wrong}})
        done = site.deploy(force=True)
        assert done["code"] == 1 and said in done["text"], done["text"][-3000:]
        assert site.current("web1") == before
    site.write_pillar(site.settings)


@pytest.mark.long
def test_a_disk_that_fills_up_while_dumping_stops_the_deploy_and_leaves_nothing_of_the_dump(site: Site):
    site.known(*FULL)
    before, folder = site.current("web1"), site.root("web1") / "var/backups/ckan/default"
    much = "select gen_random_uuid()::text || gen_random_uuid() as t from generate_series(1, 400000)"
    site.postgres.sql("ckan_default", f"set role ckan_default; create table ballast as {much}")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120m,mode=0700", "tmpfs", folder], check=True)
    try:
        site.write_pillar({**site.settings, "disk_free_mb": 0})
        repos.commit_revisions(site.mycity, *FULL, {"revision": "r8", "upgrade": "pass"}, text="A full disk")
        run = site.begin()
        while run.poll() is None and not list(folder.glob("*.part")):
            time.sleep(0.002)
        subprocess.run(["dd", "if=/dev/zero", f"of={folder}/filler", "bs=1M"], capture_output=True, check=False)
        done = site.end(run)
        assert done["code"] == 1 and "No space left on device" in done["summary"], done["text"][-3000:]
        assert [file.name for file in folder.iterdir()] == ["filler"]
    finally:
        subprocess.run(["umount", folder], check=True)
        site.postgres.sql("ckan_default", "drop table ballast")
        site.write_pillar(site.settings)
    assert site.current("web1") == before and site.at()["mycity"] == ["r7"]
    repos.commit_revisions(site.mycity, *FULL, text="Room again")
    site.good_deploy()


def test_without_room_for_a_dump_the_check_says_so(site: Site):
    repos.commit_revisions(site.mycity, *FULL, {"revision": "r8", "upgrade": "pass"}, text="No room")
    site.write_pillar({**site.settings, "disk_free_mb": 10_000_000})
    try:
        code, told = site.call("web1", "ckan_backup.dump")
    finally:
        site.write_pillar(site.settings)
    assert code == 1 and "a dump of the database may take" in told and "make room" in told
    repos.commit_revisions(site.mycity, *FULL, text="Room again")


def test_a_rollback_with_restore_puts_the_dump_in_the_place_of_the_database_and_loses_nothing(site: Site):
    site.known(*FULL)
    older, at = site.current("web1"), site.at()["mycity"]
    site.postgres.sql("ckan_default", "insert into trees (id) values (1)")
    extra = {"revision": "r8", "upgrade": "op.execute('delete from trees')"}
    repos.commit_revisions(site.mycity, *FULL, extra, text="No trees")
    newer = site.good_deploy()
    assert site.postgres.sql("ckan_default", "select count(*) from trees") == "0" and site.at()["mycity"] == ["r8"]
    # Who runs CKAN may not make databases.
    site.may_make_databases(False)
    done = site.deploy("rollback", restore=newer)
    assert done["code"] == 1 and "ckan_default may not make databases" in done["summary"]
    assert {site.current(host) for host in site.hosts} == {newer} and site.at()["mycity"] == ["r8"]
    site.may_make_databases()
    done = site.deploy("rollback", restore="20200101000000Z")
    assert done["code"] == 1 and "no host has a dump 20200101000000Z" in done["summary"]
    # A host on which the older release does not start: the database of before takes its name again.
    server = site.root("web2") / f"usr/lib/ckan/releases/{older}/bin/uwsgi"
    server.rename(f"{server}.away")
    done = site.deploy("rollback", restore=newer)
    server.with_name("uwsgi.away").rename(server)
    assert done["code"] == 1 and "web2 failed at activate" in done["summary"], done["text"][-3000:]
    assert {site.current(host) for host in site.hosts} == {newer} and site.at()["mycity"] == ["r8"]
    assert site.postgres.sql("ckan_default", "select count(*) from trees") == "0"
    assert site.postgres.sql("postgres", "select count(*) from pg_database where datname like '%_dump_%'") == "0"
    done = site.deploy("rollback", restore=newer)
    assert done["code"] == 0, done["text"][-3000:]
    assert site.current("web1") == older and site.at()["mycity"] == at
    assert site.postgres.sql("ckan_default", "select count(*) from trees") == "1"
    assert site.get("/")[0] == 200 and "rebuilt, since it was asked for" in done["text"]
    # The database of before is kept.
    sql = "select datname from pg_database where datname like 'ckan_default_old_%' order by datname desc limit 1"
    kept = site.postgres.sql("postgres", sql)
    assert site.postgres.sql(kept, "select version_num from mycity_alembic_version") == "r8"
    code, told = site.call("web1", "ckan_backup.restore", newer)
    assert code == 1 and f"type the name again: confirm={newer}" in told
    repos.commit_revisions(site.mycity, *FULL, text="Trees again")


def found(site: Site, word: str) -> int:
    return site.ask(f"package_search?q={word}&rows=0")["count"]


def test_the_index_is_rebuilt_where_a_release_indexes_in_another_way_and_never_empty(site: Site):
    site.known(*FULL)
    site.sample()
    assert found(site, "larch") == 0 and found(site, "trees") == 1
    repos.commit_indexing(site.mycity, "With larches", "larch", "import time; time.sleep(0.3)")
    run, least = site.begin(), 3
    while run.poll() is None:
        least = min(least, found(site, "*:*"))
    done = site.end(run)
    assert done["code"] == 0, done["text"][-3000:]
    assert "mycity changed how datasets are indexed" in done["text"] and least == 3
    assert found(site, "larch") == 3
    for host in site.hosts:
        assert site.manifest(host)["index"] == site.manifest(host)["check"]["index"]
    status = site.call("web1", "ckan_app.index_status")[1]
    assert (status["datasets"], status["indexed"]) == (3, 3) and "Indexing dataset 3/3" in status["rebuild"], status


@pytest.mark.long
def test_the_index_stays_where_a_release_changes_other_things_and_a_rollback_rebuilds_it(site: Site):
    site.known(*FULL)
    site.sample()
    repos.commit_revisions(site.mycity, *FULL, text="Without beeches")
    plain = site.good_deploy()
    repos.commit_indexing(site.mycity, "With beeches", "beech")
    site.good_deploy()
    assert found(site, "beech") == 3
    # Another text is no reason.
    file = site.mycity / "ckanext/mycity/other.py"
    file.write_text("OTHER = 1\n")
    repos.git(site.mycity, "add", "--all")
    repos.git(site.mycity, "commit", "--quiet", "--message", "Another file")
    done = site.deploy()
    assert done["code"] == 0 and "changed how datasets are indexed" not in done["text"]
    # And back.
    done = site.deploy("rollback", to=plain)
    assert done["code"] == 0, done["text"][-3000:]
    assert found(site, "beech") == 0 and found(site, "trees") == 1


@pytest.mark.long
def test_with_a_second_core_the_index_is_made_there_and_knows_what_was_changed_meanwhile(site: Site):
    site.known(*FULL)
    site.sample()
    # Only the rebuild in the second core waits.
    slow = "import os, time; time.sleep(4 if 'CKAN_SOLR_URL' in os.environ else 0)"
    repos.commit_indexing(site.mycity, "With oaks", "oak", slow)
    site.write_pillar({**site.settings, "search": {"second_core": "ckan_second"}})
    run, least = site.begin(), 3
    eventually(lambda: "Indexing dataset 2/3" in site.call("web1", "ckan_app.index_status")[1]["rebuild"], True, 180)
    # One of these has had its turn, whichever that was.
    site.api("package_patch", {"id": "bus-stops", "title": "Stops of buses"})
    site.api("package_patch", {"id": "street-trees", "title": "Trees of streets"})
    assert found(site, "buses") == found(site, "streets") == 1 and found(site, "oak") == 2
    site.api("package_delete", {"id": "air-quality"})
    while run.poll() is None:
        least = min(least, found(site, "*:*"))
    done = site.end(run)
    assert done["code"] == 0 and "at index" not in done["summary"], done["text"][-3000:]
    assert found(site, "oak") == found(site, "*:*") == least == 2
    assert re.search(r"^index +web1 +[0-9.]+ s +Indexing dataset \d/3$", done["progress"], re.M), done["progress"]
    assert found(site, "buses") == found(site, "streets") == 1
    # They have changed names, and Solr keeps that.
    names = [(site.solr.directory / f"home/{core}/core.properties").read_text() for core in ("ckan", "ckan_second")]
    assert "name=ckan_second" in names[0] and "name=ckan_second" not in names[1]
    # Another site's documents are not swapped away.
    other = {"add": {"doc": {"index_id": "x", "id": "x", "site_id": "other", "entity_type": "package"}}}
    site.solr.update(other)
    done = site.deploy("rollback")
    assert done["code"] == 0 and "holds more than the site default" in done["text"], done["text"][-3000:]
    assert site.get("/")[0] == 200
    site.solr.update({"delete": {"id": "x"}})
    site.write_pillar(site.settings)
    site.api("package_patch", {"id": "air-quality", "state": "active"})


@pytest.mark.long
def test_a_rebuild_that_fails_is_a_warning_and_is_still_to_be_done_by_the_next_release(site: Site):
    site.known(*FULL)
    site.sample()
    repos.commit_indexing(site.mycity, "With firs", "fir", "raise RuntimeError('no firs today')")
    done = site.deploy()
    assert done["code"] == 0 and "no firs today" in done["summary"], done["text"][-3000:]
    repos.commit_indexing(site.mycity, "With firs", "fir")
    site.write_pillar({**site.settings, "search": {"rebuild": "skip"}})
    done = site.deploy()
    assert done["code"] == 0 and f"ckan_index.rebuild {site.current('web1')} force=True" in done["text"]
    assert found(site, "fir") == 0
    site.write_pillar(site.settings)
    site.good_deploy(force=True)
    assert found(site, "fir") == 3


def test_a_solr_schema_that_ckan_refuses_stops_at_check_and_says_what_to_do(site: Site):
    # Of both cores: they may have changed names.
    schemas = list((site.sandbox / "solr").rglob("schema.xml"))
    before, text = site.current("web1"), schemas[0].read_text()
    for schema in schemas:
        schema.write_text(text.replace('name="ckan-2.12"', 'name="ckan-2.7"'))
    core = site.solr.url.rpartition("/")
    reload = f"{core[0]}/admin/cores?action=RELOAD&core={core[2]}"
    try:
        urllib.request.urlopen(reload, timeout=30).close()
        done = site.deploy(force=True)
    finally:
        for schema in schemas:
            schema.write_text(text)
        urllib.request.urlopen(reload, timeout=30).close()
    assert done["code"] == 1
    assert "failed at check: SearchError: SOLR schema version not supported: 2.7" in done["summary"]
    assert "schema.xml into the core of Solr, reload it" in done["summary"] and site.current("web1") == before


def fail_at_verify(site: Site, **database: str) -> None:
    """Let the next deploy be an upgrade in maintenance that fails when its release has become the current one."""
    site.may_make_databases()
    settings = {**site.settings, "database": {**site.settings["database"], **database}}
    site.write_pillar({**settings, "migration": {"when": "maintenance", "rehearse": True}})
    passing = [{"revision": revision, "upgrade": "pass"} for revision in ("r8", "r9")]
    repos.commit_revisions(site.mycity, *FULL, *passing, text="Dies")
    repos.commit_broken(site.mycity, "not like this", "switch")


def test_f03_after_a_failed_upgrade_the_database_is_what_it_was_and_the_portal_answers(site: Site):
    site.known(*FULL)
    site.sample()
    sql, before = site.postgres.sql, site.current("web1")
    site.api("package_create", {"name": "baeume", "title": "Straßenbäume – données", "owner_org": "city-hall"})
    sql("postgres", "create role metabase login")
    for statement in ("revoke connect on database ckan_default from public", "comment on database ckan_default is 'it'",
                      "grant connect on database ckan_default to metabase", "grant select on package to metabase",
                      "alter database ckan_default connection limit 80",
                      "alter database ckan_default set statement_timeout = '45s'"):  # fmt: skip
        sql("ckan_default", statement)
    seen = site.postgres.seen("ckan_default")
    assert any("UTF8 C C" in line for line in seen)
    fail_at_verify(site)
    done = site.deploy()
    site.write_pillar(site.settings)
    assert done["code"] == 1 and " at verify: " in done["summary"], done["text"][-3000:]
    assert "the database is as it was before the migration" in done["summary"]
    assert "did not come back" not in done["summary"] and "would not give back" not in done["text"]
    assert site.postgres.seen("ckan_default") == seen and {site.current(host) for host in site.hosts} == {before}
    status, page, _ = site.get("/dataset/baeume")
    assert status == 200 and "Straßenbäume – données" in page
    assert site.ask("package_show?id=baeume")["title"] == "Straßenbäume – données"


def test_h10_a_portal_with_an_extension_of_a_superuser_s_is_not_closed_for_an_upgrade(site: Site):
    site.known(*FULL)
    fail_at_verify(site)
    site.postgres.sql("ckan_default", "create extension dblink")
    with Visitors(site.front_port, threads=2) as visitors:
        done = site.deploy()
    site.postgres.sql("ckan_default", "drop extension dblink")
    site.write_pillar(site.settings)
    assert done["code"] == 1 and "failed at check: visitors would get the maintenance page" in done["summary"]
    assert "dblink, which only a superuser" in done["summary"] and visitors.failed == []


@pytest.mark.long
def test_h10_an_extension_of_a_superuser_s_is_given_back_by_the_administrator(site: Site):
    before, sql = site.known(*FULL), site.postgres.sql
    sql("ckan_default", "create extension dblink")
    sql("postgres", "create role chief superuser login password 'of-the-chief'")
    seen = site.postgres.seen("ckan_default")
    fail_at_verify(site, admin_user="chief", admin_password="of-the-chief")
    done = site.deploy()
    site.write_pillar(site.settings)
    assert done["code"] == 1 and " at verify: " in done["summary"], done["text"][-3000:]
    assert "the database is as it was before the migration" in done["summary"] and "of-the-chief" not in done["text"]
    assert site.postgres.seen("ckan_default") == seen and {site.current(host) for host in site.hosts} == {before}
    assert site.get("/")[0] == 200
    sql("ckan_default", "drop extension dblink")


@pytest.fixture
def datastore(site: Site) -> Iterator[dict[str, Any]]:
    """A new database for the datastore, and the settings for it, without and with the administrator of PostgreSQL."""
    sql = site.postgres.sql
    site.known(*FULL)
    sql("postgres", "drop database if exists datastore_default with (force)")
    for role in ("datastore_default login password 'read-only-word'", "boss superuser login password 'of-the-boss'"):
        known = "exception when duplicate_object then null"
        sql("postgres", f"do $$ begin create role {role}; {known}; end $$")
    site.postgres.create_database("datastore_default", "ckan_default", PASSWORD)
    repos.commit_revisions(site.mycity, *FULL, text="With a datastore")
    told = {"name": "datastore_default", "read_password": "read-only-word"}
    admin = {**site.settings["database"], "admin_user": "boss", "admin_password": "of-the-boss"}
    settings = {**site.settings, "datastore": told, "plugins": ["datastore", "mycity"]}
    yield {"plain": settings, "with_admin": {**settings, "database": admin}}
    site.write_pillar(site.settings)


def readable(site: Site) -> bool:
    return site.postgres.sql("datastore_default", "select to_regclass('_table_metadata') is not null") == "t"


def test_the_datastore_gets_its_permissions_by_the_administrator(site: Site, datastore: dict):
    site.write_pillar(datastore["with_admin"])
    done = site.deploy(force=True)
    assert done["code"] == 0 and "of-the-boss" not in done["text"], done["text"][-3000:]
    assert readable(site) and site.manifest()["check"]["datastore"]


@pytest.mark.long
def test_without_an_administrator_it_is_said_what_the_datastore_lacks_and_with_one_nothing_is_done_twice(
    site: Site, datastore: dict
):
    site.write_pillar(datastore["plain"])
    done = site.deploy()
    assert done["code"] == 1 or "the datastore lacks the view _table_metadata" in done["text"], done["text"][-2000:]
    site.write_pillar(datastore["with_admin"])
    for lacking in (True, False):
        done = site.deploy(force=True)
        assert done["code"] == 0 and readable(site), done["text"][-3000:]
        assert bool(site.manifest()["check"]["datastore"]) == lacking
    site.write_pillar(site.settings)
    site.good_deploy()
