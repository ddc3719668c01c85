"""
What a release will hold: refs become commits, requirements become versions, all resolved together at plan. The outcome
is the same for all hosts of a fleet. Nothing is installed.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeVar

from attrs import evolve
from packaging.utils import canonicalize_name

from ckan_deploy.build import addresses, base, editable, locking, packages, plugins, trees, virtualenv, wheels
from ckan_deploy.build.locking import Wish
from ckan_deploy.build.packages import Wanted
from ckan_deploy.build.wheels import Builder
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.manifest import Base, Resolution
from ckan_deploy.releases.site import Site
from ckan_deploy.settings import mask
from ckan_deploy.settings.parts import Extension
from ckan_deploy.sources import origins, patches, repositories
from ckan_deploy.sources.git import Origin
from ckan_deploy.sources.origins import Prepared
from ckan_deploy.sources.pins import Patch, Pin
from ckan_deploy.system import files

T = TypeVar("T")
AT_ONCE = 8


@files.usual_modes()
def resolve(site: Site, renew: bool = False) -> Resolution:
    """
    Decide what a release will hold.

    What is fetched for it (mirrors, checkouts, a base that is to be made) stays under ``shared``.

    site
        The site.
    renew
        As for ``locking.lock``.

    Raises ``FormulaError`` that names what cannot be had, what does not go together, or a plugin that nothing brings.
    """
    settings, shared = site.settings, site.paths.shared
    found = base.ensure(site)
    core = patches.read(site.host, settings.patches)
    _fetch_patches(site, settings.extensions)
    pins = _at_once(
        settings.extensions, lambda name: origins.resolve(site.host, name, settings.extensions[name], shared)
    )
    builder = Builder.of(site, found.path)
    prepared = prepare(site, pins, builder)
    had = packages.freeze(found.path)
    locked = locking.lock(found.path, _wish(site, prepared), had, builder, renew)
    if "ckan.plugins" not in settings.config:  # which wins over ckan:plugins
        new = {name: version for name, version in locked.packages.items() if had.get(name) != version}
        plugins.check(settings.plugins, found.path, prepared, new, settings.installer.find_links)
    return Resolution(
        base=Base(found.ckan, found.python),
        extensions={name: _completed(site, name, pin, prepared[name], locked.packages) for name, pin in pins.items()},
        patches=tuple(Patch(patch.patch, patch.sha256) for patch in core),
        packages=locked.packages,
        overridden=locked.overridden,
        lock=locked.lock,
        notes=locked.notes,
    )


def prepare(site: Site, pins: Mapping[str, Pin], builder: Builder) -> dict[str, Prepared]:
    """
    Bring all that pins name onto this host, and build the wheels of it, several at once.

    site
        The site.
    pins
        The pin of each extension.
    builder
        Builds the wheels.

    Returns what each is installed from; the requirement is a wheel, but for an extension from the package index.
    Raises ``FormulaError`` with all that failed.
    """
    # The others were patched when they were made: to fetch takes Salt's client a while.
    _fetch_patches(site, [name for name, pin in pins.items() if not origins.is_there(pin, site.paths.shared)])
    # Salt's own client fetches archives, one at a time, and not beside threads that make files: it sets the umask. And
    # where there is nothing to wait for, threads are in each other's way.
    alone = [
        name for name, pin in pins.items()
        if pin.archive or pin.kind == "git" and editable.is_made(origins.place(pin, site.paths.shared), name)
    ]  # fmt: skip
    return _at_once(pins, lambda name: _prepared(site, name, pins[name], builder), alone)


def _fetch_patches(site: Site, names: Collection[str]) -> None:
    for name, extension in site.settings.extensions.items():
        for patch in extension.patches if name in names else ():
            # What is wrong with one is told by whoever reads it.
            with contextlib.suppress(FormulaError):
                site.host.file(patch)


def _prepared(site: Site, name: str, pin: Pin, builder: Builder) -> Prepared:
    item = origins.prepare(site.host, name, site.settings.extensions[name], pin, site.paths.shared)
    try:
        if item.checkout:
            item = trees.built(item, pin.build, builder)
            wheel = builder.of_checkout(item.checkout, item.subdirectory)
        elif item.archive and not item.archive.endswith(".whl"):
            wheel = builder.of_sdist(item.archive)
        else:
            return item
        item = evolve(item, requirement=f"{wheels.read(wheel)[0]} @ file://{wheel}")
        return evolve(item, ready=_ready(site, item, builder)) if item.checkout else item
    except FormulaError as exc:
        # What a build prints is anybody's text.
        raise FormulaError(mask.text(f"{name}: {exc}", site.settings)) from exc


def _ready(site: Site, item: Prepared, builder: Builder) -> str:
    """The directory that has a checkout as releases get it, made with its wheel."""
    python = virtualenv.home_python(builder.path)
    return editable.make(item.checkout, item.archive, item.name, item.subdirectory, python, site.paths.shared)


def wanted(site: Site, prepared: Mapping[str, Prepared]) -> list[Wanted]:
    """
    Return what is installed into a release: the extensions, and uWSGI, which a base that was adopted may not have.

    site
        The site.
    prepared
        What ``prepare`` returned.
    """
    found = [Wanted(name, item.requirement, item.checkout, item.files) for name, item in sorted(prepared.items())]
    return found + ([Wanted("uwsgi", "uwsgi")] if site.settings.web.app == "uwsgi" else [])


def _wish(site: Site, prepared: Mapping[str, Prepared]) -> Wish:
    settings = site.settings
    overrides = {name: extension.override for name, extension in settings.extensions.items() if extension.override}
    if settings.override:
        overrides["ckan:override"] = settings.override
    listed: dict[str, str] = {canonicalize_name(name): name for name in settings.extensions}
    for name, extension in settings.extensions.items():
        if extension.url and not extension.subdirectory:
            listed.setdefault(addresses.same_place(extension.url), name)
    return Wish(wanted(site, prepared), settings.packages, overrides, listed)


def noted(pin: Pin, item: Prepared) -> Pin:
    """
    Return a pin with what is known of its checkout: the subject of its commit, and what became of its patches.

    pin
        The pin.
    item
        What it is installed from.
    """
    return pin.with_(subject=item.subject, patches=item.patches) if pin.kind == "git" else pin


def _completed(site: Site, name: str, pin: Pin, item: Prepared, versions: Mapping[str, str]) -> Pin:
    extension = site.settings.extensions[name]
    if pin.kind != "git":
        return pin.with_(version=versions.get(canonicalize_name(name), ""))
    upstream = _upstream(extension, pin.commit, site.paths.shared) if extension.upstream else None
    return noted(pin, item).with_(upstream=upstream)


def _upstream(extension: Extension, commit: str, shared: str) -> dict[str, object]:
    """How far a fork is from its upstream. That one is only for comparison: a failure is noted, no more."""
    try:
        return repositories.compare_upstream(Origin.of(extension), commit, os.path.join(shared, "mirrors"))
    except FormulaError as exc:
        return {"url": extension.upstream, "problem": str(exc)}


def _at_once(names: Iterable[str], run: Callable[[str], T], alone: Collection[str] = ()) -> dict[str, T]:
    """Do something for each extension, several at once but for those ``alone``; all the failures in one error."""
    found: dict[str, T] = {}
    failures: dict[str, str] = {}

    def note(name: str, result: Callable[[], T]) -> None:
        try:
            found[name] = result()
        except FormulaError as exc:
            failures[name] = str(exc)

    for name in sorted(alone):
        note(name, functools.partial(run, name))
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        jobs = {name: pool.submit(run, name) for name in sorted(names) if name not in alone}
    for name, job in jobs.items():
        note(name, job.result)
    if failures:
        raise FormulaError("; ".join(failures[name] for name in sorted(failures)))
    return {name: found[name] for name in sorted(found)}
