"""
Trees that belong to somebody else. A copy is made by that user's own rights, in a process of its own, so nothing gets
in that the user may not read; and root writes what comes, by descriptors.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from ckan_deploy.errors import FormulaError
from ckan_deploy.system import ownership, safely

# No virtualenv is as large, and none takes as long to be read.
MOST_BYTES = 16 * 2**30
MOST_SECONDS = 900
# What an empty file counts for.
LEAST_BYTES = 512
# The group of one who has none.
NOBODY = 65534


def copy(
    source: str, target: str, user: str, group: str, skip: Sequence[str] = (), most: int = MOST_BYTES,
    hint: str = "name the directory of a virtualenv",
) -> None:  # fmt: skip
    """
    Copy a tree: directories, files and links as such. Owner is root, nobody else may write, and no file changes who
    runs it. Left out is what is none of these, such as a FIFO.

    source
        The directory.
    target
        A directory of root's that is empty.
    user, group
        Who is to use the copy: all may read there what these may read now. That user copies where the tree is root's,
        else its owner does.
    skip
        Patterns of names at its top that are left out.
    most, hint
        How many bytes there may be, and what to do where there are more.

    Raises ``FormulaError`` that names what cannot be read or does not belong into such a tree.
    """
    reader = pwd.getpwnam(user).pw_uid, grp.getgrnam(group).gr_gid
    with safely.directory(source) as top:
        owner = os.fstat(top).st_uid or reader[0]
    try:
        number = pwd.getpwuid(owner).pw_gid
    except KeyError:
        number = NOBODY
    # By the way of the system's own programs: what that user has in its path or home is nobody's business here.
    command = ["tar", "-c", "-f", "-", "--hard-dereference", "--format=pax", "--anchored", "--no-wildcards-match-slash"]
    command += [*(f"--exclude=./{pattern}" for pattern in skip), "-C", source, "."]
    said: BinaryIO = tempfile.TemporaryFile()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, cwd="/",
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}, user=owner, group=number, extra_groups=[number],
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout
    limit = threading.Timer(MOST_SECONDS, process.kill)
    limit.start()
    try:
        with tarfile.open(fileobj=process.stdout, mode="r|") as stream, safely.directory(target) as place:
            _unpack(stream, place, reader, most, hint)
        if process.wait() != 0:
            who = ownership.name(owner)
            raise FormulaError(f"{source} cannot be read by {who}: {_problem(said)}; correct that, or move it away.")
    except (tarfile.TarError, OSError) as exc:
        raise FormulaError(f"{source} cannot be copied: {exc}; correct that, or move it away.") from exc
    finally:
        limit.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
        said.close()


def _problem(said: BinaryIO) -> str:
    """The first problem that tar names."""
    said.seek(0)
    lines = said.read(65536).decode("utf-8", "replace").splitlines()
    return next((line.removeprefix("tar: ") for line in lines), "no message")


def is_roots_tree(path: str) -> bool:
    """
    Say whether only root may write to a directory, to each directory and file in it, and to those above it.

    path
        The directory.

    Raises ``FormulaError`` as ``directory``, ``OSError``.
    """
    if not all(map(ownership.is_fixed, ownership.above(path))):
        return False
    with safely.directory(path) as top:
        if not ownership.is_roots(os.fstat(top)):
            return False
        for _, _, entries in safely.walk(top):
            for entry in entries:
                # A link has no mode, and no content that could be changed.
                if not entry.is_symlink() and not ownership.is_roots(entry.stat(follow_symlinks=False)):
                    return False
    return True


def _unpack(stream: tarfile.TarFile, place: int, reader: tuple[int, int], most: int, hint: str) -> None:
    """Write what an archive holds into an empty directory; nothing in it is trusted."""
    total = 0
    for member in stream:
        names = [name for name in member.name.split("/") if name not in ("", ".")]
        if member.name.startswith("/") or ".." in names:
            raise FormulaError(f"{member.name} is a path that leads out of the tree; move it away.")
        if not names:
            continue
        total += member.size + LEAST_BYTES
        if total > most:
            raise FormulaError(f"there are more than {most >> 30} GB; {hint}.")
        with _folder(place, names[:-1]) as folder:
            if member.isdir():
                os.close(safely.make(folder, names[-1]))
            elif member.issym():
                os.symlink(member.linkname, names[-1], dir_fd=folder)
            elif member.isreg():
                _write(stream, member, folder, names[-1], reader)


@contextlib.contextmanager
def _folder(place: int, names: list[str]) -> Iterator[int]:
    with contextlib.ExitStack() as stack:
        for name in names:
            place = safely.make(place, name)
            stack.callback(os.close, place)
        yield place


def _write(stream: tarfile.TarFile, member: tarfile.TarInfo, folder: int, name: str, reader: tuple[int, int]) -> None:
    content = stream.extractfile(member)
    assert content
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    with open(fd, "wb") as file:
        while chunk := content.read(2**20):
            file.write(chunk)
        file.flush()
        mine = (member.uid == reader[0] and member.mode & 0o400) or (member.gid == reader[1] and member.mode & 0o040)
        os.fchmod(fd, member.mode & 0o755 | (0o644 if mine else 0o600))
        # Python takes bytecode for stale otherwise.
        os.utime(fd, (member.mtime, member.mtime))
