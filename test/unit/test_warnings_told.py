"""What preflight, check and migrate have found reaches people: each sentence once in each place where they look."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import quick
from attrs import evolve
from quick import RESOLUTION, Quick

from ckan_deploy.build import resolution
from ckan_deploy.database import backends, migration, probe
from ckan_deploy.deploy import status as host_status
from ckan_deploy.fleet import begin, end, history, stages, status
from ckan_deploy.fleet.record import Record
from ckan_deploy.fleet.run import Run
from ckan_deploy.settings.fingerprint import hashes
from parts.fake_master import FIRST, JOB, FakeMaster

STAGES = ("build", "check", "migrate", "activate", "verify", "index", "finish")
PREFLIGHT, CHECK, MIGRATE = "no sandbox", "an option that nobody knows", "the datastore lacks the view _table_metadata"
OPTIONS = (
    "scheming.dataset_schemas",
    "ckan.site_descripton",
    "ckanext.spatial.srid",
    "spatial.srid",
    "ckan.titel",
    "a.b",
)
ALL = (PREFLIGHT, CHECK, MIGRATE)


@pytest.fixture
def last_words(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr("ckan_deploy.fleet.progress.last_word", said.append)
    return said


@pytest.fixture
def deployed(tmp_path: Path, last_words: list[str], capsys: pytest.CaptureFixture[str]) -> Iterator[dict[str, Any]]:
    """A deploy over two hosts, which found something at plan, at check (both hosts) and at migrate (one of them)."""
    master = FakeMaster(tmp_path)
    plan = master._ckan_release_plan
    master.answers = {
        "ckan_release.plan": lambda host, **about: {**plan(host, **about), "own_remarks": [PREFLIGHT]},
        "ckan_release.check": {"pending": {}, "migrates": True, "warnings": [PREFLIGHT, CHECK]},
        "ckan_release.migrate": {"migrated": False, "migration": {}, "warnings": [MIGRATE]},
    }
    begin.plan(master, "production", job=JOB)
    for name in STAGES:
        assert stages.stage(run_of(master), name)["ok"]
    comment = end.close(run_of(master))["comment"]
    yield {"master": master, "comment": comment, "last": last_words[-1], "progress": capsys.readouterr().err}


def run_of(master: FakeMaster) -> Run:
    run = Run.under_way(master, "production", JOB)
    assert run
    return run


def once(text: str) -> None:
    assert {sentence: text.count(sentence) for sentence in ALL} == dict.fromkeys(ALL, 1), text


def test_the_lines_of_progress_have_each_warning_once(deployed: dict[str, Any]) -> None:
    once(deployed["progress"])
    lines = deployed["progress"].splitlines()
    (at,) = [number for number, line in enumerate(lines) if MIGRATE in line]
    assert lines[at].split()[:2] == ["migrate", "-"] and f"warning: {MIGRATE}" in lines[at]


def test_the_last_lines_have_each_warning_once(deployed: dict[str, Any]) -> None:
    once(deployed["last"])
    assert f"\nwarning: {CHECK}\n" in deployed["last"]
    once(deployed["comment"])


def test_the_report_has_each_warning_once(deployed: dict[str, Any]) -> None:
    (page,) = Path(Record(deployed["master"], "production").folder, "reports").iterdir()
    once(page.read_text())
    assert '<span class="warning">live</span>' in page.read_text()


def test_a_warning_of_one_host_names_it(tmp_path: Path, last_words: list[str]) -> None:
    master = FakeMaster(tmp_path)
    master.answers["ckan_release.check"] = lambda host, **_: {"warnings": [CHECK] if host == "web2" else []}
    begin.plan(master, "production", job=JOB)
    for name in STAGES:
        stages.stage(run_of(master), name)
    assert end.close(run_of(master))["comment"].endswith(f"; web2: {CHECK}")


def test_what_does_not_stay_up_is_no_second_warning(tmp_path: Path, last_words: list[str]) -> None:
    master = FakeMaster(tmp_path)
    master.answers["ckan_release.finish"] = {"warnings": ["worker w ended"], "down": ["worker w ended"]}
    begin.plan(master, "production", job=JOB)
    for name in STAGES:
        stages.stage(run_of(master), name)
    assert end.close(run_of(master))["comment"].count("web1: worker w ended") == 1
    assert run_of_record(master)["warnings"] == []


def run_of_record(master: FakeMaster) -> dict[str, Any]:
    told = Record(master, "production").run()
    assert told
    return told


def test_history_and_status_of_the_fleet_have_each_warning_once(tmp_path: Path) -> None:
    about = {"at": "2026-01-01T00:00:01Z", "release": FIRST, "result": "ok", "job": "1"}
    entries = [{**about, "stage": "check", "warnings": [PREFLIGHT, CHECK]}]
    runs = history.merge({"web1": [{**about, "stage": "migrate", "warnings": [MIGRATE]}, *entries], "web2": entries})
    assert runs[0]["warnings"] == [PREFLIGHT, CHECK, MIGRATE]
    once(history.text(runs))
    master = FakeMaster(tmp_path)
    fine = master._ckan_release_status
    own = {"web1": [PREFLIGHT, CHECK, MIGRATE], "web2": [PREFLIGHT, CHECK]}
    master.answers["ckan_release.status"] = lambda host, **more: {**fine(host, **more), "warnings": own[host]}
    found = status.look(master, "production")
    once(found.text())
    assert f"warning: web1: {MIGRATE}" in found.text() and f"warning: {CHECK}\n" in found.text()
    assert found.wrong == [] and found.to_json()["hosts"]["web2"]["warnings"] == own["web2"]


@pytest.fixture
def undeclared() -> dict[str, str]:
    """What the check finds of options."""
    return {}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, undeclared: dict[str, str]) -> Iterator[Quick]:
    made = quick.make(monkeypatch)
    host = next(made)
    checked = {"pending": {}, "schema": {}, "plugins": [], "datasets": 0, "seconds": 0.0, "ckan_version": "2.12.0"}
    done = {"migrated": False, "migration": {}}
    behind = backends.Backends(remarks=(PREFLIGHT,), versions={"Redis": "7.0.15"})
    monkeypatch.setattr(probe, "check", lambda *_: {**checked, "warnings": [CHECK], "undeclared": dict(undeclared)})
    monkeypatch.setattr(migration, "run", lambda *_: {**done, "warnings": [MIGRATE]})
    monkeypatch.setattr(backends, "ask", lambda *_: behind)
    host.pillar["config"] = dict.fromkeys([*OPTIONS, "ckan.titel"], "x")
    yield host
    next(made, None)


def test_a_deploy_of_one_host_tells_each_warning_once_and_so_do_its_history_and_status(host: Quick) -> None:
    done = host.deployed()
    assert sorted(done["warnings"]) == sorted(ALL)
    logged = [warning for entry in host.site().log.read() for warning in entry.get("warnings", [])]
    assert sorted(logged) == sorted(ALL)
    told = host_status.status(host.site(), processes=True)
    assert sorted(told["warnings"]) == sorted(ALL)


def test_what_a_stage_told_before_it_was_repeated_is_no_warning_any_more(host: Quick) -> None:
    release = host.deploy()
    host.site().log.append(stage="check", release=release, result="ok")
    assert host_status.status(host.site(), processes=True)["warnings"] == [MIGRATE]


def test_notes_of_the_plan_are_told_too(host: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolution, "resolve", lambda site, renew=False: evolve(RESOLUTION, notes=("a note",)))
    assert host.deployed()["warnings"].count("a note") == 1
    assert "a note" in host_status.status(host.site(), processes=True)["warnings"]


def test_the_versions_of_what_is_behind_ckan_are_noted_with_the_check(host: Quick) -> None:
    release = host.deploy()
    assert host.site().releases.read(release).check["backends"] == {"Redis": "7.0.15"}


def about_options(told: dict[str, Any]) -> list[str]:
    return [said for said in told["warnings"] if "option" in said and said != CHECK]


def test_options_that_nobody_declares_are_told_once_and_again_when_there_is_another(
    host: Quick, undeclared: dict[str, str]
) -> None:
    # The last is not of the pillar's config: it follows from ckan:datastore.
    undeclared |= {
        "scheming.dataset_schemas": "",
        "ckan.datastore.read_url": "",
        "ckan.site_descripton": "ckan.site_description",
    }
    first = about_options(host.deployed())
    assert first == [
        "CKAN and its plugins do not know the option ckan.site_descripton (did you mean ckan.site_description?)",
        "options that neither CKAN 2.12.0 nor a plugin declares: scheming.dataset_schemas; accept those that are right "
        "by name: ckan:config_known",
    ]
    assert about_options(host.deployed()) == []
    undeclared["spatial.srid"] = ""
    (said,) = about_options(host.deployed())
    assert "declares: spatial.srid;" in said


def test_options_are_accepted_by_name_and_a_real_misspelling_is_told_all_the_same(
    host: Quick, undeclared: dict[str, str]
) -> None:
    host.pillar["config_known"] = ["scheming.*", "ckanext.spatial.*", "nothing.of.the.kind"]
    undeclared |= {"scheming.dataset_schemas": "", "ckanext.spatial.srid": "", "ckan.titel": "ckan.title"}
    assert about_options(host.deployed()) == [
        "CKAN and its plugins do not know the option ckan.titel (did you mean ckan.title?)"
    ]


def test_an_option_that_a_release_which_failed_had_is_told_again(host: Quick, undeclared: dict[str, str]) -> None:
    host.deploy()
    undeclared |= {"a.b": ""}
    host.hook("verify", "before", lambda *_: 1 / 0)
    with pytest.raises(Exception, match="failed at verify"):
        host.deploy()
    host.pillar["hooks"].clear()
    assert len(about_options(host.deployed())) == 1


def test_accepting_an_option_is_no_reason_to_deploy(host: Quick) -> None:
    before = hashes(host.site().settings)
    host.pillar["config_known"] = ["scheming.*"]
    assert hashes(host.site().settings) == before
