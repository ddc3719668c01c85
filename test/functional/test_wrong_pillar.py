"""A highstate with a wrong pillar, or on a system that the formula does not know: each problem once, and no frame."""

from __future__ import annotations

from typing import Any

import pytest

from functional.conftest import Host


def problems(host: Host) -> list[str]:
    """What the one state of a highstate says that is no more than its problems."""
    done: dict[str, Any] = host.loaders().modules["state.sls"]("ckan").raw
    assert isinstance(done, dict) and len(done) == 1, done
    (state,) = done.values()
    assert state["result"] is False
    return state["comment"].splitlines()


def test_each_problem_of_the_pillar_is_said_once(host: Host) -> None:
    host.pillar.update(keep="many", web={"server": "ngnix"})
    assert problems(host) == [
        "ckan:keep must be a whole number, not the text 'many'",
        "ckan:web:server is 'ngnix'; use nginx or apache or none",
    ]  # fmt: skip


def test_a_system_that_the_formula_does_not_know_is_named(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"os_family": "RedHat", "os": "Rocky", "osrelease": "9.4"}
    monkeypatch.setattr(type(host.loaders()), "_gathered", {**host.loaders().grains, **other})
    host.pillar["keep"] = 4  # new loaders
    assert problems(host) == ["the formula runs on Debian and Ubuntu, and this is Rocky 9.4."]
