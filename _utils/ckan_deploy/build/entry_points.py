"""
The entry points of CKAN plugins: what a virtualenv or a wheel declares. Files are read, nothing of theirs is run.
"""

from __future__ import annotations

import glob
import importlib.metadata
import os
import re
import zipfile
import zlib
from collections.abc import Collection, Mapping
from typing import IO

from packaging.utils import canonicalize_name

# The groups of entry points in which CKAN looks for plugins, the second one in old versions only.
GROUPS = ("ckan.plugins", "ckan.system_plugins", "ckan.test_plugins")
IN_WHEEL = re.compile(r"[^/]+\.dist-info/entry_points\.txt")
LIMIT = 2**20
# What the files of others can make the readers raise.
UNREADABLE = (
    OSError, ValueError, TypeError, AttributeError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def of_virtualenv(path: str, without: Collection[str] = ()) -> list[str] | None:
    """
    Return the plugins that the packages of a virtualenv bring, in order; None when that cannot be told.

    path
        The virtualenv.
    without
        Normalised names of packages that do not count.
    """
    try:
        with open(os.path.join(path, "pyvenv.cfg"), encoding="utf-8") as handle:
            if re.search(r"^include-system-site-packages\s*=\s*true\s*$", handle.read(), re.MULTILINE | re.IGNORECASE):
                return None
        folders = glob.glob(f"{glob.escape(path)}/lib/python*/site-packages")
        # Checkouts that were installed by the old "setup.py develop" keep their metadata with them.
        folders += [place for folder in list(folders) for place in _linked(folder)]
        found: set[str] = set()
        for distribution in importlib.metadata.distributions(path=folders):
            if canonicalize_name(distribution.metadata["Name"] or "") not in without:
                found |= _names(_sections(distribution.read_text("entry_points.txt") or ""))
        return sorted(found)
    except UNREADABLE:
        return None


def provider(path: str, plugin: str) -> str:
    """
    Return the normalised name of the package that brings a plugin, '' where none does or that cannot be told.

    path
        The virtualenv.
    plugin
        The name of the plugin.
    """
    try:
        folders = glob.glob(f"{glob.escape(path)}/lib/python*/site-packages")
        for distribution in importlib.metadata.distributions(path=folders):
            if plugin in _names(_sections(distribution.read_text("entry_points.txt") or "")):
                return canonicalize_name(distribution.metadata["Name"] or "")
    except UNREADABLE:
        pass
    return ""


def of_wheel(path: str) -> list[str] | None:
    """
    Return the plugins that a wheel brings, in order; None when that cannot be told.

    path
        The wheel.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = list(filter(IN_WHEEL.fullmatch, archive.namelist()))
            found: set[str] = set()
            for member in members:
                with archive.open(member) as stream:
                    found |= _names(_sections(_text(stream)))
            return sorted(found)
    except UNREADABLE:
        return None


def _names(groups: Mapping[str, list[str]]) -> set[str]:
    """The names of the plugins in groups of entry points."""
    lines = [line for group in GROUPS for line in groups.get(group, [])]
    return {line.partition("=")[0].strip() for line in lines if not line.startswith("#")} - {""}


def _sections(text: str) -> dict[str, list[str]]:
    """The groups of an ``entry_points.txt``."""
    groups: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            lines = groups.setdefault(line[1:-1].strip(), [])
        else:
            lines.append(line)
    return groups


def _linked(folder: str) -> list[str]:
    """The directories that the ``.pth`` files of a site-packages add to the module path."""
    found = []
    for file in sorted(glob.glob(f"{glob.escape(folder)}/*.pth")):
        with open(file, encoding="utf-8", errors="replace") as handle:
            lines = [line.strip() for line in handle if not re.match(r"import\s|#", line)]
        found += [os.path.join(folder, line) for line in lines if line]
    return [place for place in found if os.path.isdir(place)]


def _text(stream: IO[bytes]) -> str:
    data = stream.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise ValueError("too large")
    return data.decode("utf-8-sig")
