"""
App servers: one uWSGI per release under supervisor, for nginx; or the processes of Apache's mod_wsgi.

Nothing here knows how a release is built. A release is a directory: its app server listens on ``run/web.sock`` in it.
``uwsgi`` writes the files of one, ``draining`` stops it. Apache starts its processes itself, so there is nothing to
start and to stop then; they are only told of a switch. With ``web:app: none`` the site's own server does all this, and
the functions here do nothing.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import os
import re
import time
from collections.abc import Collection
from typing import Any

import psutil

from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.ids import ID_PATTERN
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import answers, draining, steady, uwsgi
from ckan_deploy.settings import mask
from ckan_deploy.system import processes as system_processes
from ckan_deploy.system import supervisor
from ckan_deploy.system.unix_http import UnixConnection

POLL_SECONDS = 0.05
# An answer comes from a CKAN that has booted: one that is wrong for so long will not be right a minute later.
WRONG_SECONDS = 10
# What supervisor says of a program that is not there any more.
ENDED = ("FATAL", "BACKOFF", "EXITED", "STOPPED", "unknown")


def boot(site: Site, path: str) -> bool:
    """
    Start the app server of a release, unless it runs, and wait until it answers as this release.

    site
        The site.
    path
        The directory of the release.

    Returns whether it had to be started. Raises ``FormulaError`` with the last line of the server's log when it does
    not come up within ``web:boot_timeout`` seconds.
    """
    if site.settings.web.app != "uwsgi":
        return False
    begun = time.monotonic()
    conf, program = site.settings.web.supervisor_conf, _program(site, path)
    # One without a file was told to stop, and may still answer.
    if os.path.exists(uwsgi.program_file(site, path)) and not answers.socket_problem(site, path):
        _note(site, path)
        return False
    if not os.path.exists(uwsgi.program_file(site, path)):
        draining.wait(site, path)
    uwsgi.write(site, path, uwsgi.boot_mark(supervisor.pid(conf)))
    supervisor.update(conf, program)
    if _state(site, program) in ENDED:
        # One that it knows already, and that had ended.
        supervisor.start(conf, program)
    _wait(site, path, program, begun)
    _note(site, path)
    return True


def start(site: Site, path: str, warm: bool = False) -> dict[str, Any]:
    """
    Do what ``boot`` does, and ask for pages, so that no visitor waits for the first of each process.

    site, path
        As for ``boot``.
    warm
        Ask for them where it runs already, too: it was booted and nothing more.

    Returns ``{"started": bool, "seconds": ...}``. Raises ``FormulaError`` as ``boot`` does.
    """
    begun = time.monotonic()
    started = boot(site, path)
    if started or (warm and site.settings.web.app == "uwsgi"):
        _warm(site, path)
    return {"started": started, "seconds": round(time.monotonic() - begun, 2)}


def processes(site: Site) -> list[dict[str, Any]]:
    """
    Say what runs: for each process of CKAN on this host the release that it has loaded.

    site
        The site.

    Returns ``[{"pid", "release", "memory_mb", "age_seconds"}]``; the release is what the process itself was started
    with (uWSGI) or has loaded from (mod_wsgi), ``""`` where that cannot be seen. Memory is what the process alone takes
    (USS); what uWSGI's master takes is in it as a process of its own.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            release = _release_of(site, process)
            if release is not None:
                found.append({"pid": process.pid, "release": release, **system_processes.usage(process.pid)})
    return sorted(found, key=lambda row: (row["release"], row["pid"]))


def ask(site: Site, path: str) -> str:
    """
    Ask the app server of a release, on its own socket, and return the id of the release that answered.

    site
        The site.
    path
        The directory of the release.

    Raises ``FormulaError`` when it does not answer as ``web:health_*`` wants.
    """
    problem = answers.socket_problem(site, path)
    if problem:
        raise FormulaError(f"the app server of {os.path.basename(path)} {problem}")
    return os.path.basename(path)


def watch(site: Site, release: str) -> str:
    """
    Wait until the app server of a release has been up for ``stable_seconds``, by the processes that were noted when it
    was started; under Apache, by those that serve it when it is asked for.

    site
        The site.
    release
        The id of the release.

    Returns what is wrong with one that does not stay up, or ``''``; also where ``stable_seconds`` is 0.
    """
    if not site.settings.stable_seconds:
        return ""
    if site.settings.web.server == "apache":
        return _watch_apache(site, release)
    if site.settings.web.app != "uwsgi":
        return ""
    program = uwsgi.program(site, release)
    wrong = steady.watch(site, [program], booted=True).get(program) or unsteady(site, release)
    said = _said(site, release) if wrong else ""
    return f"the app server of {release} does not stay up: it {wrong}: {said}" if wrong else ""


def unsteady(site: Site, release: str) -> str:
    """
    Say that the app server of a release ended lately, and supervisor started it again; ``''`` where that is not so, or
    where ``stable_seconds`` is 0.

    site
        The site.
    release
        The id of the release.
    """
    if site.settings.web.app != "uwsgi" or not site.settings.stable_seconds:
        return ""
    pid = answers.pid(site.releases.directory(release))
    return steady.restarted(site, uwsgi.program(site, release), pid) if pid else ""


def switched(site: Site) -> None:
    """
    Let Apache's processes see that ``current`` names another release now; uWSGI's need not know.

    A process of mod_wsgi that finds its file touched hands the request at hand to a new process, and ends. So no
    request fails or is lost, which a reload of Apache cannot promise; and no other site's configuration is in the way.

    site
        The site.
    """
    if site.settings.web.server == "apache":
        with contextlib.suppress(FileNotFoundError):
            os.utime(os.path.join(site.paths.config, "apache.wsgi"))


def log_place(site: Site, release: str) -> str:
    """
    Say where the app server of a release writes what goes wrong.

    site
        The site.
    release
        The id of the release.

    Returns the path of its log; Apache has one for all.
    """
    return "Apache's error log" if site.settings.web.server == "apache" else uwsgi.log(site, release)


def supervisor_problem(site: Site) -> str:
    """
    Say what keeps supervisor from being asked, or ``''``.

    site
        The site.
    """
    if site.settings.web.app != "uwsgi" and not site.settings.all_services:
        return ""
    return supervisor.problem(site.settings.web.supervisor_conf)


def forget(site: Site, known: Collection[str]) -> None:
    """
    Remove the logs of releases that there are no more, with those that supervisor has rotated. The one of a deploy that
    failed stays for whoever looks into it, until the next one is good.

    site
        The site.
    known
        The ids of the releases that there are.
    """
    pattern = re.compile(rf"{re.escape(site.settings.site)}-({ID_PATTERN.pattern})\.log(\.[0-9]+)?")
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(site.paths.log):
            if (match := pattern.fullmatch(name)) and match[1] not in known:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(site.paths.log, name))


def last_error(site: Site, release: str) -> str:
    """
    Return the last line of a release's log that names an error, without secrets; ``''`` where there is none, or where
    the log is not the release's own.

    site
        The site.
    release
        The id of the release.
    """
    found = _errors(_lines(uwsgi.log(site, release))) if site.settings.web.app == "uwsgi" else []
    return mask.text(found[-1], site.settings) if found else ""


def _wait(site: Site, path: str, program: str, begun: float) -> None:
    limit = site.settings.web.boot_timeout
    next_look, answered = begun + 1.0, 0.0
    while True:
        problem, _, status = answers.at_socket(site, path)
        if not problem:
            return
        now = time.monotonic()
        answered = (answered or now) if status else 0.0
        if status and now - answered > WRONG_SECONDS:
            problem += f" for {WRONG_SECONDS} seconds"
            break
        if now > next_look:
            state = _state(site, program)
            if state in ENDED:
                problem = f"ended while starting (supervisor says {state})"
                break
            next_look = now + 1.0
        if now - begun > limit:
            problem += f" after {limit} seconds"
            break
        time.sleep(POLL_SECONDS)
    release = os.path.basename(path)
    failed = FormulaError(
        f"the app server of {release} {problem}: {_said(site, release)}; see {uwsgi.log(site, release)}"
    )
    raise failed.with_details(uwsgi.said(site, release))


def _warm(site: Site, path: str) -> None:
    """Ask for pages, so that no visitor waits for templates to be compiled: as many at once as all processes take."""
    web = site.settings.web
    pages = web.warm * web.processes * web.threads

    def ask(page: str) -> None:
        connection = UnixConnection(answers.socket_of(path), web.health_timeout)
        # What comes back is not judged: that was the health check's business.
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", page, headers=answers.headers(site))
            connection.getresponse().read(answers.MOST_BYTES)
        connection.close()

    if pages:
        with concurrent.futures.ThreadPoolExecutor(min(len(pages), 32)) as pool:
            list(pool.map(ask, pages))


def _watch_apache(site: Site, release: str) -> str:
    """Apache starts anew what ends, and nobody starts its processes on purpose: those of now must still be there."""
    pids = [row["pid"] for row in processes(site) if row["release"] == release]
    # One that has ended meanwhile is not among them.
    noted = {process.pid: process for process in psutil.process_iter() if process.pid in pids}
    begun = time.monotonic()
    while pids and (age := time.monotonic() - begun) < site.settings.stable_seconds:
        if ended := [pid for pid in pids if pid not in noted or not noted[pid].is_running()]:
            what = f"process {ended[0]} of mod_wsgi ended within {age:.0f} s of the switch"
            return f"the app server of {release} does not stay up: {what}; see {log_place(site, release)}"
        time.sleep(steady.POLL_SECONDS)
    return ""


def _note(site: Site, path: str) -> None:
    """Note the process that answers for a release as started on purpose."""
    pid = answers.pid(path)
    steady.note(site, _program(site, path), [pid] if pid else [])


def _state(site: Site, program: str) -> str:
    told = supervisor.processes(site.settings.web.supervisor_conf).get(program)
    return told[0].state if told else "unknown"


def _release_of(site: Site, process: psutil.Process) -> str | None:
    """The release that a process serves; None when it is none of this site's."""
    apache = site.settings.web.server == "apache"
    if apache:
        # mod_wsgi shortens the name of its group to what fits.
        name = f"(wsgi:ckan-{site.settings.site})"
        shown = " ".join(process.cmdline()[:1])
        if not shown.startswith("(wsgi:") or not name.startswith(shown.rstrip(")")):
            return None
        loaded = [mapped.path for mapped in process.memory_maps(grouped=True)]
    elif process.name() == "uwsgi":
        loaded = [process.environ().get("RELEASE_DIR", "")]
    else:
        return None
    names = {site.releases.release_of(path) for path in loaded} - {""}
    if not apache and not names:
        return None  # of another site
    return min(names, default="")


def _program(site: Site, path: str) -> str:
    return uwsgi.program(site, os.path.basename(path))


def _said(site: Site, release: str) -> str:
    """The line of a release's log that says most: the last one that names an error, else the last one."""
    lines = _lines(uwsgi.log(site, release))
    return mask.text((_errors(lines) or lines or ["an empty log"])[-1].strip(), site.settings)


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            return [line.rstrip() for line in handle.readlines()[-200:] if line.strip()]
    except OSError:
        return []


def _errors(lines: list[str]) -> list[str]:
    """The lines that name an exception: not all have a name that says so, but each stands below its traceback."""
    found, inside = [], False
    for line in lines:
        ends = inside and not line[0].isspace()
        if ends or re.match(r"[\w.]*(Error|Exception|Exit)\b", line.lstrip()):
            found.append(line.strip())
        inside = line.startswith("Traceback (most recent call last)") or (inside and not ends)
    return found
