"""
Layers and releases as archives, for hosts that do not build: what goes into them, by whose names, and which links.

An archive has nothing of the host that made it but the paths that its files name: no ini, no manifest, no sockets, no
owners but root. The same tree gives the same archive.
"""

from __future__ import annotations

import filecmp
import gzip
import hashlib
import io
import json
import os
import re
import stat
import tarfile
from collections.abc import Mapping
from typing import IO

from attrs import frozen

from ckan_deploy.build import layers, relocate
from ckan_deploy.build.moving import Move
from ckan_deploy.build.prefixes import inside
from ckan_deploy.errors import FormulaError

# Names that a release does not have of its layer: a member of its archive.
REMOVED = ".ckan-removed"
# The faster half of gzip: an archive is read and written once for each host.
LEVEL = 1
INTERPRETER = re.compile(r"bin/python[0-9.]*")


@frozen
class Packed:
    """An archive: how many bytes it has, and their SHA-256."""

    size: int
    sha256: str


def layer(tree: str, archive: str) -> Packed:
    """
    Pack a layer.

    tree
        The layer.
    archive
        The file to write; it is synced.

    Raises ``FormulaError`` for a link that leads out of it, ``OSError``.
    """
    return _write(tree, archive, _look(tree), {})


def release(tree: str, layer_path: str, archive: str) -> Packed:
    """
    Pack what a release has that its layer has not, and the names of what it has not.

    tree
        The release.
    layer_path
        Its layer.
    archive, errors
        As for ``layer``.
    """
    its, theirs = _look(tree), _look(layer_path)
    same = _Comparison(tree, layer_path)
    own = {path: about for path, about in its.items() if not same.is_same(path, about, theirs.get(path))}
    # A directory that is gone is gone with all that is in it.
    gone = sorted(theirs.keys() - its.keys())
    gone = [path for path in gone if os.path.dirname(path) in its or not os.path.dirname(path)]
    return _write(tree, archive, own, {REMOVED: json.dumps(gone).encode("utf-8", "surrogateescape")})


def is_ours(path: str) -> bool:
    """
    Say whether a path in a release, or in a layer, is the formula's own, and so in no archive.

    path
        The path in it.
    """
    top = path.partition("/")[0]
    return bool(layers.OURS.fullmatch(top) or relocate.SKIP.match(top)) and path != "pyvenv.cfg"


def link_problem(path: str, target: str, tree: str) -> str:
    """
    Say what is wrong with a link, '' for nothing: it must not lead out of the tree.

    path
        Its path in the tree.
    target
        Where it leads.
    tree
        The directory of the tree.
    """
    if os.path.isabs(target):
        # The interpreter is the system's; whoever unpacks it looks whose it is.
        fair = (inside(target, tree) or INTERPRETER.fullmatch(path)) and os.path.normpath(target) == target
        return "" if fair else f"{path} is a link out of it, to {target}"
    steps = target.split("/")
    up = next((at for at, step in enumerate(steps) if step != ".."), len(steps))
    # A step back behind a name may lead anywhere: that name may be a link itself.
    if up > path.count("/") or ".." in steps[up:]:
        return f"{path} is a link that may lead out of it, to {target}"
    return ""


class _Comparison:
    """A release beside its layer: which files are as a clone of the layer has them."""

    def __init__(self, tree: str, layer_path: str) -> None:
        self.tree, self.layer = tree, layer_path
        self.move = Move(layer_path, tree)

    def is_same(self, path: str, about: os.stat_result, other: os.stat_result | None) -> bool:
        if other is None or stat.S_IFMT(about.st_mode) != stat.S_IFMT(other.st_mode):
            return False
        mine, theirs = f"{self.tree}/{path}", f"{self.layer}/{path}"
        if stat.S_ISLNK(about.st_mode):
            return os.readlink(mine) == self.move.link(os.readlink(theirs))
        if stat.S_ISDIR(about.st_mode) or (about.st_ino, about.st_dev) == (other.st_ino, other.st_dev):
            return about.st_mode == other.st_mode
        if about.st_mode != other.st_mode:
            return False
        if self.move.may_name(path):
            with open(mine, "rb") as handle, open(theirs, "rb") as source:
                return handle.read() == self.move.content(path, source.read())
        # Checkouts are edited, and copied from elsewhere with their times.
        if path.startswith("src/"):
            return filecmp.cmp(mine, theirs, shallow=False)
        return (about.st_size, about.st_mtime_ns) == (other.st_size, other.st_mtime_ns)


def _look(tree: str) -> dict[str, os.stat_result]:
    """All that an archive of a tree may have, by its path."""
    found: dict[str, os.stat_result] = {}

    def look(folder: str, inner: str) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                path = inner + entry.name
                if is_ours(path):
                    continue
                found[path] = entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    look(entry.path, f"{path}/")

    look(tree, "")
    return found


def _write(tree: str, archive: str, own: Mapping[str, os.stat_result], extra: Mapping[str, bytes]) -> Packed:
    with open(archive, "wb") as file:
        counted = _Counted(file)
        with (
            gzip.GzipFile(filename="", mode="wb", compresslevel=LEVEL, fileobj=counted, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT, bufsize=2**20) as tar,
        ):
            for name, content in extra.items():
                about = _about(name, 0o644, 0)
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
            # In a set order, and directories before what is in them.
            for path in sorted(own):
                _add(tar, tree, path, own[path])
        file.flush()
        os.fsync(file.fileno())
        return Packed(counted.size, counted.digest.hexdigest())


def _add(tar: tarfile.TarFile, tree: str, path: str, status: os.stat_result) -> None:
    about = _about(path, status.st_mode, int(status.st_mtime))
    if stat.S_ISREG(status.st_mode):
        with open(f"{tree}/{path}", "rb") as content:
            about.size = os.fstat(content.fileno()).st_size
            tar.addfile(about, content)
        return
    about.mtime = 0
    if stat.S_ISDIR(status.st_mode):
        about.type = tarfile.DIRTYPE
        tar.addfile(about)
    elif stat.S_ISLNK(status.st_mode):
        about.type, about.linkname = tarfile.SYMTYPE, os.readlink(f"{tree}/{path}")
        if problem := link_problem(path, about.linkname, tree):
            raise FormulaError(f"{tree} cannot be shipped: {problem}; correct the extension that has it.")
        tar.addfile(about)


def _about(name: str, mode: int, mtime: int) -> tarfile.TarInfo:
    about = tarfile.TarInfo(name)
    about.mode, about.mtime = stat.S_IMODE(mode) & relocate.FAIR, mtime
    return about


class _Counted(io.RawIOBase):
    """A file to write to, with the size and the digest of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.size, self.digest = file, 0, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.file.write(data)
        self.digest.update(data)
        self.size += len(data)
        return len(data)
