"""What is said where something is mistyped: what, where, why, and what to type."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest

import ckan_deploy
from ckan_deploy.errors import FormulaError, sentence
from ckan_deploy.fleet import begin, secrets
from ckan_deploy.fleet import lock as locks
from ckan_deploy.fleet.master import Answer
from ckan_deploy.fleet.record import Record
from ckan_deploy.releases import lock as host_lock
from ckan_deploy.settings.resolve import resolve
from fakes import least_pillar
from parts.fake_master import FIRST, JOB, SECOND, FakeMaster
from parts.keyring import KeyRing
from parts.process import sandbox

BLANK = "write a blank after the colon"


@pytest.fixture
def master(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMaster:
    monkeypatch.setattr("ckan_deploy.fleet.progress.last_word", lambda text: None)
    return FakeMaster(tmp_path)


def said(master: FakeMaster, env: Any = "production", **about: Any) -> str:
    """Why a run is refused."""
    told = begin.plan(master, env, job=JOB, **about)
    assert told["ok"] is False
    return str(told["comment"])


def problems(tmp_path: Path, **changes: Any) -> list[str]:
    with pytest.raises(FormulaError) as caught:
        resolve({**least_pillar(tmp_path), **changes})
    return str(caught.value).splitlines()


def test_several_problems_of_a_host_are_not_one_sentence(master: FakeMaster) -> None:
    master.answers["ckan_release.plan"] = Answer(
        "web1", "ERROR: ckan:keep is 1; use 2 or more\nckan:site_id is 'a b'", 1
    )
    assert said(master).endswith("ckan:keep is 1; use 2 or more; ckan:site_id is 'a b'")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"keep": "many"}, "ckan:keep must be a whole number, not the text 'many'"),
        ({"installer": "uv"}, "ckan:installer must be a dictionary, not text"),
        ({"plugins": {"a": 1}}, "ckan:plugins must be a list of text (put numbers and yes/no words in quotes), "
                                "not a dictionary"),
        ({"plugins": ["a", 5]}, "ckan:plugins must be a list of text (put numbers and yes/no words in quotes), "
                                "not one with the number 5"),
    ],
)  # fmt: skip
def test_a_value_that_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], found: str) -> None:
    assert found in problems(tmp_path, **changes)


def test_a_secret_is_never_named(tmp_path: Path) -> None:
    told = problems(tmp_path, database="planted-secret", secrets={"session": ["planted-secret"], "api_token": "x" * 20})
    assert told and "planted-secret" not in " ".join(told)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"extensions": {"ckanext-x": {"url": "https://x.org/x.git", "ref:main": None}}}, "ckan:extensions:ckanext-x"),
        ({"extensions": {"ckanext-x": "ref:main"}}, "ckan:extensions:ckanext-x"),
        ({"keep:3": None}, "ckan"),
        ({"web": "server:nginx"}, "ckan:web"),
        ({"web": {"server:nginx": None}}, "ckan:web"),
    ],
)
def test_a_blank_that_is_missing_in_the_pillar_is_named(tmp_path: Path, changes: dict[str, Any], place: str) -> None:
    assert any(line.startswith(place) and BLANK in line for line in problems(tmp_path, **changes))


def test_a_blank_that_is_missing_on_the_command_line_is_named(master: FakeMaster) -> None:
    # What YAML makes of pillar='{env:production}' and of '{env: production, to:ID}'.
    told = said(master, "", given=["env:production"])
    assert "env: production" in told and BLANK in told
    told = said(master, kind="rollback", given=["env", f"to:{FIRST}"])
    assert f"to: {FIRST}" in told and BLANK in told
    assert BLANK in said(master, extensions="ckanext-x:main", given=["env", "extensions"])
    assert BLANK in said(master, extensions={"ckanext-x": "ref:main"}, given=["env", "extensions"])
    assert BLANK in said(master, extensions={"ckanext-x": {"ref:main": None}}, given=["env", "extensions"])
    assert master.asked == []


def test_an_empty_environment_is_named_with_those_that_there_are(master: FakeMaster) -> None:
    assert "environments known: production" in said(master, "") and "{env: production}" in said(master, None)
    master.pillars["web1"]["ckan"]["env"] = ""
    assert "web1 has an empty ckan:env" in said(master, "staging")


def test_a_group_that_no_host_has_says_that_no_host_has_one(master: FakeMaster) -> None:
    told = said(master, groups=["canary", "rest"])
    assert "no host has a ckan:deploy_group" in told and "rest, web1, web2" in told


def test_a_pillar_that_does_not_render_names_file_and_line(master: FakeMaster) -> None:
    master.pillars["web1"] = {"_errors": [
        "Rendering SLS 'ckan.production' failed, render error:\nmapping values are not allowed here; line 7\n\n---\n"
        "ckan:\n  password: planted-secret: x    <======================\n---"
    ]}  # fmt: skip
    told = said(master)
    assert told.endswith("ckan.production, line 7: mapping values are not allowed here")
    assert "planted-secret" not in told
    flow = 'in "<unicode string>", line 2, column 6\ndid not find \',\' \n  in "<unicode string>", line 4, column 1'
    master.pillars["web1"] = {"_errors": [f"Rendering SLS 'x' failed, render error:\nwhile parsing a list\n  {flow}"]}
    assert said(master).endswith("x, line 4: while parsing a list did not find ','")
    master.pillars["web1"] = {"_errors": ["Specified SLS 'ckan.prod' in environment 'base' is not available"]}
    assert said(master).endswith("Specified SLS 'ckan.prod' in environment 'base' is not available")


def test_hints_are_in_the_syntax_of_the_command_that_was_typed(master: FakeMaster) -> None:
    why = f"release {FIRST} is marked bad (x); name another one, or repeat with force=True."
    master.answers["ckan_release.rollback_target"] = Answer("web1", f"ERROR: {why}", 1)
    master.current = {"web1": SECOND, "web2": SECOND}
    told = said(master, kind="rollback", to=FIRST)
    assert "repeat with force: true" in told and "force=" not in told
    master.answers["ckan_release.rollback_target"] = Answer("web1", "ERROR: x, or name one with to=RELEASE.", 1)
    assert "name one with to: RELEASE" in said(master, kind="rollback")


def test_somebody_who_locks_is_not_told_of_a_setting_that_the_command_does_not_take(master: FakeMaster) -> None:
    Record(master, "production").take("deploy", JOB)
    path = Path(Record(master, "production").folder, "lock.json")
    path.write_text(path.read_text().replace('"pid": ', '"pid": 99999999'))
    with pytest.raises(FormulaError, match=r"type: salt-run ckan\.unlock production") as caught:
        locks.take(master, "production", "x")
    assert "steal" not in str(caught.value)


def test_a_disk_that_is_read_only_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exc = OSError(errno.EROFS, "Read-only file system", "/usr/lib/ckan/releases/x")
    told = sentence(exc)
    assert told == (
        "/usr/lib/ckan/releases/x cannot be written, since its file system is mounted read-only; see why with dmesg, "
        "then type: mount -o remount,rw MOUNTPOINT"
    )
    assert host_lock.problem(exc) == f"this host cannot be locked: {told}"


@pytest.mark.slow
def test_a_key_that_has_expired_is_called_expired() -> None:
    place = sandbox("ckan-k-")
    home = place / "k"
    home.mkdir(mode=0o700)
    keyring = KeyRing(home)
    try:
        # A real one, made in 2020 for a day.
        keyring._gpg("--passphrase", "", "--faked-system-time", "20200101T000000", "--quick-gen-key", "old@x.org",
                     "default", "default", "2020-01-02")  # fmt: skip
        finger = next(line.split(":")[9] for line in keyring._gpg("--with-colons", "--list-keys").splitlines()
                      if line.startswith("fpr:"))  # fmt: skip
        for recipients in ([], ["old@x.org"]):
            with pytest.raises(FormulaError) as caught:
                secrets.pillar_block(str(home), "database:password", "x", recipients)
            assert f"the key {finger} has expired (2020-01-02); type: gpg" in str(caught.value)
            assert str(caught.value).endswith(f"gpg --homedir {home} --quick-set-expire {finger} 2y")
    finally:
        keyring.stop()
        shutil.rmtree(place)


def test_an_environment_that_does_not_exist_is_said_beside_a_secret(
    master: FakeMaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "read", lambda prompt: "x")
    monkeypatch.setattr(secrets, "pillar_block", lambda *_: "ckan:")
    told = secrets.encrypt(master, "prodction", "database:password")
    assert "# No host belongs to prodction yet (did you mean production?)" in told
    assert "belongs to" not in secrets.encrypt(master, "production", "database:password")


@pytest.mark.parametrize(
    ("salt", "python", "found"),
    [
        ((3006, 9), (3, 11), "needs Salt 3008 or newer, and this is 3006.9"),
        ((3008, 4), (3, 9), "needs Python 3.10 or newer, and this is 3.9"),
    ],
)
def test_a_salt_or_a_python_that_is_too_old_is_refused_by_name(salt: Any, python: Any, found: str) -> None:
    assert found in ckan_deploy.too_old(salt, python)
    assert ckan_deploy.too_old((3008, 4), (3, 11)) == ""
