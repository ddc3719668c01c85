"""Workers under supervisor and cron jobs, with a real Redis and a real cron. Only CKAN is a small stand-in."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon.conftest import Site, eventually
from parts.portal import next_second
from parts.process import Service
from parts.redis import Redis
from stub import repos

pytestmark = pytest.mark.daemon
PLAIN = {"PATH": "/usr/sbin:/usr/bin:/bin"}
WORKERS = {"default": {"queues": ["default", "slow"], "timeout": 6}}


class WorkSite(Site):
    """Two hosts, each with queues of its own under its root."""

    def __init__(self, base: Path, redis: str) -> None:
        super().__init__(base)
        self.settings["config"]["stub.jobs"] = str(self.sandbox / "jobs")
        self.settings.update(workers=WORKERS, redis_url=redis, stable_seconds=3)
        for queue in ("default", "slow"):
            (self.sandbox / "jobs" / queue).mkdir(parents=True)
        subprocess.run(["chown", "-R", "www-data", self.sandbox / "jobs"], check=True)
        self.write_pillar(self.settings)

    def queue(self, name: str, seconds: float, queue: str = "default") -> None:
        (self.sandbox / "jobs" / queue / f"{name}.draft").write_text(str(seconds))
        (self.sandbox / "jobs" / queue / f"{name}.draft").rename(self.sandbox / "jobs" / queue / f"{name}.job")

    def begun(self, name: str) -> bool:
        return (self.sandbox / "jobs" / f"{name}.begun").exists()

    def done(self, name: str) -> str:
        """The release that did a job, '' for none."""
        file = self.sandbox / "jobs/done"
        rows = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
        return next((release for job, release in rows if job == name), "")

    def begin_line(self, name: str) -> subprocess.Popen:
        """Run a cron job of web1 as cron would, by its line in the crontab; for one that is due @daily."""
        tab = (self.root("web1") / "etc/cron.d/ckan-default").read_text()
        line = next(line for line in tab.splitlines() if line.startswith("@daily www-data ") and f" {name} " in line)
        command = line.removeprefix("@daily www-data ").replace(r"\%", "%")
        return subprocess.Popen(
            ["runuser", "-u", "www-data", "--", "sh", "-c", command], text=True, env=PLAIN,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def workers(self, host: str = "web1") -> list[dict]:
        told = self.fleet.ask(host, "ckan_jobs.status")
        assert told["current"] == self.current(host), told
        return told["workers"]

    def releases_of_workers(self) -> list[str]:
        """What the workers of both hosts have loaded."""
        rows = [row for host in self.hosts for row in self.workers(host)]
        assert all(row["state"] == "RUNNING" and row["memory_mb"] > 1 for row in rows), rows
        return [row["release"] for row in rows]


@pytest.fixture(scope="module")
def work(stub_base: Path) -> Iterator[WorkSite]:
    """A portal on two hosts with a worker each, after its first highstate."""
    with WorkSite(stub_base, "redis://127.0.0.1:1/0") as site:
        redis = Redis(site.sandbox).start()
        site.settings["redis_url"] = redis.url
        site.write_pillar(site.settings)
        site.set_up()
        yield site


def pids(site: WorkSite) -> list[int]:
    return [row["pid"] for host in site.hosts for row in site.workers(host) if row["worker"] == "default"]


def test_the_first_highstate_starts_workers_and_a_second_changes_nothing(work):
    assert work.releases_of_workers() == work.linked()
    before = pids(work)
    done = work.highstate()
    assert done["code"] == 0, done["text"]
    assert [s for states in done["hosts"].values() for s in states.values() if s["changes"]] == []
    assert pids(work) == before
    work.queue("first", 0)
    eventually(lambda: work.done("first"), work.current("web1"))
    environ = Path(f"/proc/{before[0]}/environ").read_text()
    assert "LC_ALL=C.UTF-8" in environ and "PYTHONUTF8=1" in environ
    assert Path(f"/proc/{before[0]}").owner() == "www-data"


def test_a_worker_that_is_down_is_started_by_a_highstate_and_by_nothing_but(work):
    part = work.supervisor()
    other = work.workers("web2")[0]["pid"]
    part.ctl("stop", "ckan-default-worker-default:*")
    assert [row["state"] for row in work.workers()] == ["STOPPED"]
    done = work.highstate("test=True")
    states = {state["__id__"]: state for state in done["hosts"]["web1"].values()}
    assert states["ckan-jobs"]["result"] is None and states["ckan-jobs"]["changes"] == {"worker default": "started"}
    assert [row["state"] for row in work.workers()] == ["STOPPED"]
    done = work.highstate()
    assert done["code"] == 0, done["text"]
    assert work.releases_of_workers() == work.linked()
    assert work.workers("web2")[0]["pid"] == other


def test_a_deploy_lets_the_worker_finish_its_job_and_then_the_new_one_starts(work):
    before = work.current("web1")
    work.queue("under-way", 4)
    eventually(lambda: work.begun("under-way"), True)
    # Taken by one of the two hosts' workers; what comes later is of the new release.
    release = work.good_deploy("Hello with a job")
    assert work.done("under-way") == before
    assert work.releases_of_workers() == [release, release]
    work.queue("later", 0, queue="slow")
    eventually(lambda: work.done("later"), release)


def test_a_worker_that_does_not_finish_within_its_time_is_stopped_and_said(work):
    work.queue("endless", 600)
    eventually(lambda: work.begun("endless"), True)
    next_second()
    repos.commit_change(work.repo, "Hello without that job")
    done = work.deploy()
    assert done["code"] == 0, done["text"]
    text = " ".join(done["text"].split())
    assert "worker default did not finish its job within 6 seconds and was stopped; queue that job again" in text
    assert work.releases_of_workers() == work.linked()
    left = subprocess.run(
        ["pgrep", "-f", f"{work.sandbox}.*jobs worker"], capture_output=True, text=True
    ).stdout.split()
    mine = {int(pid) for pid in left if os.path.realpath(f"/proc/{pid}/root") == "/"}
    # Nothing but the workers: no process of the job goes on by itself.
    assert mine - set(pids(work)) == set() and work.done("endless") == ""


def test_a_failed_deploy_leaves_the_workers_alone(work):
    before, linked = pids(work), work.linked()
    assert all(before)
    next_second()
    repos.commit_broken(work.repo, "gone", "switch")
    # Its settings are of a deploy that is reverted.
    work.write_pillar({**work.settings, "workers": {"default": {"timeout": 7}, "more": {}}})
    done = work.deploy()
    assert done["code"] == 1 and work.linked() == linked
    assert pids(work) == before
    assert [row["pid"] for row in work.workers() if row["worker"] == "more"] == [0]
    work.write_pillar(work.settings)


@pytest.mark.long
def test_a_failed_deploy_takes_back_a_worker_that_was_started_after_the_switch(work):
    """One that dies between the rename and the failure comes back of the wrong release."""
    before, linked = pids(work), work.linked()
    next_second()
    repos.commit_change(work.repo, "mended")
    # Those of this sandbox: another test may be at work beside this one.
    mine = f"case $(readlink /proc/$pid/cwd) in {work.sandbox}/*) kill -KILL $pid;; esac"
    end = f"for pid in $(pgrep -f 'bin/ckan -c production.ini jobs worker'); do {mine}; done"
    (work.fleet.file_roots / "end_worker.sls").write_text(
        f"end:\n  cmd.run:\n    - name: {json.dumps(end)}\n"
        "later:\n  cmd.run:\n    - name: sleep 3\n    - require:\n      - cmd: end\n"
        "fail:\n  test.fail_without_changes:\n    - require:\n      - cmd: later\n"
    )
    hook = {"stage": "activate", "when": "after", "state": "end_worker", "on_failure": "stop"}
    work.write_pillar({**work.settings, "hooks": [hook]})
    done = work.deploy()
    work.write_pillar(work.settings)
    assert done["code"] == 1 and work.linked() == linked, done["text"]
    assert work.releases_of_workers() == linked and not set(before) & set(pids(work))


@pytest.mark.long
def test_a_rollback_of_the_fleet_and_of_a_host_take_the_workers_back(work):
    before = work.current("web1")
    release = work.good_deploy("Hello to go back from")
    done = work.deploy("rollback")
    assert done["code"] == 0, done["text"]
    assert work.linked() == [before, before] and work.releases_of_workers() == [before, before]
    for host in work.hosts:
        code, told = work.call(host, "ckan_release.rollback", f"to={release}", "force=True")
        assert code == 0 and told == {"current": release, "left": before}, told
    assert work.releases_of_workers() == [release, release]


@pytest.mark.long
def test_workers_follow_the_pillar_at_the_next_deploy(work):
    site = work
    site.write_pillar({**site.settings, "workers": {"default": {"remove": True}, "more": {"processes": 2}}})
    release = site.good_deploy("Hello two workers")
    rows = site.workers()
    assert [(row["worker"], row["release"]) for row in rows] == [("more", release)] * 2
    assert len({row["pid"] for row in rows}) == 2
    # A site whose name begins alike is another one's business.
    foreign = site.root("web1") / "etc/supervisor/conf.d/ckan-default-worker-foreign.conf"
    foreign.write_text("; Written by the CKAN formula for the site default-worker.\n[program:x]\ncommand = /bin/true\n")
    site.write_pillar({**site.settings, "workers": {"default": {"remove": True}}})
    site.good_deploy("Hello no worker")
    assert site.workers() == [] and foreign.exists()
    foreign.unlink()
    site.write_pillar(site.settings)
    site.good_deploy("Hello one worker again")
    assert site.releases_of_workers() == site.linked()


@pytest.mark.long
def test_h01_a_worker_that_ends_after_its_first_second_is_told_and_the_exit_codes_are_1(work):
    # It is watched for longer than its boot takes on a busy machine.
    work.write_pillar({**work.settings, "stable_seconds": 20})
    repos.commit_broken(work.repo, "no jobs today", "jobs")
    next_second()
    done = work.deploy()
    assert done["code"] == 1 and f"{work.current('web1')} is live in production on web1, web2" in done["summary"]
    for host in work.hosts:
        assert f"{host}: worker default does not stay up: it " in done["summary"], done["summary"]
    assert "; mend that, then type: salt -L web1,web2 state.apply ckan" in done["summary"]
    assert "no jobs today" in (work.root("web1") / "var/log/ckan/default-worker-default.log").read_text()
    assert work.served() == ["broken", "broken"]
    code, told = work.status()
    assert code == 1 and told["hosts"]["web1"]["wrong"], told
    assert all(sentence.startswith("has worker default ") for sentence in told["hosts"]["web1"]["wrong"])
    # By hand on a host, and by a highstate, it is an error, too.
    next_second()
    code, told = work.call("web1", "ckan_release.deploy")
    assert code == 1 and any("worker default does not stay up" in said for said in told["warnings"]), told
    done = work.highstate()
    states = {state["__id__"]: state for state in done["hosts"]["web2"].values()}
    assert states["ckan-jobs"]["result"] is False
    assert states["ckan-jobs"]["comment"].startswith("worker default does not stay up: it ")
    work.write_pillar(work.settings)
    work.good_deploy("Hello mended worker")
    assert work.status()[0] == 0


@pytest.fixture
def cron(work: WorkSite) -> Iterator[Callable[[], None]]:
    """A cron daemon that reads the lines of both hosts, in a mount namespace of its own."""
    tabs = work.sandbox / "cron.d"
    tabs.mkdir()
    service = Service(work.sandbox, "cron")
    script = (
        f"mount --bind {tabs} /etc/cron.d && mount -t tmpfs none /run && mount -t tmpfs none /var/spool/cron && "
        "mkdir -p /var/spool/cron/crontabs && exec cron -f"
    )
    yield lambda: service.launch(["unshare", "-m", "sh", "-c", script], lambda: True)
    service.stop()


@pytest.mark.long
def test_lines_of_cron_run_in_the_current_release_and_the_ones_marked_once_on_one_host(work, cron):
    out = work.sandbox / "jobs/cron"
    lines = {
        "each": {"schedule": "* * * * *", "shell": f"echo each $(basename $PWD) 100% 'a b' >> {out}"},
        "alone": {"schedule": "* * * * *", "shell": f"echo alone $(basename $PWD) >> {out}", "once": True},
        "version": {"schedule": "* * * * *", "command": "db version -p 'my city'", "once": True},
    }
    work.write_pillar({**work.settings, "cron": lines})
    work.good_deploy("Hello cron")
    before = [(work.root(host) / "etc/cron.d/ckan-default").read_text() for host in work.hosts]
    assert work.settings["redis_url"] not in before[0] and "--once" in before[0]
    # Nothing of the lines names the release: they run in the one that is current then.
    release = work.good_deploy("Hello cron again")
    for host, text in zip(work.hosts, before, strict=True):
        file = work.root(host) / "etc/cron.d/ckan-default"
        assert file.read_text() == text and file.stat().st_mode & 0o777 == 0o644
        (work.sandbox / f"cron.d/ckan-{host}").write_text(text)
    code, told = work.call("web1", "ckan_jobs.status")
    assert code == 0 and len(told["cron"]) == 3
    cron()
    eventually(lambda: out.exists() and out.read_text().count("each") >= 2 and "alone" in out.read_text(), True, 90)
    time.sleep(3)  # for a second one that would be wrong
    rows = sorted(out.read_text().splitlines())
    assert rows == [f"alone {release}", f"each {release} 100% a b", f"each {release} 100% a b"]
    work.write_pillar(work.settings)
    work.good_deploy("Hello without cron")
    assert not (work.root("web1") / "etc/cron.d/ckan-default").exists()
    assert not (work.root("web1") / "etc/ckan/default/cron.py").exists()


def test_a_line_that_fails_or_cannot_ask_redis_says_so_for_cron_to_mail(work):
    lines = {
        "broken": {"schedule": "@daily", "shell": "exit 7"},
        "alone": {"schedule": "@daily", "shell": "touch ran", "once": True},
    }
    address = "redis://:marked-redis-password@127.0.0.1:1/0"
    work.write_pillar({**work.settings, "cron": lines, "redis_url": address})
    release = work.good_deploy("Hello failing cron")
    tab = (work.root("web1") / "etc/cron.d/ckan-default").read_text()
    work.write_pillar(work.settings)
    told = {}
    for name in lines:
        run = work.begin_line(name)
        said, _ = run.communicate(timeout=30)
        told[name] = (run.returncode, said)
    assert told["broken"][0] == 7
    assert "broken ended with exit code 7; see journalctl -t ckan-default-broken" in told["broken"][1]
    assert f"release {release}" in told["broken"][1]
    assert told["alone"][0] == 1
    assert "alone was not run: Redis cannot be asked whose turn it is" in told["alone"][1]
    assert "marked-redis-password" not in tab + told["alone"][1]
    assert not (work.root("web1") / "usr/lib/ckan/current/ran").exists()


def test_lines_of_cron_stand_still_while_a_deploy_has_closed_the_portal_for_a_migration(work):
    out = work.sandbox / "jobs/closed"
    lines = {
        "slow": {"schedule": "@daily", "shell": f"sleep 6; echo slow >> {out}"},
        "quick": {"schedule": "@daily", "shell": f"echo quick >> {out}"},
    }
    work.write_pillar({**work.settings, "cron": lines})
    work.good_deploy("Hello closed cron")
    slow = work.begin_line("slow")
    code, told = work.call("web1", "ckan_maintenance.on", "stop_workers=True")
    assert code == 0 and "warnings" not in told, told
    # It came to its end, and none begins.
    assert out.read_text() == "slow\n" and slow.wait(10) == 0
    assert work.begin_line("quick").wait(30) == 0 and out.read_text() == "slow\n"
    assert work.call("web1", "ckan_maintenance.off")[0] == 0
    assert work.begin_line("quick").wait(30) == 0 and out.read_text() == "slow\nquick\n"
    work.write_pillar(work.settings)
