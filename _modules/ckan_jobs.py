"""
What CKAN does besides answering requests: workers under supervisor, and lines of cron. Both follow the release.

A worker resolves ``current`` once, when it starts, so it never imports from two releases. A line of cron does the same
each time it runs.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import os
import re
import shlex
import shutil
import time

import psutil
from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_jobs"

SCRIPT = "salt://ckan/files/cron.py"
RUNNING = ("RUNNING", "STARTING")
START_SECONDS = 10
# How long a pause waits for lines of cron: nobody says how long one may take.
CRON_SECONDS = 60
# What supervisor needs to see and to note the end of a process.
SLACK_SECONDS = 5


def __virtual__() -> str:
    return __virtualname__


def follow(settings: dict, files: bool = True) -> dict:
    """
    Bring workers and cron to what the settings say and to the release that is current. A worker finishes its job first,
    for its ``timeout`` seconds at most; then the new one starts. What is so already is left alone.

    settings
        The settings.
    files
        False for a deploy that is taken back: what the settings say has no effect, and only a worker that has another
        release than the current one is restarted.

    Returns ``{"workers": {name: "started" or "restarted" or "stopped"}, "cron": bool, "warnings": [sentences]}``; a
    worker that had to be killed is a warning. Raises ``CommandExecutionError`` that names the workers that do not
    start, when all the rest is done.

    CLI Example: not for the command line; use ``ckan_release.finish``.
    """
    if not __salt__["ckan_store.current"](settings["paths"]):
        return {"workers": {}, "cron": False, "warnings": []}
    todo = _todo(settings, files)
    cron = _cron(settings) if files else []
    for file, text in cron:
        if text:
            os.makedirs(os.path.dirname(file), exist_ok=True)
            __salt__["ckan_file.write"](file, text)
        else:
            os.unlink(file)
    with concurrent.futures.ThreadPoolExecutor(max(1, len(todo))) as pool:
        # Salt's loader finds its context only in the calling thread, or in a copy of what that has.
        jobs = [
            pool.submit(contextvars.copy_context().run, _bring, name, what, settings, files)
            for name, what in todo.items()
        ]
    told = [job.result() for job in jobs]
    warnings = [warning for warning, _ in told if warning]
    down = [problem for _, problem in told if problem]
    if down:
        raise CommandExecutionError("; ".join([*warnings, *down]))
    return {"workers": todo, "cron": bool(cron), "warnings": warnings}


def pause(settings: dict) -> list[str]:
    """
    Stop all workers; each finishes its job first, for its ``timeout`` seconds at most. ``follow`` starts them again.
    A line of cron that is at work is waited for; none begins while the file of ``ckan_maintenance`` says so.

    settings
        The settings.

    Returns warnings: of jobs that had to be stopped, and of lines of cron that are still at work.

    CLI Example: not for the command line; ``ckan_maintenance.on`` uses it.
    """
    names = _installed(settings)
    with concurrent.futures.ThreadPoolExecutor(max(1, len(names))) as pool:
        jobs = [pool.submit(contextvars.copy_context().run, _stop, name, settings) for name in names]
    warnings = [warning for job in jobs if (warning := job.result())]
    deadline = time.monotonic() + CRON_SECONDS
    while (at_work := _at_work(settings)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return [*warnings, *(f"the line {name} of ckan:cron is still at work" for name in at_work)]


def _at_work(settings: dict) -> list[str]:
    """The lines of cron that run now."""
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if _script(settings) in words[1:2]:
            found.update(name for name in settings["cron"] if name in words[2:])
    return sorted(found)


def pending(settings: dict) -> dict:
    """
    Say what ``follow`` would do. Changes nothing.

    settings
        The settings.

    Returns ``{"workers": {name: "started" or "restarted" or "stopped"}, "cron": bool}``.

    CLI Example: not for the command line; the state ``ckan_jobs.followed`` uses it.
    """
    if not __salt__["ckan_store.current"](settings["paths"]):
        return {"workers": {}, "cron": False}
    return {"workers": _todo(settings), "cron": bool(_cron(settings))}


def status() -> dict:
    """
    Say which workers run, and the release that each has loaded, from the process itself.

    Returns ``{"current": id, "workers": [{"worker", "state", "pid", "release", "memory_mb", "age_seconds"}], "cron":
    [lines]}``; of a worker that does not run ``pid`` is 0.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_jobs.status
    """
    __salt__["ckan_settings.refresh"]()
    settings = __salt__["ckan_settings.get"]()
    names, rows = sorted({*settings["workers"], *_installed(settings)}), []
    processes = _processes(settings) if names else {}
    for name in names:
        for state, pid in processes.get(program(name, settings)) or [("not known to supervisor", 0)]:
            row = {"worker": name, "state": state, "pid": pid, "release": _release_of(pid, settings)}
            with contextlib.suppress(psutil.Error):
                row.update(__salt__["ckan_process.usage"](pid) if pid else {})
            rows.append(row)
    return {
        "current": __salt__["ckan_store.current"](settings["paths"]),
        "workers": rows,
        "cron": _lines(_read(settings["paths"]["cron"])),
    }


def problems(settings: dict) -> list[str]:
    """
    Say what keeps lines of cron from running on this host.

    settings
        The settings.

    Returns a list of sentences, empty when all is well. Whether supervisor answers is ``ckan_web``'s business.

    CLI Example: not for the command line; ``ckan_release.plan`` uses it.
    """
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    if settings["cron"] and not any(shutil.which(name, path=path) for name in ("cron", "crond")):
        return ["ckan:cron has lines, but there is no cron on this host; install the package cron"]
    return []


def program(name: str, settings: dict) -> str:
    """
    Return the name of a worker's group in supervisor.

    name
        The name of the worker.
    settings
        The settings.

    CLI Example: not for the command line.
    """
    return f"ckan-{settings['site']}-worker-{name}"


def _todo(settings: dict, files: bool = True) -> dict[str, str]:
    """What is to be done with which worker; without ``files`` only what follows from the release."""
    todo = {}
    if files:
        todo = {name: "stopped" for name in _installed(settings) if name not in settings["workers"]}
    if not settings["workers"]:
        return todo
    current, all_processes = __salt__["ckan_store.current"](settings["paths"]), _processes(settings)
    for name in settings["workers"]:
        processes = all_processes.get(program(name, settings), [])
        running = [state in RUNNING for state, _ in processes]
        if any(running) and any(pid and _release_of(pid, settings) != current for _, pid in processes):
            todo[name] = "restarted"
        elif files and not any(running):
            todo[name] = "started"
        elif files and not (all(running) and _read(_file(name, settings)) == _program_text(name, settings)):
            todo[name] = "restarted"
    return todo


def _bring(name: str, what: str, settings: dict, files: bool) -> tuple[str, str]:
    """Stop a worker, start it, or both; returns a warning and a problem, '' for none."""
    file, group = _file(name, settings), program(name, settings)
    warning = "" if what == "started" else _stop(name, settings)
    if what == "stopped":
        os.unlink(file)
        __salt__["ckan_supervisor.expect"]("update", settings, name=group)
        return warning, ""
    if files and _read(file) != (wanted := _program_text(name, settings)):
        os.makedirs(os.path.dirname(file), exist_ok=True)
        __salt__["ckan_file.write"](file, wanted)
    # Starts what supervisor has not known, or known otherwise; leaves alone what it knows.
    __salt__["ckan_supervisor.expect"]("update", settings, name=group)
    if not any(state in RUNNING for state, _ in _processes(settings).get(group, [])):
        __salt__["ckan_supervisor.expect"]("start", settings, name=f"{group}:*")
    deadline = time.monotonic() + START_SECONDS
    while True:
        states = {state for state, _ in _processes(settings).get(group, [])}
        if states == {"RUNNING"}:
            return warning, ""
        if "FATAL" in states or time.monotonic() > deadline:
            said = ", ".join(sorted(states)) or "nothing"
            log = _log(name, settings)
            return warning, f"worker {name} does not start (supervisor says {said}); see {log}"
        time.sleep(0.2)


def _stop(name: str, settings: dict) -> str:
    """Let a worker finish its job, and end it when that takes too long; returns a warning, or ''."""
    wait, group, jobs = _timeout(name, settings), program(name, settings), []
    for _, pid in _processes(settings).get(group, []):
        if pid:
            # A job runs in a process of its own, outside the worker's group: whoever kills the worker does not kill it.
            jobs += _children(pid)
    begun = time.monotonic()
    __salt__["ckan_supervisor.expect"]("stop", settings, name=f"{group}:*")
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


def _processes(settings: dict) -> dict[str, list[tuple[str, int]]]:
    """State and process id of each process of each group, as supervisor says; the id is 0 where none runs."""
    found: dict[str, list[tuple[str, int]]] = {}
    for line in __salt__["ckan_supervisor.expect"]("status_raw", settings).removeprefix("ERROR: ").splitlines():
        match = re.match(r"^([^\s:]+):\S+\s+([A-Z]+)\b(?:\s+pid (\d+))?", line)
        if match:
            found.setdefault(match[1], []).append((match[2], int(match[3] or 0)))
    return found


def _release_of(pid: int, settings: dict) -> str:
    """The release that a worker has loaded: it stays in the directory in which it was started."""
    try:
        # A release that was removed meanwhile has a word behind its name.
        path = os.readlink(f"/proc/{pid}/cwd").removesuffix(" (deleted)")
    except OSError:
        return ""
    return __salt__["ckan_store.release_of"](settings["paths"], path)


def _installed(settings: dict) -> list[str]:
    """The workers of this site that supervisor has a file for."""
    folder = settings["paths"]["supervisor_programs"]
    pattern = re.compile(rf"^{re.escape(program('', settings))}([a-z][a-z0-9-]*)\.conf$")
    try:
        names = [match[1] for match in map(pattern.match, os.listdir(folder)) if match]
    except FileNotFoundError:
        return []
    # The names of two sites may begin alike: the file says whose it is.
    return sorted(name for name in names if _read(_file(name, settings)).startswith(_mark(settings)))


def _mark(settings: dict) -> str:
    return f"; Written by the CKAN formula for the site {settings['site']}.\n"


def _file(name: str, settings: dict) -> str:
    return os.path.join(settings["paths"]["supervisor_programs"], f"{program(name, settings)}.conf")


def _log(name: str, settings: dict) -> str:
    return os.path.join(settings["paths"]["log"], f"{settings['site']}-worker-{name}.log")


def _timeout(name: str, settings: dict) -> int:
    """That of the file, since the settings may not have this worker any more."""
    match = re.search(r"^stopwaitsecs = ([0-9]+)$", _read(_file(name, settings)), re.MULTILINE)
    return int(match[1]) if match else 0


def _program_text(name: str, settings: dict) -> str:
    paths, worker = settings["paths"], settings["workers"][name]
    line = f"cd -P {paths['current']} && exec bin/ckan -c {_ini(settings)} jobs worker {' '.join(worker['queues'])}"
    # TERM: finish the job, then end. It goes to the worker alone; what is killed at last is killed whole.
    # Supervisor reads % as the start of an interpolation, and means it in the name of the process.
    return (
        _mark(settings)
        + f"""\
[program:{program(name, settings)}]
command = /bin/sh -c "{line}"
process_name = worker-PROCESS
numprocs = {worker["processes"]}
directory = /
user = {settings["user"]}
environment = LANG="C.UTF-8",LC_ALL="C.UTF-8",PYTHONUTF8="1",HOME="{paths["data"]}"
autostart = true
autorestart = true
startsecs = 1
stopsignal = TERM
stopwaitsecs = {worker["timeout"]}
stopasgroup = false
killasgroup = true
stdout_logfile = {_log(name, settings)}
redirect_stderr = true
""".replace("%", "%%").replace("PROCESS", "%(process_num)d")
    )


def _cron(settings: dict) -> list[tuple[str, str]]:
    """The files of cron that are other than they should be, with what they should hold: '' for a file that goes."""
    script = __salt__["ckan_file.of_formula"](SCRIPT) if settings["cron"] else ""
    # The script is there before a line names it.
    wanted = [(_script(settings), script), (settings["paths"]["cron"], _crontab(settings))]
    return [(file, text) for file, text in wanted if _read(file) != text]


def _script(settings: dict) -> str:
    """What the lines of cron run."""
    return os.path.join(settings["paths"]["config"], "cron.py")


def _ini(settings: dict) -> str:
    """The ini, as seen from the directory of a release."""
    return os.path.basename(__salt__["ckan_ini.path"](settings["paths"]["current"], settings))


def _crontab(settings: dict) -> str:
    paths = settings["paths"]
    if not settings["cron"]:
        return ""
    ini = _ini(settings)
    text = f"""\
# Written by the CKAN formula from ckan:cron. Each line runs in the release that is current when it begins.
SHELL=/bin/sh
PATH=/usr/local/bin:/usr/bin:/bin
LC_ALL=C.UTF-8
PYTHONUTF8=1
HOME={paths["data"]}
"""
    for name, line in settings["cron"].items():
        command = ["bin/ckan", "-c", ini, *shlex.split(line["command"])]
        if line["shell"]:
            command = ["/bin/sh", "-c", line["shell"]]
        words = ["bin/python", _script(settings), *(["--once"] if line["once"] else [])]
        words += ["--site", settings["site"], "--env", settings["env"], "--ini", ini, name, "--", *command]
        # Cron ends the command at a bare %.
        run = f"cd -P {paths['current']} && exec {shlex.join(words)}".replace("%", r"\%")
        text += f"{line['schedule']} {settings['user']} {run}\n"
    return text


def _lines(crontab: str) -> list[str]:
    return [line for line in crontab.splitlines() if line and not re.match(r"#|[A-Z_0-9]+=", line)]


def _read(path: str) -> str:
    return __salt__["ckan_file.read"](path)
