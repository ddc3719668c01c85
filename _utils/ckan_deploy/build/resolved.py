"""
Resolutions of packages that are taken again while nothing has changed of what they were made from: the same commits
give the same versions for a while, and the plan does not ask the package index once more. They stand in
``shared/resolutions``, each named after all that it follows from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import stat
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import ckan_deploy
from ckan_deploy.build import uv_and_pip, virtualenv
from ckan_deploy.build.installer import Changes
from ckan_deploy.build.uv_and_pip import Installer
from ckan_deploy.errors import FormulaError
from ckan_deploy.sources import pylock
from ckan_deploy.system import files

FOLDER = "resolutions"
# Larger than any there is: what is read is bounded.
MOST_BYTES = 16_000_000


def key(path: str, asked: Mapping[str, Any], installer: Installer) -> str:
    """
    Return the name of a resolution: a digest of all that it follows from.

    path
        The base virtualenv.
    asked
        What was asked for, and what it is held to, as JSON can hold it.
    installer
        The installer.
    """
    about = {
        "formula": ckan_deploy.VERSION,
        "asked": asked,
        "python": virtualenv.interpreter(path),
        "platform": [platform.system(), platform.machine(), *platform.libc_ver()],
        "installer": [uv_and_pip.kind(installer), installer.offline, _program(installer)],
        # Another login is no other index.
        "indexes": [_plain(address) for address in installer.indexes],
        "links": [_plain(installer.find_links), _listing(installer.find_links), _listing(installer.wheels)],
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode("utf-8")).hexdigest()


def find(name: str, installer: Installer) -> Changes | None:
    """
    Return a resolution, None where there is none that may be taken: it is too old, damaged, of another version, or
    another user may write to it.

    name
        Its ``key``.
    installer
        The installer.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, FormulaError):
        told = json.loads(_read(os.path.join(_folder(installer), f"{name}.json")))
        age = time.time() - told["made"]
        if told["key"] != name or not 0 <= age < installer.reuse_hours * 3600:
            return None
        installed = {_text(library): _text(version) for library, version in told["installed"].items()}
        return Changes(installed, [_text(library) for library in told["removed"]], list(pylock.loads(told["lock"])))
    return None


def keep(name: str, found: Changes, installer: Installer) -> None:
    """
    Keep a resolution, and remove those that are too old. Nothing fails for it, not even on a full disk.

    name
        Its ``key``.
    found
        What it came to, with the files of all that would be installed.
    installer
        The installer.
    """
    folder = _folder(installer)
    told = {"key": name, "made": time.time(), "installed": found.installed, "removed": found.removed}
    with contextlib.suppress(OSError):
        if not installer.reuse_hours:
            return
        os.makedirs(folder, mode=0o700, exist_ok=True)
        files.write(
            os.path.join(folder, f"{name}.json"), json.dumps({**told, "lock": pylock.dumps(found.files)}), 0o600
        )
        for path in files.matching(folder, re.compile(r".+\.json(\.tmp)?")):
            # A draft is a killed run's. One that is being written at this moment is only not kept.
            if path.endswith(".tmp") or time.time() - os.lstat(path).st_mtime > installer.reuse_hours * 3600:
                os.unlink(path)


def forget(shared: str) -> None:
    """
    Remove all resolutions: a release that was made of one has failed, and what makes the next one fit may be in the
    package index by now.

    shared
        The directory ``paths:shared``.
    """
    with contextlib.suppress(OSError):
        for path in files.matching(os.path.join(shared, FOLDER), re.compile(r".+\.json")):
            files.try_unlink(path)


def _folder(installer: Installer) -> str:
    return os.path.join(installer.shared, FOLDER)


def _read(path: str) -> str:
    """The text of a file that nobody but this user could have written."""
    _refuse_foreign(os.lstat(os.path.dirname(path)), stat.S_ISDIR)
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), encoding="utf-8") as handle:
        _refuse_foreign(os.fstat(handle.fileno()), stat.S_ISREG)
        return handle.read(MOST_BYTES)


def _refuse_foreign(about: os.stat_result, wanted: Any) -> None:
    if not wanted(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError("another user may write to it")


def _program(installer: Installer) -> Sequence[Any]:
    """Which uv it is, without a start of it."""
    with contextlib.suppress(OSError):
        place = os.path.realpath(uv_and_pip.program(installer))
        about = os.stat(place)
        return [place, about.st_size, about.st_mtime_ns]
    return []


def _plain(address: str) -> str:
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _listing(place: str) -> list[Any]:
    """The files of a directory with wheels; of a page there is nothing to see."""
    with contextlib.suppress(OSError, ValueError), os.scandir(place.removeprefix("file://") or "/-") as entries:
        found = [(entry.name, entry.stat()) for entry in entries]
        return sorted([name, about.st_size, about.st_mtime_ns] for name, about in found if stat.S_ISREG(about.st_mode))
    return []


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value
