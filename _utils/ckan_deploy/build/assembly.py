"""
The assembly of a release: a clone of the base with its patches, a checkout per extension, one install of all of them,
the ini. Nothing here knows of states, of the link or of web servers.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import evolve

from ckan_deploy.build import base, editable, ini, namespace, packages, virtualenv
from ckan_deploy.build.resolution import noted, prepare, wanted
from ckan_deploy.build.sandbox import Sandbox
from ckan_deploy.build.wheels import Builder
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.manifest import Base, Resolution
from ckan_deploy.releases.site import Site
from ckan_deploy.settings.fingerprint import hashes
from ckan_deploy.sources import patches, pylock
from ckan_deploy.sources.origins import Prepared
from ckan_deploy.sources.pins import Patch
from ckan_deploy.system import disk, files

# What is the formula's own at the top of a release: no package may bring it.
OURS = re.compile(r"^(run|starter|serve\.sh|.*\.ini|release\.json.*|pyvenv\.cfg|pylock\.toml)$")


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
    found = base.ensure(site)
    _refuse_another_plan(site, found, resolution)
    builder = Builder.of(site, found.path)
    seconds: dict[str, float] = {}
    with _timed(seconds, "clone"):
        virtualenv.clone(found.path, path, link=site.settings.link, sandbox=builder.sandbox)
        patched = _patch_core(site, path, resolution.patches)
    with _timed(seconds, "sources"):
        prepared = prepare(site, resolution.extensions, builder)
    with _timed(seconds, "packages"):
        _install(site, path, prepared, resolution, builder)
    _refuse_lost_plugins(path, builder.sandbox)
    with _timed(seconds, "bytecode"):
        virtualenv.compile_(path)
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


def _install(site: Site, path: str, prepared: Mapping[str, Prepared], resolution: Resolution, builder: Builder) -> None:
    """Put the checkouts into the release, and install all extensions together."""
    own, manifest = _own_files(path), os.path.join(path, "release.json")
    noted = files.read(manifest)
    os.makedirs(os.path.join(path, "src"), mode=0o755, exist_ok=True)
    put, thin = dict(prepared), {}
    for name, item in prepared.items():
        if item.checkout:
            place = os.path.join(path, "src", name)
            shutil.rmtree(place, ignore_errors=True)  # the base brought one of its own
            editable.put(item.checkout, item.archive, place, item.subdirectory)
            made = editable.thin(item.checkout, item.archive, name, item.subdirectory)
            thin[os.path.join(place, item.subdirectory).rstrip("/")] = made
            put[name] = evolve(item, requirement=item.requirement.replace(item.archive, made))
    packages.install_locked(path, wanted(site, put), resolution.lock, resolution.packages, builder)
    for place, made in thin.items():
        editable.tell(virtualenv.site_packages(path)[0], made, place)
    if _own_files(path) != own:
        # A package may bring any file, beside its modules. The release must be known as ours, to be removed.
        files.write(manifest, noted)
        raise FormulaError("a package has files of its own where those of the release are; look into the new ones.")
    namespace.unify(path)
    if resolution.lock:
        files.write(os.path.join(path, pylock.NAME), resolution.lock)


def _own_files(path: str) -> dict[str, str]:
    """What the packages of a release must leave as it is, and what they must not bring: by name, where it is."""
    known = [name for name in os.listdir(path) if OURS.match(name)]
    known += [f"bin/{name}" for name in os.listdir(f"{path}/bin") if name.startswith("python")]
    found = {}
    for name in known:
        about = os.lstat(os.path.join(path, name))
        found[name] = f"{about.st_ino} {about.st_mtime_ns}"
    return found


def _refuse_lost_plugins(path: str, sandbox: Sandbox) -> None:
    lost = namespace.missing(path, sandbox)
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


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    begun = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - begun, 3)
