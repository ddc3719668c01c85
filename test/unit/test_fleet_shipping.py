"""Build once, ship to all, over hosts: who builds, who takes it, what is refused, and what is left."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from ckan_deploy.errors import FormulaError
from ckan_deploy.fleet import begin, end, hosts, revert, stages
from ckan_deploy.fleet.run import Run
from parts.fake_master import FIRST, JOB, LAYER, FakeMaster

HOSTS = ("web1", "web2", "web3")


@pytest.fixture
def master(tmp_path: Path) -> FakeMaster:
    made = FakeMaster(tmp_path, HOSTS)
    made.ship()
    return made


@pytest.fixture
def apart(master: FakeMaster) -> FakeMaster:
    """The environment has a builder of its own, which is no host that serves."""
    master.ship(host="build1")
    master.pillars["build1"] = {"ckan": {"env": "production", "build": {"ship": True, "host": "build1", "only": True}}}
    return master


@pytest.fixture(autouse=True)
def last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckan_deploy.fleet.progress.last_word", lambda text: None)
    monkeypatch.setattr("ckan_deploy.fleet.revert.PATIENCE", 0)


def run_of(master: FakeMaster) -> Run:
    run = Run.under_way(master, "production", JOB)
    assert run
    return run


def orchestrate(master: FakeMaster, groups: list[str] | None = None, **about: Any) -> str:
    planned = begin.plan(master, "production", job=JOB, groups=groups, **about)
    if not planned["ok"]:
        return str(planned["comment"])
    steps = [(name, group) for group in groups or [""] for name in ("build", "check", "activate", "verify")]
    for name, group in [*steps, ("finish", "")]:
        if not stages.stage(run_of(master), name, group)["ok"]:
            return str(revert.revert(run_of(master))["comment"])
    return str(end.close(run_of(master))["comment"])


def asked(master: FakeMaster, *functions: str) -> list[tuple[str, str]]:
    return [(function.split(".")[1], host) for function, host, _ in master.asked if function in functions]


def test_one_host_builds_and_packs_and_the_others_take_what_it_has_packed(master: FakeMaster) -> None:
    assert " is live in production on web1, web2, web3 " in orchestrate(master)
    assert asked(master, "ckan_release.build", "ckan_release.pack") == [
        ("build", "web1"), ("pack", "web1"), ("build", "web2"), ("build", "web3")
    ]  # fmt: skip
    release = master.current["web1"]
    first, second, _ = (about for _, about in master.told("ckan_release.build"))
    assert "shipped" not in first and first["contents"]["extensions"]
    assert (second["shipped"], second["contents"]) == ({"host": "web1"}, {"packed": release})
    # Nothing is left on the master.
    assert master.pushed == set()


def test_what_the_settings_name_builds_in_the_first_group_whichever_group_it_is_in(master: FakeMaster) -> None:
    master.ship(host="web3")
    orchestrate(master, groups=["web1", "rest"])
    assert asked(master, "ckan_release.build", "ckan_release.pack") == [
        ("build", "web3"), ("pack", "web3"), ("build", "web1"), ("build", "web2")
    ]  # fmt: skip
    resolved = [host for host, about in master.told("ckan_release.plan") if about["resolve"]]
    assert resolved == ["web3"]


def test_a_layer_that_all_have_is_not_handed_over(master: FakeMaster) -> None:
    master.layers = {"web1": [LAYER], "web2": [LAYER], "web3": []}
    orchestrate(master)
    master.layers["web3"] = [LAYER]
    orchestrate(master)
    assert [about["layer"] for _, about in master.told("ckan_release.pack")] == [True, False]


def test_hosts_that_have_the_layer_clone_it_while_the_builder_builds(master: FakeMaster) -> None:
    master.layers = {"web1": [LAYER], "web2": [LAYER], "web3": []}
    begun = threading.Event()

    def clone(host: str, layer: str, contents: dict[str, Any], **about: Any) -> Any:
        begun.set()
        assert (host, layer) == ("web2", LAYER) and contents["extensions"]
        # Whatever becomes of it, the build does the rest.
        raise FormulaError("no room")

    def build(host: str, **about: Any) -> dict[str, str]:
        assert begun.wait(10)
        return {"layer": LAYER}

    master.answers = {"ckan_release.clone": clone, "ckan_release.build": build}
    assert " is live in production on web1, web2, web3 " in orchestrate(master)
    assert [host for host, _ in master.told("ckan_release.clone")] == ["web2"]
    assert [host for host, _ in master.told("ckan_release.build")] == ["web1", "web2", "web3"]


def test_a_builder_of_its_own_builds_and_serves_nothing(apart: FakeMaster) -> None:
    found = hosts.targets(apart, "production")
    assert (found.hosts, found.builders) == (list(HOSTS), ["build1"])
    assert " is live in production on web1, web2, web3 " in orchestrate(apart)
    told = {function.split(".")[1] for function, host, _ in apart.asked if host == "build1"}
    assert told == {"ready", "plan", "build", "pack", "prune"}
    assert [host for host, _ in apart.told("ckan_release.build")] == ["build1", *HOSTS]
    # The deploy lock is no obstacle for it.
    assert apart.told("ckan_release.prune") == [("build1", {"job": JOB})]
    begin.plan(apart, "production", "rollback", to=FIRST, job=JOB)
    assert [function for function, host, _ in apart.asked if host == "build1"][-1] == "ckan_release.prune"


def test_what_a_builder_of_its_own_has_built_is_taken_back_with_the_rest(apart: FakeMaster) -> None:
    def fail(host: str, **about: Any) -> dict[str, Any]:
        raise FormulaError("boom") if host == "web2" else FormulaError("")

    apart.answers = {"ckan_release.check": fail}
    text = orchestrate(apart)
    assert "web2 failed at check: boom" in text and "build1" not in text
    assert sorted(host for host, _ in apart.told("ckan_release.abort")) == ["build1", *HOSTS]
    assert apart.pushed == set()


def test_a_build_or_a_pack_that_fails_stops_before_any_other_host_is_asked(master: FakeMaster) -> None:
    def fail(host: str, **about: Any) -> Any:
        raise FormulaError("the master does not take it")

    master.answers = {"ckan_release.pack": fail}
    assert "web1 failed at build: the master does not take it" in orchestrate(master)
    assert [host for host, _ in master.told("ckan_release.build")] == ["web1"]


def test_hosts_that_differ_from_the_builder_are_refused_by_name(master: FakeMaster) -> None:
    master.facts = {"web2": {"system": "debian 13", "libc": "glibc 2.41"}, "web3": {"Python": "3.13"}}
    text = orchestrate(master)
    assert (
        "web2 failed at plan: it differs from web1, which builds for all: libc glibc 2.41 instead of glibc 2.36, "
        "system debian 13 instead of debian 12; make them alike" in text
    )
    assert "web3 failed at plan: it differs from web1, which builds for all: Python 3.13 instead of 3.11" in text
    assert not master.told("ckan_release.build")


def test_what_the_master_lacks_is_told_at_plan_with_the_lines_to_write(master: FakeMaster) -> None:
    master.handing_over = "file_recv: True; fileserver_backend: [roots, minionfs]"
    assert orchestrate(master) == (
        "the archives of ckan:build:ship go over the master, whose configuration lacks: file_recv: True; "
        "fileserver_backend: [roots, minionfs]; write that into /etc/salt/master.d/ckan.conf and restart salt-master, "
        "or set ckan:build:store"
    )
    master.ship(store="/srv/store")
    assert " is live in production " in orchestrate(master)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        ({"web2": {"ship": False}}, "ckan:build:ship is True on web1, not set on web2, True on web3; set it alike for "
                                    "all hosts of production"),
        ({"web3": {"ship": True, "host": "web3"}}, "ckan:build:host is not set on web1, not set on web2, web3 on web3"),
        ({host: {"ship": True, "host": "web9"} for host in HOSTS}, "ckan:build:host is web9, which is neither a host "
         "of production nor one that builds for it (ckan:build:only); there are web1, web2, web3"),
    ],
    ids=["not all", "another builder", "no builder"],
)  # fmt: skip
def test_settings_that_name_no_one_builder_are_refused(master: FakeMaster, build: Any, sentence: str) -> None:
    for host, about in build.items():
        master.pillars[host]["ckan"]["build"] = about
    assert sentence in orchestrate(master)


def test_a_builder_of_its_own_has_the_store_of_the_others(apart: FakeMaster) -> None:
    """Only hosts that serve were compared, so that archives went where nobody looked for them."""
    apart.pillars["build1"]["ckan"]["build"]["store"] = "/srv/store"
    assert (
        "ckan:build:store is /srv/store on build1, not set on web1, not set on web2, not set on web3; set it alike for "
        "all hosts of production" in orchestrate(apart)
    )


def test_a_shipment_that_one_host_cannot_take_is_one_sentence_and_reverts_all(master: FakeMaster) -> None:
    def build(host: str, **about: Any) -> dict[str, str]:
        if host == "web3":
            raise FormulaError("a.tar.gz was cut short; deploy again.")
        return {"layer": LAYER}

    master.answers = {"ckan_release.build": build}
    text = orchestrate(master)
    assert "web3 failed at build: a.tar.gz was cut short; deploy again" in text
    assert not {"ckan_release.check", "ckan_release.activate"} & set(master.functions())
    assert sorted(host for host, _ in master.told("ckan_release.abort")) == list(HOSTS)
    assert master.pushed == set()


def test_archives_stay_while_a_run_is_at_it_and_go_with_one_that_died(master: FakeMaster) -> None:
    begin.plan(master, "production", job=JOB)
    stages.stage(run_of(master), "build")
    assert master.pushed
    # Nobody keeps a dry run out.
    assert begin.plan(master, "production", job="20260101130000000000", dry_run=True)["ok"]
    assert master.pushed
    assert revert.recover_run(run_of(master), JOB)["ok"]
    assert not master.pushed


def test_a_builder_that_is_down_is_named(master: FakeMaster) -> None:
    master.ship(host="web2")
    master.down = {"web2"}
    assert "web2 builds for all (ckan:build:host) and does not answer; start its salt-minion" in orchestrate(
        master, allow_down=["web2"]
    )
    master.ship()
    assert " is live in production on web1, web3 " in orchestrate(master, allow_down=["web2"])
