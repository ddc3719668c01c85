"""
An extension from git in a release: its checkout under ``src``, and what only its build gives.

The checkout is what is imported, so that templates and public files that its packaging forgets are there. Of its wheel
a release takes the description, the entry points, the scripts, and the files that the build has made or changed.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import glob
import hashlib
import io
import json
import os
import re
import shutil
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from ckan_deploy.build import relocate, sharing, virtualenv, wheels
from ckan_deploy.errors import FormulaError, sentence
from ckan_deploy.system import files, reflink

# What of a wheel is installed: its description, and what goes elsewhere than onto the module path.
INSTALLED = re.compile(r"[^/]+\.dist-info/.+|[^/]+\.data/(scripts|data)/.+")
# What of that the checkout has anyway.
LICENCES = re.compile(r"[^/]+\.dist-info/licenses/")
# The parts of a wheel that stand for the module path by another name.
MODULES = re.compile(r"[^/]+\.data/(?:purelib|platlib)/(.+)")
# What nobody edits in a checkout, and most of its files: bytecode, schemas, archives, fonts, sources of styles, what is
# others' own, tests, what a project says of itself and of its packaging. Of `.git` what git replaces by a new file.
BULK = re.compile(
    r".*\.(pyc|so|map|xml|xsd|dtd|sch|xsl|xslt|woff2?|ttf|eot|otf|zip|gz|pdf|md|rst|pot|htm|less|scss)"
    r"|.*[.-]min\.(js|css)|(.*/)?(vendor|node_modules|tests?)/.+|(.*/)?(?i:[\w-]*(readme|version)\.txt)"
    r"|(.*/)?src/[^/]+/(\.(?!git/).+|(?!.*\.py$)[A-Z][\w.-]*|[\w-]*requirements[^/]*\.txt)"
    r"|(.*/)?src/[^/]+/(setup\.(py|cfg)|pyproject\.toml|.*-nspkg\.pth)"
    r"|(.*/)?\.git/(.*/)?(objects/.+|HEAD|ORIG_HEAD|index|packed-refs|info/refs)",
    re.DOTALL,
)
# What a wheel says of itself that is the same everywhere.
PLAIN = b"Wheel-Version: 1.0\nGenerator: ckan-formula\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
# What no portal imports, so it gets no bytecode.
UNUSED = rf"{relocate.UNUSED}|src/[^/]+/setup\.py$"
# Below a checkout's `.git`: what is known of it, what git did there, and what a build may have git run.
LEFT_OUT = ("ckan-notes.json", "logs", "hooks")


def make(checkout: str, wheel: str, name: str, subdirectory: str, python: str, shared: str) -> str:
    """
    Make the checkout of an extension ready for releases: with what its build has made, and with bytecode. The same for
    all releases, so it is made once, beside the wheel.

    checkout
        The directory of the checkout, which is root's own.
    wheel
        The wheel that was built of it.
    name
        The name of the extension: its directory under ``src``.
    subdirectory
        Where the package is in it, '' for its top.
    python
        The interpreter that its bytecode is for: one without packages.
    shared
        The directory ``paths:shared``, where it is written down what is shared.

    Returns the directory that has it under ``src``. Raises ``FormulaError``.
    """
    made = os.path.join(os.path.dirname(wheel), "ready", name)

    def filled() -> dict[str, str]:
        about = {"checkout": checkout, "wheel": wheel, "name": name, "subdirectory": subdirectory, "python": python}
        _make(made, about)
        sharing.note(shared, made)
        return about

    files.once(made, filled, sharing.READY)
    return made


def is_made(checkout: str, name: str) -> bool:
    """
    Say whether ``make`` has made a checkout ready before.

    checkout, name
        As for ``make``.
    """
    # One of which translations or the like are made is beside what is made of it: ``trees.built``.
    places = (f"{glob.escape(checkout)}.wheels/{inner}*/ready/{glob.escape(name)}" for inner in ("", "tree-*.wheels/"))
    return any(glob.glob(f"{place}/{sharing.READY}") for place in places)


def put(made: str, place: str, link: str = "auto") -> None:
    """
    Put a checkout into a release. People edit what is in a release, so it is a copy, but for what nobody edits
    (``BULK``): that is shared as files of layers are.

    made
        What ``make`` returned.
    place
        Where it goes: a directory that is not there, in one that is.
    link
        As for ``virtualenv.clone``.
    """
    name = os.path.basename(place)
    copier = _Copier(made, os.path.dirname(place), link)
    with files.usual_modes():
        copier.directory(os.path.join(made, "src", name), place, f"src/{name}")


def is_bulk(path: str) -> bool:
    """
    Say whether a file of a checkout is one that releases share.

    path
        Its path, as ``src/NAME/...``.
    """
    return bool(BULK.fullmatch(path))


def again(made: str, place: str) -> None:
    """
    Make anew what ``make`` has made once, in another place.

    made
        Its directory.
    place
        Where it goes: a directory that is not there.

    Raises ``FormulaError`` where the checkout or its wheel is gone.
    """
    try:
        _make(place, sharing.ready(made))
    except (OSError, KeyError, zipfile.BadZipFile) as exc:
        raise FormulaError(f"its checkout cannot be had again ({sentence(exc).rstrip('.')})") from exc


class _Copier:
    """Copies the files of a checkout into a release, and shares those that nobody edits."""

    def __init__(self, source: str, target: str, link: str) -> None:
        """``source`` and ``target`` are directories that exist; ``link`` is as for ``virtualenv.clone``."""
        self.reflink = link == "auto" and reflink.possible(source, target)
        self.link = link != "copy" and not self.reflink and os.stat(source).st_dev == os.stat(target).st_dev

    def directory(self, source: str, target: str, inner: str) -> None:
        """Copy a directory of root's own; ``inner`` is its path in the release."""
        os.mkdir(target, 0o755)
        with os.scandir(source) as entries:
            for entry in entries:
                new, path = f"{target}/{entry.name}", f"{inner}/{entry.name}"
                if entry.is_symlink():
                    os.symlink(os.readlink(entry.path), new)
                elif entry.is_dir(follow_symlinks=False):
                    self.directory(entry.path, new, path)
                elif entry.is_file(follow_symlinks=False):
                    self.file(entry, new, path)
        os.chmod(target, stat.S_IMODE(os.stat(source).st_mode))

    def file(self, entry: os.DirEntry[str], new: str, inner: str) -> None:
        """Copy or share a file."""
        if self.link and is_bulk(inner):
            # Of one that has too many links the next release gets a copy.
            with contextlib.suppress(OSError):
                os.link(entry.path, new)
                return
        # Without buffers: they are thousands of small files.
        with open(entry.path, "rb", buffering=0) as source, open(new, "xb", buffering=0) as target:
            if not (self.reflink and reflink.copy(source.fileno(), target.fileno())):
                shutil.copyfileobj(source, target)
            about = os.fstat(source.fileno())
            os.fchmod(target.fileno(), stat.S_IMODE(about.st_mode))
            # Python takes bytecode for stale otherwise.
            os.utime(target.fileno(), ns=(about.st_atime_ns, about.st_mtime_ns))


def _make(made: str, about: Mapping[str, str]) -> None:
    checkout, place = about["checkout"], os.path.join(made, "src", about["name"])
    os.makedirs(os.path.dirname(place))
    shutil.copytree(checkout, place, symlinks=True, ignore=_left_out(checkout))
    top = os.path.join(place, about["subdirectory"]) if about["subdirectory"] else place
    with zipfile.ZipFile(about["wheel"]) as archive:
        modules = _modules(archive)
        roots = _roots(top, modules)
        for module, name in sorted(modules.items()):
            _write(place, top, roots, module, archive.read(name))
    virtualenv.compile_with(about["python"], made, ["src"], skip=UNUSED)


def thin(checkout: str, wheel: str, name: str, subdirectory: str) -> str:
    """
    Return a wheel that, once installed into a release, makes the checkout in it importable. The same for all releases,
    so it is made once, beside the wheel.

    checkout, wheel, subdirectory
        As for ``put``.
    name
        The name of the extension: its directory under ``src``.

    Raises ``FormulaError``.
    """
    folder = os.path.join(os.path.dirname(wheel), "thin", name)
    made = glob.glob(f"{glob.escape(folder)}/*.whl")
    if len(made) == 1:
        return made[0]
    called, version, _ = wheels.read(wheel)
    plain = re.sub(r"[-_.]+", "_", called)
    path = os.path.join(folder, f"{plain}-{version}-py3-none-any.whl")
    if os.path.exists(path):
        return path
    with zipfile.ZipFile(wheel) as archive:
        roots = _roots(os.path.join(checkout, subdirectory) if subdirectory else checkout, _modules(archive))
        members = [name for name in _members(archive) if INSTALLED.fullmatch(name) and not LICENCES.match(name)]
        content = {member: archive.read(member) for member in members}
    # Relative to site-packages.
    lines = [os.path.normpath(os.path.join("../../../src", name, subdirectory, root)) for root in roots]
    content[f"__editable__.{plain}.pth"] = "".join(f"{line}\n" for line in lines).encode("utf-8")
    os.makedirs(folder, mode=0o755, exist_ok=True)
    with files.locked(os.path.join(folder, ".lock")):
        if not os.path.exists(path):
            write_wheel(path, content)
    return path


def tell(site_packages: str, wheel: str, place: str) -> None:
    """
    Write down with an installed package that it is the checkout in a release: https://peps.python.org/pep-0610

    site_packages
        The directory that it was installed into.
    wheel
        What ``thin`` returned.
    place
        The checkout, or the directory of the package in it.
    """
    info = "-".join(os.path.basename(wheel).split("-")[:2]) + ".dist-info"
    text = json.dumps({"url": f"file://{place}", "dir_info": {"editable": True}})
    files.write(os.path.join(site_packages, info, "direct_url.json"), text)


def _left_out(checkout: str) -> Callable[[str, list[str]], list[str]]:
    """For a copy of a checkout: leave out what is no business of a release, and no file of its own of that name."""
    own = os.path.join(checkout, ".git")

    def found(folder: str, names: list[str]) -> list[str]:
        if folder != own:
            return []
        empty = [name for name in names if name == "info" and not os.listdir(os.path.join(own, name))]
        return [*empty, *(name for name in names if name in LEFT_OUT)]

    return found


def _members(archive: zipfile.ZipFile) -> list[str]:
    return [name for name in archive.namelist() if not name.endswith("/")]


def _modules(archive: zipfile.ZipFile) -> dict[str, str]:
    """The members of a wheel that go onto the module path: what each is called there, and in the wheel."""
    members = [name for name in _members(archive) if not INSTALLED.fullmatch(name)]
    return {_module(name): name for name in members if _module(name)}


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
    for folder, folders, found_files in os.walk(top):
        folders[:] = [name for name in folders if name != ".git"]
        for file in found_files:
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


def write_wheel(path: str, content: dict[str, bytes]) -> None:
    """
    Write a wheel: https://packaging.python.org/specifications/binary-distribution-format

    Nobody else may write it meanwhile. What a killed run left of it is written over.

    path
        Its path.
    content
        Its members.
    """
    info = next(member.split("/")[0] for member in content if member.endswith(".dist-info/METADATA"))
    content[f"{info}/WHEEL"] = PLAIN
    content.pop(f"{info}/RECORD", None)
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    for member, data in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode("ascii")
        rows.writerow([member, f"sha256={digest}", len(data)])
    rows.writerow([f"{info}/RECORD", "", ""])
    content[f"{info}/RECORD"] = record.getvalue().encode("utf-8")
    draft = f"{path}.part"
    with zipfile.ZipFile(draft, "w") as archive:
        for member, data in content.items():
            # Of no time: the same on all hosts, whenever it is made.
            about = zipfile.ZipInfo(member)
            about.external_attr = 0o644 << 16
            archive.writestr(about, data)
    os.rename(draft, path)
