"""
The files of a service: its program for supervisor, and the script that this runs. Starting and stopping it is the
subject of ``services``.

The script holds what may be secret or has characters that supervisor reads otherwise; only root and CKAN's group may
read it.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import NamedTuple

from attrs import frozen

from ckan_deploy import scripts
from ckan_deploy.build import environment
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import cron, shared_files
from ckan_deploy.settings.parts import Service
from ckan_deploy.system import files, safely

KINDS = ("worker", "service")
# What a service notes when it starts: the boot of the host, and the seconds since then.
STARTS = re.compile(r"^([0-9a-f-]{36}) ([0-9]+\.[0-9]+)$", re.MULTILINE)
# Bytes of such notes: some 400 starts. Then they begin anew.
MOST_NOTES = 20000


@frozen(order=True)
class Program:
    """A service as supervisor knows it; ``kind`` is ``worker`` for one with queues, else ``service``."""

    name: str
    kind: str

    @property
    def label(self) -> str:
        """What it is called in messages."""
        return f"{self.kind} {self.name}"


class File(NamedTuple):
    """A file of a service, and what it should hold."""

    path: str
    text: str
    mode: int = 0o644


def wanted(site: Site) -> dict[Program, Service]:
    """
    Return the services of the settings.

    site
        The site.
    """
    return {
        Program(name, "worker" if service.queues else "service"): service
        for name, service in site.settings.all_services.items()
    }


def installed(site: Site) -> list[Program]:
    """
    Return the services of this site that supervisor has a file for.

    site
        The site.
    """
    pattern = re.compile(rf"^ckan-{re.escape(site.settings.site)}-({'|'.join(KINDS)})-([a-z][a-z0-9-]*)\.conf$")
    try:
        found = [Program(match[2], match[1]) for match in map(pattern.match, os.listdir(_folder(site))) if match]
    except FileNotFoundError:
        return []
    # The names of two sites may begin alike: the file says whose it is.
    return sorted(program for program in found if files.read(conf(site, program)).startswith(_mark(site)))


def group(site: Site, program: Program) -> str:
    """
    Return the name of a service's group in supervisor.

    site, program
        The site and the service.
    """
    return f"ckan-{site.settings.site}-{program.kind}-{program.name}"


def conf(site: Site, program: Program) -> str:
    """
    Return the file that makes supervisor know a service: parameters as for ``group``.
    """
    return os.path.join(_folder(site), f"{group(site, program)}.conf")


def log(site: Site, program: Program) -> str:
    """
    Return the log of a service: parameters as for ``group``.
    """
    return os.path.join(site.paths.log, f"{site.settings.site}-{program.kind}-{program.name}.log")


def setting(site: Site, program: Program) -> str:
    """
    Return where the pillar has a service: parameters as for ``group``.
    """
    return f"ckan:{'workers' if program.name in site.settings.workers else 'services'}:{program.name}"


def stop_seconds(site: Site, program: Program) -> int:
    """
    Return how long supervisor waits for the end of a service, as its file says, since the settings may not have this
    one any more: parameters as for ``group``.
    """
    match = re.search(r"^stopwaitsecs = ([0-9]+)$", files.read(conf(site, program)), re.MULTILINE)
    return int(match[1]) if match else 0


def stale(site: Site, program: Program) -> list[File]:
    """
    Return the files of a service that are other than they should be, with what they should hold: parameters as for
    ``group``.
    """
    service = wanted(site)[program]
    made = [File(_script(site, program), _script_text(site, program, service), 0o640)]
    if service.once or service.stop_when_idle:
        made.insert(0, File(_helper(site), scripts.text(scripts.SERVICE)))
    made.append(File(conf(site, program), _program_text(site, program, service)))
    return [file for file in made if files.read(file.path) != file.text]


def write(site: Site, program: Program) -> None:
    """
    Bring the files of a service to what they should be: parameters as for ``group``.
    """
    if not (changed := stale(site, program)):
        return
    shared_files.clear_log(site, log(site, program))
    for file in changed:
        safely.ensure(os.path.dirname(file.path))
        files.write(file.path, file.text, mode=file.mode, group=site.settings.group if file.mode == 0o640 else "")


def remove(site: Site, program: Program) -> None:
    """
    Remove the files of a service but its log: parameters as for ``group``.
    """
    for path in (conf(site, program), _script(site, program)):
        files.try_unlink(path)


def starts(site: Site, program: Program, boot: str) -> list[float]:
    """
    Return when a service was started since the host was, in seconds of its clock, as CKAN's user has noted: whoever is
    that user may write there what it likes.

    site, program
        As for ``group``.
    boot
        The boot of the host.
    """
    try:
        with safely.file(_notes(site, program)) as handle:
            said = handle.read(2 * MOST_NOTES).decode("utf-8", "replace")
    except (FormulaError, OSError):
        return []
    return [float(when) for which, when in STARTS.findall(said) if which == boot]


def _folder(site: Site) -> str:
    return site.paths.supervisor_programs


def _mark(site: Site) -> str:
    return f"; Written by the CKAN formula for the site {site.settings.site}.\n"


def _script(site: Site, program: Program) -> str:
    return os.path.join(site.paths.config, "services", f"{program.kind}-{program.name}.sh")


def _notes(site: Site, program: Program) -> str:
    return os.path.join(site.home, "services", f"{program.kind}-{program.name}")


def _helper(site: Site) -> str:
    return os.path.join(site.paths.config, "service.py")


def _script_text(site: Site, program: Program, service: Service) -> str:
    notes = _notes(site, program)
    return f"""\
#!/bin/sh
# Written by the CKAN formula; supervisor runs it. The release is resolved once, here.
cd -P {site.paths.current} || exit 1
{environment.SOURCED}
{environment.exports(service.environment)}\
echo "-- {program.name} starts from $(basename "$PWD")"
notes={shlex.quote(notes)}
# In a shell of its own: where nothing can be noted, as on a full disk, the service starts all the same.
(
    mkdir -p "$(dirname "$notes")"
    [ "$(wc -c < "$notes")" -lt {MOST_NOTES} ] || : > "$notes"
    echo "$(cat /proc/sys/kernel/random/boot_id) $(cut -d' ' -f1 /proc/uptime)" >> "$notes"
) 2> /dev/null
exec {shlex.join(_command(site, program, service))}
"""


def _command(site: Site, program: Program, service: Service) -> list[str]:
    settings, ini = site.settings, cron.ini_name(site)
    words = ["jobs", "worker", *service.queues] if service.queues else shlex.split(service.command)
    command = ["bin/ckan", "-c", ini, *words]
    if service.stop_when_idle:
        command = ["bin/python", _helper(site), "idle", "--signal", service.stop_signal, "--", *command]
    if service.once:
        about = ["--site", settings.site, "--env", settings.env, "--ini", ini, "--name", program.name]
        command = ["bin/python", _helper(site), "once", *about, "--signal", service.stop_signal, "--", *command]
    return command


def _program_text(site: Site, program: Program, service: Service) -> str:
    # The signal goes to the service alone: it finishes what it is at. What is killed at last is killed whole.
    # Supervisor reads % as the start of an interpolation, and means it in the name of the process.
    priority = f"priority = {500 + service.order}\n" if service.order else ""
    return (
        _mark(site)
        + f"""\
[program:{group(site, program)}]
command = /bin/sh {_script(site, program)}
process_name = {program.kind}-PROCESS
numprocs = {service.processes}
{priority}directory = /
user = {site.settings.user}
environment = LANG="C.UTF-8",LC_ALL="C.UTF-8",PYTHONUTF8="1",HOME="{site.home}"
autostart = true
autorestart = true
startsecs = 1
stopsignal = {service.stop_signal}
stopwaitsecs = {service.stop_seconds}
stopasgroup = false
killasgroup = true
stdout_logfile = {log(site, program)}
redirect_stderr = true
""".replace("%", "%%").replace("PROCESS", "%(process_num)d")
    )
