"""Starting a service in the foreground, waiting until it is ready, and stopping just that process."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil


class PartError(RuntimeError):
    """A part could not be installed, started or stopped; the message says why."""


def sandbox(prefix: str = "ckan-") -> Path:
    """Make a new directory below the system's temporary one with a short path that all users may enter."""
    path = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    path.chmod(0o755)
    return path


def last_lines(path: Path, count: int = 15) -> str:
    """Return the end of a log file, or an empty string where there is none."""
    if not path.exists():
        return ""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])


def run(
    command: Sequence[str | Path],
    what: str,
    log: Path,
    *,
    say: Callable[[str], None] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 1200,
) -> None:
    """Run a long command to its end, with its output in a log file.

    command
        The program and its arguments.
    what
        Says what it does, for the progress lines and the error.
    log
        File that the output is appended to.
    say
        Called with a progress line at the start and every 5 seconds.
    env
        Variables on top of this process's own.
    cwd
        Directory to run it in.
    timeout
        Seconds after which it is killed.

    Raises PartError when it fails or takes too long.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=cwd,
        )
        try:
            while process.returncode is None:
                elapsed = time.monotonic() - start
                if say:
                    say(f"{what} ({elapsed:.0f} s)" if elapsed > 1 else what)
                if elapsed > timeout:
                    raise PartError(f"{what} took more than {timeout:.0f} s; see {log}")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode:
        raise PartError(f"{what} failed with exit code {process.returncode}; see {log}:\n{last_lines(log)}")


def _start_time(pid: int) -> str:
    """When the kernel started a process, or an empty string if it does not run any more."""
    try:
        # The name of the program may hold blanks and brackets; what is after the last bracket is regular.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] == "Z" else fields[19]


class Service:
    """One process in the foreground of its own session.

    sandbox
        Directory of all the parts.
    name
        Name of the service, unique in the sandbox; its files are named after it.
    stop_signal
        What asks it to end.
    """

    def __init__(self, sandbox: str | Path, name: str, stop_signal: int = signal.SIGTERM) -> None:
        self.sandbox = Path(sandbox)
        self.name = name
        self.directory = self.sandbox / name
        self.log = self.sandbox / "log" / f"{name}.log"
        self.record = self.sandbox / "run" / f"{name}.json"
        self.stop_signal = stop_signal
        self._process: subprocess.Popen | None = None
        for path in (self.directory, self.log.parent, self.record.parent):
            path.mkdir(parents=True, exist_ok=True)

    def launch(
        self,
        command: Sequence[str | Path],
        ready: Callable[[], bool],
        *,
        timeout: float = 60,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Start the process and wait until it is ready.

        command
            The program and its arguments.
        ready
            Asked again and again until it says True.
        timeout
            Seconds to wait for that.
        user
            Whom to run it as when we are root.
        env
            Variables on top of a plain environment: what this process runs in (a virtualenv, say) stays out.

        Raises PartError with the end of the log when it ends early or is not ready in time.
        """
        if self.pid():
            raise PartError(f"{self.name} already runs with pid {self.pid()}; stop it first")
        account = pwd.getpwnam(user) if user and os.getuid() == 0 else None
        plain = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
        plain["HOME"] = account.pw_dir if account else os.path.expanduser("~")
        identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**plain, **(env or {})},
                cwd=self.directory,
                start_new_session=True,
                **identity,
            )
        pid = self._process.pid
        record = {"pid": pid, "start": _start_time(pid), "signal": int(self.stop_signal), "at": time.time()}
        self.record.write_text(json.dumps(record), encoding="utf-8")
        try:
            self._wait(ready, timeout)
        except BaseException:
            self.stop()
            raise

    def _wait(self, ready: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not ready():
            if self._process.poll() is not None:
                code = self._process.returncode
                raise PartError(f"{self.name} ended with exit code {code}; see {self.log}:\n{last_lines(self.log)}")
            if time.monotonic() > deadline:
                said = last_lines(self.log)
                raise PartError(f"{self.name} was not ready after {timeout:.0f} s; see {self.log}:\n{said}")
            time.sleep(0.1)

    def pid(self) -> int:
        """Return the pid of what was started, by this or another process, or 0 if it does not run."""
        if self._process:
            self._process.poll()
        try:
            record = json.loads(self.record.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return 0
        # The kernel gives pids out again: the start time tells whether it is still the same process.
        return record["pid"] if record["start"] and _start_time(record["pid"]) == record["start"] else 0

    def ask(self, pid: int) -> None:
        """Ask the process to end, in the way that was told when it was started."""
        asked = json.loads(self.record.read_text(encoding="utf-8"))["signal"]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, asked)

    def stop(self, timeout: float = 20) -> None:
        """Ask the process to end and kill it, with what it left in its session's first group, after a time.

        timeout
            Seconds that it has to end by itself.

        Raises PartError if it still runs after all that.
        """
        pid = self.pid()
        if pid:
            self.ask(pid)
            if not self._gone(timeout):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                if not self._gone(10):
                    raise PartError(f"{self.name} (pid {pid}) cannot be stopped; look at it with ps")
        self.record.unlink(missing_ok=True)

    def kill(self) -> None:
        """End the process and its group at once, as a host that loses power would.

        Raises PartError if it still runs after ten seconds.
        """
        pid = self.pid()
        if pid:
            os.killpg(pid, signal.SIGKILL)
            if not self._gone(10):
                raise PartError(f"{self.name} (pid {pid}) cannot be killed; look at it with ps")
        self.record.unlink(missing_ok=True)

    def _gone(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while self.pid():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


def _services(sandbox: str | Path) -> list[Service]:
    """The services that were started in a sandbox, by this or another process."""
    return [Service(sandbox, record.stem) for record in sorted((Path(sandbox) / "run").glob("*.json"))]


def stop_all(sandbox: str | Path) -> list[str]:
    """Stop all services of a sandbox, all at once: one after the other takes seconds for each.

    sandbox
        Directory of all the parts.

    Returns the names of those that ran.
    """
    services = _services(sandbox)
    running = [service.name for service in services if service.pid()]
    with ThreadPoolExecutor(max_workers=max(len(services), 1)) as pool:
        for done in [pool.submit(service.stop) for service in services]:
            done.result()
    return running


def kill_all(sandbox: str | Path) -> None:
    """End all services of a sandbox, and what they have started: for a sandbox that nobody looks at any more.

    sandbox
        Directory of all the parts.
    """
    trees: list[psutil.Process] = []
    services = _services(sandbox)
    for service in services:
        with contextlib.suppress(psutil.NoSuchProcess):
            if pid := service.pid():
                trees += [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]
                # PostgreSQL, killed, would leave shared memory.
                service.ask(pid)
    _, left = psutil.wait_procs(trees, timeout=2)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=10)
    for service in services:
        service.kill()
