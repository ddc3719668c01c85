"""How much disk there is, and what a tree takes of it."""

from __future__ import annotations

import os
import re
import shutil

_OCTAL = re.compile(r"\\([0-7]{3})")


def free_mb(path: str) -> int:
    """
    Return how much disk is free where a directory is, or is going to be, in MB.

    path
        The directory.
    """
    return shutil.disk_usage(existing(path)).free // 2**20


def used_mb(path: str) -> float:
    """
    Return the disk that a tree has for itself, in MB: what it shares with others by hard links is not counted.

    path
        The directory.
    """
    return _blocks(path) * 512 / 2**20


def _blocks(path: str) -> int:
    found = os.lstat(path).st_blocks
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                found += _blocks(entry.path)
            else:
                about = entry.stat(follow_symlinks=False)
                found += about.st_blocks if about.st_nlink == 1 else 0
    return found


def place(path: str) -> str:
    """
    Return a directory by the machine and the file system that it is on, whatever it is called there.

    path
        The directory, which need not exist.
    """
    there = existing(path)
    status = os.stat(there)
    return f"{boot_id()} {status.st_dev} {status.st_ino} {os.path.relpath(path, there)}"


def mounts_below(path: str) -> list[str]:
    """
    Return what is mounted in a directory or below it, the directory itself included.

    path
        An absolute path.
    """
    top = os.path.realpath(path)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as handle:
        # Blanks and the like stand there as \\040.
        places = [_OCTAL.sub(lambda code: chr(int(code[1], 8)), line.split()[4]) for line in handle]
    return sorted({place for place in places if place == top or place.startswith(f"{top}/")})


def boot_id() -> str:
    """Return what the kernel calls this boot of the machine."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as handle:
        return handle.read().strip()


def existing(path: str) -> str:
    """
    Return the nearest directory above that exists, or the path itself.

    path
        An absolute path.
    """
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path
