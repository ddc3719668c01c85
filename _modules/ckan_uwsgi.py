"""
The files of a release's own app server: uWSGI under supervisor, on a socket in the release.

Starting and stopping it is the subject of ``ckan_web``.
"""

from __future__ import annotations

import os
import re
import shutil

__virtualname__ = "ckan_uwsgi"

# Not an error: supervisor is not to try again.
NOT_CURRENT = 77


def __virtual__() -> str:
    return __virtualname__


def write(path: str, settings: dict, starter: str) -> None:
    """
    Write what the app server of a release is started with.

    path
        The directory of the release.
    settings
        The settings.
    starter
        What tells the supervisor of now from one after a restart: see ``boot_mark``.

    CLI Example: not for the command line; ``ckan_web.start`` uses it.
    """
    run = os.path.join(path, "run")
    os.makedirs(run, exist_ok=True)
    shutil.chown(run, settings["user"], settings["group"])
    os.makedirs(settings["paths"]["log"], exist_ok=True)
    os.makedirs(settings["paths"]["supervisor_programs"], exist_ok=True)
    __salt__["ckan_file.write"](os.path.join(path, "starter"), f"{starter}\n")
    __salt__["ckan_file.write"](os.path.join(path, "uwsgi.ini"), _server(path, settings))
    __salt__["ckan_file.write"](os.path.join(path, "serve.sh"), _script(path, settings))
    __salt__["ckan_file.write"](program_file(path, settings), _program(path, settings))


def boot_mark(supervisor: str) -> str:
    """
    Return what a program finds to be so, as long as neither supervisor nor the host was restarted.

    supervisor
        The process id of supervisor.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_uwsgi.boot_mark 612
    """
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as handle:
        return f"{supervisor.strip()} {handle.read().strip()}"


def program(release: str, settings: dict) -> str:
    """
    Return the name of a release's app server in supervisor.

    release
        The id of the release.
    settings
        The settings.

    CLI Example: not for the command line.
    """
    return f"ckan-{settings['site']}-{release}"


def program_file(path: str, settings: dict) -> str:
    """
    Return the file that makes supervisor know the app server of a release.

    path
        The directory of the release.
    settings
        The settings.

    CLI Example: not for the command line.
    """
    name = program(os.path.basename(path), settings)
    return os.path.join(settings["paths"]["supervisor_programs"], f"{name}.conf")


def releases(settings: dict) -> list[str]:
    """
    Return the releases of this site that supervisor has an app server for, oldest first.

    settings
        The settings.

    CLI Example: not for the command line; use ``ckan_web.status``.
    """
    pattern = re.compile(rf"^ckan-{re.escape(settings['site'])}-([0-9]{{14}}Z)\.conf$")
    try:
        names = os.listdir(settings["paths"]["supervisor_programs"])
    except FileNotFoundError:
        return []
    return sorted(match.group(1) for match in map(pattern.match, names) if match)


def log(release: str, settings: dict) -> str:
    """
    Return the path of the log of a release's app server.

    release
        The id of the release.
    settings
        The settings.

    CLI Example: not for the command line.
    """
    return os.path.join(settings["paths"]["log"], f"{settings['site']}-{release}.log")


def _server(path: str, settings: dict) -> str:
    web = settings["web"]
    limits = ""
    if web["request_timeout"]:
        limits += f"harakiri = {web['request_timeout']}\n"
    if web["memory_limit_mb"]:
        # Looked at after a request: the process ends, and no request is lost.
        limits += f"memory-report = true\nreload-on-rss = {web['memory_limit_mb']}\n"
    return f"""# Written by the CKAN formula.
[uwsgi]
http-socket = {path}/run/web.sock
chmod-socket = 666
vacuum = true
virtualenv = {path}
chdir = {path}
wsgi-file = {settings["paths"]["config"]}/wsgi.py
need-app = true
master = true
; CKAN must be loaded in each worker: one that is forked after it shares the database's connection.
lazy-apps = true
enable-threads = true
processes = {web["processes"]}
threads = {web["threads"]}
buffer-size = 32768
disable-logging = true
{limits}; TERM means: finish what you are at, then end.
hook-master-start = unix_signal:15 gracefully_kill_them_all
worker-reload-mercy = {web["drain_timeout"]}
"""


def _script(path: str, settings: dict) -> str:
    return f"""#!/bin/sh
# Written by the CKAN formula; supervisor runs it. Who starts a release on purpose has noted supervisor's process in
# `starter`. After a restart of supervisor or of the host only the release that `current` names comes back.
if [ "$(readlink -f {settings["paths"]["current"]})" != "$(readlink -f {path})" ] &&
    [ "$(cat {path}/starter)" != "$PPID $(cat /proc/sys/kernel/random/boot_id)" ]; then
    echo "{os.path.basename(path)} is not current and was not asked for: not started"
    sleep 3  # longer than startsecs, so that it is not tried again
    exit {NOT_CURRENT}
fi
exec {path}/bin/uwsgi --ini {path}/uwsgi.ini
"""


def _program(path: str, settings: dict) -> str:
    paths, web = settings["paths"], settings["web"]
    release = os.path.basename(path)
    # Supervisor reads % as the start of an interpolation.
    return f"""; Written by the CKAN formula.
[program:{program(release, settings)}]
command = /bin/sh {path}/serve.sh
directory = {path}
user = {settings["user"]}
environment = RELEASE_DIR="{path}",LANG="C.UTF-8",LC_ALL="C.UTF-8",PYTHONUTF8="1",HOME="{paths["data"]}"
autostart = true
autorestart = unexpected
exitcodes = {NOT_CURRENT}
startsecs = 2
stopsignal = TERM
stopwaitsecs = {web["drain_timeout"] + 5}
stdout_logfile = {log(release, settings)}
redirect_stderr = true
""".replace("%", "%%")
