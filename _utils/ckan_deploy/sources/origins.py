"""
What an extension's origin gives, whatever its kind: git, the package index, or an archive.

``resolve`` says what exactly is meant now, so that all hosts of a fleet can build the same: that is the *pin*.
``prepare`` brings it onto this host, patched and ready to be built. The checkouts of git stand under
``shared/sources``, one for each origin, commit, set of patches and tags, and belong to root: what is built of one, by
copies of it, stands beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from attrs import frozen

from ckan_deploy.errors import FormulaError
from ckan_deploy.host import Host
from ckan_deploy.settings.parts import Extension
from ckan_deploy.sources import archives, patches, repositories, tags
from ckan_deploy.sources.git import Origin
from ckan_deploy.sources.pins import Patch, Pin
from ckan_deploy.system import files

REQUIREMENT_FILES = ("requirements.txt", "pip-requirements.txt", "requirements/base.txt")
# What is known of a checkout, kept with it: its commit's subject, and what became of its patches.
NOTES = ".git/ckan-notes.json"
# Behind the name of a checkout that is being removed.
GONE = ".gone"
# Our names: what else stands there is somebody else's.
_ORIGIN = re.compile(r"[0-9a-f]{16}")
_ENTRY = re.compile(rf"[0-9a-f]{{40}}(-[0-9a-f]{{8}})?(\.draft|\.wheels)?({re.escape(GONE)})?")
PROJECT_FILES = ("pyproject.toml", "setup.py", "setup.cfg")


@frozen
class Prepared:
    """
    What an extension is made from on this host: a ``checkout`` (with its package in ``subdirectory``, and requirement
    ``files``), or a ``requirement``. ``subject`` and ``patches`` are what is known of a checkout; ``ready`` is the
    directory that has it as releases get it.
    """

    name: str
    checkout: str = ""
    subdirectory: str = ""
    files: tuple[str, ...] = ()
    requirement: str = ""
    subject: str = ""
    patches: tuple[Patch, ...] = ()
    ready: str = ""

    @property
    def archive(self) -> str:
        """The path of the wheel or sdist that the requirement names, '' for one of the package index."""
        return self.requirement.partition(" @ file://")[2]


def resolve(host: Host, name: str, extension: Extension, shared: str) -> Pin:
    """
    Ask the origin of an extension what its ref stands for now, and read its patches.

    host
        The host, which fetches patches.
    name
        The name of the extension.
    extension
        Its settings.
    shared
        The directory ``paths:shared``.

    Raises ``FormulaError`` that names the extension.
    """
    try:
        if extension.kind == "index":
            return Pin("index", asked=extension.version)
        if extension.kind == "archive":
            return Pin("archive", archive=extension.archive, hash=extension.hash)
        origin, mirrors = Origin.of(extension), os.path.join(shared, "mirrors")
        got = repositories.resolve(origin, mirrors)
        read = patches.read(host, extension.patches)
        return Pin(
            "git", url=extension.url, ref=extension.ref, ref_kind=got.kind, commit=got.commit,
            submodules=extension.submodules, patches=tuple(Patch(patch.patch, patch.sha256) for patch in read),
            tags=tags.known(origin, got.commit, extension.subdirectory, mirrors), build=extension.build,
        )  # fmt: skip
    except FormulaError as exc:
        raise FormulaError(f"{name}: {exc}") from exc


def prepare(host: Host, name: str, extension: Extension, pin: Pin, shared: str) -> Prepared:
    """
    Bring what a pin names onto this host, ready to be built. What is there already is taken as it is.

    host
        The host, which fetches patches and archives.
    name
        The name of the extension.
    extension
        Its settings, with the keys and tokens that the origin asks for.
    pin
        What ``resolve`` gave, here or on another host.
    shared
        The directory ``paths:shared``.

    Raises ``FormulaError`` that names the extension.
    """
    try:
        if pin.kind == "index":
            asked = pin.asked
            return Prepared(name, requirement=name + (asked if asked[0] in "<>=!~" else f"=={asked}"))
        if pin.kind == "archive":
            file = archives.fetch(host, name, pin.archive, pin.hash, os.path.join(shared, "archives"))
            archives.check_members(file)
            return Prepared(name, requirement=f"{name} @ file://{file}")
        return _checkout(host, name, extension, pin, shared)
    except FormulaError as exc:
        raise FormulaError(f"{name}: {exc}") from exc


def library(pin: Pin, shared: str) -> str:
    """
    Bring the checkout of a library that is required by an address of git onto this host, unless it is there.

    pin
        What it is pinned to.
    shared
        The directory ``paths:shared``.

    Returns its directory. Raises ``FormulaError``.
    """
    return _checked_out(None, Origin(pin.url), pin, shared)


def place(pin: Pin, shared: str) -> str:
    """
    Return the directory of the checkout that a pin of git names.

    pin
        What ``resolve`` gave.
    shared
        The directory ``paths:shared``.
    """
    origin = hashlib.sha256(pin.url.encode("utf-8")).hexdigest()[:16]
    hashes = "".join(patch.sha256 for patch in pin.patches) + ("" if pin.submodules else "bare") + pin.tags
    suffix = f"-{hashlib.sha256(hashes.encode('utf-8')).hexdigest()[:8]}" if hashes else ""
    return os.path.join(shared, "sources", origin, pin.commit + suffix)


def is_there(pin: Pin, shared: str) -> bool:
    """
    Say whether the checkout that a pin of git names is there, whole.

    pin, shared
        As for ``place``.
    """
    if pin.kind != "git":
        return False
    target = place(pin, shared)
    # One of another user is of an earlier version of the formula, which let build code write here. Its notes are last.
    return os.path.isfile(os.path.join(target, NOTES)) and os.lstat(target).st_uid == os.geteuid()


def forget(pins: Iterable[Pin], shared: str) -> list[str]:
    """
    Remove the checkouts that no release names any more.

    pins
        The pins of all releases that are kept.
    shared
        The directory ``paths:shared``.

    Returns the paths removed. Mirrors and the installer's cache stay. Raises ``FormulaError``, when all the rest is
    done, for what cannot be removed.
    """
    kept = {place(pin, shared) for pin in pins if pin.kind == "git"}
    removed, problems = [], []
    top = os.path.join(shared, "sources")
    for folder in files.matching(top, _ORIGIN):
        # Not under the feet of a build that is at work here.
        with files.locked(os.path.join(folder, ".lock"), wait=False) as mine:
            for path in files.matching(folder, _ENTRY) if mine else []:
                if path.removesuffix(".wheels") not in kept:
                    # Out of its place first: one that is removed in part must not be taken for a checkout.
                    gone = path if path.endswith(GONE) else path + GONE
                    try:
                        if gone != path:
                            shutil.rmtree(gone, ignore_errors=True)
                            os.rename(path, gone)
                        shutil.rmtree(gone)
                        removed.append(path)
                    except OSError as exc:  # the others go all the same
                        problems.append(f"{gone} cannot be removed ({exc.strerror}: {exc.filename})")
    if problems:
        raise FormulaError("; ".join(problems))
    return removed


def _checkout(host: Host, name: str, extension: Extension, pin: Pin, shared: str) -> Prepared:
    target = _checked_out(host, Origin.of(extension).at(pin.url, pin.submodules), pin, shared)
    package = os.path.join(target, extension.subdirectory) if extension.subdirectory else target
    if not any(os.path.isfile(os.path.join(package, file)) for file in PROJECT_FILES):
        raise FormulaError(_no_package(target, extension, pin))
    with open(f"{target}/{NOTES}", encoding="utf-8") as handle:
        notes = json.load(handle)
    return Prepared(
        name,
        checkout=target,
        subdirectory=extension.subdirectory,
        files=_requirement_files(name, extension.requirements, package, target),
        subject=notes["subject"],
        patches=tuple(map(Patch.of, notes["patches"])),
    )


def _checked_out(host: Host | None, origin: Origin, pin: Pin, shared: str) -> str:
    target = place(pin, shared)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with files.locked(os.path.join(os.path.dirname(target), ".lock")):
        if not is_there(pin, shared):
            shutil.rmtree(target, ignore_errors=True)
            _make(host, target, origin, pin, shared)
    return target


def _no_package(target: str, extension: Extension, pin: Pin) -> str:
    """Say that a checkout has no Python package where the settings say, and where there is one."""
    where = extension.subdirectory or "its top directory"
    found = sorted(
        {str(path.parent.relative_to(target)) for file in PROJECT_FILES for path in Path(target).rglob(file)}
    )
    hint = f" (there is one in {', '.join(found[:3])}: set subdirectory)" if found else ""
    return (
        f"{pin.url} has no Python package in {where} at {pin.commit[:12]}: neither pyproject.toml nor "
        f"setup.py{hint}; correct url, ref or subdirectory."
    )


def _make(host: Host | None, target: str, origin: Origin, pin: Pin, shared: str) -> None:
    """Make a checkout beside its place, patch it, and move it there: what is in the place is always whole."""
    draft = f"{target}.draft"
    shutil.rmtree(draft, ignore_errors=True)  # what a killed run left
    try:
        mirrors = os.path.join(shared, "mirrors")
        if pin.tags:
            tags.follow(origin, pin.commit, pin.tags, mirrors)
        got = repositories.checkout(origin, pin.commit, draft, mirrors)
        patched = _patched(host, draft, pin) if host else []
        with open(f"{draft}/{NOTES}", "x", encoding="utf-8") as handle:
            json.dump({"subject": got.subject, "patches": [patch.to_json() for patch in patched]}, handle)
        files.sync_tree(draft)
        os.rename(draft, target)
        files.sync_directory(os.path.dirname(target))
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _patched(host: Host, draft: str, pin: Pin) -> list[Patch]:
    read = patches.read(host, [patch.patch for patch in pin.patches])
    for patch, planned in zip(read, pin.patches, strict=True):
        if patch.sha256 != planned.sha256:
            raise FormulaError(f"{patch.patch} was changed since the plan was made; deploy again.")
    return list(patches.apply(host, draft, read))


def _requirement_files(name: str, wanted: str, package: str, checkout: str) -> tuple[str, ...]:
    if wanted == "none":
        return ()
    names = REQUIREMENT_FILES if wanted == "auto" else (wanted,)
    for folder in (package, checkout):
        for file in names:
            path = os.path.join(folder, file)
            if os.path.isfile(path) and os.path.realpath(path).startswith(os.path.realpath(checkout) + "/"):
                return (path,)
    if wanted != "auto":
        raise FormulaError(f"there is no {wanted} in it; correct ckan:extensions:{name}:requirements.")
    return ()
