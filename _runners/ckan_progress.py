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
import sys
from typing import Any

import salt.utils.event

# A stage is over for a host, or a long one is under way.
SHOWN = ("ok", "failed", "warning", "progress")
LAST = ("done", "way_back", "refused")


def tell(ticket: dict, stage: str, result: str, host: str = "", seconds: float = 0, comment: str = "") -> dict:
    """
    Tell that a stage begins, or how it went on a host or for the run.

    ticket
        What the run knows.
    stage
        A stage, or ``done``, ``way_back`` or ``refused`` at the end of the run.
    result
        ``started``, ``progress``, ``ok``, ``warning`` or ``failed``.
    host
        The host; ``''`` for the run as a whole.
    seconds
        How long it took.
    comment
        What else is to be said.

    Returns what the event holds.

    CLI Example: not for the command line; use ``ckan.watch``.
    """
    payload = {
        "env": ticket["env"], "kind": ticket["kind"], "release": ticket.get("release", ""), "stage": stage,
        "host": host, "hosts": ticket["hosts"], "result": result, "seconds": round(seconds, 1), "comment": comment,
        "by": ticket["by"], "job": ticket["job"],
    }  # fmt: skip
    with (
        contextlib.suppress(Exception),
        salt.utils.event.get_master_event(__opts__, __opts__["sock_dir"], listen=False) as bus,
    ):  # a master that is down must not stop the way back
        bus.fire_event(payload, f"ckan/{ticket['kind']}/{ticket['env']}/{stage}")
    if host and result in SHOWN:
        _write(line(payload))
    return payload


def waiting(stage: str, hosts: list[str]) -> bool:
    """
    On a terminal: show who is at work, until the next line is written.

    stage
        The stage.
    hosts
        The hosts that have not answered yet.

    Returns whether that is a terminal.

    CLI Example: not for the command line.
    """
    if hosts and sys.stderr.isatty():
        more = f" and {len(hosts) - 4} more" if len(hosts) > 4 else ""
        sys.stderr.write(f"\r\033[K{stage:<10} {', '.join(hosts[:4])}{more} ...")
        sys.stderr.flush()
    return sys.stderr.isatty()


def quiet() -> bool:
    """
    Leave out what Salt says of objects of its own that it has not closed: a dozen lines on each run, some below the
    last word, that mean nothing to whoever deploys.

    CLI Example: not for the command line.
    """
    for handler in [*logging.root.handlers, logging.lastResort]:
        if handler and not any(getattr(rule, "__name__", "") == _is_said.__name__ for rule in handler.filters):
            handler.addFilter(_is_said)
    return True


def last_word(text: str) -> bool:
    """
    Write a text when this program ends: below what Salt prints of the orchestration.

    text
        A few lines.

    CLI Example: not for the command line.
    """
    atexit.register(lambda: _write(f"\n{text}"))
    return True


def line(payload: dict[str, Any]) -> str:
    """
    Put an event into a line.

    payload
        What the event holds.

    CLI Example: not for the command line; ``ckan.watch`` uses it.
    """
    if payload["stage"] in LAST:
        return f"{payload['stage'].replace('_', ' ')}: {payload['comment']}"
    how = {"ok": "", "failed": f"  FAILED: {payload['comment']}"}.get(payload["result"], f"  {payload['comment']}")
    return f"{payload['stage']:<10} {payload['host'] or '-':<16} {payload['seconds']:7.1f} s{how}"


def _is_said(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("unclosed ")


def _write(text: str) -> None:
    clear = "\r\033[K" if sys.stderr.isatty() else ""
    with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
        sys.stderr.write(f"{clear}{text}\n")
        sys.stderr.flush()
