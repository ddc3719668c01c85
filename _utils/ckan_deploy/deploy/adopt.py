"""
A virtualenv that something else built becomes a release, without a rebuild: so that there is one to go back to after
the first deploy.

Where others than root may write to it, it is copied first, by rights of its owner (``system.foreign``). Root reads that
copy only, and never runs an interpreter of it.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import re
import time
from collections.abc import Iterator
from typing import Any

from attrs import evolve, frozen

from ckan_deploy.build import base, environment, ini, packages, virtualenv
from ckan_deploy.build.packages import Wanted
from ckan_deploy.build.sandbox import Sandbox
from ckan_deploy.build.wheels import Builder
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases import stage
from ckan_deploy.releases.ids import ID_FORMAT, check_id
from ckan_deploy.releases.manifest import Base, Manifest, Resolution
from ckan_deploy.releases.site import Site
from ckan_deploy.sources import pylock
from ckan_deploy.system import arguments, foreign, places, safely

# Inis that are not CKAN's own.
_OTHER_INI = re.compile(r"^(who|uwsgi|ckan-uwsgi|test.*)\.ini$")


@frozen
class Adoption:
    """
    What the adoption of a directory would make. ``tree`` is the directory itself, or a copy of it that only root may
    write to; ``in_place`` is one whose directory becomes the release itself.
    """

    source: str
    tree: str
    id: str
    in_place: bool
    ini: str
    text: str
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
    name, ini_file = arguments.text("name", name), arguments.text("ini", ini_file)
    source = os.path.normpath(os.path.join(site.paths.releases, name))
    _refuse_none(site, name, source)
    with _fixed(site, source, typed=bool(ini_file)) as tree:
        return _adopt(site, _examine(site, source, tree, release, ini_file), by)


def _adopt(site: Site, planned: Adoption, by: str) -> Manifest:
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
        # Not by `current()`: it is no release of ours before its manifest is written.
        state = "live" if site.releases.linked() == planned.id else "retired"
        return site.releases.note_new(planned.id, state, "adopted", **about, **filled)


@contextlib.contextmanager
def _fixed(site: Site, source: str, typed: bool) -> Iterator[str]:
    """Yield a directory as it is where only root may write to it, else a copy for as long as the context lasts."""
    try:
        fixed = os.geteuid() != 0 or foreign.is_roots_tree(source)
    except OSError as exc:
        raise FormulaError(f"{source} cannot be read ({exc.strerror}); correct that, or name another one.") from exc
    if fixed:
        yield source
        return
    with places.temporary(site.paths.shared, "adopt") as place:
        tree = os.path.join(place, "tree")
        safely.ensure(tree)
        # What a release has of its own, and an ini that was named and may be closed to the owner.
        skip = ("run", "release.json", ".lock", pylock.NAME, *(["*.ini"] if typed else []))
        foreign.copy(source, tree, site.settings.user, site.settings.group, skip)
        yield tree


def _examine(site: Site, source: str, tree: str, release: str, ini_file: str) -> Adoption:
    """Say what the adoption would make. Changes nothing. Raises ``FormulaError`` that says why it cannot be."""
    about = _examine_virtualenv(source, tree)
    found = _ini(source, tree, ini_file)
    shown = ini_file or os.path.join(source, os.path.basename(found))
    if tree != source and os.path.islink(found) and not ini_file:
        raise FormulaError(f"{shown} is a link, and others than root may have put it there; give CKAN's ini with ini=.")
    text = _read(found)
    identity = _id(source, release)
    home = os.path.realpath(os.path.dirname(source)) == os.path.realpath(site.paths.releases)
    in_place = home and os.path.basename(source) == identity
    if os.path.lexists(site.releases.directory(identity)) and not in_place:
        raise FormulaError(f"there is a release {identity} already; give another id with release=.")
    _refuse_newer(site, identity)
    if in_place:
        _refuse_in_place(site, source, tree)
    return Adoption(source, tree, identity, in_place, shown, text, about, _plugins(shown, text))


def _refuse_none(site: Site, name: str, source: str) -> None:
    if not name or os.path.islink(source) or not os.path.isdir(source):
        raise FormulaError(f"{source} is not a directory; name one under {site.paths.releases}, or a whole path.")
    if os.path.lexists(os.path.join(source, "release.json")):
        raise FormulaError(f"{source} is a release already; see ckan_release.list.")
    if not os.path.isfile(os.path.join(source, "pyvenv.cfg")) or not os.path.lexists(f"{source}/bin/python"):
        raise FormulaError(f"{source} is not a virtualenv (no pyvenv.cfg or no bin/python).")


def _refuse_in_place(site: Site, source: str, tree: str) -> None:
    """Refuse to make the very directory a release that is not sound, or that cannot be made fit for it."""
    if tree != source:
        raise FormulaError(f"others than root may write to {source}; adopt it under another id (release=), as a copy.")
    if site.settings.web.app == "uwsgi" and not os.path.exists(os.path.join(tree, "bin", "uwsgi")):
        raise FormulaError(f"{source} has no uWSGI; adopt it under another id (release=), as a copy that gets one.")
    problems = virtualenv.verify(tree, sandbox=Sandbox.of(site.settings))
    if problems:
        raise FormulaError(f"{source} does not stand on its own: {problems[0]}; adopt it under another id.")


def _examine_virtualenv(source: str, tree: str) -> Base:
    if not os.path.exists(f"{tree}/bin/python"):
        wanted = os.path.realpath(f"{source}/bin/python")
        raise FormulaError(f"the interpreter of {source} is gone ({wanted}); install it, or leave this one.")
    about = base.describe(tree)
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
    builder = Builder.of(site, plan.tree)
    # What served it may have been another server.
    adds = site.settings.web.app == "uwsgi" and not os.path.exists(os.path.join(plan.tree, "bin", "uwsgi"))
    if not plan.in_place:
        link = "copy" if adds or plan.tree != plan.source else site.settings.link
        virtualenv.clone(plan.tree, path, link=link, sandbox=builder.sandbox)
    if adds:
        packages.install(path, [Wanted("uwsgi", "uwsgi")], builder)
    environment.write(site, path)
    return {
        "resolution": Resolution(evolve(plan.base, path=plan.source), {}, packages=packages.freeze(path)),
        "plugins": plan.plugins,
        **ini.put(site, path, plan.text),
        "adopted": {"from": plan.source, "ini": plan.ini},
    }


def _ini(source: str, tree: str, ini_file: str) -> str:
    """The path of CKAN's ini: the one that was given, or the only one of the directory."""
    if ini_file:
        if not os.path.isfile(ini_file):
            raise FormulaError(f"there is no file {ini_file}; give CKAN's ini with ini=.")
        return ini_file
    names = [name for name in sorted(os.listdir(tree)) if name.endswith(".ini") and not _OTHER_INI.match(name)]
    if len(names) != 1:
        which = f"{len(names)} ini files ({', '.join(names)})" if names else "no ini"
        raise FormulaError(f"{source} has {which}; give CKAN's with ini=/whole/path.")
    return os.path.join(tree, names[0])


def _read(file: str) -> str:
    """The text of an ini."""
    try:
        with safely.file(file) as handle:
            return handle.read(safely.MOST_BYTES).decode("utf-8")
    except UnicodeDecodeError as exc:
        raise FormulaError(f"{file} cannot be read as an ini in UTF-8 ({type(exc).__name__}).") from exc
    except OSError as exc:
        raise FormulaError(f"{file} is no plain file ({exc.strerror}); give CKAN's ini with ini=/whole/path.") from exc


def _plugins(file: str, text: str) -> tuple[str, ...]:
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(text)
    except configparser.Error as exc:
        # Without its message, which quotes a line.
        raise FormulaError(f"{file} cannot be read as an ini in UTF-8 ({type(exc).__name__}).") from exc
    if not parser.has_section(ini.SECTION):
        raise FormulaError(f"{file} has no section [{ini.SECTION}], so it is not CKAN's; give CKAN's with ini=.")
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
