"""
What an extension's origin gives, whatever its kind: git, the package index, or an archive.

``resolve`` says what exactly is meant now, so that all hosts of a fleet can build the same: that is the *pin*.
``prepare`` brings it onto this host, patched and ready to be installed. The checkouts of git stand under
``shared/sources``, one for each origin, commit and set of patches: what was built from one is taken again from the
installer's cache by every later release.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pwd
import shutil
from pathlib import Path

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_origin"

REQUIREMENT_FILES = ("requirements.txt", "pip-requirements.txt", "requirements/base.txt")
# What is known of a checkout, kept with it: its commit's subject, and what became of its patches.
NOTES = ".git/ckan-notes.json"
PROJECT_FILES = ("pyproject.toml", "setup.py", "setup.cfg")


def __virtual__() -> str:
    return __virtualname__


def resolve(name: str, extension: dict, shared: str) -> dict:
    """
    Ask the origin of an extension what its ref stands for now, and read its patches.

    name
        The name of the extension.
    extension
        Its settings.
    shared
        The directory ``paths:shared``.

    Returns the pin: ``{"kind": "git", "url", "ref", "ref_kind", "commit", "patches": [{"patch", "sha256"}]}``,
    ``{"kind": "index", "asked"}`` or ``{"kind": "archive", "archive", "hash"}``. Nothing in it is secret.

    Raises ``CommandExecutionError`` that names the extension.

    CLI Example: not for the command line; use ``ckan_release.plan``.
    """
    try:
        if extension["kind"] == "index":
            return {"kind": "index", "asked": extension["version"]}
        if extension["kind"] == "archive":
            return {"kind": "archive", "archive": extension["archive"], "hash": extension["hash"]}
        got = __salt__["ckan_source.resolve"](extension, os.path.join(shared, "mirrors"))
        pin = {"kind": "git", "url": extension["url"], "ref": extension["ref"]}
        pin.update(ref_kind=got["kind"], commit=got["commit"], submodules=extension["submodules"])
        pin["patches"] = [
            {"patch": patch["patch"], "sha256": patch["sha256"]}
            for patch in __salt__["ckan_patch.read"](extension["patches"])
        ]
        return pin
    except CommandExecutionError as exc:
        raise CommandExecutionError(f"{name}: {exc}") from exc


def prepare(name: str, extension: dict, pin: dict, shared: str, user: str = "") -> dict:
    """
    Bring what a pin names onto this host, ready to be installed. What is there already is taken as it is.

    name
        The name of the extension.
    extension
        Its settings, with the keys and tokens that the origin asks for.
    pin
        What ``resolve`` gave, here or on another host.
    shared
        The directory ``paths:shared``.
    user
        Who will run its build code, and so must own the checkout; '' for whoever runs this.

    Returns ``{"name", "editable": directory, "files": [requirement files], "checkout": directory, "notes": {...}}`` for
    git, ``{"name", "requirement", "notes": {...}}`` for the others; ``notes`` is for the manifest.

    Raises ``CommandExecutionError`` that names the extension.

    CLI Example: not for the command line; use ``ckan_release.build``.
    """
    try:
        if pin["kind"] == "index":
            asked = pin["asked"]
            return {"name": name, "requirement": name + (asked if asked[0] in "<>=!~" else f"=={asked}"), "notes": {}}
        if pin["kind"] == "archive":
            folder = os.path.join(shared, "archives")
            file = __salt__["ckan_archive.fetch"](name, pin["archive"], pin["hash"], folder)
            __salt__["ckan_archive.check_members"](file)
            return {"name": name, "requirement": f"{name} @ file://{file}", "notes": {}}
        return _checkout(name, extension, pin, shared, user)
    except CommandExecutionError as exc:
        raise CommandExecutionError(f"{name}: {exc}") from exc


def place(pin: dict, shared: str) -> str:
    """
    Return the directory of the checkout that a pin of git names.

    pin
        What ``resolve`` gave.
    shared
        The directory ``paths:shared``.

    CLI Example: not for the command line.
    """
    origin = hashlib.sha256(pin["url"].encode("utf-8")).hexdigest()[:16]
    hashes = "".join(patch["sha256"] for patch in pin["patches"]) + ("" if pin["submodules"] else "bare")
    suffix = f"-{hashlib.sha256(hashes.encode('utf-8')).hexdigest()[:8]}" if hashes else ""
    return os.path.join(shared, "sources", origin, pin["commit"] + suffix)


def forget(pins: list[dict], shared: str) -> list[str]:
    """
    Remove the checkouts that no release names any more.

    pins
        The pins of all releases that are kept.
    shared
        The directory ``paths:shared``.

    Returns the paths removed. Mirrors and the installer's cache stay.

    CLI Example: not for the command line; ``ckan_release.prune`` calls it.
    """
    kept = {place(pin, shared) for pin in pins if pin.get("kind") == "git"}
    removed = []
    top = os.path.join(shared, "sources")
    for origin in sorted(os.listdir(top)) if os.path.isdir(top) else []:
        folder = os.path.join(top, origin)
        # Not under the feet of a build that is at work here.
        with _locked(os.path.join(folder, ".lock"), wait=False) as mine:
            for entry in sorted(os.listdir(folder)) if mine else []:
                path = os.path.join(folder, entry)
                if entry != ".lock" and path not in kept:
                    shutil.rmtree(path)
                    removed.append(path)
    return removed


def _checkout(name: str, extension: dict, pin: dict, shared: str, user: str) -> dict:
    target = place(pin, shared)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with _locked(os.path.join(os.path.dirname(target), ".lock")):
        if not os.path.isdir(target):
            _make(target, extension, pin, shared, user)
    package = os.path.join(target, extension["subdirectory"]) if extension["subdirectory"] else target
    if not any(os.path.isfile(os.path.join(package, file)) for file in PROJECT_FILES):
        where = extension["subdirectory"] or "its top directory"
        found = sorted(
            {str(path.parent.relative_to(target)) for file in PROJECT_FILES for path in Path(target).rglob(file)}
        )
        hint = f" (there is one in {', '.join(found[:3])}: set subdirectory)" if found else ""
        raise CommandExecutionError(
            f"{pin['url']} has no Python package in {where} at {pin['commit'][:12]}: neither pyproject.toml nor "
            f"setup.py{hint}; correct url, ref or subdirectory."
        )
    with open(f"{target}/{NOTES}", encoding="utf-8") as handle:
        notes = json.load(handle)
    return {
        "name": name, "editable": package, "checkout": target, "notes": notes,
        "files": _requirement_files(name, extension["requirements"], package, target),
    }  # fmt: skip


def _make(target: str, extension: dict, pin: dict, shared: str, user: str) -> None:
    """Make a checkout beside its place, patch it, and move it there: what is in the place is always whole."""
    draft = f"{target}.draft"
    shutil.rmtree(draft, ignore_errors=True)  # what a killed run left
    try:
        origin = {**extension, "url": pin["url"], "submodules": pin["submodules"]}
        got = __salt__["ckan_source.checkout"](origin, pin["commit"], draft, os.path.join(shared, "mirrors"))
        patches = __salt__["ckan_patch.read"]([patch["patch"] for patch in pin["patches"]])
        for patch, planned in zip(patches, pin["patches"], strict=True):
            if patch["sha256"] != planned["sha256"]:
                raise CommandExecutionError(f"{patch['patch']} was changed since the plan was made; deploy again.")
        patched = __salt__["ckan_patch.apply"](draft, patches)
        with open(f"{draft}/{NOTES}", "x", encoding="utf-8") as handle:
            json.dump({"subject": got["subject"], "patches": patched}, handle)
        if user and os.geteuid() == 0:
            entry = pwd.getpwnam(user)
            for folder, folders, files in os.walk(draft):
                for entry_name in [".", *folders, *files]:
                    path = os.path.join(folder, entry_name)
                    os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)
        os.rename(draft, target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _requirement_files(name: str, wanted: str, package: str, checkout: str) -> list[str]:
    if wanted == "none":
        return []
    names = REQUIREMENT_FILES if wanted == "auto" else (wanted,)
    for folder in (package, checkout):
        for file in names:
            path = os.path.join(folder, file)
            if os.path.isfile(path) and os.path.realpath(path).startswith(os.path.realpath(checkout) + "/"):
                return [path]
    if wanted != "auto":
        raise CommandExecutionError(f"there is no {wanted} in it; correct ckan:extensions:{name}:requirements.")
    return []


@contextlib.contextmanager
def _locked(path: str, wait: bool = True):
    with open(path, "w", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
