"""The highstate: first deploy, then nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.conftest import Site
from stub import repos

pytestmark = pytest.mark.daemon


@pytest.fixture(scope="module")
def site(stub_base: Path) -> Iterator[Site]:
    """Hosts of these tests alone: nothing is on them before the first one."""
    site = Site(stub_base)
    # The modules come by a sync, as the README has it, and with each highstate.
    site.fleet.synced = False
    try:
        site.start()
        yield site
    finally:
        site.destroy()


def changes(done: dict) -> list[str]:
    return [state["__id__"] for states in done["hosts"].values() for state in states.values() if state["changes"]]


def test_the_first_highstate_predicts_builds_and_then_changes_nothing(site):
    foreseen = site.highstate("test=True")
    assert foreseen["code"] == 0
    for host in site.hosts:
        results = {state["__id__"]: state for state in foreseen["hosts"][host].values()}
        assert results["ckan-release"]["result"] is None
        assert "first one would be built" in results["ckan-release"]["comment"]
        assert not (site.root(host) / "usr/lib/ckan").exists()
    done = site.highstate()
    assert done["code"] == 0, done["text"]
    assert site.linked()[0] == site.linked()[1] != ""
    # Not by luck: the id is the second at which the job of the highstate was made.
    jobs = {site.call(host, "ckan_release.show")[1]["job"] for host in site.hosts}
    assert len(jobs) == 1 and jobs.pop()[10:14] == site.linked()[0][10:14]
    assert site.served() == ["Hello one", "Hello one"]
    assert site.get("/")[2] == site.linked()[0]
    for again in (site.highstate(), site.highstate("test=True")):
        assert again["code"] == 0
        assert sorted(again["hosts"]) == site.hosts
        assert changes(again) == []
        assert all(s["result"] is True for states in again["hosts"].values() for s in states.values())


def test_a_highstate_never_deploys_what_is_new(site):
    before = site.disk()
    repos.commit_change(site.repo, "not deployed")
    assert changes(site.highstate()) == []
    assert site.disk() == before


def test_a_highstate_starts_an_app_server_that_is_down(site):
    release = site.current("web1")
    program = f"ckan-default-{release}"
    conf = str(site.sandbox / "super-web1/supervisord.conf")
    code, _ = site.call("web1", "supervisord.stop", program, f"conf_file={conf}")
    assert code == 0
    (site.root("web1") / f"etc/supervisor/conf.d/{program}.conf").unlink()
    site.call("web1", "supervisord.update", f"name={program}", f"conf_file={conf}")
    for _ in range(50):
        if site.get("/", "web1")[0] == 502:
            break
        time.sleep(0.1)
    assert site.get("/", "web1")[0] == 502
    done = site.highstate()
    assert done["code"] == 0, done["text"]
    assert changes(done) == ["ckan-release"]
    assert site.get("/", "web1")[::2] == (200, release)
