"""
The way back of a run that failed or died: every host gets back what it served before, and the database that it knows.
"""

from __future__ import annotations

import re
import time

# How long is waited for a host that does not answer at once, or for a master that is being restarted.
PATIENCE = 60
# What ``ckan_hosts.ask`` says of a host that may answer a moment later.
NO_ANSWER = re.compile(r"does not (answer; start|take jobs)")


def undo(ticket: dict, reason: str, job: str) -> dict:
    """
    Take all hosts of a run back.

    ticket
        What the run knows.
    reason
        Why; stands in the log of each host.
    job
        The job that asks.

    Returns ``{"ok": whether that could be done, "comment": what each host serves now, and what is left to do}``.

    CLI Example: not for the command line; use ``ckan.unlock``.
    """
    results, failures, undo_by = {}, {}, {}
    remarks, stays_closed = _database(ticket, job)
    for release, hosts in _ways_back(ticket).items():
        function = "ckan_release.abort" if ticket["kind"] == "deploy" else "ckan_release.activate"
        force = {} if ticket["kind"] == "deploy" else {"force": True}
        about = {"release": release, "reason": reason, "by": ticket["by"], "job": job, **force}
        some, not_reached = _ask(hosts, function, about)
        results.update(some)
        failures.update(not_reached)
        undo_by.update({host: f"{function} {release}{' force=True' if force else ''}" for host in hosts})
    for host, cause in {} if stays_closed else __salt__["ckan_doors.open_again"](ticket).items():
        failures.setdefault(host, f"{cause}; it is in maintenance, too: salt {host} ckan_maintenance.off")
    serving: dict[str, list[str]] = {}
    for host, result in results.items():
        if host not in failures:
            serving.setdefault(result["current"] or "no release (as before)", []).append(host)
    remarks += _what_stays(ticket, results)
    parts = [f"{', '.join(sorted(hosts))} on {release}" for release, hosts in sorted(serving.items())]
    parts += [
        f"{host} could not be taken back ({cause}): when it is up, type: salt {host} {undo_by[host]}"
        for host, cause in failures.items()
    ]
    return {"ok": not failures, "comment": " -- ".join([*parts, *remarks])}


def _database(ticket: dict, job: str) -> tuple[list[str], bool]:
    """
    Before hosts get back what they served: the database that it knows. Returns remarks, and whether the portal stays
    closed, since that could not be done.
    """
    if ticket["kind"] == "deploy":
        return _give_back(ticket, job) if "closed" in ticket else ([], False)
    return (_bring_forward(ticket, job) if ticket.get("downgraded") else []), False


def _give_back(ticket: dict, job: str) -> tuple[list[str], bool]:
    """After a deploy that closed the portal: the database of before, from its dump. Nobody has written to it since."""
    host, release = ticket["migrates"], ticket["release"]
    about = {"release": release, "by": ticket["by"], "job": job}
    results, failures = _ask([host], "ckan_schema.give_back", about)
    if not failures:
        kept = results[host]["kept_as"]
        return [f"the database is as it was before the migration ({kept} has what came of it)"] if kept else [], False
    text = (
        f"the database could not be given back as it was before ({failures[host]}), so the portal stays closed: "
        f"restore it, such as by: salt {host} ckan_backup.restore {release}; then open it: salt -L "
        f"{','.join(ticket['hosts'])} ckan_maintenance.off"
    )
    return [text], True


def _what_stays(ticket: dict, results: dict) -> list[str]:
    """After a deploy that migrated with an open portal: in what the database differs from what is served again."""
    host = ticket.get("migrates")
    if ticket["kind"] != "deploy" or "closed" in ticket or not ticket.get("migration"):
        return []
    served = results[host]["current"] if isinstance(results.get(host), dict) else ""
    answers, failures = _ask([host], "ckan_schema.mismatch", {"release": served})
    return [f"the database stays migrated: {answers[host]}"] if answers[host] and not failures else []


def _bring_forward(ticket: dict, job: str) -> list[str]:
    """After a rollback that took the database back: the one that the newer release knows."""
    host, kept_as = ticket["undo_on"], ticket.get("kept_as", "")
    release = ticket["left"][host]
    about = {"release": release, "kept_as": kept_as, "by": ticket["by"], "job": job}
    _, failures = _ask([host], "ckan_schema.upgrade", about)
    typed = f"salt {host} ckan_schema.upgrade {release}" + (f" kept_as={kept_as}" if kept_as else "")
    what = f"the database could not be brought back to {release}"
    return [f"{what} ({cause}): type: {typed}" for cause in failures.values()]


def _ways_back(ticket: dict) -> dict[str, list[str]]:
    """What each host is told when a run is undone: for a deploy the candidate to abort, for a rollback the one left."""
    if ticket["kind"] == "deploy":
        return {ticket["release"]: ticket["hosts"]}
    back: dict[str, list[str]] = {}
    for host in ticket["hosts"]:
        back.setdefault(ticket["left"][host], []).append(host)
    return back


def _ask(hosts: list[str], function: str, kwargs: dict) -> tuple[dict, dict]:
    """Ask until each host has answered, for a while: a master that was restarted is not there at once."""
    deadline, silent = time.monotonic() + PATIENCE, hosts
    results, failures = {}, {}
    while True:
        told = __salt__["ckan_hosts.ask"](silent, function, kwargs)
        results.update(told["results"])
        failures = {**{host: cause for host, cause in failures.items() if host not in silent}, **told["failures"]}
        silent = [host for host, cause in failures.items() if NO_ANSWER.search(cause)]
        if not silent or time.monotonic() > deadline:
            return results, failures
        time.sleep(2)
