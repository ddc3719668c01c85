"""Which hosts belong to an environment, in which groups, what they answer, and whether they have the master's code."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckan_deploy.errors import FormulaError
from ckan_deploy.fleet import hosts
from ckan_deploy.fleet.hosts import Group
from ckan_deploy.fleet.master import Answer
from ckan_deploy.system import version
from parts.fake_master import FakeMaster


@pytest.fixture
def master(tmp_path: Path) -> FakeMaster:
    made = FakeMaster(tmp_path, ("web1", "web2", "web3"), {"web1": "canary"})
    made.pillars |= {"db1": {}, "s1": {"ckan": {"env": "staging"}}}
    return made


def test_the_hosts_of_an_environment_are_the_minions_whose_pillar_says_so(master: FakeMaster) -> None:
    found = hosts.targets(master, "production")
    assert found.hosts == ["web1", "web2", "web3"]
    assert found.members == {"web1": "canary", "web2": "", "web3": ""}


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ("", "no environment is named; environments known: production, staging"),
        (None, "no environment is named"),
        (["production"], r"env must be the name of one environment, not ['production']"),
        (5, "env must be the name of one environment, not 5"),
        (
            "stagin",
            "no accepted minion has ckan:env: stagin in its pillar (did you mean staging?); environments known: "
            "production: web1, web2, web3; "
            "staging: s1",
        ),
        ("../x", "no accepted minion has ckan:env: ../x in its pillar"),
    ],
)
def test_an_environment_that_is_none_is_refused(master: FakeMaster, env: object, sentence: str) -> None:
    with pytest.raises(FormulaError) as told:
        hosts.targets(master, env)
    assert sentence in str(told.value)


def test_a_pillar_that_does_not_render_is_in_the_way_of_its_own_environment_only(master: FakeMaster) -> None:
    master.pillars["web3"] = {"_errors": ["Rendering SLS failed"]}
    master.remembered["web3"] = {"ckan": {"env": "production"}}
    with pytest.raises(FormulaError, match="the pillar of web3 does not render .* what belongs to production"):
        hosts.targets(master, "production")
    assert hosts.targets(master, "staging").hosts == ["s1"]
    # Nothing is known of it: it may belong to any.
    master.remembered["web3"] = {}
    with pytest.raises(FormulaError, match="the pillar of web3 does not render"):
        hosts.targets(master, "staging")


def test_a_pillar_that_cannot_be_decrypted_is_told_by_the_keys(master: FakeMaster) -> None:
    master.pillars["web2"] = {"_errors": ["gpg"]}
    block = "-----BEGIN PGP MESSAGE-----\nabc"
    master.encrypted["web2"] = {"ckan": {"database": {"password": block}, "plugins": ["a"]}}
    with pytest.raises(FormulaError, match="the master has no key to decrypt ckan:database:password$") as told:
        hosts.targets(master, "production")
    assert "BEGIN" not in str(told.value)


THREE = ["web1", "web2", "web3"]
MEMBERS = {"web1": "canary", "web2": "", "web3": ""}


@pytest.mark.parametrize(
    ("groups", "found"),
    [
        (None, [("", THREE)]),
        ([], [("", THREE)]),
        (2, [("web1, web2", ["web1", "web2"]), ("web3", ["web3"])]),
        (["canary", "rest"], [("canary", ["web1"]), ("rest", ["web2", "web3"])]),
        (["web3", "rest", "canary"], [("web3", ["web3"]), ("rest", ["web2"]), ("canary", ["web1"])]),
        (["web1", "web2", "web3", "rest"], [("web1", ["web1"]), ("web2", ["web2"]), ("web3", ["web3"])]),
    ],
)
def test_groups_are_names_or_a_number_of_hosts(groups: object, found: list) -> None:
    assert hosts.in_groups(groups, THREE, MEMBERS) == [Group(*group) for group in found]


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        (["canery", "rest"], "canery is no group, nor a host (did you mean canary?); there are canary, rest, web1"),
        (["canary"], "web2, web3 would be in no group; add rest to groups"),
        (["canary", "web1", "rest"], "web1 would be in two groups; name each host once"),
        (["canary", "canary", "rest"], "canary stands twice in groups"),
        (0.5, "groups must be a list of names, such as [canary, rest], or a number of hosts, not 0.5"),
        (True, "groups must be a list of names"),
        (-1, "groups must be a list of names"),
        ("canary", "groups must be a list of names"),
        ([["web1"], "rest"], "groups must be a list of names"),
    ],
)
def test_groups_that_leave_a_host_out_or_name_it_twice_are_refused(groups: object, sentence: str) -> None:
    with pytest.raises(FormulaError) as told:
        hosts.in_groups(groups, THREE, MEMBERS)
    assert sentence in str(told.value)


def test_the_steps_of_an_orchestration_are_the_groups_and_one_where_something_is_wrong(master: FakeMaster) -> None:
    assert hosts.steps(master, "production", ["canary", "rest"]) == ["canary", "rest"]
    assert hosts.steps(master, "production", 2) == ["web1, web2", "web3"]
    for env, groups in (("production", None), ("production", ["x"]), ("stagin", ["rest"]), (["x"], 2)):
        assert hosts.steps(master, env, groups) == [""]


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("ERROR: no space\n  left.", "no space left."),
        ("ERROR executing 'ckan_release.build': no uv", "no uv"),
        (
            "'ckan_release.build' is not available.",
            "does not know ckan_release.build; type: salt web1 saltutil.sync_all",
        ),
        (
            "'ckan_release' __virtual__ returned False: the formula's package cannot be imported (ModuleNotFoundError: "
            "No module named 'ckan_deploy'); type on the master: salt web1 saltutil.sync_all",
            "cannot load ckan_release.build (ModuleNotFoundError: No module named 'ckan_deploy'); type: salt web1 "
            "saltutil.sync_all",
        ),
        ("Traceback (most recent call last):\n  File x\nKeyError: 'a'", "KeyError: 'a' (see the minion's log)"),
    ],
)  # fmt: skip
def test_what_a_host_says_that_failed_is_a_sentence(tmp_path: Path, said: str, sentence: str) -> None:
    master = FakeMaster(tmp_path)
    master.answers["ckan_release.build"] = lambda host: Answer(host, said, 1) if host == "web1" else {"fine": True}
    told = hosts.ask(master, ["web1", "web2"], "ckan_release.build")
    assert told.failures == {"web1": sentence}
    assert told.good == {"web2": {"fine": True}}
    assert told.results["web1"] == said


def test_a_host_that_is_silent_is_a_failure_and_each_answer_is_told_as_it_comes(master: FakeMaster) -> None:
    master.down.add("web2")
    seen: list[tuple[str, str]] = []
    told = hosts.ask(
        master, THREE, "ckan_release.verify", {"release": "x"}, told=lambda host, failed: seen.append((host, failed))
    )
    silent = "does not answer; start its salt-minion, then repeat"
    assert told.failures == {"web2": silent}
    assert seen == [("web1", ""), ("web3", ""), ("web2", silent)]
    assert hosts.ask(master, [], "ckan_release.verify").results == {}


def test_a_master_that_takes_no_jobs_is_what_each_host_is_said_to_fail_by(master: FakeMaster) -> None:
    master.stopped = True
    failures = hosts.ask(master, ["web1", "web2"], "ckan_release.verify").failures
    assert set(failures.values()) == {"the master does not take jobs (no route); start salt-master"}


def test_the_master_and_a_minion_make_one_hash_of_the_same_files(tmp_path: Path) -> None:
    files = {
        "_modules/ckan_a.py": b"a", "_utils/ckan_deploy/__init__.py": b"", "_utils/ckan_deploy/build/base.py": b"b",
    }  # fmt: skip
    for name, content in files.items():
        path = tmp_path / name.replace("_modules", "modules").replace("_utils", "utils")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    here = tmp_path / "modules", tmp_path / "utils/ckan_deploy"
    made = version.digest(files)
    assert version.of_folders(*map(str, here)) == made
    # What is not of the formula, or not its source, does not count; what is, does.
    for name in ("modules/other.py", "modules/__pycache__/ckan_a.pyc", "utils/ckan_deploy/build/x.pyc", "utils/x.py",
                 "utils/ckan_deploy/runners/ckan.py"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"?")
    assert version.of_folders(*map(str, here)) == made
    (tmp_path / "utils/ckan_deploy/build/base.py").write_bytes(b"c")
    assert version.of_folders(*map(str, here)) != made
    master = FakeMaster(tmp_path)
    master.sources = files
    assert hosts.version(master) == made
    master.sources = {}
    assert hosts.version(master) == ""
