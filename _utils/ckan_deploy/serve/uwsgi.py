"""
The files of a release's own app server: uWSGI under supervisor, on a socket in the release.

Starting and stopping it is the subject of ``app_server``.
"""

from __future__ import annotations

import os
import re

from ckan_deploy.build import environment
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import shared_files, web_group
from ckan_deploy.settings import mask
from ckan_deploy.system import disk, files, safely

# What servers take for ever: 24 days, the most that fits into their milliseconds.
NO_LIMIT = 24 * 86400
# The web server waits a little longer than the app server works.
LATER_SECONDS = 5
# Not an error: supervisor is not to try again.
NOT_CURRENT = 77


def write(site: Site, path: str, starter: str) -> None:
    """
    Write what the app server of a release is started with.

    site
        The site.
    path
        The directory of the release.
    starter
        What tells the supervisor of now from one after a restart: see ``boot_mark``.
    """
    shared_files.own_run(site, path)
    shared_files.clear_log(site, log(site, os.path.basename(path)))
    safely.ensure(site.paths.supervisor_programs)
    files.write(os.path.join(path, "starter"), f"{starter}\n")
    files.write(os.path.join(path, "uwsgi.ini"), _server(site, path))
    files.write(os.path.join(path, "serve.sh"), _script(site, path))
    files.write(program_file(site, path), _program(site, path))


def boot_mark(supervisor: int) -> str:
    """
    Return what a program finds to be so, as long as neither supervisor nor the host was restarted.

    supervisor
        The process id of supervisor.
    """
    return f"{supervisor} {disk.boot_id()}"


def program(site: Site, release: str) -> str:
    """
    Return the name of a release's app server in supervisor.

    site
        The site.
    release
        The id of the release.
    """
    return f"ckan-{site.settings.site}-{release}"


def program_file(site: Site, path: str) -> str:
    """
    Return the file that makes supervisor know the app server of a release.

    site
        The site.
    path
        The directory of the release.
    """
    return os.path.join(site.paths.supervisor_programs, f"{program(site, os.path.basename(path))}.conf")


def releases(site: Site) -> list[str]:
    """
    Return the releases of this site that supervisor has an app server for, oldest first.

    site
        The site.
    """
    pattern = re.compile(rf"^ckan-{re.escape(site.settings.site)}-([0-9]{{14}}Z)\.conf$")
    try:
        names = os.listdir(site.paths.supervisor_programs)
    except FileNotFoundError:
        return []
    return sorted(match.group(1) for match in map(pattern.match, names) if match)


def log(site: Site, release: str) -> str:
    """
    Return the path of the log of a release's app server.

    site
        The site.
    release
        The id of the release.
    """
    return os.path.join(site.paths.log, f"{site.settings.site}-{release}.log")


def said(site: Site, release: str) -> str:
    """
    Return the last lines of that log without the secrets of the settings, ``''`` where there is none.

    site
        The site.
    release
        The id of the release.
    """
    return mask.lines(files.end_of(log(site, release)), site.settings)


def _server(site: Site, path: str) -> str:
    web = site.settings.web
    limits = f"socket-timeout = {web.request_timeout + LATER_SECONDS if web.request_timeout else NO_LIMIT}\n"
    if web.request_timeout:
        limits += f"harakiri = {web.request_timeout}\n"
    if web.memory_limit_mb:
        # Looked at after a request: the process ends, and no request is lost.
        limits += f"memory-report = true\nreload-on-rss = {web.memory_limit_mb}\n"
    return f"""# Written by the CKAN formula.
[uwsgi]
http-socket = {path}/run/web.sock
chmod-socket = {660 if web_group.name(site) else 666}
vacuum = true
virtualenv = {path}
chdir = {path}
wsgi-file = {site.paths.config}/wsgi.py
need-app = true
master = true
; One that still loads CKAN does not see that its master is gone.
no-orphans = true
; CKAN must be loaded in each worker: one that is forked after it shares the database's connection.
lazy-apps = true
enable-threads = true
processes = {web.processes}
threads = {web.threads}
buffer-size = 65535
disable-logging = true
; It outlives a supervisor that is killed, and has no log then: each line about that would be one more signal.
ignore-sigpipe = true
{limits}; TERM means: finish what you are at, then end.
hook-master-start = unix_signal:15 gracefully_kill_them_all
worker-reload-mercy = {web.drain_timeout}
"""


def _script(site: Site, path: str) -> str:
    return f"""#!/bin/sh
# Written by the CKAN formula; supervisor runs it. Who starts a release on purpose has noted supervisor's process in
# `starter`. After a restart of supervisor or of the host only the release that `current` names comes back.
if [ "$(readlink -f {site.paths.current})" != "$(readlink -f {path})" ] &&
    [ "$(cat {path}/starter)" != "$PPID $(cat /proc/sys/kernel/random/boot_id)" ]; then
    echo "{os.path.basename(path)} is not current and was not asked for: not started"
    sleep 3  # longer than startsecs, so that it is not tried again
    exit {NOT_CURRENT}
fi
{environment.SOURCED}
exec {path}/bin/uwsgi --ini {path}/uwsgi.ini
"""


def _program(site: Site, path: str) -> str:
    release = os.path.basename(path)
    variables = f'RELEASE_DIR="{path}",LANG="C.UTF-8",LC_ALL="C.UTF-8",PYTHONUTF8="1",HOME="{site.home}"'
    # Supervisor reads % as the start of an interpolation.
    return f"""; Written by the CKAN formula.
[program:{program(site, release)}]
command = /bin/sh {path}/serve.sh
directory = {path}
user = {site.settings.user}
environment = {variables}
autostart = true
autorestart = unexpected
exitcodes = {NOT_CURRENT}
startsecs = 2
stopsignal = TERM
stopwaitsecs = {site.settings.web.drain_timeout + 5}
stdout_logfile = {log(site, release)}
redirect_stderr = true
""".replace("%", "%%")
