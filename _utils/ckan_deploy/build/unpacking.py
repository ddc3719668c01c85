"""
Archives of layers and releases, unpacked: what does not belong into a tree is refused, whatever made the archive.

Nothing is written over a link, and nothing into an existing file: that may be shared with other releases.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator

from ckan_deploy.build import relocate
from ckan_deploy.build.moving import Move
from ckan_deploy.build.packing import INTERPRETER, REMOVED, is_ours, link_problem
from ckan_deploy.build.prefixes import inside
from ckan_deploy.errors import FormulaError
from ckan_deploy.system import ownership

# How long the list of names that are gone may be.
MOST = 64 * 2**20


def layer(archive: str, tree: str, was: str) -> None:
    """
    Unpack a layer.

    archive
        The archive, whose hash was checked.
    tree
        Where it goes: a directory that is not there.
    was
        Where it stood on the host that made it.

    Raises ``FormulaError`` for an archive with something that does not belong there, or that cannot be read,
    ``OSError``. What was unpacked until then is left.
    """
    os.makedirs(tree)
    _Unpacker(tree, was, plain=False).unpack(archive)


def release(archive: str, tree: str, was: str) -> None:
    """
    Unpack what a release has of its own, over the clone of its layer.

    archive, tree, was
        As for ``layer``; the tree is there.
    """
    _Unpacker(tree, was, plain=True).unpack(archive)


class _Unpacker:
    """One pass over an archive; ``plain`` is one without what makes a virtualenv."""

    def __init__(self, tree: str, was: str, plain: bool) -> None:
        self.tree, self.plain = tree, plain
        self.move = Move(was, tree)
        # Directories that were seen to be in the tree, over no link.
        self.folders: set[str] = {""}
        self.modes: dict[str, int] = {}
        self.rewritten: list[str] = []

    def unpack(self, archive: str) -> None:
        with _readable(archive), tarfile.open(archive, mode="r|gz", bufsize=2**20) as tar:
            for member in tar:
                if self.plain and member.name == REMOVED:
                    self.remove(tar, member)
                else:
                    self.add(tar, member)
        for path, mode in self.modes.items():
            os.chmod(f"{self.tree}/{path}", mode)
        for name in self.rewritten:
            # With an equal size and time it would pass as fresh.
            for old in relocate.bytecode(name):
                os.unlink(old)

    def remove(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        content = tar.extractfile(member) if member.isreg() and member.size <= MOST else None
        gone = json.loads(content.read().decode("utf-8", "surrogateescape")) if content else None
        if not isinstance(gone, list):
            raise FormulaError(f"its {REMOVED} is no list")
        for path in gone:
            self.refuse(path)
            self.clear(path)

    def add(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = member.name
        self.refuse(path)
        place = f"{self.tree}/{path}"
        if member.isdir():
            if not os.path.isdir(place) or os.path.islink(place):
                self.clear(path)
                os.mkdir(place)
            self.folders.add(path)
            self.modes[path] = member.mode & relocate.FAIR
            return
        self.clear(path)
        if member.issym():
            self.refuse_link(path, member.linkname)
            os.symlink(self.move.link(member.linkname), place)
        elif member.isreg() and not member.issparse():
            self.file(tar, member, place)
        else:
            raise FormulaError(f"{_shown(path)} is neither a file, nor a directory, nor a link")

    def file(self, tar: tarfile.TarFile, member: tarfile.TarInfo, place: str) -> None:
        content = tar.extractfile(member)
        assert content
        changed = False
        with open(place, "xb") as handle:
            if self.move.may_name(member.name):
                data = content.read()
                if len(data) != member.size:
                    raise EOFError(member.name)
                moved = self.move.content(member.name, data)
                changed = moved != data
                handle.write(moved)
            else:
                shutil.copyfileobj(content, handle, 2**20)
            if not changed and handle.tell() != member.size:
                raise EOFError(member.name)
            os.fchmod(handle.fileno(), member.mode & relocate.FAIR)
        if changed:
            self.rewritten.append(place)
        else:
            # Python takes bytecode for stale otherwise.
            os.utime(place, (int(member.mtime), int(member.mtime)))

    def clear(self, path: str) -> None:
        """Make room for what comes in the place of something."""
        place = f"{self.tree}/{path}"
        if os.path.isdir(place) and not os.path.islink(place):
            shutil.rmtree(place)
            # What comes in its place may be a link.
            self.folders = {folder for folder in self.folders if not f"{folder}/".startswith(f"{path}/")}
            self.modes = {
                folder: mode for folder, mode in self.modes.items() if not f"{folder}/".startswith(f"{path}/")
            }
        elif os.path.lexists(place):
            os.unlink(place)

    def refuse(self, path: object) -> None:
        """Raise ``FormulaError`` for a name that does not belong into the tree."""
        if not isinstance(path, str) or not path or "\0" in path or set(path.split("/")) & {"", ".", ".."}:
            raise FormulaError(f"it has {path!r}, which is outside of it")
        if is_ours(path) or self.plain and (path == "pyvenv.cfg" or INTERPRETER.fullmatch(path)):
            raise FormulaError(f"it has {_shown(path)}, which is the formula's own")
        parent = os.path.dirname(path)
        if parent not in self.folders:
            place = f"{self.tree}/{parent}"
            if not os.path.isdir(place) or os.path.realpath(place) != f"{os.path.realpath(self.tree)}/{parent}":
                raise FormulaError(f"it has {_shown(path)}, whose directory is none of its own")
            self.folders.add(parent)

    def refuse_link(self, path: str, target: str) -> None:
        """Raise ``FormulaError`` for a link that leads out of the tree, but for that to the interpreter."""
        if problem := link_problem(path, target, self.move.old):
            raise FormulaError(problem)
        if not os.path.isabs(target) or inside(target, self.move.old):
            return
        if not os.access(target, os.X_OK):
            raise FormulaError(f"{path} leads to {_shown(target)}, and there is no such interpreter here")
        if os.geteuid() == 0 and not ownership.is_roots(os.stat(os.path.realpath(target))):
            raise FormulaError(f"{path} leads to {_shown(target)}, which others than root may write to")


def _shown(path: str) -> str:
    """A name for a message: on one line, whatever is in it."""
    return path if path.isprintable() else repr(path)


@contextlib.contextmanager
def _readable(archive: str) -> Iterator[None]:
    name = os.path.basename(archive)
    try:
        yield
    except FormulaError as exc:
        raise FormulaError(f"{name} is refused: {exc}; look into the host that made it.") from exc
    except (tarfile.TarError, zlib.error, EOFError, ValueError) as exc:
        raise FormulaError(f"{name} is damaged ({exc or 'it ends too early'}); deploy again.") from exc
