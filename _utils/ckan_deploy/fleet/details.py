"""What the report of a run shows beside its sentences: commits, packages, options; of a failure what programs said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckan_deploy.fleet import hosts
from ckan_deploy.fleet.run import Failure, Run
from ckan_deploy.releases import diff

# Seconds that a host has to say what it noted.
TIMEOUT = 20
# So many entries of its log a host is asked for, and so many lines of them are shown.
ENTRIES, SHOWN = 60, 12


def of_plans(plans: Mapping[str, Mapping[str, Any]], main: Mapping[str, Any]) -> dict[str, Any]:
    """
    Put together what the plans of the hosts say of changes.

    plans
        The plan of each host.
    main
        The one that has resolved; it has seen the mirrors.

    Returns ``{"extensions": {name: {"change", "old", "new", "commits", "count"}}, "packages": {name: {"old", "new"}},
    "configuration": {kind: {option: [hosts]}}}``.
    """
    told = main.get("details") or {}
    options: dict[str, dict[str, list[str]]] = {}
    for host, plan in plans.items():
        for kind, names in ((plan.get("details") or {}).get("configuration") or {}).items():
            for name in names if isinstance(names, list) else []:
                options.setdefault(kind, {}).setdefault(name, []).append(host)
    return {
        "extensions": told.get("extensions") or {}, "packages": told.get("packages") or {}, "configuration": options
    }  # fmt: skip


def of_rollback(run: Run, host: str) -> dict[str, Any]:
    """
    Ask a host what differs between the release that it leaves and the one that it goes back to. Where it cannot tell,
    the rollback goes on without.

    run
        The run.
    host
        The host.
    """
    about = {"old": run.left[host], "new": run.release}
    found = hosts.ask(run.master, [host], "ckan_release.diff", about, TIMEOUT).good.get(host) if about["old"] else None
    if not isinstance(found, dict):
        return {}
    options = found.get("configuration") or {}
    named = {kind: {name: [host] for name in names} for kind, names in options.items() if names}
    return {**diff.brief_details(found), "configuration": named}


def look(run: Run) -> None:
    """
    Ask the hosts that failed what they noted of it: what a program said besides, such as the traceback of a plugin, and
    the last lines of their logs. A host that does not answer has none.

    run
        The run; what they say is in ``noted`` then.
    """
    names = sorted({failure.host for failure in run.failures if hosts.NO_ANSWER not in failure.cause})
    told = hosts.ask(run.master, names, "ckan_release.history", {"limit": ENTRIES}, TIMEOUT).good
    run.noted = {failure.host: _noted(failure, run.job, told.get(failure.host)) for failure in run.failures}


def _noted(failure: Failure, job: str, entries: Any) -> dict[str, Any]:
    mine = [entry for entry in entries if entry.get("job") == job] if isinstance(entries, list) else []
    said = next((entry.get("details", "") for entry in mine if entry.get("stage") == failure.stage), "")
    # The newest comes first.
    return {"details": str(said), "log": [_line(entry) for entry in reversed(mine[:SHOWN])]}


def _line(entry: Mapping[str, Any]) -> str:
    seconds = f" {entry['seconds']} s" if "seconds" in entry else ""
    reason = f": {entry['reason']}" if entry.get("reason") else ""
    return f"{entry.get('at', '')} {entry.get('stage', '')} {entry.get('result', '')}{seconds}{reason}"
