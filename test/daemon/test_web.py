"""The web process of one host: standby, restarts, and app servers that misbehave."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from daemon.conftest import Site, eventually, later
from parts.portal import next_second
from parts.supervisor import Supervisor
from parts.visitors import Visitors
from stub import repos

pytestmark = pytest.mark.daemon


@pytest.fixture(scope="module")
def lone(stub_base: Path) -> Iterator[Site]:
    """A portal on one host, after its first highstate."""
    with Site(stub_base, hosts=["web1"]) as site:
        site.settings["web"]["health_attempts"] = 2
        site.write_pillar(site.settings)
        site.set_up()
        yield site


def processes(site: Site) -> dict[str, list[int]]:
    """The processes of each release, as the host tells it."""
    told = site.fleet.ask("web1", "ckan_web.status")
    assert told["current"] == site.current("web1")
    assert all(row["memory_mb"] > 1 and row["age_seconds"] < 3600 for row in told["processes"])
    found: dict[str, list[int]] = {}
    for row in told["processes"]:
        found.setdefault(row["release"], []).append(row["pid"])
    return found


def with_web(site: Site, **web) -> None:
    site.write_pillar({**site.settings, "web": {**site.settings["web"], **web}})


def end(part: Supervisor, how: signal.Signals = signal.SIGTERM) -> None:
    pid = part.pid()
    assert pid
    os.kill(pid, how)
    eventually(part.pid, 0)


def test_status_tells_the_release_of_each_process_from_the_process_itself(lone):
    release = lone.current("web1")
    found = processes(lone)
    assert list(found) == [release]
    for pid in found[release]:
        assert (
            f"RELEASE_DIR={lone.root('web1')}/usr/lib/ckan/releases/{release}\0"
            in Path(f"/proc/{pid}/environ").read_text()
        )


def test_a_standby_makes_a_rollback_one_rename_and_ends_by_itself(lone):
    first = lone.current("web1")
    with_web(lone, standby=3600)
    second = lone.good_deploy("Hello standby")
    found = processes(lone)
    assert sorted(found) == [first, second]
    with Visitors(lone.front_port) as visitors:
        code, told = lone.call("web1", "ckan_release.rollback")
        assert code == 0 and told["current"] == first, told
    assert visitors.failed == []
    # The very processes from before, and none of the release that was left as bad.
    assert processes(lone) == {first: found[first]}
    with_web(lone, standby=2)
    third = lone.good_deploy("Hello standby again")
    eventually(lambda: list(processes(lone)), [third])
    code, jobs = lone.call("web1", "schedule.list", "return_yaml=False")
    assert code == 0 and "ckan-standby-default" not in jobs
    lone.write_pillar(lone.settings)


@pytest.mark.long
def test_a_deploy_that_comes_before_the_standby_is_over_keeps_one_release_only(lone):
    with_web(lone, standby=3600)
    lone.good_deploy("Hello one more")
    releases = [lone.current("web1"), lone.good_deploy("Hello and more")]
    assert sorted(processes(lone)) == releases
    lone.write_pillar(lone.settings)
    release = lone.good_deploy("Hello without")
    assert list(processes(lone)) == [release]


@pytest.mark.parametrize("how", [later(signal.SIGTERM), signal.SIGKILL])
def test_a_restart_of_supervisor_brings_back_what_current_says(lone, how):
    with_web(lone, standby=3600)
    before = lone.current("web1")
    release = lone.good_deploy(f"Hello {how.name}")
    found = processes(lone)
    assert sorted(found) == [before, release]
    part = lone.supervisor()
    end(part, how)
    if how == signal.SIGKILL:  # as when the power fails: nobody is left
        for pid in [pid for pids in found.values() for pid in pids]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    eventually(lambda: lone.get("/", "web1")[0], 502)
    part.start()
    eventually(lambda: lone.get("/", "web1")[0], 200)
    assert lone.served() == [f"Hello {how.name}"]
    time.sleep(4)
    assert list(processes(lone)) == [release]
    assert f"{before} is not current" in (lone.root("web1") / f"var/log/ckan/default-{before}.log").read_text()
    # And a rollback starts it again, since it is asked for now.
    code, told = lone.call("web1", "ckan_release.rollback")
    assert code == 0 and told == {"current": before, "left": release}, told
    assert list(processes(lone)) == [before]
    lone.write_pillar(lone.settings)


def test_an_app_server_that_is_killed_comes_back(lone):
    release = lone.current("web1")
    old = set(processes(lone)[release])
    os.kill(min(old), signal.SIGKILL)
    # Its workers may answer for a moment yet.
    eventually(lambda: old.isdisjoint(processes(lone).get(release) or old), True)
    eventually(lambda: lone.get("/", "web1")[0], 200)


@pytest.mark.parametrize(
    ("where", "web", "stage", "cause"),
    [
        later("switch", {}, "verify", "answers 502 instead of 200 (2 attempts)"),
        ("request", {"health_path": "/"}, "activate", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_release_that_dies_or_fails_when_it_is_asked_is_taken_back(lone, where, web, stage, cause):
    before, served = lone.current("web1"), lone.served()
    with_web(lone, **web)
    next_second()
    repos.commit_broken(lone.repo, "gone", where)
    done = lone.deploy()
    lone.write_pillar(lone.settings)
    assert done["code"] == 1 and "Traceback" not in done["text"], done["text"]
    text = " ".join(done["text"].split())
    assert f"web1 failed at {stage}: " in text and cause in text, done["text"]
    assert (lone.current("web1"), lone.served()) == (before, served)
    assert list(processes(lone)) == [before]


def test_a_release_that_hangs_at_boot_is_taken_back_within_its_time(lone):
    before = lone.current("web1")
    pillar = {**lone.settings, "web": {**lone.settings["web"], "boot_timeout": 3}}
    lone.write_pillar({**pillar, "config": {**lone.settings["config"], "stub.boot_seconds": "5"}})
    next_second()
    begun = time.monotonic()
    done = lone.deploy()
    lone.write_pillar(lone.settings)
    assert done["code"] == 1 and "web1 failed at activate: " in done["text"], done["text"]
    assert "after 3 seconds" in " ".join(done["text"].split())
    assert time.monotonic() - begun < 60
    assert (lone.current("web1"), list(processes(lone))) == (before, [before])
    # uWSGI that is told to finish its requests while it still loads CKAN never ends, and was killed after a while.
    assert "WARN killing" not in (lone.supervisor().directory / "supervisord.log").read_text()
    # None of its workers goes on without it.
    servers = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    mine = [" ".join(line) for line in servers if str(lone.sandbox) in " ".join(line) and "--ini" in line]
    assert mine and not [line for line in mine if before not in line]


def test_a_supervisor_that_is_down_is_said_at_plan(lone):
    before = lone.disk()
    part = lone.supervisor()
    end(part)
    eventually(lambda: lone.get("/", "web1")[0], 502)
    try:
        done = lone.deploy()
        assert done["code"] == 1 and "supervisor does not answer" in done["text"], done["text"]
        assert lone.disk() == before
    finally:
        part.start()
    eventually(lambda: lone.get("/", "web1")[0], 200)


def test_a_process_that_holds_too_much_memory_is_replaced_and_no_request_fails(lone):
    with_web(lone, memory_limit_mb=1, processes=2)
    release = lone.good_deploy("Hello memory")
    before = processes(lone)[release]
    with Visitors(lone.front_port) as visitors:
        # A new number, not a higher one: the kernel begins again after the highest.
        eventually(lambda: set(processes(lone)[release]) <= set(before), False)
    assert visitors.failed == []
    lone.write_pillar(lone.settings)


@pytest.mark.long
def test_a_server_of_your_own_gets_the_socket_and_the_release_is_asked_there(lone):
    """Here it is the nginx from before, whose file the formula does not touch any more."""
    before = lone.current("web1")
    with_web(lone, server="none")
    with Visitors(lone.front_port) as visitors:
        release = lone.good_deploy("Hello own server")
    assert visitors.failed == [] and lone.served() == ["Hello own server"]
    assert list(processes(lone)) == [release]
    code, told = lone.call("web1", "ckan_release.status")
    assert code == 0 and told["answers"] == release
    next_second()
    repos.commit_broken(lone.repo, "gone", "boot")
    done = lone.deploy()
    assert done["code"] == 1 and lone.current("web1") == release != before
    lone.write_pillar(lone.settings)


@pytest.mark.long
def test_an_adopted_virtualenv_is_rolled_back_to_and_served(lone):
    release = lone.good_deploy("Hello after the adoption")
    ini = lone.root("web1") / f"usr/lib/ckan/releases/{release}/production.ini"
    old = lone.sandbox / "old.ini"
    old.write_text(ini.read_text().replace("ckan.plugins = mycity", "ckan.plugins ="))
    name = "20190412093000Z"
    code, told = lone.call("web1", "ckan_release.adopt", str(lone.base), f"release={name}", f"ini={old}")
    assert code == 0 and told["state"] == "retired", told
    with Visitors(lone.front_port) as visitors:
        code, told = lone.call("web1", "ckan_release.rollback", f"to={name}")
        assert told == {"current": name, "left": release}, told
    assert visitors.failed == [] and list(processes(lone)) == [name]
    assert lone.get("/", "web1")[2] == name
    code, told = lone.call("web1", "ckan_release.activate", release, "force=True")
    assert code == 0
    lone.call("web1", "ckan_release.finish", release, "prune=False")
    assert list(processes(lone)) == [release]


def test_a_finish_that_a_kill_cut_off_is_seen_and_can_be_done(lone):
    old = lone.good_deploy("Hello before the kill")
    hook = {"stage": "finish", "when": "before", "function": "cmd.shell", "args": ["kill -9 $PPID"]}
    lone.write_pillar({**lone.settings, "hooks": [hook]})
    next_second()
    # The process of the job is killed, so nobody would answer.
    lone.fleet.run("salt", "--async", "web1", "ckan_release.deploy")
    eventually(lambda: lone.current("web1") != old and not lone.stage_under_way("web1"), True, 60)
    lone.write_pillar(lone.settings)
    release = lone.current("web1")
    missing = f"the finish of {release} is missing: the app server of {old} runs on"
    code, told = lone.call("web1", "ckan_release.status")
    assert told["unfinished"].startswith(missing) and told["answers"] == release
    assert told["unfinished"].endswith(f"; type: ckan_release.finish {release}")
    code, did = lone.call("web1", "ckan_release.finish", release)
    assert code == 0 and did["stopped"] == [old], did
    assert list(processes(lone)) == [release]
    code, told = lone.call("web1", "ckan_release.status")
    assert "unfinished" not in told


@pytest.mark.long
def test_web_assets_of_all_releases_are_served_by_the_front_door(lone):
    lone.good_deploy("Hello assets")
    release = lone.current("web1")
    own = lone.root("web1") / f"usr/lib/ckan/releases/{release}/run/webassets/base"
    own.mkdir(parents=True)
    (own / "0a1b_main.css").write_text("body { margin: 0 }")
    (own / "link.css").symlink_to("/etc/passwd")
    newer = lone.good_deploy("Hello more assets")
    assert lone.get("/webassets/base/0a1b_main.css", "web1")[:2] == (200, "body { margin: 0 }")
    assert lone.get("/webassets/base/link.css", "web1")[0] == 404
    # They go with the last release that has them.
    code, gone = lone.call("web1", "ckan_release.prune", "keep=2")
    assert code == 0 and release not in gone
    lone.good_deploy("Hello without")
    lone.call("web1", "ckan_release.prune", "keep=2")
    assert release not in lone.releases("web1") and newer in lone.releases("web1")
    assert lone.get("/webassets/base/0a1b_main.css", "web1")[0] == 404
