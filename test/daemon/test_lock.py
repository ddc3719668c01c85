"""One at a time: two deploys at once, a deploy by highstate or by hand meanwhile, a run that died."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import pytest

from daemon.conftest import PASSWORD, eventually, later
from daemon.test_fleet import refused
from parts.portal import next_second
from stub import repos

pytestmark = pytest.mark.daemon


def slow(site, stage: str, seconds: float) -> None:
    """Let a stage take longer on all hosts, from the next deploy on until the test is over."""
    hook = {"stage": stage, "when": "before", "function": "cmd.run", "args": [f"sleep {seconds}"]}
    site.write_pillar({**site.settings, "hooks": [hook]})


def locked(site) -> str:
    return site.fleet.run("salt-run", "ckan.lock_status", "production").stdout.strip()


def test_a17_of_two_deploys_at_once_exactly_one_runs_and_the_other_is_told_who_and_when(site):
    next_second()
    repos.commit_change(site.repo, "Hello race")
    runs = [site.begin(reason="the first"), site.begin(reason="the second")]
    done = sorted((site.end(run) for run in runs), key=lambda end: end["code"])
    assert [end["code"] for end in done] == [0, 1], done
    assert "production is locked by root since 20" in done[1]["summary"] and "(deploy, job 20" in done[1]["summary"]
    assert "nothing was touched" in done[1]["summary"]
    assert site.served() == ["Hello race", "Hello race"]
    assert site.linked()[0] == site.linked()[1]
    # One complete release, with what it was asked for, and nothing left of another.
    newest = [site.releases(host)[-1] for host in site.hosts]
    assert newest == site.linked()
    assert locked(site) == "production is not locked"


def test_a17_on_one_host_two_deploys_at_once_are_one(site):
    next_second()
    repos.commit_change(site.repo, "Hello host race")
    slow(site, "build", 4)
    site.fleet.run("salt", "*", "saltutil.refresh_pillar", "wait=True")
    with ThreadPoolExecutor(2) as pool:
        told = list(pool.map(lambda by: site.call("web2", "ckan_release.deploy", f"by={by}"), ["ann", "ben"]))
    good, refusals = [[text for _, text in told if isinstance(text, kind)] for kind in (dict, str)]
    assert (len(good), len(refusals)) == (1, 1), told
    assert "is at work on this host since 20" in refusals[0] and "nothing was touched" in refusals[0]
    assert good[0]["current"] == site.current("web2")
    assert site.get("/", "web2")[1].count("Hello host race") == 1
    assert site.releases("web2")[-1] == site.current("web2")


@pytest.mark.long
def test_a_deploy_of_the_fleet_is_respected_by_highstate_and_by_hand(site):
    release = site.good_deploy("Hello before")
    next_second()
    repos.commit_change(site.repo, "Hello respected")
    slow(site, "check", 10)
    run = site.begin()
    eventually(lambda: "check" in site.stage_under_way("web1"), True, 60)
    for words in (["ckan_release.deploy"], ["ckan_release.rollback"], ["ckan_release.activate", release]):
        code, told = site.call("web2", *words)
        assert "production is locked by root since 20" in str(told), told
    # A highstate has nothing to do here, and does nothing.
    state = site.highstate_of("web2")["ckan-release"]
    assert (state["result"], state["changes"]) == (True, {})
    done = site.end(run)
    assert done["code"] == 0, done["text"]
    assert site.served() == ["Hello respected", "Hello respected"]


def test_a_lock_by_hand_keeps_deploys_of_fleet_and_host_out(site):
    release = site.good_deploy("Hello locked")
    before = site.disk()
    assert site.fleet.run("salt-run", "ckan.lock", "production", "reason=election night").returncode == 0
    try:
        for kind in ("deploy", "rollback"):
            done = site.deploy(kind, steal=True)
            refused(site, before, done, "by hand, election night", "salt-run ckan.unlock production")
        code, told = site.call("web1", "ckan_release.rollback")
        assert "production is locked by root" in str(told) and "election night" in str(told)
        assert site.linked() == [release, release]
        # What is served and has stopped is started all the same.
        site.supervisor().ctl("stop", f"ckan-default-{release}")
        state = site.highstate_of("web1")["ckan-release"]
        assert state["result"] is True, state["comment"]
        assert site.get("/", "web1")[0] == 200
        code, told = site.status()
        assert (code, told["lock"]["reason"]) == (0, "election night")
    finally:
        assert site.fleet.run("salt-run", "ckan.unlock", "production").returncode == 0
    assert locked(site) == "production is not locked"
    assert site.call("web1", "ckan_release.rollback")[0] == 0
    site.good_deploy("Hello unlocked")


@pytest.mark.parametrize("how", ["steal", later("unlock")])
def test_a_run_that_died_is_shown_as_stale_and_what_it_left_is_taken_back(site, how):
    release = site.good_deploy(f"Hello before {how}")
    next_second()
    repos.commit_change(site.repo, f"Hello dead {how}")
    slow(site, "check", 6)
    run = site.begin()
    eventually(lambda: "check" in site.stage_under_way("web1"), True, 60)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    site.write_pillar(site.settings)
    assert "it is stale: the process of that job is gone" in locked(site)
    candidate = site.releases("web1")[-1]
    assert candidate > release
    again = site.deploy()
    assert again["code"] == 1 and "repeat with steal: true" in again["summary"], again["text"]
    if how == "unlock":
        freed = site.fleet.run("salt-run", "ckan.unlock", "production")
        assert freed.returncode == 0 and f"web1, web2 on {release}" in freed.stdout, freed.stdout
        assert locked(site) == "production is not locked"
        assert [candidate in site.releases(host) for host in site.hosts] == [False, False]
    next_second()
    done = site.deploy(steal=how == "steal")
    assert done["code"] == 0, done["text"]
    assert site.served() == [f"Hello dead {how}"] * 2
    assert [candidate in site.releases(host) for host in site.hosts] == [False, False]


@pytest.mark.long
def test_nothing_to_deploy_is_said_and_force_deploys_all_the_same(site):
    release = site.good_deploy("Hello something")
    before = site.disk()
    done = site.deploy()
    assert done["code"] == 0, done["text"]
    assert done["summary"].startswith("Nothing to deploy to production: web1, web2 have it all")
    assert site.disk() == before
    pending = site.fleet.run("salt-run", "ckan.pending", "production", "--out=json")
    assert (pending.returncode, json.loads(pending.stdout)["changes"]) == (0, ["nothing"])
    done = site.deploy(force=True)
    assert done["code"] == 0 and site.linked()[0] > release
    # What a release is made of besides its contents is a change, too.
    site.write_pillar({**site.settings, "web": {**site.settings["web"], "threads": 3}})
    told = json.loads(site.fleet.run("salt-run", "ckan.pending", "production", "--out=json").stdout)
    assert told["changes"] == ["settings: web changed"]
    site.write_host("web2", config={"ckan.site_title": "Another"})
    told = json.loads(site.fleet.run("salt-run", "ckan.pending", "production", "--out=json").stdout)
    assert told["changes"] == ["web2: configuration: ckan.site_title changed"]


@pytest.mark.long
def test_a_plan_names_all_that_a_deploy_would_do(site):
    site.good_deploy("Hello planned")
    repos.commit_migration(site.repo, "0007_trees")
    try:
        before = site.disk()
        done = site.fleet.run("salt-run", "ckan.pending", "production", "--out=json")
        assert done.returncode == 0
        told = json.loads(done.stdout)
        assert told["changes"][-1] == "migrations: 0007_trees.py of ckanext-mycity"
        assert "Migration 0007_trees" in told["changes"][0]
        keep = len(site.releases("web1"))
        for host in site.hosts:
            row = told["hosts"][host]
            assert row["current"] == site.current(host)
            assert row["free_mb"] > row["needed_mb"] > 0
            assert len(row["prunes"]) == max(0, keep + 1 - 5)
        assert told["last"].startswith(f"deploy of {site.current('web1')} by root; its stages took ")
        assert site.disk() == before
    finally:
        # Nobody else's plugin brings migrations.
        repos.git(site.repo, "reset", "--quiet", "--hard", "HEAD~1")


@pytest.mark.long
def test_old_modules_are_seen_and_it_is_said_what_to_type(site):
    before = site.disk()
    for name in ("modules/ckan_release.py", "utils/ckan_deploy/releases/store.py"):
        cached = next(site.sandbox.glob(f"salt/web2/**/extmods/{name}"))
        kept = cached.read_text()
        cached.write_text(f"{kept}# as of yesterday\n")
        try:
            refused(
                site, before, site.deploy(), "web2 failed at plan: has other modules", "salt web2 saltutil.sync_all"
            )
        finally:
            cached.write_text(kept)


def test_two_hosts_in_one_directory_are_refused(site):
    before = site.disk()
    site.overlay("web2").write_text(site.overlay("web1").read_text())
    refused(site, before, site.deploy(), "web1 and web2 have one directory of releases")


@pytest.mark.long
def test_a_clock_that_is_off_is_refused(site):
    before = site.disk()
    site.fleet.stop_minion("web2")
    site.fleet.start_minion("web2", ahead_seconds=600)
    try:
        site.fleet.wait_for_minions()
        refused(site, before, site.deploy(), "web2 failed at plan: has a clock that is", "s ahead of the master's")
    finally:
        site.fleet.stop_minion("web2")
        site.fleet.start_minion("web2")
        site.fleet.wait_for_minions()


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.texts, self.bars = [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.bars += tag == "rect" and str(dict(attrs)["class"]).startswith("bar")
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())


@pytest.mark.long
def test_a_report_is_a_page_that_says_what_changed_on_which_hosts_and_who_did_it(site):
    next_second()
    repos.commit_change(site.repo, "Hello report", subject="<script>alert(1)</script> & more")
    done = site.deploy(reason="the news")
    assert done["code"] == 0, done["text"]
    live, took, report = done["summary"].splitlines()
    assert took.startswith("took: ")
    assert live.startswith(f"{site.current('web1')} is live in production on web1, web2 (build ")
    path = Path(report.removeprefix("report: "))
    text = path.read_text()
    page = _Page(text)
    assert page.open == [] and "<script>" not in text
    # Plan, and five stages on both hosts: there is nothing to migrate.
    assert page.bars == 1 + 5 * 2
    for word in ("root", "the news", "web1, web2", live):
        assert word in page.texts
    assert any("<script>alert(1)</script> & more" in item for item in page.texts)
    assert PASSWORD not in text
    assert path.stat().st_mode & 0o077 == 0


def test_a_watch_shows_each_stage_of_each_host_and_ends_with_the_run(site):
    next_second()
    repos.commit_change(site.repo, "Hello watched")
    command = site.fleet.command("salt-run", "ckan.watch", "production", "timeout=120")
    watch = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert watch.stdout.readline().strip() == "no run is under way for production"
    done = site.deploy()
    out, _ = watch.communicate(timeout=60)
    assert (done["code"], watch.returncode) == (0, 0), out
    assert f"{site.current('web1')} is live in production" in out
    seen = [tuple(line.split()[:2]) for line in out.splitlines() if " s" in line]
    # The terminal of the deploy shows the same.
    for stage in ("build", "check", "activate", "verify", "finish"):
        for host in site.hosts:
            assert (stage, host) in seen
            assert [line.split()[:2] for line in done["progress"].splitlines()].count([stage, host]) == 1


def test_a_watch_that_sees_no_end_says_so(site):
    begun = time.monotonic()
    done = site.fleet.run("salt-run", "ckan.watch", "production", "timeout=1")
    assert done.returncode == 1 and "nothing was seen of the end" in done.stdout
    assert time.monotonic() - begun < 20


@pytest.mark.long
def test_the_lock_of_a_run_at_work_is_not_freed(site):
    next_second()
    repos.commit_change(site.repo, "Hello kept")
    slow(site, "check", 5)
    run = site.begin()
    eventually(lambda: "check" in site.stage_under_way("web1"), True, 60)
    done = site.fleet.run("salt-run", "ckan.unlock", "production")
    assert done.returncode == 1 and "is still at work" in done.stdout
    assert site.end(run)["code"] == 0


def test_a_lock_of_an_environment_that_nobody_knows_is_none(site):
    for command in ("ckan.lock_status", "ckan.unlock"):
        done = site.fleet.run("salt-run", command, "prodction")
        assert done.returncode == 1 and "environments known: production: web1, web2" in done.stdout
        done = site.fleet.run("salt-run", command, "../x")
        assert done.returncode == 1 and "cannot be the name of an environment" in done.stdout


def test_what_is_in_the_way_is_an_exit_code_of_pending(site):
    site.write_host("web2", keeep=3)
    done = site.fleet.run("salt-run", "ckan.pending", "production")
    assert done.returncode == 1 and "web2 failed at plan: ckan:keeep is not a setting" in done.stdout


@pytest.mark.long
def test_a_history_without_a_host_says_so(site):
    site.fleet.stop_minion("web2")
    try:
        done = site.fleet.run("salt-run", "ckan.history", "production", "limit=1")
        assert done.returncode == 1 and "not all logs are in it: web2 does not answer" in done.stdout
    finally:
        site.fleet.start_minion("web2")
        site.fleet.wait_for_minions()
