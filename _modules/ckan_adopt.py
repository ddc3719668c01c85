"""
A virtualenv that something else built becomes a release, without a rebuild: so that there is one to go back to after
the first deploy. ``ckan_release.adopt`` is what people type.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import re
import time

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_adopt"

ID_FORMAT = "%Y%m%d%H%M%SZ"
# Inis that are not CKAN's own.
_OTHER_INI = re.compile(r"^(who|uwsgi|ckan-uwsgi|test.*)\.ini$")


def __virtual__() -> str:
    return __virtualname__


def examine(name: str, settings: dict, release: str = "", ini: str = "") -> dict:
    """
    Say what the adoption of a directory would make. Changes nothing.

    name
        A directory under ``releases``, or an absolute path.
    settings
        The settings.
    release
        The id to give; by default what the name or else the time of the directory says.
    ini
        CKAN's ini; by default the one in the directory.

    Returns ``{"source", "id", "in_place": bool, "ini", "ckan", "python", "plugins"}``. Raises ``CommandExecutionError``
    that says why it cannot be adopted.

    CLI Example: not for the command line; use ``ckan_release.adopt``.
    """
    paths = settings["paths"]
    source = os.path.normpath(os.path.join(paths["releases"], name))
    if not name or os.path.islink(source) or not os.path.isdir(source):
        raise CommandExecutionError(
            f"{source} is not a directory; name one under {paths['releases']}, or a whole path."
        )
    if os.path.exists(os.path.join(source, "release.json")):
        raise CommandExecutionError(f"{source} is a release already; see ckan_release.list.")
    if not os.path.isfile(os.path.join(source, "pyvenv.cfg")) or not os.path.lexists(f"{source}/bin/python"):
        raise CommandExecutionError(f"{source} is not a virtualenv (no pyvenv.cfg or no bin/python).")
    if not os.path.exists(f"{source}/bin/python"):
        wanted = os.path.realpath(f"{source}/bin/python")
        raise CommandExecutionError(f"the interpreter of {source} is gone ({wanted}); install it, or leave this one.")
    about = __salt__["ckan_base.describe"](source)
    if not about:
        raise CommandExecutionError(f"there is no CKAN in {source}; name the directory of a virtualenv with CKAN.")
    found = _ini(source, ini)
    identity = _id(source, release)
    home = os.path.realpath(os.path.dirname(source)) == os.path.realpath(paths["releases"])
    in_place = home and os.path.basename(source) == identity
    taken = os.path.lexists(os.path.join(paths["releases"], identity)) and not in_place
    if taken:
        raise CommandExecutionError(f"there is a release {identity} already; give another id with release=.")
    known = [manifest["id"] for manifest in __salt__["ckan_store.all_manifests"](paths)]
    serves = __salt__["ckan_store.current"](paths)
    newer_than = serves if serves in known and identity >= serves else "now"
    if newer_than != "now" or identity > time.strftime(ID_FORMAT, time.gmtime()):
        raise CommandExecutionError(
            f"{identity} is not older than {newer_than}, and one that is adopted is to go back to; give an older id "
            "with release=."
        )
    if in_place:
        problems = __salt__["ckan_venv.verify"](source)
        if problems:
            raise CommandExecutionError(
                f"{source} does not stand on its own: {problems[0]}; adopt it under another id."
            )
    return {
        "source": source,
        "id": identity,
        "in_place": in_place,
        "ini": found,
        "ckan": about["ckan"],
        "python": about["python"],
        "plugins": _plugins(found),
    }


def fill(path: str, plan: dict, settings: dict) -> dict:
    """
    Make the directory of a release what was examined.

    path
        The directory; when the adoption is not in place, it holds a manifest and nothing else.
    plan
        What ``examine`` returned.
    settings
        The settings.

    Returns what the manifest says of it. Raises ``CommandExecutionError``.

    CLI Example: not for the command line; use ``ckan_release.adopt``.
    """
    how = __salt__["ckan_build.installer"](settings)
    if not plan["in_place"]:
        # What somebody else than root owns, somebody else can change: then it is not shared.
        mine = os.stat(os.path.join(plan["source"], "lib")).st_uid == os.geteuid()
        __salt__["ckan_venv.clone"](plan["source"], path, link=settings["link"] if mine else "copy")
    if settings["web"]["app"] == "uwsgi" and not os.path.exists(os.path.join(path, "bin", "uwsgi")):
        # What served it was another server. Copied: files that the build user owns have no place in it.
        wanted = [{"name": "uwsgi", "requirement": "uwsgi"}]
        __salt__["ckan_packages.install"](path, wanted, None, {**how, "user": "", "link": "copy"})
    return {
        "base": {"ckan": plan["ckan"], "python": plan["python"], "path": plan["source"]},
        "extensions": {},
        "patches": [],
        "packages": __salt__["ckan_packages.freeze"](path),
        "plugins": plan["plugins"],
        **__salt__["ckan_ini.put"](path, _read(plan["ini"]), settings),
        "adopted": {"from": plan["source"], "ini": plan["ini"]},
    }


def _ini(source: str, ini: str) -> str:
    if ini:
        if not os.path.isfile(ini):
            raise CommandExecutionError(f"there is no file {ini}; give CKAN's ini with ini=.")
        found = [ini]
    else:
        names = [name for name in sorted(os.listdir(source)) if name.endswith(".ini") and not _OTHER_INI.match(name)]
        found = [os.path.join(source, name) for name in names]
    if len(found) != 1:
        which = f"{len(found)} ini files ({', '.join(map(os.path.basename, found))})" if found else "no ini"
        raise CommandExecutionError(f"{source} has {which}; give CKAN's with ini=/whole/path.")
    _plugins(found[0])
    return found[0]


def _plugins(ini: str) -> list[str]:
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(_read(ini))
        return parser.get("app:main", "ckan.plugins", fallback="").split()
    except (configparser.Error, UnicodeDecodeError) as exc:
        # Without its message, which quotes a line.
        raise CommandExecutionError(f"{ini} cannot be read as an ini in UTF-8 ({type(exc).__name__}).") from exc


def _id(source: str, release: str) -> str:
    if release:
        return __salt__["ckan_store.check_id"](release)
    digits = re.sub(r"[^0-9]", "", os.path.basename(source))
    if len(digits) in (12, 14):
        found = digits.ljust(14, "0") + "Z"
        with contextlib.suppress(ValueError):  # digits that are no time
            time.strptime(found, ID_FORMAT)
            return found
    return time.strftime(ID_FORMAT, time.gmtime(os.stat(source).st_mtime))


def _read(file: str) -> str:
    with open(file, encoding="utf-8") as handle:
        return handle.read()
