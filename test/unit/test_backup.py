"""Dumps, and the names that an operator types: what is no plain name is refused before anything happens."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import SaltInvocationError

from _modules import ckan_app, ckan_backup, ckan_index, ckan_schema
from ckan_deploy.database import (
    backup,
    changes,
    compatibility,
    migration,
    names,
    postgres,
    probe,
    restore,
    script,
    search_index,
)
from ckan_deploy.errors import FormulaError, InvalidArgument
from ckan_deploy.releases.manifest import Manifest
from ckan_deploy.releases.site import Site
from fakes import fake_site, least_pillar

RELEASE = "20260101000000Z"
KEPT = f"ckan_default_old_{RELEASE}"
# In place of PostgreSQL's programs: notes what it is told, answers by words in that, and makes the file of a dump.
PROGRAM = """#!{python}
import json, os, sys
told = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
names = ("PGUSER", "PGDATABASE", "PGHOST")
note = dict(told=told, stdin=sys.stdin.read(), **{{name: os.environ[name] for name in names}})
note["password"] = open(os.environ["PGPASSFILE"]).read()
note["mode"] = oct(os.stat(os.environ["PGPASSFILE"]).st_mode)[-3:]
with open("{folder}/notes", "a") as notes:
    notes.write(json.dumps(note) + "\\n")
for word, answer in json.load(open("{folder}/answers")).items():
    if word in " ".join(told):
        if answer.startswith("!"):
            sys.exit(answer[1:])
        print(answer)
        break
if told[0] == "pg_dump" and "-f" in told:
    open(told[told.index("-f") + 1], "w").write("a dump")
"""
ANSWERS = {
    "--version": "pg_dump (PostgreSQL) 15.3",
    "/ 1048576": "999999999",
    "pg_database_size": "1000|15|",
    "rolcreatedb": "t|",
    "jsonb_build_object": json.dumps(
        {
            "create": "encoding 'UTF8'",
            "statements": [["alter database ", " connection limit 80"]],
            "owners": [],
            "extensions": {"dblink": "postgres"},
            "comment": "the portal's",
        }
    ),
    "where datname = 'ckan_default'": "1",
    "--list": "1; 0 1 TABLE DATA public alembic_version ckan\n2; 0 2 TABLE DATA public mycity_alembic_version ckan",
    "--table=alembic_version": "COPY public.alembic_version (version_num) FROM stdin;\nc1\n\\.\n",
    "--table=mycity_alembic_version": "COPY public.x (version_num) FROM stdin;\nr2\nr1\n\\.\n",
}


class Programs:
    """The programs of PostgreSQL, as far as they are asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("psql", "pg_dump", "pg_restore"):
            (folder / name).write_text(PROGRAM.format(python=sys.executable, folder=folder))
            (folder / name).chmod(0o755)
        self.answer()

    def answer(self, **answers: str) -> None:
        (self.folder / "answers").write_text(json.dumps({**answers, **ANSWERS, **answers}))

    def notes(self) -> list[dict[str, Any]]:
        file = self.folder / "notes"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def told(self) -> str:
        return "\n".join(" ".join(note["told"]) for note in self.notes())

    def sql(self) -> list[str]:
        return [note["told"][-1] for note in self.notes() if note["told"][0] == "psql"]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Programs(tmp_path)


@pytest.fixture
def root() -> Iterator[Path]:
    # pytest's own directories are too long for a socket.
    path = Path(tempfile.mkdtemp(prefix="ckan-u-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def site(root: Path) -> Site:
    return fake_site(root, disk_free_mb=0)


def test_the_programs_get_the_password_by_a_file_as_libpq_reads_it(root: Path, programs: Programs):
    site = fake_site(root, database={"password": r"a:b\c", "admin_user": "boss", "admin_password": "boss:secret"})
    postgres.run(site, ["psql", "-c", "select 1"])
    postgres.admin(site, "select 2")
    postgres.admin(site, "\\connect datastore\nselect 3;", site.settings.datastore)
    run, admin, lines = programs.notes()
    assert (run["password"], run["mode"], run["PGUSER"], run["PGDATABASE"]) == (
        "*:*:*:*:a\\:b\\\\c\n", "600", "ckan_default", "ckan_default",
    )  # fmt: skip
    assert (admin["password"], admin["PGUSER"], admin["PGDATABASE"]) == ("*:*:*:*:boss\\:secret\n", "boss", "postgres")
    assert lines["stdin"] == "\\connect datastore\nselect 3;" and lines["told"][-2:] == ["-f", "-"]
    assert "secret" not in json.dumps([note["told"] for note in programs.notes()])


def test_what_postgresql_says_is_told_without_secrets(root: Path, programs: Programs):
    site = fake_site(root, database={"password": "database-secret", "admin_user": "boss", "admin_password": "b-secret"})
    programs.answer(select="!psql: error: no database-secret here, nor b-secret\nDETAIL: more")
    with pytest.raises(FormulaError) as caught:
        postgres.admin(site, "select 1")
    assert str(caught.value) == "psql: error: no ********** here, nor **********"


def test_names_stand_in_statements_as_they_are():
    assert postgres.identifier('a"b') == '"a""b"' and postgres.literal("a'b") == "'a''b'"


def test_a_dump_is_made_for_root_alone_named_listed_and_read(root: Path, site: Site, programs: Programs):
    made = backup.dump(site, "before.the-move_1")
    file = root / "var/backups/ckan/default/before.the-move_1.dump"
    assert made["file"] == str(file) and file.read_text() == "a dump"
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    # Salt reads a word of digits as a number.
    backup.dump(site, 2026)  # type: ignore[arg-type]
    assert [one["name"] for one in backup.list_dumps(site)] == ["before.the-move_1", "2026"]
    assert backup.heads(site, "2026") == {"core": ["c1"], "mycity": ["r1", "r2"]}
    with pytest.raises(FormulaError, match="no dump other on this host; the dumps here: before.the-move_1, 2026"):
        backup.heads(site, "other")


@pytest.mark.slow
def test_old_dumps_go_and_an_empty_database_is_not_dumped(site: Site, programs: Programs):
    at: dict[str, dict[str, Any]] = {"core": {"at": ["c1"]}}
    assert backup.before(site, RELEASE, {"core": {"at": []}}, True) == backup.before(site, RELEASE, at, False) == {}
    for day in range(1, 6):
        backup.before(site, f"2026010{day}000000Z", at, True)
    assert [one["name"][7:8] for one in backup.list_dumps(site)] == ["5", "4", "3"]


@pytest.mark.slow
def test_dumps_made_by_hand_stay_and_one_that_cannot_be_removed_is_a_warning(
    root: Path, site: Site, programs: Programs
):
    at: dict[str, dict[str, Any]] = {"core": {"at": ["c1"]}}
    for name in ("w", "x", "y", "z"):
        backup.dump(site, name)
    stuck = root / "var/backups/ckan/default/20251231000000Z.dump"
    stuck.mkdir()
    made = [backup.before(site, f"2026010{day}000000Z", at, True) for day in range(1, 5)]
    there = [one["name"] for one in backup.list_dumps(site)]
    assert there[:4] == ["z", "y", "x", "w"] and there[4:7] == [f"2026010{day}000000Z" for day in (4, 3, 2)]
    assert f"the old dump {stuck} could not be removed" in made[3]["warnings"][0] and "warnings" not in made[1]
    beside = sorted(file.name for file in stuck.parent.glob("*.json"))
    assert beside == sorted(f"{name}.properties.json" for name in there if name != stuck.stem)


def test_a_dump_takes_the_place_of_no_other_and_that_of_a_release_is_the_first(site: Site, programs: Programs):
    at: dict[str, dict[str, Any]] = {"core": {"at": ["c1"]}}
    made = backup.dump(site, "before")
    Path(made["file"]).write_text("of last year")
    with pytest.raises(FormulaError, match="there is a dump before already .*; give another name"):
        backup.dump(site, "before")
    assert Path(made["file"]).read_text() == "of last year"
    first = backup.before(site, RELEASE, at, True)
    Path(first["file"]).write_text("before the first try")
    assert backup.before(site, RELEASE, at, True) == {**first, "seconds": 0.0}
    assert Path(first["file"]).read_text() == "before the first try"


def test_of_two_dumps_of_one_name_at_once_the_second_is_refused(site: Site, programs: Programs, monkeypatch):
    ready = backup.ready

    def late(site: Site) -> None:
        """Another process makes a dump of the name between the first look and the work."""
        monkeypatch.setattr(backup, "ready", ready)
        backup.dump(site, "mine")
        Path(site.paths.backups, "mine.dump").write_text("the other's")
        ready(site)

    monkeypatch.setattr(backup, "ready", late)
    with pytest.raises(FormulaError, match="there is a dump mine already"):
        backup.dump(site, "mine")
    assert Path(site.paths.backups, "mine.dump").read_text() == "the other's"
    assert sorted(os.listdir(site.paths.backups)) == ["mine.dump", "mine.properties.json"]


def test_what_a_killed_dump_has_left_is_swept(root: Path, site: Site, programs: Programs):
    folder = root / "var/backups/ckan/default"
    folder.mkdir(parents=True)
    for name in ("a.dump.part", "trial.part", "gone.properties.json", "b.properties.json.tmp", "notes.txt", "c.dump"):
        (folder / name).touch()
    backup.dump(site, "d")
    assert sorted(file.name for file in folder.iterdir()) == ["c.dump", "d.dump", "d.properties.json", "notes.txt"]


def test_a_file_beside_a_dump_that_cannot_be_read_is_said(root: Path, site: Site, programs: Programs):
    backup.dump(site, "d")
    beside = root / "var/backups/ckan/default/d.properties.json"
    assert (beside.stat().st_mode & 0o777) == 0o600 and backup.properties_of(site, "d").comment == "the portal's"
    for text in ("{", "[]", '{"create": ""}'):
        beside.write_text(text)
        with pytest.raises(FormulaError, match="d.properties.json is not what a dump has beside it .*; bring"):
            backup.properties_of(site, "d")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"rolcreatedb": "f|"}, "ckan_default may not make databases on localhost; name somebody who may in"),
        ({"rolcreatedb": "t|false|metabase"}, "type in psql: grant pg_signal_backend to \"ckan_default\"; or set"),
        ({"rolcreatedb": "t|true|postgres"}, "postgres is connected to ckan_default, and ckan_default may not end that "
                                             "for a restore; wait for it, or name a superuser in ckan:database:admin_"
                                             "user and admin_password; or set"),
        ({"data_directory": "/"}, "a second database beside ckan_default takes 999999999 MB, and "),
        ({"-L": '!pg_restore: error: query failed: ERROR:  permission denied to create extension "postgis"'},
         "the database has the extension postgis, which only a superuser of PostgreSQL may make"),
    ],
)  # fmt: skip
def test_a_portal_is_not_closed_where_the_database_could_not_be_given_back(
    root: Path, programs: Programs, answers: dict[str, str], said: str
):
    programs.answer(**answers)
    checked = {"pending": {"mycity": "r2"}, "schema": {"core": {"at": ["c1"]}}}
    closed = fake_site(root, disk_free_mb=0, migration={"when": "maintenance"})
    with pytest.raises(FormulaError) as caught:
        migration.foresee(closed, Manifest(RELEASE, "built"), checked)
    assert "visitors would get the maintenance page" in str(caught.value) and said in str(caught.value)
    assert "set ckan:backup:when to never" in str(caught.value)
    with pytest.raises(FormulaError, match="visitors would get the maintenance page"):
        before = fake_site(root, disk_free_mb=0, migration={"when": "before"})
        migration.foresee(before, Manifest(RELEASE, "built"), checked, forced=True)
    # Where nobody is closed out nothing has to be given back, and it may be the operator's own business.
    before = fake_site(root, disk_free_mb=0, migration={"when": "before"})
    assert migration.foresee(before, Manifest(RELEASE, "built"), checked) == {"maintenance": False, "warnings": []}
    never = fake_site(root, disk_free_mb=0, migration={"when": "maintenance"}, backup={"when": "never"})
    told = migration.foresee(never, Manifest(RELEASE, "built"), checked)
    assert told["maintenance"] and "ckan:backup:when is never" in told["warnings"][0]


def test_nothing_is_left_of_a_dump_that_failed(root: Path, site: Site, programs: Programs):
    programs.answer(**{"-Fc": "!pg_dump: error: no room"})
    with pytest.raises(FormulaError, match="no room"):
        backup.dump(site)
    assert not list((root / "var/backups/ckan/default").iterdir())


@pytest.mark.slow
def test_a_restore_asks_for_the_name_again_and_changes_names(site: Site, programs: Programs):
    backup.dump(site, "before")
    with pytest.raises(FormulaError, match="type the name again: confirm=before"):
        restore.restore(site, "before")
    assert "create database" not in str(programs.sql())
    done = restore.restore(site, "before", "before")
    kept, told = done["kept_as"], programs.told()
    assert f'alter database "ckan_default" rename to "{kept}"; alter database "ckan_default_new_' in told
    assert "template template0 encoding 'UTF8'" in told and "comment on database" in told and "differs" not in done
    restore.take_again(site, kept)
    told = programs.told()
    assert f'alter database "{kept}" rename to "ckan_default"' in told
    assert programs.sql()[-1].startswith('drop database if exists "ckan_default_dump_')


@pytest.mark.slow
def test_a_newer_pg_restore_restores_into_an_older_server(site: Site, programs: Programs):
    backup.dump(site, "before")
    unknown = 'ERROR:  unrecognized configuration parameter "transaction_timeout"'
    programs.answer(**{"-L": f"!pg_restore: error: could not execute query: {unknown}"})
    assert restore.restore(site, "before", "before")["kept_as"]
    programs.answer(**{"-L": "!pg_restore: error: could not execute query: ERROR:  out of luck"})
    with pytest.raises(FormulaError, match="out of luck"):
        restore.restore(site, "before", "before")


HOSTILE = ["../../etc/passwd", "/etc/passwd", "x/y", ".hidden", "-Fc", "a b", "a\n", 'x"; drop database y', "a" * 101,
           ["a"], {"a": 1}]  # fmt: skip
CALLS: dict[str, Callable[[Site, Any], Any]] = {
    "dump": backup.dump,
    "heads": backup.heads,
    "restore": lambda site, name: restore.restore(site, name, name),
    "put_back": restore.put_back,
    "way_back": lambda site, name: compatibility.way_back(site, RELEASE, restore=name),
    "downgrade": lambda site, name: changes.downgrade(site, RELEASE, restore=name),
    "upgrade": lambda site, name: changes.upgrade(site, RELEASE, kept_as=name),
    "release to take the database back to": changes.downgrade,
    "release to bring it forward to": changes.upgrade,
    "release that gives back": lambda site, name: changes.give_back(site, name, closed=True),
    "release to index": search_index.rebuild,
}


@pytest.mark.parametrize("call", CALLS)
def test_what_is_no_plain_name_is_refused_before_anything_happens(
    root: Path, site: Site, programs: Programs, call: str
):
    for name in HOSTILE:
        with pytest.raises(InvalidArgument):
            CALLS[call](site, name)
    assert not programs.notes() and not list(root.rglob("*"))


def test_who_may_type_gets_no_program_of_theirs_run(root: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch):
    about = {"salt": {}, "opts": {"id": "web1"}, "pillar": {"ckan": least_pillar(root)}, "context": {}}
    for module in (ckan_app, ckan_backup, ckan_index, ckan_schema):
        assert module.__virtual__() is True, module.PROBLEM
        for name, value in about.items():
            monkeypatch.setattr(module, f"__{name}__", value, raising=False)
    calls: list[Callable[[Any], Any]] = [
        ckan_app.heads, ckan_app.pending_migrations, ckan_app.index_status, ckan_backup.dump, ckan_backup.heads,
        ckan_backup.restore, ckan_index.rebuild, ckan_schema.way_back, ckan_schema.downgrade, ckan_schema.upgrade,
        ckan_schema.mismatch, ckan_schema.give_back, lambda odd: ckan_schema.accept("mycity", "r1", odd),
    ]  # fmt: skip
    mine = root.with_name(f"{root.name}-mine")
    for odd in (str(mine), f"../../../../{mine}", ["x"], {"x": 1}):
        for call in calls:
            with pytest.raises(SaltInvocationError, match="is not |must be a line of text, not "):
                call(odd)
    assert not programs.notes() and not list(root.rglob("*"))


@pytest.mark.parametrize(
    "name", ["template1", "ckan_staging", f"ckan_staging_old_{RELEASE}", f"{KEPT}x", KEPT.replace("_old_", "_new_")]
)
def test_no_other_database_takes_the_place_of_the_site_s_own(root: Path, site: Site, programs: Programs, name: str):
    with pytest.raises(InvalidArgument, match="ckan_default_old_ and a UTC stamp"):
        changes.upgrade(site, RELEASE, kept_as=name)
    assert not programs.notes() and not list(root.rglob("*"))


@pytest.mark.parametrize("name", ["ckan_default", "a-portal.of [the] city", "x" * 63])
def test_what_a_restore_makes_has_names_that_postgresql_can_hold_and_a_sweep_finds(root: Path, name: str):
    site = fake_site(root, database={"name": name, "password": "database-secret"})
    ours = [names.beside(site, what) for what in ("new", "dump", "rehearsal", names.trial(site))]
    assert all(len(one) <= 63 and re.fullmatch(names.left_over(site), one) for one in ours)
    kept = names.beside(site, "old")
    assert names.kept(site, kept) == kept
    others = (name, kept, f"{ours[0]}x", ours[0][:-2], f"x{ours[0]}", ours[0].replace("_new_", "_newer_"))
    assert not any(re.search(names.left_over(site), other) for other in others)
    # All hosts try at the same time.
    site.host.id = "web2"  # type: ignore[misc]
    assert names.trial(site) not in ours[3]


def test_a_directory_without_ckan_is_said_and_nothing_runs(site: Site):
    with pytest.raises(FormulaError, match="there is no CKAN in .*/current: "):
        probe.heads(site, site.paths.current)


def test_what_the_probe_says_comes_back_without_secrets(root: Path, site: Site, monkeypatch: pytest.MonkeyPatch):
    python = root / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.touch()
    told = {
        "ok": True,
        "errors": [],
        "warnings": [],
        "problem": "no Solr at http://u:p@h, database-secret",
        "schema": {},
    }
    asked: list[Any] = []

    def run(command: list[str], **more: Any) -> script.processes.Done:
        asked.append((command, more))
        return script.processes.Done(0, f"a plugin prints\n{probe.SCRIPT.mark}{json.dumps(told)}", "")

    monkeypatch.setattr(script.processes, "run", run)
    status = probe.index_status(site, str(root / "venv"))
    assert status == {"problem": "no Solr at http://**********@h, **********", "rebuild": ""}
    command, more = asked[0]
    assert command[-4:] == ["-", "index", str(root / "venv/production.ini"), "{}"]
    assert more["cwd"] == str(root / "venv") and "def main(" in more["stdin"] and "secret" not in str(command)
    told.update(ok=False, errors=["password database-secret refused"], before={"core": {"at": ["c1"]}, "x": {"at": []}})
    with pytest.raises(FormulaError) as caught:
        probe.migrate(site, str(root / "venv"))
    assert str(caught.value) == "password ********** refused; the database is now at core c1"


def test_a_restore_does_not_take_the_name_that_one_killed_in_the_same_second_has_left(root, monkeypatch):
    site = fake_site(root)
    stamps = iter(["20260101000001Z", "20260101000001Z", "20260101000002Z"])
    monkeypatch.setattr(names, "new_id", lambda: next(stamps))
    monkeypatch.setattr(restore, "_exists", lambda site, name: name.endswith("01Z"))
    assert restore._unused(site, "old").endswith("_old_20260101000002Z")
