"""Services are started and stopped, by supervisor."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import re
import time
from collections.abc import Mapping
from concurrent.futures import Future
from typing import NamedTuple

import psutil

from ckan_deploy.releases.site import Site
from ckan_deploy.serve import service_files, steady
from ckan_deploy.serve.service_files import Program
from ckan_deploy.settings import mask
from ckan_deploy.system import files as system_files
from ckan_deploy.system import supervisor
from ckan_deploy.system.supervisor import Process

RUNNING = ("RUNNING", "STARTING")
START_SECONDS = 10
# What supervisor needs to see and to note the end of a process.
SLACK_SECONDS = 5


class Brought(NamedTuple):
    """What bringing a service to the release came to: a warning and a problem, '' for none."""

    warning: str = ""
    problem: str = ""


def bring(site: Site, todo: Mapping[Program, str], files: bool) -> list[Brought]:
    """
    Start, restart or stop services. All stop at once, and each starts as soon as it has stopped; but one of a higher
    ``order`` when those of a lower one run.

    site
        The site.
    todo
        ``{service: "started", "restarted" or "stopped"}``.
    files
        Write the files of what is started.

    Returns what came of each.
    """
    services = site.settings.all_services
    orders = {program: services[program.name].order for program, what in todo.items() if what != "stopped"}
    with concurrent.futures.ThreadPoolExecutor(max(1, 2 * len(todo))) as pool:
        stops = {program: pool.submit(stop, site, program) for program, what in todo.items() if what != "started"}
        gone = [pool.submit(_remove, site, program, stops[program]) for program in todo if program not in orders]
        told: list[Brought] = []
        for order in sorted({*orders.values()}):
            group = [program for program in orders if orders[program] == order]
            told += [
                job.result() for job in [pool.submit(_start, site, item, files, stops.get(item)) for item in group]
            ]
        return [*told, *(job.result() for job in gone)]


def stop(site: Site, program: Program) -> str:
    """
    Let a service finish what it is at, and end it when that takes too long.

    site, program
        The site and the service.

    Returns a warning, or ``''``.
    """
    wait, group = service_files.stop_seconds(site, program), service_files.group(site, program)
    jobs: list[psutil.Process] = []
    for _, pid in processes(site).get(group, []):
        if pid:
            # A job runs in a process of its own, outside the worker's group: whoever kills the worker does not kill it.
            jobs += children(pid)
    begun = time.monotonic()
    supervisor.stop(site.settings.web.supervisor_conf, group)
    took = time.monotonic() - begun
    left = [job for job in jobs if job.is_running() and job.status() != psutil.STATUS_ZOMBIE]
    for job in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            job.kill()
    if program.kind == "worker" and (left or took > wait + SLACK_SECONDS):
        return f"{program.label} did not finish its job within {wait} seconds and was stopped; queue that job again"
    if program.kind == "service" and (left or took >= wait > 0):
        where = service_files.setting(site, program)
        return (
            f"{program.label} did not end within {wait} seconds of its stop signal and was killed; give it more time "
            f"({where}:stop_seconds), or the signal that it knows ({where}:stop_signal)"
        )
    return ""


def processes(site: Site) -> dict[str, list[Process]]:
    """
    Return the processes of each group, as supervisor says.

    site
        The site.
    """
    return supervisor.processes(site.settings.web.supervisor_conf)


def children(pid: int) -> list[psutil.Process]:
    """
    Return all that a process has started and that runs.

    pid
        The process.
    """
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def release_of(site: Site, pid: int) -> str:
    """
    Return the release that a service has loaded: it stays in the directory in which it was started.

    site
        The site.
    pid
        Its process.
    """
    try:
        # A release that was removed meanwhile has a word behind its name.
        path = os.readlink(f"/proc/{pid}/cwd").removesuffix(" (deleted)")
    except OSError:
        return ""
    return site.releases.release_of(path)


def _remove(site: Site, program: Program, stopped: Future[str]) -> Brought:
    warning = stopped.result()
    service_files.remove(site, program)
    supervisor.remove(site.settings.web.supervisor_conf, service_files.group(site, program))
    return Brought(warning)


def _start(site: Site, program: Program, files: bool, stopped: Future[str] | None) -> Brought:
    conf, group = site.settings.web.supervisor_conf, service_files.group(site, program)
    warning = stopped.result() if stopped else ""
    if files:
        service_files.write(site, program)
    # Starts what supervisor has not known, or known otherwise; leaves alone what it knows.
    supervisor.update(conf, group)
    if not any(process.state in RUNNING for process in processes(site).get(group, [])):
        supervisor.start(conf, group)
    return Brought(warning, _start_problem(site, program))


def _start_problem(site: Site, program: Program) -> str:
    """Wait until a service runs; returns what is wrong with one that does not, or ''."""
    deadline, group = time.monotonic() + START_SECONDS, service_files.group(site, program)
    while True:
        mine = processes(site).get(group, [])
        states = {process.state for process in mine}
        if states == {"RUNNING"}:
            steady.note(site, group, [process.pid for process in mine])
            return ""
        if "FATAL" in states or time.monotonic() > deadline:
            said = ", ".join(sorted(states)) or "nothing"
            log = service_files.log(site, program)
            lines = [line for line in system_files.end_of(log).splitlines() if line.strip() and line[:3] != "-- "]
            last = re.sub(r"[\x00-\x1f]", " ", mask.text(lines[-1], site.settings)) if lines else "it said nothing"
            where = service_files.setting(site, program)
            return f"{program.label} does not start (supervisor says {said}): {last}; see {log}, and correct {where}"
        time.sleep(0.2)
