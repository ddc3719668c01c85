"""
An extension from git in a release: its checkout under ``src``, and what only its build gives.

The checkout is what is imported, so that templates and public files that its packaging forgets are there. Of its wheel
a release takes the description, the entry points, the scripts, and the files that the build has made or changed.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping

from ckan_deploy.build import wheels
from ckan_deploy.errors import FormulaError

# What of a wheel is installed: its description, and what goes elsewhere than onto the module path.
INSTALLED = re.compile(r"[^/]+\.dist-info/.+|[^/]+\.data/(scripts|data)/.+")
# The parts of a wheel that stand for the module path by another name.
MODULES = re.compile(r"[^/]+\.data/(?:purelib|platlib)/(.+)")
# What a wheel says of itself that is the same everywhere.
PLAIN = b"Wheel-Version: 1.0\nGenerator: ckan-formula\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
# Of git, in a checkout: what is known of it, which is no business of a release.
NOT_OURS = ("ckan-notes.json",)


def put(checkout: str, wheel: str, place: str, subdirectory: str, folder: str) -> str:
    """
    Put the checkout of an extension into a release, with what its build has made.

    checkout
        The directory of the checkout, which is root's own.
    wheel
        The wheel that was built of it.
    place
        Where it goes: a directory that is not there.
    subdirectory
        Where the package is in it, '' for its top.
    folder
        A directory for the wheel that is returned.

    Returns the path of a wheel that, once installed, makes the checkout importable. Raises ``FormulaError``.
    """
    shutil.copytree(checkout, place, symlinks=True, ignore=shutil.ignore_patterns(*NOT_OURS))
    top = os.path.join(place, subdirectory) if subdirectory else place
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        modules = {_module(name): name for name in names if not INSTALLED.fullmatch(name) and _module(name)}
        roots = _roots(top, modules)
        for module, name in sorted(modules.items()):
            _write(place, top, roots, module, archive.read(name))
        kept = {name: archive.read(name) for name in names if INSTALLED.fullmatch(name)}
    return _thin(wheel, kept, [os.path.normpath(os.path.join(top, root)) for root in roots], folder)


def _module(name: str) -> str:
    """What a member of a wheel is called on the module path, '' for what does not go there."""
    match = MODULES.fullmatch(name)
    return match[1] if match else "" if re.match(r"[^/]+\.data/", name) else name


def _roots(top: str, modules: Iterable[str]) -> list[str]:
    """
    The directories of a checkout that its modules are imported from, below its top: '' or ``src`` mostly. The one that
    has most of them goes first.
    """
    places: dict[str, list[str]] = {}
    for folder, folders, files in os.walk(top):
        folders[:] = [name for name in folders if name != ".git"]
        for file in files:
            if file.endswith(".py"):
                places.setdefault(file, []).append(os.path.relpath(folder, top))
    found: Counter[str] = Counter()
    for module in (name for name in modules if name.endswith(".py")):
        inner, file = os.path.split(module)
        here = [place for place in places.get(file, []) if place == (inner or ".") or place.endswith(f"/{inner}")]
        if inner and here:
            nearest = min(here, key=len)
            found[nearest[: len(nearest) - len(inner)].rstrip("/")] += 1
        elif here:
            found["" if min(here, key=len) == "." else min(here, key=len)] += 1
    return [root for root, _ in found.most_common()] or [""]


def _write(place: str, top: str, roots: Iterable[str], module: str, data: bytes) -> None:
    """Write a file of a wheel that the checkout does not have, or has otherwise."""
    paths = [os.path.join(top, root, module) for root in roots]
    path = next((found for found in paths if os.path.lexists(found)), paths[0])
    parent = os.path.dirname(path)
    # A link in the checkout may lead anywhere; nothing is written over one.
    if not f"{os.path.realpath(parent)}/".startswith(f"{os.path.realpath(place)}/"):
        raise FormulaError(f"its wheel has {module}, which leads out of its checkout over a link; correct it.")
    if os.path.islink(path):
        return
    if os.path.isfile(path):
        with open(path, "rb") as handle:
            if handle.read() == data:
                return
        os.unlink(path)
    os.makedirs(parent, mode=0o755, exist_ok=True)
    with open(path, "xb") as handle:
        handle.write(data)
    os.chmod(path, 0o755 if ".so" in os.path.basename(path) else 0o644)


def _thin(wheel: str, kept: Mapping[str, bytes], roots: Iterable[str], folder: str) -> str:
    """Make the wheel that is installed: https://packaging.python.org/specifications/binary-distribution-format"""
    name, version, _ = wheels.read(wheel)
    plain = re.sub(r"[-_.]+", "_", name)
    info = next(member.split("/")[0] for member in kept if member.endswith(".dist-info/METADATA"))
    content = dict(kept)
    content[f"__editable__.{plain}.pth"] = "".join(f"{root}\n" for root in roots).encode("utf-8")
    content[f"{info}/WHEEL"] = PLAIN
    content.pop(f"{info}/RECORD", None)
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    for member, data in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode("ascii")
        rows.writerow([member, f"sha256={digest}", len(data)])
    rows.writerow([f"{info}/RECORD", "", ""])
    content[f"{info}/RECORD"] = record.getvalue().encode("utf-8")
    path = os.path.join(folder, f"{plain}-{version}-py3-none-any.whl")
    with zipfile.ZipFile(path, "x") as archive:
        for member, data in content.items():
            archive.writestr(member, data)
    return path
