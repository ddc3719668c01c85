"""Services with a command, under a real supervisor and with a real Redis; they run a few lines of sh or Python."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ckan_deploy import scripts
from ckan_deploy.build import environment
from ckan_deploy.deploy import status, switch
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import service_files, services, steady
from ckan_deploy.serve.service_files import Program
from fakes import fake_site
from functional.test_services import RELEASE, STAYS, Place
from parts.base import uv_path
from parts.redis import Redis

pytestmark = pytest.mark.slow

NEXT = "20261128130000Z"
ODD = {"PLAIN": "http://proxy.example.org:3128", "ODD": "a 'b' \"c\" 100% ; #d $HOME `e` \\f", "LINES": "one\n two\n"}
SECRET = {"SENTRY_DSN": "https://marked-secret@sentry.example.org/1?a=b"}
# A lease that runs out soon.
LEASE_SECONDS = 6
# Notes what it does, as the consumers of ckanext-harvest do theirs: it knows no signals.
CONSUMER = """\
import os, time, redis
queue = redis.Redis.from_url({url!r}, decode_responses=True)
while True:
    _, message = queue.blpop("messages")
    queue.rpush("begun", message)
    time.sleep(2)
    queue.rpush("done", message)
"""
# Notes when it ran, to tell two that run at a time.
ALONE = """\
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
while True:
    with open({file!r}, "a") as handle:
        handle.write(f"{{time.time()}} {host}\\n")
    time.sleep(0.05)
"""


class CommandPlace(Place):
    """A host whose services are told as a test asks; `python` makes `bin/ckan` a Python program."""

    def given(self, runs: str = STAYS, python: Path | None = None, **changes: Any) -> Site:
        start = f"#!{python}\n" if python else "#!/bin/sh\n"
        self.script.write_text(f"{start}{runs}\n")
        self.script.chmod(0o755)
        told = {"web": self.web, "stable_seconds": 2, **changes}
        return fake_site(self.root, (self.root / "files",), **told)

    def clear(self) -> None:
        services.follow(self.given())


def eventually(holds: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def make_place() -> CommandPlace:
    place = CommandPlace(Path(tempfile.mkdtemp(prefix="ckan-c-", dir="/tmp")))
    home = Path(fake_site(place.root).home)
    home.mkdir(parents=True)
    shutil.chown(home, "www-data")
    return place


@pytest.fixture(scope="module")
def whole() -> Iterator[CommandPlace]:
    found = make_place()
    yield found
    found.supervisor.stop()
    shutil.rmtree(found.root, ignore_errors=True)


@pytest.fixture
def host(whole: CommandPlace) -> Iterator[CommandPlace]:
    yield whole
    whole.clear()


def service(**about: Any) -> dict[str, Any]:
    return {"services": {"gather": {"command": "harvester gather-consumer", "stop_seconds": 2, **about}}}


def row(site: Site, name: str = "gather") -> dict[str, Any]:
    (found,) = [each for each in services.status(site)["services"] if each["service"] == name]
    return found


def test_f10_a_long_running_command_follows_the_release_and_is_shown_in_status(host):
    site = host.given('echo "$@"; exec sleep 600', **service())
    assert services.pending(site)["services"] == {"gather": "started"}
    assert services.follow(site) == {"services": {"gather": "started"}, "workers": {}, "cron": False, "warnings": []}
    assert switch.watch(site, RELEASE) == [] and services.follow(site)["services"] == {}
    told = row(site)
    assert told["kind"] == "service" and told["state"] == "RUNNING" and told["release"] == RELEASE, told
    assert told["restarts"] == 0 and told["age_seconds"] >= 2 and "problem" not in told
    assert (
        "-c production.ini harvester gather-consumer"
        in (host.root / "var/log/ckan/default-service-gather.log").read_text()
    )
    assert status.status(site, processes=True)["services"][0]["service"] == "gather"
    site.releases.create(NEXT)
    for state in ("built", "checked", "live"):
        site.releases.set_state(NEXT, state)
    shutil.copytree(host.script.parent, Path(site.releases.directory(NEXT), "bin"))
    try:
        site.releases.point(NEXT)
        assert services.follow(site)["services"] == {"gather": "restarted"} and row(site)["release"] == NEXT
        # Taken back: what the settings say has no effect then.
        site.releases.point(RELEASE)
        reverted = host.given(**service(stop_seconds=3))
        assert services.follow(reverted, files=False)["services"] == {"gather": "restarted"}
        assert row(site)["release"] == RELEASE and services.follow(site)["services"] == {}
        # Maintenance stops it, and the end of it starts it.
        assert services.pause(site) == [] and row(site)["state"] == "STOPPED"
        assert services.follow(site)["services"] == {"gather": "started"}
    finally:
        site.releases.point(RELEASE)
        site.releases.remove(NEXT)
    assert services.follow(host.given())["services"] == {"gather": "stopped"}
    assert services.status(site)["services"][0]["state"] == "not known to supervisor"
    assert not list((host.root / "etc/ckan/default/services").iterdir())


def test_variables_reach_a_service_as_they_are_and_secret_ones_stand_where_no_other_user_reads(host):
    out = host.script.parents[1] / "seen"
    site = host.given(
        f"env -0 > {out}; exec sleep 600",
        environment={**ODD, "BOTH": "all"}, secrets__environment=SECRET, **service(environment={"BOTH": "own"}),
    )  # fmt: skip
    out.touch()
    shutil.chown(out, "www-data")
    environment.write(site, str(host.script.parents[1]))
    try:
        services.follow(site)
        eventually(lambda: "LINES" in out.read_text())
        seen = dict(item.split("=", 1) for item in out.read_text().split("\0") if item)
        assert {name: seen[name] for name in (*ODD, *SECRET)} == {**ODD, **SECRET} and seen["BOTH"] == "own"
        assert seen["HOME"] == site.home
        secret = next(iter(SECRET.values()))
        for file in [*host.root.glob("etc/**/*"), *host.script.parents[1].glob("*")]:
            if file.is_file() and file != out and secret in file.read_text():
                assert file.stat().st_mode & 0o777 == 0o640 and file.owner() == "root" and file.group() == "www-data"
        pid = row(site)["pid"]
        assert secret not in Path(f"/proc/{pid}/cmdline").read_text()
        assert secret not in subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True).stdout
    finally:
        (host.script.parents[1] / environment.NAME).unlink()


def test_one_that_ends_at_once_is_told_with_its_last_line_and_the_setting(host):
    site = host.given("echo No such command >&2; exit 2", **service())
    (said,) = switch.follow(site)
    assert said.startswith("service gather does not start (supervisor says ")
    assert "): No such command; see " in said and said.endswith(", and correct ckan:services:gather")
    (said,) = switch.watch(site, RELEASE)
    assert said.startswith("service gather does not stay up: it ")


def test_one_starts_also_where_its_starts_cannot_be_noted(host):
    home = Path(fake_site(host.root).home)
    home.rename(home.with_name("away"))
    try:
        site = host.given(**service())
        assert services.follow(site)["services"] == {"gather": "started"}
        assert row(site)["state"] == "RUNNING" and row(site)["restarts"] == 0
    finally:
        home.with_name("away").rename(home)


def test_one_that_ignores_its_stop_signal_is_killed_and_told_with_the_settings(host):
    site = host.given("trap '' TERM; while :; do sleep 0.2; done", **service(stop_seconds=1))
    services.follow(site)
    (said,) = services.pause(site)
    assert said == (
        "service gather did not end within 1 seconds of its stop signal and was killed; give it more time "
        "(ckan:services:gather:stop_seconds), or the signal that it knows (ckan:services:gather:stop_signal)"
    )
    assert row(site)["state"] == "STOPPED"


def test_the_signal_of_the_setting_is_sent(host):
    site = host.given("trap 'exit 0' INT; trap '' TERM; while :; do sleep 0.2; done", **service(stop_signal="INT"))
    services.follow(site)
    assert services.pause(site) == []


def test_one_that_ends_again_and_again_is_an_error_of_the_status_however_long_it_does(host, monkeypatch):
    site = host.given("sleep 1.3; exit 0", **service())
    services.follow(site)
    assert len(switch.watch(site, RELEASE)) == 1
    eventually(lambda: row(site)["restarts"] >= 3)
    # As one that has been up for longer than a start is young.
    monkeypatch.setattr(steady, "YOUNG_SECONDS", 0)
    told = row(site)
    assert told["restarts"] >= 3 and told["problem"].startswith("was started again ")
    (said,) = switch.down(site)
    assert " times within the last hour; see " in said
    # Whoever mends it starts it on purpose, and it begins anew.
    site = host.given(**service())
    assert services.follow(site)["services"] == {"gather": "restarted"}
    assert row(site)["restarts"] == 0 and switch.down(site) == []


def test_those_of_a_lower_order_run_before_one_of_a_higher_order_starts(host):
    both = {"fetch": {"command": "b", "order": 1}, "gather": {"command": "a"}}
    site = host.given(services=both)
    services.follow(site)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    first, second = [service_files.starts(site, Program(name, "service"), boot)[-1] for name in ("gather", "fetch")]
    # Until supervisor says RUNNING it takes a second.
    assert second - first >= 1
    assert "priority = 501" in Path(service_files.conf(site, Program("fetch", "service"))).read_text()


def test_a_worker_in_the_long_form_is_the_same_program_and_one_name_may_change_its_kind(host):
    site = host.given(workers={"gather": {"queues": ["a", "b"], "timeout": 7}})
    services.follow(site)
    long = host.given(services={"gather": {"queues": ["a", "b"], "stop_seconds": 7}})
    assert services.pending(long) == {"workers": {}, "services": {}, "cron": False}
    assert services.follow(host.given(**service())) == {
        "workers": {"gather": "stopped"}, "services": {"gather": "started"}, "cron": False, "warnings": [],
    }  # fmt: skip
    assert [each["kind"] for each in services.status(host.given(**service()))["services"]] == ["service"]


@pytest.fixture(scope="module")
def python() -> Iterator[Path]:
    """An interpreter that knows Redis, as that of a release does."""
    place = Path(tempfile.mkdtemp(prefix="ckan-v-", dir="/tmp"))
    place.chmod(0o755)
    own = place / "v/bin/python"
    for command in (
        ["venv", "-q", "-p", "/usr/bin/python3", place / "v"],
        ["pip", "install", "-q", "-p", own, "redis"],
    ):
        subprocess.run([uv_path(), *command], check=True, capture_output=True)
    yield own
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def redis(whole: CommandPlace) -> Iterator[Redis]:
    part = Redis(whole.root / "parts").start()
    yield part
    part.stop()


@pytest.fixture(autouse=True)
def quick_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    def quick(names: tuple[str, ...], real: Callable[..., str] = scripts.text) -> str:
        return real(names).replace("LEASE_SECONDS = 30", f"LEASE_SECONDS = {LEASE_SECONDS}")

    monkeypatch.setattr(scripts, "text", quick)


def prepare(host: CommandPlace, python: Path, url: str) -> None:
    release = host.script.parents[1]
    (release / "production.ini").write_text(f"[app:main]\nckan.redis.url = {url}\n")
    (release / "bin/python").write_text(f'#!/bin/sh\nexec {python} "$@"\n')
    (release / "bin/python").chmod(0o755)


def test_f10_a_consumer_of_redis_that_knows_no_signals_finishes_its_message_and_takes_no_other(host, python, redis):
    prepare(host, python, redis.url)
    site = host.given(CONSUMER.format(url=redis.url), python, **service(stop_when_idle=True, stop_seconds=20))
    services.follow(site)
    for message in ("one", "two", "three"):
        redis.ask(f"RPUSH messages {message}")
    eventually(lambda: redis.ask("LLEN begun") == ":1")
    assert services.pause(site) == []
    assert (redis.ask("LLEN begun"), redis.ask("LLEN done"), redis.ask("LLEN messages")) == (":1", ":1", ":2")
    # Idle, it ends at once; and what it has not taken the next one does.
    services.follow(site)
    eventually(lambda: redis.ask("LLEN done") == ":3")
    begun = time.monotonic()
    assert services.pause(site) == [] and time.monotonic() - begun < 5
    assert redis.ask("LLEN messages") == ":0"


@pytest.fixture
def two(host: CommandPlace, python: Path, redis: Redis) -> Iterator[tuple[CommandPlace, CommandPlace, Redis, Path]]:
    """Two hosts of one environment, and the file in which the service notes when it runs where."""
    other, noted = make_place(), host.root / "noted"
    noted.write_text("")
    noted.chmod(0o666)
    for place in (host, other):
        prepare(place, python, redis.url)
    yield host, other, redis, noted
    other.clear()
    other.supervisor.stop()
    shutil.rmtree(other.root, ignore_errors=True)


def alone(place: CommandPlace, python: Path, noted: Path) -> Site:
    runs = ALONE.format(file=str(noted), host=place.root.name)
    return place.given(runs, python, **service(once=True, stop_seconds=10))


def rows_of(noted: Path) -> list[tuple[float, str]]:
    return [(float(when), host) for when, host in map(str.split, noted.read_text().splitlines())]


def overlap(noted: Path) -> list[str]:
    """Where one ran on another host within a moment, and back: a change of the host that is none."""
    seen = [host for _, host in rows_of(noted)]
    changes = [host for before, host in zip(["", *seen], seen, strict=False) if host != before]
    return changes


def holder(*sites: Site) -> list[str]:
    return [row(site)["state"] for site in sites]


def test_one_with_once_runs_on_exactly_one_host_and_another_takes_over_from_one_that_is_down(two, python):
    first, second, redis, noted = two
    one, other = alone(first, python, noted), alone(second, python, noted)
    services.follow(one)
    eventually(lambda: bool(rows_of(noted)))
    services.follow(other)
    assert switch.watch(one, RELEASE) == [] and switch.watch(other, RELEASE) == []
    assert holder(one, other) == ["RUNNING", "STANDBY"]
    assert switch.down(other) == [] and row(other)["release"] == RELEASE
    # The host goes down with all that runs on it.
    for pid in (first.supervisor.pid(), row(one)["pid"]):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: row(other)["state"] == "RUNNING" and rows_of(noted)[-1][1] == second.root.name, 30)
    first.supervisor.start()
    assert overlap(noted) == [first.root.name, second.root.name], overlap(noted)


def test_one_with_once_changes_its_host_at_a_stop_and_is_stopped_while_redis_is_away(two, python):
    first, second, redis, noted = two
    one, other = alone(first, python, noted), alone(second, python, noted)
    services.follow(one)
    eventually(lambda: bool(rows_of(noted)))
    services.follow(other)
    begun = time.monotonic()
    assert services.pause(one) == []
    eventually(lambda: row(other)["state"] == "RUNNING" and rows_of(noted)[-1][1] == second.root.name)
    assert time.monotonic() - begun < 8
    services.follow(one)
    assert row(one)["state"] == "STANDBY"
    redis.stop()
    try:
        eventually(lambda: row(other)["state"] != "RUNNING")
        last = rows_of(noted)[-1][0]
    finally:
        redis.start()
    eventually(lambda: rows_of(noted)[-1][0] > last + 1)
    eventually(lambda: sorted(holder(one, other)) == ["RUNNING", "STANDBY"])
    changes = overlap(noted)
    assert changes[:2] == [first.root.name, second.root.name] and len(changes) <= 3, changes
