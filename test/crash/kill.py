"""
A function that runs in a process of its own and is killed at its n-th call that changes files, as a minion is killed by
the kernel: nothing of it gets a chance to tidy up.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# What Python says of itself (https://docs.python.org/3/library/audit_events.html) that changes files.
EVENTS = {
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.chown", "os.truncate",
    "os.utime", "subprocess.Popen",
}  # fmt: skip
# What it does not tell.
SILENT = ("write", "fsync", "posix_fallocate", "sendfile", "copy_file_range")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CLONE_NEWNS, CLONE_NEWPID = 0x20000, 0x20000000
PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True)


class Ended(NamedTuple):
    """How it ended: its calls (all of them, or the last one before the kill), what it raised, and its answer."""

    calls: list[str]
    killed: bool
    said: str
    answer: Any = None


class Running:
    """A function at work. ``wait`` says how it ended, ``settle`` waits for the programs that it has left running."""

    def __init__(self, function: Callable[[], Any], at: int = 0, together: bool = False) -> None:
        """
        function
            What runs; its answer must be JSON.
        at
            The number of the call that it does not live to see; 0 to let it run.
        together
            The programs that it has started die with it, as where a whole service is killed; else they live on.
        """
        self._pipe, there = os.pipe()
        self._keeper = os.fork()
        if self._keeper == 0:
            os.close(self._pipe)
            _guarded(lambda: _keep(function, at, together, there))
        os.close(there)

    def wait(self) -> Ended:
        told = b""
        while not told.endswith(b"\n"):
            more = os.read(self._pipe, 2**16)
            if not more:
                raise RuntimeError(f"it ended without a word: {told.decode()}")
            told += more
        os.close(self._pipe)
        return Ended(**json.loads(told))

    def settle(self) -> None:
        if self._keeper:
            os.waitpid(self._keeper, 0)
        self._keeper = 0


def run(function: Callable[[], Any], at: int = 0, together: bool = False) -> Ended:
    """Run a function, and wait for its end and for that of the programs that it has left; parameters as for Running."""
    running = Running(function, at, together)
    ended = running.wait()
    running.settle()
    return ended


def _guarded(function: Callable[[], Any]) -> None:
    """In a fork: nothing of the test runs on, whatever happens."""
    try:
        function()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _keep(function: Callable[[], Any], at: int, together: bool, there: int) -> None:
    """Between the test and the function: tells how that ended, and stays until no program of it is left."""
    # Programs whose parent is killed become children of this one.
    _LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if together and _LIBC.unshare(CLONE_NEWNS | CLONE_NEWPID):
        raise OSError(ctypes.get_errno(), "no namespaces here")
    pipe, inner = os.pipe()
    pid = os.fork()
    if pid == 0:
        _guarded(lambda: _work(function, at, together, inner))
    os.close(inner)
    done: dict[str, Any] = {}
    with os.fdopen(pipe) as told:
        for line in told:
            done = json.loads(line)
            if done.get("kill"):
                os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    done.pop("kill", None)
    ended = {"calls": [], "said": "", **done, "killed": os.WIFSIGNALED(status)}
    if not done:
        ended["said"] = "it ended without a word"
    os.write(there, (json.dumps(ended) + "\n").encode())
    os.close(there)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


def _work(function: Callable[[], Any], at: int, together: bool, told: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.dont_write_bytecode = True
    if together:
        # The first of its namespace: the kernel kills all others with it. Nothing of the mounts reaches the machine.
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "proc", "proc", "/proc"], check=True)
    calls: list[str] = []

    def count(what: str) -> None:
        calls.append(what)
        if len(calls) == at:
            # The keeper does it: the first process of a namespace cannot kill itself.
            os_write(told, (json.dumps({"calls": [what], "kill": True}) + "\n").encode())
            while True:
                signal.pause()

    os_write = os.write
    _watch(count)
    ended: dict[str, Any] = {"said": ""}
    try:
        ended["answer"] = function()
    except Exception as exc:
        ended["said"] = f"{type(exc).__name__}: {exc}"
    os_write(told, (json.dumps({**ended, "calls": list(calls)}) + "\n").encode())


def _watch(count: Callable[[str], None]) -> None:
    """Have each call that changes files counted before it is done, and each program a second time when it runs."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in EVENTS:
            count(f"{event.removeprefix('os.')} {' '.join(_shown(arg) for arg in args[:2])}")
        elif event == "open" and isinstance(args[2], int) and args[2] & WRITES and not str(args[0]).startswith("/dev/"):
            count(f"open {_shown(args[0])}")

    sys.addaudithook(hook)
    for name in SILENT:
        if hasattr(os, name):
            setattr(os, name, _counted(getattr(os, name), name, count))
    begin = subprocess.Popen.__init__

    def started(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        count(f"running {_shown(self.args)}")

    subprocess.Popen.__init__ = started  # type: ignore[method-assign]


def _counted(function: Callable[..., Any], name: str, count: Callable[[str], None]) -> Callable[..., Any]:
    def call(descriptor: int, *args: Any) -> Any:
        count(f"{name} {_shown(descriptor)}")
        return function(descriptor, *args)

    return call


def _shown(what: Any) -> str:
    if isinstance(what, int):
        try:
            return os.readlink(f"/proc/self/fd/{what}")
        except OSError:
            return ""
    if isinstance(what, (list, tuple)):
        return " ".join(map(str, what[:3]))
    return str(Path(os.fsdecode(what))) if isinstance(what, (str, bytes, os.PathLike)) else ""
