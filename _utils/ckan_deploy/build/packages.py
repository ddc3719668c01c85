"""
Packages of a virtualenv: what is in it, and bringing it to what a lock file says.

What comes out of a resolution (see ``locking``) is installed as it is on every host. Nothing here knows of releases.
"""

from __future__ import annotations

import functools
import glob
import importlib.metadata
import json
import os
import re
from collections.abc import Iterable, Mapping

from attrs import evolve, frozen
from packaging import tags
from packaging.utils import canonicalize_name, parse_wheel_filename

from ckan_deploy.build import addresses, virtualenv
from ckan_deploy.build import installer as installers
from ckan_deploy.build.wheels import Builder
from ckan_deploy.errors import FormulaError
from ckan_deploy.sources import archives, pylock
from ckan_deploy.sources.pylock import File, Locked
from ckan_deploy.system import files


@frozen
class Wanted:
    """
    What is to be installed: a ``requirement``; for a ``checkout`` a wheel that was built of it, and the requirement
    ``files`` that go with it.
    """

    name: str
    requirement: str = ""
    checkout: str = ""
    files: tuple[str, ...] = ()

    @property
    def archive(self) -> str:
        """The path of the wheel that the requirement names, '' for one of the package index."""
        return self.requirement.partition(" @ file://")[2]


def freeze(path: str) -> dict[str, str]:
    """
    Return the packages of a virtualenv, ``{name: version}``, with normalised names in order.

    Read from the packages' metadata; no interpreter is started.

    path
        Absolute path of the virtualenv.

    Raises ``FormulaError`` where there is none.
    """
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions(path=_folders(path)):
        name, version = distribution.metadata["Name"], distribution.metadata["Version"]
        if name and version:
            found.setdefault(canonicalize_name(name), version)
    return dict(sorted(found.items()))


def version(path: str, name: str) -> str:
    """
    Return the version of one package of a virtualenv, '' where it is not there.

    path
        Absolute path of the virtualenv.
    name
        The normalised name of the package.
    """
    found = importlib.metadata.distributions(name=name, path=_folders(path))
    return next((distribution.metadata["Version"] for distribution in found), "")


def install(path: str, wanted: Iterable[Wanted], builder: Builder) -> None:
    """
    Install what is wanted, and resolve freely, as for a new base.

    path
        The virtualenv.
    wanted
        What is wanted.
    builder
        Builds what has no wheel.

    Raises ``FormulaError`` with what the installer says.
    """
    lines = [item.requirement for item in sorted(wanted, key=lambda item: item.name)]
    try:
        builder.with_wheels(lambda: installers.install(path, lines, builder.installer))
    except FormulaError as exc:
        raise FormulaError(f"the packages could not be installed: {exc}") from exc


def install_locked(
    path: str, wanted: Iterable[Wanted], lock: str, versions: Mapping[str, str], builder: Builder
) -> None:
    """
    Bring a virtualenv to what was decided: install the wheels of the extensions, and what the lock file names and the
    virtualenv lacks.

    path
        The virtualenv.
    wanted
        The extensions.
    lock
        The text of the lock file.
    versions
        ``{name: version}`` of all that there is to be. What the lock file does not name and the virtualenv has in
        another version is installed in that one: its base is another one than that of the host of the plan.
    builder
        Builds what has no wheel.

    Raises ``FormulaError`` that says what cannot be met.
    """
    entries = pylock.loads(lock)
    # Where there is nothing but extensions, nobody has to look.
    have = freeze(path) if entries or versions else {}
    extensions = [_extension(item) for item in wanted if item.archive]
    python = virtualenv.interpreter(path)["version"]
    try:
        needed = [item for item in entries if item.by_address or have.get(item.name) != item.version]
        items = [_here(item, python, builder) for item in needed]
        installers.install_locked(path, [*extensions, *items], builder.installer)
        known = {item.name for item in [*entries, *extensions]}
        rest = [f"{name}=={version}" for name, version in sorted(versions.items()) if name not in known]
        rest = [line for line in rest if have.get(line.partition("==")[0]) != line.partition("==")[2]]
        if rest:
            builder.with_wheels(lambda: installers.install(path, rest, builder.installer, no_deps=True))
    except FormulaError as exc:
        raise FormulaError(f"the packages could not be installed: {exc}") from exc
    for item in needed:
        _tell_origin(path, item)


def check(path: str, builder: Builder, tolerate: Iterable[str] = ()) -> bool:
    """
    Return True when every package's declared dependencies are there in a fitting version.

    path
        Absolute path of the virtualenv.
    builder
        Says how it is asked.
    tolerate
        Libraries that were overridden: whoever declares another version of one of them is overruled.

    Raises ``FormulaError`` with the packages that do not fit.
    """
    names = {canonicalize_name(name) for name in tolerate}
    found = [
        line
        for line in installers.check(path, builder.installer, builder.sandbox)
        if not names & {canonicalize_name(word) for word in re.findall(r"[\w.-]+", line)[3:]}
    ]
    if found:
        raise FormulaError(f"the packages do not fit together: {' '.join(found[:10])}; change the versions asked for.")
    return True


def _folders(path: str) -> list[str]:
    """The directories of a virtualenv that packages have their metadata in."""
    folders = sorted(glob.glob(f"{glob.escape(path)}/lib/*/site-packages"))
    if not folders:
        raise FormulaError(f"{path} holds no lib/python*/site-packages; name a virtualenv, or create it first.")
    # A package installed by the old "setup.py develop" keeps its metadata in the checkout that an egg-link names.
    for link in [name for folder in folders for name in glob.glob(f"{glob.escape(folder)}/*.egg-link")]:
        with open(link, encoding="utf-8") as handle:
            folders.append(handle.readline().strip())
    return folders


def _extension(item: Wanted) -> Locked:
    name, version = parse_wheel_filename(os.path.basename(item.archive))[:2]
    return _of_path(Locked(name, str(version)), item.archive)


def _of_path(item: Locked, path: str) -> Locked:
    """An entry that is installed from a file of this host, whatever the virtualenv has."""
    file = File(path=path, hashes={"sha256": archives.digest(path)})
    return Locked(item.name, item.version, archive=file)


def _here(item: Locked, python: str, builder: Builder) -> Locked:
    """An entry as this host installs it: the wheel that fits, or one that is made here of the sources."""
    fitting = tuple(file for file in item.wheels if _fits(file.name, python))
    if fitting:
        return evolve(item, wheels=fitting, sdist=None)
    if item.wheels and not item.sdist:
        raise FormulaError(
            f"the lock file names wheels of {item.name} {item.version} for another platform or Python alone "
            f"({item.wheels[0].name}); make the hosts alike, or put a wheel for this one where packages come from."
        )
    try:
        wheel = addresses.wheel_of(item, builder)
    except FormulaError as exc:
        raise FormulaError(f"{item.name} {item.version}: {exc}") from exc
    if item.by_address:
        return _of_path(item, wheel)
    return Locked(item.name, item.version, (File(path=wheel, hashes={"sha256": archives.digest(wheel)}),))


def _fits(wheel: str, python: str) -> bool:
    """Whether a wheel is for a Python on this machine."""
    return not parse_wheel_filename(wheel)[3].isdisjoint(_supported(python))


@functools.cache
def _supported(python: str) -> frozenset[tags.Tag]:
    version = [int(part) for part in python.split(".")[:2]]
    mine = f"cp{version[0]}{version[1]}"
    # Not of the Python that runs this, which may be Salt's own.
    return frozenset([*tags.cpython_tags(version, abis=[mine]), *tags.compatible_tags(version, mine)])


def _tell_origin(path: str, item: Locked) -> None:
    """Write down with a package where it is from, instead of its place here: https://peps.python.org/pep-0610"""
    if not item.by_address:
        return
    if item.archive:
        about = {"url": item.archive.url, "archive_info": {"hashes": dict(item.archive.hashes)}}
    else:
        vcs = {"vcs": "git", "requested_revision": item.ref, "commit_id": item.commit}
        about = {"url": item.url, "vcs_info": vcs}
    if item.subdirectory:
        about["subdirectory"] = item.subdirectory
    for folder in virtualenv.site_packages(path):
        for info in glob.glob(f"{glob.escape(folder)}/*.dist-info"):
            if canonicalize_name(os.path.basename(info).split("-")[0]) == item.name:
                files.write(os.path.join(info, "direct_url.json"), json.dumps(about))
