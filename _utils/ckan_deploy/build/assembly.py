"""
The assembly of a release: a clone of its layer, CKAN's patches, a checkout per extension, one install of all of them,
the ini. Nothing here knows of states, of the link or of web servers.
"""

from __future__ import annotations

import contextlib
import glob
import math
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from attrs import evolve
from packaging.utils import parse_wheel_filename

from ckan_deploy.build import ahead, base, editable, environment, ini, layers, namespace, packages, plugins, virtualenv
from ckan_deploy.build.layers import Layer
from ckan_deploy.build.packages import Wanted
from ckan_deploy.build.resolution import noted, prepare
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
    with timed(seconds, "sources"):
        prepared = prepare(site, resolution.extensions, builder)
    with contextlib.ExitStack() as stack:
        with timed(seconds, "layer"):
            layer = stack.enter_context(layers.held(site, found, resolution, prepared, builder))
        with timed(seconds, "clone"):
            # Its interpreter is asked below, with the plugins.
            ready = {item.name: item.ready for item in prepared.values() if item.checkout}
            cloned, there = ahead.clone(site, layer, path, ready)
    patched, changed = _patch_core(site, path, resolution.patches)
    with timed(seconds, "packages"):
        own = _install(site, path, prepared, builder, there)
        put_lock(path, resolution)
    pins = {name: noted(pin, prepared[name]) for name, pin in resolution.extensions.items()}
    had = {**layers.without_checkouts(layer.packages, prepared), **own}
    built = evolve(resolution, base=found, extensions=pins, patches=patched, packages=dict(sorted(had.items())))
    broken = broken_plugins(site, path, layer.key, built, builder.sandbox, seconds)
    with timed(seconds, "bytecode"):
        virtualenv.compile_(path, changed)
    return {
        **fields(site, path, layer, cloned, seconds),
        "resolution": built,
        "broken_plugins": broken,
    }


def fields(
    site: Site, path: str, layer: Layer, cloned: Mapping[str, float], seconds: Mapping[str, float]
) -> dict[str, Any]:  # fmt: skip
    """
    Write the ini and the variables of a release that has all the rest, and say what its manifest says of how it was
    made.

    site
        The site.
    path
        The directory of the release.
    layer
        What it is a clone of.
    cloned
        What ``virtualenv.clone`` returned.
    seconds
        How long each part took.
    """
    environment.write(site, path)
    return {
        "plugins": site.settings.plugins,
        "layer": layer.key,
        **ini.write(site, path),
        "settings": hashes(site.settings),
        # Rounded up: a plan says that there is room for it.
        "disk_mb": math.ceil(cloned["own_mb"] + disk.used_mb(os.path.join(path, "src"))),
        "build_seconds": dict(seconds),
    }


def put_lock(path: str, resolution: Resolution) -> None:
    """
    Put the lock file into a release.

    path
        The directory of the release.
    resolution
        What it holds.
    """
    if resolution.lock:
        files.write(os.path.join(path, pylock.NAME), resolution.lock)


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
    site: Site, path: str, prepared: Mapping[str, Prepared], builder: Builder, there: Collection[str]
) -> dict[str, str]:  # fmt: skip
    """
    Put the checkouts into the release, but for those that are ``there``, and make them importable, all together.
    Returns their packages, ``{name: version}``.
    """
    manifest = os.path.join(path, "release.json")
    was = files.read(manifest)
    os.makedirs(os.path.join(path, "src"), mode=0o755, exist_ok=True)
    checkouts = [item for item in prepared.values() if item.checkout]
    thin = {}
    for item in checkouts:
        if item.name not in there:
            place = os.path.join(path, "src", item.name)
            shutil.rmtree(place, ignore_errors=True)  # the base brought one of its own
            editable.put(item.ready, place, site.settings.link)
        thin[item.name] = editable.thin(item.checkout, item.archive, item.name, item.subdirectory)
    try:
        with layers.own_files_kept(path):
            asked = [Wanted(item.name, item.requirement.replace(item.archive, thin[item.name])) for item in checkouts]
            packages.install_locked(path, asked, "", {}, builder)
    except FormulaError:
        # A package may bring any file, beside its modules. The release must be known as ours, to be removed.
        files.write(manifest, was)
        raise
    found = {}
    for item in checkouts:
        wheel = thin[item.name]
        place = os.path.join(path, "src", item.name, item.subdirectory).rstrip("/")
        editable.tell(virtualenv.site_packages(path)[0], wheel, place)
        package, version = parse_wheel_filename(os.path.basename(wheel))[:2]
        found[str(package)] = str(version)
    return found


def broken_plugins(
    site: Site, path: str, layer: str, built: Resolution, sandbox: Sandbox, seconds: dict[str, float]
) -> Mapping[str, str]:  # fmt: skip
    """
    Refuse plugins that are enabled and cannot be imported.

    site
        The site.
    path
        The directory of the release.
    layer
        The name of its layer.
    built
        What it holds.
    sandbox
        Where its interpreter is run.
    seconds
        Gets how long that took, as ``imports``, where it had to be looked.

    Returns the others that cannot, ``{plugin: reason}``: nobody asks for them. Raises ``FormulaError``.
    """
    enabled = plugins.enabled(ini.options(site))
    broken = _known_broken(site, layer, built, enabled)
    if broken is None:
        with timed(seconds, "imports"):
            broken = _broken_plugins(site, path, enabled, sandbox)
    return broken


def _known_broken(site: Site, layer: str, built: Resolution, enabled: tuple[str, ...]) -> Mapping[str, str] | None:
    """
    What is known of the plugins of a release that holds the same, and has booted with these; None where there is none.
    """
    for manifest in reversed(site.releases.manifests()):
        booted = manifest.check.get("plugins") or ()
        if manifest.layer != layer or not manifest.resolution or not set(enabled) <= set(booted):
            continue
        if all(
            getattr(manifest.resolution, part) == getattr(built, part) for part in ("extensions", "patches", "packages")
        ):
            return manifest.broken_plugins
    return None


def _broken_plugins(site: Site, path: str, enabled: tuple[str, ...], sandbox: Sandbox) -> dict[str, str]:
    """
    Refuse plugins that are enabled and cannot be imported. Returns what is known of the others: nothing before the
    boot of the stage ``check``, which looks at them.
    """
    refused = sorted(namespace.missing(path, enabled, sandbox), key=lambda lost: (lost.package, lost.plugin))
    if refused:
        each = "; ".join(
            plugins.advised(f"{lost.package}: plugin {lost.plugin}: {lost.reason}", path, lost.plugin, site.settings)
            for lost in refused
        )
        raise FormulaError(f"installed, but it cannot be imported: {each}; correct the extension.")
    return {}


def _patch_core(site: Site, path: str, planned: tuple[Patch, ...]) -> tuple[tuple[Patch, ...], list[str]]:
    """Patch CKAN itself in a fresh clone; returns what became of each patch, and the modules that have changed."""
    if not planned:
        return (), []
    found = patches.read(site.host, [patch.patch for patch in planned])
    for patch, plan in zip(found, planned, strict=True):
        if patch.sha256 != plan.sha256:
            raise FormulaError(f"{patch.patch} was changed since the plan was made; deploy again.")
    # From the index CKAN stands in site-packages, from a source install in a checkout of the clone.
    places = [*glob.glob(os.path.join(glob.escape(path), "lib/python*/site-packages")), os.path.join(path, "src/ckan")]
    for place in places:
        if os.path.isfile(os.path.join(place, "ckan", "__init__.py")):
            done = tuple(patches.apply(site.host, place, found, only=("ckan/", "ckanext/")))
            names = {name for patch in done for name in patch.files if name.endswith(".py")}
            return done, sorted(os.path.relpath(os.path.join(place, name), path) for name in names)
    raise FormulaError(f"no CKAN was found to patch in {path}; correct the base.")


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """
    Note how long the context lasted.

    seconds
        Gets the seconds.
    name
        What they stand under.
    """
    begun = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - begun, 3)
