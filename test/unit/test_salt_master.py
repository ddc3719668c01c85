"""What the fleet gets of Salt's master, by Salt itself without a daemon."""

from __future__ import annotations

import gc
import io
import logging
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import salt.config
import salt.utils.optsdict
from salt.exceptions import SaltReqTimeoutError

from ckan_deploy.errors import FormulaError
from ckan_deploy.fleet import hosts
from ckan_deploy.fleet import master as masters
from ckan_deploy.fleet.master import SaltMaster, _answer, _Client
from ckan_deploy.system import version
from parts.keyring import KeyRing, write_secrets
from parts.process import sandbox

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def opts(tmp_path: Path) -> dict[str, Any]:
    found = salt.config.master_config(None)
    found.update(
        root_dir=str(tmp_path), cachedir=str(tmp_path / "cache"), pki_dir=str(tmp_path / "pki"), id="salt_master",
        sock_dir=str(tmp_path / "s"), extension_modules=str(tmp_path / "ext"), config_dir=str(tmp_path),
        utils_dirs=[str(REPO / "_utils")], file_roots={"base": [str(REPO)]},
        pillar_roots={"base": [str(tmp_path / "pillar")]}, fileserver_backend=["roots"],
    )  # fmt: skip
    for name in ("pki/minions", "pki/minions_pre", "pillar"):
        (tmp_path / name).mkdir(parents=True)
    for host in ("web1", "web2"):
        (tmp_path / "pki/minions" / host).write_text("")
    (tmp_path / "pki/minions_pre/web3").write_text("")
    (tmp_path / "pillar/top.sls").write_text("base:\n  'web*':\n    - ckan\n  '*_master':\n    - mine\n")
    (tmp_path / "pillar/ckan.sls").write_text("ckan: {env: production}\n")
    (tmp_path / "pillar/mine.sls").write_text("mine: 1\n")
    return found


@pytest.mark.slow
def test_hosts_are_the_accepted_minions_by_the_pillar_that_renders_now(opts: dict, tmp_path: Path) -> None:
    # As the loader hands it out, too.
    for given in (opts, salt.utils.optsdict.safe_opts_copy(opts, name="module:ckan")):
        master = SaltMaster(given)
        assert sorted(master.minions()) == ["web1", "web2"]
        assert hosts.targets(master, "production").hosts == ["web1", "web2"]
        assert dict(master.own_pillar()) == {"mine": 1}
        assert master.remembered_pillar("web1") == {}
    (tmp_path / "pillar/ckan.sls").write_text("ckan: {{ no_such_function() }}\n")
    with pytest.raises(FormulaError, match="the pillar of web1, web2 does not render"):
        hosts.targets(SaltMaster(opts), "production")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("ckan:\n  env: production\n  x: planted: y\n", "ckan, line 3: mapping values are not allowed in this context"),
        ("ckan:\n  a: [1,\n  b: 2\n", "ckan, line 4: while parsing a flow sequence did not find expected ',' or ']'"),
        ("ckan:\n  env: {{ planted\n", "ckan, line 2: Jinja syntax error: unexpected end of template, expected 'end of "
                                      "print statement'."),
        ("ckan:\n\tenv: planted\n", "ckan, line 2: found character that cannot start any token"),
        ("include: [none]\n", "Specified SLS 'none' in environment 'base' is not available on the salt master"),
    ],
)  # fmt: skip
def test_a_pillar_that_does_not_render_is_told_with_file_and_line(
    opts: dict, tmp_path: Path, text: str, where: str
) -> None:
    (tmp_path / "pillar/ckan.sls").write_text(text)
    with pytest.raises(FormulaError) as caught:
        hosts.targets(SaltMaster(opts), "production")
    assert str(caught.value).endswith(f"; correct it; {where}") and "planted" not in str(caught.value)


def test_what_a_master_needs_to_hand_files_over_is_said_in_lines_to_write(opts: dict, tmp_path: Path) -> None:
    assert SaltMaster(opts).handing_over == "file_recv: True; fileserver_backend: [roots, minionfs]"
    opts.update(file_recv=True, fileserver_backend=["roots", "git"])
    assert SaltMaster(opts).handing_over == "fileserver_backend: [roots, git, minionfs]"
    opts.update(fileserver_backend=["roots", "minionfs"])
    assert SaltMaster(opts).handing_over == ""
    opts.update(minionfs_mountpoint="salt://minions")
    assert SaltMaster(opts).handing_over == "no minionfs_mountpoint"
    mine, other = (tmp_path / f"cache/minions/web1/files/{name}" for name in ("ckan-ship/production/default", "etc"))
    for folder in (mine, other):
        folder.mkdir(parents=True)
    SaltMaster(opts).forget_pushed("web1", "ckan-ship/production")
    assert (mine.exists(), other.exists()) == (False, True)


def test_h24_the_pillar_of_a_minion_has_nothing_of_the_masters_own_in_an_orchestration(
    opts: dict, tmp_path: Path
) -> None:
    """One that belongs to no environment was taken for a host of the one that the master's own id matches."""
    (tmp_path / "pki/minions/old1").write_text("")
    own = {"env": "production", "ckan": {"env": "production"}}
    orchestration = {**opts, "id": "web_master", "pillar": own, "grains": {"id": "web_master"}}
    master = SaltMaster(orchestration)
    assert (dict(master.pillar("old1")), dict(master.pillar("web1"))) == ({}, {"ckan": {"env": "production"}})
    assert hosts.targets(master, "production").hosts == ["web1", "web2"]
    assert (orchestration["pillar"], orchestration["grains"]) == (own, {"id": "web_master"})


def test_the_directories_are_those_of_the_master(opts: dict) -> None:
    assert SaltMaster(opts).cachedir == opts["cachedir"]
    assert SaltMaster(opts).keyring == os.path.join(opts["config_dir"], "gpgkeys")
    assert SaltMaster({**opts, "gpg_keydir": "/srv/k"}).keyring == "/srv/k"
    assert SaltMaster(opts).user


@pytest.mark.slow
def test_the_formula_in_the_file_server_is_the_one_that_a_minion_gets_of_it(opts: dict, tmp_path: Path) -> None:
    files = SaltMaster(opts).files()
    assert "_modules/ckan_version.py" in files and "_utils/ckan_deploy/fleet/master.py" in files
    assert not [name for name in files if "__pycache__" in name or not name.endswith(".py")]
    assert version.digest(files) == version.of_folders(str(REPO / "_modules"), str(REPO / "_utils/ckan_deploy"))
    none = {**opts, "file_roots": {"base": []}}
    # The list of files is cached for a while.
    assert SaltMaster(none).files() == {}
    assert hosts.version(SaltMaster({**none, "cachedir": str(tmp_path / "other")})) == ""


def test_a_master_that_is_down_takes_no_jobs_and_has_no_bus(opts: dict) -> None:
    told = hosts.ask(SaltMaster(opts), ["web1"], "test.ping", timeout=1)
    assert list(told.failures) == ["web1"]
    assert "the master does not take jobs (" in told.failures["web1"] or "does not answer" in told.failures["web1"]


@pytest.mark.parametrize(
    ("said", "value", "retcode", "came"),
    [
        ({"ret": {"a": 1}, "retcode": 0}, {"a": 1}, 0, True),
        ({"ret": "boom", "retcode": 1}, "boom", 1, True),
        ({"ret": None}, None, 0, True),
        ({"ret": "Minion did not return. [Not connected]", "retcode": 1}, "Minion did not return. [Not connected]", 1,
         False),
        ({}, None, 0, False),
        ("odd", None, 0, False),
    ],
)  # fmt: skip
def test_an_answer_is_one_only_where_the_minion_gave_it(said: Any, value: Any, retcode: int, came: bool) -> None:
    assert _answer("web1", said) == ("web1", value, retcode, came)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["ckan:\n  a: [1,\n  b: 2\n", "ckan: {{ no_such() }}\n", "ckan: {{ planted\n"])
def test_what_does_not_render_is_a_sentence_on_the_terminal_and_whole_in_the_log(
    opts: dict, tmp_path: Path, text: str
) -> None:
    (tmp_path / "pillar/ckan.sls").write_text(text)
    terminal, file = logging.StreamHandler(io.StringIO()), logging.FileHandler(tmp_path / "log")
    for handler in (terminal, file):
        handler.setLevel(logging.WARNING)
        logging.root.addHandler(handler)
    try:
        with pytest.raises(FormulaError, match=r"does not render .*; correct it; ckan, line \d: "):
            hosts.targets(SaltMaster(opts), "production")
    finally:
        for handler in (terminal, file):
            logging.root.removeHandler(handler)
            handler.close()
    assert terminal.stream.getvalue() == "" and terminal.filters == []
    assert "Traceback" in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_what_cannot_be_decrypted_is_named_and_not_written_out(
    opts: dict, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = sandbox("ckan-k-")
    ring = KeyRing(place / "k").make()
    secrets = tmp_path / "pillar/secrets.sls"
    secrets.write_text("ckan: {}\n")
    write_secrets(secrets, {"database:password": ring.encrypt("planted-secret")})
    (tmp_path / "pillar/top.sls").write_text("base:\n  'web1':\n    - ckan\n    - secrets\n")
    heard: list[str] = []
    before = [rule for handler in logging.root.handlers for rule in handler.filters]
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(handler.format(record))  # type: ignore[method-assign]
    logging.root.addHandler(handler)
    try:
        master = SaltMaster({**opts, "gpg_keydir": str(ring.path)})
        assert master.pillar("web1")["ckan"]["database"]["password"] == "planted-secret"
        lost = place / "lost"
        lost.mkdir(mode=0o700)
        with pytest.raises(FormulaError, match="the master has no key to decrypt ckan:database:password$"):
            hosts.targets(SaltMaster({**opts, "gpg_keydir": str(lost)}), "production")
        assert logging.root.manager.disable == logging.NOTSET
    finally:
        logging.root.removeHandler(handler)
        ring.stop()
        KeyRing(place / "lost").stop()
        shutil.rmtree(place, ignore_errors=True)
    assert heard and "BEGIN PGP" not in "".join(heard) + "".join(capfd.readouterr())
    assert [rule for handler in logging.root.handlers for rule in handler.filters] == before


class Bus:
    """An event bus that is told what a master fires, as long as it is not broken."""

    def __init__(self) -> None:
        self.fired: list[str] = []
        self.broken = self.destroyed = False

    def fire_event(self, data: dict[str, Any], tag: str) -> bool:
        if self.broken:
            raise OSError("stream is closed")
        self.fired.append(tag)
        return True

    def destroy(self) -> None:
        self.destroyed = True


def test_one_connection_serves_all_events_of_a_call_and_another_one_takes_its_place(
    opts: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    buses: list[Bus] = []

    def connect(*_: Any, **__: Any) -> Bus:
        buses.append(Bus())
        return buses[-1]

    monkeypatch.setattr("salt.utils.event.get_master_event", connect)
    master = SaltMaster(opts)
    for tag in ("1", "2", "3"):
        master.fire({}, tag)
    assert [bus.fired for bus in buses] == [["1", "2", "3"]]
    # The master was started anew.
    buses[0].broken = True
    master.fire({}, "4")
    master.fire({}, "5")
    assert [bus.fired for bus in buses] == [["1", "2", "3"], ["4", "5"]] and buses[0].destroyed
    other = threading.Thread(target=master.fire, args=({}, "6"))
    other.start()
    other.join()
    assert buses[2].fired == ["6"]
    del master
    gc.collect()
    assert all(bus.destroyed for bus in buses)


def test_a_bus_that_takes_nothing_is_an_error(opts: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    bus = Bus()
    monkeypatch.setattr("salt.utils.event.get_master_event", lambda *_, **__: bus)
    monkeypatch.setattr(bus, "fire_event", lambda data, tag: False)
    with pytest.raises(OSError, match="does not answer"):
        SaltMaster(opts).fire({}, "1")


def test_answers_are_slept_for_and_not_looked_for_and_the_last_one_costs_no_wait() -> None:
    class Events:
        """Events that come later: None is a look at which there is none yet."""

        def __init__(self, *coming: Any) -> None:
            self.coming, self.slept = list(coming), 0

        def get_event(self, wait: float, no_block: bool = False, **about: Any) -> Any:
            assert about == {"tag": "salt/job/1", "match_type": None, "full": True, "auto_reconnect": True}
            self.slept += not no_block
            return self.coming.pop(0) if self.coming else None

        def destroy(self) -> None: ...

    client = _Client.__new__(_Client)
    client.auto_reconnect = True
    client.event = Events("web1", None, None, "web2")
    looks = client.get_returns_no_block("salt/job/1")
    assert [next(looks) for _ in range(2)] == ["web1", None] and client.event.slept == 0
    # Whoever still waits sleeps, until there is one or it is time to look after the limits.
    assert next(looks) == "web2" or client.event.slept
    assert client.event.slept == 1


class Asked:
    """A client of Salt's that answers at once, and notes what becomes of its connection."""

    made: list[Asked] = []

    def __init__(self, mopts: dict[str, Any]) -> None:
        self.event, self.closed, self.destroyed = self, 0, False
        Asked.made.append(self)

    def cmd_iter(self, hosts: list[str], function: str, **_: Any) -> Any:
        for host in hosts:
            if function == "x.fails":
                raise SaltReqTimeoutError("Message timed out")
            yield {host: {"ret": function}}

    def close_pub(self) -> None:
        self.closed += 1

    def destroy(self) -> None:
        self.destroyed = True


def test_a_client_is_made_once_a_thread_and_not_used_after_a_failure(
    opts: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To make one takes longer than to ask a host."""
    monkeypatch.setattr(masters, "_Client", Asked)
    monkeypatch.setattr(masters, "_spare", masters._Spare())
    monkeypatch.setattr(Asked, "made", [])

    def ask(function: str = "test.ping") -> list[Any]:
        return [answer.value for answer in SaltMaster(opts).ask(["web1", "web2"], function, {}, 1)]

    assert [ask() for _ in range(3)] == [["test.ping"] * 2] * 3
    assert [client.closed for client in Asked.made] == [3]
    # One that is being asked is nobody else's.
    begun = SaltMaster(opts).ask(["web1", "web2"], "test.ping", {}, 1)
    next(begun)
    ask()
    begun.close()
    assert [(client.closed, client.destroyed) for client in Asked.made] == [(3, True), (1, False)]
    with pytest.raises(FormulaError, match="does not take jobs"):
        ask("x.fails")
    assert Asked.made[1].destroyed
    # A thread of its own, and a fork: what is spare is the other's.
    other = threading.Thread(target=ask)
    other.start()
    other.join()
    monkeypatch.setattr(os, "getpid", lambda: 1)
    ask()
    assert len(Asked.made) == 4 and [client.closed for client in Asked.made[2:]] == [1, 1]
