"""Supervisor, asked by ``supervisorctl``: the one of the system, or one of our own."""

from __future__ import annotations

import re
from typing import NamedTuple

from ckan_deploy.errors import FormulaError
from ckan_deploy.system import processes as programs

_LINE = re.compile(r"^([^\s:]+)(?::\S+)?\s+([A-Z]+)\b(?:\s+pid (\d+))?")


class Process(NamedTuple):
    """A process as supervisor says; ``pid`` is 0 where none runs."""

    state: str
    pid: int


def ask(conf: str, command: str, name: str = "") -> str:
    """
    Give supervisor a command and return what it says.

    conf
        The configuration of a supervisor of our own; '' for the system's.
    command
        Such as ``update``, ``status`` or ``pid``.
    name
        A program, or a group with ``:`` behind it.

    Returns what it prints, with ``ERROR: `` before it where the command fails without saying so.
    """
    own = ["-c", conf] if conf else []
    # For as long as the program that it stops may take: its file says how long that is.
    done = programs.run(["supervisorctl", *own, command, *([name] if name else [])], timeout=None)
    return done.stdout if done.retcode == 0 or "ERROR" in done.stdout else f"ERROR: {done.stdout}"


def expect(conf: str, command: str, name: str = "") -> str:
    """
    As ``ask``, for where supervisor has to answer.

    conf, command, name
        As for ``ask``.

    Raises ``FormulaError`` when it does not answer.
    """
    said = ask(conf, command, name)
    if _problem(said):
        raise FormulaError(f"{_problem(said)}.")
    return said


def processes(conf: str, name: str = "") -> dict[str, list[Process]]:
    """
    Return the processes of each program, or of each group of them.

    conf
        As for ``ask``.
    name
        A program or a group; by default all.

    Returns ``{name: [processes]}``. Raises ``FormulaError`` when supervisor does not answer.
    """
    found: dict[str, list[Process]] = {}
    # A group is asked for by all of its processes; a program alone is a group of its own.
    told = expect(conf, "status", f"{name}:*" if name else "")
    for line in told.removeprefix("ERROR: ").splitlines():
        if match := _LINE.match(line):
            found.setdefault(match[1], []).append(Process(match[2], int(match[3] or 0)))
    return found


def problem(conf: str) -> str:
    """
    Say what keeps supervisor from being asked, or ``''``.

    conf
        As for ``ask``.
    """
    try:
        return _problem(ask(conf, "status"))
    except FormulaError as exc:
        return str(exc).rstrip(".")


def last_line(said: str) -> str:
    """
    Return the last line of what supervisor said, for a message.

    said
        What it said.
    """
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def _problem(said: str) -> str:
    if "refused" in said or "no such file" in said or "SHUTDOWN" in said:
        return f"supervisor does not answer ({last_line(said)}); start it"
    return ""
