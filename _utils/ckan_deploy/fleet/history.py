"""What was done to an environment, put together from the logs of its hosts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckan_deploy.fleet import hosts
from ckan_deploy.fleet.master import Master
from ckan_deploy.system.tables import paragraph, some, table

TIMEOUT = 20
# What a stage says of the run that it belongs to; without one of these it is a deploy.
KINDS = {"rollback": "rollback", "adopt": "adoption", "catch_up": "catching up"}


def read(master: Master, env: Any, limit: int) -> tuple[list[dict[str, Any]], str]:
    """
    Return the runs of an environment, newest first, and which logs are not in it, '' for none.

    master
        The master.
    env
        The name of the environment.
    limit
        How many runs at most.

    Raises ``FormulaError`` where there is no such environment.
    """
    found = hosts.targets(master, env)
    # A run has about eight entries on each host.
    told = hosts.ask(master, found.hosts, "ckan_release.history", {"limit": limit * 10}, TIMEOUT)
    each = "; ".join(f"{host} {cause}" for host, cause in sorted(told.failures.items()))
    return merge(told.good)[:limit], f"not all logs are in it: {each}" if each else ""


def text(runs: list[dict[str, Any]]) -> str:
    """
    Return runs as a table for people.

    runs
        What ``merge`` returns.
    """
    rows = [["at", "what", "release", "by", "hosts", "seconds", "result", "changed"]]
    below: list[str] = []
    for run in runs:
        said = [f"from {run['from']}"] if "from" in run else []
        said += [run["reason"]] if run["reason"] else []
        said += [f"warning: {warning}" for warning in run.get("warnings", [])]
        said += run.get("drained", [])
        see = f"[{len(below) + 1}]" if said else ""
        below += [f"{see} {'; '.join(said)}"] if said else []
        changed = some([f"{name} {what}" for name, what in run.get("changed", {}).items()])
        rows.append([
            run["at"], run["kind"], run["release"], run["by"], some(run["hosts"]), str(run["seconds"]),
            f"{run['result']} {see}".strip(), changed,
        ])  # fmt: skip
    return table(rows) + "".join(map(paragraph, below))


def merge(logs: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """
    Put the entries of several hosts together: a row for each run.

    logs
        What ``ckan_release.history`` says on each host.

    Returns ``[{"at", "kind", "release", "by", "hosts": [ids], "seconds", "result", "reason"}]``, newest first, with
    ``job`` where a master ran it, ``from`` for a release that was promoted, ``warnings`` where any were told, and
    ``changed`` where it is known: ``{extension: ref and commit}`` of what differs from the release before, and
    ``drained``, a sentence for each app server that was told to stop and what came of that. A run is
    what has one job; what was done by hand is one run for each release, host and kind. ``seconds`` is the sum over the
    stages, of each the slowest host.
    """
    runs: dict[tuple[str, ...], list[tuple[str, dict[str, Any]]]] = {}
    for host, entries in logs.items():
        for entry in reversed(entries):
            if entry.get("release"):  # not maintenance
                key = (entry["job"],) if entry.get("job") else (entry["release"], host, KINDS.get(entry["stage"], ""))
                runs.setdefault(key, []).append((host, entry))
    return sorted((_run(entries) for entries in runs.values()), key=lambda run: str(run["at"]), reverse=True)


def _run(entries: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    slowest: dict[str, float] = {}
    for _, entry in entries:
        slowest[entry["stage"]] = max(slowest.get(entry["stage"], 0), entry.get("seconds", 0))
    kinds = [KINDS[entry["stage"]] for _, entry in entries if entry["stage"] in KINDS]
    failed = [(host, entry) for host, entry in entries if entry.get("result") == "failed"]
    undone = [entry for _, entry in entries if entry["stage"] == "abort"]
    reason = next((entry["reason"] for _, entry in entries if entry.get("reason")), "")
    if failed:
        host, entry = failed[0]
        reason = f"{host} at {entry['stage']}: {entry.get('reason', '')}"
    elif undone:
        reason = undone[0].get("reason", "")
    # The entries of a host are in order, and which host is the first does not matter.
    warnings = list(dict.fromkeys(text for _, entry in entries for text in entry.get("warnings", [])))
    drained = [
        f"the app server of {name} on {host} {what}"
        for host, entry in entries for name, what in entry.get("drained", {}).items()
    ]  # fmt: skip
    job = next((entry["job"] for _, entry in entries if entry.get("job")), "")
    changed: dict[str, str] = next((entry["changed"] for _, entry in entries if entry.get("changed")), {})
    origin = next((entry["promoted"] for _, entry in entries if entry.get("promoted")), "")
    return {
        "at": min(entry["at"] for _, entry in entries),
        "kind": kinds[0] if kinds else "deploy",
        "release": entries[0][1]["release"],
        "by": next((entry["by"] for _, entry in entries if entry.get("by")), ""),
        "hosts": sorted({host for host, _ in entries}),
        "seconds": round(sum(slowest.values()), 1),
        "result": "failed" if failed or undone else "ok",
        "reason": reason,
        **({"job": job} if job else {}),
        **({"from": origin} if origin else {}),
        **({"changed": changed} if changed else {}),
        **({"warnings": warnings} if warnings else {}),
        **({"drained": drained} if drained else {}),
    }
