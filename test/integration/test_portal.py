"""
The walk of the demo on the real parts: CKAN, PostgreSQL, Redis, Solr, uWSGI, supervisor, nginx, Salt.

Each step checks its claims over HTTP and on disk; what is not so is in `wrong`.
"""

from __future__ import annotations

import pytest

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
