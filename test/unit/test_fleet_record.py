"""What the master keeps of an environment: the deploy lock, the run, the wanted release."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from ckan_deploy.errors import FormulaError
from ckan_deploy.fleet import lock as locks
from ckan_deploy.fleet import wanted
from ckan_deploy.fleet.hosts import Group
from ckan_deploy.fleet.record import Lock, Record
from ckan_deploy.fleet.run import Failure, Run, Span
from parts.fake_master import FIRST, JOB, SECOND, FakeMaster


@pytest.fixture
def master(tmp_path: Path) -> FakeMaster:
    return FakeMaster(tmp_path)


@pytest.fixture
def record(master: FakeMaster) -> Record:
    return Record(master, "production")


def dead(record: Record, job: str = JOB) -> Lock:
    """Leave the lock of a process that is gone."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    record.take("deploy", job, "the news")
    path = Path(record.folder, "lock.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "pid": gone.pid, "started": 1.0}))
    lock = record.lock()
    assert lock
    return lock


@pytest.mark.parametrize("env", ["", "../x", "a/b", "Production", "x\n", None, 5, ["production"]])
def test_no_path_is_made_of_an_odd_name(master: FakeMaster, env: object) -> None:
    for ask in (lambda: Record(master, env), lambda: locks.status(master, env), lambda: locks.free(master, env)):
        with pytest.raises(FormulaError, match="cannot be the name of an environment"):
            ask()
    assert not os.path.exists(master.cachedir)


def test_a_lock_keeps_others_out_until_it_is_freed_by_its_own_job(record: Record) -> None:
    assert record.take("deploy", JOB, "the news") is False
    with pytest.raises(FormulaError) as told:
        record.take("rollback", "2", steal=True)
    assert str(told.value).startswith("production is locked by ann since 20")
    assert str(told.value).endswith(
        f"(deploy, job {JOB}, the news); wait for it; to see how far it is: salt-run ckan.watch production"
    )
    assert record.free("2") is False
    assert (record.free(JOB), record.lock(), record.free()) == (True, None, False)


def test_the_file_of_a_lock_is_there_for_the_pillar_also_when_it_is_freed(record: Record) -> None:
    record.take("deploy", JOB)
    path = Path(record.folder, "lock.json")
    assert set(json.loads(path.read_text())) == {"env", "kind", "by", "since", "reason", "job", "pid", "started"}
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    record.free()
    assert path.read_text() == "null"


def test_a_lock_whose_process_is_gone_is_stale_and_can_be_stolen(record: Record) -> None:
    held = dead(record)
    assert held.stale and held.sentence().endswith("; it is stale: the process of that job is gone")
    with pytest.raises(FormulaError, match="repeat with steal: true, or type: salt-run ckan.unlock production"):
        record.take("deploy", "2")
    assert record.take("deploy", "2", steal=True) is True
    taken = record.lock()
    assert taken and (taken.job, taken.stale) == ("2", False)
    record.give_back(held)
    assert record.lock() == held


def test_a_lock_by_hand_is_never_stale_and_says_by_whom_and_why(master: FakeMaster, record: Record) -> None:
    assert locks.take(master, "production", "election night").endswith("salt-run ckan.unlock production")
    sentence = locks.status(master, "production")
    assert sentence.startswith("production is locked by ann since 20")
    assert sentence.endswith("(by hand, election night)")
    with pytest.raises(FormulaError, match=r"\(by hand, election night\); wait, or type: salt-run ckan.unlock"):
        record.take("deploy", JOB, steal=True)
    assert locks.free(master, "production") == f"freed: {sentence}"
    assert locks.free(master, "production") == locks.status(master, "production") == "production is not locked"


def test_a_lock_of_an_environment_that_has_no_hosts_is_refused(master: FakeMaster) -> None:
    for ask in (lambda: locks.take(master, "prodction", "x"), lambda: locks.free(master, "prodction"),
                lambda: locks.status(master, "prodction")):  # fmt: skip
        with pytest.raises(FormulaError, match="environments known: production: web1, web2"):
            ask()


def test_the_lock_of_a_run_at_work_is_kept_but_with_force(master: FakeMaster, record: Record) -> None:
    record.take("deploy", JOB)
    with pytest.raises(FormulaError, match="is still at work; wait for it, or repeat with force=True"):
        locks.free(master, "production")
    assert locks.free(master, "production", force=True).startswith("freed: ")
    assert (record.lock(), master.asked) == (None, [])


def a_run(master: FakeMaster, **about: object) -> Run:
    return Run(
        master=master, env="production", kind="deploy", by="ann", job=JOB, since="2026-01-01T00:00:00Z",
        hosts=["web1", "web2"], groups=[Group("", ["web1", "web2"])], release=SECOND, **about,
    )  # fmt: skip


def test_the_lock_of_a_run_that_died_is_freed_when_its_hosts_are_back(master: FakeMaster, record: Record) -> None:
    master.current, master.older = dict.fromkeys(master.current, SECOND), dict.fromkeys(master.current, FIRST)
    a_run(master).save()
    dead(record)
    master.answers["ckan_release.abort"] = lambda host, **about: {"current": FIRST}
    freed = locks.free(master, "production")
    assert freed.endswith(f"is gone -- web1, web2 on {FIRST}")
    assert record.lock() is None
    assert (record.run()["result"], bool(record.run()["ended"])) == ("failed", True)
    assert {kwargs["job"] for _, kwargs in master.told("ckan_release.abort")} == {JOB}


def test_a_run_that_died_when_all_hosts_were_verified_is_brought_to_its_end(master: FakeMaster, record: Record) -> None:
    run = a_run(master)
    run.save()
    run.want()
    dead(record)
    assert locks.free(master, "production").endswith(f" -- {SECOND} is live on all hosts")
    assert master.functions() == ["ckan_release.finish"]


def test_a_host_that_cannot_be_reached_keeps_the_lock(master: FakeMaster, record: Record, monkeypatch) -> None:
    monkeypatch.setattr("ckan_deploy.fleet.revert.PATIENCE", 0)
    a_run(master).save()
    dead(record)
    master.down.add("web2")
    with pytest.raises(FormulaError) as told:
        locks.free(master, "production")
    assert f"when it is up, type: salt web2 ckan_release.abort {SECOND}" in str(told.value)
    assert str(told.value).endswith("then repeat, or free it all the same with force=True")
    assert record.lock() is not None


def test_a_run_that_died_in_its_plan_had_touched_nothing(master: FakeMaster, record: Record) -> None:
    dead(record)
    assert locks.free(master, "production").endswith(" -- it had touched nothing")
    assert master.asked == []


def test_a_run_is_kept_by_the_names_that_it_always_had_and_read_again(master: FakeMaster) -> None:
    run = a_run(
        master, spans=[Span("build", "", "web1", 1.0, 2.5, "ok")], failures=[Failure("web2", "check", "boom")],
        left={"web1": FIRST}, contents={"extensions": {}}, seconds={"build": 2.5},
    )  # fmt: skip
    kept = run.to_json()
    assert "closed" not in kept and "master" not in kept
    run.closed, run.ended = [], "2026-01-01T00:00:09Z"
    kept = json.loads(json.dumps(run.to_json()))
    assert kept["closed"] == []
    assert kept["spans"] == [{"stage": "build", "group": "", "host": "web1", "at": 1.0, "seconds": 2.5, "result": "ok"}]
    assert kept["failures"] == [{"host": "web2", "stage": "check", "cause": "boom"}]
    assert kept["groups"] == [{"name": "", "hosts": ["web1", "web2"]}]
    assert Run.of(master, kept).to_json() == run.to_json()
    # As the formula wrote it before: what is not known yet is not there.
    old = {
        "env": "production", "kind": "rollback", "hosts": ["web1"], "by": "ann", "job": JOB, "reason": "",
        "force": False, "maintenance": False, "extensions": {}, "accept_schema": False, "downgrade": False,
        "restore": "", "asked_groups": [], "allow_down": [], "dry_run": False, "since": "2026-01-01T00:00:00Z",
        "seconds": {}, "spans": [], "failures": [], "warnings": [], "release": FIRST, "left": {"web1": SECOND},
        "some_later_name": 1,
    }  # fmt: skip
    read = Run.of(master, old)
    assert (read.release, read.left, read.closed, read.ended) == (FIRST, {"web1": SECOND}, None, "")


def test_a_run_is_found_by_its_job_as_long_as_it_has_the_lock(master: FakeMaster, record: Record) -> None:
    a_run(master).save()
    assert Run.under_way(master, "production", JOB) is None
    record.take("deploy", JOB)
    assert Run.under_way(master, "production", JOB) is not None
    for env, job in (("production", "2"), ("staging", JOB), ("../x", JOB), (None, JOB)):
        assert Run.under_way(master, env, job) is None


def test_a_file_that_is_broken_is_as_none(record: Record) -> None:
    record.take("deploy", JOB)
    for name in ("lock", "run", "wanted"):
        Path(record.folder, f"{name}.json").write_text('{"half')
    assert (record.lock(), record.run(), record.wanted()) == (None, None, {})


def test_what_all_hosts_are_on_is_noted_as_wanted(master: FakeMaster, record: Record) -> None:
    on = dict.fromkeys(("web1", "web2"), FIRST)
    assert wanted.remember(record, {"web1": FIRST, "web2": SECOND}, []) == ""
    assert wanted.remember(record, on, ["web3"]) == ""
    assert wanted.last(record) == "no orchestration has deployed yet"
    assert wanted.remember(record, on, []) == FIRST
    assert record.wanted()["contents"] == {"extensions": {"ckanext-mycity": FIRST}}
    assert (record.wanted()["kind"], record.wanted()["by"]) == ("found", "found on all hosts")
    # Not while another run is under way, which is about to change it; a lock by hand changes nothing.
    record.take("deploy", JOB)
    later = dict.fromkeys(on, SECOND)
    assert wanted.remember(record, later, []) == FIRST
    assert wanted.remember(record, later, [], JOB) == SECOND
    record.free()
    record.take("lock", "by hand")
    assert wanted.remember(record, on, []) == FIRST


def test_how_long_the_last_run_took_is_said(master: FakeMaster, record: Record) -> None:
    a_run(master, seconds={"build": 1.6, "check": 0.6}).want()
    assert wanted.last(record) == f"deploy of {SECOND} by ann; its stages took 2.2 s (build 1.6 s, check 0.6 s)"
