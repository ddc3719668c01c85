"""The thin runners and the ext_pillar by Salt's own loader: what they refuse, and what half a sync says."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import salt.config
import salt.loader
import salt.utils.args
import yaml

from ckan_deploy.fleet import master as masters
from ckan_deploy.fleet.record import Record
from parts.fake_master import FIRST, JOB, SECOND, FakeMaster
from parts.keyring import KeyRing
from parts.process import sandbox

REPO = Path(__file__).resolve().parents[2]
PLANTED = "planted-secret"
SIGNATURES = {
    "ckan.status": ["env"],
    "ckan.history": ["env", "limit"],
    "ckan.report": ["env", "limit"],
    "ckan.watch": ["env", "timeout"],
    "ckan.pending": ["env", "extensions", "groups", "allow_down", "release", "fresh"],
    "ckan.encrypt": ["env", "key", "recipients"],
    "ckan.maintenance": ["env", "state", "reason", "message", "until"],
    "ckan.lock": ["env", "reason"],
    "ckan.unlock": ["env", "force"],
    "ckan.lock_status": ["env"],
    "ckan_fleet.plan": [
        "env", "kind", "extensions", "to", "dry_run", "reason", "force", "maintenance", "groups", "allow_down", "steal",
        "given", "accept_schema", "downgrade", "restore", "job", "from_env", "from_release", "fresh", "message",
        "until",
    ],
    "ckan_fleet.stage": ["env", "name", "group", "job"],
    "ckan_fleet.revert": ["env", "job"],
    "ckan_fleet.close": ["env", "job"],
    "ckan_fleet.steps": ["env", "groups"],
}  # fmt: skip


def options(place: Path, runners: Path = REPO / "_runners", utils: Path = REPO / "_utils", **more: Any) -> dict:
    opts = salt.config.master_config(None)
    opts.update(
        root_dir=str(place), cachedir=str(place / "cache"), pki_dir=str(place / "pki"), sock_dir=str(place / "s"),
        extension_modules=str(place / "ext"), runner_dirs=[str(runners)], utils_dirs=[str(utils)],
        config_dir=str(place), **more,
    )  # fmt: skip
    return opts


def loaded(opts: dict) -> Any:
    return salt.loader.runner(opts, utils=salt.loader.utils(opts))


@pytest.fixture
def master(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMaster:
    """What the runners find in place of Salt's master."""
    made = FakeMaster(tmp_path)
    monkeypatch.setattr(masters, "SaltMaster", lambda opts: made)
    monkeypatch.setattr("ckan_deploy.fleet.progress.last_word", lambda text: None)
    return made


@pytest.fixture
def ask(master: FakeMaster, tmp_path: Path) -> Callable[..., Any]:
    """Call a runner by Salt's loader."""
    runners = loaded(options(tmp_path))

    def call(function: str, *args: Any, **kwargs: Any) -> Any:
        return runners[function](*args, **kwargs)

    return call


def test_the_runners_are_these_and_take_these_arguments(tmp_path: Path) -> None:
    runners = loaded(options(tmp_path))
    found = {}
    for name in runners:
        if name.partition(".")[0] in ("ckan", "ckan_fleet"):
            found[name] = salt.utils.args.get_function_argspec(runners[name]).args
            assert "CLI Example" in runners[name].__doc__
    assert found == SIGNATURES
    assert len(found) <= 20


def test_hints_of_a_runner_are_in_its_own_syntax(master: FakeMaster, ask: Callable) -> None:
    master.down.add("web2")
    assert "or go on without it: allow_down=[web2]" in ask("ckan.pending", "production")["error"]
    assert "add from=ENV" in ask("ckan.pending", "production", release=FIRST)["error"]
    assert ask("ckan.pending", "")["error"] == "no environment is named; type: salt-run ckan.pending ENV"


def test_a_table_for_people_and_data_for_programs(master: FakeMaster, ask: Callable, tmp_path: Path) -> None:
    assert ask("ckan.status", "production")["production"].endswith(f"wanted: {FIRST}; production is not locked")
    master.answers["ckan_release.history"] = []
    assert ask("ckan.history", "production") == {
        "production": "at  what  release  by  hosts  seconds  result  changed\n"
    }
    runners = loaded(options(tmp_path, output="json"))
    assert list(runners["ckan.status"]("production")) == ["env", "wanted", "lock", "hosts"]
    assert runners["ckan.history"]("production") == {"env": "production", "runs": []}


def test_what_is_wrong_is_said_and_is_the_exit_code(master: FakeMaster, ask: Callable) -> None:
    master.down.add("web2")
    silent = "does not answer; start its salt-minion, then repeat"
    told = ask("ckan.status", "production")
    assert (told["retcode"], told["error"]) == (1, f"web2 {silent}") and "web1" in told["production"]
    master.answers["ckan_release.history"] = []
    told = ask("ckan.history", "production")
    assert (told["retcode"], told["error"]) == (1, f"not all logs are in it: web2 {silent}")
    told = ask("ckan.maintenance", "production", "on")
    assert (told["retcode"], told["error"]) == (1, f"not all hosts are on: web2: {silent}")
    assert told["hosts"] == {"web1": {"on": True, "changed": True}, "web2": None}
    told = ask("ckan.pending", "production")
    assert (told["retcode"], told["error"].startswith("web2 failed at plan: does not answer")) == (1, True)
    assert ask("ckan.watch", "production", timeout=0)["retcode"] == 1


@pytest.mark.parametrize(
    ("function", "arguments", "why"),
    [
        ("ckan.history", {"env": "x", "limt": 5}, "does not know limt (did you mean limit?); it takes env, limit"),
        ("ckan.status", {"env": "production", "zz": 1}, "does not know zz; it takes env"),
        ("ckan.status", {}, "needs env; it takes env"),
        ("ckan.lock", {"env": "production"}, "needs reason; it takes env, reason"),
        ("ckan.pending", {"env": "production", "relase": "x"},
         "does not know relase (did you mean release?); it takes env, extensions, groups, allow_down, release, fresh, "
         "from"),
    ],
)  # fmt: skip
def test_an_argument_that_a_runner_does_not_take_is_an_error_and_not_its_manual(
    master: FakeMaster, ask: Callable, function: str, arguments: dict, why: str
) -> None:
    assert ask(function, **arguments) == {"error": f"{function} {why}", "retcode": 1}
    assert master.asked == []


@pytest.mark.parametrize(
    ("function", "arguments", "why"),
    [
        ("ckan.lock", {"reason": ["x"]}, "reason must be a line of text."),
        ("ckan.maintenance", {"state": "on", "reason": {"x": 1}}, "reason must be a line of text."),
        ("ckan.encrypt", {"key": "database:password", "recipients": ["x"]},
         "recipients must be a line of text of at most 2000 characters."),
    ],
)  # fmt: skip
def test_text_that_is_none_is_refused(
    master: FakeMaster, ask: Callable, function: str, arguments: dict, why: str
) -> None:
    assert ask(function, "production", **arguments) == {"error": why, "retcode": 1}
    assert master.asked == []


def test_more_arguments_than_a_runner_takes_are_an_error(ask: Callable) -> None:
    assert ask("ckan.status", "production", "web1")["error"] == "ckan.status takes 1 argument, not 2; it takes env"


@pytest.mark.parametrize("reason", [["x"], {"x": 1}])
def test_a_reason_that_is_no_text_is_refused_at_plan(ask: Callable, reason: Any) -> None:
    told = ask("ckan_fleet.plan", "production", reason=reason, job=JOB)
    assert (told["ok"], told["comment"]) == (False, "reason must be a line of text.")


def test_a_reason_of_several_lines_is_one(master: FakeMaster, ask: Callable) -> None:
    ask("ckan.lock", "production", reason="election\nnight")
    assert "election night" in ask("ckan.lock_status", "production")


def steps(place: Path, **more: Any) -> Callable[..., dict]:
    """The steps of an orchestration, by Salt's own loader."""
    opts = options(place, states_dirs=[str(REPO / "_states")], **more)
    states = salt.loader.states(opts, {}, salt.loader.utils(opts), {}, context={})

    def call(function: str, name: str, **kwargs: Any) -> dict:
        return states[f"ckan_fleet.{function}"](name, **kwargs)

    return call


@pytest.fixture
def step(master: FakeMaster, tmp_path: Path) -> Callable[..., dict]:
    """A step of an orchestration."""
    return steps(tmp_path)


def test_the_steps_of_a_run_load_the_runners_once(step: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    loader = salt.loader.runner
    monkeypatch.setattr(salt.loader, "runner", lambda *args, **kwargs: made.append(1) or loader(*args, **kwargs))
    planned = step("planned", "plan", env="production")
    assert planned["result"] and planned["changes"] == {} and "for web1, web2" in planned["comment"], planned
    for stage in ("build", "check", "migrate", "activate", "verify", "index", "finish"):
        done = step("staged", stage, env="production")
        assert done["result"], done
    assert step("closed", "done", env="production")["result"]
    assert made == [1]


def test_with_test_true_a_run_is_planned_and_nothing_is_a_failure(
    master: FakeMaster, tmp_path: Path, step: Callable
) -> None:
    tried = steps(tmp_path, test=True)
    planned = tried("planned", "plan", env="production")
    assert planned["result"] is None and "  ckanext-mycity changed\nhost  current" in planned["comment"], planned
    assert tried("staged", "build", env="production")["result"] is None
    assert tried("closed", "done", env="production")["result"] is None
    # Salt takes a step that only would run for one that failed.
    assert tried("reverted", "revert", env="production")["result"] is None
    assert {function for function, _, _ in master.asked} <= {
        "ckan_plan.ready",
        "ckan_release.plan",
        "ckan_release.contents",
    }
    assert not step("planned", "plan", env="produktion")["result"]


def test_after_a_refusal_the_other_steps_are_left_out_and_are_no_failures(step: Callable) -> None:
    planned = step("planned", "plan", env="produktion")
    rest = [step("staged", "build", env="produktion", after="plan"), step("closed", "done", env="x", after="build")]
    assert not planned["result"] and {done["result"] for done in rest} == {True}
    assert {done["comment"] for done in rest} == {"left out, since plan did not go well"}
    # What Salt itself has stopped, so that it never came here, is missing, too.
    assert step("planned", "plan", env="production")["result"]
    assert step("staged", "check", env="production", after="build")["comment"].startswith("left out, since build did")
    assert step("staged", "build", env="production", after="plan")["comment"].startswith("build: web1, web2 in")


def test_after_a_failure_the_other_steps_are_left_out_and_the_revert_is_a_failure(
    master: FakeMaster, step: Callable
) -> None:
    step("planned", "plan", env="production")
    master.down.add("web2")
    assert step("staged", "build", env="production", after="plan")["result"] is False
    assert step("staged", "check", env="production", after="build")["comment"] == (
        "left out, since build did not go well"
    )
    # A step that only has a requisite is no exception.
    assert step("staged", "verify", env="production")["result"] is True
    master.down.clear()
    assert step("reverted", "revert", env="production")["result"] is False


@pytest.mark.parametrize("function", ["ckan.status", "ckan.lock_status", "ckan_fleet.steps", "ckan_fleet.plan"])
def test_no_command_shows_what_salt_says_of_objects_that_it_has_not_closed(ask: Callable, function: str) -> None:
    ask(function, "production")
    said: list[logging.LogRecord] = []
    assert logging.lastResort
    try:
        for level, message in ((logging.WARNING, "unclosed Runner <x>"), (logging.ERROR, "no space")):
            record = logging.LogRecord("salt", level, "", 0, message, (), None)
            said += [record] if logging.lastResort.filter(record) else []
        assert [record.getMessage() for record in said] == ["no space"]
    finally:
        for rule in list(logging.lastResort.filters):
            logging.lastResort.removeFilter(rule)


def test_a_step_without_its_runner_says_what_to_type(step: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(salt.loader, "runner", lambda *_, **__: {})
    told = step("planned", "plan", env="production")
    assert told["comment"] == "the runner ckan_fleet.plan is not available; type: salt-run saltutil.sync_all"


def test_a_step_whose_runner_fails_is_a_sentence(step: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckan_deploy.fleet.begin.plan", lambda *_, **__: 1 / 0)
    told = step("planned", "plan", env="production")
    assert told == {
        "name": "plan", "result": False, "changes": {},
        "comment": "ZeroDivisionError: division by zero; see the log of the master",
    }  # fmt: skip


def test_orchestrations_that_are_newer_than_the_runners_are_told_what_to_type(
    step: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    done = step("planned", "plan", env="production", option_of_tomorrow=True)
    assert done["result"] is False and "option_of_tomorrow" in done["comment"]
    assert "type: salt-run saltutil.sync_all, and salt '*' saltutil.sync_all" in done["comment"]
    assert not [record for record in caplog.records if record.exc_info]


def test_a_plan_is_shown_without_what_orchestrations_need(master: FakeMaster, tmp_path: Path) -> None:
    told = loaded(options(tmp_path, output="json"))["ckan.pending"]("production")
    assert set(told) == {"release", "changes", "extensions", "hosts", "groups", "down", "last"}


def test_a_plan_is_a_table_of_120_columns_for_people(master: FakeMaster, ask: Callable) -> None:
    def planned(host: str, **about: Any) -> dict[str, Any]:
        told = master._ckan_release_plan(host, **about)
        behind = {"PostgreSQL": "15.3 (Debian 15.3-0+deb12u1)", "Redis": "7.0.15", "Solr": "9.10.1"}
        disk = {"free_mb": 1, "needed_mb": None}
        told["host"] |= {"backends": behind, "prunes": [FIRST, SECOND], "disk": disk}
        return {**told, "own_remarks": ["a warning of many words " * 9]}

    master.answers["ckan_release.plan"] = planned
    master.changes = ["ckanext-mycity changed: main 1c5d9a04f7be -> main 8457211e86ba (Show 'Hello')", "word " * 60]
    told = ask("ckan.pending", "production", groups=1, allow_down=["web2"])
    assert list(told) == ["production"]
    lines = told["production"].splitlines()
    # Salt's own outputter indents them by four.
    assert max(map(len, lines)) <= 116
    assert re.fullmatch(r"release \d{14}Z", lines[0])
    assert lines[1:4] == ["extension       ref and commit, or version", "ckanext-mycity  main abc", "changes"]
    assert lines[4] == f"  {master.changes[0]}" and lines[5].startswith("  word word")
    heading = next(line for line in lines if line.startswith("host "))
    assert heading.split("  ")[0] == "host" and heading.endswith("backends")
    assert [line.split()[0] for line in lines[lines.index(heading) + 1 :] if line.startswith("web")] == ["web1", "web2"]
    assert "None" not in told["production"]
    assert lines[-2:] == ["groups: web1, then web2", "last: no orchestration has deployed yet"]
    assert any(line.startswith("warning: a warning of many words") for line in lines)


def test_a_plan_with_nothing_to_deploy_says_that_and_what_is_to_be_known(master: FakeMaster, ask: Callable) -> None:
    master.changes, master.remarks = [], ["ckanext-mycity is 3 commits behind its upstream"]
    lines = ask("ckan.pending", "production")["production"].splitlines()
    assert lines[0].startswith(f"Nothing to deploy: {FIRST} on web1, web2") and "changes" not in lines
    # The stand-in of CKAN has nothing behind it.
    assert any(line.startswith("host ") and line.endswith("prunes") for line in lines)
    assert master.remarks[0] in lines


@pytest.mark.parametrize(("given", "state"), [("on", "on"), (True, "on"), ("off", "off"), (False, "off")])
def test_on_and_off_are_what_yaml_makes_of_them(master: FakeMaster, ask: Callable, given: object, state: str) -> None:
    assert ask("ckan.maintenance", "production", given, reason="a move")["hosts"]
    assert master.functions() == [f"ckan_maintenance.{state}"]


def test_what_visitors_read_goes_to_the_hosts_and_not_where_it_is_turned_off(master: FakeMaster, ask: Callable) -> None:
    told = ask("ckan.maintenance", "production", "on", message={"de": "Umzug"}, until="2099-01-01T10:00Z")
    assert "error" not in told
    about = {"by": "ann", "reason": "", "message": {"de": "Umzug"}, "until": "2099-01-01T10:00Z"}
    assert master.told("ckan_maintenance.on")[0] == ("web1", about)
    assert "leave them out" in ask("ckan.maintenance", "production", "off", message="x")["error"]
    assert master.told("ckan_maintenance.off") == []


def test_a_page_of_all_runs_is_written_and_its_path_is_told(master: FakeMaster, ask: Callable) -> None:
    master.answers["ckan_release.history"] = []
    told = ask("ckan.report", "production")
    assert set(told) == {"production"} and os.path.isfile(told["production"])
    master.down.add("web2")
    told = ask("ckan.report", "production")
    assert told["retcode"] == 1 and "web2" in told["error"] and os.path.isfile(told["production"])


def test_a_lock_is_taken_shown_and_freed(ask: Callable) -> None:
    assert ask("ckan.lock", "production", "election night").startswith("production is locked; free it with")
    assert "election night" in ask("ckan.lock_status", "production")
    again = ask("ckan.lock", "production", "me too")
    assert again["retcode"] == 1 and "election night" in again["error"]
    assert ask("ckan.unlock", "production").startswith("freed: production is locked by ann")
    assert ask("ckan.lock_status", "production") == "production is not locked"


@pytest.mark.parametrize(
    ("function", "arguments", "sentence"),
    [
        ("ckan.history", {"limit": "x"}, "limit must be a number of runs, such as 20, not 'x'"),
        ("ckan.history", {"limit": 0}, "limit must be a number of runs"),
        ("ckan.history", {"limit": True}, "limit must be a number of runs"),
        ("ckan.history", {"limit": 1.5}, "limit must be a number of runs"),
        ("ckan.report", {"limit": "x"}, "limit must be a number of runs, such as 200, not 'x'"),
        ("ckan.maintenance", {"state": "on", "message": ["x"]}, "message must be a line of text"),
        ("ckan.watch", {"timeout": "soon"}, "timeout must be a number of seconds, such as 3600, not 'soon'"),
        ("ckan.watch", {"timeout": -1}, "timeout must be a number of seconds"),
        ("ckan.maintenance", {"state": "perhaps"}, "'perhaps' is neither on nor off"),
        ("ckan.maintenance", {"state": 1}, "1 is neither on nor off"),
        ("ckan.maintenance", {"state": ["on"]}, "['on'] is neither on nor off"),
        ("ckan.unlock", {"force": "no"}, "force must be True or False, not 'no'"),
        ("ckan.pending", {"extensions": ["x"]}, "extensions must be a dictionary"),
        ("ckan.pending", {"groups": {"a": 1}}, "groups must be a list of names"),
        ("ckan.pending", {"allow_down": {"web1": 1}}, "allow_down must be a list of hosts"),
        ("ckan.encrypt", {"key": "database:pasword"}, "did you mean database:password?"),
        ("ckan.encrypt", {"key": ["database:password"]}, "is not a secret setting"),
    ],
)
def test_an_argument_that_cannot_be_meant_is_refused(
    master: FakeMaster, ask: Callable, function: str, arguments: dict, sentence: str
) -> None:
    told = ask(function, "production", **arguments)
    assert (set(told), told["retcode"]) == ({"error", "retcode"}, 1) and sentence in told["error"]
    assert master.asked == []


HOSTILE = ["", None, 5, True, "../x", "../../../../tmp/x", "$(touch x)", "x\ny", ["production"], {"production": 1}]


@pytest.mark.parametrize("env", HOSTILE, ids=repr)
@pytest.mark.parametrize("function", SIGNATURES)
def test_a_name_that_no_environment_has_is_refused_by_all(
    master: FakeMaster, ask: Callable, function: str, env: object
) -> None:
    more = {"ckan.encrypt": {"key": "database:password"}, "ckan.maintenance": {"state": "on"},
            "ckan.lock": {"reason": "x"}, "ckan_fleet.stage": {"name": "build"}}.get(function, {})  # fmt: skip
    told = ask(function, env, **more)
    if function.startswith("ckan."):
        assert (set(told), told["retcode"]) == ({"error", "retcode"}, 1)
    elif function == "ckan_fleet.steps":
        assert told == [""]
    else:
        assert set(told) == {"ok", "comment"} and told["ok"] is False
    assert master.asked == [] and not os.path.exists(master.cachedir)


@pytest.mark.parametrize("odd", [-1, True, "../x", "x\ny", ["a", {"b": "c"}], {"a": 1}, None], ids=repr)
@pytest.mark.parametrize("function", SIGNATURES)
def test_no_argument_makes_a_runner_raise_or_touch_a_host(
    master: FakeMaster, ask: Callable, monkeypatch: pytest.MonkeyPatch, function: str, odd: object
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    reading = (
        "ckan_plan.", "ckan_release.plan", "ckan_release.contents", "ckan_release.status", "ckan_release.history",
        "ckan_release.rollback_target", "ckan_schema.way_back", "ckan_backup.list",
    )  # fmt: skip
    least = {
        "ckan.encrypt": {"key": "database:password"}, "ckan.maintenance": {"state": "perhaps"},
        "ckan.lock": {"reason": "x"}, "ckan.watch": {"timeout": 0}, "ckan_fleet.stage": {"name": "build"},
    }.get(function, {})  # fmt: skip
    for name in SIGNATURES[function][1:]:
        if name == "state" and odd is True:  # that is what YAML makes of on
            continue
        told = ask(function, "production", **{**least, name: odd})
        assert isinstance(told, (dict, str, list))
        if isinstance(told, dict) and function.startswith("ckan.") and "error" in told:
            assert told["retcode"] == 1 and "Traceback" not in told["error"]
        Record(master, "production").free()
    touching = [(asked, about) for asked, _, about in master.asked if not asked.startswith(reading)]
    # A look whether a message can be shown changes nothing.
    assert [asked for asked, about in touching if about.get("test") is not True] == []


def test_the_steps_of_a_run_find_it_by_its_job(master: FakeMaster, ask: Callable) -> None:
    planned = ask("ckan_fleet.plan", env="production", job=JOB)
    assert planned["ok"]
    for function, sentence in (
        ("ckan_fleet.stage", "there is no run of this job under way for production; start it with state.orch"),
        ("ckan_fleet.close", "there is no run of this job under way for production"),
        ("ckan_fleet.revert", "nothing was touched"),
    ):
        more = {"name": "build"} if function == "ckan_fleet.stage" else {}
        assert ask(function, env="production", job="2", **more) == {"ok": False, "comment": sentence}
    assert ask("ckan_fleet.stage", env="production", name="build", job=JOB)["comment"].startswith(
        "build: web1, web2 in "
    )
    told = ask("ckan_fleet.stage", env="production", name="bild", job=JOB)
    assert told["ok"] is False and told["comment"].startswith("'bild' is no stage of a deploy")
    told = ask("ckan_fleet.revert", env="production", job=JOB)
    assert told["ok"] is False and told["comment"].endswith(f" -- web1, web2 on {FIRST}")
    assert ask("ckan_fleet.steps", "production", 1) == ["web1", "web2"]


def test_a_disk_that_is_full_is_a_sentence(master: FakeMaster, ask: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ckan_deploy.system.files.write", full)
    assert ask("ckan.lock", "production", "x") == {"error": "[Errno 28] No space left on device", "retcode": 1}
    assert ask("ckan_fleet.plan", "production", job=JOB)["comment"] == "[Errno 28] No space left on device"


@pytest.fixture
def keyring(master: FakeMaster, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMaster]:
    """A master with a key; its directory has a short path, since gpg's agent has a socket in it."""
    place = sandbox("ckan-k-")
    ring = KeyRing(place / "k").make()
    master.keyring = str(ring.path)
    yield master
    ring.stop()
    shutil.rmtree(place)


def test_a_secret_is_encrypted_and_nothing_else_of_it_is_said(
    keyring: FakeMaster, ask: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "stdin"
    file.write_text(f"{PLANTED}-é\n")
    with open(file, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        told = ask("ckan.encrypt", "production", "ckan:extensions:ckanext-mycity:token")
    assert told.startswith(
        "# Into the secrets of production: a file of its pillar whose first line is #!yaml|gpg\nckan:\n"
    )
    block = yaml.safe_load(told)["ckan"]["extensions"]["ckanext-mycity"]["token"]
    assert PLANTED not in told
    done = subprocess.run(
        ["gpg", "--homedir", keyring.keyring, "--batch", "--quiet", "--decrypt"], input=block, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.stdout == f"{PLANTED}-é"


def test_a_secret_that_cannot_be_encrypted_is_not_in_the_complaint(
    keyring: FakeMaster, ask: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for text, recipients, sentence in (
        (f"{PLANTED}\n", "nobody", "gpg cannot encrypt for nobody: "),
        (f"{PLANTED}\n", 12345678, "gpg cannot encrypt for 12345678: "),
        (" \n", "", "there was no secret on standard input; type it, or pipe it in"),
    ):
        (tmp_path / "stdin").write_text(text)
        with open(tmp_path / "stdin", encoding="utf-8") as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            told = ask("ckan.encrypt", "production", "database:password", recipients=recipients)
        assert told["retcode"] == 1 and sentence in told["error"] and PLANTED not in str(told)
    keyring.keyring = str(tmp_path / "none")
    (tmp_path / "stdin").write_text(PLANTED)
    with open(tmp_path / "stdin", encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        told = ask("ckan.encrypt", "production", "database:password")
    assert "there is no key to decrypt with in" in told["error"]


def test_what_a_run_for_one_deploy_says_of_an_extension_is_not_shown_again(master: FakeMaster, ask: Callable) -> None:
    override = {"ckanext-mycity": {"ref": "x", "token": PLANTED}}
    told = [ask("ckan_fleet.plan", "production", extensions=override, job=JOB)]
    told += [ask("ckan.lock_status", "production"), ask("ckan.status", "production")]
    told += [ask("ckan_fleet.stage", "production", "build", job=JOB), ask("ckan_fleet.close", "production", job=JOB)]
    assert PLANTED not in json.dumps([told, master.fired])


# What a caller sees who has one half only.


SENTENCE = "the formula's package ckan_deploy cannot be imported ("


@pytest.fixture(params=["nothing", "half", "broken", "another version"])
def half(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Directories of Salt's that do not fit together: the package is missing, half there, or another one."""
    place = tmp_path / "half"
    shutil.copytree(REPO / "_runners", place / "runners")
    shutil.copytree(REPO / "_pillar", place / "pillar")
    (place / "utils").mkdir()
    if request.param == "nothing":
        return place
    package = place / "utils/ckan_deploy"
    shutil.copytree(REPO / "_utils/ckan_deploy", package, ignore=shutil.ignore_patterns("__pycache__"))
    if request.param == "half":
        shutil.rmtree(package / "fleet")
    elif request.param == "broken":
        (package / "errors.py").write_text("def (")
    else:
        shutil.copytree(package, place / "site-packages/ckan_deploy")
        init = package / "__init__.py"
        init.write_text(init.read_text().replace('VERSION = "', 'VERSION = "9.'))
    return place


CALL = """
import json, logging, sys
import salt.config, salt.loader
place, installed = sys.argv[1:3]
sys.path.insert(0, installed) if installed else None
opts, minion = salt.config.master_config(None), salt.config.minion_config(None)
# What a master or a minion of this machine has synced.
sys.path[:] = [path for path in sys.path if "extmods" not in path]
opts.update(root_dir=place, cachedir=place + "/cache", pki_dir=place + "/pki", sock_dir=place + "/s", config_dir=place,
            extension_modules=place + "/ext", runner_dirs=[place + "/runners"], utils_dirs=[place + "/utils"])
runners = salt.loader.runner(opts, utils=salt.loader.utils(opts))
more = {"ckan.encrypt": ["key"], "ckan.maintenance": ["on"], "ckan.lock": ["x"], "ckan_fleet.stage": ["build"]}
said = {name: runners[name]("production", *more.get(name, [])) for name in json.loads(sys.argv[3])}
minion.update({**{name: opts[name] for name in ("root_dir", "cachedir", "pki_dir", "extension_modules", "utils_dirs")},
               "pillar_dirs": [place + "/pillar"], "id": "web1", "grains": {}})
pillars = salt.loader.pillars(minion, {})
said["pillar"] = pillars["ckan_secrets"]("web1", {"ckan": {"env": "production"}}, place + "/made")
print(json.dumps(said))
"""


def test_a_package_that_does_not_fit_is_a_sentence_with_what_to_type_and_an_exit_code(half: Path) -> None:
    installed = half / "site-packages"
    arguments = [str(half), str(installed) if installed.exists() else "", json.dumps(list(SIGNATURES))]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CALL, *arguments], capture_output=True, text=True, check=False,
        cwd=half, env={**os.environ, "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    for function in SIGNATURES:
        told = said[function]
        if function == "ckan_fleet.steps":
            # The first step of the orchestration says it.
            assert told == [""]
            continue
        sentence = told["error"] if function.startswith("ckan.") else told["comment"]
        assert sentence.startswith(SENTENCE) and sentence.endswith("); type: salt-run saltutil.sync_all")
        assert told.get("retcode") == 1 or told["ok"] is False
    assert said["pillar"] == {}
    assert f"the secrets of CKAN for web1 cannot be had: {SENTENCE}" in done.stderr
