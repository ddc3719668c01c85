"""Deploys and rollbacks over two hosts: what goes well, what is refused, and what is reverted."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time

import pytest

from daemon.conftest import PASSWORD, SESSION, later
from parts.portal import next_second
from parts.visitors import Visitors
from stub import repos

pytestmark = pytest.mark.daemon


def refused(site, before: dict, done: dict, *sentences: str) -> None:
    """A refusal: exit code, a sentence, and nothing changed."""
    assert done["code"] == 1, done["text"]
    for sentence in sentences:
        assert sentence in done["text"], done["text"]
    assert "Traceback" not in done["text"]
    assert site.disk() == before


def test_a_deploy_is_one_release_on_all_hosts_and_no_visitor_notices(site):
    old = site.linked()
    next_second()
    commit = repos.commit_change(site.repo, "Hello two")
    with Visitors(site.front_port) as visitors:
        done = site.deploy()
    assert done["code"] == 0, done["text"]
    assert (visitors.failed, visitors.asked > 50) == ([], True)
    assert site.served() == ["Hello two", "Hello two"]
    assert site.linked()[0] == site.linked()[1] > old[0]
    for host in site.hosts:
        code, shown = site.call(host, "ckan_release.show")
        assert code == 0
        assert shown["extensions"]["ckanext-mycity"]["commit"] == commit
        assert shown["by"] and shown["job"]
        # The old app server is gone, with its socket; the release itself stays.
        assert not (site.root(host) / f"usr/lib/ckan/releases/{old[0]}/run/web.sock").exists()
        assert old[0] in site.releases(host)
    assert f"{site.current('web1')} is live in production on web1, web2" in done["text"]
    # From the beginning a line says what goes on; and what Salt says of itself is left out.
    assert done["progress"].splitlines()[-1].startswith("finish ")
    assert "deploy to production: looks for its hosts" in done["progress"] and "unclosed" not in done["text"]
    # What people ask of a host is a table.
    listed = site.fleet.run("salt", "web1", "ckan_release.list").stdout
    assert f"*  {site.current('web1')}  live " in listed and f"ckanext-mycity main {commit[:12]}" in listed


@pytest.mark.long
def test_a_branch_for_one_deploy(site):
    next_second()
    repos.branch(site.repo, "fix-42")
    repos.commit_change(site.repo, "Hello fix")
    repos.branch(site.repo, "main")
    done = site.deploy(extensions={"ckanext-mycity": {"ref": "fix-42"}})
    assert done["code"] == 0, done["text"]
    assert site.served() == ["Hello fix", "Hello fix"]


@pytest.mark.long
def test_rollback_of_the_fleet_can_be_repeated_until_nothing_is_left(site):
    first, second = site.good_deploy("Hello r1"), site.good_deploy("Hello r2")
    with Visitors(site.front_port) as visitors:
        done = site.deploy("rollback", reason="search is broken")
    assert done["code"] == 0, done["text"]
    assert (visitors.failed, visitors.asked > 20) == ([], True)
    assert site.linked() == [first, first]
    assert site.served() == ["Hello r1", "Hello r1"]
    code, left = site.call("web2", "ckan_release.show", second)
    assert (left["state"], left["bad_reason"]) == ("bad", "search is broken")
    assert left["events"][-1]["by"]
    before = site.disk()
    refused(site, before, site.deploy("rollback", to=second), "marked bad (search is broken)")
    refused(site, before, site.deploy("rollback", to="20200101000000Z"), "there is no release 20200101000000Z")
    refused(site, before, site.deploy("rollback", to=first), f"are on {first} already")
    done = site.deploy("rollback", to=second, force=True)
    assert done["code"] == 0, done["text"]
    assert site.linked() == [second, second]


@pytest.mark.long
def test_one_host_rolled_back_is_seen_and_can_be_brought_together_again(site):
    first, second = site.good_deploy("Hello h1"), site.good_deploy("Hello h2")
    code, _ = site.call("web1", "ckan_release.rollback", "reason=only here")
    assert code == 0
    assert site.linked() == [first, second]
    status = site.fleet.run("salt-run", "ckan.status", "production", "--out=json")
    assert status.returncode == 1
    before = site.disk()
    refused(site, before, site.deploy("rollback"), "would not go back together")
    done = site.deploy("rollback", to=first)
    assert done["code"] == 0, done["text"]
    assert site.linked() == [first, first]
    status = site.fleet.run("salt-run", "ckan.status", "production", "--out=json")
    assert status.returncode == 0
    rows = json.loads(status.stdout[status.stdout.index("{") :])["hosts"]
    assert {host: row["answers"] for host, row in rows.items()} == {"web1": first, "web2": first}


@pytest.mark.parametrize(
    ("stage", "host", "changes", "cause"),
    [
        later("build", "web2", {"installer": {"kind": "uv", "uv": "/no/such/uv"}}, "uv is not installed"),
        later("check", "web2", {"config": {"stub.boot_error": "no route to solr"}}, "no route to solr"),
        later("activate", "web2", {"web": {"health_status": 418}}, "instead of 418"),
        ("verify", "web2", {"web": {"health_url": "http://127.0.0.1:1"}}, "does not answer"),
    ],
)
def test_a_failure_on_one_host_at_any_stage_takes_all_hosts_back(site, stage, host, changes, cause):
    site.good_deploy(f"Hello before {stage}")
    if "web" in changes:
        changes["web"] = {**site.settings["web"], **changes["web"], "boot_timeout": 3}
    site.write_host(host, **changes)
    linked, served, releases = site.linked(), site.served(), [site.releases(h) for h in site.hosts]
    next_second()
    repos.commit_change(site.repo, "Hello never")
    done = site.deploy()
    assert done["code"] == 1, done["text"]
    assert f"{host} failed at {stage}: " in done["text"]
    assert "web1 failed" not in done["text"]
    last = done["text"][done["text"].index("ID: revert") :]
    assert cause in last and f"web1, web2 on {linked[0]}" in last
    assert "Traceback" not in done["text"]
    assert (site.linked(), site.served()) == (linked, served)
    assert [site.releases(h) for h in site.hosts] == releases
    site.write_pillar(site.settings)
    site.good_deploy(f"Hello after {stage}")


@pytest.mark.long
def test_a_migration_that_fails_takes_all_hosts_back_and_says_what_holds(site):
    site.good_deploy("Hello before migrate")
    linked, releases = site.linked(), [site.releases(h) for h in site.hosts]
    for host in site.hosts:
        site.write_host(host, config={**site.settings["config"], "stub.migrate_error": "column exists"})
        text = site.overlay(host).read_text()
        if host == "web1":
            kept = text
    site.overlay("web1").write_text(kept)
    next_second()
    repos.commit_change(site.repo, "Hello table", migrations=1)
    done = site.deploy()
    assert done["code"] == 1
    assert "web1 failed at migrate: " in done["text"] and "column exists" in done["text"]
    assert "runs on it; mend the migration" in done["text"]
    assert site.linked() == linked
    assert [site.releases(h) for h in site.hosts] == releases


@pytest.mark.long
def test_a_rollback_that_fails_on_one_host_leaves_all_where_they_were(site):
    site.good_deploy("Hello b1")
    second = site.good_deploy("Hello b2")
    site.write_host("web2", web={**site.settings["web"], "health_url": "http://127.0.0.1:1"})
    done = site.deploy("rollback")
    assert done["code"] == 1
    assert "web2 failed at verify" in done["text"]
    assert site.linked() == [second, second]
    assert site.served() == ["Hello b2", "Hello b2"]
    code, shown = site.call("web1", "ckan_release.show")
    assert shown["state"] == "live"


@pytest.mark.parametrize("kind", ["deploy", later("rollback")])
@pytest.mark.parametrize(
    ("pillar", "sentence"),
    [
        ({"env": ""}, "names no environment"),
        ({"env": "stagin"}, "environments known: production: web1, web2"),
        ({"env": ["production"]}, "must be the name of one environment"),
    ],
)
def test_an_environment_that_is_missing_or_unknown_is_refused_at_plan(site, kind, pillar, sentence):
    refused(site, site.disk(), site.deploy(kind, **pillar), sentence)


def test_a_pillar_without_the_blank_is_refused_at_plan(site):
    before = site.disk()
    done = site.fleet.run("salt-run", "state.orch", "orch.deploy", "pillar={env:production}")
    refused(site, before, {"code": done.returncode, "text": done.stdout + done.stderr}, "write a blank after the colon")


def test_an_override_of_an_unknown_extension_is_refused_at_plan(site):
    done = site.deploy(extensions={"ckanext-mycty": {"ref": "x"}})
    refused(site, site.disk(), done, "failed at plan", "did you mean ckanext-mycity?")


def test_a_ref_that_does_not_exist_is_refused_at_plan(site):
    before = site.disk()
    done = site.deploy(extensions={"ckanext-mycity": {"ref": "mian"}})
    refused(site, before, done, "failed at plan", "no branch or tag mian (near: main)")


def test_a_setting_that_is_wrong_on_one_host_is_refused_at_plan(site):
    before = site.disk()
    site.write_host("web2", keeep=3)
    refused(site, before, site.deploy(), "web2 failed at plan: ckan:keeep is not a setting; did you mean ckan:keep?")


def test_a_pillar_that_does_not_render_is_refused_at_plan(site):
    before = site.disk()
    top = site.fleet.pillar_roots / "top.sls"
    kept = top.read_text()
    top.write_text(f"{kept}  'web2':\n    - broken\n")
    (site.fleet.pillar_roots / "broken.sls").write_text("ckan: {{ no_such_function() }}\n")
    done = site.deploy()
    top.write_text(kept)
    assert done["code"] == 1 and "web2" in done["text"] and "render" in done["text"], done["text"]
    assert site.disk() == before


def test_a_secret_that_is_still_encrypted_is_refused_at_plan(site):
    before = site.disk()
    site.write_host("web2", secrets={"session": "-----BEGIN PGP MESSAGE-----\nabc\n-----END PGP MESSAGE-----"})
    refused(site, before, site.deploy(), "ckan:secrets:session is still encrypted")


@pytest.mark.long
def test_a_minion_that_is_down_is_refused_at_plan(site):
    before = site.disk()
    site.fleet.stop_minion("web2")
    try:
        for kind in ("deploy", "rollback"):
            refused(site, before, site.deploy(kind), "web2 failed at plan: does not answer")
        status = site.fleet.run("salt-run", "ckan.status", "production")
        assert status.returncode == 1 and "does not answer" in status.stdout
    finally:
        site.fleet.start_minion("web2")
        site.fleet.wait_for_minions()


@pytest.mark.long
def test_a_lock_keeps_others_out_and_says_who_and_why(site):
    before = site.disk()
    locked = site.fleet.run("salt-run", "ckan.lock", "production", "reason=election night")
    assert locked.returncode == 0
    try:
        for kind in ("deploy", "rollback"):
            refused(site, before, site.deploy(kind), "election night", "salt-run ckan.unlock production")
        again = site.fleet.run("salt-run", "ckan.lock", "production", "reason=me too")
        assert again.returncode == 1 and "election night" in again.stdout
    finally:
        assert site.fleet.run("salt-run", "ckan.unlock", "production").returncode == 0
    assert "is not locked" in site.fleet.run("salt-run", "ckan.lock_status", "production").stdout


@pytest.mark.long
def test_two_deploys_at_once_exactly_one_runs(site):
    next_second()
    repos.commit_change(site.repo, "Hello race")
    command = site.fleet.command("salt-run", "state.orch", "orch.deploy", 'pillar={"env": "production"}')
    runs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                         env=site.fleet.environment())
        for _ in range(2)
    ]  # fmt: skip
    texts = [run.communicate(timeout=120)[0] for run in runs]
    assert sorted(run.returncode for run in runs) == [0, 1], texts
    loser = next(text for run, text in zip(runs, texts, strict=True) if run.returncode)
    assert "production is locked by" in loser
    assert site.served() == ["Hello race", "Hello race"]
    assert site.linked()[0] == site.linked()[1]
    assert "is not locked" in site.fleet.run("salt-run", "ckan.lock_status", "production").stdout


def test_a_dry_run_names_what_it_would_do_and_changes_nothing(site):
    site.good_deploy("Hello live")
    commit = repos.commit_change(site.repo, "Hello dry")
    before = site.disk()
    done = site.deploy(dry_run=True)
    assert done["code"] == 0 and commit[:12] in done["text"]
    pending = site.fleet.run("salt-run", "ckan.pending", "production")
    assert pending.returncode == 0 and commit[:12] in pending.stdout and "Show 'Hello dry'" in pending.stdout
    done = site.deploy("rollback", dry_run=True)
    assert done["code"] == 0
    # The way of Salt's own states; salt-run prints the manual of a runner for what it does not take.
    pillar = 'pillar={"env": "production"}'
    tried = site.fleet.run("salt-run", "state.orch", "orch.deploy", pillar, "test=True")
    assert tried.returncode == 0 and commit[:12] in tried.stdout, tried.stdout
    assert re.search(r"Failed: +0\n", tried.stdout)
    assert site.fleet.run("salt-run", "state.orch", "orch.rollback", pillar, "test=True").returncode == 0
    mistyped = site.fleet.run("salt-run", "ckan.pending", "production", "relase=x")
    assert mistyped.returncode == 1 and "ckan.pending does not know relase (did you mean release?)" in mistyped.stdout
    assert site.disk() == before


def test_no_secret_reaches_outputs_logs_or_the_job_cache(site):
    next_second()
    repos.commit_change(site.repo, "Hello secret")
    done = site.deploy()
    assert done["code"] == 0
    assert PASSWORD not in done["text"] and SESSION not in done["text"]
    time.sleep(0.5)
    places = [site.sandbox / "log", site.sandbox / "salt/m/var/cache/salt/master/jobs"]
    places += [site.root(host) / "usr/lib/ckan/shared" for host in site.hosts]
    assert all(place.exists() for place in places)
    for place in places:
        for folder, _, files in os.walk(place):
            for name in files:
                content = open(os.path.join(folder, name), "rb").read()
                for secret in (PASSWORD, SESSION):
                    assert secret.encode() not in content, f"{secret} is in {folder}/{name}"
    for host in site.hosts:
        for path in (site.root(host) / "usr/lib/ckan/releases").glob("*/*"):
            if path.is_file() and path.suffix != ".ini":
                assert PASSWORD not in path.read_text(errors="replace"), path
