"""
What CKAN does besides answering requests: services under supervisor, and cron jobs. Both follow the release.

A service resolves ``current`` once, when it starts, so it never imports from two releases.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import time
from collections.abc import Mapping
from typing import Any

import psutil

from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import cron, service_files, service_runs, steady
from ckan_deploy.serve.service_files import Program
from ckan_deploy.system import disk, processes
from ckan_deploy.system.supervisor import Process

# Of one with `once` that waits while another host has it.
STANDBY = "STANDBY"
# How long a pause waits for cron jobs: nobody says how long one may take.
CRON_SECONDS = 60
# One that was started again so often within so many seconds does not stay up, however long it does in between.
AGAIN, AGAIN_SECONDS = 3, 3600


def follow(site: Site, files: bool = True) -> dict[str, Any]:
    """
    Bring services and cron to what the settings say and to the release that is current. A service finishes what it is
    at first, for its ``stop_seconds`` at most; then the new one starts, those with a lower ``order`` first. What is so
    already is left alone.

    site
        The site.
    files
        False for a deploy that is reverted: what the settings say has no effect, and only a service that has another
        release than the current one is restarted.

    Returns ``{"workers": {name: "started" or "restarted" or "stopped"}, "services": the same of those with a command,
    "cron": bool, "warnings": [sentences]}``; a service that had to be killed is a warning. Raises ``FormulaError`` that
    names those that do not start, when all the rest is done.
    """
    if not site.releases.current():
        return {**_by_kind({}), "cron": False, "warnings": []}
    todo = _todo(site, files)
    changes = cron.pending(site) if files else []
    cron.write(changes)
    told = service_runs.bring(site, todo, files)
    warnings = [brought.warning for brought in told if brought.warning]
    down = [brought.problem for brought in told if brought.problem]
    if down:
        raise FormulaError("; ".join([*warnings, *down]))
    return {**_by_kind(todo), "cron": bool(changes), "warnings": warnings}


def watch(site: Site) -> list[str]:
    """
    Wait until the services that were just started are past their boot and have been up for ``stable_seconds``.

    site
        The site.

    Returns a sentence for each service that does not stay up, or does not run; none where ``stable_seconds`` is 0.
    """
    if not _watched(site):
        return []
    groups = {service_files.group(site, program): program for program in service_files.wanted(site)}
    once = [group for group, program in groups.items() if site.settings.all_services[program.name].once]
    wrong = {groups[group]: what for group, what in steady.watch(site, groups, trees=once).items()}
    return [_down(site, program, what) for program, what in {**_problems(site), **wrong}.items()]


def down(site: Site) -> list[str]:
    """
    Return what ``watch`` says, without any wait: a sentence for each service that does not run, or was just started
    anew since it had ended.

    site
        The site.
    """
    if not _watched(site):
        return []
    return [_down(site, program, what) for program, what in _problems(site).items()]


def pause(site: Site) -> list[str]:
    """
    Stop all services; each finishes what it is at first, for its ``stop_seconds`` at most. ``follow`` starts them
    again. A cron job that is at work is waited for; none begins while the file of ``maintenance`` says so.

    site
        The site.

    Returns warnings: of services that had to be killed, and of cron jobs that are still at work.
    """
    programs = service_files.installed(site)
    with concurrent.futures.ThreadPoolExecutor(max(1, len(programs))) as pool:
        jobs = [pool.submit(service_runs.stop, site, program) for program in programs]
    warnings = [warning for job in jobs if (warning := job.result())]
    deadline = time.monotonic() + CRON_SECONDS
    while (at_work := cron.at_work(site)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return [*warnings, *(f"cron job {name} is still at work" for name in at_work)]


def pending(site: Site) -> dict[str, Any]:
    """
    Say what ``follow`` would do. Changes nothing.

    site
        The site.

    Returns what ``follow`` returns, without warnings.
    """
    if not site.releases.current():
        return {**_by_kind({}), "cron": False}
    return {**_by_kind(_todo(site)), "cron": bool(cron.pending(site))}


def status(site: Site) -> dict[str, Any]:
    """
    Say which services run, and the release that each has loaded, from the process itself.

    site
        The site.

    Returns ``{"services": [{"service", "kind", "state", "pid", "release", "restarts", "memory_mb", "age_seconds"}],
    "workers": those of the kind "worker", with that key for the name, "cron": [lines]}``. Of one that does not run
    ``pid`` is 0; ``state`` is STANDBY for one with ``once`` that another host has. ``restarts`` counts what supervisor
    had to start again since the service was started on purpose. One that ended and was started again lately, or again
    and again, has a ``problem`` that says so.
    """
    programs = sorted({*service_files.wanted(site), *service_files.installed(site)})
    known = service_runs.processes(site) if programs else {}
    rows = []
    for program in programs:
        mine = known.get(service_files.group(site, program)) or [Process("not known to supervisor", 0)]
        rows += [_row(site, program, process, mine) for process in mine]
    workers = [{"worker": row["service"], **row} for row in rows if row["kind"] == "worker"]
    return {"services": rows, "workers": workers, "cron": cron.lines(site)}


def _row(site: Site, program: Program, process: Process, mine: list[Process]) -> dict[str, Any]:
    state, pid = process
    row: dict[str, Any] = {"service": program.name, "kind": program.kind, "state": state, "pid": pid}
    row.update(release=service_runs.release_of(site, pid), restarts=0)
    service = site.settings.all_services.get(program.name)
    if service and service.once:
        row["once"] = True
        if pid and state == "RUNNING" and not service_runs.children(pid):
            row["state"] = STANDBY
    if not pid:
        return row
    group, boot = service_files.group(site, program), disk.boot_id()
    since = steady.since(site, group, pid)
    begun = [when for when in service_files.starts(site, program, boot) if when >= since]
    row["restarts"] = max(0, len(begun) - len(mine))
    with contextlib.suppress(psutil.Error):
        row.update(processes.usage(pid))
    lately = [when for when in sorted(begun)[len(mine) :] if when > time.clock_gettime(steady.CLOCK) - AGAIN_SECONDS]
    if problem := steady.restarted(site, group, pid):
        row["problem"] = problem
    elif len(lately) >= AGAIN:
        row["problem"] = f"was started again {len(lately)} times within the last hour"
    return row


def _by_kind(todo: Mapping[Program, str]) -> dict[str, dict[str, str]]:
    return {
        f"{kind}s": {program.name: what for program, what in todo.items() if program.kind == kind}
        for kind in reversed(service_files.KINDS)
    }


def _todo(site: Site, files: bool = True) -> dict[Program, str]:
    """What is to be done with which service; without ``files`` only what follows from the release."""
    todo, wanted = {}, service_files.wanted(site)
    if files:
        todo = {program: "stopped" for program in service_files.installed(site) if program not in wanted}
    if not wanted:
        return todo
    current, known = site.releases.current(), service_runs.processes(site)
    ended = {(row["kind"], row["service"]) for row in status(site)["services"] if "problem" in row} if files else set()
    for program in wanted:
        mine = known.get(service_files.group(site, program), [])
        running = [process.state in service_runs.RUNNING for process in mine]
        if any(running) and any(pid and service_runs.release_of(site, pid) != current for _, pid in mine):
            todo[program] = "restarted"
        elif files and not any(running):
            todo[program] = "started"
        elif files and not (all(running) and not service_files.stale(site, program)):
            todo[program] = "restarted"
        elif (program.kind, program.name) in ended:
            # Of this release, but by supervisor alone, since the one before ended: nobody has watched it.
            todo[program] = "restarted"
    return todo


def _watched(site: Site) -> bool:
    return bool(site.releases.current() and site.settings.all_services and site.settings.stable_seconds)


def _problems(site: Site) -> dict[Program, str]:
    """What is wrong with services now."""
    found: dict[Program, str] = {}
    current, wanted = site.releases.current(), service_files.wanted(site)
    for row in status(site)["services"]:
        is_up = row["state"] in ("RUNNING", STANDBY)
        what = row.get("problem") or ("" if is_up else f"is {row['state']}, as supervisor says")
        if not what and row["release"] != current:
            what = f"still has {row['release'] or 'no release'} instead of {current}"
        program = Program(row["service"], row["kind"])
        if what and program in wanted:
            found.setdefault(program, what)
    return found


def _down(site: Site, program: Program, what: str) -> str:
    return f"{program.label} does not stay up: it {what}; see {service_files.log(site, program)}"
