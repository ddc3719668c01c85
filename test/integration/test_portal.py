"""
The walk of the demo on the real parts: CKAN, PostgreSQL, Redis, Solr, uWSGI, supervisor, nginx, Salt.

Each step checks its claims over HTTP and on disk; what is not so is in `wrong`.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from demo import Walk
from parts.process import sandbox
from parts.real import RealPortal

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def walk():
    portal = RealPortal(sandbox("ckan-i-"), say=print)
    try:
        portal.start()
        yield Walk(portal)
    finally:
        portal.destroy()


@pytest.mark.parametrize("step", ["first_deploy", "sample_data", "deploy", "failed_deploy", "rollback"])
def test_the_walk(walk: Walk, step: str) -> None:
    if walk.wrong:
        pytest.fail(f"an earlier step went wrong: {walk.wrong}")
    getattr(walk, step)()
    assert walk.wrong == []


def test_a_second_highstate_after_deploys_changes_nothing(walk: Walk) -> None:
    done = walk.portal.highstate()
    assert done["code"] == 0
    changed = [state for states in done["hosts"].values() for state in states.values() if state["changes"]]
    assert changed == []
    assert sorted(done["hosts"]) == ["web1", "web2"]


def test_the_check_counted_what_ckan_knows(walk: Walk) -> None:
    code, shown = walk.portal.call("web1", "ckan_release.show")
    assert code == 0
    assert shown["check"]["ckan_version"] == "2.12.0"
    assert shown["check"]["plugins"] == ["mycity"]
    assert shown["base"]["ckan"] == "2.12.0"
    # The first check met an empty database: the migration came after it.
    assert "core" in shown["migration"]["heads"] or shown["check"]["heads"]["core"]
    assert shown["packages"]["flask"]


@pytest.fixture
def bare_host(walk: Walk):
    """web1 with another home on it: no uv, no base, and the highstate may install packages."""
    portal = walk.portal
    path = portal.fleet.pillar_roots / "web1.sls"
    before = path.read_text()
    settings = yaml.safe_load(before)["ckan"]
    home = portal.root("web1") / "usr/lib/made"
    settings["paths"] = {"home": str(home)}
    settings["base"] = {"version": "2.12.0"}
    settings["manage"]["packages"] = True
    del settings["installer"]

    def write(**changes) -> Path:
        path.write_text(yaml.safe_dump({"ckan": {**settings, **changes}}))
        return home

    yield write
    path.write_text(before)


def apply(walk: Walk, *arguments: str) -> tuple[int, dict]:
    code, states = walk.portal.call("web1", "state.apply", "ckan.base", *arguments)
    assert isinstance(states, dict), states
    return code, {state["__id__"]: state for state in states.values()}


def test_a_base_that_cannot_be_made_leaves_nothing(walk: Walk, bare_host) -> None:
    home = bare_host(base={"version": "2.99.0"})
    _, states = apply(walk)
    assert states["ckan-uv"]["result"] is True, states["ckan-uv"]
    assert states["ckan-base"]["result"] is False
    assert "2.99.0" in states["ckan-base"]["comment"]
    assert not (home / "default").exists()


def test_a_bare_host_gets_uv_and_a_base_from_a_version_and_then_nothing_more(walk: Walk, bare_host) -> None:
    home = bare_host()
    _, states = apply(walk, "test=True")
    assert states["ckan-base"]["result"] is None
    assert not (home / "default").exists()
    _, states = apply(walk)
    assert all(state["result"] is True for state in states.values()), states
    assert states["ckan-base"]["changes"] == {"base": {"old": None, "new": "CKAN 2.12.0"}}
    version = [home / "default/bin/python", "-c", "import ckan; print(ckan.__version__)"]
    assert subprocess.run(version, capture_output=True, text=True, check=True).stdout == "2.12.0\n"
    assert (home / "default/bin/uwsgi").exists()
    assert (home / "shared/tools/bin/uv").exists()
    _, states = apply(walk)
    assert [name for name, state in states.items() if state["changes"]] == []
