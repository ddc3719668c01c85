"""
Programs, run in one place: quietly, as another user where that is asked for, with words for what they say. And what a
process that serves takes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import termios
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import psutil

from ckan_deploy.errors import FormulaError

# How long is waited for the end of a program that was killed.
END_SECONDS = 5
# Of an address: `?private_token=...`, `&X-Amz-Signature=...`.
_SECRET_PARAMETER = re.compile(
    r"([?&;][^=&;#?\s]*(?:passw|passphrase|secret|token|credential|signature|auth(?!or)|key|\bsig)[^=&;#?\s]*=)"
    r"([^&;#\s\"'<>)]+)",
    re.I,
)


class Done(NamedTuple):
    """A program that has ended: its exit code, and what it printed, without white space at the end."""

    retcode: int
    stdout: str
    stderr: str


def run(
    command: Sequence[str],
    *,
    user: str = "",
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
    timeout: float | None = 600,
    stdin: str = "",
    pass_fds: Sequence[int] = (),
) -> Done:
    """
    Run a program and return what it said.

    command
        The program and its arguments.
    user
        Who runs it; '' for whoever runs this. That user needs neither a shell nor a home: HOME is ``/nonexistent``
        unless ``env`` names one.
    env
        Variables beside those that are there. What is secret belongs here, not into ``command``.
    cwd
        Where it runs.
    timeout
        Seconds, after which it is killed with all that it started; None for no limit.
    stdin
        What it reads.
    pass_fds
        Open files that it gets besides, under the same numbers.

    Returns ``Done``. Raises ``FormulaError`` where there is no such program or it cannot be started, and nothing for
    one that fails; one that was killed for its time has exit code 1 and says so.
    """
    if not shutil.which(command[0]):
        raise FormulaError(f"there is no program {command[0]}; install it or correct its path.")
    variables = {"LC_ALL": "C.UTF-8", **(env or {})}
    if user and os.geteuid() == 0:
        # Not by a login: build users have no shell.
        command = ["runuser", "-u", user, "--", *command]
        variables.setdefault("HOME", "/nonexistent")
    # What tells systemd of the minion is not for programs that the minion runs.
    inherited = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    detach = _leave_terminal if user and _has_terminal() else None
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd,
            env={**inherited, **variables}, umask=0o022, preexec_fn=detach, pass_fds=pass_fds,
        )  # fmt: skip
    except OSError as exc:
        raise FormulaError(f"{command[0]} cannot be run in {cwd} ({exc.strerror}); correct that.") from exc
    try:
        stdout, stderr = process.communicate(stdin.encode("utf-8"), timeout=timeout)
    except subprocess.TimeoutExpired as exc:
        _end(process)
        return Done(1, f"{command[0]} : Timed out after {exc.timeout:g} seconds", "")
    except BaseException:
        _end(process)
        raise
    return Done(process.returncode, _text(stdout), _text(stderr))


def usage(pid: int) -> dict[str, float]:
    """
    Say what a process takes.

    pid
        Its id.

    Returns ``{"memory_mb", "age_seconds"}``; memory is what it has for itself alone (USS). Raises ``psutil.Error``.
    """
    process = psutil.Process(pid)
    return {
        "memory_mb": round(process.memory_full_info().uss / 2**20, 1),
        "age_seconds": round(time.time() - process.create_time()),
    }


def tail(said: Done, lines: int = 12, hide: Iterable[str] = ()) -> str:
    """
    Return the last lines of what a program said as one, without its progress and without passwords.

    said
        What ``run`` returned.
    lines
        How many lines at most.
    hide
        Texts that must not appear.
    """
    text = said.stderr if said.stderr.strip() else said.stdout
    kept = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    first = next((index for index, line in enumerate(kept) if re.match(r"(error|ERROR|×|x )", line)), 0)
    # What a traceback goes through helps nobody here; its last line says it.
    kept = [line for line in kept[first:] if not re.match(r"(Traceback \(most|File \"|hint: )", line)]
    told = " ".join(kept[-lines:]) or "no message"
    for secret in filter(None, hide):
        told = told.replace(secret, "****")
    return without_logins(told)


def without_logins(text: str, instead: str = "") -> str:
    """
    Return a text without what looks like a login in an address, or like a token in its query.

    text
        The text.
    instead
        What stands in the place of a login; by default nothing.
    """
    text = re.sub(r"://[^\s/@]*@", f"://{instead}@" if instead else "://", text)
    return _SECRET_PARAMETER.sub(rf"\g<1>{instead or '****'}", text)


def secret_parameters(address: str) -> list[str]:
    """
    Return the values in an address's query that look like secrets by their names.

    address
        The address.
    """
    return [match[2] for match in _SECRET_PARAMETER.finditer(address)]


def _has_terminal() -> bool:
    """Whether this was started at a terminal, as ``salt-call`` is, and not as a service."""
    with contextlib.suppress(OSError):
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
        return True
    return False


def _leave_terminal() -> None:
    """
    Take the terminal away from a program of another user, which could type commands there in root's name (TIOCSTI). It
    stays in its process group, and so ends with what has started it.
    """
    fd = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    fcntl.ioctl(fd, termios.TIOCNOTTY)
    os.close(fd)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a program with all that it started; it stays in the process group of the minion, and ends with that."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    # One that had left its parent lives on, and may hold the pipes open.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=END_SECONDS)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace").rstrip()
