"""What is behind CKAN is asked at plan: real PostgreSQL, Redis and Solr, with the libraries of a real CKAN."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from integration.conftest import PASSWORD, WRONG, Behind

from ckan_deploy.deploy import plan
from ckan_deploy.errors import FormulaError
from fakes import fake_site
from parts.nginx import Nginx
from parts.ports import free_port

pytestmark = pytest.mark.integration


def test_all_of_them_are_asked_side_by_side_and_say_their_versions(behind: Behind) -> None:
    begun = time.monotonic()
    told = behind.ask()
    assert (told.problems, told.remarks) == ((), ())
    assert {name: bool(version) for name, version in told.versions.items()} == {
        "PostgreSQL": True, "Redis": True, "Solr": True,
    }  # fmt: skip
    assert time.monotonic() - begun < 10
    site = fake_site(behind.place / "host", **{**behind.settings, "web__server": "none", "web__app": "none"})
    seconds = []
    for _ in range(3):
        begun = time.monotonic()
        planned = plan.make(site, "20261129120000Z", resolve=False)
        seconds.append(time.monotonic() - begun)
    print("preflight:", ", ".join(f"{each:.2f} s" for each in seconds))
    # The best of three: others may be busy on this machine.
    assert min(seconds) <= 1.5
    assert planned.to_json()["host"]["backends"] == told.versions


CLOSED = "redis://:marked-wrong-password@127.0.0.1:9/0"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"redis_url": CLOSED}, "ckan:redis_url: Redis at 127.0.0.1:9 does not answer as it should ("),
        ({"config": {"ckan.redis.url": CLOSED}}, "ckan:config:ckan.redis.url: Redis at 127.0.0.1:9 does not answer"),
        ({"secrets": {"session": "s", "api_token": "t", "config": {"ckan.redis.url": CLOSED}}},
         "ckan:secrets:config:ckan.redis.url: Redis at 127.0.0.1:9 does not answer"),
    ],
    ids=["setting", "option", "secret option"],
)  # fmt: skip
def test_h18_a_redis_that_is_closed_is_named_by_its_setting(behind: Behind, changes: dict, sentence: str) -> None:
    (said,) = behind.ask(**changes).problems
    assert said.startswith(sentence) and "start it" in said


def test_h18_and_refused_at_plan(behind: Behind) -> None:
    site = fake_site(behind.place / "host", **{**behind.settings, "redis_url": CLOSED, "web__server": "none"})
    with pytest.raises(FormulaError, match="ckan:redis_url: Redis at 127.0.0.1:9 does not answer as it should") as told:
        plan.make(site, "20261129120000Z")
    assert WRONG not in str(told.value)


def test_h18_a_redis_that_wants_a_password_or_takes_no_jobs_is_told(behind: Behind) -> None:
    where = f"ckan:redis_url: Redis at 127.0.0.1:{behind.redis.port} "
    behind.redis.ask("CONFIG SET requirepass right")
    try:
        (said,) = behind.ask().problems
        assert said.startswith(f"{where}refuses the user or password, or asks for one (")
        wrong = f"redis://:{WRONG}@127.0.0.1:{behind.redis.port}/0"
        assert behind.ask(redis_url=wrong).problems[0].startswith(f"{where}refuses the user or password")
        assert behind.ask(redis_url=f"redis://:right@127.0.0.1:{behind.redis.port}/0").problems == ()
    finally:
        redis_reset(behind)
    (said,) = behind.ask(redis_url=f"redis://127.0.0.1:{behind.redis.port}/99").problems
    assert "DB index is out of range" in said
    behind.redis.ask("REPLICAOF 127.0.0.1 9")
    try:
        (said,) = behind.ask().problems
        assert said == f"{where}is a replica, which takes no jobs; name its master"
    finally:
        behind.redis.ask("REPLICAOF NO ONE")


def redis_reset(behind: Behind) -> None:
    with socket.create_connection(("127.0.0.1", behind.redis.port), 2) as line:
        line.sendall(b'AUTH right\r\nCONFIG SET requirepass ""\r\n')
        line.makefile().readline()
    assert behind.redis.ask("PING") == "+PONG"


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("password", WRONG, "refuses user ckan_default; correct database:password"),
        ("port", 9, "at 127.0.0.1:9 does not answer; start it, or correct database:host and database:port"),
        ("host", "nowhere.invalid", "at nowhere.invalid:"),
        ("name", "nothing_here", "has no database nothing_here; make it, or correct database:name"),
        ("name", "ascii", "the database ascii is of the encoding SQL_ASCII; CKAN needs one of UTF8"),
    ],
)
def test_h19_what_is_wrong_with_the_database_is_said_with_its_setting(
    behind: Behind, key: str, value: Any, sentence: str
) -> None:
    (said,) = behind.ask(database={**behind.settings["database"], key: value}).problems
    assert said.startswith("ckan:database: ") and sentence in said


def test_h19_rights_that_migrations_need_are_asked_for(behind: Behind) -> None:
    behind.postgres.create_database("narrow", "somebody", "of no interest")
    narrow = {**behind.settings["database"], "name": "narrow"}
    (said,) = behind.ask(database=narrow).problems
    assert 'type in psql there, as a superuser: grant usage, create on schema public to "ckan_default"' in said
    # Where all is there, somebody else may do the migrations.
    behind.postgres.sql("narrow", "create table alembic_version ()")
    told = behind.ask(database=narrow)
    assert (told.problems, told.remarks) == ((), (said,))
    behind.postgres.sql("narrow", 'grant usage, create on schema public to "ckan_default"')
    assert behind.ask(database=narrow).remarks == ()


def test_h13_rights_in_the_datastore_are_asked_for(behind: Behind) -> None:
    behind.postgres.create_database("store", "somebody", "of no interest")
    store = {**behind.settings["datastore"], "name": "store"}
    told = behind.ask(datastore=store)
    (said,) = told.remarks
    assert told.problems == ()
    assert said == (
        "ckan:datastore: ckan_default may not make tables in the database store, as each upload does; type in psql "
        'there, as a superuser: grant usage, create on schema public to "ckan_default"'
    )
    (said,) = behind.ask(datastore={**store, "name": "ascii"}).problems
    assert said.startswith("ckan:datastore: the database ascii is of the encoding SQL_ASCII")


def test_rights_that_restores_and_rehearsals_need_are_asked_for(behind: Behind) -> None:
    maintenance, database = {"migration": {"when": "maintenance"}}, behind.settings["database"]
    assert behind.ask(migration={"when": "before"}).remarks == ()
    (said,) = behind.ask(**maintenance).remarks
    assert said.startswith("ckan:database:admin_user: ckan_default may not make databases, as a restore after a migrat")
    (said,) = behind.ask(migration={"rehearse": True}).remarks
    assert 'alter role "ckan_default" createdb' in said and "a rehearsal of migrations" in said
    behind.postgres.sql("postgres", f"create role maker login createdb password '{PASSWORD}'")
    named = {**database, "admin_user": "maker", "admin_password": PASSWORD}
    told = behind.ask(**maintenance, database=named)
    assert (told.problems, told.remarks) == ((), ())
    (said,) = behind.ask(database={**named, "admin_password": WRONG}).problems
    assert said.startswith("ckan:database:admin_user: PostgreSQL at 127.0.0.1:") and "refuses user maker" in said


def test_h19_the_datastore_is_asked_as_both_of_its_users(behind: Behind) -> None:
    store = {**behind.settings["datastore"], "read_password": WRONG}
    (said,) = behind.ask(datastore=store).problems
    assert said.startswith("ckan:datastore: PostgreSQL at 127.0.0.1:") and "refuses user datastore_default" in said
    said = behind.ask(datastore={**behind.settings["datastore"], "name": "no_store"}).problems
    assert len(said) == 2 and all("has no database no_store" in one for one in said)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda url: url.replace("/ckan", "/no_core"), "ckan:solr_url: there is no core at http://127.0.0.1:"),
        (
            lambda url: "http://127.0.0.1:9/solr/ckan",
            "ckan:solr_url: Solr at http://127.0.0.1:9/solr/ckan does not answ",
        ),
    ],
    ids=["core", "closed"],
)
def test_h19_a_wrong_core_of_solr_is_named(behind: Behind, change: Callable[[str], str], sentence: str) -> None:
    (said,) = behind.ask(solr_url=change(behind.solr.url)).problems
    assert said.startswith(sentence)


def test_f14_a_solr_that_asks_for_a_password_is_refused_without_it_also_before_there_is_any_dataset(
    behind: Behind,
) -> None:
    port, place = free_port(), behind.place / "guard"
    place.mkdir()
    (place / "users").write_text("ckan:{PLAIN}right\n")
    http = (
        f"server {{ listen 127.0.0.1:{port}; auth_basic solr; auth_basic_user_file {place}/users; "
        f"location / {{ proxy_pass {behind.solr.url.rpartition('/solr')[0]}; }} }}"
    )
    guard = Nginx(behind.place, http, port, name="guard-nginx").start()
    try:
        url = f"http://127.0.0.1:{port}/solr/ckan"
        (said,) = behind.ask(solr_url=url).problems
        assert said.startswith(f"ckan:solr_url: Solr at {url} refuses the user or password, or asks for one (HTTP 401)")
        secrets = {"session": "s", "api_token": "t"}
        right = {**secrets, "config": {"solr_user": "ckan", "solr_password": "right"}}
        assert behind.ask(solr_url=url, secrets=right).problems == ()
        wrong = {**secrets, "config": {"solr_user": "ckan", "solr_password": WRONG}}
        assert "(HTTP 401)" in behind.ask(solr_url=url, secrets=wrong).problems[0]
        assert behind.ask(solr_url=url.replace("//", f"//ckan:{WRONG}@")).problems[0].count("ckan:solr_url") == 1
        assert behind.ask(solr_url=url.replace("//", "//ckan:right@")).problems == ()
    finally:
        guard.stop()


def test_all_that_is_wrong_is_said_at_once(behind: Behind) -> None:
    database = {**behind.settings["database"], "password": WRONG}
    told = behind.ask(redis_url=CLOSED, solr_url="http://127.0.0.1:9/solr/ckan", database=database)
    assert [said.split(": ")[0] for said in told.problems] == ["ckan:database", "ckan:redis_url", "ckan:solr_url"]
