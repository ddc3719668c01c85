"""Paths and users that cannot mean well: what would give away the machine, or stand in a file as something else."""

from __future__ import annotations

import grp
import os
import pwd
import re
from typing import Any

# Generated files of nginx, Apache, uWSGI, supervisor, cron and sh take all of these as they are.
_ODD = re.compile(r"[^\w/.+@=~-]")
# Directories of the system: what is given away, filled or removed is one of our own below them.
_SYSTEM = frozenset(
    "/ /bin /boot /dev /etc /etc/apache2 /etc/cron.d /etc/nginx /etc/ssl /etc/supervisor /etc/systemd /home /lib "
    "/lib32 /lib64 /media /mnt /opt /proc /root /run /sbin /srv /sys /tmp /usr /usr/bin /usr/lib /usr/local "
    "/usr/local/bin /usr/local/lib /usr/sbin /usr/share /var /var/backups /var/cache /var/lib /var/log /var/mail "
    "/var/run /var/spool /var/tmp /var/www".split()
)
# Whose whole trees are the system's, as far as paths are concerned that we make and fill; and files of its own.
_TREES = tuple(
    f"{path}/" for path in (
        "/bin /etc/apt /etc/cron.daily /etc/cron.hourly /etc/cron.monthly /etc/cron.weekly /etc/dpkg /etc/init.d "
        "/etc/ld.so.conf.d /etc/pam.d /etc/profile.d /etc/salt /etc/security /etc/ssh /etc/sudoers.d /etc/systemd "
        "/etc/udev /lib /lib32 /lib64 /root/.ssh /sbin /usr/bin /usr/include /usr/lib/python3 /usr/lib/systemd "
        "/usr/local/bin /usr/local/sbin /usr/sbin /var/lib/apt /var/lib/dpkg /var/lib/systemd /var/spool/cron"
    ).split()
)  # fmt: skip
_FILES = frozenset(
    "/etc/crontab /etc/environment /etc/fstab /etc/group /etc/gshadow /etc/hosts /etc/ld.so.conf /etc/ld.so.preload "
    "/etc/nsswitch.conf /etc/passwd /etc/profile /etc/resolv.conf /etc/shadow /etc/subgid /etc/subuid "
    "/etc/sudoers".split()
)
_KERNEL = ("/boot/", "/dev/", "/proc/", "/sys/")
# What nothing else may stand in, and why.
_ALONE = {
    "data": "belongs to the user of CKAN, who could put something else in its place",
    "releases": "holds releases only",
    "current": "is the link to a release",
    "base": "is a virtualenv, and copied into each release",
    "backups": "holds dumps only",
}


def check_paths(settings: dict[str, Any], problems: list[str]) -> None:
    """
    Check the paths of a host.

    settings
        All settings, by group and name.
    problems
        Gets a sentence for each thing that is wrong.
    """
    paths = {f"paths:{name}": value for name, value in settings["paths"].items()}
    web, tls = settings["web"], settings["tls"]
    optional = {f"web:{name}": web[name] for name in ("nginx_conf", "apache_conf", "supervisor_conf")}
    optional.update({f"tls:{name}": tls[name] for name in ("certificate", "key")})
    optional["tls:acme:ca_bundle"] = tls["acme"]["ca_bundle"]
    # Empty means the system's own, or none.
    paths.update({name: value for name, value in optional.items() if value})
    found = [problem for name, value in paths.items() if (problem := path_problem(f"ckan:{name}", value))]
    problems += found or _nested(settings, paths)


def check_users(settings: dict[str, Any], problems: list[str]) -> None:
    """
    Check who runs what: parameters as for ``check_paths``. Users that this machine does not have yet are taken by name.
    """
    user, group, build_user = (settings[name] for name in ("user", "group", "build_user"))
    for name in ("user", "build_user"):
        if settings[name] == "root" or _uid(settings[name]) == 0:
            problems.append(f"ckan:{name} is {_said(settings[name])}, who may do anything; name a user of its own")
    if group == "root" or _gid(group) == 0:
        problems.append(f"ckan:group is {_said(group)}, the group of root; name that of ckan:user")
    if build_user == user or _uid(build_user) not in (None, 0) and _uid(build_user) == _uid(user):
        problems.append(
            f"ckan:build_user is {build_user}, who runs CKAN and may read its secrets; name another user for the code "
            "of builds"
        )
    elif _gid(group) not in (None, 0) and _gid(group) in _groups(build_user):
        problems.append(
            f"ckan:build_user ({build_user}) is in the group {group}, which may read the secrets of CKAN; take it out "
            "of that group, or name another user"
        )


def path_problem(name: str, value: str) -> str:
    """
    Say what is wrong with a path, '' for nothing.

    name
        The setting.
    value
        The path.
    """
    if not os.path.isabs(value) or os.path.normpath(value) != value or value.startswith("//"):
        return f"{name} ({value}) must be an absolute path without '..' or a slash at the end"
    if odd := _ODD.search(value):
        shown = "a blank" if odd[0].isspace() else odd[0]
        return f"{name} ({value}) has {shown} in it, which the files of servers read otherwise; choose another"
    of_the_system = value in _SYSTEM or f"{value}/".startswith(_KERNEL)
    # A certificate, or the configuration of a server, may well stand in one of these: it is read.
    if of_the_system or name.startswith("ckan:paths:") and (value in _FILES or f"{value}/".startswith(_TREES)):
        return f"{name} ({value}) belongs to the system; name a directory or file of the portal's own below it"
    return ""


def _nested(settings: dict[str, Any], paths: dict[str, str]) -> list[str]:
    """Paths in directories that are not for them."""
    others = {
        "installer:uv": settings["installer"]["uv"], "base:python": settings["base"]["python"],
        "web:maintenance_page": settings["web"]["maintenance_page"],
        "web:maintenance_logo": settings["web"]["maintenance_logo"],
    }  # fmt: skip
    found = []
    for name, why in _ALONE.items():
        outer = settings["paths"][name]
        for inner, value in {**paths, **others}.items():
            if inner != f"paths:{name}" and f"{value}/".startswith(f"{outer}/"):
                found.append(f"ckan:{inner} ({value}) is in ckan:paths:{name} ({outer}), which {why}; choose another")
    return found


def _said(name: str) -> str:
    return name if name == "root" else f"{name} (root by its number)"


def _uid(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _gid(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def _groups(user: str) -> list[int]:
    try:
        return os.getgrouplist(user, pwd.getpwnam(user).pw_gid)
    except KeyError:
        return []
