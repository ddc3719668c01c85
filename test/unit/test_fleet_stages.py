"""The stages of a run over hosts: in which order who is asked for what, and what becomes of a failure."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from ckan_deploy.errors import FormulaError
from ckan_deploy.fleet import begin, end, revert, stages
from ckan_deploy.fleet.record import Record
from ckan_deploy.fleet.run import Run
from parts.fake_master import FIRST, JOB, SECOND, FakeMaster

DEPLOY, ROLLBACK = ("build", "check", "migrate", "activate", "verify"), ("activate", "verify")


@pytest.fixture
def master(tmp_path: Path) -> FakeMaster:
    return FakeMaster(tmp_path)


@pytest.fixture(autouse=True)
def last_words(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the terminal would show last."""
    said: list[str] = []
    monkeypatch.setattr("ckan_deploy.fleet.progress.last_word", said.append)
    monkeypatch.setattr("ckan_deploy.fleet.revert.PATIENCE", 0)
    return said


def run_of(master: FakeMaster) -> Run:
    run = Run.under_way(master, "production", JOB)
    assert run
    return run


def orchestrate(master: FakeMaster, kind: str = "deploy", groups: list[str] | None = None, **about: Any) -> str:
    """What the steps of the orchestration do, each with the run as the file has it; returns the last sentence."""
    planned = begin.plan(master, "production", kind, job=JOB, groups=groups, **about)
    assert planned["ok"], planned
    names = groups or [""]
    database = ["downgrade"] if kind == "rollback" and (about.get("downgrade") or about.get("restore")) else []
    once = "migrate" if kind == "deploy" else "downgrade"
    steps = [(name, group) for group in names for name in ([*DEPLOY] if kind == "deploy" else [*database, *ROLLBACK])
             if name != once or group == names[0]]  # fmt: skip
    for name, group in [*steps, ("index", ""), ("finish", "")]:
        told = stages.stage(run_of(master), name, group)
        if not told["ok"]:
            return str(revert.revert(run_of(master))["comment"])
    return str(end.close(run_of(master))["comment"])


def failing(function: str, *hosts: str, cause: str = "boom") -> dict[str, Any]:
    def fail(host: str, **about: Any) -> Any:
        if host in hosts:
            raise FormulaError(cause)
        return {"current": SECOND}

    return {function: fail}


def test_a_deploy_goes_through_its_stages_and_is_noted_as_wanted(master: FakeMaster, last_words: list[str]) -> None:
    text = orchestrate(master, reason="the news")
    release = master.current["web1"]
    assert master.functions() == [
        "ckan_plan.ready", "ckan_release.plan", "ckan_release.contents", "ckan_release.build", "ckan_release.check",
        "ckan_release.migrate", "ckan_release.start", "ckan_release.activate", "ckan_release.verify",
        "ckan_release.finish",
    ]  # fmt: skip
    assert [host for host, _ in master.told("ckan_release.migrate")] == ["web1"]
    assert master.told("ckan_release.build")[1] == (
        "web2",
        {"release": release, "contents": {"extensions": {"ckanext-mycity": "abc"}}, "extensions": {}, "by": "ann",
         "job": JOB},
    )  # fmt: skip
    assert master.told("ckan_release.finish")[0][1] == {"release": release, "prune": True, "by": "ann", "job": JOB}
    assert re.fullmatch(
        rf"{release} is live in production on web1, web2 \(build [\d.]+ s, check [\d.]+ s, .* finish [\d.]+ s\)",
        text,
    )
    record = Record(master, "production")
    assert (record.wanted()["release"], record.wanted()["kind"], record.wanted()["by"]) == (release, "deploy", "ann")
    assert record.wanted()["contents"] == {"extensions": {"ckanext-mycity": "abc"}}
    assert (record.lock(), record.run()["result"]) == (None, "ok")
    result, took, report = last_words[0].splitlines()
    assert (result, report) == (text, f"report: {record.folder}/reports/{release}-deploy-{JOB}.html")
    assert re.fullmatch(r"took: [\d.]+ s", took)


@pytest.mark.parametrize("maintenance", [False, True], ids=["open", "in maintenance"])
def test_no_host_is_asked_to_migrate_where_the_check_found_nothing_to_do(master: FakeMaster, maintenance: bool) -> None:
    """But the portal is closed for it, where somebody has asked for that."""
    master.answers["ckan_release.check"] = {"pending": {}, "migrates": False}
    begin.plan(master, "production", maintenance=maintenance, job=JOB)
    said = {name: stages.stage(run_of(master), name) for name in DEPLOY}
    assert all(answer["ok"] for answer in said.values())
    assert bool(master.told("ckan_release.migrate")) == maintenance
    # As Salt lists it: `Changed`, or `Clean`.
    assert (said["build"]["changed"], said["verify"]["changed"]) == ({"build": "web1, web2"}, {})
    if not maintenance:
        assert (said["migrate"]["comment"], "migrate" in run_of(master).seconds) == ("nothing to do", False)
        assert "changed" not in said["migrate"]


def test_the_app_server_is_started_beside_the_check_unless_the_portal_is_closed_for_a_migration(
    master: FakeMaster,
) -> None:
    for maintenance in (False, True):
        master.answers["ckan_release.check"] = {"migrates": False}
        orchestrate(master, maintenance=maintenance)
        told = master.told("ckan_release.check")[-1][1]
        assert (told.get("boots", False), told.get("closes", False)) == (not maintenance, maintenance)


def test_an_old_app_server_that_still_finishes_requests_is_told_at_the_end_and_is_no_failure(
    master: FakeMaster,
) -> None:
    master.answers["ckan_release.finish"] = lambda host, **_: {"draining": [FIRST] if host == "web2" else []}
    said = f"the app server of {FIRST} on web2 still finishes requests, and supervisor sees to its end: salt-run "
    said += "ckan.status production tells what came of it"
    assert said in orchestrate(master)
    assert Record(master, "production").run()["result"] == "ok"


def test_each_stage_is_an_event_when_it_begins_and_one_for_each_host(master: FakeMaster) -> None:
    orchestrate(master)
    release = master.current["web1"]
    assert {tag.rpartition("/")[0] for tag, _ in master.fired} == {"ckan/deploy/production"}
    begun = [data["stage"] for _, data in master.fired if data["result"] == "started"]
    assert begun == ["build", "check", "migrate", "activate", "verify", "finish"]
    assert [(data["host"], data["result"]) for tag, data in master.fired if tag.endswith("/activate")] == [
        ("", "started"), ("web1", "ok"), ("web2", "ok"),
    ]  # fmt: skip
    assert all(
        (data["env"], data["kind"], data["release"], data["by"], data["job"], data["hosts"])
        == ("production", "deploy", release, "ann", JOB, ["web1", "web2"])
        for _, data in master.fired
    )
    assert (master.fired[-1][1]["stage"], master.fired[-1][1]["result"]) == ("done", "ok")


def test_a_bus_that_is_down_does_not_stop_a_run(master: FakeMaster, monkeypatch: pytest.MonkeyPatch) -> None:
    def fire(*_: Any) -> None:
        raise OSError("no bus")

    monkeypatch.setattr(master, "fire", fire)
    assert " is live in production on web1, web2 " in orchestrate(master)


@pytest.mark.parametrize("stage", DEPLOY)
def test_a_failure_on_one_host_at_any_stage_reverts_all_hosts(
    master: FakeMaster, stage: str, last_words: list[str]
) -> None:
    host = "web1" if stage == "migrate" else "web2"
    master.answers = failing(f"ckan_release.{stage}", host)
    text = orchestrate(master)
    release = master.told("ckan_release.build")[0][1]["release"]
    reason = f"{host} failed at {stage}: boom"
    assert text == f"deploy of {release} to production failed -- {reason} -- web1, web2 on {FIRST}"
    # Result, cause, what each host serves, what to type, and how long it took, a line each.
    assert last_words[-1].splitlines()[:4] == [
        f"deploy of {release} to production failed, and was reverted", f"cause: {reason}",
        f"now: web1, web2 on {FIRST}",
        "type: when that is mended, salt-run state.orch orch.deploy pillar='{env: production}'",
    ]  # fmt: skip
    assert [line.partition(":")[0] for line in last_words[-1].splitlines()[4:]] == ["took", "report"]
    assert [kwargs for _, kwargs in master.told("ckan_release.abort")] == [
        {"release": release, "reason": reason, "by": "ann", "job": JOB}
    ] * 2
    record = Record(master, "production")
    assert (record.lock(), record.run()["result"], record.wanted()["release"]) == (None, "failed", FIRST)
    assert (master.fired[-1][0], master.fired[-1][1]["result"]) == ("ckan/deploy/production/revert", "failed")
    assert "ckan_release.finish" not in master.functions()


def test_what_fails_when_the_release_serves_already_is_a_warning(master: FakeMaster) -> None:
    master.answers = failing("ckan_release.finish", "web2", cause="a worker had to be ended")
    text = orchestrate(master)
    assert text.endswith("; web2 at finish: a worker had to be ended")
    assert Record(master, "production").run()["result"] == "ok"
    assert [data["result"] for tag, data in master.fired if tag.endswith("/finish")] == ["started", "ok", "warning"]


def test_h01_a_run_whose_services_do_not_stay_up_is_live_and_not_ok(master: FakeMaster, last_words: list[str]) -> None:
    down = "worker default does not stay up: it ended within 3 s of its start; see /var/log/x.log"
    master.answers["ckan_release.finish"] = lambda host, **about: {"down": [down] if host == "web2" else []}
    text = orchestrate(master)
    release = master.current["web1"]
    assert text.startswith(f"{release} is live in production on web1, web2 (")
    assert text.endswith(
        f"; but not all of it stays up: web2: {down}; mend that, then type: salt -L web2 state.apply ckan"
    )
    lines = last_words[-1].splitlines()
    assert "; ".join(lines[:2]) == text and lines[0].endswith(" s)")
    # Nothing is reverted, and the exit code says that it is not well.
    assert "ckan_release.abort" not in master.functions()
    assert (master.fired[-1][1]["stage"], master.fired[-1][1]["result"]) == ("done", "failed")
    run = Run.of(master, Record(master, "production").run())
    assert (run.result, end.end(run, "done", "x")["ok"]) == ("ok", False)


def test_a_group_follows_the_one_before_and_a_failure_stops_the_rest(tmp_path: Path) -> None:
    master = FakeMaster(tmp_path, ("web1", "web2", "web3"), {"web1": "canary"})
    orchestrate(master, groups=["canary", "rest"])
    asked = [(function.partition(".")[2], host) for function, host, _ in master.asked]
    assert asked.index(("verify", "web1")) < asked.index(("build", "web2"))
    assert [host for name, host in asked if name == "migrate"] == ["web1"]
    assert asked[-3:] == [("finish", "web1"), ("finish", "web2"), ("finish", "web3")]
    assert Record(master, "production").wanted()["kind"] == "deploy"
    master.asked.clear()
    before = master.current["web1"]
    time.sleep(1.01 - time.time() % 1)
    master.answers = failing("ckan_release.check", "web1")
    assert f"web1 failed at check: boom -- web1, web2, web3 on {before}" in orchestrate(
        master, groups=["canary", "rest"]
    )
    assert {host for host, _ in master.told("ckan_release.build")} == {"web1"}
    assert {host for host, _ in master.told("ckan_release.abort")} == {"web1", "web2", "web3"}


def test_not_before_the_last_group_is_verified_is_the_release_wanted(tmp_path: Path) -> None:
    master = FakeMaster(tmp_path, ("web1", "web2"), {"web1": "canary"})
    begin.plan(master, "production", job=JOB, groups=["canary", "rest"])
    for name in DEPLOY:
        assert stages.stage(run_of(master), name, "canary")["ok"]
    assert Record(master, "production").wanted()["release"] == FIRST
    for name in ("build", "check", "activate", "verify"):
        stages.stage(run_of(master), name, "rest")
    assert Record(master, "production").wanted()["release"] == master.current["web1"] != FIRST


@pytest.mark.parametrize(
    ("name", "group", "sentence"),
    [
        ("downgrade", "", "'downgrade' is no stage of a deploy; the stages are build, check, migrate, activate"),
        ("way back", "", "'way back' is no stage of a deploy"),
        ("build", "canary", "'canary' is no group of this run"),
    ],
)
def test_a_stage_or_a_group_that_there_is_none_of_is_refused(
    master: FakeMaster, name: str, group: str, sentence: str
) -> None:
    begin.plan(master, "production", job=JOB)
    asked = len(master.asked)
    with pytest.raises(FormulaError) as told:
        stages.stage(run_of(master), name, group)
    assert sentence in str(told.value) and len(master.asked) == asked


def test_a_run_with_groups_has_no_group_without_a_name(tmp_path: Path) -> None:
    master = FakeMaster(tmp_path, ("web1", "web2"), {"web1": "canary"})
    begin.plan(master, "production", job=JOB, groups=["canary", "rest"])
    with pytest.raises(FormulaError, match="'' is no group of this run; its groups are canary, rest"):
        stages.stage(run_of(master), "build")


def test_where_nothing_is_to_be_deployed_no_stage_does_anything(master: FakeMaster) -> None:
    master.changes = []
    text = orchestrate(master)
    assert text == "Nothing to deploy to production: web1, web2 have it all; force: true deploys all the same"
    assert master.functions() == ["ckan_plan.ready", "ckan_release.plan", "ckan_release.contents"]
    assert not Path(Record(master, "production").folder, "reports").exists()


def test_a_host_that_is_down_is_named_at_the_end(master: FakeMaster) -> None:
    master.down.add("web2")
    assert "; web2 is down and catches up at its next highstate: salt web2 state.highstate" in orchestrate(
        master, allow_down=["web2"]
    )


def test_what_the_stages_say_goes_on_to_the_hosts_that_need_it(master: FakeMaster) -> None:
    migration = {"dump": "x", "migrated": {"core": "b"}}
    master.answers = {
        "ckan_release.migrate": {"migrated": True, "migration": migration, "warnings": ["no dump"]},
        "ckan_release.verify": {"reindex": True},
    }
    begin.plan(master, "production", job=JOB)
    said = {name: stages.stage(run_of(master), name)["comment"] for name in (*DEPLOY, "index", "finish")}
    assert re.fullmatch(r"migrate: web1 in [\d.]+ s; migrated; no dump", said["migrate"])
    assert re.fullmatch(r"index: web1 in [\d.]+ s; rebuilt, since the schema changed", said["index"])
    release = run_of(master).release
    about = {"release": release, "by": "ann", "job": JOB}
    assert master.told("ckan_release.start")[1] == ("web2", {**about, "migration": migration})
    assert master.told("ckan_index.rebuild") == [("web1", about)]
    assert master.told("ckan_release.finish")[0][1] == {**about, "prune": True, "index": {"hash": "1"}}


def test_on_one_host_alone_start_and_activate_are_one_job(tmp_path: Path) -> None:
    master = FakeMaster(tmp_path, ["web1"])
    migration = {"dump": "x", "migrated": {"core": "b"}}
    master.answers = {"ckan_release.migrate": {"migrated": True, "migration": migration}}
    orchestrate(master)
    release = master.current["web1"]
    about = {"release": release, "by": "ann", "job": JOB, "starts": True, "migration": migration}
    assert master.told("ckan_release.activate") == [("web1", about)]
    assert master.told("ckan_release.start") == []
    orchestrate(master, "rollback", to=FIRST)
    assert [about["starts"] for _, about in master.told("ckan_release.rollback")] == [True]
    assert all("ahead" in about for _, about in master.told("ckan_release.start"))


def test_one_host_that_is_there_already_is_only_started(tmp_path: Path) -> None:
    master = FakeMaster(tmp_path, ["web1"])
    begin.plan(master, "production", "rollback", to=SECOND, job=JOB)
    run = run_of(master)
    run.left["web1"] = run.release
    assert stages.stage(run, "activate")["ok"]
    assert [about for _, about in master.told("ckan_release.start") if "ahead" not in about] == [
        {"release": SECOND, "by": "ann", "job": JOB}
    ]
    assert master.told("ckan_release.rollback") == []


def test_a_group_of_one_host_starts_and_activates_in_one_job(tmp_path: Path) -> None:
    master = FakeMaster(tmp_path, ["web1", "web2", "web3"], {"web1": "canary"})
    orchestrate(master, groups=["canary", "rest"])
    assert [host for host, _ in master.told("ckan_release.start")] == ["web2", "web3"]
    assert [about.get("starts", False) for _, about in master.told("ckan_release.activate")] == [True, False, False]


def test_a_host_alone_that_does_not_start_is_reverted(tmp_path: Path) -> None:
    master = FakeMaster(tmp_path, ["web1"])
    master.answers = failing("ckan_release.activate", "web1", cause="the app server does not answer")
    assert "web1 failed at activate: the app server does not answer" in orchestrate(master)
    assert master.told("ckan_release.abort")


def test_a_long_rebuild_of_the_index_is_told_now_and_then(master: FakeMaster, monkeypatch: pytest.MonkeyPatch) -> None:
    def rebuild(host: str, **about: Any) -> dict[str, Any]:
        deadline = time.monotonic() + 5
        while not master.told("ckan_app.index_status") and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        return {"rebuilt": True, "why": "it was asked for", "index": {}}

    monkeypatch.setattr(stages, "LOOK_SECONDS", 0.01)
    master.answers = {
        "ckan_release.verify": {"reindex": True}, "ckan_index.rebuild": rebuild,
        "ckan_app.index_status": {"rebuild": "500 of 9000"},
    }  # fmt: skip
    orchestrate(master)
    told = [data for tag, data in master.fired if tag.endswith("/index") and data["result"] == "progress"]
    assert told and (told[0]["host"], told[0]["comment"]) == ("web1", "500 of 9000")


def test_a_rollback_brings_hosts_that_are_elsewhere_back_together(master: FakeMaster) -> None:
    master.current = {"web1": SECOND, "web2": FIRST}
    text = orchestrate(master, "rollback", to=FIRST, reason="search is broken", force=True, accept_schema=True)
    assert text.startswith(f"{FIRST} is live in production on web1, web2 (activate ")
    assert master.told("ckan_release.rollback") == [
        ("web1", {"to": FIRST, "reason": "search is broken", "force": True, "finish": False, "accept_schema": True,
                  "by": "ann", "job": JOB}),
    ]  # fmt: skip
    assert [host for host, about in master.told("ckan_release.start") if "ahead" not in about] == ["web1", "web2"]
    (finish,) = {(about["prune"], about["again"]) for _, about in master.told("ckan_release.finish")}
    # The database is as it was: what was steady then is not watched again.
    assert finish == (False, True)
    assert "ckan_schema.downgrade" not in master.functions()


def test_a_rollback_that_fails_on_one_host_leaves_all_where_they_were(master: FakeMaster) -> None:
    master.current = dict.fromkeys(master.current, SECOND)
    master.answers = failing("ckan_release.verify", "web2")
    text = orchestrate(master, "rollback")
    assert text == (
        f"rollback of {FIRST} to production failed -- web2 failed at verify: boom -- web1, web2 on {SECOND}"
    )
    assert [kwargs for _, kwargs in master.told("ckan_release.activate")] == [
        {"release": SECOND, "reason": "web2 failed at verify: boom", "by": "ann", "job": JOB, "force": True}
    ] * 2


def changed_database(kept_as: str = "") -> dict[str, Any]:
    found = {"downgrade": not kept_as, "restore": FIRST if kept_as else "", "maintenance": True, "different": {}}
    return {
        "ckan_schema.way_back": found, "ckan_schema.downgrade": {"kept_as": kept_as},
        "ckan_backup.list": [{"name": FIRST}],
    }  # fmt: skip


@pytest.mark.parametrize("kept_as", ["", "ckan_default_old"])
def test_a_rollback_that_changed_the_database_and_fails_brings_it_forward_again(
    master: FakeMaster, kept_as: str
) -> None:
    master.current = dict.fromkeys(master.current, SECOND)
    master.answers = {**changed_database(kept_as), **failing("ckan_release.rollback", "web2")}
    how = {"restore": FIRST} if kept_as else {"downgrade": True}
    text = orchestrate(master, "rollback", **how)
    assert master.told("ckan_schema.downgrade") == [
        ("web1", {"release": FIRST, "restore": FIRST if kept_as else "", "by": "ann", "job": JOB})
    ]
    assert master.told("ckan_schema.upgrade") == [
        ("web1", {"release": SECOND, "kept_as": kept_as, "by": "ann", "job": JOB})
    ]
    assert text.endswith(f" -- web1, web2 on {SECOND}")
    # Visitors are let in again.
    assert [host for host, _ in master.told("ckan_maintenance.off")] == ["web1", "web2"]
    order = master.functions()
    assert order.index("ckan_schema.upgrade") < order.index("ckan_release.activate")


def test_a_database_that_cannot_be_brought_forward_is_told_with_what_to_type(master: FakeMaster) -> None:
    master.current = dict.fromkeys(master.current, SECOND)
    master.answers = {
        **changed_database("old"), **failing("ckan_schema.upgrade", "web1", cause="no space"),
        **failing("ckan_release.rollback", "web1"),
    }  # fmt: skip
    assert orchestrate(master, "rollback", restore=FIRST).endswith(
        f" -- the database could not be brought back to {SECOND} (no space): type: salt web1 ckan_schema.upgrade "
        f"{SECOND} kept_as=old"
    )


def test_after_a_restore_the_index_is_filled_anew(master: FakeMaster) -> None:
    master.current = dict.fromkeys(master.current, SECOND)
    master.answers = changed_database("old")
    orchestrate(master, "rollback", restore=FIRST)
    assert master.told("ckan_index.rebuild") == [("web1", {"release": FIRST, "force": True, "by": "ann", "job": JOB})]


def test_maintenance_of_a_run_begins_with_the_migration_and_ends_when_all_are_verified(master: FakeMaster) -> None:
    master.answers["ckan_maintenance.on"] = lambda host, **about: {"changed": host == "web1", "warnings": ["a job"]}
    text = orchestrate(master, maintenance=True)
    order = master.functions()
    closed, opened = order.index("ckan_maintenance.on"), order.index("ckan_maintenance.off")
    assert order.index("ckan_release.check") < closed < order.index("ckan_release.migrate")
    assert order.index("ckan_release.verify") < opened < order.index("ckan_release.finish")
    assert master.told("ckan_maintenance.on")[0][1] == {"reason": "deploy", "by": "ann", "stop_workers": True}
    # A host that was in maintenance before stays in it.
    assert [host for host, _ in master.told("ckan_maintenance.off")] == ["web1"]
    assert text.endswith("; web1: a job; web2: a job")


@pytest.mark.parametrize("message", ["New servers", {"en": "New servers", "de": "Neue Server"}])
def test_visitors_read_the_message_and_the_end_that_a_run_was_given(master: FakeMaster, message: Any) -> None:
    until = "2099-01-01T10:00+00:00"
    orchestrate(master, maintenance=True, message=message, until=until)
    asked = master.told("ckan_maintenance.on")
    said = {"message": message, "until": until}
    # All hosts are asked at plan, and nothing is turned on by it.
    assert asked[:2] == [(host, {**said, "test": True}) for host in ("web1", "web2")]
    assert asked[2:] == [
        (host, {"reason": "deploy", "by": "ann", "stop_workers": True, **said}) for host in ("web1", "web2")
    ]
    assert master.functions().index("ckan_maintenance.on") < master.functions().index("ckan_release.build")


@pytest.mark.parametrize("kind", ["deploy", "rollback"])
def test_a_message_that_a_host_cannot_show_is_refused_at_plan(master: FakeMaster, kind: str) -> None:
    def on(host: str, **about: Any) -> dict[str, Any]:
        raise FormulaError("message is in fr, but the page is in en")

    master.answers["ckan_maintenance.on"] = on
    told = begin.plan(master, "production", kind, message={"fr": "x"}, job=JOB)
    assert told == {"ok": False, "comment": "web1, web2 failed at plan: message is in fr, but the page is in en"}
    assert Record(master, "production").lock() is None and "ckan_release.plan" not in master.functions()


def test_an_end_that_is_over_before_the_portal_is_closed_is_left_out_and_told(master: FakeMaster) -> None:
    orchestrate(master, maintenance=True, message="New servers", until="2020-01-01T10:00Z")
    about = master.told("ckan_maintenance.on")[-1][1]
    assert about["message"] == "New servers" and "until" not in about
    (warning,) = Record(master, "production").run()["warnings"]
    assert warning.startswith("the expected end 2020-01-01T10:00Z was over before visitors got the maintenance page")


def test_a_check_that_finds_a_migration_to_be_made_in_maintenance_closes_the_portal(master: FakeMaster) -> None:
    master.answers["ckan_release.check"] = {"pending": {"core": "b"}, "maintenance": True}
    orchestrate(master)
    assert "ckan_maintenance.on" in master.functions()


def test_a_portal_that_cannot_be_closed_is_not_migrated(master: FakeMaster) -> None:
    master.answers = failing("ckan_maintenance.on", "web2", cause="no page")
    master.answers["ckan_schema.give_back"] = {"kept_as": ""}
    fail = master.answers["ckan_maintenance.on"]
    master.answers["ckan_maintenance.on"] = lambda host, **about: {**fail(host), "changed": True}
    text = orchestrate(master, maintenance=True)
    assert "web2 failed at migrate: no page" in text and "ckan_release.migrate" not in master.functions()
    # Also the one that failed: nobody knows how far it came.
    assert [host for host, _ in master.told("ckan_maintenance.off")] == ["web1", "web2"]


def test_a_deploy_that_closed_the_portal_and_fails_gives_the_database_back(master: FakeMaster) -> None:
    master.answers = failing("ckan_release.verify", "web2")
    text = orchestrate(master, maintenance=True)
    assert text.endswith(
        f" -- web1, web2 on {FIRST} -- the database is as it was before the migration (ckan_default_old has what came "
        "of it)"
    )
    order = master.functions()
    assert (
        order.index("ckan_schema.give_back") < order.index("ckan_release.abort") < order.index("ckan_maintenance.off")
    )


def test_what_a_restore_did_not_give_back_is_said(master: FakeMaster) -> None:
    lost = ["alter role metabase in database ckan_default set work_mem to '8MB'", "rights: role gone does not exist"]
    master.answers = {
        **failing("ckan_release.verify", "web2"), "ckan_schema.give_back": {"kept_as": "kept", "differs": lost},
    }  # fmt: skip
    text = orchestrate(master, maintenance=True)
    assert text.endswith(f"(kept has what came of it), but for what did not come back: {lost[0]}; {lost[1]}")
    # The hosts were told at check that the portal would be closed, so they have tried a restore.
    assert {about["closes"] for _, about in master.told("ckan_release.check")} == {True}


def test_a_database_that_cannot_be_given_back_keeps_the_portal_closed(master: FakeMaster) -> None:
    master.answers = {
        **failing("ckan_release.verify", "web2"), **failing("ckan_schema.give_back", "web1", cause="no dump"),
    }  # fmt: skip
    text = orchestrate(master, maintenance=True)
    release = master.told("ckan_release.build")[0][1]["release"]
    assert text.endswith(
        "the database could not be given back as it was before (no dump), so the portal stays closed: restore it, such "
        f"as by: salt web1 ckan_backup.restore {release} confirm={release}; then open it: salt -L web1,web2 "
        "ckan_maintenance.off"
    )
    assert master.told("ckan_maintenance.off") == []


def test_a_deploy_that_migrated_an_open_portal_and_fails_says_in_what_the_database_differs(master: FakeMaster) -> None:
    master.answers = {
        "ckan_release.migrate": {"migrated": True, "migration": {"core": "b"}},
        **failing("ckan_release.verify", "web2"),
        "ckan_schema.mismatch": "core is at b, which the release does not know",
    }  # fmt: skip
    text = orchestrate(master)
    assert text.endswith(" -- the database stays migrated: core is at b, which the release does not know")
    assert master.told("ckan_schema.mismatch") == [("web1", {"release": FIRST})]


def test_a_host_that_could_not_be_reverted_is_named_with_what_to_type(master: FakeMaster) -> None:
    def check(host: str, **about: Any) -> Any:
        master.down.add("web2")
        raise FormulaError("boom")

    master.answers["ckan_release.check"] = check
    text = orchestrate(master)
    release = master.told("ckan_release.build")[0][1]["release"]
    silent = "does not answer; start its salt-minion, then repeat"
    assert text.endswith(
        f"web1 on {FIRST} -- web2 could not be reverted ({silent}): when it is up, type: salt web2 ckan_release.abort "
        f"{release}"
    )
    assert Record(master, "production").lock() is None


def test_a_rollback_names_the_release_to_activate_on_a_host_that_could_not_be_reverted(master: FakeMaster) -> None:
    master.current = dict.fromkeys(master.current, SECOND)
    master.answers = {**failing("ckan_release.verify", "web1"), **failing("ckan_release.activate", "web2", cause="no")}
    assert orchestrate(master, "rollback").endswith(
        f"web2 could not be reverted (no): when it is up, type: salt web2 ckan_release.activate {SECOND} force=True"
    )


def test_a_host_that_stays_in_maintenance_is_named_with_what_to_type(master: FakeMaster) -> None:
    master.answers = {**failing("ckan_release.verify", "web1"), **failing("ckan_maintenance.off", "web2", cause="no")}
    assert "web2 could not be reverted (no; it is in maintenance, too: salt web2 ckan_maintenance.off): when" in (
        orchestrate(master, maintenance=True)
    )


def test_hosts_are_waited_for_in_a_revert(master: FakeMaster, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(host: str, **about: Any) -> Any:
        master.down.update(("web1", "web2"))
        raise FormulaError("boom")

    def sleep(_: float) -> None:
        master.down.pop()

    monkeypatch.setattr("ckan_deploy.fleet.revert.PATIENCE", 60)
    monkeypatch.setattr("ckan_deploy.fleet.revert.time.sleep", sleep)
    master.answers["ckan_release.check"] = check
    assert orchestrate(master).endswith(f" -- web1, web2 on {FIRST}")


def test_a_first_deploy_that_fails_leaves_no_release_as_before(master: FakeMaster) -> None:
    master.current = dict.fromkeys(master.current, "")
    master.answers = failing("ckan_release.check", "web1")
    assert orchestrate(master).endswith(" -- web1, web2 on no release (as before)")


def test_a_dead_run_is_reverted_before_another_one_begins(master: FakeMaster) -> None:
    begin.plan(master, "production", job=JOB)
    stages.stage(run_of(master), "build")
    dead = run_of(master).release
    record = Record(master, "production")
    lock = Path(record.folder, "lock.json")
    lock.write_text(re.sub(r'"started": [\d.]+', '"started": 1.0', lock.read_text()))
    refused = begin.plan(master, "production", job="2")
    assert "it is stale" in refused["comment"] and "repeat with steal: true" in refused["comment"]
    # In vain: the lock stays that of the dead run.
    master.down.add("web2")
    refused = begin.plan(master, "production", job="2", steal=True)
    assert "web2 could not be reverted" in refused["comment"] and record.lock().job == JOB
    master.down.clear()
    assert begin.plan(master, "production", job="2", steal=True)["ok"]
    aborted = master.told("ckan_release.abort")[-1][1]
    assert aborted == {"release": dead, "reason": "the run died", "by": "ann", "job": "2"}
    assert record.lock().job == "2"


def test_a_refusal_after_a_dead_run_was_reverted_says_that_hosts_were_touched(
    master: FakeMaster, last_words: list[str]
) -> None:
    begin.plan(master, "production", job=JOB)
    stages.stage(run_of(master), "build")
    lock = Path(Record(master, "production").folder, "lock.json")
    lock.write_text(re.sub(r'"started": [\d.]+', '"started": 1.0', lock.read_text()))
    master.answers = failing("ckan_release.plan", "web1", cause="no base")
    refused = begin.plan(master, "production", job="2", steal=True)
    assert refused["comment"] == (
        f"web1 failed at plan: no base -- what the run before had left was reverted first: web1, web2 on {FIRST}"
    )
    assert last_words[-1].startswith("deploy to production was refused: web1 failed at plan")
    assert "nothing was touched" not in last_words[-1]


def test_a_run_that_lost_its_lock_does_not_say_that_it_had_touched_nothing(master: FakeMaster) -> None:
    begin.plan(master, "production", job=JOB)
    stages.stage(run_of(master), "build")
    Record(master, "production").free()
    assert revert.nothing(master, "production", JOB) == (
        "the run has lost its deploy lock, so it reverts nothing; look with: salt-run ckan.status production"
    )
    assert revert.nothing(master, "production", "2") == revert.nothing(master, {"x": 1}, JOB) == "nothing was touched"


def test_a_run_that_had_ended_is_told_so_when_its_lock_is_freed(master: FakeMaster) -> None:
    begin.plan(master, "production", job=JOB)
    run = run_of(master)
    run.ended, run.result = "2026-01-01T00:00:00Z", "ok"
    run.save()
    assert revert.recover(master, "production") == {"ok": True, "comment": "it had ended (ok)"}
    assert revert.nothing(master, "production", JOB) == "the run has ended already (ok)"
