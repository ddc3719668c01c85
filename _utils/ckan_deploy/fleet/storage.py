"""Whether all hosts of a run see the same uploads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckan_deploy.errors import FormulaError
from ckan_deploy.fleet.run import join


def warnings(seen: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """
    Hold what the hosts have seen of their storage against each other.

    seen
        What each host said (``serve.storage.seen``); the first one has left a mark where its storage is shared.

    Returns sentences: where uploads would be seen on one host only. Raises ``FormulaError`` that names the hosts which
    do not see what another one writes, though the setting says so.
    """
    kinds: dict[str, list[str]] = {}
    for host, told in seen.items():
        if told["serves"]:
            kinds.setdefault(told["kind"], []).append(host)
    _refuse(seen)
    if len(kinds) > 1:
        each = ", ".join(f"{kind} on {' and '.join(hosts)}" for kind, hosts in kinds.items())
        return [f"ckan:storage:kind is {each}: a visitor finds an upload on some hosts only; make it one on all"]
    alone = kinds.get("local", [])
    if len(alone) < 2:
        return []
    paths = ", ".join(dict.fromkeys(seen[host]["path"] for host in alone))
    return [
        f"each of {', '.join(alone)} has uploads of its own, which visitors of the others do not find "
        f"(ckan:storage:kind is local): share {paths} among them and set it to shared, or to elsewhere where an "
        "extension keeps uploads"
    ]


def _refuse(seen: Mapping[str, Mapping[str, Any]]) -> None:
    writer = next(iter(seen))
    if seen[writer]["kind"] != "shared":
        return
    failures = {}
    for host, told in seen.items():
        if told["kind"] != "shared" or told["mark"] == writer:
            continue
        what = "cannot be written to" if host == writer else f"does not show what {writer} writes there"
        failures[host] = (
            f"{told['path']} (ckan.storage_path) {what} ({told['problem'] or 'there is another file'}), while "
            "ckan:storage:kind is shared; mount it and give it to CKAN's user, or correct the setting"
        )
        if host == writer:
            break
    if failures:
        raise FormulaError(join(failures, "plan"))
