"""Releases that a process of any kind still runs from: none of these is removed."""

from __future__ import annotations

import contextlib
import os

import psutil

from ckan_deploy.releases.site import Site
from ckan_deploy.serve import app_server


def releases(site: Site) -> dict[str, str]:
    """
    Find the releases that a process runs from: an app server, a service, a cron job, somebody's shell.

    site
        The site.

    Returns ``{release: what runs from it, for a message}``.
    """
    found: dict[str, str] = {}
    if site.settings.web.server == "apache":
        found = {row["release"]: f"process {row['pid']} (apache)" for row in app_server.processes(site)}
    for process in psutil.process_iter():
        for path in _places(process):
            release = site.releases.release_of(path)
            if release and release not in found:
                with contextlib.suppress(psutil.Error):
                    found[release] = f"process {process.pid} ({process.name()})"
    found.pop("", None)
    return found


def _places(process: psutil.Process) -> list[str]:
    """Where a process was started from: its directory, its program, its script, and what its environment says."""
    found: list[str] = []
    with contextlib.suppress(psutil.Error, OSError):
        found.append(process.cwd())
    with contextlib.suppress(psutil.Error, OSError):
        # An interpreter and its script; what follows are arguments, such as of somebody who looks at a file.
        found += process.cmdline()[:2]
    with contextlib.suppress(psutil.Error, OSError):
        variables = process.environ()
        found += [variables.get(name, "") for name in ("RELEASE_DIR", "VIRTUAL_ENV")]
    return [os.path.normpath(path) for path in found if path.startswith("/")]
