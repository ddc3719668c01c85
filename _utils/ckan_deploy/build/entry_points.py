"""
The entry points of CKAN plugins: what a virtualenv, a checkout or an archive declares.

Files are read, no code of theirs is run. So it cannot always be told: a ``setup.py`` may compute them. None stands for
that.
"""

from __future__ import annotations

import ast
import configparser
import glob
import importlib.metadata
import lzma
import os
import re
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from typing import IO, Any

from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib

# The groups of entry points in which CKAN looks for plugins, the second one in old versions only.
GROUPS = ("ckan.plugins", "ckan.system_plugins", "ckan.test_plugins")
PROJECT_FILES = ("pyproject.toml", "setup.cfg", "setup.py")
IN_WHEEL = re.compile(r"[^/]+\.dist-info/(entry_points\.txt)")
IN_SDIST = re.compile(
    r"(?:\./)?[^/]+/(?:(pyproject\.toml|setup\.cfg|setup\.py|PKG-INFO)|(?:src/)?[^/]+\.egg-info/(entry_points\.txt))"
)
LIMIT = 2**20
# What the files of others can make the parsers raise.
UNREADABLE = (
    OSError, ValueError, TypeError, AttributeError, SyntaxError, RecursionError, MemoryError, EOFError,
    NotImplementedError, configparser.Error, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
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


def of_checkout(path: str) -> list[str] | None:
    """
    Return the plugins that a checkout declares, in order; None when that cannot be told.

    path
        The directory of its ``pyproject.toml``, ``setup.cfg`` or ``setup.py``.
    """
    try:
        files = {}
        for name in PROJECT_FILES:
            file = os.path.join(path, name)
            if os.path.lexists(file):
                if os.path.islink(file) or not os.path.isfile(file):
                    return None  # it may lead anywhere
                with open(file, "rb") as handle:
                    files[name] = _text(handle)
        return sorted(_declared(files))
    except UNREADABLE:
        return None


def of_archive(path: str) -> list[str] | None:
    """
    Return the plugins that a wheel or an sdist brings, in order; None when that cannot be told.

    path
        The archive.
    """
    try:
        files = dict(_members(path))
        if path.endswith(".whl"):
            return sorted(_names(_sections(files.get("entry_points.txt", ""))))
        try:
            return sorted(_declared(files))
        except UNREADABLE:
            if "PKG-INFO" not in files or "entry_points.txt" not in files:
                return None
            # setuptools made this sdist, and wrote down what its setup.py said.
            return sorted(_names(_sections(files["entry_points.txt"])))
    except UNREADABLE:
        return None


def _declared(files: Mapping[str, str]) -> set[str]:
    """
    What a package's project files declare, taken together: which of them counts depends on the version of setuptools.
    Raises ``ValueError`` when only a build could tell.
    """
    if not any(name in files for name in PROJECT_FILES):
        raise ValueError("no project file")
    data = _toml(files["pyproject.toml"]) if "pyproject.toml" in files else {}
    project, poetry = _table(data, "project"), _table(data, "tool", "poetry")
    setuptools = _table(data, "build-system").get("build-backend", "setuptools").startswith("setuptools")
    if _table(data, "tool", "setuptools", "dynamic").get("entry-points"):
        raise ValueError("in a file of its own")
    if not setuptools and ("entry-points" in project.get("dynamic", []) or not (project or poetry)):
        raise ValueError("the build backend's own way")
    found = _names(_table(project, "entry-points")) | _names(_table(poetry, "plugins"))
    if setuptools:
        found |= _of_setup_cfg(files.get("setup.cfg", ""))
        found |= _of_setup_py(files["setup.py"]) if "setup.py" in files else set()
    return found


class _Parser(configparser.RawConfigParser):
    """Keeps the letters of names as they are."""

    def optionxform(self, optionstr: str) -> str:
        return optionstr


def _of_setup_cfg(text: str) -> set[str]:
    parser = _Parser()
    parser.read_string(text)
    if parser.has_option("options", "entry_points") or parser.has_option("options", "entry-points"):
        raise ValueError("in a file of its own")
    # The second is where pbr has them.
    sections = [name for name in ("options.entry_points", "entry_points") if parser.has_section(name)]
    return {plugin for name in sections for plugin in _names(dict(parser[name]))}


def _of_setup_py(text: str) -> set[str]:
    """What is written out in the call of ``setup``; ``ValueError`` for what is computed."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    calls = [call for call in calls if "setup" in (getattr(call.func, "id", ""), getattr(call.func, "attr", ""))]
    keywords = [keyword for call in calls for keyword in call.keywords]
    if not calls or any(keyword.arg is None for keyword in keywords):
        raise ValueError("no call of setup, or setup(**arguments)")
    found = set()
    for keyword in keywords:
        if keyword.arg == "entry_points":
            value = ast.literal_eval(keyword.value)
            found |= _names(_sections(value) if isinstance(value, str) else value or {})
    return found


def _names(groups: Mapping[str, Any]) -> set[str]:
    """The names of the plugins in groups of entry points: tables, lists of lines, or texts."""
    found = set()
    for group in GROUPS:
        lines = groups.get(group, [])
        lines = lines.splitlines() if isinstance(lines, str) else lines
        found |= {line.partition("=")[0].strip() for line in lines if not line.lstrip().startswith("#")}
    return found - {""}


def _sections(text: str) -> dict[str, list[str]]:
    """The groups of an ``entry_points.txt``, and of the same as a text in a ``setup.py``."""
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


def _members(path: str) -> Iterator[tuple[str, str]]:
    """The files of an archive that say something of its entry points: name and text."""
    pattern = IN_WHEEL if path.endswith(".whl") else IN_SDIST
    if path.endswith((".whl", ".zip")):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                match = pattern.fullmatch(name)
                if match:
                    with archive.open(name) as stream:
                        yield match[match.lastindex or 0], _text(stream)
    else:
        with tarfile.open(path) as archive:
            for member in archive:
                match = pattern.fullmatch(member.name)
                content = archive.extractfile(member) if match and member.isfile() else None
                if match and content:
                    yield match[match.lastindex or 0], _text(content)


def _text(stream: IO[bytes]) -> str:
    data = stream.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise ValueError("too large")
    return data.decode("utf-8-sig")


def _toml(text: str) -> dict[str, Any]:
    if sys.version_info < (3, 11):
        raise ValueError("no parser")  # what it declares cannot be told
    return tomllib.loads(text)


def _table(data: Any, *keys: str) -> Any:
    for key in keys:
        data = data.get(key, {})
    return data
