"""
The copy of a virtualenv to another place, which names its own place only.

The copy may share the contents of its files with its source through hard links, so nothing here ever writes into an
existing file: a file that must differ is written as a new one. This is the lower half of ``virtualenv``, whose
``clone`` checks its arguments and the outcome, and cleans up.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from attrs import asdict, evolve, frozen

from ckan_deploy.build import prefixes, relocate
from ckan_deploy.system import files, reflink

# What a file system gives at a time, mostly.
BLOCK = 4096
# What stands for a symbolic link where files have a kind (``relocate.kind_of``).
LINK = "link"


@frozen
class Copied:
    """
    How many files were linked, copied and written anew, what of the disk is the copy's own, and the places that the
    source named as its own. ``left``: the path and kind of each file and link that was left out, since it names such a
    place or stands at the top.
    """

    linked: int
    copied: int
    rewritten: int
    own_bytes: int
    prefixes: tuple[str, ...]
    left: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return what ``of`` takes."""
        return asdict(self)

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> Copied:
        """
        Make one of what ``to_json`` returned.

        about
            That.
        """
        left = tuple((path, kind) for path, kind in about["left"])
        return cls(**{**about, "prefixes": tuple(about["prefixes"]), "left": left})


def copy(
    source: str, target: str, link: str = "auto", leave_out: Collection[str] = (), nameless: bool = False
) -> Copied:  # fmt: skip
    """
    Fill the empty directory ``target`` with a relocated copy of the virtualenv ``source``.

    source
        Absolute path of the virtualenv to copy, in its normal form.
    target
        Absolute path of an empty directory, in its normal form.
    link
        How file contents are shared: ``hard`` by hard links where that is possible, ``auto`` by reflinks where the file
        system has them and else by hard links, ``copy`` not at all.
    leave_out
        Names at its top that are not copied.
    nameless
        Leave out what names the place, since it is not known yet, and files at the top: ``complete`` brings them.

    Raises ``OSError`` when a file cannot be read or written.
    """
    copier = _Cloner(source, target, link, leave_out, nameless)
    with files.usual_modes(), _opened(source, None, os.O_DIRECTORY) as folder:
        copier.directory(folder, source, target, "top")
    return copier.done()


def complete(source: str, target: str, link: str, copied: Copied) -> Copied:
    """
    Bring what a copy without the names of its place lacks, when it has been renamed to its place.

    source, target, link
        As for ``copy``; the target is where it is now.
    copied
        What ``copy`` returned.

    Raises ``OSError`` when a file cannot be read or written, or is not what it was.
    """
    copier = _Cloner(source, target, link)
    with files.usual_modes():
        copier.again_at_top({path for path, kind in copied.left if kind == "top"})
        for path, kind in copied.left:
            if kind != "top":
                copier.again(path, kind)
    now = copier.done()
    return evolve(
        copied, linked=copied.linked + now.linked, copied=copied.copied + now.copied, rewritten=now.rewritten,
        own_bytes=copied.own_bytes + now.own_bytes, left=(),
    )  # fmt: skip


class _Cloner:
    """One pass over a virtualenv that makes another one of it."""

    def __init__(
        self, source: str, target: str, link: str, leave_out: Collection[str] = (), nameless: bool = False
    ) -> None:  # fmt: skip
        self.leave_out = leave_out
        self.nameless = nameless
        self.left: list[tuple[str, str]] = []
        self.own_bytes = 0
        self.source = source
        self.target = target
        self.reflink = link == "auto" and reflink.possible(source, target)
        self.link = link != "copy" and not self.reflink
        self.prefixes = prefixes.own(source)
        self.pattern, self.forms = prefixes.pattern(self.prefixes), prefixes.forms(self.prefixes)
        self.counts = {"linked": 0, "copied": 0, "rewritten": 0}
        self.rewritten: list[str] = []
        self.user = os.geteuid()
        self.unused = re.compile(f"{re.escape(source)}/{relocate.UNUSED}")

    def directory(self, folder: int, source: str, target: str, kind: str) -> None:
        """
        Fill the directory ``target``, which exists, from ``source``, whose descriptor is ``folder``; ``kind`` says what
        its files may be. By descriptors, since the source may be somebody's who puts a link in the place of a name.
        """
        about = os.fstat(folder)
        # Nobody else changes what is in a directory that is ours alone.
        ours = relocate.is_fair(about, self.user)
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if kind == "top" and (relocate.SKIP.match(name) or name in self.leave_out):
                    continue
                old, new = f"{source}/{name}", f"{target}/{name}"
                # Most of them first, by thousands.
                if entry.is_file(follow_symlinks=False):
                    if self.nameless and kind == "top":
                        # A rename marks a file as changed, and not what is in a directory.
                        self.leave(new, kind)
                        continue
                    self.file(entry, folder, new, kind, ours)
                elif entry.is_symlink():
                    self.symlink(os.readlink(name, dir_fd=folder), old, new)
                elif entry.is_dir(follow_symlinks=False):
                    if name == "__pycache__" and self.unused.match(old):
                        continue
                    os.mkdir(new, 0o755)
                    with _opened(name, folder, os.O_DIRECTORY) as below:
                        self.directory(below, old, new, relocate.kind_of(kind, name))
        self.own_bytes += BLOCK
        mode = about.st_mode & relocate.FAIR
        if mode != 0o755 or kind == "top":
            # Last, since the mode may forbid writing.
            os.chmod(target, mode)

    def file(self, entry: os.DirEntry[str], folder: int, new: str, kind: str, ours: bool) -> None:
        """Rewrite, link or copy one file of a directory that is ``ours`` alone or not."""
        telling = kind != "plain" and relocate.may_name_prefix(kind, entry.name)
        if telling and self.rewrite(entry.name, folder, new, kind):
            return
        about = entry.stat(follow_symlinks=False)
        # What others may write to, or what would give others more rights than they have, is not taken as it is.
        fair = self.link and kind != "src" and relocate.is_fair(about, self.user)
        if fair and self.linked(entry.name, folder, new, 0 if ours else about.st_ino):
            return
        with _opened(entry.name, folder) as fd, open(new, "xb") as copy:
            about = os.fstat(fd)
            if not stat.S_ISREG(about.st_mode):
                raise OSError(errno.ESTALE, "it has become something else meanwhile", entry.name)
            if not (self.reflink and reflink.copy(fd, copy.fileno())):
                self.own_bytes += _on_disk(about.st_size)
                with open(fd, "rb", closefd=False) as content:
                    shutil.copyfileobj(content, copy)
        os.chmod(new, about.st_mode & relocate.FAIR)
        # Python takes bytecode for stale otherwise.
        os.utime(new, ns=(about.st_atime_ns, about.st_mtime_ns))
        self.counts["copied"] += 1

    def linked(self, name: str, folder: int, new: str, inode: int) -> bool:
        """Share a file, if that can be done and it is the one that was looked at; 0 where it can be no other."""
        try:
            os.link(name, new, src_dir_fd=folder, follow_symlinks=False)
        except OSError as exc:
            if exc.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM):
                raise
            # Another file system stays another one; the other two may concern this file alone.
            self.link = exc.errno != errno.EXDEV
            return False
        if inode and os.lstat(new).st_ino != inode:
            os.unlink(new)
            return False
        self.counts["linked"] += 1
        return True

    def rewrite(self, name: str, folder: int, new: str, kind: str) -> bool:
        """Write a file anew that names a place of the source; False for one that names none."""
        with _opened(name, folder) as fd, open(fd, "rb", closefd=False) as handle:
            data, mode = handle.read(), os.fstat(fd).st_mode
        if not prefixes.mentions(data, self.forms) or prefixes.is_binary(data):
            return False
        changed = prefixes.replaced(data, self.pattern, self.target, kind == "bin")
        if changed == data:
            return False
        if self.nameless:
            self.leave(new, kind)
            return True
        with open(new, "xb") as handle:
            handle.write(changed)
        self.own_bytes += _on_disk(len(changed))
        os.chmod(new, mode & relocate.FAIR)
        self.counts["rewritten"] += 1
        self.rewritten.append(new)
        return True

    def symlink(self, value: str, old: str, new: str) -> None:
        """Keep a symlink's meaning: what lay inside the source lies inside the target."""
        if os.path.isabs(value):
            for prefix in self.prefixes:
                if prefixes.inside(value, prefix):
                    if self.nameless:
                        return self.leave(new, LINK)
                    value = self.target + value[len(prefix) :]
                    break
        else:
            place = os.path.normpath(os.path.join(os.path.dirname(old), value))
            value = value if prefixes.inside(place, self.source) else place
        os.symlink(value, new)

    def leave(self, new: str, kind: str) -> None:
        """Remember what is left out of the target."""
        self.left.append((new[len(self.target) + 1 :], kind))

    def again(self, path: str, kind: str) -> None:
        """Bring what was left out; ``path`` is that in both."""
        old, new = f"{self.source}/{path}", f"{self.target}/{path}"
        with _opened(os.path.dirname(old), None, os.O_DIRECTORY) as folder:
            name = os.path.basename(path)
            if kind == LINK:
                self.symlink(os.readlink(name, dir_fd=folder), old, new)
            elif not self.rewrite(name, folder, new, kind):
                raise OSError(errno.ESTALE, "it has become something else meanwhile", old)

    def again_at_top(self, names: Collection[str]) -> None:
        """Bring files at the top that were left out."""
        missing = set(names)
        with _opened(self.source, None, os.O_DIRECTORY) as folder, os.scandir(folder) as entries:
            for entry in entries:
                if entry.name in missing:
                    missing.remove(entry.name)
                    self.file(entry, folder, f"{self.target}/{entry.name}", "top", ours=False)
        if missing:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self.source}/{min(missing)}")

    def done(self) -> Copied:
        """Say what it came to, at the end."""
        self.drop_stale_bytecode()
        return Copied(
            **self.counts, own_bytes=self.own_bytes, prefixes=tuple(self.prefixes), left=tuple(self.left)
        )  # fmt: skip

    def drop_stale_bytecode(self) -> None:
        """Remove the bytecode of rewritten modules: with an equal size and time it would pass as fresh."""
        for name in self.rewritten:
            for old in relocate.bytecode(name):
                self.counts["linked" if os.stat(old).st_nlink > 1 else "copied"] -= 1
                os.unlink(old)


def _on_disk(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


@contextlib.contextmanager
def _opened(name: str, folder: int | None, kind: int = 0) -> Iterator[int]:
    """Open a file or a directory of a directory to read it: neither a link is followed, nor a FIFO waited for."""
    # The directory that somebody has named may be a link.
    plain = 0 if folder is None else os.O_NOFOLLOW
    fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | plain | kind, dir_fd=folder)
    try:
        yield fd
    finally:
        os.close(fd)
