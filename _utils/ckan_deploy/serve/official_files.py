"""
The files that serve a host before the formula does, and the copies that it keeps of them: those of the official CKAN
package, and whatever else stands where the formula writes its own.

What the formula takes away or writes over is kept first, so that one can go back: see ``official_package``. The name of
a copy says what it is of, and when it was made.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import time
from typing import NamedTuple

from ckan_deploy.releases.ids import ID_FORMAT, ID_PATTERN
from ckan_deploy.releases.site import Site
from ckan_deploy.system import files, safely

PROGRAMS = ("ckan-uwsgi", "ckan-worker")
KEPT = "before-formula"
OURS = "Written by the CKAN formula"
POINTERS = ("wsgi.py", "apache.wsgi")
# A copy of what was a link has a link of this name beside it.
_LINK = ".link"
_STAMPED = re.compile(rf"(-{ID_PATTERN.pattern})?")
UNDECODED = "surrogateescape"


class Copy(NamedTuple):
    """A copy that was made: the file, and where the copy is."""

    path: str
    copy: str

    def __str__(self) -> str:
        """For people."""
        return f"{self.path} as {self.copy}"


def found(site: Site) -> dict[str, str]:
    """
    Say which files serve this host that are not ours.

    site
        The site.

    Returns ``{name: path}``, with the names of ``places``.
    """
    return {name: path for name, path in places(site).items() if (text := _read(path)) and OURS not in text}


def replaced(site: Site) -> dict[str, str]:
    """
    Say which files of the package go out of service once a release serves: all where the web server is nginx, without
    its site where that is Apache, which has its port already; none where the site's own server may be the package's.

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


def keep(site: Site) -> list[Copy]:
    """
    Copy these files aside, as far as there is no copy of what they hold, and note what ``current`` names while that is
    what another tool serves. All stay in service.

    site
        The site.

    Returns the copies that were made now.
    """
    stamp = time.strftime(ID_FORMAT, time.gmtime())
    made = []
    for name in unkept(site):
        path, copy = {**places(site), "current": site.paths.current}[name], f"{_base(site, name)}-{stamp}"
        safely.ensure(os.path.dirname(copy))
        if name == "current":
            put_link(os.readlink(path), copy)
        else:
            copy_file(path, copy)
            if os.path.islink(path):
                put_link(os.readlink(path), f"{copy}{_LINK}")
        made.append(Copy(path, copy))
    return made


def unkept(site: Site) -> list[str]:
    """
    Say of which of these files there is no copy yet.

    site
        The site.

    Returns their names, as ``found`` has them, and ``current``.
    """
    names = [name for name, path in found(site).items() if _read(copy_of(site, name)) != _read(path)]
    link = served_link(site)
    return [*names, "current"] if link and link != kept_link(site) else names


def places(site: Site) -> dict[str, str]:
    """
    Say where such files stand, whether they are there or not.

    site
        The site.

    Returns ``{"wsgi.py", "apache.wsgi", "virtual host", "cron": path}``, and for the site that the package has also
    ``"nginx", "ckan-uwsgi", "ckan-worker"``.
    """
    own = {"nginx": site.paths.nginx_site, "apache": site.paths.apache_site}.get(site.settings.web.server)
    there = {
        "nginx": os.path.join(site.settings.root or "/", "etc/nginx/sites-enabled/ckan"),
        **{name: os.path.join(site.paths.supervisor_programs, f"{name}.conf") for name in PROGRAMS},
    }
    return {
        **(there if site.settings.site == "default" else {}),
        **{name: os.path.join(site.paths.config, name) for name in POINTERS},
        **({"virtual host": own} if own else {}),
        "cron": site.paths.cron,
    }


def copy_of(site: Site, name: str) -> str:
    """
    Return the newest copy of a file, ``""`` where there is none.

    site
        The site.
    name
        Its name, as ``places`` has it.
    """
    base = _base(site, name)
    # Copies of former versions have no time in their names.
    copies = [path for path in glob.glob(f"{glob.escape(base)}*") if _STAMPED.fullmatch(path[len(base) :])]
    return max(copies, default="")


def link_of(copy: str) -> str:
    """
    Return what a file linked to when its copy was made, ``""`` where it was no link.

    copy
        The copy.
    """
    return os.readlink(f"{copy}{_LINK}") if os.path.islink(f"{copy}{_LINK}") else ""


def copy_file(source: str, target: str) -> None:
    """
    Copy a file, or what a link leads to, in place of what is there: at once, with owner, mode and times.

    source
        The file.
    target
        Where the copy is to be.
    """
    draft = f"{target}.tmp"
    if os.path.lexists(draft):
        os.unlink(draft)  # of a run that was killed
    with open(source, "rb") as old, open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as new:
        shutil.copyfileobj(old, new)
        about = os.fstat(old.fileno())
        if os.geteuid() == 0:
            os.fchown(new.fileno(), about.st_uid, about.st_gid)
        os.fchmod(new.fileno(), about.st_mode & 0o777)
        new.flush()
        os.utime(new.fileno(), ns=(about.st_atime_ns, about.st_mtime_ns))
    os.rename(draft, target)


def put_link(target: str, place: str) -> None:
    """
    Make a link in place of what is there, at once.

    target
        What it is to hold.
    place
        Where it is to be.
    """
    draft = f"{place}.tmp"
    if os.path.lexists(draft):
        os.unlink(draft)
    os.symlink(target, draft)
    os.rename(draft, place)


def served_link(site: Site) -> str:
    """
    Return what ``current`` holds, where another tool made what it names: no release of ours, or one that was adopted
    where it is.

    site
        The site.
    """
    link = site.paths.current
    manifest = site.releases.find(site.releases.current())
    if manifest:
        in_place = manifest.adopted.get("from") == site.releases.directory(manifest.id)
        return os.readlink(link) if in_place else ""
    return site.releases.foreign_link() if os.path.exists(link) else ""


def kept_link(site: Site) -> str:
    """
    Return what ``current`` held when it was kept last, ``""`` where it never was.

    site
        The site.
    """
    copy = copy_of(site, "current")
    return os.readlink(copy) if copy else ""


def _base(site: Site, name: str) -> str:
    """What the names of a file's copies begin with. A WSGI file may look for the ini beside itself, and so stays."""
    if name in POINTERS:
        return os.path.join(site.paths.config, f"{name}.{KEPT}")
    names = {"nginx": "nginx-site", "virtual host": f"{site.settings.web.server}-virtual-host"}
    return os.path.join(site.paths.config, KEPT, names.get(name) or (f"{name}.conf" if name in PROGRAMS else name))


def _read(path: str) -> str:
    return files.read(path, "", errors=UNDECODED) if path else ""
