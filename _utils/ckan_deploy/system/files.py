"""
Files of text that are there whole or not at all: written under another name, and renamed.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import json
import logging
import os
import pwd
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar, overload

from ckan_deploy.errors import FormulaError
from ckan_deploy.system import processes

log = logging.getLogger(__name__)
T = TypeVar("T")


@overload
def read(path: str) -> str: ...
@overload
def read(path: str, default: T, errors: str = "strict") -> str | T: ...
def read(path: str, default: object = "", errors: str = "strict") -> object:
    """
    Read a file in UTF-8.

    path
        The file.
    default
        What to return where there is no such file.
    errors
        What becomes of bytes that are no UTF-8, as for ``open``.
    """
    try:
        with open(path, encoding="utf-8", errors=errors) as handle:
            return handle.read()
    except (FileNotFoundError, IsADirectoryError):
        return default


def end_of(path: str, most: int = 65536) -> str:
    """
    Read the end of a log, however long its writer has made it.

    path
        The file; '' is returned where there is none.
    most
        How many bytes at most.
    """
    try:
        with open(path, "rb") as handle:
            handle.seek(max(0, os.fstat(handle.fileno()).st_size - most))
            return handle.read(most).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def write(
    path: str, text: str, mode: int = 0o644, group: str = "", errors: str = "strict", durable: bool = False,
    owner: str = "", mtime: int | None = None,
) -> None:  # fmt: skip
    """
    Write a file in UTF-8, in place of the one that is there.

    path
        The file; its directory must exist.
    text
        What it holds.
    mode
        Its mode.
    group
        Its group, where root writes it; empty for that of whoever writes.
    errors
        What becomes of characters that UTF-8 does not have, as for ``open``.
    durable
        Make sure that it outlives a power failure.
    owner
        Its owner, where root writes it; empty for root.
    mtime
        The time of its content, in nanoseconds; by default now.

    Raises ``FormulaError`` where there is no such group, ``KeyError`` where there is no such owner, ``OSError``.
    """
    root = os.geteuid() == 0
    gid = _group(group) if group and root else -1
    uid = pwd.getpwnam(owner).pw_uid if owner and root else -1
    draft = f"{path}.tmp"
    if os.path.lexists(draft):
        os.unlink(draft)  # of a run that was killed
    try:
        # Nobody reads it before it has its mode, and nobody's link is followed, also none that is put in its place
        # meanwhile: the directory may be the build user's.
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8", errors=errors) as handle:
            handle.write(text)
            handle.flush()
            if (uid, gid) != (-1, -1):
                os.fchown(fd, uid, gid)
            os.fchmod(fd, mode)
            if mtime is not None:
                os.utime(fd, ns=(mtime, mtime))
            if durable:
                os.fsync(fd)
        os.rename(draft, path)
    except OSError as exc:
        exc.filename = exc.filename or path  # a full disk is told without a name
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise
    if durable:
        sync_directory(os.path.dirname(path))


def sync_directory(path: str) -> None:
    """
    Make sure that what was renamed in a directory outlives a power failure.

    path
        The directory.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def matching(folder: str, pattern: re.Pattern[str]) -> list[str]:
    """
    Return the paths of what is in a directory under names of a pattern; none where there is no such directory.

    folder
        The directory.
    pattern
        What the whole name matches.
    """
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [os.path.join(folder, name) for name in sorted(names) if pattern.fullmatch(name)]


def try_unlink(path: str) -> str:
    """
    Remove a file, if that can be done.

    path
        The file.

    Returns ``''``, also where there is no such file; else a sentence.
    """
    try:
        os.unlink(path)
    except FileNotFoundError:
        return ""
    except OSError as exc:
        log.warning("%s cannot be removed: %s", path, exc.strerror)
        return f"{path} cannot be removed ({exc.strerror})"
    return ""


def sync_tree(path: str) -> None:
    """
    Make sure that a tree which was just made outlives a power failure.

    path
        Its top.

    Raises ``FormulaError`` where the disk does not take it.
    """
    # A call for the whole file system: one for each file takes seconds.
    done = processes.run(["sync", "-f", path])
    if done.retcode != 0:
        raise FormulaError(f"{path} cannot be written to disk ({processes.tail(done)}); correct that and deploy again.")


class _Umask:
    """The umask is that of all threads: the first that wants the usual one sets it, the last puts back what was."""

    def __init__(self) -> None:
        self.lock, self.wanted, self.before = threading.Lock(), 0, 0

    def enter(self) -> None:
        with self.lock:
            if not self.wanted:
                self.before = os.umask(0o022)
            self.wanted += 1

    def leave(self) -> None:
        with self.lock:
            self.wanted -= 1
            if not self.wanted:
                os.umask(self.before)


_UMASK = _Umask()


@contextlib.contextmanager
def usual_modes() -> Iterator[None]:
    """
    Let what is made without a mode be readable by all and writable by its owner, as long as the context lasts: a
    hardened host has another umask, and users that a release needs could not enter its directories.
    """
    _UMASK.enter()
    try:
        yield
    finally:
        _UMASK.leave()


@contextlib.contextmanager
def umask_kept() -> Iterator[None]:
    """
    Call what sets the umask for a moment and puts back what it found, as Salt does when it fetches a file. Meanwhile
    ``usual_modes`` neither begins nor ends. What other threads make would get the other modes: call it before them.
    """
    with _UMASK.lock:
        yield


@contextlib.contextmanager
def locked(path: str, wait: bool = True) -> Iterator[bool]:
    """
    Hold the lock of a file for as long as the context lasts; the kernel frees it with the process.

    path
        The file; made if need be.
    wait
        Wait for whoever holds it.

    Yields whether the lock is held: False only without ``wait``.
    """
    with _held(path, os.O_WRONLY | os.O_CREAT, wait) as mine:
        yield mine


def once(place: str, make: Callable[[], object], mark: str = ".done", durable: bool = False) -> None:
    """
    Have a directory made that is the same for all who want it. One that was not finished is never taken for it: a file
    in it is written last. Who comes while it is made waits.

    place
        The directory.
    make
        Makes it; what it returns is kept in the file, as JSON.
    mark
        The name of that file.
    durable
        Make sure that what bears the mark outlives a power failure.

    Raises what ``make`` raises; there is no directory then.
    """
    done = os.path.join(place, mark)
    if os.path.exists(done):
        return
    os.makedirs(os.path.dirname(place), mode=0o755, exist_ok=True)
    with locked(f"{place}.lock"):
        if os.path.exists(done):
            return  # another one has made it meanwhile
        shutil.rmtree(place, ignore_errors=True)  # what a killed run left
        try:
            about = json.dumps(make())
            if durable:
                sync_tree(place)
            write(done, about, durable=durable)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise


@contextlib.contextmanager
def scratch(parent: str, prefix: str) -> Iterator[str]:
    """
    Make a directory that only we may enter, and remove it at the end. A ``sweep`` of another process leaves it alone.

    parent
        Where it is made; must exist.
    prefix
        How its name begins.

    Yields its path.
    """
    with contextlib.ExitStack() as stack:
        with _held(parent):
            # Directory and lock come into being together, or another run's sweep would take it for a killed run's.
            place = tempfile.mkdtemp(prefix=prefix, dir=parent)  # 0700
            stack.callback(remove_tree, place)
            stack.enter_context(_held(place))
        yield place


def sweep(parent: str, prefix: str) -> None:
    """
    Remove what killed processes have left of ``scratch``: nobody holds its lock any more.

    parent, prefix
        As for ``scratch``.
    """
    if not os.path.isdir(parent):
        return
    with _held(parent):
        for name in os.listdir(parent):
            place = os.path.join(parent, name)
            if not name.startswith(prefix):
                continue
            # One that has just ended has removed it itself.
            with contextlib.suppress(FileNotFoundError), _held(place, wait=False) as left:
                if left:
                    remove_tree(place)


def remove_tree(path: str) -> None:
    """
    Remove a tree as far as that can be done; links are not followed.

    path
        Its top, in a directory that only we may write to.
    """
    try:
        shutil.rmtree(path, ignore_errors=True)
    except RecursionError:
        # Whoever wrote into it may have made it as deep as the disk takes.
        processes.run(["rm", "-rf", "--", path])


@contextlib.contextmanager
def _held(path: str, flags: int = os.O_RDONLY | os.O_DIRECTORY, wait: bool = True) -> Iterator[bool]:
    """The lock of a file or, by default, of a directory."""
    fd = os.open(path, flags, 0o666)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            mine = True
        except BlockingIOError:
            mine = False
        yield mine
    finally:
        os.close(fd)


def _group(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as exc:
        raise FormulaError(f"there is no group {name}; run state.apply ckan first") from exc
