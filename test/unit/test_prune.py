"""What a prune removes and what it leaves; who may do it when; and what a finish that is missing looks like."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import quick
from quick import Quick

from ckan_deploy.database import compatibility
from ckan_deploy.deploy import plan, prune, rollback, stages, status
from ckan_deploy.errors import FormulaError, InvalidArgument
from ckan_deploy.releases import lock
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import app_server, draining, shared_files, uwsgi
from ckan_deploy.sources import origins
from ckan_deploy.system import places
from functional.steps import later_id

STAGES = ("build", "check", "migrate", "start", "activate", "verify", "finish")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Quick]:
    monkeypatch.setattr(compatibility, "way_back", lambda *_, **__: {"different": {}, "downgrade": {}, "restore": ""})
    yield from quick.make(monkeypatch, keep=2)


def program(host: Quick, release: str) -> Path:
    """Supervisor has a file for the app server of a release."""
    file = Path(uwsgi.program_file(host.site(), str(host.home / "releases" / release)))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return file


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def elsewhere(host: Quick, work: Callable[[Site], Any]) -> str:
    """Have it done by a thread of its own, as by another process; returns what it was refused with."""
    told: list[str] = []

    def run() -> None:
        try:
            work(host.site())
        except FormulaError as exc:
            told.append(str(exc))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return told[0] if told else ""


def test_h22_a_prune_beside_a_deploy_is_refused_by_the_lock_at_each_stage(host, monkeypatch):
    monkeypatch.setattr(lock, "SHORTEST_WAIT", 0)
    first = host.deploy()
    told: list[str] = []
    for stage in STAGES:
        for when in ("before", "after"):
            host.hook(stage, when, lambda: told.append(elsewhere(host, prune.prune)))
    second = host.deploy()
    assert len(told) == 2 * len(STAGES)
    assert all("is at work on this host since" in said and f"(deploy of {second}" in said for said in told)
    assert (host.site().releases.current(), host.releases()) == (second, [first, second])


def test_h22_a_prune_between_the_stages_of_a_run_of_the_master_is_refused_by_its_lock(host):
    host.deploy()
    release = later_id(host)
    run = {"kind": "deploy", "by": "ann", "since": "2026", "job": "20260101"}
    host.host.pillar["ckan_fleet"] = {"lock": run}
    stages.build(host.site(), release, job="20260101")
    with pytest.raises(FormulaError, match="production is locked by ann since 2026"):
        prune.prune(host.site())
    host.host.pillar["ckan_fleet"] = {}
    # Where the pillar does not show the lock the candidate is spared all the same.
    assert prune.prune(host.site()) == [] and release in host.releases()


def test_h21_the_wanted_release_is_spared_and_fewer_than_two_are_refused(host):
    releases = [host.deploy() for _ in range(2)]
    host.pillar["keep"] = 5
    releases += [host.deploy() for _ in range(3)]
    host.host.pillar["ckan_fleet"] = {"wanted": {"release": releases[3], "contents": {}}}
    rollback.rollback(host.site(), to=releases[1])
    assert prune.prune(host.site(), keep=2) == [releases[2], releases[4]]
    assert host.releases() == [releases[0], releases[1], releases[3]]
    for odd in (1, 0, -1, "3", True):
        with pytest.raises(InvalidArgument, match="keep must be a whole number, 2 or more"):
            prune.prune(host.site(), keep=odd)  # type: ignore[arg-type]


def test_f19_all_logs_of_a_release_go_with_it_also_those_that_were_rotated(host):
    site, logs = host.site(), Path(host.site().paths.log)
    logs.mkdir(parents=True, exist_ok=True)
    gone, stays = "20260101000001Z", "20260101000002Z"
    for release in (gone, stays):
        for end in ("", ".1", ".2", ".10"):
            (logs / f"{site.settings.site}-{release}.log{end}").touch()
    (logs / f"{site.settings.site}-{gone}.log.gz").touch()
    app_server.forget(site, {stays})
    names = [path.name for path in logs.iterdir()]
    assert [name for name in names if gone in name] == [f"{site.settings.site}-{gone}.log.gz"]
    assert len([name for name in names if stays in name]) == 4


def test_the_log_of_a_deploy_that_failed_stays_until_one_is_good(host, monkeypatch):
    """Its message names that log."""
    host.deploy()
    logs = Path(host.site().paths.log)
    logs.mkdir(parents=True, exist_ok=True)
    failed = []

    def verify(site: Site, release: str, *_: Any, **__: Any) -> Any:
        failed.append(logs / f"{site.settings.site}-{release}.log")
        failed[0].write_text("the page is broken")
        raise FormulaError("a page fails")

    with monkeypatch.context() as patched, pytest.raises(FormulaError):
        patched.setattr(stages, "verify", verify)
        host.deploy()
    assert failed[0].read_text() == "the page is broken"
    # By then there is no such release any more.
    gone, other = (logs / f"{host.site().settings.site}-{name}.log" for name in ("20260101000000Z", "notes"))
    failed[0].rename(gone)
    other.touch()
    host.deploy()
    assert not gone.exists() and other.exists()


def test_the_wanted_release_is_the_one_of_now_and_not_of_when_the_job_began(host):
    releases = [host.deploy(), host.deploy()]
    host.pillar["keep"] = 5
    releases += [host.deploy() for _ in range(2)]
    site = host.site()
    host.host.stays = True
    host.host.rendered = {**host.host.pillar, "ckan_fleet": {"wanted": {"release": releases[0], "contents": {}}}}
    assert prune.prune(site, keep=2) == [releases[1]]


@pytest.mark.parametrize("how", ["cwd", "script", "variable"])
def test_a_release_that_a_process_runs_from_is_spared_and_named(host, how):
    old = host.deploy()
    path = host.home / "releases" / old
    script = path / "bin/work"
    script.write_text("import time\nprint('up', flush=True)\ntime.sleep(60)\n")
    about: dict[str, Any] = {
        "cwd": {"args": [sys.executable, "-c", script.read_text()], "cwd": path},
        "script": {"args": [sys.executable, str(script)]},
        "variable": {
            "args": [sys.executable, "-c", script.read_text()],
            "env": {**os.environ, "RELEASE_DIR": str(path)},
        },
    }[how]
    with subprocess.Popen(**about, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"up\n"
        try:
            host.deploy()
            done = host.deployed()
            assert old in host.releases()
            assert re.search(rf"release {old} was kept, since process {process.pid} \(\w+", done["warnings"][0])
            assert prune.prune(host.site()) == []
        finally:
            process.kill()
    assert prune.prune(host.site()) == [old]


def test_who_only_looks_at_a_file_of_a_release_does_not_keep_it(host):
    old = host.deploy()
    file = host.home / "releases" / old / "production.ini"
    with subprocess.Popen([sys.executable, "-c", "input()", str(file)], stdin=subprocess.PIPE) as looks:
        host.deploy()
        host.deploy()
        assert old not in host.releases()
        looks.kill()


def test_by_hand_the_others_go_and_what_cannot_go_is_an_error(host, immutable):
    host.pillar["keep"] = 9
    releases = [host.deploy() for _ in range(5)]
    immutable(host.home / "releases" / releases[1] / "bin/file")
    with pytest.raises(FormulaError) as failure:
        prune.prune(host.site(), keep=2)
    assert str(failure.value).startswith(f"removed: {', '.join(releases[:3])}; ")
    assert f".removed-{releases[1]} is of a removed release and cannot be deleted" in str(failure.value)
    assert host.releases() == [f".removed-{releases[1]}", *releases[3:]]
    immutable.free()
    assert prune.prune(host.site(), keep=2) == [] and host.releases() == releases[3:]


@pytest.mark.parametrize("what", ["server", "log", "assets", "checkouts"])
def test_one_thing_that_cannot_be_removed_does_not_keep_the_rest(host, monkeypatch, what):
    host.pillar["keep"] = 9
    releases = [host.deploy() for _ in range(4)]
    place = {"server": (draining, "stop"), "log": (app_server, "forget"), "assets": (shared_files, "forget"),
             "checkouts": (origins, "forget")}[what]  # fmt: skip

    def fail(*args: Any, **_: Any) -> None:
        if what != "server" or releases[0] in args[1]:
            raise OSError(1, "Operation not permitted", "/x/y")

    monkeypatch.setattr(*place, fail)
    with pytest.raises(FormulaError, match="Operation not permitted: /x/y"):
        prune.prune(host.site(), keep=2)
    assert host.releases() == (releases[2:] if what != "server" else [releases[0], *releases[2:]])


@pytest.mark.slow
def test_end_standby_waits_for_its_turn(host):
    host.hook("verify", "before", lambda: told.append(elsewhere(host, prune.end_standby)))
    told: list[str] = []
    host.deploy()
    assert "is at work on this host since" in told[0]
    host.host.pillar["ckan_fleet"] = {"lock": {"kind": "lock", "by": "ann", "since": "2026", "job": "x"}}
    assert prune.end_standby(host.site()) == []


# A deploy that died between its switch and its end.


def died_at_finish(host: Quick) -> str:
    release = later_id(host)
    for stage in (stages.build, stages.check, stages.migrate, stages.start, stages.activate, stages.verify):
        stage(host.site(), release)
    return release


@pytest.mark.slow
def test_a_finish_that_is_missing_is_seen_by_status_and_plan_until_it_is_made_up_for(host):
    releases = [host.deploy(), host.deploy()]
    assert "unfinished" not in status.status(host.site())
    third = died_at_finish(host)
    server = program(host, releases[1])
    what = f"the finish of {third} is missing: the app server of {releases[1]} runs on; {releases[0]} is to be pruned"
    assert status.status(host.site())["unfinished"] == f"{what}; type: ckan_release.finish {third}"
    assert f"{what}: that is done with this deploy" in plan.make(host.site(), later_id(host)).own_changes
    stages.finish(host.site(), third)
    assert not server.exists() and host.releases() == [releases[1], third]
    assert "unfinished" not in status.status(host.site())
    assert not [change for change in plan.make(host.site(), later_id(host)).own_changes if "finish" in change]


@pytest.mark.slow
def test_the_next_deploy_makes_up_for_a_finish_that_is_missing(host):
    releases = [host.deploy(), host.deploy()]
    third = died_at_finish(host)
    server = program(host, releases[1])
    done = host.deployed()
    assert any(f"the finish of {third} is missing" in change for change in done["changes"])
    assert not server.exists() and host.releases() == [third, done["current"]]
    assert "unfinished" not in status.status(host.site())


def test_the_candidate_of_the_next_deploy_is_no_part_of_a_missing_finish(host):
    host.deploy()
    died_at_finish(host)
    release = later_id(host)
    stages.build(host.site(), release)
    program(host, release)
    assert "unfinished" not in status.status(host.site())


@pytest.mark.slow
def test_a_switch_that_died_before_its_note_is_finished(host, monkeypatch):
    first = host.deploy()
    release = later_id(host)
    for stage in (stages.build, stages.check, stages.migrate, stages.start):
        stage(host.site(), release)
    program(host, first)
    with monkeypatch.context() as patched:
        patched.setattr(app_server, "switched", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stages.activate(host.site(), release)
    told = status.status(host.site())
    assert (told["current"], told["state"]) == (release, "checked") and f"the app server of {first}" in told[
        "unfinished"
    ]
    stages.finish(host.site(), release)
    assert status.status(host.site())["state"] == "live"


def test_a_finish_of_another_release_than_the_current_one_stops_nothing(host):
    first, second = host.deploy(), host.deploy()
    server = program(host, second)
    with pytest.raises(FormulaError, match=f"current points to {second} instead of {first}"):
        stages.finish(host.site(), first)
    assert server.exists()


def test_an_abort_of_a_release_that_served_before_is_refused(host):
    first, second = host.deploy(), host.deploy()
    with pytest.raises(FormulaError, match=f"{first} is retired, so it cannot become failed"):
        stages.abort(host.site(), first)
    assert host.releases() == [first, second]


# What a run that was killed left.


def test_the_next_run_sweeps_what_a_dead_one_left(host):
    host.deploy()
    site = host.site()
    left = [host.home / f"current.{later_id(host)}.tmp", host.home / "shared/accepted.json.tmp",
            host.home / "releases/.new-20260101000000Z", host.home / "releases/.removed-20260101000000Z"]  # fmt: skip
    left[0].symlink_to("x")
    left[1].write_text("half")
    for path in left[2:]:
        path.mkdir()
    with lock.held(site, "test", locked=False):
        assert not any(os.path.lexists(path) for path in left)


def test_a_rollback_whose_releases_changed_while_it_waited_is_refused(host, monkeypatch):
    first, second, third = (host.deploy() for _ in range(3))
    assert host.releases() == [second, third]

    def meanwhile(site: Any, *_: Any, **__: Any) -> dict[str, Any]:
        site.releases.remove(second)
        return {"different": {}, "downgrade": {}, "restore": ""}

    monkeypatch.setattr(compatibility, "way_back", meanwhile)
    with pytest.raises(FormulaError, match="there is no release"):
        rollback.rollback(host.site())
    assert host.site().releases.current() == third and first not in host.releases()


def test_a_checkout_and_an_asset_that_cannot_be_removed_do_not_keep_the_others(host, immutable):
    host.deploy()
    site = host.site()
    checkouts = host.home / "shared/sources/0123456789abcdef"
    stuck, free = checkouts / ("a" * 40), checkouts / ("b" * 40)
    assets = Path(site.paths.data) / "webassets/base"
    for folder in (stuck, free, assets):
        folder.mkdir(parents=True)
    immutable(stuck / "file")
    (free / "file").write_text("x")
    immutable(assets / "a.css")
    (assets / "b.css").write_text("x")
    with pytest.raises(FormulaError, match=r"a.gone cannot be removed \(Operation not permitted"):
        origins.forget([], site.paths.shared)
    assert not free.exists() and len(list(checkouts.glob("b*"))) == 0
    with pytest.raises(FormulaError, match=r"base/a.css cannot be removed \(Operation not permitted\)"):
        shared_files.forget(site)
    assert [path.name for path in assets.iterdir()] == ["a.css"]


def test_work_that_a_killed_process_left_is_swept_by_the_next_run_and_not_that_of_others(host):
    site = host.site()
    work = host.home / "shared/work"
    for name in ("ckan-install-dead", "ckan-build-without-lock", "notes"):
        (work / name).mkdir(parents=True)
    (work / "ckan-install-dead/.lock").touch()
    with places.temporary(site.paths.shared, "build") as mine:
        (work / "ckan-install-dead").mkdir(exist_ok=True)
        (work / "ckan-install-dead/.lock").touch()
        told: list[list[str]] = []

        def other(there: Site) -> None:
            with lock.held(there, "test", locked=False):
                told.append(sorted(path.name for path in work.iterdir()))

        elsewhere(host, other)
        assert told == [[Path(mine).name, "notes"]]
