"""
What was done to an environment, put together from the logs of its hosts.
"""

from __future__ import annotations

from typing import Any

# What a stage says of the run that it belongs to; without one of these it is a deploy.
KINDS = {"rollback": "rollback", "adopt": "adoption", "catch_up": "catching up"}


def merge(logs: dict[str, list[dict]]) -> list[dict]:
    """
    Put the entries of several hosts together: a row for each run.

    logs
        What ``ckan_release.history`` says on each host.

    Returns ``[{"at", "kind", "release", "by", "hosts": [ids], "seconds", "result", "reason"}]``, newest first. A run is
    what has one job; what was done by hand is one run for each release, host and kind. ``seconds`` is the sum over the
    stages, of each the slowest host.

    CLI Example: not for the command line; use ``ckan.history``.
    """
    runs: dict[tuple, list[tuple[str, dict]]] = {}
    for host, entries in logs.items():
        for entry in reversed(entries):
            if entry.get("release"):  # not maintenance
                key = (entry["job"],) if entry.get("job") else (entry["release"], host, KINDS.get(entry["stage"], ""))
                runs.setdefault(key, []).append((host, entry))
    return sorted((_run(entries) for entries in runs.values()), key=lambda run: run["at"], reverse=True)


def _run(entries: list[tuple[str, dict]]) -> dict[str, Any]:
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
    return {
        "at": min(entry["at"] for _, entry in entries),
        "kind": kinds[0] if kinds else "deploy",
        "release": entries[0][1]["release"],
        "by": next((entry["by"] for _, entry in entries if entry.get("by")), ""),
        "hosts": sorted({host for host, _ in entries}),
        "seconds": round(sum(slowest.values()), 1),
        "result": "failed" if failed or undone else "ok",
        "reason": reason,
    }
