"""
Work of root's in directories that others may write to: by descriptors, one name of a path after the other, and along no
link that somebody else may have put there.

What a name stands for may change between a look and a call. A descriptor stays what it is. A link in a directory that
only root may write to is the operator's, such as one to another disk, and is followed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from ckan_deploy.errors import FormulaError
from ckan_deploy.system import ownership, processes

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
# As many as the kernel follows.
MOST_LINKS = 40
# What is nested deeper is left alone: each level holds a descriptor, and no CKAN does that.
MOST_LEVELS = 64
# No file that is copied here is larger.
MOST_BYTES = 64 * 2**20
GIVEN = (stat.S_ISREG, stat.S_ISDIR, stat.S_ISLNK)


@contextlib.contextmanager
def directory(path: str, make: bool = False, owner: tuple[int, int] | None = None) -> Iterator[int]:
    """
    Open a directory.

    path
        Its absolute path.
    make
        Make what is missing of it, mode 0755.
    owner
        Numbers of the user and group that get the directory itself where it is made.

    Yields its descriptor. Raises ``FormulaError`` that names a link which somebody else than root may have put there,
    ``OSError``.
    """
    folder = _reach(path, make, owner)
    try:
        yield folder
    finally:
        os.close(folder)


def ensure(path: str) -> None:
    """
    Make what is missing of a directory, mode 0755 whatever the umask is.

    path
        Its absolute path.

    Raises as ``directory``.
    """
    with directory(path, make=True):
        pass


def take(path: str, names: Sequence[str] = ()) -> bool:
    """
    Make a directory root's alone, mode 0755; it is made where it is missing.

    path
        The directory.
    names
        What root will work in below it. Whoever could write here may have put links in their place.

    Returns whether it was somebody else's. Raises ``FormulaError`` that names such a link; the directory is then as it
    was.
    """
    with directory(path, make=True) as folder:
        before = os.fstat(folder)
        if ownership.is_roots(before):
            return False
        # First, so that nothing is put there after the look.
        os.fchown(folder, 0, 0)
        os.fchmod(folder, 0o755)
        for name in names:
            if _is_link(folder, name):
                os.fchown(folder, before.st_uid, before.st_gid)
                os.fchmod(folder, stat.S_IMODE(before.st_mode))
                raise _not_followed(path, name, before)
        return True


def make(folder: int, name: str, owner: tuple[int, int] | None = None) -> int:
    """
    Open a directory in another one, after making it where it is missing, mode 0755 whatever the umask is.

    folder
        The descriptor of that other one.
    name
        Its name there.
    owner
        Numbers of the user and group that get one which is made.

    Returns its descriptor, for the caller to close. Raises ``OSError``, also for a link.
    """
    try:
        return os.open(name, DIRECTORY, dir_fd=folder)
    except FileNotFoundError:
        pass
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=folder)
    made = os.open(name, DIRECTORY, dir_fd=folder)
    os.fchmod(made, 0o755)
    if owner and os.geteuid() == 0:
        os.fchown(made, *owner)
    return made


def walk(
    folder: int, path: str = "", levels: int = MOST_LEVELS, shut: Callable[[str], None] | None = None
) -> Iterator[tuple[str, int, list[os.DirEntry[str]]]]:  # fmt: skip
    """
    Go through a tree, from the top down.

    folder
        The descriptor of its top.
    path
        What the names begin with.
    levels
        How deep.
    shut
        Called with the path of a directory that does not let us in, which is left out then.

    Yields the path of each directory below the top ('' for the top), its descriptor, which is closed afterwards, and
    what is in it; what is taken from that list is not gone into.
    """
    with os.scandir(folder) as found:
        entries = list(found)
    yield path, folder, entries
    for entry in entries if levels else []:
        if not entry.is_dir(follow_symlinks=False):
            continue
        try:
            below = os.open(entry.name, DIRECTORY, dir_fd=folder)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                continue  # gone or something else by now
            if exc.errno == errno.EACCES and shut:
                shut(os.path.join(path, entry.name))
                continue
            raise
        try:
            yield from walk(below, os.path.join(path, entry.name), levels - 1, shut)
        finally:
            os.close(below)


def give(folder: int, name: str, user: int, group: int) -> bool:
    """
    Give what is root's to a user: a directory, a link itself, or a file, unless that has a second name elsewhere.

    folder
        The descriptor of the directory that it is in.
    name
        Its name there.
    user, group
        Their numbers.

    Returns whether it was root's. Raises ``OSError``.
    """
    # By a descriptor from here on: the look and the change are of the same thing.
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder)
    try:
        status = os.fstat(fd)
        fits = any(kind(status.st_mode) for kind in GIVEN)
        if status.st_uid or not fits or (status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode)):
            return False
        # Python has no fchownat with an empty path; this is that very thing, links included.
        os.chown(f"/proc/self/fd/{fd}", user, group)
        return True
    finally:
        os.close(fd)


@contextlib.contextmanager
def plain(folder: int, name: str) -> Iterator[BinaryIO]:
    """
    Open a plain file for reading. No link is followed, and no FIFO is waited for.

    folder
        The descriptor of the directory that it is in.
    name
        Its name there.

    Raises ``OSError``, also for what is no plain file.
    """
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    with open(fd, "rb") as handle:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "is no plain file", name)
        yield handle


@contextlib.contextmanager
def file(path: str) -> Iterator[BinaryIO]:
    """
    Open a plain file for reading by its path.

    path
        Its absolute path. It may be a link, or have a second name, where only root may write to its directory.

    Raises ``FormulaError`` that names a link or a name which somebody else than root may have put there, ``OSError``.
    """
    for _ in range(MOST_LINKS):
        above, name = os.path.split(path)
        with directory(above) as folder:
            status = os.fstat(folder)
            if not _is_link(folder, name):
                with plain(folder, name) as handle:
                    if os.fstat(handle.fileno()).st_nlink > 1 and not ownership.is_roots(status):
                        raise _not_followed(above, name, status, "has a second name elsewhere")
                    yield handle
                return
            if not ownership.is_roots(status):
                raise _not_followed(above, name, status)
            path = os.path.join(above, os.readlink(name, dir_fd=folder))
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def replaceable(program: str, alone: bool = False) -> str:
    """
    Return what others than root may write to of a program: its file, the directory that it or a link on the way to it
    stands in, or one above that; '' where there is nothing, and where it is not root who asks.

    program
        Its absolute path. One that is not there is run by nobody.
    alone
        It takes nothing from beside itself. Python takes its library from there.

    Raises ``FormulaError`` as ``directory``, ``OSError``.
    """
    if os.geteuid() != 0 or not os.path.exists(program):
        return ""
    for _ in range(MOST_LINKS):
        folder = os.path.dirname(program)
        for place in ownership.above(program):
            if not ownership.is_fixed(place):
                return place
        with directory(folder) as above:
            # A directory such as /tmp will not do for these.
            for place in () if alone else (folder, os.path.join(folder, "..")):
                if not ownership.is_roots(os.stat(place)):
                    return os.path.realpath(place)
            status = os.stat(os.path.basename(program), dir_fd=above, follow_symlinks=False)
            if not stat.S_ISLNK(status.st_mode):
                return "" if ownership.is_roots(status) else program
            if status.st_uid != 0:
                return program
            program = os.path.join(folder, os.readlink(os.path.basename(program), dir_fd=above))
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), program)


def refuse_replaceable(program: str, setting: str, other: str, alone: bool = False) -> None:
    """
    Refuse a program that root would run, and in whose place others may put another one.

    program, alone
        As for ``replaceable``.
    setting, other
        The setting that names it, and what else may be named there.

    Raises ``FormulaError`` with what to type, and what ``replaceable`` raises.
    """
    if place := replaceable(program, alone):
        raise FormulaError(
            f"root runs {program}, and nobody but root may be able to write to {place}; type: chown root: {place} && "
            f"chmod 755 {place}, or name another {other} in {setting}."
        )


def copy(source: BinaryIO, folder: int, name: str) -> None:
    """
    Copy a file into a directory, mode 0644, in place of what has that name.

    source
        The open file.
    folder
        The descriptor of the directory.
    name
        The name there.

    Raises ``OSError``, also for a file above 64 MB; there is nothing then.
    """
    draft = f".{name[:200]}.tmp"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(draft, dir_fd=folder)  # of a run that was killed
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    try:
        with open(fd, "wb") as target:
            left = MOST_BYTES
            while chunk := source.read(2**20):
                left -= len(chunk)
                if left < 0:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), name)
                target.write(chunk)
            os.fchmod(fd, 0o644)
        os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft, dir_fd=folder)
        raise


def remove(folder: int, name: str) -> None:
    """
    Remove what has a name in a directory, a tree as a whole; links are not followed.

    folder
        The descriptor of the directory.
    name
        The name there; nothing happens where there is none.

    Raises ``OSError``.
    """
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            # Below its top rmtree goes by descriptors itself, and it refuses a link; rm does so, too, at any depth.
            place = f"/proc/{os.getpid()}/fd/{folder}/{name}"
            try:
                shutil.rmtree(place)
            except RecursionError:
                processes.run(["rm", "-rf", "--", place])
        else:
            os.unlink(name, dir_fd=folder)


def _reach(path: str, missing: bool, owner: tuple[int, int] | None) -> int:
    """Open a directory name by name; returns its descriptor."""
    todo, seen, links = _names(path), "/", 0
    here = os.open("/", DIRECTORY)
    try:
        while todo:
            name = todo.pop()
            try:
                if missing:
                    there = make(here, name, None if todo else owner)
                else:
                    there = os.open(name, DIRECTORY, dir_fd=here)
            except OSError as exc:
                if exc.errno not in (errno.ENOTDIR, errno.ELOOP) or not _is_link(here, name):
                    raise
                above = os.fstat(here)
                if not ownership.is_roots(above):
                    raise _not_followed(seen, name, above) from exc
                links += 1
                if links > MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path) from exc
                target = os.readlink(name, dir_fd=here)
                todo += _names(target)
                if not target.startswith("/"):
                    continue
                there, name = os.open("/", DIRECTORY), "/"
            os.close(here)
            here, seen = there, os.path.normpath(os.path.join(seen, name))
    except OSError as exc:
        os.close(here)
        exc.filename = path
        raise
    except BaseException:
        os.close(here)
        raise
    return here


def _names(path: str) -> list[str]:
    """The names of a path, the first one last."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _is_link(folder: int, name: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    return False


def _not_followed(path: str, name: str, above: os.stat_result, what: str = "is a link") -> FormulaError:
    who = ownership.name(above.st_uid)
    may = f"it belongs to {who}" if above.st_uid else f"its mode is {stat.S_IMODE(above.st_mode):04o}"
    return FormulaError(
        f"{os.path.join(path, name)} {what}, and others than root may have put it there, since of {path} {may}; "
        "look where it leads; where that is meant, name another path in the pillar, or type: "
        f"chown root: {path} && chmod 755 {path}"
    )
