"""What is measured from outside: CPU of all processes of a contestant, and what visitors get."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from peers.origins import MARK


def _cgroup_home() -> Path | None:
    """The directory of this process in the hierarchy of cgroup v2, where there is one."""
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, mount, kind, *_ = line.split()
        if kind == "cgroup2":
            own = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
            path = next((line[3:] for line in own if line.startswith("0::")), "/")
            return Path(mount) / path.lstrip("/")
    return None


class Group:
    """The processes of a contestant: all that is started within `entered`, and what those start.

    name
        Name of the contestant.
    sandbox
        Directory of its services, for a machine without cgroup v2.
    """

    def __init__(self, name: str, sandbox: Path) -> None:
        self.sandbox = sandbox
        self.home = _cgroup_home()
        self.path: Path | None = None
        if self.home:
            path = self.home / f"ckan-peers-{os.getpid()}-{name}"
            with contextlib.suppress(OSError):
                path.mkdir()
                self.path = path
                # Not every machine lets processes in.
                with self.entered():
                    self.seconds()
                return
            self.path = None
            with contextlib.suppress(OSError):
                path.rmdir()

    @property
    def kind(self) -> str:
        """How CPU is measured."""
        return "cgroup v2" if self.path else "psutil, of the services and what they and the command have waited for"

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Start processes of the contestant in this block. Nothing else may go on in this process meanwhile."""
        if not (self.path and self.home):
            yield
            return
        (self.path / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield
        finally:
            (self.home / "cgroup.procs").write_text(str(os.getpid()))

    def seconds(self) -> float:
        """CPU seconds that all its processes have had so far, those that are over included."""
        if self.path:
            told = dict(line.split() for line in (self.path / "cpu.stat").read_text().splitlines())
            return int(told["usage_usec"]) / 1e6
        own = os.times()
        spent = own.children_user + own.children_system
        for record in self.sandbox.glob("run/*.json"):
            with contextlib.suppress(psutil.NoSuchProcess):
                main = psutil.Process(json.loads(record.read_text())["pid"])
                for process in [main, *main.children(recursive=True)]:
                    times = process.cpu_times()
                    spent += times.user + times.system + times.children_user + times.children_system
        return spent

    def settle(self, idle: float, timeout: float = 60) -> None:
        """Wait until its processes have nothing to do for two seconds, apart from what they do when idle.

        idle
            CPU seconds a second of the idle contestant.
        timeout
            Seconds to wait at most.
        """
        deadline, calm, before = time.monotonic() + timeout, 0, self.seconds()
        while calm < 2 and time.monotonic() < deadline:
            time.sleep(1)
            now = self.seconds()
            calm = calm + 1 if now - before < 1.5 * idle + 0.05 else 0
            before = now

    def end(self) -> None:
        """End what is left of its processes, each by its id, and remove the group."""
        if not self.path:
            return
        procs = self.path / "cgroup.procs"
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + 5
            while (left := procs.read_text().split()) and time.monotonic() < deadline:
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), number)
                time.sleep(0.2)
        with contextlib.suppress(OSError):
            self.path.rmdir()


class Watch:
    """Asks each host for the page with the release's mark, again and again: ``with Watch(ports) as watch: ...``.

    ports
        The web servers of the hosts, on this machine.
    pause
        Seconds from one question to the next, whichever host is asked.
    """

    def __init__(self, ports: list[int], pause: float = 0.02) -> None:
        self.pause = pause * len(ports)
        # So many answers of another release are no coincidence.
        self.enough = 10 if pause < 0.1 else 2
        # By host: when each good answer came, and the mark that it had.
        self.seen: list[list[tuple[float, str]]] = [[] for _ in ports]
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(port, seen), daemon=True)
            for port, seen in zip(ports, self.seen, strict=True)
        ]

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        deadline = time.monotonic() + 60
        while not all(self.seen):
            if time.monotonic() > deadline:
                raise RuntimeError(f"no answer to {MARK} of all hosts within a minute")
            time.sleep(0.01)
        self.old = [seen[0][1] for seen in self.seen]
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    @property
    def answers(self) -> int:
        """How many good answers there were."""
        return sum(len(seen) for seen in self.seen)

    def wait(self, timeout: float = 120) -> None:
        """Wait until the last few answers of each host are from another release than the first one was.

        Raises RuntimeError when that does not come.
        """
        deadline = time.monotonic() + timeout
        while not all(self._changed(old, seen) for old, seen in zip(self.old, self.seen, strict=True)):
            if time.monotonic() > deadline:
                raise RuntimeError(f"visitors still get {self.old} {timeout:.0f} s after the end of the command")
            time.sleep(0.05)

    def _changed(self, old: str, seen: list[tuple[float, str]]) -> bool:
        return len(seen) > self.enough and all(mark != old for _, mark in seen[-self.enough :])

    def changed(self) -> float:
        """Return when the last host gave its first answer of another release after which none of the old one came."""
        moments = []
        for old, seen in zip(self.old, self.seen, strict=True):
            last = max(index for index, (_, mark) in enumerate(seen) if mark == old)
            moments.append(seen[last + 1][0])
        return max(moments)

    def _ask(self, port: int, seen: list[tuple[float, str]]) -> None:
        following = time.monotonic()
        while not self._over.wait(max(0.0, following - time.monotonic())):
            following = max(following + self.pause, time.monotonic())
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                connection.request("GET", MARK, headers={"Host": "127.0.0.1"})
                answer = connection.getresponse()
                mark = answer.read().decode()
                connection.close()
            except (OSError, http.client.HTTPException):
                continue
            if answer.status == 200:
                seen.append((time.monotonic(), mark))
