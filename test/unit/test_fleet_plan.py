"""The stage plan: which hosts a run has, what it would do, and what is refused before anything is touched."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from ckan_deploy.errors import FormulaError
from ckan_deploy.fleet import begin
from ckan_deploy.fleet.record import Record
from parts.fake_master import FIRST, JOB, SECOND, FakeMaster

HOSTS = ("web1", "web2", "web3")


@pytest.fixture
def master(tmp_path: Path) -> FakeMaster:
    return FakeMaster(tmp_path, HOSTS, {"web1": "canary"})


@pytest.fixture(autouse=True)
def last_words(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the terminal would show last."""
    said: list[str] = []
    monkeypatch.setattr("ckan_deploy.fleet.progress.last_word", said.append)
    return said


def plan(master: FakeMaster, kind: str = "deploy", **about: Any) -> dict[str, Any]:
    return begin.plan(master, **{"env": "production", "kind": kind, "job": JOB, **about})


def refused(master: FakeMaster, kind: str = "deploy", **about: Any) -> str:
    """A refusal touches no host, frees the lock, and is told on the bus."""
    told = plan(master, kind, **about)
    assert told == {"ok": False, "comment": told["comment"]}
    env = about.get("env", "production")
    if env == "production":
        assert Record(master, "production").lock() is None
    touching = ("ckan_release.build", "ckan_release.start", "ckan_release.activate", "ckan_release.abort")
    # An app server that boots beside the comparison serves nobody.
    touched = [asked for asked in master.asked if asked[0] in touching and not asked[2].get("ahead")]
    assert touched == []
    assert master.fired[-1][0] == f"ckan/{kind}/{env}/refused"
    assert master.fired[-1][1]["comment"].endswith(told["comment"])
    return str(told["comment"])


def test_a_deploy_is_planned_once_for_all_hosts_and_has_the_lock(master: FakeMaster) -> None:
    told = plan(master, extensions={"ckanext-mycity": {"ref": "fix-42"}}, reason="the news")
    release = told["release"]
    assert told["comment"] == (
        f"release {release} with ckanext-mycity main abc for web1, web2, web3; ckanext-mycity changed"
    )
    assert (told["ok"], told["changes"], told["groups"]) == (True, ["ckanext-mycity changed"], [list(HOSTS)])
    assert (told["down"], told["last"]) == ([], "no orchestration has deployed yet")
    assert told["hosts"]["web2"] == {
        "current": FIRST, "free_mb": 100, "needed_mb": 4, "prunes": [], "backends": {},
    }  # fmt: skip
    # One host asks the origins; the others are asked beside it.
    assert sorted((host, kwargs["resolve"]) for host, kwargs in master.told("ckan_release.plan")) == [
        ("web1", True), ("web2", False), ("web3", False)
    ]  # fmt: skip
    assert {kwargs["release"] for _, kwargs in master.told("ckan_release.plan")} == {release}
    record = Record(master, "production")
    lock, run = record.lock(), record.run()
    assert lock and run and (lock.job, lock.reason) == (JOB, "the news")
    assert (run["release"], run["before"], run["spans"][0]["stage"]) == (release, dict.fromkeys(HOSTS, FIRST), "plan")
    assert [tag for tag, _ in master.fired] == ["ckan/deploy/production/plan"]


def test_a_deploy_that_is_to_be_fresh_asks_the_package_index_anew(master: FakeMaster) -> None:
    assert plan(master, dry_run=True)["ok"] and plan(master, dry_run=True, fresh=True)["ok"]
    renewed = [kwargs.get("renew", False) for host, kwargs in master.told("ckan_release.plan") if kwargs["resolve"]]
    assert renewed == [False, True]
    assert refused(master, fresh="yes") == "fresh must be true or false, not 'yes'"
    assert refused(master, "rollback", given=["env", "fresh"]).startswith("orch.rollback does not know fresh")


def test_a_dry_run_says_the_same_and_leaves_nothing(master: FakeMaster) -> None:
    told = plan(master, dry_run=True)
    assert told["ok"] and told["changes"] == ["ckanext-mycity changed"]
    assert (Record(master, "production").lock(), Record(master, "production").run(), master.fired) == (None, None, [])
    master.down.add("web2")
    told = plan(master, dry_run=True)
    assert told["comment"].startswith("web2 failed at plan: does not answer")


def test_nothing_to_deploy_is_said_and_force_plans_all_the_same(master: FakeMaster) -> None:
    master.changes = []
    told = plan(master)
    assert told["comment"] == (
        f"Nothing to deploy: {FIRST} on web1, web2, web3 is what the pillar and the origins say; force: true deploys "
        "all the same"
    )
    assert told["changes"] == ["nothing"] and Record(master, "production").run()["nothing"] is True
    Record(master, "production").free()
    assert plan(master, force=True)["comment"].startswith("release 20")
    assert Record(master, "production").run()["nothing"] is False


def test_h17_what_is_true_of_the_live_release_too_is_no_reason_to_deploy(master: FakeMaster) -> None:
    def planned(host: str, **about: Any) -> dict[str, Any]:
        return {**master._ckan_release_plan(host, **about), "own_remarks": ["without a sandbox"]}

    master.answers["ckan_release.plan"] = planned
    master.changes, master.remarks = [], ["ckanext-mycity is 3 commits behind its upstream"]
    told = plan(master)
    assert told["comment"].startswith("Nothing to deploy: ")
    assert told["changes"] == ["nothing", "ckanext-mycity is 3 commits behind its upstream"]
    assert told["warnings"] == ["without a sandbox"]
    master.changes = ["ckanext-mycity changed"]
    Record(master, "production").free()
    assert plan(master)["changes"] == ["ckanext-mycity changed", *told["changes"][1:]]


def test_what_some_hosts_change_is_said_with_their_names_and_what_all_change_once(master: FakeMaster) -> None:
    def planned(host: str, **about: Any) -> dict[str, Any]:
        own = ["settings: web changed"] + (["configuration: a changed"] if host == "web2" else [])
        return {**master._ckan_release_plan(host, **about), "own_changes": own}

    master.answers["ckan_release.plan"] = planned
    master.current["web3"] = SECOND
    assert plan(master, dry_run=True)["changes"] == [
        "ckanext-mycity changed", "settings: web changed", "web2: configuration: a changed",
        f"the hosts differ: web1, web2 on {FIRST}; web3 on {SECOND}",
    ]  # fmt: skip


def test_hosts_that_do_not_see_the_lock_are_a_warning(master: FakeMaster) -> None:
    def planned(host: str, **about: Any) -> dict[str, Any]:
        told = master._ckan_release_plan(host, **about)
        return {**told, "host": {**told["host"], "sees_lock": host != "web2"}}

    master.answers["ckan_release.plan"] = planned
    assert plan(master)["ok"]
    assert "does not show the lock" in Record(master, "production").run()["warnings"][0]


@pytest.mark.parametrize(
    ("pillar", "sentence"),
    [
        ({"env": ""}, "names no environment"),
        ({"env": "stagin"}, "environments known: production: web1, web2, web3"),
        ({"env": ["production"]}, "must be the name of one environment"),
        ({"groups": ["canery", "rest"]}, "canery is no group, nor a host (did you mean canary?)"),
        ({"groups": 0.5}, "groups must be a list of names"),
        ({"given": ["env", "group"]}, "orch.deploy does not know group (did you mean groups?); it knows env, "),
        ({"allow_down": ["web4"]}, "web4 in allow_down is no host of production (did you mean web3?)"),
        ({"allow_down": "web3"}, "allow_down must be a list of hosts, such as [web3], not 'web3'"),
        ({"extensions": ["ckanext-mycity"]}, "extensions must be a dictionary, such as"),
        ({"extensions": []}, "extensions must be a dictionary, such as"),
        ({"dry_run": "no"}, "dry_run must be true or false, not 'no'"),
        ({"force": "yes"}, "force must be true or false, not 'yes'"),
        ({"maintenance": 1}, "maintenance must be true or false, not 1"),
        ({"steal": ["x"]}, "steal must be true or false, not ['x']"),
        ({"message": ["x"]}, "message must be a line of text"),
        ({"until": {"x": 1}}, "until must be a line of text"),
    ],
)  # fmt: skip
def test_what_the_pillar_of_a_run_cannot_mean_is_refused_without_asking_a_host(
    master: FakeMaster, pillar: dict, sentence: str
) -> None:
    assert sentence in refused(master, **pillar)
    assert master.asked == []


def test_a_kind_that_there_is_none_of_is_refused(master: FakeMaster) -> None:
    assert refused(master, "adopt") == "'adopt' is neither deploy nor rollback"
    assert refused(master, "rollback", accept_schema="x") == "accept_schema must be true or false, not 'x'"


def test_the_pillar_of_the_master_s_own_minion_is_not_taken_for_an_option(master: FakeMaster) -> None:
    master.own = {"mine": {"x": 1}}
    assert plan(master, given=["env", "mine"])["ok"]
    Record(master, "production").free()
    assert "does not know yours;" in refused(master, given=["env", "mine", "yours"])


def test_a_host_that_is_down_is_refused_and_may_be_left_out(master: FakeMaster) -> None:
    master.down.add("web3")
    assert refused(master) == (
        "web3 failed at plan: does not answer; start its salt-minion, then repeat; or go on without it: allow_down: "
        "[web3]"
    )
    told = plan(master, allow_down=["web3"], groups=["canary", "rest"])
    assert (told["down"], told["groups"]) == (["web3"], [["web1"], ["web2"]])
    Record(master, "production").free()
    master.down = set(HOSTS)
    assert refused(master, allow_down=list(HOSTS)) == "none of web1, web2, web3 answers; start their salt-minion"


def test_a_first_group_that_is_down_is_refused_since_nobody_would_migrate(master: FakeMaster) -> None:
    master.down.add("web1")
    sentence = refused(master, allow_down=["web1"], groups=["canary", "rest"])
    assert sentence.startswith("no host of the first group (canary) answers")
    assert plan(master, allow_down=["web1"], groups=["rest", "canary"])["ok"]


def test_old_modules_and_a_clock_that_is_off_are_refused(master: FakeMaster) -> None:
    fine = master._ckan_plan_ready

    def ready(host: str) -> dict[str, Any]:
        return {**fine(host), **{"web1": {"modules": "old"}, "web2": {"time": time.time() - 600}}.get(host, {})}

    master.answers["ckan_plan.ready"] = ready
    sentence = refused(master)
    assert sentence.startswith(
        "web1 failed at plan: has other modules of the formula than the master's file server; type: salt web1 "
        "saltutil.sync_all; web2 failed at plan: has a clock that is 600 s behind the master's; correct it (timedat"
    )
    # Where the master has no formula in its file server there is nothing to compare.
    master.sources = {}
    assert "web1" not in refused(master)


def test_two_hosts_in_one_directory_are_refused(master: FakeMaster) -> None:
    def planned(host: str, **about: Any) -> dict[str, Any]:
        told = master._ckan_release_plan(host, **about)
        return {**told, "host": {**told["host"], "place": "here" if host != "web2" else "there"}}

    master.answers["ckan_release.plan"] = planned
    assert refused(master).startswith("web1 and web3 have one directory of releases on one machine; give each")


def test_what_a_host_says_no_to_is_refused_with_hosts_of_the_same_trouble_in_one_sentence(master: FakeMaster) -> None:
    def planned(host: str, **about: Any) -> dict[str, Any]:
        if host != "web1":
            raise FormulaError("ckan:keeep is not a setting")
        return master._ckan_release_plan(host, **about)

    master.answers["ckan_release.plan"] = planned
    assert refused(master) == "web2, web3 failed at plan: ckan:keeep is not a setting"


def test_whatever_a_plan_dies_of_the_lock_is_free(master: FakeMaster) -> None:
    def interrupted(host: str) -> None:
        raise KeyboardInterrupt

    master.answers["ckan_plan.ready"] = interrupted
    with pytest.raises(KeyboardInterrupt):
        plan(master)
    assert Record(master, "production").lock() is None
    Record(master, "production").take("deploy", "2")
    with pytest.raises(KeyboardInterrupt):
        plan(master, dry_run=True)
    assert Record(master, "production").lock() is not None


def test_a_lock_is_respected_before_a_host_is_asked(master: FakeMaster, last_words: list[str]) -> None:
    Record(master, "production").take("lock", "by hand", "election night")
    for kind in ("deploy", "rollback"):
        told = plan(master, kind, steal=True)
        assert "by hand, election night); wait, or type: salt-run ckan.unlock production" in told["comment"]
    assert master.asked == []
    assert last_words[0].startswith(
        "deploy to production was refused, nothing was touched: production is locked by ann"
    )


def test_a_rollback_goes_to_the_release_before_on_all_hosts(master: FakeMaster) -> None:
    master.current = dict.fromkeys(HOSTS, SECOND)
    told = plan(master, "rollback", reason="search is broken")
    assert told["comment"] == f"from {SECOND} back to {FIRST} on web1, web2, web3"
    assert (told["release"], told["extensions"], told["hosts"]) == (FIRST, {}, list(HOSTS))
    run = Record(master, "production").run()
    assert run and (run["left"], run["undo"]) == (dict.fromkeys(HOSTS, SECOND), False)
    assert run["contents"] == {"extensions": {"ckanext-mycity": FIRST}}
    assert "maintenance" not in told["comment"]


def test_app_servers_boot_while_the_database_is_compared_and_are_stopped_where_a_rollback_is_refused(
    master: FakeMaster,
) -> None:
    master.current = {"web1": SECOND, "web2": FIRST, "web3": SECOND}
    ahead = {"release": FIRST, "by": "ann", "job": JOB, "ahead": True}
    plan(master, "rollback", to=FIRST)
    assert sorted(master.told("ckan_release.start")) == [("web1", ahead), ("web3", ahead)]
    assert master.told("ckan_release.end_standby") == []
    Record(master, "production").free()

    def differs(host: str, **about: Any) -> None:
        raise FormulaError("the database does not fit")

    master.answers["ckan_schema.way_back"] = differs
    # As the standby of the release before it runs already, and stays.
    master.answers["ckan_release.start"] = lambda host, **about: {"started": host == "web3"}
    assert refused(master, "rollback", to=FIRST) == "web1 failed at plan: the database does not fit"
    assert master.told("ckan_release.end_standby") == [("web3", {"release": FIRST})]


@pytest.mark.parametrize("asked", [{"dry_run": True}, {"downgrade": True}, {"restore": FIRST}], ids=str)
def test_no_app_server_boots_for_a_look_nor_on_a_database_that_is_to_be_changed(
    master: FakeMaster, asked: dict[str, Any]
) -> None:
    master.current = dict.fromkeys(HOSTS, SECOND)
    master.answers["ckan_backup.list"] = [{"name": FIRST}]
    assert plan(master, "rollback", **asked)["ok"]
    assert master.told("ckan_release.start") == []


def test_hosts_that_would_not_go_back_together_need_a_target(master: FakeMaster) -> None:
    master.current = {"web1": SECOND, "web2": FIRST, "web3": SECOND}
    assert refused(master, "rollback").startswith(
        f"the hosts would not go back together (web1 from {SECOND} to {FIRST}"
    )
    told = plan(master, "rollback", to=FIRST)
    assert told["comment"] == f"from {SECOND} back to {FIRST} on web1, web3"
    Record(master, "production").free()
    master.current = dict.fromkeys(HOSTS, FIRST)
    assert refused(master, "rollback", to=FIRST) == (
        f"web1, web2, web3 are on {FIRST} already; name another release with to: RELEASE"
    )


def test_a_release_that_one_host_lacks_is_no_target_of_a_rollback(master: FakeMaster) -> None:
    def target(host: str, to: str, **about: Any) -> dict[str, str]:
        if host == "web3":
            raise FormulaError(f"release {to} is not whole")
        return {"current": SECOND, "target": to}

    master.current, master.answers["ckan_release.rollback_target"] = dict.fromkeys(HOSTS, SECOND), target
    assert refused(master, "rollback", to=FIRST) == f"web3 failed at plan: release {FIRST} is not whole"


@pytest.mark.parametrize(
    ("asked", "found", "changes"),
    [
        ({"accept_schema": True}, {}, ["accepted: the database has b and c of core"]),
        ({"downgrade": True}, {"downgrade": True}, ["undone in the database: c, b of core"]),
        (
            {"downgrade": True}, {"downgrade": True, "maintenance": True},
            ["undone in the database: c, b of core", "visitors get the maintenance page meanwhile"],
        ),
        (
            {"downgrade": True, "maintenance": True}, {"downgrade": True},
            ["undone in the database: c, b of core", "visitors get the maintenance page meanwhile"],
        ),
        ({"accept_schema": True, "maintenance": True}, {}, ["accepted: the database has b and c of core"]),
    ],
)  # fmt: skip
def test_a_rollback_says_what_becomes_of_the_database(
    master: FakeMaster, asked: dict, found: dict, changes: list[str]
) -> None:
    master.current = dict.fromkeys(HOSTS, SECOND)
    different = {"core": {"at": ["b", "c"], "revisions": ["b", "c"]}}
    master.answers["ckan_schema.way_back"] = lambda host, **about: {
        "downgrade": False, "restore": "", "maintenance": False, "different": different, **found
    }  # fmt: skip
    told = plan(master, "rollback", **asked)
    assert told["changes"] == [f"from {SECOND} back to {FIRST}", *changes]
    assert [host for host, _ in master.told("ckan_schema.way_back")] == ["web1"]


def test_a_dump_is_looked_for_on_all_hosts_and_the_one_that_has_it_restores(master: FakeMaster) -> None:
    master.current = dict.fromkeys(HOSTS, SECOND)
    master.answers["ckan_backup.list"] = lambda host: [{"name": FIRST}] if host == "web2" else []
    master.answers["ckan_schema.way_back"] = lambda host, **about: {
        "downgrade": False, "restore": about["restore"], "maintenance": True, "different": {"core": {}}
    }  # fmt: skip
    told = plan(master, "rollback", restore=FIRST)
    assert told["changes"][1] == f"the dump {FIRST} of web2 becomes the database, for core"
    run = Record(master, "production").run()
    assert run and (run["undo_on"], run["undo"], run["maintenance"]) == ("web2", True, True)
    Record(master, "production").free()
    assert refused(master, "rollback", restore=SECOND) == (
        f"no host has a dump {SECOND}; look with: salt -I 'ckan:env:production' ckan_backup.list"
    )


def test_hosts_with_a_shared_storage_look_for_the_mark_of_the_first_when_all_have_left_theirs(
    master: FakeMaster,
) -> None:
    mine = {"kind": "shared", "path": "/data", "serves": True, "problem": ""}
    master.storage = {host: {**mine, "mark": host} for host in HOSTS}
    given = master._ckan_release_plan

    def planned(host: str, sees: str = "", **about: Any) -> dict[str, Any]:
        told = given(host, **about)
        if sees:
            told["host"]["storage"] = {
                **mine,
                "mark": sees if host != "web3" else "",
                "problem": "" if host != "web3" else "gone",
            }
        return told

    master.answers["ckan_release.plan"] = planned
    assert refused(master).startswith("web3 failed at plan: /data (ckan.storage_path) does not show what web1 writes")
    asked = [(host, kwargs.get("sees", "")) for host, kwargs in master.told("ckan_release.plan")]
    assert sorted(asked[:3]) == [(host, "") for host in HOSTS]
    assert sorted(asked[3:]) == [("web2", "web1"), ("web3", "web1")]
