"""
What another environment has live, to be built here as it is: its commits, versions and hashes, with the settings, keys
and plugins of this host.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import evolve
from packaging.utils import canonicalize_name

from ckan_deploy.build import base, packages, plugins
from ckan_deploy.build.resolution import noted, prepare
from ckan_deploy.build.wheels import Builder
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.manifest import Base, Resolution
from ckan_deploy.releases.site import Site
from ckan_deploy.settings.parts import Extension
from ckan_deploy.sources import patches
from ckan_deploy.sources.pins import Pin
from ckan_deploy.system import files

# A refusal is for people: so many packages are named.
SHOWN = 5
KINDS = {"git": "git", "index": "the package index", "archive": "an archive"}


def refuse_differences(site: Site, given: Resolution) -> None:
    """
    Refuse a resolution that goes with other settings than those of this host. Nothing is fetched for it.

    site
        The site.
    given
        What the other environment has.

    Raises ``FormulaError`` with all that differs.
    """
    there, here = given.extensions, site.settings.extensions
    source = given.promoted.get("env", "the other environment")
    problems = [f"only {source} has {', '.join(sorted(there.keys() - here.keys()))}"] * bool(there.keys() - here.keys())
    problems += [f"{source} has no {', '.join(sorted(here.keys() - there.keys()))}"] * bool(here.keys() - there.keys())
    for name in sorted(there.keys() & here.keys()):
        problems += _differs(name, there[name], here[name], source)
    ours, theirs = list(site.settings.patches), [patch.patch for patch in given.patches]
    if ours != theirs:
        problems.append(f"the patches of CKAN are {_listed(theirs)} in {source} and {_listed(ours)} here")
    version = site.settings.base.version
    if version and version != given.base.ckan:
        problems.append(f"{source} has CKAN {given.base.ckan}, and ckan:base:version is {version} here")
    _refuse(problems, given)


def adopt(site: Site, given: Resolution) -> Resolution:
    """
    Bring all that a resolution of another environment names onto this host, with this host's own keys, and see that it
    goes with the base and the plugins here.

    site
        The site.
    given
        What the other environment has; ``refuse_differences`` had nothing against it.

    Returns it as this host builds it. Raises ``FormulaError`` for what cannot be had, or does not fit.
    """
    with files.usual_modes():
        found = base.ensure(site)
        had = packages.freeze(found.path)
        _refuse(_base_differs(found, had, given), given)
        for patch, planned in zip(patches.read(site.host, site.settings.patches), given.patches, strict=True):
            if patch.sha256 != planned.sha256:
                _refuse([f"{patch.patch} is another one than when that release was built"], given)
        pins = {name: _own(pin, site.settings.extensions[name]) for name, pin in given.extensions.items()}
        prepared = prepare(site, pins, Builder.of(site, found.path))
        if "ckan.plugins" not in site.settings.config:  # which wins over ckan:plugins
            new = {name: version for name, version in given.packages.items() if had.get(name) != version}
            plugins.check(site.settings.plugins, found.path, prepared, new, site.settings.installer.find_links)
    return evolve(
        given,
        base=Base(found.ckan, found.python),
        extensions={name: noted(pin, prepared[name]) for name, pin in pins.items()},
    )


def other_origins(site: Site, given: Resolution) -> list[str]:
    """
    Say which extensions have another address in this host's pillar. A commit is fetched from the one here; an archive,
    whose hash is known, from the one there.

    site, given
        As for ``refuse_differences``.

    Returns a list of sentences without full stop.
    """
    said = []
    for name, pin in sorted(given.extensions.items()):
        here = site.settings.extensions[name]
        if pin.url and pin.url != here.url:
            said.append(f"{name} is fetched from {here.url}, and was from {pin.url}")
        if pin.archive and pin.archive != here.archive:
            said.append(f"{name} is {pin.archive}, and the pillar here has {here.archive}")
    return said


def _own(pin: Pin, here: Extension) -> Pin:
    """The pin as this host fetches it: a commit is the same wherever it comes from, so this host's origin is asked."""
    return pin.with_(moved_from="", url=here.url) if pin.kind == "git" else pin


def _differs(name: str, there: Pin, here: Extension, source: str) -> list[str]:
    """What of an extension is decided by settings, and is otherwise there than here."""
    if there.kind != here.kind:
        return [f"{name} comes from {KINDS[there.kind]} in {source} and from {KINDS[here.kind]} here"]
    problems = []
    theirs, ours = [patch.patch for patch in there.patches], list(here.patches)
    if there.kind == "git" and theirs != ours:
        problems.append(f"the patches of {name} are {_listed(theirs)} in {source} and {_listed(ours)} here")
    if there.kind == "git" and there.build != here.build:
        problems.append(
            f"the build of {name} is {_listed(list(there.build))} in {source} and {_listed(list(here.build))} here"
        )
    if there.kind == "git" and there.submodules != here.submodules:
        problems.append(f"{name} has submodules: {str(there.submodules).lower()} in {source} only")
    return problems


def _base_differs(found: Base, had: Mapping[str, str], given: Resolution) -> list[str]:
    """How this host's base is another one; libraries that an extension overrides are not the base's."""
    there = given.base
    if (found.ckan, found.python) != (there.ckan, there.python):
        return [
            f"it has CKAN {there.ckan} on Python {there.python}, and the base here ({found.path}) is CKAN {found.ckan} "
            f"on Python {found.python}"
        ]
    ours = {canonicalize_name(name) for name in (*given.extensions, *given.overridden)}
    other = [
        f"{name} {given.packages[name]} in place of {version}"
        for name, version in sorted(had.items())
        if name in given.packages and given.packages[name] != version and canonicalize_name(name) not in ours
    ]
    if not other:
        return []
    more = f" and {len(other) - SHOWN} more" if len(other) > SHOWN else ""
    return [f"its base has {', '.join(other[:SHOWN])}{more}"]


def _refuse(problems: list[str], given: Resolution) -> None:
    if problems:
        what = given.origin or "the release"
        raise FormulaError(f"{what} cannot be built here: {'; '.join(problems)}; make the pillars alike.")


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"
