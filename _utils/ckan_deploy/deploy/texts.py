"""
The answers of a host as tables and short texts for people. Each function takes what an execution module returns, as it
comes over the wire, and a ``Paint`` for colours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ckan_deploy.system.tables import Paint, clean, fields, paragraph, plain, some, span, table

Rows = Sequence[Mapping[str, Any]]
# Below that a commit is not told from another one by people.
SHORT = 12
# Of the differences of packages, what is longer is counted.
SHOWN = 20
BAD = ("bad", "failed")


def releases(rows: Rows, paint: Paint = plain) -> str:
    """
    Return the releases of a host as a table; the current one has a star.

    rows
        What ``ckan_release.list`` returns.
    paint
        For colours.
    """
    if not rows:
        return "no release yet; type: state.apply ckan\n"
    lines = [["", "release", "state", "created", "by", "extensions"]]
    for row in rows:
        held = some([f"{name} {what}" for name, what in row.get("extensions", {}).items()])
        star = "*" if row.get("current") else ""
        lines.append([star, *(row.get(name, "") for name in ("release", "state", "created", "by")), held])
    marks = {at: "good" if row.get("current") else "bad" if row.get("state") in BAD else ""
             for at, row in enumerate(rows, 1)}  # fmt: skip
    why = [f"{row['release']} is {row['state']}: {row['reason']}" for row in rows if row.get("reason")]
    return table(lines, paint, marks) + _below(why)


def history(rows: Rows, paint: Paint = plain) -> str:
    """
    Return the log of a host as a table, with causes and warnings below it.

    rows
        What ``ckan_release.history`` returns.
    paint
        For colours.
    """
    if not rows:
        return "nothing was done here yet\n"
    lines = [["at", "stage", "release", "result", "seconds", "by", "see"]]
    below: list[str] = []
    for row in rows:
        said = [row["reason"]] if row.get("reason") else []
        said += [f"warning: {warning}" for warning in row.get("warnings", [])]
        said += [f"the app server of {name} {what}" for name, what in row.get("drained", {}).items()]
        see = f"[{len(below) + 1}]" if said else ""
        below += [f"{see} {'; '.join(said)}"] if said else []
        seconds = f"{row['seconds']:.1f}" if "seconds" in row else ""
        each = [row.get(name, "") for name in ("at", "stage", "release", "result")]
        lines.append([*each, seconds, row.get("by", ""), see])
    marks = {at: "bad" for at, row in enumerate(rows, 1) if row.get("result") == "failed"}
    return table(lines, paint, marks) + _below(below)


def manifest(told: Mapping[str, Any], paint: Paint = plain) -> str:
    """
    Return what a person asks of a release; with ``full`` in it all hashes, packages and events, too.

    told
        What ``ckan_release.show`` returns.
    paint
        For colours.
    """
    full, base = bool(told.get("full")), told.get("base", {})
    state = f"{told['state']}, current" if told.get("current") else told["state"]
    built = ", ".join(filter(None, [
        f"in {sum(told['build_seconds'].values()):.1f} s" if told.get("build_seconds") else "",
        f"on {told['built_on']}" if told.get("built_on") else "",
        f"{told['disk_mb']} MB of its own" if told.get("disk_mb") is not None else "",
    ]))  # fmt: skip
    rows = [
        ("release", told["id"]),
        ("state", f"{state}: {told['bad_reason']}" if told.get("bad_reason") else state),
        ("created", " by ".join(filter(None, [told["created"], told.get("by", "")]))),
        ("built", built),
        ("base", f"CKAN {base['ckan']} on Python {base['python']}" if base else ""),
        ("promoted", " of ".join(told["promoted"][name] for name in ("release", "env")) if "promoted" in told else ""),
        ("adopted", told.get("adopted", {}).get("from", "")),
        ("previous", told.get("previous", "")),
        ("plugins", ", ".join(told.get("plugins", []))),
        ("patches", ", ".join(patch["patch"] for patch in told.get("patches", []))),
        ("overridden", ", ".join(f"{name} {how['got']} in place of {how['base'] or 'none'} ({how['by']})"
                                 for name, how in told.get("overridden", {}).items())),
        ("migration", _migration(told.get("migration", {}))),
        ("packages", f"{len(told['packages'])} (full=True lists them)" if told.get("packages") and not full else ""),
        ("job", told.get("job", "")),
    ]  # fmt: skip
    text = fields(rows) + _extensions(told.get("extensions", {}), full, paint)
    broken = [f"plugin {name} cannot be imported: {why}" for name, why in told.get("broken_plugins", {}).items()]
    text += _below([*told.get("notes", []), *broken])
    text += _full(told, paint) if full else ""
    # The text of the lock file, where it was asked for, is for a file, and not to be wrapped.
    lock = str(told.get("lock", ""))
    lines = "".join(f"{clean(line)}\n" for line in lock.splitlines())
    return text + (f"\n{lines}" if "\n" in lock else fields([("lock file", lock)]) if full else "")


def difference(told: Mapping[str, Any], paint: Paint = plain) -> str:
    """
    Return what differs between two releases.

    told
        What ``ckan_release.diff`` returns.
    paint
        For colours.
    """
    text = paint("heading", f"{told['from']} -> {told['to']}") + "\n"
    said = [f"base: {told['base']['old'] or 'none'} -> {told['base']['new']}"] if told.get("base") else []
    for name, change in told.get("extensions", {}).items():
        said.append(f"{name} {change['change']}: {' -> '.join(filter(None, (change['old'], change['new'])))}")
        said += [f"  {commit['commit'][:SHORT]} {commit['subject']}" for commit in change.get("commits", [])]
        said += [f"  not in it any more: {commit['commit'][:SHORT]} {commit['subject']}"
                 for commit in change.get("dropped", [])]  # fmt: skip
        if "old_origin" in change:
            said.append(f"  from {change['new_origin']}, before from {change['old_origin']}")
        said += [f"  {why}" for why in change.get("why", [])]
    for name, how in told.get("overrides", {}).items():
        by = f"{how['got']} in place of {how['base'] or 'none'} ({how['by']})" if how else "not any more"
        said.append(f"overridden: {name} {by}")
    for kind in ("patches", "plugins"):
        said += [f"{kind} {how}: {', '.join(names)}" for how, names in told.get(kind, {}).items() if names]
    said += [f"options {how}: {', '.join(names)}" for how, names in told.get("configuration", {}).items() if names]
    packages = [[name, change["old"] or "-", change["new"] or "-"] for name, change in told["packages"].items()]
    text += "".join(paragraph(line, line[: len(line) - len(line.lstrip())], "    ") for line in said)
    if packages:
        more = len(packages) - SHOWN
        text += table([["package", "before", "after"], *packages[:SHOWN]], paint)
        text += f"and {more} more packages; --out json has them all\n" if more > 0 else ""
    return text if said or packages else f"{text}nothing differs\n"


def services(told: Mapping[str, Any], paint: Paint = plain) -> str:
    """
    Return the services of a host as a table, with cron jobs below.

    told
        What ``ckan_jobs.status`` returns.
    paint
        For colours.
    """
    rows, current = told["services"], told["current"]
    lines = [["service", "kind", "state", "release", "pid", "up", "restarts", "memory"]]
    for row in rows:
        lines.append([row["service"], row["kind"], row["state"], *_process(row), str(row.get("restarts", "")),
                      _memory(row)])  # fmt: skip
    wrong = [row for row in rows if row.get("problem") or row["state"] not in ("RUNNING", "STANDBY")
             or (row["release"] and row["release"] != current)]  # fmt: skip
    marks = {at: "bad" for at, row in enumerate(rows, 1) if row in wrong}
    text = f"current: {current or 'no release'}\n"
    text += table(lines, paint, marks) if rows else "no service\n"
    text += _below(f"{row['service']} {row['problem']}" for row in rows if row.get("problem"))
    return text + _below(f"cron: {line}" for line in told.get("cron", []))


def processes(told: Mapping[str, Any], paint: Paint = plain) -> str:
    """
    Return the processes of the app servers as a table.

    told
        What ``ckan_web.status`` returns.
    paint
        For colours.
    """
    rows, current = told["processes"], told["current"]
    lines = [["release", "pid", "up", "memory"], *([*_process(row), _memory(row)] for row in rows)]
    marks = {at: "bad" for at, row in enumerate(rows, 1) if row["release"] != current}
    return f"current: {current or 'no release'}\n" + (table(lines, paint, marks) if rows else "no process of CKAN\n")


def dumps(rows: Rows, paint: Paint = plain) -> str:
    """
    Return the dumps on a host as a table.

    rows
        What ``ckan_backup.list`` returns.
    paint
        For colours.
    """
    lines = [["dump", "MB", "file"], *([row["name"], str(row["size_mb"]), row["file"]] for row in rows)]
    return table(lines, paint) if rows else "no dump on this host\n"


# The text of each function's answer.
TEXTS: Mapping[str, Callable[[Any, Paint], str]] = {
    "ckan_release.list": releases,
    "ckan_release.history": history,
    "ckan_release.show": manifest,
    "ckan_release.diff": difference,
    "ckan_jobs.status": services,
    "ckan_web.status": processes,
    "ckan_backup.list": dumps,
}


def _below(sentences: Iterable[str]) -> str:
    return "".join(map(paragraph, sentences))


def _process(row: Mapping[str, Any]) -> list[str]:
    """Release, process id and age of a process."""
    up = span(row["age_seconds"]) if "age_seconds" in row else ""
    return [row.get("release") or "unknown", str(row.get("pid") or ""), up]


def _memory(row: Mapping[str, Any]) -> str:
    return f"{row['memory_mb']} MB" if "memory_mb" in row else ""


def _migration(told: Mapping[str, Any]) -> str:
    """What a release did to the database: which heads moved, where, for how long, and the dump of before."""
    before, after = told.get("before") or {}, told.get("after") or {}
    moved = [f"{name} to {_heads(after[name])}" for name in after if _heads(after[name]) != _heads(before.get(name))]
    if not moved:
        return ""
    dump = told.get("backup", {}).get("file", "")
    where = f"on {told['host']}" if told.get("host") else ""
    took = f"in {told['seconds']} s" if "seconds" in told else ""
    return ", ".join(filter(None, [*moved, where, took, f"dump of before: {dump}" if dump else ""]))


def _heads(heads: Any) -> str:
    heads = heads.get("at", []) if isinstance(heads, Mapping) else heads
    return " and ".join(map(str, heads)) if isinstance(heads, (list, tuple)) else str(heads)


def _extensions(pins: Mapping[str, Mapping[str, Any]], full: bool, paint: Paint) -> str:
    lines = [["extension", "ref", "commit" if full else "commit or version", "subject"]]
    for name, pin in sorted(pins.items()):
        commit = pin.get("commit", "")
        what = (commit if full else commit[:SHORT]) or pin.get("version") or pin.get("asked", "")
        lines.append([name, pin.get("ref", ""), what, pin.get("subject", "")])
    patched = [f"{name}: {patch['patch']} {patch.get('result', '')}".rstrip()
               for name, pin in sorted(pins.items()) for patch in pin.get("patches", [])]  # fmt: skip
    return (table(lines, paint) if pins else "no extension\n") + _below(patched)


def _full(told: Mapping[str, Any], paint: Paint) -> str:
    """What is left out for a look: origins, packages, hashes, events."""
    text = table([["package", "version"], *map(list, sorted(told.get("packages", {}).items()))], paint)
    patches = [*told.get("patches", []), *(patch for pin in told.get("extensions", {}).values()
                                           for patch in pin.get("patches", []))]  # fmt: skip
    origins = [(name, pin.get("url") or pin.get("archive") or "the package index")
               for name, pin in sorted(told.get("extensions", {}).items())]  # fmt: skip
    hashes = [(patch["patch"], patch["sha256"]) for patch in patches]
    hashes += [(name, pin["hash"]) for name, pin in sorted(told.get("extensions", {}).items()) if pin.get("hash")]
    hashes += [(name, told[name]) for name in ("configuration", "layer") if told.get(name)]
    events = [[one.get(name, "") for name in ("at", "state", "by", "reason")] for one in told.get("events", [])]
    return fields(origins) + text + fields(hashes) + table([["at", "state", "by", "reason"], *events], paint)
