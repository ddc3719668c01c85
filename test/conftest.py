"""What all tests share."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import salt._logging

# Salt keeps log lines back for a handler of its own, and would write them to pytest's closed streams at exit.
salt._logging.shutdown_temp_handler()

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IMMUTABLE = 0x80086601, 0x40086602, 0x10


class Immutable:
    """Makes files that not even root can remove, until they are freed, wherever they are by then."""

    def __init__(self) -> None:
        self.open: list[int] = []

    def __call__(self, file: Path) -> Path:
        file.write_text("x")
        self.open.append(os.open(file, os.O_RDONLY))
        try:
            self._turn(self.open[-1], lambda flags: flags | FS_IMMUTABLE)
        except OSError:
            pytest.skip("there are no immutable files here")
        return file

    def free(self) -> None:
        while self.open:
            fd = self.open.pop()
            self._turn(fd, lambda flags: flags & ~FS_IMMUTABLE)
            os.close(fd)

    def _turn(self, fd: int, change: Callable[[int], int]) -> None:
        flags = struct.unpack("l", fcntl.ioctl(fd, FS_IOC_GETFLAGS, struct.pack("l", 0)))[0]
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("l", change(flags)))


@pytest.fixture
def immutable() -> Iterator[Immutable]:
    made = Immutable()
    yield made
    made.free()


@pytest.fixture
def mount() -> Iterator[Callable[..., Path]]:
    """Mounts a small disk of its own at a path, if this may be done here."""
    mounted: list[Path] = []

    def make(path: Path, size: str = "1m") -> Path:
        path.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("nothing can be mounted here")
        mounted.append(path)
        return path

    yield make
    for path in reversed(mounted):
        subprocess.run(["umount", "-l", path], check=False, capture_output=True)


def pytest_runtest_logreport(report) -> None:
    """Name what fails when it fails: the whole run takes long."""
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        print(f"\nFAILED {report.nodeid} ({report.when}): {crash.message.splitlines()[0] if crash else ''}", flush=True)
