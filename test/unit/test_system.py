"""Files, programs, supervisor and arguments: what any program needs of a machine."""

from __future__ import annotations

import datetime
import os
import pty
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ckan_deploy.errors import FormulaError, InvalidArgument
from ckan_deploy.system import arguments, files, processes
from ckan_deploy.system.processes import Done


def test_a_link_put_in_the_place_of_a_draft_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    secret, target = tmp_path / "secret", tmp_path / "file"
    secret.write_text("x")
    secret.chmod(0o600)
    real = os.fsync

    def swap(fd: int) -> None:
        if os.path.exists(f"{target}.tmp"):
            # What the build user may do to a directory of its own.
            os.rename(f"{target}.tmp", tmp_path / "moved")
            os.symlink(secret, f"{target}.tmp")
        real(fd)

    monkeypatch.setattr(os, "fsync", swap)
    files.write(str(target), "text", mode=0o644, durable=True)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600 and secret.read_text() == "x"
    assert stat.S_IMODE((tmp_path / "moved").stat().st_mode) == 0o644


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_a_file_has_its_mode_whatever_the_umask_is(tmp_path: Path, mode: int):
    before = os.umask(0o077)
    try:
        files.write(str(tmp_path / "file"), "é", mode=mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
    assert (tmp_path / "file").read_text(encoding="utf-8") == "é"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_group_that_is_not_there_is_a_sentence_and_leaves_nothing(tmp_path: Path):
    with pytest.raises(FormulaError, match="there is no group no-such-group; run state.apply ckan first"):
        files.write(str(tmp_path / "file"), "x", group="no-such-group")
    assert list(tmp_path.iterdir()) == []


def test_a_program_gets_the_environment_of_the_minion_but_for_the_socket_of_systemd(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    monkeypatch.setenv("CKAN_TEST", "here")
    done = processes.run(["env"], env={"CKAN_MORE": "too"})
    assert {"CKAN_TEST=here", "CKAN_MORE=too", "LC_ALL=C.UTF-8"} <= {*done.stdout.splitlines()}
    assert "NOTIFY_SOCKET" not in done.stdout


def test_a_program_that_cannot_be_started_is_a_sentence(tmp_path: Path):
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF")
    broken.chmod(0o755)
    with pytest.raises(FormulaError, match=r"broken cannot be run in / \(Exec format error\); correct that\."):
        processes.run([str(broken)])
    with pytest.raises(FormulaError, match="cannot be run in /no/such/place"):
        processes.run(["true"], cwd="/no/such/place")
    with pytest.raises(FormulaError, match="there is no program no-such-program"):
        processes.run(["no-such-program"])


def test_a_program_that_is_killed_for_its_time_is_not_waited_for_beyond_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "END_SECONDS", 0.2)
    begun = time.monotonic()
    # What has left its parent is not known any more, and holds the pipe open.
    done = processes.run(["sh", "-c", "(setsid sleep 8 &) ; sleep 60"], timeout=0.3)
    assert done == Done(1, "sh : Timed out after 0.3 seconds", "") and time.monotonic() - begun < 5


def test_a_line_is_made_of_whatever_was_said():
    assert arguments.line("reason", "build: it failed:\n  one\n\ttwo\u00a0three ") == "build: it failed: one two three"
    assert arguments.line("reason", "é" * 3000) == "é" * 1997 + "..." and arguments.line("reason", 7) == "7"
    for odd in (["x"], {"a": 1}, None):
        with pytest.raises(InvalidArgument, match="reason must be a line of text"):
            arguments.line("reason", odd)


def test_a_dictionary_that_a_manifest_cannot_hold_is_refused():
    assert arguments.mapping("index", None) == {} and arguments.mapping("index", {"a": [1]}) == {"a": [1]}
    for odd in ([], "x", {"a": datetime.date(2026, 1, 1)}, {"a": {1, 2}}):
        with pytest.raises(InvalidArgument, match="index must be a dictionary"):
            arguments.mapping("index", odd)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs programs as another user")
@pytest.mark.parametrize(("user", "code"), [("", 0), ("www-data", 2)])
def test_a_program_of_another_user_cannot_type_at_roots_terminal(user: str, code: int):
    pid, terminal = pty.fork()
    if not pid:
        done = processes.run(["sh", "-c", ": < /dev/tty"], user=user)
        os._exit(done.retcode)
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == code


def test_of_a_log_the_end_is_read_however_long_it_is(tmp_path: Path):
    log = tmp_path / "log"
    assert files.end_of(str(log)) == ""
    with log.open("wb") as handle:
        handle.truncate(2**40)
        handle.seek(0, os.SEEK_END)
        handle.write("Indexing dataset 1/2\xff é".encode("utf-8", "surrogateescape"))
    assert files.end_of(str(log)).endswith("1/2\xff é") and len(files.end_of(str(log))) <= 65536


def test_the_umask_is_as_it_was_whatever_order_threads_end_in_and_what_salt_does_meanwhile(tmp_path):
    """A run had made directories that nobody could enter: Salt sets the umask for a moment when it fetches a file."""
    before, inside, go_on = os.umask(0o027), threading.Event(), threading.Event()
    try:

        def first() -> None:
            with files.usual_modes():
                inside.set()
                go_on.wait(5)

        def salt() -> None:
            with files.umask_kept():
                was = os.umask(0o077)
                inside.set()
                go_on.wait(5)
                os.umask(was)

        for other in (first, salt):
            inside.clear()
            go_on.clear()
            with ThreadPoolExecutor(1) as pool:
                done = pool.submit(other)
                assert inside.wait(5)
                threading.Timer(0.2, go_on.set).start()
                with files.usual_modes():
                    if other is first:
                        go_on.set()
                    done.result()
                    (tmp_path / other.__name__).mkdir()
            assert stat.S_IMODE((tmp_path / other.__name__).stat().st_mode) == 0o755
            assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
