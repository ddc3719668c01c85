"""What an environment takes from another one: the release that is live there, and what is in the way of that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ckan_deploy.errors import FormulaError, InvalidArgument
from ckan_deploy.fleet import begin, history, report
from ckan_deploy.fleet.master import Answer
from ckan_deploy.fleet.record import Record
from ckan_deploy.fleet.run import Run
from ckan_deploy.releases.manifest import Manifest, Resolution
from parts.fake_master import FIRST, JOB, SECOND, FakeMaster

STAGING = ("stage1", "stage2")


@pytest.fixture
def master(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMaster:
    monkeypatch.setattr("ckan_deploy.fleet.progress.last_word", lambda text: None)
    master = FakeMaster(tmp_path, ("web1", "web2", *STAGING))
    for host in STAGING:
        master.pillars[host] = {"ckan": {"env": "staging"}}
        master.current[host] = SECOND
    return master


def plan(master: FakeMaster, **about: Any) -> dict[str, Any]:
    given = ["env", *(["from"] if "source" in about else []), *(["release"] if "source_release" in about else [])]
    return begin.plan(master, **{"env": "production", "job": JOB, "given": given, **about})


def promoted(master: FakeMaster, **about: Any) -> dict[str, Any]:
    return plan(master, source="staging", **about)


def refused(master: FakeMaster, **about: Any) -> str:
    """A refusal asks no host of production to do anything, and frees the lock."""
    told = plan(master, **about)
    assert told == {"ok": False, "comment": told["comment"]}
    assert Record(master, "production").lock() is None
    assert master.told("ckan_release.plan") == []
    return str(told["comment"])


def said(host: str, **changes: Any) -> Any:
    """What `ckan_release.show` says, with changes on one host."""

    def show(self: FakeMaster, asked: str, release: str = "", **about: Any) -> dict[str, Any]:
        return {**self._ckan_release_show(asked, release, **about), **(changes if asked == host else {})}

    return show


def change(master: FakeMaster, host: str, **changes: Any) -> None:
    master.answers["ckan_release.show"] = lambda asked, **about: said(host, **changes)(master, asked, **about)


def test_what_staging_has_live_is_planned_on_all_hosts_and_no_ref_of_the_pillar(master: FakeMaster) -> None:
    told = promoted(master)
    assert told["ok"], told
    assert (told["from"], told["differs"]) == (f"{SECOND} of staging", ["plugins that only staging has: mycity"])
    assert f"for web1, web2, as {SECOND} of staging has it; ckanext-mycity changed; plugins that" in told["comment"]
    plans = dict(master.told("ckan_release.plan"))
    assert plans.keys() == {"web1", "web2"}
    assert plans["web1"]["contents"] == plans["web2"]["contents"]
    contents = Resolution.of(plans["web1"]["contents"])
    assert contents.promoted == {"env": "staging", "release": SECOND}
    assert (contents.extensions["ckanext-mycity"].commit, contents.base.path) == ("a" * 40, "")
    assert contents.packages == {"babel": "2.1"}  # a checkout by its commit, whatever version it says
    run = Record(master, "production").run()
    assert run and (run["source"], run["source_release"]) == ("staging", SECOND)
    assert Record(master, "staging").lock() is None


def test_settings_that_decide_what_is_built_of_a_commit_are_named_where_the_pillars_differ(master: FakeMaster) -> None:
    same = {"url": "x", "requirements": "none", "ref": "develop"}
    master.pillars["stage1"]["ckan"]["extensions"] = {"ckanext-mycity": {**same, "override": ["a==1"]}, "only": None}
    master.pillars["web1"]["ckan"]["extensions"] = {"ckanext-mycity": {**same, "ref": "main", "subdirectory": "x"}}
    assert promoted(master)["differs"][0] == (
        "ckanext-mycity has other settings in the pillar of staging: subdirectory, override"
    )


def test_what_was_asked_for_besides_is_named_where_the_pillars_differ(master: FakeMaster) -> None:
    master.pillars["stage1"]["ckan"].update(packages=["sentry-sdk>=2"], override=[])
    assert promoted(master)["differs"][0] == (
        "ckan:packages is another one in the pillar of staging, and what staging has is taken"
    )
    assert dict(master.told("ckan_release.show"))["stage1"]["lock"] is True


def test_a_dry_run_says_the_same_and_leaves_nothing(master: FakeMaster) -> None:
    assert promoted(master, dry_run=True)["from"] == f"{SECOND} of staging"
    assert (Record(master, "production").lock(), Record(master, "production").run()) == (None, None)


def test_an_older_release_is_taken_of_the_hosts_that_have_it(master: FakeMaster) -> None:
    def show(host: str, release: str, **about: Any) -> Any:
        if host == "stage1":
            raise FormulaError(f"there is no release {release} on this host")
        return master._ckan_release_show(host, release)

    master.answers["ckan_release.show"] = show
    assert promoted(master, source_release=FIRST)["from"] == f"{FIRST} of staging"
    Record(master, "production").free()
    master.asked.clear()
    master.answers["ckan_release.show"] = Answer("stage1", "ERROR: there is no release X on this host", 1)
    comment = refused(master, source="staging", source_release=FIRST)
    assert comment.startswith(f"staging does not tell release {FIRST}: ") and "there is no release X" in comment


@pytest.mark.parametrize(
    ("about", "sentence"),
    [
        ({"source": "stagin"}, "ckan:env: stagin in its pillar (did you mean staging?); environments known: "),
        ({"source": "production"}, "from is production itself"),
        ({"source": ["staging"]}, "from must be the name of one environment, not ['staging']"),
        ({"source": ""}, "from names no environment"),
        ({"source": "staging", "source_release": "yesterday"}, "'yesterday' is not a release id"),
        ({"source": "staging", "source_release": 20261125}, "20261125 is not a release id"),
        ({"source_release": FIRST}, "release names one of the environment that from names: add from: ENV"),
        ({"source": "staging", "extensions": {"ckanext-mycity": {"ref": "x"}}}, "extensions and from exclude each"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_before_anybody_is_asked(
    master: FakeMaster, about: dict[str, Any], sentence: str
) -> None:
    assert sentence in refused(master, **about)
    assert master.asked == []


def test_a_rollback_knows_no_other_environment(master: FakeMaster) -> None:
    told = begin.plan(master, "production", "rollback", job=JOB, given=["env", "from"])
    assert "orch.rollback does not know from" in told["comment"]


def test_hosts_of_staging_that_do_not_agree_are_named(master: FakeMaster) -> None:
    master.current["stage2"] = FIRST
    assert refused(master, source="staging") == (
        f"the hosts of staging do not agree (stage1 is on {SECOND}, stage2 is on {FIRST}); deploy there, or add "
        "release: ID"
    )


def test_a_release_that_is_not_the_same_on_all_hosts_is_refused(master: FakeMaster) -> None:
    change(master, "stage2", packages={"babel": "2.2"})
    assert refused(master, source="staging") == (
        f"{SECOND} of staging is not the same on stage2 as on stage1; deploy there again"
    )


def test_a_host_of_staging_that_is_down_is_named_with_a_way_on(master: FakeMaster) -> None:
    master.down.add("stage2")
    assert refused(master, source="staging").startswith(
        "staging does not tell what is live, or add release: ID: stage2 failed at plan: does not answer"
    )
    assert promoted(master, source_release=SECOND)["ok"]


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_run_under_way_in_staging_is_waited_for_and_a_lock_by_hand_is_none(master: FakeMaster, by_hand: bool) -> None:
    Record(master, "staging").take("lock" if by_hand else "deploy", "7", "the news")
    if by_hand:
        assert promoted(master)["ok"]
        return
    comment = refused(master, source="staging")
    assert comment.startswith("what staging has is not settled: staging is locked by ann since ")
    assert comment.endswith("to see how far it is: salt-run ckan.watch staging")
    assert master.told("ckan_release.show") == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"state": "bad", "bad_reason": "search is broken"}, "is bad on stage2 of staging (search is broken); take an"),
        ({"state": "built"}, "is built on stage2 of staging; take another release"),
        ({"adopted": {"path": "/x"}}, "was adopted, not built; deploy to staging first"),
        ({"base": {}}, "what stage2 of staging says is no manifest of a release that was built"),
        ({"id": "../x"}, "what stage2 of staging says is no manifest"),
        ({"plugins": [["x"]]}, "what stage2 of staging says is no manifest"),
        ({"packages": ["x"]}, "what stage2 of staging says is no manifest"),
        ({"extensions": {"../x": {}}}, "what stage2 of staging says is no manifest"),
        ({"extensions": {"a": {"kind": "git", "url": "ext::sh -c x", "commit": "a" * 40}}}, "says is no manifest"),
    ],
)  # fmt: skip
def test_a_release_that_nobody_should_take_or_that_is_damaged_is_refused(
    master: FakeMaster, changes: dict[str, Any], sentence: str
) -> None:
    change(master, "stage2", **changes)
    assert sentence in refused(master, source="staging")


def test_what_is_no_manifest_at_all_is_refused(master: FakeMaster) -> None:
    master.answers["ckan_release.show"] = "no"
    assert "what stage1 of staging says is no manifest" in refused(master, source="staging")


def test_nothing_to_deploy_names_what_staging_has(master: FakeMaster) -> None:
    master.changes = []
    told = promoted(master)
    assert told["comment"].startswith(f"Nothing to deploy: {FIRST} on web1, web2 is what {SECOND} of staging has;")


def test_a_resolution_keeps_where_it_is_from_and_nothing_else_is_put_there() -> None:
    told = {"base": {"ckan": "2.12.0", "python": "3.11"}, "extensions": {}}
    source = {"env": "staging", "release": FIRST}
    resolution = Resolution.of({**told, "promoted": source})
    assert Resolution.of(resolution.to_json()).promoted == resolution.to_build().promoted == source
    assert resolution.origin == f"{FIRST} of staging"
    assert "promoted" not in Resolution.of(told).to_json() and Resolution.of(told).origin == ""
    manifest = Manifest(FIRST, "built", resolution=resolution)
    assert Manifest.of(manifest.to_json()).resolution == resolution
    for bad in ({"env": "staging"}, {**source, "x": "y"}, {**source, "env": "<b>"}, {**source, "release": "1"}, "x"):
        with pytest.raises(InvalidArgument):
            Resolution.of({**told, "promoted": bad})


def test_history_and_report_say_where_a_release_is_from(master: FakeMaster) -> None:
    entry = {"at": "2026-01-01T00:00:00Z", "release": SECOND, "job": JOB, "result": "ok"}
    runs = history.merge({"web1": [{**entry, "stage": "build", "promoted": f"{FIRST} of staging"}]})
    assert runs[0]["from"] == f"{FIRST} of staging"
    assert f"[1] from {FIRST} of staging" in history.text(runs)
    assert "from" not in history.merge({"web1": [{**entry, "stage": "build"}]})[0]
    assert promoted(master)["ok"]
    run = Run.under_way(master, "production", JOB)
    assert run
    page = report.page(run, "done", "well")
    assert f"promoted from</th><td>{SECOND} of staging" in page and "plugins that only staging has" in page
