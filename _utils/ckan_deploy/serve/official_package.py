"""
The official CKAN package on a host that the formula takes over: its app server, worker and nginx site.

They serve until the first release does, and are then taken out of service. The package's virtualenv is the base, and is
never changed (``build.base``).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Mapping

import attrs
import psutil

from ckan_deploy.errors import FormulaError
from ckan_deploy.releases import lock
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import app_server, health, official_files, services, virtual_host
from ckan_deploy.serve.official_files import PROGRAMS
from ckan_deploy.system import safely, supervisor


def retire(site: Site) -> list[str]:
    """
    Take the package's nginx site, app server and worker out of service, once the web server answers with a release.

    site
        The site.

    Returns the names of what was taken out. Raises ``FormulaError`` when no release answers, or nginx does not take its
    configuration; the package then serves as before.
    """
    files = official_files.replaced(site)
    if not files:
        return []
    current = site.releases.current()
    if not current:
        raise FormulaError("no release is live, so the official package's CKAN stays in service.")
    health.health(site, current)
    official_files.keep(site)
    place = official_files.address(site)
    if "nginx" in files:
        _without_site(site, files["nginx"])
    _drain(place, site.settings.web.drain_timeout)
    conf = site.settings.web.supervisor_conf
    for name in PROGRAMS:
        if name in files:
            # The worker finishes its job first, for as long as the package's file says.
            supervisor.remove(conf, name)
            os.unlink(files[name])
    return list(files)


def restore(site: Site) -> list[str]:
    """
    Put the package's files back and its CKAN into service: the way back from the formula, whose app server, workers and
    cron jobs stop. Releases stay where they are. Take the formula out of the host's highstate first, else that takes
    the package out of service again.

    site
        The site.

    Returns the paths that were put back. Raises ``FormulaError`` when nothing was kept, or somebody else is at work.
    """
    places = official_files.places(site)
    kept = {name: path for name, path in places.items() if os.path.exists(official_files.copy_of(site, name))}
    if not kept:
        raise FormulaError("nothing of the official package was kept on this host.")
    with lock.held(site, "restore of the official package", locked=False):
        _put_back(site, kept)
    return sorted(kept.values())


def _put_back(site: Site, kept: Mapping[str, str]) -> None:
    """Bring back what was kept, and take out of service what the formula has put in its place."""
    for name, path in kept.items():
        safely.ensure(os.path.dirname(path))
        shutil.copy2(official_files.copy_of(site, name), path)
    for name in PROGRAMS:
        if name in kept:
            supervisor.update(site.settings.web.supervisor_conf, name)
    _wait_for(official_files.address(site), site.settings.web.boot_timeout)
    if os.path.exists(site.paths.nginx_site):
        os.unlink(site.paths.nginx_site)
    virtual_host.reload(site)
    app_server.stop_others(site, "")
    services.follow(attrs.evolve(site, settings=attrs.evolve(site.settings, services={}, workers={}, cron={})))


def _drain(place: str, seconds: int) -> None:
    """Wait until nobody is connected to the package's app server: told to end, it drops what it is at."""
    port = int(place.rpartition(":")[2] or 0)
    deadline = time.monotonic() + seconds
    while port and time.monotonic() < deadline:
        links = psutil.net_connections("tcp")
        if not any(link.status == psutil.CONN_ESTABLISHED and link.laddr and link.laddr.port == port for link in links):
            return
        time.sleep(0.2)


def _wait_for(place: str, seconds: int) -> None:
    host, _, port = place.partition(":")
    deadline = time.monotonic() + seconds
    while port and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        time.sleep(0.2)


def _without_site(site: Site, path: str) -> None:
    """Take the package's site away from nginx, and our hand-over to its app server with it; back when nginx says no."""
    target = os.readlink(path) if os.path.islink(path) else ""
    os.unlink(path)
    try:
        if not virtual_host.install(site)["reloaded"]:
            virtual_host.reload(site)
    except FormulaError:
        if target:
            os.symlink(target, path)
        else:
            shutil.copy2(official_files.copy_of(site, "nginx"), path)
        raise
