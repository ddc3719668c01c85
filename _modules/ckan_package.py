"""
The official CKAN package on a host that the formula takes over: its app server, worker and nginx site.

They serve until the first release does, and are then taken out of service. What the formula takes away or writes over
is kept once, so that one can go back. The package's virtualenv is the base, and is never changed (``ckan_base``).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import time

import psutil
from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_package"

PROGRAMS = ("ckan-uwsgi", "ckan-worker")
KEPT = "before-formula"
OURS = "Written by the CKAN formula"


def __virtual__() -> str:
    return __virtualname__


def found(settings: dict) -> dict[str, str]:
    """
    Say which files of the package are in service on this host.

    settings
        The settings.

    Returns ``{"nginx", "ckan-uwsgi", "ckan-worker", "wsgi": path}`` with those that are there, and are not ours.

    CLI Example: not for the command line.
    """
    if settings["site"] != "default":
        return {}  # the package has one site
    places = _places(settings)
    return {name: path for name, path in places.items() if (text := _read(path)) and OURS not in text}


def replaced(settings: dict) -> dict[str, str]:
    """
    Say which of these files go out of service once a release serves: all with nginx as the front door, without its site
    where that is Apache, which has its port already; none where the site's own server may be the package's.

    settings
        The settings.

    Returns ``{name: path}``, as ``found``.

    CLI Example: not for the command line; the state ``ckan_package.retired`` uses it.
    """
    gone = {"nginx": ("nginx", *PROGRAMS), "apache": PROGRAMS, "none": ()}[settings["web"]["server"]]
    return {name: path for name, path in found(settings).items() if name in gone}


def address(settings: dict) -> str:
    """
    Return where the package's app server answers while it is in service, such as ``127.0.0.1:8080``; else ``''``.

    settings
        The settings.

    CLI Example: not for the command line; the site's file of nginx hands on to it until a release serves.
    """
    files = found(settings)
    if "nginx" not in files or "ckan-uwsgi" not in files:
        return ""
    match = re.search(r"^\s*proxy_pass\s+http://(127\.0\.0\.1:[0-9]+|localhost:[0-9]+)/?;", _read(files["nginx"]), re.M)
    return match[1] if match else ""


def keep(settings: dict) -> list[str]:
    """
    Copy the package's files aside, unless that was done before. They stay in service.

    settings
        The settings.

    Returns the paths of the copies that were made now.

    CLI Example: not for the command line; the state ``ckan_package.kept`` uses it.
    """
    made = []
    for name in unkept(settings):
        copy = _copy(name, settings)
        os.makedirs(os.path.dirname(copy), exist_ok=True)
        # What is behind the link in sites-enabled is what is in service.
        shutil.copy2(_places(settings)[name], f"{copy}.tmp")
        os.rename(f"{copy}.tmp", copy)
        made.append(copy)
    return made


def unkept(settings: dict) -> list[str]:
    """
    Say which of the package's files have no copy yet.

    settings
        The settings.

    Returns their names, as ``found`` has them.

    CLI Example: not for the command line; the state ``ckan_package.kept`` uses it.
    """
    return [name for name in found(settings) if not os.path.exists(_copy(name, settings))]


def retire(settings: dict) -> list[str]:
    """
    Take the package's nginx site, app server and worker out of service, once the front door answers with a release.

    settings
        The settings.

    Returns the names of what was taken out. Raises ``CommandExecutionError`` when no release answers, or nginx does not
    take its configuration; the package then serves as before.

    CLI Example: not for the command line; the state ``ckan_package.retired`` uses it.
    """
    files = replaced(settings)
    if not files:
        return []
    current = __salt__["ckan_store.current"](settings["paths"])
    if not current:
        raise CommandExecutionError("no release is live, so the official package's CKAN stays in service.")
    __salt__["ckan_front.health"](current, settings)
    keep(settings)
    place = address(settings)
    if "nginx" in files:
        _without_site(files["nginx"], settings)
    _drain(place, settings["web"]["drain_timeout"])
    for name in PROGRAMS:
        if name in files:
            # The worker finishes its job first, for as long as the package's file says.
            __salt__["ckan_supervisor.ask"]("stop", settings, name=f"{name}:*")
            os.unlink(files[name])
            __salt__["ckan_supervisor.ask"]("update", settings, name=name)
    return list(files)


def restore() -> list[str]:
    """
    Put the package's files back and its CKAN into service: the way back from the formula, whose app server, workers and
    lines of cron stop. Releases stay where they are. Take the formula out of the host's highstate first, else that
    takes the package out of service again.

    Returns the paths that were put back. Raises ``CommandExecutionError`` when nothing was kept.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_package.restore
    """
    settings = __salt__["ckan_settings.get"]()
    kept = {name: path for name, path in _places(settings).items() if os.path.exists(_copy(name, settings))}
    if not kept:
        raise CommandExecutionError("nothing of the official package was kept on this host.")
    for name, path in kept.items():
        os.makedirs(os.path.dirname(path), exist_ok=True)
        shutil.copy2(_copy(name, settings), path)
    for name in PROGRAMS:
        if name in kept:
            __salt__["ckan_supervisor.ask"]("update", settings, name=name)
    _wait_for(address(settings), settings["web"]["boot_timeout"])
    site = settings["paths"]["nginx_site"]
    if os.path.exists(site):
        os.unlink(site)
    __salt__["ckan_front.reload"](settings)
    __salt__["ckan_web.stop_others"]("", settings)
    __salt__["ckan_jobs.follow"]({**settings, "workers": {}, "cron": {}})
    return sorted(kept.values())


def _drain(place: str, seconds: int) -> None:
    """Wait until nobody is connected to the package's app server: told to end, it drops what it is at."""
    port = int(place.rpartition(":")[2] or 0)
    deadline = time.monotonic() + seconds
    while port and time.monotonic() < deadline:
        links = psutil.net_connections("tcp")
        if not any(link.status == psutil.CONN_ESTABLISHED and link.laddr.port == port for link in links):
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


def _without_site(path: str, settings: dict) -> None:
    """Take the package's site away from nginx, and our hand-over to its app server with it; back when nginx says no."""
    target = os.readlink(path) if os.path.islink(path) else ""
    os.unlink(path)
    try:
        if not __salt__["ckan_front.install"](settings)["reloaded"]:
            __salt__["ckan_front.reload"](settings)
    except CommandExecutionError:
        if target:
            os.symlink(target, path)
        else:
            shutil.copy2(_copy("nginx", settings), path)
        raise


def _places(settings: dict) -> dict[str, str]:
    """Where the package has its files."""
    paths = settings["paths"]
    return {
        "nginx": os.path.join(settings["root"] or "/", "etc/nginx/sites-enabled/ckan"),
        **{name: os.path.join(paths["supervisor_programs"], f"{name}.conf") for name in PROGRAMS},
        "wsgi": os.path.join(paths["config"], "wsgi.py"),
    }


def _copy(name: str, settings: dict) -> str:
    """Where a file is kept. The WSGI file looks for the ini beside itself, and so stays in its directory."""
    config = settings["paths"]["config"]
    names = {"wsgi": "wsgi.py.before-formula", "nginx": os.path.join(KEPT, "nginx-site")}
    return os.path.join(config, names.get(name) or os.path.join(KEPT, f"{name}.conf"))


def _read(path: str) -> str:
    return __salt__["ckan_file.read"](path, errors="surrogateescape")
