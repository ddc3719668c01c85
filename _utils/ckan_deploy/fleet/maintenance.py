"""Maintenance mode on all hosts: of a run that migrates the database or undoes a migration, and by hand."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from typing import Any

from ckan_deploy.errors import FormulaError
from ckan_deploy.fleet import hosts
from ckan_deploy.fleet.hosts import Answers
from ckan_deploy.fleet.master import Master
from ckan_deploy.fleet.run import Run, Span, join

# What the report calls the two ends of it.
ON, OFF = "maintenance on", "maintenance off"
CHECK_TIMEOUT = 20


def turn(master: Master, env: str, state: str, reason: str = "", notice: Mapping[str, Any] = {}) -> Answers:
    """
    Turn maintenance on or off on all hosts of an environment.

    master
        The master.
    env
        The name of the environment.
    state
        ``on`` or ``off``.
    reason
        Why; for those who ask, not for visitors.
    notice
        ``message`` and ``until``, for visitors; what is empty is left out.

    Raises ``FormulaError`` where the environment has no hosts.
    """
    found = hosts.targets(master, env)
    about: dict[str, Any] = {"by": master.user}
    if state == "on":
        about |= {"reason": reason, **{name: value for name, value in notice.items() if value}}
    return hosts.ask(master, found.hosts, f"ckan_maintenance.{state}", about)


def check(run: Run) -> None:
    """
    Ask the hosts of a run whether their page can show its message and its end, where it has any.

    run
        The run, with its hosts.

    Raises ``FormulaError`` with what they say no to.
    """
    if notice := _notice(run):
        told = hosts.ask(run.master, run.hosts, "ckan_maintenance.on", {**notice, "test": True}, CHECK_TIMEOUT)
        if told.failures:
            raise FormulaError(join(told.failures, "plan"))


def close(run: Run) -> dict[str, str]:
    """
    Turn maintenance on for a run, with services and cron jobs stopped; a host that somebody else turned to it stays in
    it afterwards. ``run.closed`` are the hosts to open again.

    run
        The run.

    Returns ``{host: why it could not be closed}``.
    """
    notice = _notice(run)
    if "until" in notice and _is_past(run.until):
        del notice["until"]
        run.warn([f"the expected end {run.until} was over before visitors got the maintenance page; it is not shown"])
    about = {"reason": run.kind, "by": run.by, "stop_workers": True, **notice}
    begun = time.time()
    told = hosts.ask(run.master, run.hosts, "ckan_maintenance.on", about)
    run.closed = [host for host, answer in told.results.items() if host in told.failures or answer["changed"]]
    for host, answer in told.good.items():
        run.warnings += [f"{host}: {text}" for text in answer.get("warnings", [])]
    _span(run, ON, begun, bool(told.failures))
    run.save()
    return told.failures


def open_again(run: Run) -> dict[str, str]:
    """
    Turn maintenance off on the hosts that the run has turned to it.

    run
        The run.

    Returns ``{host: why it could not be opened}``.
    """
    if not run.closed:
        return {}
    begun = time.time()
    failures = hosts.ask(run.master, run.closed, "ckan_maintenance.off", {"by": run.by}).failures
    run.closed = sorted(failures)
    _span(run, OFF, begun, bool(failures))
    return failures


def _notice(run: Run) -> dict[str, Any]:
    """What a run says to visitors; what is empty is left out."""
    return {name: value for name, value in (("message", run.message), ("until", run.until)) if value}


def _is_past(until: str) -> bool:
    """The hosts have read it at plan; a minute is what it takes until visitors see the page."""
    # Python before 3.11 does not know the Z.
    end = datetime.datetime.fromisoformat(until[:-1] + "+00:00" if until.endswith("Z") else until)
    return end <= datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=1)


def _span(run: Run, name: str, begun: float, failed: bool) -> None:
    """Note it beside the stages: the report shows for how long visitors got the maintenance page."""
    run.spans.append(Span(name, "", "", begun, time.time() - begun, "failed" if failed else "ok"))
