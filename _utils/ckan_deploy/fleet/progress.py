"""
What is told of a run while it goes on: a line for each stage and host on standard error, an event on the master's bus,
and the sentence that stays as the last one.

The tag of an event is ``ckan/KIND/ENV/STAGE`` with ``deploy`` or ``rollback``; what it holds is described in
docs/events.md.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ckan_deploy.errors import FormulaError
from ckan_deploy.fleet import hosts
from ckan_deploy.fleet.master import Master, is_terminal
from ckan_deploy.fleet.record import Record
from ckan_deploy.fleet.run import Run
from ckan_deploy.system import tables

# A stage is over for a host, or a long one is under way.
SHOWN = ("ok", "failed", "warning", "progress")
LAST = ("done", "revert", "refused")


def tell(run: Run, stage: str, result: str, host: str = "", seconds: float = 0, comment: str = "") -> dict[str, Any]:
    """
    Tell that a stage begins, or how it went on a host or for the run.

    run
        The run.
    stage
        A stage, or ``done``, ``revert`` or ``refused`` at the end of the run.
    result
        ``started``, ``progress``, ``ok``, ``warning`` or ``failed``.
    host
        The host; ``''`` for the run as a whole.
    seconds
        How long it took.
    comment
        What else is to be said.

    Returns what the event holds.
    """
    payload = {
        "env": run.env, "kind": run.kind, "release": run.release, "stage": stage, "host": host, "hosts": run.hosts,
        "result": result, "seconds": round(seconds, 1), "comment": comment, "by": run.by, "job": run.job,
    }  # fmt: skip
    with contextlib.suppress(Exception):  # a master that is down must not stop the revert
        run.master.fire(payload, f"ckan/{run.kind}/{run.env}/{stage}")
    if (host and result in SHOWN) or result == "warning":
        _write(line(payload))
    return payload


def warn(run: Run, stage: str, warnings: Sequence[str], seconds: float) -> None:
    """
    Tell what was found at a stage, an event and a line for each.

    run, stage, seconds
        As for ``tell``.
    warnings
        The warnings, a sentence each.
    """
    for warning in warnings:
        tell(run, stage, "warning", seconds=seconds, comment=warning)


def note(stage: str, text: str, seconds: float = 0) -> None:
    """
    Write a line that says what goes on, for whoever sees the terminal; it is no event.

    stage
        The stage.
    text
        What goes on.
    seconds
        Since the stage began.
    """
    _write(line({"stage": stage, "host": "", "seconds": seconds, "comment": tables.clean(text), "result": "note"}))


def waiting(stage: str, names: Sequence[str]) -> None:
    """
    On a terminal: show who is at work, until the next line is written.

    stage
        The stage.
    names
        The hosts that have not answered yet.
    """
    if names and sys.stderr.isatty():
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        sys.stderr.write(f"\r\033[K{stage:<10} {', '.join(names[:4])}{more} ...")
        sys.stderr.flush()


def quiet() -> None:
    """
    Leave out what Salt says of objects of its own that it has not closed: a dozen lines on each run, some below the
    last word, that mean nothing to whoever deploys. And on the terminal the comments of steps that failed, as errors
    of the log: they stand in what Salt prints of the orchestration.
    """
    for handler in [*logging.root.handlers, logging.lastResort]:
        for rule in (_is_said, _is_no_comment) if is_terminal(handler) else (_is_said,):
            if handler and not any(getattr(known, "__name__", "") == rule.__name__ for known in handler.filters):
                handler.addFilter(rule)


def coloured(text: str, good: bool) -> str:
    """
    Return a text as it is, or, on a terminal whose user has nothing against colours, green or red.

    text
        A line.
    good
        Whether it is good news.
    """
    if not sys.stderr.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\033[1;{32 if good else 31}m{text}\033[0m"


def last_word(text: str) -> None:
    """
    Write a text when this program ends: below what Salt prints of the orchestration.

    text
        A few lines; the first one says how it ended.
    """
    atexit.register(lambda: _write(f"\n{text}"))


def line(payload: Mapping[str, Any]) -> str:
    """
    Put an event of a stage into a line.

    payload
        What the event holds.
    """
    # What a host says may come from code that nobody trusts.
    comment = tables.clean(payload["comment"])
    words = {"ok": "", "failed": f"  FAILED: {comment}", "warning": f"  warning{': ' if comment else ''}{comment}"}
    how = words.get(payload["result"], f"  {comment}")
    return f"{payload['stage']:<10} {payload['host'] or '-':<16} {payload['seconds']:7.1f} s{how}"


def watch(master: Master, env: str, timeout: float) -> str:
    """
    Print a line for each stage and host of the run that is under way, or of the next one, until it ends.

    master
        The master.
    env
        The name of the environment.
    timeout
        How long at most, in seconds.

    Returns how it ended. Raises ``FormulaError`` where it failed, or nothing was seen of an end in that time.
    """
    hosts.targets(master, env)
    deadline, tags = time.monotonic() + timeout, re.compile(rf"ckan/(deploy|rollback)/{re.escape(env)}/\w+")
    with master.listen() as following:
        record = Record(master, env)
        lock, told = record.lock(), record.run()
        print(lock.sentence() if lock else f"no run is under way for {env}", flush=True)
        if lock and told and told.get("job") == lock.job:
            for span in told["spans"]:
                print(line({**span, "comment": ""}), flush=True)
        while time.monotonic() < deadline:
            event = following(1)
            if not event or not tags.fullmatch(event[0]):
                continue
            payload = event[1]
            if payload["stage"] in LAST and payload["result"] == "ok":
                return str(payload["comment"])
            if payload["stage"] in LAST:
                raise FormulaError(payload["comment"])
            if payload["result"] != "started":
                print(line(payload), flush=True)
    raise FormulaError(f"nothing was seen of the end of a run of {env} in {timeout} s; see salt-run ckan.status {env}")


def _is_said(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("unclosed ")


def _is_no_comment(record: logging.LogRecord) -> bool:
    return record.name != "salt.state" or record.funcName != "format_log"


def _write(text: str) -> None:
    clear = "\r\033[K" if sys.stderr.isatty() else ""
    with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
        sys.stderr.write(f"{clear}{text}\n")
        sys.stderr.flush()
