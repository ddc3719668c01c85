"""
What CKAN does besides answering requests: workers under supervisor, and cron jobs. Both follow the release.

A worker resolves ``current`` once, when it starts, so it never imports from two releases.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import re
import time
from typing import Any, NamedTuple

import psutil

from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import cron, shared_files, steady
from ckan_deploy.system import files as system_files
from ckan_deploy.system import processes, safely, supervisor
from ckan_deploy.system.supervisor import Process

RUNNING = ("RUNNING", "STARTING")
START_SECONDS = 10
# How long a pause waits for cron jobs: nobody says how long one may take.
CRON_SECONDS = 60
# What supervisor needs to see and to note the end of a process.
SLACK_SECONDS = 5


class _Brought(NamedTuple):
    """What bringing a worker to the release came to: a warning and a problem, '' for none."""

    warning: str = ""
    problem: str = ""


def follow(site: Site, files: bool = True) -> dict[str, Any]:
    """
    Bring workers and cron to what the settings say and to the release that is current. A worker finishes its job first,
    for its ``timeout`` seconds at most; then the new one starts. What is so already is left alone.

    site
        The site.
    files
        False for a deploy that is reverted: what the settings say has no effect, and only a worker that has another
        release than the current one is restarted.

    Returns ``{"workers": {name: "started" or "restarted" or "stopped"}, "cron": bool, "warnings": [sentences]}``; a
    worker that had to be killed is a warning. Raises ``FormulaError`` that names the workers that do not start, when
    all the rest is done.
    """
    if not site.releases.current():
        return {"workers": {}, "cron": False, "warnings": []}
    todo = _todo(site, files)
    changes = cron.pending(site) if files else []
    cron.write(changes)
    with concurrent.futures.ThreadPoolExecutor(max(1, len(todo))) as pool:
        jobs = [pool.submit(_bring, site, name, what, files) for name, what in todo.items()]
    told = [job.result() for job in jobs]
    warnings = [brought.warning for brought in told if brought.warning]
    down = [brought.problem for brought in told if brought.problem]
    if down:
        raise FormulaError("; ".join([*warnings, *down]))
    return {"workers": todo, "cron": bool(changes), "warnings": warnings}


def watch(site: Site) -> list[str]:
    """
    Wait until the workers that were just started are past their boot and have been up for ``stable_seconds``.

    site
        The site.

    Returns a sentence for each worker that does not stay up, or does not run; none where ``stable_seconds`` is 0.
    """
    if not _watched(site):
        return []
    groups = {program(site, name): name for name in site.settings.workers}
    wrong = {groups[group]: what for group, what in steady.watch(site, groups).items()}
    return [_down(site, name, what) for name, what in {**_problems(site), **wrong}.items()]


def down(site: Site) -> list[str]:
    """
    Return what ``watch`` says, without any wait: a sentence for each worker that does not run, or was just started anew
    since it had ended.

    site
        The site.
    """
    if not _watched(site):
        return []
    return [_down(site, name, what) for name, what in _problems(site).items()]


def pause(site: Site) -> list[str]:
    """
    Stop all workers; each finishes its job first, for its ``timeout`` seconds at most. ``follow`` starts them again.
    A cron job that is at work is waited for; none begins while the file of ``maintenance`` says so.

    site
        The site.

    Returns warnings: of jobs that had to be stopped, and of cron jobs that are still at work.
    """
    names = _installed(site)
    with concurrent.futures.ThreadPoolExecutor(max(1, len(names))) as pool:
        jobs = [pool.submit(_stop, site, name) for name in names]
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

    Returns ``{"workers": {name: "started" or "restarted" or "stopped"}, "cron": bool}``.
    """
    if not site.releases.current():
        return {"workers": {}, "cron": False}
    return {"workers": _todo(site), "cron": bool(cron.pending(site))}


def status(site: Site) -> dict[str, Any]:
    """
    Say which workers run, and the release that each has loaded, from the process itself.

    site
        The site.

    Returns ``{"workers": [{"worker", "state", "pid", "release", "memory_mb", "age_seconds"}], "cron": [lines]}``; of a
    worker that does not run ``pid`` is 0. One that ended and was started again lately has a ``problem`` that says so.
    """
    names, rows = sorted({*site.settings.workers, *_installed(site)}), []
    known = _processes(site) if names else {}
    for name in names:
        for state, pid in known.get(program(site, name)) or [Process("not known to supervisor", 0)]:
            row: dict[str, Any] = {"worker": name, "state": state, "pid": pid, "release": _release_of(site, pid)}
            with contextlib.suppress(psutil.Error):
                row.update(processes.usage(pid) if pid else {})
            if pid and (problem := steady.restarted(site, program(site, name), pid)):
                row["problem"] = problem
            rows.append(row)
    return {"workers": rows, "cron": cron.lines(site)}


def program(site: Site, name: str) -> str:
    """
    Return the name of a worker's group in supervisor.

    site
        The site.
    name
        The name of the worker.
    """
    return f"ckan-{site.settings.site}-worker-{name}"


def _todo(site: Site, files: bool = True) -> dict[str, str]:
    """What is to be done with which worker; without ``files`` only what follows from the release."""
    todo = {}
    if files:
        todo = {name: "stopped" for name in _installed(site) if name not in site.settings.workers}
    if not site.settings.workers:
        return todo
    current, known = site.releases.current(), _processes(site)
    for name in site.settings.workers:
        mine = known.get(program(site, name), [])
        running = [process.state in RUNNING for process in mine]
        if any(running) and any(pid and _release_of(site, pid) != current for _, pid in mine):
            todo[name] = "restarted"
        elif files and not any(running):
            todo[name] = "started"
        elif files and not (all(running) and system_files.read(_file(site, name)) == _program_text(site, name)):
            todo[name] = "restarted"
        elif files and any(steady.restarted(site, program(site, name), pid) for _, pid in mine if pid):
            # Of this release, but by supervisor alone, since the one before ended: nobody has watched it.
            todo[name] = "restarted"
    return todo


def _bring(site: Site, name: str, what: str, files: bool) -> _Brought:
    """Stop a worker, start it, or both."""
    conf, file, group = site.settings.web.supervisor_conf, _file(site, name), program(site, name)
    warning = "" if what == "started" else _stop(site, name)
    if what == "stopped":
        os.unlink(file)
        supervisor.remove(conf, group)
        return _Brought(warning)
    if files and system_files.read(file) != (wanted := _program_text(site, name)):
        shared_files.clear_log(site, _log(site, name))
        safely.ensure(os.path.dirname(file))
        system_files.write(file, wanted)
    # Starts what supervisor has not known, or known otherwise; leaves alone what it knows.
    supervisor.update(conf, group)
    if not any(process.state in RUNNING for process in _processes(site).get(group, [])):
        supervisor.start(conf, group)
    return _Brought(warning, _start_problem(site, name))


def _start_problem(site: Site, name: str) -> str:
    """Wait until a worker runs; returns what is wrong with one that does not, or ''."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        mine = _processes(site).get(program(site, name), [])
        states = {process.state for process in mine}
        if states == {"RUNNING"}:
            steady.note(site, program(site, name), [process.pid for process in mine])
            return ""
        if "FATAL" in states or time.monotonic() > deadline:
            said = ", ".join(sorted(states)) or "nothing"
            return f"worker {name} does not start (supervisor says {said}); see {_log(site, name)}"
        time.sleep(0.2)


def _watched(site: Site) -> bool:
    return bool(site.releases.current() and site.settings.workers and site.settings.stable_seconds)


def _problems(site: Site) -> dict[str, str]:
    """What is wrong with workers now."""
    found: dict[str, str] = {}
    current = site.releases.current()
    for row in status(site)["workers"]:
        what = row.get("problem") or ("" if row["state"] == "RUNNING" else f"is {row['state']}, as supervisor says")
        if not what and row["release"] != current:
            what = f"still has {row['release'] or 'no release'} instead of {current}"
        if what and row["worker"] in site.settings.workers:
            found.setdefault(row["worker"], what)
    return found


def _down(site: Site, name: str, what: str) -> str:
    return f"worker {name} does not stay up: it {what}; see {_log(site, name)}"


def _stop(site: Site, name: str) -> str:
    """Let a worker finish its job, and end it when that takes too long; returns a warning, or ''."""
    wait, group = _timeout(site, name), program(site, name)
    jobs: list[psutil.Process] = []
    for _, pid in _processes(site).get(group, []):
        if pid:
            # A job runs in a process of its own, outside the worker's group: whoever kills the worker does not kill it.
            jobs += _children(pid)
    begun = time.monotonic()
    supervisor.stop(site.settings.web.supervisor_conf, group)
    left = [job for job in jobs if job.is_running() and job.status() != psutil.STATUS_ZOMBIE]
    for job in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            job.kill()
    if left or time.monotonic() - begun > wait + SLACK_SECONDS:
        return f"worker {name} did not finish its job within {wait} seconds and was stopped; queue that job again"
    return ""


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _processes(site: Site) -> dict[str, list[Process]]:
    """The processes of each group, as supervisor says."""
    return supervisor.processes(site.settings.web.supervisor_conf)


def _release_of(site: Site, pid: int) -> str:
    """The release that a worker has loaded: it stays in the directory in which it was started."""
    try:
        # A release that was removed meanwhile has a word behind its name.
        path = os.readlink(f"/proc/{pid}/cwd").removesuffix(" (deleted)")
    except OSError:
        return ""
    return site.releases.release_of(path)


def _installed(site: Site) -> list[str]:
    """The workers of this site that supervisor has a file for."""
    pattern = re.compile(rf"^{re.escape(program(site, ''))}([a-z][a-z0-9-]*)\.conf$")
    try:
        names = [match[1] for match in map(pattern.match, os.listdir(site.paths.supervisor_programs)) if match]
    except FileNotFoundError:
        return []
    # The names of two sites may begin alike: the file says whose it is.
    return sorted(name for name in names if system_files.read(_file(site, name)).startswith(_mark(site)))


def _mark(site: Site) -> str:
    return f"; Written by the CKAN formula for the site {site.settings.site}.\n"


def _file(site: Site, name: str) -> str:
    return os.path.join(site.paths.supervisor_programs, f"{program(site, name)}.conf")


def _log(site: Site, name: str) -> str:
    return os.path.join(site.paths.log, f"{site.settings.site}-worker-{name}.log")


def _timeout(site: Site, name: str) -> int:
    """That of the file, since the settings may not have this worker any more."""
    match = re.search(r"^stopwaitsecs = ([0-9]+)$", system_files.read(_file(site, name)), re.MULTILINE)
    return int(match[1]) if match else 0


def _program_text(site: Site, name: str) -> str:
    paths, worker = site.paths, site.settings.workers[name]
    line = f"cd -P {paths.current} && exec bin/ckan -c {cron.ini_name(site)} jobs worker {' '.join(worker.queues)}"
    # TERM: finish the job, then end. It goes to the worker alone; what is killed at last is killed whole.
    # Supervisor reads % as the start of an interpolation, and means it in the name of the process.
    return (
        _mark(site)
        + f"""\
[program:{program(site, name)}]
command = /bin/sh -c "{line}"
process_name = worker-PROCESS
numprocs = {worker.processes}
directory = /
user = {site.settings.user}
environment = LANG="C.UTF-8",LC_ALL="C.UTF-8",PYTHONUTF8="1",HOME="{site.home}"
autostart = true
autorestart = true
startsecs = 1
stopsignal = TERM
stopwaitsecs = {worker.timeout}
stopasgroup = false
killasgroup = true
stdout_logfile = {_log(site, name)}
redirect_stderr = true
""".replace("%", "%%").replace("PROCESS", "%(process_num)d")
    )
