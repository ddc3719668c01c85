"""A terminal that closes, and Ctrl-C, in the middle of a run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckan_deploy.fleet import begin, end, interrupts, revert, stages
from ckan_deploy.fleet.record import Record
from ckan_deploy.fleet.run import Run
from parts.fake_master import FIRST, JOB, FakeMaster

STAGES = ("build", "check", "migrate", "activate", "verify", "index", "finish")
FUNCTIONS = {"plan": "ckan_release.plan", **{name: f"ckan_release.{name}" for name in STAGES}}


@pytest.fixture(autouse=True)
def handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("ckan_deploy.fleet.progress.last_word", lambda text: None)
    monkeypatch.setattr("ckan_deploy.fleet.revert.PATIENCE", 0)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    # A run of another test that had no end may hold it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def master(tmp_path: Path) -> FakeMaster:
    return FakeMaster(tmp_path)


def signalled(master: FakeMaster, function: str, number: int) -> None:
    """Send this program a signal when a host is asked for something."""
    answer = getattr(master, f"_{function.replace('.', '_')}")

    def told(host: str, **about: Any) -> Any:
        master.answers.pop(function, None)
        signal.raise_signal(number)
        return answer(host, **about)

    master.answers[function] = told


def deploy(master: FakeMaster) -> dict[str, Any]:
    """What the orchestration does."""
    told = begin.plan(master, "production", "deploy", job=JOB)
    for name in STAGES if told["ok"] else ():
        run = Run.under_way(master, "production", JOB)
        assert run
        if not stages.stage(run, name)["ok"]:
            run = Run.under_way(master, "production", JOB)
            assert run
            return revert.revert(run)
    run = Run.under_way(master, "production", JOB)
    assert run
    return end.close(run)


@pytest.mark.parametrize("stage", ["plan", "build", "check", "migrate", "activate", "verify", "finish"])
def test_h25_a_terminal_that_closes_is_no_end_of_a_run(master: FakeMaster, stage: str) -> None:
    signalled(master, FUNCTIONS[stage], signal.SIGHUP)
    told = deploy(master)
    assert told["ok"] and " is live in production on web1, web2 " in told["comment"]
    assert Record(master, "production").lock() is None
    assert FUNCTIONS[stage] not in master.answers, "the signal was not sent"


@pytest.mark.parametrize("stage", ["plan", "build", "check", "migrate", "activate", "verify"])
def test_ctrl_c_reverts_in_order_when_the_stage_at_work_has_ended(
    master: FakeMaster, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    signalled(master, FUNCTIONS[stage], signal.SIGINT)
    told = deploy(master)
    assert not told["ok"]
    when = "before build" if stage == "plan" else f"in {stage}"
    assert f" to production failed -- ann interrupted it {when} -- " in told["comment"]
    assert master.current == {"web1": FIRST, "web2": FIRST}
    assert Record(master, "production").lock() is None and Record(master, "production").run()["result"] == "failed"
    assert "the run is reverted as soon as the stage at work has ended" in capsys.readouterr().err
    asked = [function for function, _, _ in master.asked]
    at = -1 if stage == "plan" else STAGES.index(stage)
    assert not set(asked) & {FUNCTIONS[name] for name in STAGES[at + 1 :]}
    # The program is as it was: another Ctrl-C is no business of ours.
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_live_on_all_hosts_goes_on_to_its_end(master: FakeMaster) -> None:
    signalled(master, "ckan_release.finish", signal.SIGINT)
    told = deploy(master)
    assert told["ok"] and " is live in production on web1, web2 " in told["comment"]


def test_one_that_was_typed_in_a_run_before_is_forgotten() -> None:
    interrupts.hold("production")
    signal.raise_signal(signal.SIGINT)
    interrupts.hold("staging")
    assert not interrupts.asked()
    interrupts.let_go()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_ctrl_c_does_what_it_would_do_else(master: FakeMaster) -> None:
    interrupts.hold("production")
    signal.raise_signal(signal.SIGINT)
    assert interrupts.asked()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signals_of_a_program_that_serves_others_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGHUP)
    thread = threading.Thread(target=interrupts.hold, args=("production",))
    thread.start()
    thread.join()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGHUP)) == before
    assert not interrupts.asked()


def test_a_dry_run_takes_no_signals(master: FakeMaster) -> None:
    assert begin.plan(master, "production", "deploy", job=JOB, dry_run=True)["ok"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
