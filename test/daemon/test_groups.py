"""Three hosts: a deploy by groups, without a host that is down, and what a host does that missed it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.conftest import Site, eventually, later
from daemon.test_fleet import refused
from parts.portal import next_second
from parts.visitors import Visitors
from stub import repos

pytestmark = pytest.mark.daemon

HOSTS = ("web1", "web2", "web3")


@pytest.fixture(scope="module")
def three_hosts(stub_base: Path) -> Iterator[Site]:
    """Three hosts after their first highstate, of which web1 is the canary."""
    with Site(stub_base, HOSTS) as site:
        site.write_host("web1", deploy_group="canary")
        site.set_up()
        yield site


@pytest.fixture
def site(three_hosts: Site) -> Iterator[Site]:
    """The same, with the pillar as it was when the test is over."""
    yield three_hosts
    three_hosts.write_pillar(three_hosts.settings)
    three_hosts.write_host("web1", deploy_group="canary")


def stages(done: dict) -> list[tuple[str, str]]:
    """Stage and host of each line of progress, in their order."""
    lines = [line.split() for line in done["progress"].splitlines()]
    return [(line[0], line[1]) for line in lines if len(line) > 3 and line[3] == "s" and line[1] in HOSTS]


def test_a18_the_first_host_that_fails_stops_the_rest_and_says_who_is_on_which_release(site):
    release = site.good_deploy("Hello before a18")
    before = site.disk()
    next_second()
    repos.commit_broken(site.repo, "no such table: trees")
    done = site.deploy(groups=1)
    refused(site, before, done, "web1 failed at check", "no such table: trees", f"web1, web2, web3 on {release}")
    # The hosts that were not reached have not even begun to build.
    assert stages(done) == [("build", "web1"), ("check", "web1")]
    assert [site.call(host, "ckan_release.history", "limit=1")[1][0]["release"] for host in ("web2", "web3")] == [
        release,
        release,
    ]


def test_a_group_follows_when_the_one_before_is_verified_and_no_visitor_notices(site):
    next_second()
    repos.commit_change(site.repo, "Hello groups", migrations=1)
    with Visitors(site.front_port) as visitors:
        done = site.deploy(groups=["canary", "rest"])
    assert done["code"] == 0, done["text"]
    assert (visitors.failed, visitors.asked > 50) == ([], True)
    assert site.served() == ["Hello groups"] * 3
    seen = stages(done)
    canary = [(name, "web1") for name in ("build", "check", "migrate", "activate", "verify")]
    assert seen[:5] == canary
    rest = seen[5:]
    assert [name for name, host in rest if host == "web2"] == ["build", "check", "activate", "verify", "finish"]
    assert {host for name, host in rest if name == "finish"} == set(HOSTS)
    assert len(set(site.linked())) == 1


@pytest.mark.long
def test_a_group_that_fails_takes_back_the_groups_before_it(site):
    release = site.good_deploy("Hello before groups fail")
    before = site.disk()
    site.write_host("web3", web={**site.settings["web"], "health_url": "http://127.0.0.1:1", "boot_timeout": 3})
    next_second()
    repos.commit_change(site.repo, "Hello never")
    done = site.deploy(groups=[["web1"], "rest"])
    refused(site, before, done, "groups must be a list of names")
    done = site.deploy(groups=["web1", "web2", "rest"])
    assert done["code"] == 1 and "web3 failed at verify" in done["summary"], done["text"]
    assert f"web1, web2, web3 on {release}" in done["summary"]
    assert site.linked() == [release] * 3
    assert [site.releases(host) for host in HOSTS] == [row["names"] for row in before.values()]
    assert site.served() == ["Hello before groups fail"] * 3
    assert [name for name, host in stages(done) if host == "web2"] == ["build", "check", "activate", "verify"]


@pytest.mark.parametrize(
    ("pillar", "sentence"),
    [
        ({"groups": ["canery", "rest"]}, "canery is no group, nor a host (did you mean canary?)"),
        later({"groups": ["canary"]}, "web2, web3 would be in no group; add rest"),
        later({"groups": ["canary", "web1", "rest"]}, "web1 would be in two groups"),
        later({"groups": ["canary", "canary", "rest"]}, "canary stands twice"),
        later({"groups": 0.5}, "groups must be a list of names"),
        later({"group": ["canary"]}, "does not know group (did you mean groups?)"),
        later({"allow_down": ["web4"]}, "web4 in allow_down is no host of production"),
        later({"allow_down": "web3"}, "allow_down must be a list of hosts"),
        ({"extension": {}}, "does not know extension (did you mean extensions?)"),
        later({"extensions": ["ckanext-mycity"]}, "extensions must be a dictionary"),
    ],
)
def test_what_the_pillar_of_a_deploy_cannot_mean_is_refused(site, pillar, sentence):
    refused(site, site.disk(), site.deploy(**pillar), sentence)


@pytest.mark.long
def test_a_host_known_to_be_down_is_left_out_and_catches_up_by_its_highstate(site):
    missed = site.good_deploy("Hello missed by nobody")
    site.fleet.stop_minion("web3")
    try:
        next_second()
        commit = repos.commit_change(site.repo, "Hello missed by web3")
        before = site.disk()
        refused(site, before, site.deploy(), "web3 failed at plan: does not answer", "allow_down: [web3]")
        done = site.deploy(allow_down=["web3"])
        assert done["code"] == 0, done["text"]
        assert "web3 is down and catches up at its next highstate: salt web3 state.highstate" in done["summary"]
        wanted = site.current("web1")
        assert site.linked() == [wanted, wanted, missed]
    finally:
        site.fleet.start_minion("web3")
        site.fleet.wait_for_minions()
    # What the origin says since then is none of its business.
    repos.commit_change(site.repo, "Hello too new")
    code, told = site.status()
    assert (code, told["hosts"]["web3"]["wrong"]) == (1, [f"is on {missed}, the environment on {wanted}"])
    assert "the hosts do not all serve one release" in told["error"]
    dry = site.highstate_of("web3", "test=True")
    assert dry["ckan-release"]["result"] is None
    assert dry["ckan-release"]["changes"] == {"release": {"old": missed, "new": wanted}}
    assert site.current("web3") == missed
    done = site.highstate_of("web3")
    assert done["ckan-release"]["result"] is True, done["ckan-release"]["comment"]
    assert site.linked() == [wanted] * 3
    assert site.served() == ["Hello missed by web3"] * 3
    assert site.call("web3", "ckan_release.show")[1]["extensions"]["ckanext-mycity"]["commit"] == commit
    assert site.status()[0] == 0
    again = site.highstate_of("web3")
    assert (again["ckan-release"]["changes"], site.linked()) == ({}, [wanted] * 3)


@pytest.mark.long
def test_a_host_that_missed_a_rollback_goes_back_by_its_highstate(site):
    first, second = site.good_deploy("Hello r1"), site.good_deploy("Hello r2")
    site.fleet.stop_minion("web3")
    try:
        done = site.deploy("rollback", to=first, reason="search is broken", allow_down=["web3"])
        assert done["code"] == 0, done["text"]
        assert site.linked() == [first, first, second]
    finally:
        site.fleet.start_minion("web3")
        site.fleet.wait_for_minions()
    done = site.highstate_of("web3")
    assert done["ckan-release"]["result"] is True, done["ckan-release"]["comment"]
    assert (site.linked(), site.served()) == ([first] * 3, ["Hello r1"] * 3)


def test_a_host_rolled_back_on_purpose_is_left_by_a_highstate_and_named(site):
    first, second = site.good_deploy("Hello p1"), site.good_deploy("Hello p2")
    assert site.call("web2", "ckan_release.rollback", "reason=only here")[0] == 0
    done = site.highstate_of("web2")
    assert done["ckan-release"]["result"] is True
    assert (
        f"the environment is on {second}, which is marked bad here (only here)" in done["ckan-release"]["warnings"][0]
    )
    assert site.linked() == [second, first, second]
    # A release that one host lacks, or that is bad on one, is no target for all.
    before = site.disk()
    refused(site, before, site.deploy("rollback", to=second), "web2 failed at plan", "marked bad (only here)")
    done = site.deploy("rollback", to=first)
    assert done["code"] == 0, done["text"]
    assert site.linked() == [first] * 3


@pytest.mark.long
def test_a_release_that_one_host_lacks_is_no_target_of_a_rollback(site):
    first = site.good_deploy("Hello l1")
    site.good_deploy("Hello l2")
    gone = site.root("web3") / f"usr/lib/ckan/releases/{first}/bin/python"
    kept = gone.readlink()
    gone.unlink()
    try:
        before = site.disk()
        refused(site, before, site.deploy("rollback", to=first), f"web3 failed at plan: release {first} is not whole")
    finally:
        gone.symlink_to(kept)


@pytest.mark.long
def test_a_minion_killed_in_a_stage_leaves_all_on_one_release_and_is_named_with_what_to_type(site):
    release = site.good_deploy("Hello before the kill")
    hook = {"stage": "check", "when": "before", "function": "cmd.run", "args": ["sleep 20"]}
    site.write_host("web3", hooks=[hook])
    next_second()
    repos.commit_change(site.repo, "Hello kill")
    run = site.begin()
    eventually(lambda: "check" in site.stage_under_way("web3"), True, 60)
    site.fleet.services["web3"].kill()
    try:
        done = site.end(run)
        assert done["code"] == 1, done["text"]
        candidate = done["summary"].split()[2]
        assert "web3 failed at check: does not answer" in done["summary"]
        assert f"web1, web2 on {release}" in done["summary"]
        assert f"when it is up, type: salt web3 ckan_release.abort {candidate}" in done["summary"]
        assert site.linked() == [release] * 3
        assert [candidate in site.releases(host) for host in HOSTS] == [False, False, True]
    finally:
        site.fleet.start_minion("web3")
        site.fleet.wait_for_minions()
    code, told = site.call("web3", "ckan_release.abort", candidate)
    assert (code, told) == (0, {"current": release, "removed": True})
    assert site.status()[0] == 0
    assert "is not locked" in site.fleet.run("salt-run", "ckan.lock_status", "production").stdout


@pytest.mark.long
def test_a_master_restarted_in_a_deploy_leaves_all_on_one_release(site):
    release = site.good_deploy("Hello before the restart")
    hook = {"stage": "check", "when": "before", "function": "cmd.run", "args": ["sleep 8"]}
    site.settings["hooks"] = [hook]
    site.write_pillar(site.settings)
    del site.settings["hooks"]
    next_second()
    repos.commit_change(site.repo, "Hello restart")
    run = site.begin()
    eventually(lambda: "check" in site.stage_under_way("web3"), True, 60)
    site.fleet.stop_master()
    site.fleet.start_master()
    done = site.end(run)
    # Either it has come to its end, or it was reverted: never something between.
    now = site.linked()
    assert len(set(now)) == 1, (now, done["text"])
    assert (now[0] == release) == (done["code"] == 1), done["text"]
    site.fleet.wait_for_minions()
    assert site.status()[0] == 0, site.status()
    assert "is not locked" in site.fleet.run("salt-run", "ckan.lock_status", "production").stdout
    site.write_pillar(site.settings)
    site.good_deploy("Hello after the restart")


@pytest.mark.long
def test_a_history_says_who_did_what_and_how_it_went(site):
    first = site.good_deploy("Hello h1")
    site.deploy("rollback", reason="for the history")
    next_second()
    repos.commit_broken(site.repo, "boom")
    assert site.deploy()["code"] == 1
    done = site.fleet.run("salt-run", "ckan.history", "production", "limit=3", "--out=json")
    assert done.returncode == 0
    failed, back, good = json.loads(done.stdout)["runs"]
    assert (failed["kind"], failed["result"], failed["hosts"]) == ("deploy", "failed", list(HOSTS))
    assert "at check: plugin mycity does not start: RuntimeError: boom" in failed["reason"]
    assert (back["kind"], back["result"], back["reason"]) == ("rollback", "ok", "for the history")
    assert (good["kind"], good["release"], good["result"], good["by"]) == ("deploy", first, "ok", "root")
    assert good["seconds"] > 0
    text = site.fleet.run("salt-run", "ckan.history", "production", "limit=3").stdout
    assert "rollback" in text and "for the history" in text
