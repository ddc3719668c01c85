"""
What releases share by hard links, as it was installed: files of the base, of layers, and of checkouts.

A shared file has one content, so whoever edits it in one release edits it in all of them, and in those to come. Files
are written down when they are installed: inode, size, times and number of links. A comparison reads no content but
that of files that look otherwise, which is held against the ``RECORD`` of the package that brought them.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import glob
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from attrs import define, frozen

from ckan_deploy.build import relocate
from ckan_deploy.releases.site import Site
from ckan_deploy.system import files

log = logging.getLogger(__name__)

# Of a file: its inode (0 for one that no clone shares), size, time of its content, time of any change, number of links.
Seen = list[int]
# How many files a sentence names.
NAMED = 3
# The marks of bases, layers and checkouts that are finished.
MARKS = ".ckan-*.json"
READY = ".ckan-ready.json"


@frozen
class Installed:
    """What a package says of a file that it brought: the digest of its content, and the package's name and version."""

    digest: str
    name: str
    version: str


@frozen
class Changed:
    """
    A file of a shared tree that is not as it was installed. ``inode`` is what it is now, 0 where it is gone, and
    ``shared`` what others may have in its place as well.
    """

    tree: str
    path: str
    inode: int
    was: Seen
    package: Installed | None


@define
class Packages:
    """What the packages of a virtualenv say of their files, read when it is first asked for."""

    tree: str

    @cached_property
    def files(self) -> dict[str, Installed]:
        """By the path in the virtualenv; files of which no digest is known are left out."""
        found: dict[str, Installed] = {}
        for record in glob.glob(f"{glob.escape(self.tree)}/lib/python*/site-packages/*.dist-info/RECORD"):
            info = os.path.dirname(record)
            name, _, version = os.path.basename(info).removesuffix(".dist-info").partition("-")
            with (
                contextlib.suppress(OSError, ValueError, csv.Error),
                open(record, encoding="utf-8", newline="") as handle,
            ):
                for row in csv.reader(handle):
                    if len(row) > 1 and row[1].startswith("sha256="):
                        place = os.path.relpath(
                            os.path.normpath(os.path.join(os.path.dirname(info), row[0])), self.tree
                        )
                        found[place] = Installed(row[1].removeprefix("sha256="), name, version)
        return found

    def installed(self, path: str) -> Installed | None:
        """
        Return what is known of a file. A script names the place of its virtualenv, so it is never as its package says.

        path
            The path in the virtualenv.
        """
        return None if path.startswith("bin/") else self.files.get(path)

    def brought(self, path: str) -> bool:
        """
        Say whether a file is as its package says; False as well where nothing is known of it.

        path
            The path in the virtualenv.
        """
        package = self.installed(path)
        return package is not None and package.digest == digest(os.path.join(self.tree, path))


def ready(tree: str) -> dict[str, str]:
    """
    Return what a checkout was made ready from, as its mark says; empty for a virtualenv.

    tree
        The directory that was written down.
    """
    found: dict[str, str] = json.loads(files.read(os.path.join(tree, READY), "{}"))
    return found


def digest(path: str) -> str:
    """
    Return the digest of a file as ``RECORD`` has it, '' where it cannot be read.

    path
        The file.
    """
    try:
        with open(path, "rb") as handle:
            return base64.urlsafe_b64encode(hashlib.sha256(handle.read()).digest()).rstrip(b"=").decode("ascii")
    except OSError:
        return ""


def note(shared: str, tree: str) -> None:
    """
    Write down the files of a tree as they are now: it was just installed, or somebody wants it as it is.

    shared
        The directory ``paths:shared``.
    tree
        The virtualenv.
    """
    with _held(shared, tree) as file:
        _write(file, tree, _look(tree))


def check(shared: str, tree: str) -> list[Changed]:
    """
    Compare the files of a tree with what was written down; the first time nothing was, and it is now.

    Files that packages were installed over are as they should be, and so are those whose links alone have changed: all
    that is remembered, so that they are compared once.

    shared, tree
        As for ``note``.

    Returns what is not as it was installed.
    """
    return _checked(shared, tree)[0]


def identity(shared: str, tree: str) -> str:
    """
    Return what tells a tree from another one, and from what it was before: a digest of paths, sizes and times. Bytecode
    does not count.

    shared, tree
        As for ``note``.
    """
    there = _checked(shared, tree)[1]
    lines = (f"{path} {seen[1]} {seen[2]}\n" for path, seen in sorted(there.items()) if "/__pycache__/" not in path)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def trees(site: Site) -> list[str]:
    """
    Return the virtualenvs that releases share files with, as far as they are there: those that were written down.

    site
        The site.
    """
    return sorted(tree for _, tree in _noted(site.paths.shared) if _is_whole(site.paths.shared, tree))


def changed(site: Site) -> list[Changed]:
    """
    Return all files of shared trees that are not as they were installed.

    site
        The site.
    """
    return [item for tree in trees(site) for item in check(site.paths.shared, tree)]


def problem(site: Site) -> str:
    """
    Say which shared files are not as they were installed, which releases share them, and what to type; '' for none.

    site
        The site.
    """
    found = changed(site)
    if not found:
        return ""
    paths = sorted({item.path: _shown(item) for item in found}.values())
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    where = sorted({item.tree for item in found})
    releases = sorted({release for item in found for release in releases_with(site, item)})
    if releases:
        where.append(f"the release{'s' if len(releases) > 1 else ''} {' and '.join(releases)}")
    return (
        f"{', '.join(paths[:NAMED])}{more} {'is' if len(paths) == 1 else 'are'} not as installed: {', '.join(where)}, "
        "and a new release would be so, too; bring back what was installed with: ckan_release.repair (the current "
        "release keeps what it has), or keep the change for all with: ckan_release.repair accept=True"
    )


def releases_with(site: Site, item: Changed) -> list[str]:
    """
    Return the releases that share a changed file.

    site
        The site.
    item
        The file.
    """
    found = []
    for manifest in site.releases.manifests():
        with contextlib.suppress(OSError):
            if os.lstat(os.path.join(site.releases.directory(manifest.id), item.path)).st_ino == item.inode:
                found.append(manifest.id)
    return found


def forget(shared: str) -> None:
    """
    Remove what was written down of trees that are gone.

    shared
        The directory ``paths:shared``.
    """
    for file, tree in _noted(shared):
        if not os.path.isdir(tree):
            files.try_unlink(file)


def _checked(shared: str, tree: str) -> tuple[list[Changed], dict[str, Seen]]:
    with _held(shared, tree) as file:
        known, there = _read(file), _look(tree)
        if known == there:
            return [], there
        # The first time: as it is found.
        found, now = _compared(tree, known, there) if known is not None else ([], there)
        if now != known:
            with contextlib.suppress(OSError):  # where the disk is full it is compared once more
                _write(file, tree, now)
        return found, now


def _compared(tree: str, known: dict[str, Seen], there: dict[str, Seen]) -> tuple[list[Changed], dict[str, Seen]]:
    """What has changed, and what is to be remembered."""
    packages, found, remember = Packages(tree), [], dict(there)
    checkout = _is_checkout(tree)
    for path, was in known.items():
        now = there.get(path)
        steady = checkout and was[0] != 0 and "/__pycache__/" not in path
        if now == was or (now and _as_it_was(packages, path, was, now, steady)):
            continue
        if not now and path not in packages.files and not steady:
            continue  # another version of its package does not have it
        found.append(Changed(tree, path, now[0] if now else 0, was, packages.installed(path)))
        remember[path] = was
    return found, remember


def _as_it_was(packages: Packages, path: str, was: Seen, now: Seen, steady: bool) -> bool:
    """Whether a file that looks otherwise than before is as it was installed; nothing replaces a ``steady`` one."""
    if steady and not now[0]:
        return False
    if steady and "/.git/objects/" in path and was[1] == now[1]:
        return True  # its name is its content; git sets the time of one that it finds again
    if not was[0] or not now[0]:
        return True  # nobody shares it
    same = was[1:3] == now[1:3]
    # Another release shares it, or does no more; or it came back from a backup.
    if same and (was[4] != now[4] or was[0] != now[0]):
        return True
    package = packages.installed(path)
    if not package:
        # Bytecode and the like: a new file is what Python and installers make. Its inode may be that of the one before.
        return same or (not steady and (was[0] != now[0] or now[4] == 1))
    return packages.brought(path)


def _look(tree: str) -> dict[str, Seen]:
    """The files of a virtualenv that stand in clones of it, by their paths in it."""
    found: dict[str, Seen] = {}
    user = os.geteuid()
    checkout = _is_checkout(tree)

    def look(folder: str, inner: str, private: bool) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if entry.is_symlink() or (name == ".git" and not checkout) or (not inner and relocate.SKIP.match(name)):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    look(entry.path, f"{inner}{name}/", private or (not inner and name == "src"))
                    continue
                about = entry.stat(follow_symlinks=False)
                # Of a checkout all: what releases share of it, another version of ours may have decided.
                own = private and not checkout
                inode = 0 if own or not relocate.is_fair(about, user) else about.st_ino
                links = about.st_nlink if inode else 0
                changed = about.st_ctime_ns if inode else 0
                found[inner + name] = [inode, about.st_size, about.st_mtime_ns, changed, links]

    look(tree, "", False)
    return found


def _is_whole(shared: str, tree: str) -> bool:
    """Whether a tree is there; what we make ourselves has a mark when it is finished."""
    ours = tree.startswith(f"{shared}/")
    return bool(glob.glob(f"{glob.escape(tree)}/{MARKS}")) if ours else os.path.isdir(tree)


def _is_checkout(tree: str) -> bool:
    """Whether what was written down is a checkout that releases have a copy of, and no virtualenv."""
    return os.path.basename(os.path.dirname(tree)) == "ready" and not os.path.lexists(os.path.join(tree, "bin"))


def _noted(shared: str) -> Iterator[tuple[str, str]]:
    for file in sorted(glob.glob(f"{glob.escape(_folder(shared))}/*.json")):
        content = _load(file)
        if content:
            yield file, str(content["tree"])


def _folder(shared: str) -> str:
    return os.path.join(shared, "installed")


@contextlib.contextmanager
def _held(shared: str, tree: str) -> Iterator[str]:
    """The file of a tree, for as long as nobody else reads or writes those of this host."""
    name = hashlib.sha256(tree.encode("utf-8")).hexdigest()[:16]
    file = os.path.join(_folder(shared), f"{name}.json")
    with files.usual_modes():
        os.makedirs(_folder(shared), exist_ok=True)
        with files.locked(os.path.join(_folder(shared), ".lock")):
            yield file


def _read(file: str) -> dict[str, Seen] | None:
    content = _load(file)
    found: dict[str, Seen] | None = content["files"] if content else None
    return found


def _load(file: str) -> dict[str, Any] | None:
    try:
        with open(file, encoding="utf-8", errors="surrogateescape") as handle:
            content = json.load(handle)
        return content if isinstance(content, dict) and {"tree", "files"} <= content.keys() else None
    except (OSError, ValueError):
        return None


def _write(file: str, tree: str, there: dict[str, Seen]) -> None:
    files.write(file, json.dumps({"tree": tree, "files": there}), errors="surrogateescape")


def _shown(item: Changed) -> str:
    return f"{item.path} ({item.package.name} {item.package.version})" if item.package else item.path
