"""
The files of the official CKAN package that are in service on a host, and the copies that the formula keeps of them.

What the formula takes away or writes over is kept once, so that one can go back: see ``official_package``.
"""

from __future__ import annotations

import os
import re
import shutil

from ckan_deploy.releases.site import Site
from ckan_deploy.system import files, safely

PROGRAMS = ("ckan-uwsgi", "ckan-worker")
KEPT = "before-formula"
OURS = "Written by the CKAN formula"


def found(site: Site) -> dict[str, str]:
    """
    Say which files of the package are in service on this host.

    site
        The site.

    Returns ``{"nginx", "ckan-uwsgi", "ckan-worker", "wsgi": path}`` with those that are there, and are not ours.
    """
    if site.settings.site != "default":
        return {}  # the package has one site
    return {name: path for name, path in places(site).items() if (text := _read(path)) and OURS not in text}


def replaced(site: Site) -> dict[str, str]:
    """
    Say which of these files go out of service once a release serves: all where the web server is nginx, without its
    site where that is Apache, which has its port already; none where the site's own server may be the package's.

    site
        The site.

    Returns ``{name: path}``, as ``found``.
    """
    gone = {"nginx": ("nginx", *PROGRAMS), "apache": PROGRAMS, "none": ()}[site.settings.web.server]
    return {name: path for name, path in found(site).items() if name in gone}


def address(site: Site) -> str:
    """
    Return where the package's app server answers while it is in service, such as ``127.0.0.1:8080``; else ``''``.

    site
        The site.
    """
    there = found(site)
    if "nginx" not in there or "ckan-uwsgi" not in there:
        return ""
    match = re.search(r"^\s*proxy_pass\s+http://(127\.0\.0\.1:[0-9]+|localhost:[0-9]+)/?;", _read(there["nginx"]), re.M)
    return match[1] if match else ""


def keep(site: Site) -> list[str]:
    """
    Copy the package's files aside, unless that was done before. They stay in service.

    site
        The site.

    Returns the paths of the copies that were made now.
    """
    made = []
    for name in unkept(site):
        copy = copy_of(site, name)
        safely.ensure(os.path.dirname(copy))
        # What is behind the link in sites-enabled is what is in service.
        shutil.copy2(places(site)[name], f"{copy}.tmp")
        os.rename(f"{copy}.tmp", copy)
        made.append(copy)
    return made


def unkept(site: Site) -> list[str]:
    """
    Say which of the package's files have no copy yet.

    site
        The site.

    Returns their names, as ``found`` has them.
    """
    return [name for name in found(site) if not os.path.exists(copy_of(site, name))]


def places(site: Site) -> dict[str, str]:
    """
    Say where the package has its files, whether they are there or not.

    site
        The site.

    Returns ``{name: path}``, with the names of ``found``.
    """
    return {
        "nginx": os.path.join(site.settings.root or "/", "etc/nginx/sites-enabled/ckan"),
        **{name: os.path.join(site.paths.supervisor_programs, f"{name}.conf") for name in PROGRAMS},
        "wsgi": os.path.join(site.paths.config, "wsgi.py"),
    }


def copy_of(site: Site, name: str) -> str:
    """
    Return where a file is kept. The WSGI file looks for the ini beside itself, and so stays in its directory.

    site
        The site.
    name
        Its name, as ``found`` has it.
    """
    names = {"wsgi": "wsgi.py.before-formula", "nginx": os.path.join(KEPT, "nginx-site")}
    return os.path.join(site.paths.config, names.get(name) or os.path.join(KEPT, f"{name}.conf"))


def _read(path: str) -> str:
    return files.read(path, "", errors="surrogateescape")
