"""
App servers: one uWSGI per release under supervisor, for nginx; or the processes of Apache's mod_wsgi.

Nothing here knows how a release is built. A release is a directory: its app server listens on ``run/web.sock`` in it.
``ckan_uwsgi`` writes the files of one. Apache starts its processes itself, so there is nothing to start and to stop
then; they are only told of a switch. With ``web:app: none`` the site's own server does all this, and the functions here
do nothing.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import os
import re
import socket
import time

import psutil
from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_web"

HEADER = "X-CKAN-Release"
POLL_SECONDS = 0.05
# After the switch no new connection comes to the old server; the last ones get this long to be accepted.
LINGER_SECONDS = 1.0
# What supervisor says of a program that is not there any more.
ENDED = ("FATAL", "BACKOFF", "EXITED", "STOPPED")


def __virtual__() -> str:
    return __virtualname__


def start(path: str, settings: dict) -> dict:
    """
    Start the app server of a release, unless it runs, and wait until it answers as this release.

    path
        The directory of the release.
    settings
        The settings.

    Returns ``{"started": bool, "seconds": ...}``. Raises ``CommandExecutionError`` with the last line of the server's
    log when it does not come up within ``web:boot_timeout`` seconds.

    CLI Example: not for the command line; use ``ckan_release.start``.
    """
    if settings["web"]["app"] != "uwsgi":
        return {"started": False, "seconds": 0.0}
    begun = time.monotonic()
    if _asks(path, settings) is None:
        return {"started": False, "seconds": round(time.monotonic() - begun, 2)}
    program, ask = _program(path, settings), __salt__["ckan_supervisor.ask"]
    supervisor = ask("custom", settings, command="pid")
    if not supervisor.strip().isdigit():
        said = __salt__["ckan_supervisor.last_line"](supervisor)
        raise CommandExecutionError(f"supervisor does not answer ({said}); start it and deploy again.")
    __salt__["ckan_uwsgi.write"](path, settings, __salt__["ckan_uwsgi.boot_mark"](supervisor))
    answer = ask("update", settings, name=program)
    if "ERROR" in answer or "refused" in answer or "no such file" in answer:
        said = __salt__["ckan_supervisor.last_line"](answer)
        raise CommandExecutionError(f"supervisor does not take the app server ({said}); look at its log.")
    if _state(program, settings) in ENDED:
        # One that it knows already, and that had ended.
        ask("start", settings, name=program)
    _wait(path, settings, program, begun)
    _warm(path, settings)
    return {"started": True, "seconds": round(time.monotonic() - begun, 2)}


def stop(path: str, settings: dict, drain: bool = True) -> bool:
    """
    Stop the app server of a release: requests under way are finished first, for ``web:drain_timeout`` seconds at most.

    path
        The directory of the release.
    settings
        The settings.
    drain
        Wait first for the last connections to be taken; not needed for a server that never had visitors.

    Returns True when one was running.

    CLI Example: not for the command line.
    """
    conf = __salt__["ckan_uwsgi.program_file"](path, settings)
    if not os.path.exists(conf):
        return False
    if drain:
        time.sleep(LINGER_SECONDS)
    os.unlink(conf)
    __salt__["ckan_supervisor.ask"]("update", settings, name=_program(path, settings))
    return True


def stop_others(path: str, settings: dict, standby: str = "") -> list[str]:
    """
    Stop the app servers of all releases of this site but one.

    path
        The directory of the release that stays, ``""`` for none.
    settings
        The settings.
    standby
        A release whose server stays, too.

    Returns the names of the releases whose servers were stopped.

    CLI Example: not for the command line.
    """
    stopped = []
    for name in __salt__["ckan_uwsgi.releases"](settings):
        if name not in (os.path.basename(path), standby):
            if stop(os.path.join(settings["paths"]["releases"], name), settings, drain=not stopped):
                stopped.append(name)
    return stopped


def keep_standby(release: str, settings: dict) -> bool:
    """
    Arrange that the app server of the release before is stopped in ``web:standby`` seconds, and not now.

    release
        The id of that release, or ``""``.
    settings
        The settings.

    Returns whether it stays: not without a release, the setting, or a minion that runs all the time and so can stop it.

    CLI Example: not for the command line; ``ckan_release.finish`` uses it.
    """
    seconds = settings["web"]["standby"]
    if not (release and seconds and settings["web"]["app"] == "uwsgi" and __opts__.get("__cli") == "salt-minion"):
        return False
    done = __salt__["schedule.add"](
        _standby_job(settings), function="ckan_release.end_standby", seconds=seconds, run_on_start=False, maxrunning=1
    )
    return bool(done["result"])


def forget_standby(settings: dict) -> None:
    """
    Take back what ``keep_standby`` arranged.

    settings
        The settings.

    CLI Example: not for the command line.
    """
    if settings["web"]["standby"] and __opts__.get("__cli") == "salt-minion":
        if __salt__["schedule.is_enabled"](_standby_job(settings)):
            __salt__["schedule.delete"](_standby_job(settings))


def status() -> dict:
    """
    Say which release is linked, and what runs: for each process of CKAN on this host the release that it has loaded.

    Returns ``{"current": id, "processes": [{"pid", "release", "memory_mb", "age_seconds"}]}``; the release is what the
    process itself was started with (uWSGI) or has loaded from (mod_wsgi), ``""`` where that cannot be seen. Memory is
    what the process alone takes (USS); what uWSGI's master takes is in it as a process of its own.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_web.status
    """
    __salt__["ckan_settings.refresh"]()
    settings = __salt__["ckan_settings.get"]()
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            release = _release_of(process, settings)
            if release is not None:
                usage = __salt__["ckan_process.usage"](process.pid)
                found.append({"pid": process.pid, "release": release, **usage})
    return {
        "current": __salt__["ckan_store.current"](settings["paths"]),
        "processes": sorted(found, key=lambda row: (row["release"], row["pid"])),
    }


def ask(path: str, settings: dict) -> str:
    """
    Ask the app server of a release, on its own socket, and return the id of the release that answered.

    path
        The directory of the release.
    settings
        The settings.

    Raises ``CommandExecutionError`` when it does not answer as ``web:health_*`` wants.

    CLI Example: not for the command line; use ``ckan_release.status``.
    """
    problem = _asks(path, settings)
    if problem:
        raise CommandExecutionError(f"the app server of {os.path.basename(path)} {problem}")
    return os.path.basename(path)


def switched(settings: dict) -> None:
    """
    Let Apache's processes see that ``current`` names another release now; uWSGI's need not know.

    settings
        The settings.

    A process of mod_wsgi that finds its file touched hands the request at hand to a new process, and ends. So no
    request fails or is lost, which a reload of Apache cannot promise; and no other site's configuration is in the way.

    CLI Example: not for the command line; ``ckan_release.activate`` uses it.
    """
    if settings["web"]["server"] == "apache":
        with contextlib.suppress(FileNotFoundError):
            os.utime(os.path.join(settings["paths"]["config"], "apache.wsgi"))


def judge(connection: http.client.HTTPConnection, settings: dict) -> tuple[str, str]:
    """
    Ask over a connection what the health check asks, and judge the answer.

    connection
        A connection that is not yet open.
    settings
        The settings.

    Returns what is wrong and the release that answered, each ``''`` when there is none. Raises ``OSError`` when nobody
    answers.

    CLI Example: not for the command line; ``ckan_front.health`` uses it.
    """
    web = settings["web"]
    try:
        headers = {"Host": settings["domain"], "User-Agent": "ckan-formula"}
        connection.request("GET", web["health_path"], headers=headers)
        response = connection.getresponse()
        body = response.read()
    except http.client.HTTPException as exc:
        return f"does not speak HTTP ({type(exc).__name__})", ""
    finally:
        connection.close()
    answered = response.getheader(HEADER, "")
    if response.status != web["health_status"]:
        return f"answers {response.status} instead of {web['health_status']}", answered
    if web["health_text"] and web["health_text"] not in body.decode("utf-8", "replace"):
        return "answers without the expected text (web:health_text)", answered
    return "", answered


def log(release: str, settings: dict) -> str:
    """
    Say where the app server of a release writes what goes wrong.

    release
        The id of the release.
    settings
        The settings.

    Returns the path of its log; Apache has one for all.

    CLI Example: not for the command line.
    """
    if settings["web"]["server"] == "apache":
        return "Apache's error log"
    return __salt__["ckan_uwsgi.log"](release, settings)


def supervisor_problem(settings: dict) -> str:
    """
    Say what keeps supervisor from being asked, or ``''``.

    settings
        The settings.

    CLI Example: not for the command line; ``ckan_release.plan`` uses it.
    """
    if settings["web"]["app"] != "uwsgi" and not settings["workers"]:
        return ""
    return __salt__["ckan_supervisor.problem"](settings)


def forget(path: str, settings: dict) -> None:
    """
    Remove what a release left outside its directory: its log.

    path
        The directory of the release.
    settings
        The settings.

    CLI Example: not for the command line; ``ckan_release.prune`` uses it.
    """
    log = __salt__["ckan_uwsgi.log"](os.path.basename(path), settings)
    if os.path.exists(log):
        os.unlink(log)


def _wait(path: str, settings: dict, program: str, begun: float) -> None:
    limit = settings["web"]["boot_timeout"]
    next_look = begun + 1.0
    while True:
        problem = _asks(path, settings)
        if problem is None:
            return
        now = time.monotonic()
        if now > next_look:
            state = _state(program, settings)
            if state in ENDED:
                problem = f"ended while starting (supervisor says {state})"
                break
            next_look = now + 1.0
        if now - begun > limit:
            problem += f" after {limit} seconds"
            break
        time.sleep(POLL_SECONDS)
    release = os.path.basename(path)
    log = __salt__["ckan_uwsgi.log"](release, settings)
    said = __salt__["ckan_mask.text"](_tail(log), settings)
    raise CommandExecutionError(f"the app server of {release} {problem}: {said}; see {log}")


def _warm(path: str, settings: dict) -> None:
    """Ask for pages, so that no visitor waits for templates to be compiled: as many at once as all processes take."""
    web = settings["web"]
    pages = web["warm"] * web["processes"] * web["threads"]

    def ask(page: str) -> None:
        connection = _UnixConnection(_socket(path), web["health_timeout"])
        # What comes back is not judged: that was the health check's business.
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", page, headers={"Host": settings["domain"], "User-Agent": "ckan-formula"})
            connection.getresponse().read()
        connection.close()

    if pages:
        with concurrent.futures.ThreadPoolExecutor(min(len(pages), 32)) as pool:
            list(pool.map(ask, pages))


def _socket(path: str) -> str:
    return os.path.join(path, "run", "web.sock")


def _asks(path: str, settings: dict) -> str | None:
    """What is wrong with the answer of a release's own socket; None when all is well."""
    sock = _socket(path)
    if not os.path.exists(sock):
        return "is not listening"
    try:
        problem, answered = judge(_UnixConnection(sock, settings["web"]["boot_timeout"]), settings)
    except OSError as exc:
        return f"does not answer ({exc})"
    if problem:
        return problem
    if answered != os.path.basename(path):
        return f"is answered by release {answered or 'unknown'}"
    return None


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float):
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _standby_job(settings: dict) -> str:
    return f"ckan-standby-{settings['site']}"


def _state(program: str, settings: dict) -> str:
    # Not supervisord.status: Salt puts a word before the answer when the program does not run.
    told = __salt__["ckan_supervisor.ask"]("status_raw", settings, name=program)
    words = told.removeprefix("ERROR: ").split()
    return words[1] if len(words) > 1 and words[0] == program else "unknown"


def _release_of(process: psutil.Process, settings: dict) -> str | None:
    """The release that a process serves; None when it is none of this site's."""
    if settings["web"]["server"] == "apache":
        # mod_wsgi shortens the name of its group to what fits.
        name = f"(wsgi:ckan-{settings['site']})"
        shown = " ".join(process.cmdline()[:1])
        if not shown.startswith("(wsgi:") or not name.startswith(shown.rstrip(")")):
            return None
        loaded = [mapped.path for mapped in process.memory_maps(grouped=True)]
    elif process.name() == "uwsgi":
        loaded = [process.environ().get("RELEASE_DIR", "")]
    else:
        return None
    names = {__salt__["ckan_store.release_of"](settings["paths"], path) for path in loaded} - {""}
    if settings["web"]["server"] != "apache" and not names:
        return None  # of another site
    return min(names, default="")


def _program(path: str, settings: dict) -> str:
    return __salt__["ckan_uwsgi.program"](os.path.basename(path), settings)


def _tail(path: str) -> str:
    """The line of a log that says most: the last one that names an error, else the last one."""
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            lines = [line.strip() for line in handle.readlines()[-200:] if line.strip()]
    except OSError:
        return "no log"
    errors = [line for line in lines if re.match(r"^[\w.]*(Error|Exception|Exit)\b", line)]
    return (errors or lines or ["an empty log"])[-1]
