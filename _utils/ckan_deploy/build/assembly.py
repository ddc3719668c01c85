"""
The assembly of a release: a clone of the base with its patches, a checkout per extension, one install of all of them,
the ini. Nothing here knows of states, of the link or of web servers.
"""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import re
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import evolve

from ckan_deploy.build import base, ini, namespace, packages, virtualenv
from ckan_deploy.build.installer import Installer
from ckan_deploy.build.resolution import noted, prepare, wanted
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.manifest import Base, Resolution
from ckan_deploy.releases.site import Site
from ckan_deploy.settings.fingerprint import hashes
from ckan_deploy.sources import patches
from ckan_deploy.sources.origins import Prepared
from ckan_deploy.sources.pins import Patch
from ckan_deploy.system import disk

# What root writes at the top of a release after the build: nothing of these names may come from build code.
OURS = re.compile(r"^(run|starter|serve\.sh|.*\.ini|release\.json\.tmp)$")


def fill(site: Site, path: str, resolution: Resolution) -> dict[str, Any]:
    """
    Fill the directory of a new release.

    site
        The site.
    path
        The directory of the release; holds its manifest and nothing else.
    resolution
        What it will hold, decided here or on another host.

    Returns the fields of the manifest. Raises ``FormulaError``.
    """
    installer = Installer.of(site.settings)
    found = base.ensure(site)
    _refuse_another_plan(site, found, resolution)
    seconds: dict[str, float] = {}
    with _timed(seconds, "clone"):
        virtualenv.clone(found.path, path, link=site.settings.link, owner=installer.user)
        patched = _patch_core(site, path, resolution.patches)
    with _timed(seconds, "sources"):
        prepared = prepare(site, resolution.extensions)
    with _timed(seconds, "packages"):
        _install(site, path, prepared, resolution, installer)
    _refuse_lost_plugins(path, installer.user)
    with _timed(seconds, "bytecode"):
        virtualenv.compile_(path, user=installer.user)
    if installer.user:
        _take_over(path, installer.user)
    pins = {name: noted(pin, prepared[name]) for name, pin in resolution.extensions.items()}
    built = evolve(resolution, base=found, extensions=pins, patches=patched, packages=packages.freeze(path))
    return {
        "resolution": built,
        "plugins": site.settings.plugins,
        **ini.write(site, path),
        "settings": hashes(site.settings),
        "disk_mb": disk.used_mb(path),
        "build_seconds": seconds,
    }


def _refuse_another_plan(site: Site, found: Base, resolution: Resolution) -> None:
    planned = resolution.base
    if (found.ckan, found.python) != (planned.ckan, planned.python):
        raise FormulaError(
            f"the base here ({found.path}) is CKAN {found.ckan} on Python {found.python}, the plan was made for "
            f"CKAN {planned.ckan} on Python {planned.python}; make the bases of all hosts alike."
        )
    if set(resolution.extensions) != set(site.settings.extensions):
        raise FormulaError("the pillar of this host has other extensions than the plan; make them alike.")


def _install(
    site: Site, path: str, prepared: Mapping[str, Prepared], resolution: Resolution, installer: Installer
) -> None:
    """Install all extensions together, and put their checkouts into the release."""
    checkouts = {name: item.checkout for name, item in prepared.items() if item.checkout}
    places = {}
    for name in checkouts:
        shutil.rmtree(os.path.join(path, "src", name), ignore_errors=True)  # the base brought one of its own
        places[name] = os.path.join(path, "src", name, site.settings.extensions[name].subdirectory).rstrip("/")
    packages.install(path, wanted(site, prepared, places), resolution.packages, installer)
    os.makedirs(os.path.join(path, "src"), exist_ok=True)
    for name, checkout in checkouts.items():
        # After the install: build code may have compiled something in it.
        shutil.copytree(checkout, os.path.join(path, "src", name), symlinks=True)
    namespace.unify(path)


def _refuse_lost_plugins(path: str, user: str) -> None:
    lost = namespace.missing(path, user=user)
    # Some versions of CKAN name plugins of their tests that they do not bring.
    lost.pop("ckan", None)
    if lost:
        each = "; ".join(f"{name}: {reason}" for name, reason in sorted(lost.items()))
        raise FormulaError(f"installed, but it cannot be imported: {each}; correct the extension.")


def _patch_core(site: Site, path: str, planned: tuple[Patch, ...]) -> tuple[Patch, ...]:
    """Patch CKAN itself in a fresh clone; returns what became of each patch."""
    if not planned:
        return ()
    found = patches.read(site.host, [patch.patch for patch in planned])
    for patch, plan in zip(found, planned, strict=True):
        if patch.sha256 != plan.sha256:
            raise FormulaError(f"{patch.patch} was changed since the plan was made; deploy again.")
    # From the index CKAN stands in site-packages, from a source install in a checkout of the clone.
    places = [*glob.glob(os.path.join(glob.escape(path), "lib/python*/site-packages")), os.path.join(path, "src/ckan")]
    for place in places:
        if os.path.isfile(os.path.join(place, "ckan", "__init__.py")):
            return tuple(patches.apply(site.host, place, found, only=("ckan/", "ckanext/")))
    raise FormulaError(f"no CKAN was found to patch in {path}; correct the base.")


def _take_over(path: str, user: str) -> None:
    """
    Take the directories of a release from the build user, so that nothing that it left running can change what is in
    them. Files that are linked from its cache stay its own: as root's they could not be linked another time.
    """
    uid = pwd.getpwnam(user).pw_uid
    for name in os.listdir(path):
        if OURS.match(name):
            entry = os.path.join(path, name)
            if os.path.isdir(entry) and not os.path.islink(entry):
                shutil.rmtree(entry)
            else:
                os.unlink(entry)
    for folder, folders, files in os.walk(path):
        os.chown(folder, 0, 0)
        for name in [*folders, *files]:
            entry = os.path.join(folder, name)
            status = os.lstat(entry)
            if status.st_uid == uid and (status.st_nlink == 1 or stat.S_ISDIR(status.st_mode)):
                os.chown(entry, 0, 0, follow_symlinks=False)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    begun = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - begun, 3)
