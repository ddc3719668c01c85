"""Supervisor by its socket: a real one, and what answers in another way than one."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckan_deploy.errors import FormulaError
from ckan_deploy.system import supervisor
from parts.supervisor import Supervisor

pytestmark = pytest.mark.slow

PROGRAM = """\
[program:{name}]
command = {command}
process_name = it-%(process_num)d
numprocs = {processes}
startsecs = 1
stopwaitsecs = 60
"""


class Place:
    """A supervisor of our own and its programs."""

    def __init__(self, root: Path) -> None:
        self.programs = root / "programs"
        self.supervisor = Supervisor(root, self.programs)
        self.conf = str(self.supervisor.conf)

    def write(self, name: str, command: str = "sleep 600", processes: int = 1) -> None:
        text = PROGRAM.format(name=name, command=command, processes=processes)
        (self.programs / f"{name}.conf").write_text(text)

    def states(self, name: str) -> list[str]:
        return [process.state for process in supervisor.processes(self.conf).get(name, [])]

    def wait(self, name: str, *states: str) -> None:
        deadline = time.monotonic() + 10
        while self.states(name) != [*states]:
            assert time.monotonic() < deadline, self.states(name)
            time.sleep(0.05)


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A short path: that of a socket has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ckan-s-", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def place(short_tmp: Path) -> Iterator[Place]:
    found = Place(short_tmp)
    found.supervisor.start()
    yield found
    found.supervisor.stop()


def test_a_group_is_added_changed_and_removed_and_others_are_left_alone(place):
    place.write("one", processes=2)
    place.write("other")
    supervisor.update(place.conf, "one")
    place.wait("one", "RUNNING", "RUNNING")
    assert place.states("other") == []
    before = supervisor.processes(place.conf)["one"]
    assert all(process.pid > 0 for process in before)
    supervisor.update(place.conf, "one")
    assert supervisor.processes(place.conf)["one"] == before
    place.write("one", "sleep 500")
    supervisor.update(place.conf, "one")
    place.wait("one", "RUNNING")
    assert supervisor.processes(place.conf)["one"][0].pid not in [process.pid for process in before]
    (place.programs / "one.conf").unlink()
    supervisor.update(place.conf, "one")
    assert place.states("one") == [] and place.states("other") == []


def test_a_stop_waits_for_the_end_of_the_program_and_a_start_does_not(place, monkeypatch):
    # A worker may have an hour for its job: its file says so, and not a limit of ours.
    monkeypatch.setattr(supervisor, "ANSWER_SECONDS", 1)
    place.write("slow", """sh -c 'trap "sleep 2; exit 0" TERM; while :; do sleep 0.1; done'""")
    supervisor.update(place.conf, "slow")
    place.wait("slow", "RUNNING")
    begun = time.monotonic()
    supervisor.stop(place.conf, "slow")
    assert time.monotonic() - begun > 1.5 and place.states("slow") == ["STOPPED"]
    supervisor.start(place.conf, "slow")
    assert place.states("slow") == ["STARTING"]
    # What is unknown is not there, and that is what was asked for.
    supervisor.stop(place.conf, "never-heard-of")
    supervisor.start(place.conf, "never-heard-of")
    supervisor.remove(place.conf, "never-heard-of")


def test_a_group_that_comes_up_while_it_is_removed_is_removed_all_the_same(place, monkeypatch):
    """Its app server is booted beside the check, which may fail in that very moment."""
    place.write("mine")
    calls, stop = [], supervisor.stop

    def late(conf: str, group: str) -> None:
        calls.append(group)
        stop(conf, group)
        if len(calls) == 1:
            supervisor.update(conf, group)

    monkeypatch.setattr(supervisor, "stop", late)
    supervisor.remove(place.conf, "mine")
    assert place.states("mine") == [] and len(calls) > 1


def test_a_group_that_is_stopping_already_is_waited_for(place):
    place.write("slow", """sh -c 'trap "sleep 2; exit 0" TERM; while :; do sleep 0.1; done'""")
    supervisor.update(place.conf, "slow")
    place.wait("slow", "RUNNING")
    supervisor.begin_stop(place.conf, "slow")
    assert place.states("slow") == ["STOPPING"]
    supervisor.remove(place.conf, "slow")
    assert place.states("slow") == []


def test_beside_a_file_that_supervisor_cannot_read_a_group_can_still_be_removed(place):
    place.write("mine")
    supervisor.update(place.conf, "mine")
    place.wait("mine", "RUNNING")
    (place.programs / "theirs.conf").write_text("[program:theirs]\nnumprocs = many\n")
    with pytest.raises(FormulaError, match=r"supervisor refuses reloadConfig \(CANT_REREAD: .*theirs"):
        supervisor.update(place.conf, "mine")
    supervisor.remove(place.conf, "mine")
    assert place.states("mine") == []


def test_supervisor_that_is_not_there_or_does_not_speak_is_a_sentence(place, tmp_path, monkeypatch):
    assert supervisor.problem(place.conf) == "" and supervisor.pid(place.conf) > 1
    place.supervisor.stop()
    assert "supervisor does not answer (" in supervisor.problem(place.conf)
    assert supervisor.problem(str(tmp_path / "none.conf")).startswith(
        f"{tmp_path}/none.conf cannot be read (No such file"
    )
    silent = tmp_path / "silent.conf"
    silent.write_text("[supervisord]\n")
    assert f"{silent} does not say where supervisor listens" in supervisor.problem(str(silent))
    monkeypatch.setattr(supervisor, "CONFIGURATIONS", (str(tmp_path / "a"), str(tmp_path / "b")))
    assert supervisor.problem("").startswith(f"there is no configuration of supervisor ({tmp_path}/a or ")


def test_an_answer_that_comes_late_or_is_none_is_a_sentence(short_tmp, monkeypatch):
    monkeypatch.setattr(supervisor, "ANSWER_SECONDS", 0.3)
    conf = short_tmp / "s.conf"
    conf.write_text("[supervisorctl]\nserverurl = unix://%(here)s/s.sock ; here\n")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(short_tmp / "s.sock"))
        server.listen()
        assert "does not answer within 0.3 s" in supervisor.problem(str(conf))
        server.accept()[0].close()
        threading.Thread(target=_talk, args=(server, b"HELLO\r\n\r\n"), daemon=True).start()
        assert "supervisor does not answer (" in supervisor.problem(str(conf))
        assert "Traceback" not in supervisor.problem(str(conf))


def test_a_supervisor_that_asks_for_a_password_gets_it(place, monkeypatch):
    place.supervisor.stop()
    conf, text = place.supervisor.conf, place.supervisor.conf.read_text()
    for section in ("[unix_http_server]", "[supervisorctl]"):
        text = text.replace(section, f"{section}\nusername = deploy\npassword = 100%% s3cret")
    conf.write_text(text)
    place.supervisor.start()
    assert supervisor.problem(place.conf) == ""
    conf.write_text(text.replace("deploy", "nobody"))
    said = supervisor.problem(place.conf)
    assert "supervisor does not answer (401 Unauthorized" in said and "s3cret" not in said
    # A variable of the environment, as supervisor reads one.
    conf.write_text(text.replace("deploy", "%(ENV_CKAN_WHO)s"))
    assert "does not say where supervisor listens ('ENV_CKAN_WHO')" in supervisor.problem(place.conf)
    monkeypatch.setenv("CKAN_WHO", "deploy")
    assert supervisor.problem(place.conf) == ""


def _talk(server: socket.socket, said: bytes) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:  # The test is over and has closed it.
            return
        with connection:
            connection.recv(4096)
            connection.sendall(said)
