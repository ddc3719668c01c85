"""
Cron jobs: commands at set times. Each resolves ``current`` once, when it begins, so it never imports from two releases.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Sequence
from typing import NamedTuple

import psutil

from ckan_deploy import scripts
from ckan_deploy.build import ini
from ckan_deploy.releases.site import Site
from ckan_deploy.settings.parts import CronJob
from ckan_deploy.system import files, safely


class Change(NamedTuple):
    """A file that is other than it should be, and what it should hold: '' for a file that goes."""

    path: str
    text: str


def pending(site: Site) -> list[Change]:
    """
    Say which files of cron are other than they should be.

    site
        The site.
    """
    script = scripts.text(scripts.CRON) if site.settings.cron else ""
    # The script is there before a line names it.
    wanted = [Change(_script(site), script), Change(site.paths.cron, _crontab(site))]
    return [change for change in wanted if files.read(change.path) != change.text]


def write(changes: Sequence[Change]) -> None:
    """
    Bring the files of cron to what they should be.

    changes
        What ``pending`` returned.
    """
    for path, text in changes:
        if text:
            safely.ensure(os.path.dirname(path))
            files.write(path, text)
        else:
            os.unlink(path)


def at_work(site: Site) -> list[str]:
    """
    Return the names of the cron jobs that run now.

    site
        The site.
    """
    found: set[str] = set()
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if _script(site) in words[1:2]:
            found.update(name for name in site.settings.cron if name in words[2:])
    return sorted(found)


def lines(site: Site) -> list[str]:
    """
    Return the lines of the crontab that is there.

    site
        The site.
    """
    crontab = files.read(site.paths.cron)
    return [line for line in crontab.splitlines() if line and not re.match(r"#|[A-Z_0-9]+=", line)]


def problems(site: Site) -> list[str]:
    """
    Say what keeps cron jobs from running on this host.

    site
        The site.

    Returns a list of sentences, empty when all is well.
    """
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    if site.settings.cron and not any(shutil.which(name, path=path) for name in ("cron", "crond")):
        return ["ckan:cron has cron jobs, but there is no cron on this host; install the package cron"]
    return []


def ini_name(site: Site) -> str:
    """
    Return the ini, as seen from the directory of a release.

    site
        The site.
    """
    return os.path.basename(ini.path(site, site.paths.current))


def _script(site: Site) -> str:
    """What the lines of the crontab run."""
    return os.path.join(site.paths.config, "cron.py")


def _crontab(site: Site) -> str:
    if not site.settings.cron:
        return ""
    text = f"""\
# Written by the CKAN formula from ckan:cron. Each line runs in the release that is current when it begins.
SHELL=/bin/sh
PATH=/usr/local/bin:/usr/bin:/bin
LC_ALL=C.UTF-8
PYTHONUTF8=1
HOME={site.home}
"""
    return text + "".join(_line(site, name, job) for name, job in site.settings.cron.items())


def _line(site: Site, name: str, job: CronJob) -> str:
    settings, ini_ = site.settings, ini_name(site)
    command = ["bin/ckan", "-c", ini_, *shlex.split(job.command)]
    if job.shell:
        command = ["/bin/sh", "-c", job.shell]
    words = ["bin/python", _script(site), *(["--once"] if job.once else [])]
    words += ["--site", settings.site, "--env", settings.env, "--ini", ini_, name, "--", *command]
    return f"{job.schedule} {settings.user} {_escaped(f'cd -P {site.paths.current} && exec {shlex.join(words)}')}\n"


def _escaped(command: str) -> str:
    """Return a command of sh as it stands in a crontab, which ends it at a bare %."""
    # Cron takes a backslash before % for its own, and two for one of the command and a bare %. So they are parted:
    # where there is a backslash, shlex has put the word into single quotes.
    return command.replace("\\%", "\\''%").replace("%", r"\%")
