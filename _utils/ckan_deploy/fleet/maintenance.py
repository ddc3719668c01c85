"""Maintenance mode on all hosts: of a run that migrates the database or undoes a migration, and by hand."""

from __future__ import annotations

from ckan_deploy.fleet import hosts
from ckan_deploy.fleet.hosts import Answers
from ckan_deploy.fleet.master import Master
from ckan_deploy.fleet.run import Run


def turn(master: Master, env: str, state: str, reason: str = "") -> Answers:
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

    Raises ``FormulaError`` where the environment has no hosts.
    """
    found = hosts.targets(master, env)
    about = {"by": master.user, **({"reason": reason} if state == "on" else {})}
    return hosts.ask(master, found.hosts, f"ckan_maintenance.{state}", about)


def close(run: Run) -> dict[str, str]:
    """
    Turn maintenance on for a run, with services and cron jobs stopped; a host that somebody else turned to it stays in
    it afterwards. ``run.closed`` are the hosts to open again.

    run
        The run.

    Returns ``{host: why it could not be closed}``.
    """
    about = {"reason": run.kind, "by": run.by, "stop_workers": True}
    told = hosts.ask(run.master, run.hosts, "ckan_maintenance.on", about)
    run.closed = [host for host, answer in told.results.items() if host in told.failures or answer["changed"]]
    for host, answer in told.good.items():
        run.warnings += [f"{host}: {text}" for text in answer.get("warnings", [])]
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
    failures = hosts.ask(run.master, run.closed, "ckan_maintenance.off", {"by": run.by}).failures
    run.closed = sorted(failures)
    return failures
