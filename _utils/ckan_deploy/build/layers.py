"""
Layers: what does not change from release to release, installed and compiled once.

A layer is a virtualenv under ``shared/layers``: a clone of the base with the packages of a lock, without the extensions
from git. It is named after all that it is made from. A release is a clone of its layer, and goes on sharing its files
with it; the layer goes when no release is left that was made of it.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from attrs import frozen
from packaging.utils import parse_wheel_filename

from ckan_deploy.build import base as bases
from ckan_deploy.build import namespace, packages, sharing, virtualenv
from ckan_deploy.build.resolution import wanted
from ckan_deploy.build.wheels import Builder
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.manifest import Base, Resolution
from ckan_deploy.releases.site import Site
from ckan_deploy.sources.origins import Prepared
from ckan_deploy.system import files

# Another one where layers are made in another way.
FORMAT = 2
DONE = ".ckan-layer.json"
# What is the formula's own at the top of a release: no package may bring it.
OURS = re.compile(
    r"^(run|starter|serve\.sh|environment\.sh|.*\.ini|release\.json.*|pyvenv\.cfg|pylock\.toml|\.ckan-.*)$"
)
KEY = re.compile(r"[0-9a-f]{16}")
# Beside a layer: its archive, for hosts that do not build, and what is known of that.
ARCHIVES = (".tar.gz", ".tar.gz.part", ".json")
# Behind the name of a layer that is being removed.
_GONE = ".gone"


@frozen
class Layer:
    """A layer: its name, its directory, and its packages, ``{name: version}``."""

    key: str
    path: str
    packages: Mapping[str, str]


@contextlib.contextmanager
def held(
    site: Site, base: Base, resolution: Resolution, prepared: Mapping[str, Prepared], builder: Builder
) -> Iterator[Layer]:
    """
    Have the layer of a resolution, made if need be, for as long as the context lasts: no prune removes it meanwhile.

    site
        The site.
    base
        The base.
    resolution
        What a release will hold.
    prepared
        What each extension is installed from.
    builder
        Builds what has no wheel.

    Raises ``FormulaError``; there is no layer then.
    """
    key = _key(site, base, resolution)
    with known(site.paths.shared, key, lambda place: _make(site, base, place, resolution, prepared, builder)) as layer:
        yield layer


def _missing(place: str) -> Mapping[str, str]:
    raise FormulaError(f"the layer {place} is gone; deploy again.")


@contextlib.contextmanager
def known(shared: str, key: str, make: Callable[[str], Mapping[str, str]] = _missing) -> Iterator[Layer]:
    """
    Have the layer of a name, as ``held`` does.

    shared
        The directory ``paths:shared``.
    key
        The name.
    make
        Makes it where it is told, and returns its packages; not called for one that is there. By default that one is
        gone is an error.
    """
    folder = _folder(shared)
    place = os.path.join(folder, key)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    with files.locked(os.path.join(folder, ".lock")):
        files.once(place, lambda: make(place), DONE, durable=True)
        yield Layer(key, place, json.loads(files.read(os.path.join(place, DONE))))


def name(site: Site, resolution: Resolution) -> str:
    """
    Return the name of the layer of a resolution, also of one that is not there.

    site
        The site, with its base.
    resolution
        What a release will hold.

    Raises ``FormulaError`` where there is no base.
    """
    return _key(site, bases.ensure(site), resolution)


def keys(shared: str) -> list[str]:
    """
    Return the names of the layers that are there.

    shared
        The directory ``paths:shared``.
    """
    found = [os.path.dirname(mark) for mark in glob.glob(f"{glob.escape(_folder(shared))}/*/{DONE}")]
    return sorted(name for name in map(os.path.basename, found) if KEY.fullmatch(name))


def without_checkouts(locked: Mapping[str, str], prepared: Mapping[str, Prepared]) -> dict[str, str]:
    """
    Return the packages of a lock that do not come from checkouts.

    locked
        ``{name: version}``.
    prepared
        What each extension is installed from.
    """
    names = {str(_name(item)) for item in prepared.values() if item.checkout}
    return {name: version for name, version in locked.items() if name not in names}


def forget(keys: Collection[str], shared: str) -> None:
    """
    Remove the layers that no release was made of any more.

    keys
        The names of those that are kept.
    shared
        The directory ``paths:shared``.

    Raises ``FormulaError``, when all the rest is done, for what cannot be removed.
    """
    top, problems = _folder(shared), []
    if not os.path.isdir(top):
        return
    with files.locked(os.path.join(top, ".lock"), wait=False) as mine:
        for name in os.listdir(top) if mine else []:
            key, dot, suffix = name.partition(".")
            if not KEY.fullmatch(key) or key in keys and not name.endswith(_GONE):
                continue
            if dot + suffix in ("", _GONE):
                problems += _removed(os.path.join(top, key), name)
            elif dot + suffix in ARCHIVES:
                problems += filter(None, [files.try_unlink(os.path.join(top, name))])
    if problems:
        raise FormulaError("; ".join(problems))


@contextlib.contextmanager
def own_files_kept(path: str) -> Iterator[None]:
    """
    Refuse packages that bring what is the formula's own in a release, or what makes it a virtualenv.

    path
        The virtualenv that they are installed into while the context lasts.

    Raises ``FormulaError`` at the end.
    """
    before = _own_files(path)
    yield
    if _own_files(path) != before:
        raise FormulaError("a package has files of its own where those of the release are; look into the new ones.")


def _make(
    site: Site, base: Base, place: str, resolution: Resolution, prepared: Mapping[str, Prepared], builder: Builder
) -> dict[str, str]:  # fmt: skip
    locked = without_checkouts(resolution.packages, prepared)
    virtualenv.clone(base.path, place, link=site.settings.link, sandbox=builder.sandbox, leave_out=(bases.DONE,))
    with own_files_kept(place):
        kept = {name: item for name, item in prepared.items() if not item.checkout}
        packages.install_locked(place, wanted(site, kept), resolution.lock, locked, builder)
    namespace.unify(place)
    virtualenv.compile_(place)
    sharing.note(site.paths.shared, place)
    return packages.freeze(place)


def _key(site: Site, base: Base, resolution: Resolution) -> str:
    made_from = [
        FORMAT, base.path, base.python, sharing.identity(site.paths.shared, base.path), resolution.key(),
        site.settings.link, site.settings.web.app,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(made_from).encode("utf-8")).hexdigest()[:16]


def _name(item: Prepared) -> str:
    return parse_wheel_filename(os.path.basename(item.archive))[0]


def _own_files(path: str) -> dict[str, str]:
    """What the packages of a release must leave as it is, and what they must not bring: by name, where it is."""
    known: Iterable[str] = [name for name in os.listdir(path) if OURS.match(name)]
    known = [*known, *(f"bin/{name}" for name in os.listdir(f"{path}/bin") if name.startswith("python"))]
    found = {}
    for name in known:
        about = os.lstat(os.path.join(path, name))
        found[name] = f"{about.st_ino} {about.st_mtime_ns}"
    return found


def _removed(place: str, name: str) -> list[str]:
    """Remove a layer, out of its place first: one that is removed in part must not be taken for a whole one."""
    gone = place + _GONE
    try:
        if not name.endswith(_GONE):
            shutil.rmtree(gone, ignore_errors=True)
            os.rename(place, gone)
        shutil.rmtree(gone)
    except OSError as exc:
        return [f"{gone} cannot be removed ({exc.strerror}: {exc.filename})"]
    files.try_unlink(f"{place}.lock")
    return []


def _folder(shared: str) -> str:
    return os.path.join(shared, "layers")
