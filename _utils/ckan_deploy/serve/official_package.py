"""
What serves a host before the formula takes it over, and the way back to it.

The app server, worker and nginx site of the official CKAN package serve until the first release does, and are then
taken out of service. The package's virtualenv is the base, and is never changed (``build.base``).
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping

import attrs
import psutil

from ckan_deploy.errors import FormulaError
from ckan_deploy.releases import lock
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import app_server, draining, health, official_files, services, virtual_host
from ckan_deploy.serve.official_files import PROGRAMS
from ckan_deploy.system import files, safely, supervisor


def retire(site: Site) -> list[str]:
    """
    Take the package's nginx site, app server and worker out of service, once the web server answers with a release.

    site
        The site.

    Returns the names of what was taken out. Raises ``FormulaError`` when no release answers, or nginx does not take its
    configuration; the package then serves as before.
    """
    gone = official_files.replaced(site)
    if not gone:
        return []
    current = site.releases.current()
    if not current:
        raise FormulaError("no release is live, so the official package's CKAN stays in service.")
    health.health(site, current)
    official_files.keep(site)
    place = official_files.address(site)
    if "nginx" in gone:
        _without_site(site, gone["nginx"])
    _drain(place, site.settings.web.drain_timeout)
    conf = site.settings.web.supervisor_conf
    for name in PROGRAMS:
        if name in gone:
            # The worker finishes its job first, for as long as the package's file says.
            supervisor.remove(conf, name)
            os.unlink(gone[name])
    return list(gone)


def restore(site: Site) -> list[str]:
    """
    Put back what served before the formula: the package's files, or those of another tool and what ``current`` named
    then. The app servers, workers and cron jobs of the formula stop. Releases stay where they are, and so do the
    copies. Take the formula out of the host's highstate first, else that takes the host over again.

    site
        The site.

    Returns the paths that were put back. Raises ``FormulaError`` when nothing was kept, what ``current`` named is gone,
    the web server does not take the old file, or somebody else is at work. Visitors are served as before then.
    """
    places = official_files.places(site)
    kept = {name: path for name, path in places.items() if official_files.copy_of(site, name)}
    if site.settings.web.server == "apache" and "virtual host" not in kept:
        # It may give the old pointer what it needs (python-home). Ours runs the old one as well.
        kept.pop("apache.wsgi", None)
    link = official_files.kept_link(site)
    if not kept and not link:
        raise FormulaError("nothing was kept on this host of what served it before the formula.")
    if link and not os.path.isdir(target := os.path.join(os.path.dirname(site.paths.current), link)):
        raise FormulaError(
            f"{site.paths.current} named {target} before, which is gone, so nothing was changed; bring it back."
        )
    with lock.held(site, "restore of what served before", locked=False):
        _put_back(site, kept, link)
    return sorted([*kept.values(), *([site.paths.current] if link else [])])


def _put_back(site: Site, kept: Mapping[str, str], link: str) -> None:
    """
    Bring back what was kept, and take out of service what the formula has put in its place. After each step what there
    is serves: the formula's pointer in the old virtual host, then the old release by the formula's pointer.
    """
    last = {"virtual host", "apache.wsgi", "cron"}
    for name in kept.keys() - last:
        _bring(site, name)
    for name in PROGRAMS:
        if name in kept:
            supervisor.update(site.settings.web.supervisor_conf, name)
    _wait_for(official_files.address(site), site.settings.web.boot_timeout)
    if "virtual host" in kept:
        _with_old_host(site)
    elif site.settings.web.server != "apache":
        if os.path.exists(site.paths.nginx_site):
            os.unlink(site.paths.nginx_site)
        virtual_host.reload(site)
    draining.stop_others(site, "")
    services.follow(attrs.evolve(site, settings=attrs.evolve(site.settings, services={}, workers={}, cron={})))
    if link:
        site.releases.restore_link(link)
        app_server.switched(site)
    for name in ("apache.wsgi", "cron"):
        if name in kept:
            _bring(site, name)


def _bring(site: Site, name: str) -> None:
    """Put a file back as it was kept."""
    path, copy = official_files.places(site)[name], official_files.copy_of(site, name)
    safely.ensure(os.path.dirname(path))
    if target := official_files.link_of(copy):
        official_files.put_link(target, path)
    else:
        official_files.copy_file(copy, path)


def _with_old_host(site: Site) -> None:
    """Put the old virtual host back and let the server read it; ours is back where the server does not take it."""
    ours = virtual_host.render(site)
    _bring(site, "virtual host")
    try:
        virtual_host.reload(site)
    except FormulaError:
        files.write(official_files.places(site)["virtual host"], ours)
        raise


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
    os.unlink(path)
    try:
        if not virtual_host.install(site)["reloaded"]:
            virtual_host.reload(site)
    except FormulaError:
        _bring(site, "nginx")
        raise
