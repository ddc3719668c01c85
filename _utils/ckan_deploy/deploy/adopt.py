"""
A virtualenv that something else built becomes a release, without a rebuild: so that there is one to go back to after
the first deploy.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import re
import time
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from ckan_deploy.build import base, ini, packages, virtualenv
from ckan_deploy.build.installer import Installer
from ckan_deploy.build.packages import Wanted
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases import stage
from ckan_deploy.releases.ids import ID_FORMAT, check_id
from ckan_deploy.releases.manifest import Base, Manifest, Resolution
from ckan_deploy.releases.site import Site
from ckan_deploy.system import arguments

# Inis that are not CKAN's own.
_OTHER_INI = re.compile(r"^(who|uwsgi|ckan-uwsgi|test.*)\.ini$")


@frozen
class Adoption:
    """What the adoption of a directory would make. ``in_place`` is one whose directory becomes the release itself."""

    source: str
    id: str
    in_place: bool
    ini: str
    base: Base
    plugins: tuple[str, ...]


def adopt(site: Site, name: str, release: str = "", ini_file: str = "", by: str = "") -> Manifest:
    """
    Make a release of a virtualenv that something else built.

    site
        The site.
    name
        A directory under ``releases``, or the absolute path of one.
    release
        The id to give, a UTC stamp; by default what the name or else the time of the directory says.
    ini_file
        CKAN's ini; by default the one in the directory. It is taken as it is.
    by
        Who asked.

    Raises ``FormulaError`` that says why it cannot be adopted; nothing was changed then.
    """
    planned = examine(site, arguments.text("name", name), release, arguments.text("ini", ini_file))
    path = site.releases.directory(planned.id)
    about = {"env": site.settings.env, "site": site.settings.site, "by": by}
    with stage.running(site, "adopt", planned.id, by):
        if not planned.in_place:
            site.releases.create(planned.id, **about)
        try:
            filled = _fill(site, path, planned)
        except BaseException:
            if not planned.in_place:
                site.releases.remove(planned.id)
            raise
        state = "live" if site.releases.linked() == planned.id else "retired"
        return site.releases.note_new(planned.id, state, "adopted", **about, **filled)


def examine(site: Site, name: str, release: str = "", ini_file: str = "") -> Adoption:
    """
    Say what the adoption of a directory would make. Changes nothing.

    site, name, release, ini_file
        As for ``adopt``.

    Raises ``FormulaError`` that says why it cannot be adopted.
    """
    source = os.path.normpath(os.path.join(site.paths.releases, name))
    about = _examine_virtualenv(site, name, source)
    found = _ini(source, ini_file)
    identity = _id(source, release)
    home = os.path.realpath(os.path.dirname(source)) == os.path.realpath(site.paths.releases)
    in_place = home and os.path.basename(source) == identity
    if os.path.lexists(site.releases.directory(identity)) and not in_place:
        raise FormulaError(f"there is a release {identity} already; give another id with release=.")
    _refuse_newer(site, identity)
    problems = virtualenv.verify(source) if in_place else []
    if problems:
        raise FormulaError(f"{source} does not stand on its own: {problems[0]}; adopt it under another id.")
    return Adoption(source, identity, in_place, found, about, _plugins(found))


def _examine_virtualenv(site: Site, name: str, source: str) -> Base:
    if not name or os.path.islink(source) or not os.path.isdir(source):
        raise FormulaError(f"{source} is not a directory; name one under {site.paths.releases}, or a whole path.")
    if os.path.exists(os.path.join(source, "release.json")):
        raise FormulaError(f"{source} is a release already; see ckan_release.list.")
    if not os.path.isfile(os.path.join(source, "pyvenv.cfg")) or not os.path.lexists(f"{source}/bin/python"):
        raise FormulaError(f"{source} is not a virtualenv (no pyvenv.cfg or no bin/python).")
    if not os.path.exists(f"{source}/bin/python"):
        wanted = os.path.realpath(f"{source}/bin/python")
        raise FormulaError(f"the interpreter of {source} is gone ({wanted}); install it, or leave this one.")
    about = base.describe(source)
    if not about:
        raise FormulaError(f"there is no CKAN in {source}; name the directory of a virtualenv with CKAN.")
    return about


def _refuse_newer(site: Site, identity: str) -> None:
    known = [manifest.id for manifest in site.releases.manifests()]
    serves = site.releases.current()
    newer_than = serves if serves in known and identity >= serves else "now"
    if newer_than != "now" or identity > time.strftime(ID_FORMAT, time.gmtime()):
        raise FormulaError(
            f"{identity} is not older than {newer_than}, and one that is adopted is to go back to; give an older id "
            "with release=."
        )


def _fill(site: Site, path: str, plan: Adoption) -> dict[str, Any]:
    """Make the directory of a release what was examined; returns the fields of its manifest."""
    installer = Installer.of(site.settings)
    if not plan.in_place:
        # What somebody else than root owns, somebody else can change: then it is not shared.
        mine = os.stat(os.path.join(plan.source, "lib")).st_uid == os.geteuid()
        virtualenv.clone(plan.source, path, link=site.settings.link if mine else "copy")
    if site.settings.web.app == "uwsgi" and not os.path.exists(os.path.join(path, "bin", "uwsgi")):
        # What served it was another server. Copied: files that the build user owns have no place in it.
        wanted = [Wanted("uwsgi", requirement="uwsgi")]
        packages.install(path, wanted, None, evolve(installer, user="", link="copy"))
    return {
        "resolution": Resolution(evolve(plan.base, path=plan.source), {}, packages=packages.freeze(path)),
        "plugins": plan.plugins,
        **ini.put(site, path, Path(plan.ini).read_text(encoding="utf-8")),
        "adopted": {"from": plan.source, "ini": plan.ini},
    }


def _ini(source: str, ini_file: str) -> str:
    if ini_file:
        if not os.path.isfile(ini_file):
            raise FormulaError(f"there is no file {ini_file}; give CKAN's ini with ini=.")
        found = [ini_file]
    else:
        names = [name for name in sorted(os.listdir(source)) if name.endswith(".ini") and not _OTHER_INI.match(name)]
        found = [os.path.join(source, name) for name in names]
    if len(found) != 1:
        which = f"{len(found)} ini files ({', '.join(map(os.path.basename, found))})" if found else "no ini"
        raise FormulaError(f"{source} has {which}; give CKAN's with ini=/whole/path.")
    _plugins(found[0])
    return found[0]


def _plugins(ini_file: str) -> tuple[str, ...]:
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(Path(ini_file).read_text(encoding="utf-8"))
    except (configparser.Error, UnicodeDecodeError) as exc:
        # Without its message, which quotes a line.
        raise FormulaError(f"{ini_file} cannot be read as an ini in UTF-8 ({type(exc).__name__}).") from exc
    if not parser.has_section(ini.SECTION):
        raise FormulaError(f"{ini_file} has no section [{ini.SECTION}], so it is not CKAN's; give CKAN's with ini=.")
    return tuple(parser.get(ini.SECTION, "ckan.plugins", fallback="").split())


def _id(source: str, release: str) -> str:
    if release:
        return check_id(release)
    digits = re.sub(r"[^0-9]", "", os.path.basename(source))
    if len(digits) in (12, 14):
        found = digits.ljust(14, "0") + "Z"
        with contextlib.suppress(ValueError):  # digits that are no time
            time.strptime(found, ID_FORMAT)
            return found
    return time.strftime(ID_FORMAT, time.gmtime(os.stat(source).st_mtime))
