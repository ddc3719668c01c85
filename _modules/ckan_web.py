"""
App servers: one uWSGI per release under supervisor, for nginx; or the processes of Apache's mod_wsgi.

Nothing here knows how a release is built. A release is a directory: its app server listens on ``run/web.sock`` in it.
Apache starts its processes itself, so there is nothing to start and to stop then; they are only told of a switch. With
``web:server: none`` the site's own server does all this, and the functions here do nothing.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import socket
import time

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_web"

HEADER = "X-CKAN-Release"
POLL_SECONDS = 0.05
# After the switch no new connection comes to the old server; the last ones get this long to be accepted.
LINGER_SECONDS = 1.0


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
    if settings["web"]["server"] != "nginx":
        return {"started": False, "seconds": 0.0}
    begun = time.monotonic()
    if _asks(path, settings) is None:
        return {"started": False, "seconds": round(time.monotonic() - begun, 2)}
    program = _program(path, settings)
    _write_run_files(path, settings, program)
    answer = __salt__["supervisord.update"](name=program, conf_file=_supervisor_conf(settings))
    if "ERROR" in answer or "refused" in answer or "no such file" in answer:
        raise CommandExecutionError(f"supervisor does not answer ({_last(answer)}); start it and deploy again.")
    _wait(path, settings, program, begun)
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
    program = _program(path, settings)
    conf = os.path.join(settings["paths"]["supervisor_programs"], f"{program}.conf")
    if not os.path.exists(conf):
        return False
    if drain:
        time.sleep(LINGER_SECONDS)
    os.unlink(conf)
    __salt__["supervisord.update"](name=program, conf_file=_supervisor_conf(settings))
    return True


def stop_others(path: str, settings: dict) -> list[str]:
    """
    Stop the app servers of all releases of this site but one.

    path
        The directory of the release that stays.
    settings
        The settings.

    Returns the names of the releases whose servers were stopped.

    CLI Example: not for the command line.
    """
    stopped = []
    for name in running(settings):
        if name != os.path.basename(path):
            if stop(os.path.join(os.path.dirname(path), name), settings, drain=not stopped):
                stopped.append(name)
    return stopped


def running(settings: dict) -> list[str]:
    """
    Return the releases of this site that have an app server under supervisor, oldest first.

    settings
        The settings.

    CLI Example: not for the command line; use ``ckan_release.status``.
    """
    pattern = re.compile(rf"^ckan-{re.escape(settings['site'])}-([0-9]{{14}}Z)\.conf$")
    try:
        names = os.listdir(settings["paths"]["supervisor_programs"])
    except FileNotFoundError:
        return []
    return sorted(match.group(1) for match in map(pattern.match, names) if match)


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
    return _log(release, settings) if settings["web"]["server"] == "nginx" else "Apache's error log"


def supervisor_problem(settings: dict) -> str:
    """
    Say what keeps supervisor from being asked, or ``''``.

    settings
        The settings.

    CLI Example: not for the command line; ``ckan_release.plan`` uses it.
    """
    if settings["web"]["server"] != "nginx":
        return ""
    answer = __salt__["supervisord.status_raw"](conf_file=_supervisor_conf(settings))
    if "refused" in answer or "no such file" in answer or "SHUTDOWN" in answer:
        return f"supervisor does not answer ({_last(answer)}); start it"
    return ""


def forget(path: str, settings: dict) -> None:
    """
    Remove what a release left outside its directory: its log.

    path
        The directory of the release.
    settings
        The settings.

    CLI Example: not for the command line; ``ckan_release.prune`` uses it.
    """
    log = _log(os.path.basename(path), settings)
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
            state = __salt__["supervisord.status"](name=program, conf_file=_supervisor_conf(settings))
            state = state.get(program, {}).get("state", "unknown")
            if state in ("FATAL", "BACKOFF", "EXITED", "STOPPED"):
                problem = f"ended while starting (supervisor says {state})"
                break
            next_look = now + 1.0
        if now - begun > limit:
            problem += f" after {limit} seconds"
            break
        time.sleep(POLL_SECONDS)
    release = os.path.basename(path)
    log = _log(release, settings)
    said = __salt__["ckan_mask.text"](_tail(log), settings)
    raise CommandExecutionError(f"the app server of {release} {problem}: {said}; see {log}")


def _asks(path: str, settings: dict) -> str | None:
    """What is wrong with the answer of a release's own socket; None when all is well."""
    sock = os.path.join(path, "run", "web.sock")
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


def _write_run_files(path: str, settings: dict, program: str) -> None:
    paths, web = settings["paths"], settings["web"]
    run = os.path.join(path, "run")
    os.makedirs(run, exist_ok=True)
    shutil.chown(run, settings["user"], settings["group"])
    os.makedirs(paths["log"], exist_ok=True)
    uwsgi = f"""# Written by the CKAN formula.
[uwsgi]
http-socket = {run}/web.sock
chmod-socket = 666
vacuum = true
virtualenv = {path}
chdir = {path}
wsgi-file = {paths["config"]}/wsgi.py
need-app = true
master = true
; CKAN must be loaded in each worker: one that is forked after it shares the database's connection.
lazy-apps = true
enable-threads = true
processes = {web["processes"]}
threads = {web["threads"]}
buffer-size = 32768
disable-logging = true
; TERM means: finish what you are at, then end.
hook-master-start = unix_signal:15 gracefully_kill_them_all
worker-reload-mercy = {web["drain_timeout"]}
"""
    _write(os.path.join(path, "uwsgi.ini"), uwsgi)
    log = _log(os.path.basename(path), settings)
    # Supervisor, too, reads % as the start of an interpolation.
    text = f"""; Written by the CKAN formula.
[program:{program}]
command = {path}/bin/uwsgi --ini {path}/uwsgi.ini
directory = {path}
user = {settings["user"]}
environment = RELEASE_DIR="{path}",LANG="C.UTF-8",LC_ALL="C.UTF-8",PYTHONUTF8="1",HOME="{paths["data"]}"
autostart = true
autorestart = true
startsecs = 2
stopsignal = TERM
stopwaitsecs = {web["drain_timeout"] + 5}
stdout_logfile = {log}
redirect_stderr = true
""".replace("%", "%%")
    os.makedirs(paths["supervisor_programs"], exist_ok=True)
    _write(os.path.join(paths["supervisor_programs"], f"{program}.conf"), text)


def _write(path: str, text: str) -> None:
    with open(f"{path}.tmp", "w", encoding="utf-8") as handle:
        handle.write(text)
    os.rename(f"{path}.tmp", path)


def _program(path: str, settings: dict) -> str:
    return f"ckan-{settings['site']}-{os.path.basename(path)}"


def _supervisor_conf(settings: dict) -> str | None:
    return settings["web"]["supervisor_conf"] or None


def _log(release: str, settings: dict) -> str:
    return os.path.join(settings["paths"]["log"], f"{settings['site']}-{release}.log")


def _tail(path: str) -> str:
    """The line of a log that says most: the last one that names an error, else the last one."""
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            lines = [line.strip() for line in handle.readlines()[-200:] if line.strip()]
    except OSError:
        return "no log"
    errors = [line for line in lines if re.match(r"^[\w.]*(Error|Exception|Exit)\b", line)]
    return (errors or lines or ["an empty log"])[-1]


def _last(text: str) -> str:
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
