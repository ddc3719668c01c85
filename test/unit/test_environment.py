"""What the master says of an environment, as the pillar shows it."""

from __future__ import annotations

from typing import Any

import pytest

from ckan_deploy.errors import FormulaError
from ckan_deploy.releases import lock
from ckan_deploy.settings.environment import Environment, Lock, Wanted
from fakes import fake_site

HELD = {"env": "production", "kind": "deploy", "by": "eve", "since": "2026-01-01T00:00:00Z", "reason": "", "job": "7",
        "pid": 1, "started": 2.5}  # fmt: skip
WANTED = {"release": "20260101000000Z", "contents": {"base": {}}, "at": "2026", "by": "eve", "kind": "deploy"}


def told(**fleet: Any) -> Environment:
    return Environment.of({"ckan_fleet": fleet})


def test_a_lock_and_a_release_that_the_master_keeps_are_told():
    environment = told(lock=HELD, wanted={**WANTED, "extensions": {"a": {"ref": "x"}}})
    assert environment.known
    assert environment.lock == Lock("deploy", "eve", "2026-01-01T00:00:00Z", "", "7")
    assert environment.wanted == Wanted("20260101000000Z", {"base": {}}, {"a": {"ref": "x"}})


@pytest.mark.parametrize("nothing", [None, {}, "", [], 0])
def test_where_there_is_neither_lock_nor_release_that_is_known(nothing):
    environment = told(lock=nothing, wanted=nothing)
    assert (environment.known, environment.lock, environment.wanted) == (True, None, None)


@pytest.mark.parametrize("pillar", [{}, *({"ckan_fleet": odd} for odd in (None, {}, [], "x", 7, True, ["lock"]))])
def test_a_pillar_without_the_file_is_unknown(pillar):
    environment = Environment.of(pillar)
    assert (environment.known, environment.lock, environment.wanted) == (False, None, None)


@pytest.mark.parametrize(
    "odd",
    ["x", 7, True, ["deploy"], {"kind": "deploy"}, *({**HELD, name: ""} for name in ("kind", "by", "since", "job")),
     {name: value for name, value in HELD.items() if name != "job"}],
)  # fmt: skip
def test_nobody_is_let_in_by_a_lock_that_cannot_be_read(odd):
    with pytest.raises(FormulaError, match="ckan_fleet:lock in the pillar of this minion cannot be read; include "):
        assert told(lock=odd).lock
    site = fake_site("/srv/x")
    site.host.pillar["ckan_fleet"] = {"lock": odd}
    with pytest.raises(FormulaError, match="ckan_fleet:lock"):
        lock.refuse(site)


@pytest.mark.parametrize(
    "odd",
    ["x", 7, True, ["r"], {"release": "20260101000000Z"}, {"contents": {}}, {**WANTED, "release": 20260101000000},
     {**WANTED, "contents": "x"}, {**WANTED, "contents": None}, {**WANTED, "extensions": ["a"]}],
)  # fmt: skip
def test_a_release_that_cannot_be_read_is_said_to_be_so(odd):
    with pytest.raises(FormulaError, match="ckan_fleet:wanted in the pillar of this minion cannot be read; include "):
        assert told(wanted=odd).wanted
    # What a host has missed is no reason to keep a revert out.
    site = fake_site("/srv/x")
    site.host.pillar["ckan_fleet"] = {"wanted": odd}
    lock.refuse(site)


def test_a_lock_without_a_reason_has_none():
    held = {name: value for name, value in HELD.items() if name != "reason"}
    assert told(lock=held).lock == told(lock={**held, "reason": None}).lock == told(lock=HELD).lock
