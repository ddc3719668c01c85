"""A plan as lines for people: what ``ckan.pending`` prints, and an orchestration with ``dry_run``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckan_deploy.fleet.run import Run
from ckan_deploy.system.tables import paragraph, table


def text(run: Run, outcome: Mapping[str, Any]) -> str:
    """
    Return a plan as a short text with tables.

    run
        The run that was planned.
    outcome
        What ``plan.deploy`` or ``plan.rollback`` returned.
    """
    if run.kind != "deploy":
        return paragraph(str(outcome["comment"])).rstrip()
    return "".join([
        paragraph(_head(run, outcome)),
        "" if run.nothing else _extensions(outcome["extensions"]),
        "" if run.nothing else "changes\n",
        *(paragraph(said, "  ", "    ") for said in outcome["changes"] if not run.nothing),
        # What is true of the live release, too.
        *(paragraph(said) for said in outcome["changes"][1:] if run.nothing),
        *(paragraph(said) for said in run.differs),
        *(paragraph(f"warning: {said}") for said in run.warnings),
        _hosts(outcome["hosts"]),
        paragraph(f"groups: {', then '.join(', '.join(part) for part in outcome['groups'])}"),
        paragraph(f"left out, since they are down: {', '.join(run.down)}") if run.down else "",
        paragraph(f"last: {outcome['last']}"),
    ]).rstrip()  # fmt: skip


def _head(run: Run, outcome: Mapping[str, Any]) -> str:
    if run.nothing:
        return str(outcome["comment"])
    source = f", as {run.source_release} of {run.source} has it" if run.source else ""
    return f"release {run.release}{source}"


def _extensions(told: Mapping[str, str]) -> str:
    rows = [list(row) for row in sorted(told.items())]
    return table([["extension", "ref and commit, or version"], *rows]) if rows else "no extension\n"


def _hosts(told: Mapping[str, Mapping[str, Any]]) -> str:
    asked = any(about["backends"] for about in told.values())
    rows = [["host", "current", "free MB", "needed MB", "prunes", *(["backends"] if asked else [])]]
    for host, about in told.items():
        disk = ["" if about.get(name) is None else str(about[name]) for name in ("free_mb", "needed_mb")]
        backends = ", ".join(f"{name} {version}" for name, version in sorted(about["backends"].items()))
        rows.append([host, about["current"], *disk, ", ".join(about["prunes"]), *([backends] if asked else [])])
    return table(rows)
