"""The table of what was measured, in the words of docs/benchmarks.md."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

DOCS = Path(__file__).resolve().parents[3] / "docs/benchmarks.md"
FIRST, LAST = "<!-- peers: made by make bench-peers WRITE=1 -->", "<!-- peers: end -->"
FORMULA, STANDBY, ANSIBLE = "this formula", "this formula, within web:standby", "Ansible playbook"

Row = dict[str, Any]
COLUMNS: dict[str, Callable[[Row], float]] = {
    "whole deploy": lambda row: row["deploy"]["whole"],
    "visitors have it": lambda row: row["deploy"]["visitors"],
    "CPU of a deploy": lambda row: row["deploy"]["cpu"],
    "whole rollback": lambda row: row["rollback"]["whole"],
    "visitors back": lambda row: row["rollback"]["visitors"],
    "CPU of a rollback": lambda row: row["rollback"]["cpu"],
}
# Of Ansible's, at most.
TARGETS = {
    "whole deploy": 0.5,
    "visitors have it": 0.3,
    "CPU of a deploy": 0.6,
    "whole rollback": 0.6,
    "visitors back": 0.5,
}
STANDBY_TARGET = 0.25


def made(rows: list[Row], kind: str, load: float, missing: list[str], seconds: float) -> str:
    """Return the whole text: machine, a table of medians and ranges for each number of hosts, ratios, visitors.

    rows
        A row for each turn.
    kind
        How CPU was measured.
    load
        Of the machine before the run.
    missing
        A sentence for each contestant that could not be had.
    seconds
        How long the run took.
    """
    memory = psutil.virtual_memory().total / 2**30
    salt = importlib.metadata.version("salt")
    lines = [
        f"One run of {seconds / 60:.0f} minutes, {os.cpu_count()} cores, {memory:.0f} GB, Python "
        f"{platform.python_version()}, Salt {salt}. Load {load:.1f} before the run, "
        f"{os.getloadavg()[0]:.1f} at its end. CPU by {kind}, without what the answers to the poller cost.",
        *missing,
    ]
    for hosts in sorted({row["hosts"] for row in rows}):
        lines += ["", *_of_hosts([row for row in rows if row["hosts"] == hosts], hosts)]
    return "\n".join(lines)


def _of_hosts(rows: list[Row], hosts: int) -> list[str]:
    names = list(dict.fromkeys(row["name"] for row in rows))
    quiet = {name: [row for row in rows if row["name"] == name and not row["visited"]] for name in names}
    visited = {name: [row for row in rows if row["name"] == name and row["visited"]] for name in names}
    turns = max(len(found) for found in quiet.values())
    heads = [*COLUMNS, "disk of one more", "failed requests"]
    title = f"{hosts} {'host' if hosts == 1 else 'hosts'}, {turns} {'turn' if turns == 1 else 'turns'}"
    lines = [f"| {title} | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for name in names:
        cells = [_span(map(value, quiet[name])) for value in COLUMNS.values()]
        disk = f"{statistics.median(row['disk'] for row in quiet[name]):.0f} MB"
        lines.append(f"| {name} | " + " | ".join([*cells, disk, _failed(visited[name])]) + " |")
    if ANSIBLE in names and names != [ANSIBLE]:
        lines += ["", f"| ratio to Ansible, {title} | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
        for name in names:
            if name != ANSIBLE:
                cells = [_ratio(head, name, quiet) for head in COLUMNS]
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _span(values: Iterable[float]) -> str:
    found = list(values)
    return f"{statistics.median(found):.1f} s ({min(found):.1f} to {max(found):.1f})"


def _ratio(head: str, name: str, quiet: dict[str, list[Row]]) -> str:
    value = COLUMNS[head]
    ours, theirs = (statistics.median(map(value, quiet[who])) for who in (name, ANSIBLE))
    target = {FORMULA: TARGETS.get(head), STANDBY: STANDBY_TARGET if head == "visitors back" else None}.get(name)
    return f"{ours / theirs:.2f}" + (f" (target {target})" if target else "")


def _failed(rows: list[Row]) -> str:
    seen = [row[what] for row in rows for what in ("deploy", "rollback")]
    if not seen:
        return "not asked"
    asked, failed = sum(one["asked"] for one in seen), sum(one["failed"] for one in seen)
    return f"{failed} of {asked}, longest {max(one['longest'] for one in seen):.1f} s"


def write(text: str) -> None:
    """Put the text into docs/benchmarks.md, between the marks."""
    before, first, rest = DOCS.read_text(encoding="utf-8").partition(FIRST)
    _, last, after = rest.partition(LAST)
    if not (first and last):
        raise SystemExit(f"{DOCS} has no block between {FIRST} and {LAST}; put both lines where the table is to be")
    DOCS.write_text(f"{before}{first}\n\n{text}\n\n{last}{after}", encoding="utf-8")
