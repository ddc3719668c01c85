"""
The lock file of a release: ``pylock.toml``, https://packaging.python.org/specifications/pylock-toml

It lists what is installed beside the base and the extensions from git, with addresses, hashes and commits. It comes as
an argument of a job, so it is read as something that others wrote; addresses in it have no login.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from attrs import frozen

from ckan_deploy.errors import InvalidArgument
from ckan_deploy.settings.values import CONTROL
from ckan_deploy.sources.pins import COMMIT, Pin
from ckan_deploy.system import toml

NAME = "pylock.toml"
_HEAD = 'lock-version = "1.0"\ncreated-by = "ckan-formula"\n'
_PACKAGE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*")
_HASHES = {"sha256": 64, "sha512": 128}


@frozen
class File:
    """A wheel, an sdist or another archive: its address, or its path on this host, and its hashes, ``{kind: hex}``."""

    url: str = ""
    path: str = ""
    hashes: Mapping[str, str] = {}

    @property
    def name(self) -> str:
        """The name of the file."""
        return (self.path or urlsplit(self.url).path).rpartition("/")[2]

    def to_toml(self) -> dict[str, Any]:
        """Return it as a table of TOML."""
        place = {"path": self.path} if self.path else {"url": self.url}
        return {**place, "hashes": dict(sorted(self.hashes.items()))}


@frozen
class Locked:
    """
    One package of a lock file: ``wheels`` and ``sdist`` of a package index, an ``archive`` by its address, or a
    checkout of git (``url``, ``ref``, ``commit``, and the ``tags`` that its version is made of, as in a pin); of the
    last two the ``subdirectory``.
    """

    name: str
    version: str
    wheels: tuple[File, ...] = ()
    sdist: File | None = None
    archive: File | None = None
    url: str = ""
    ref: str = ""
    commit: str = ""
    subdirectory: str = ""
    tags: str = ""

    @property
    def by_address(self) -> bool:
        """Whether it was asked for by an address, and not from a package index."""
        return bool(self.archive or self.commit)

    def pin(self) -> Pin:
        """Return the pin of one from git."""
        return Pin("git", url=self.url, ref=self.ref, commit=self.commit, tags=self.tags)

    def to_toml(self) -> dict[str, Any]:
        """Return it as a table of TOML, without what is empty."""
        inner = {"subdirectory": self.subdirectory} if self.subdirectory else {}
        found: dict[str, Any] = {"name": self.name, "version": self.version}
        if self.commit:
            asked = {"requested-revision": self.ref} if self.ref else {}
            found["vcs"] = {"type": "git", "url": self.url, **asked, "commit-id": self.commit, **inner}
            # Of ours, where the specification leaves room for it.
            found |= {"tool": {"ckan-formula": {"tags": self.tags}}} if self.tags else {}
        if self.archive:
            found["archive"] = {**self.archive.to_toml(), **inner}
        if self.sdist:
            found["sdist"] = self.sdist.to_toml()
        if self.wheels:
            found["wheels"] = [file.to_toml() for file in sorted(self.wheels, key=lambda file: file.name)]
        return found


def dumps(packages: Iterable[Locked]) -> str:
    """
    Return the text of a lock file. The same packages give the same text.

    packages
        What it lists, in any order.
    """
    tables = [package.to_toml() for package in sorted(packages, key=lambda package: package.name)]
    # An empty list of packages must be said, too.
    text = _HEAD if tables else f"{_HEAD}packages = []\n"
    for table in tables:
        lines = [f"{key} = {_value(value)}" for key, value in table.items()]
        text += "\n".join(["", "[[packages]]", *lines, ""])
    return text


def loads(text: str) -> tuple[Locked, ...]:
    """
    Read a lock file.

    text
        Its text, '' for none: a release of an earlier version.

    Raises ``InvalidArgument`` for what is none, or leads where no lock file of ours does.
    """
    try:
        found = tuple(_package(table) for table in toml.loads(text).get("packages", []))
        if len({package.name for package in found}) != len(found):
            raise ValueError("a package is in it twice")
        return found
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise InvalidArgument(
            f"that is no lock file of a release ({exc}); take what ckan_release.plan returned."
        ) from exc


def check_file(file: File) -> File:
    """
    Return a file of a lock file as it is; refuse one with a login in its address.

    file
        The file.

    Raises ``ValueError``.
    """
    parts = urlsplit(file.url)
    if CONTROL.search(file.url + file.path) or bool(file.url) == bool(file.path):
        raise ValueError("a file has no address")
    if file.path and not file.path.startswith("/"):
        raise ValueError(f"{file.path} is no absolute path")
    if file.url and (parts.scheme not in ("https", "http", "file") or "@" in parts.netloc):
        raise ValueError(f"the address of {file.name} is not a plain one")
    for kind, digits in file.hashes.items():
        if len(digits) != _HASHES.get(kind) or not re.fullmatch(r"[0-9a-f]+", digits):
            raise ValueError(f"the {kind} of {file.name} is none")
    return file


def _package(table: Mapping[str, Any]) -> Locked:
    vcs, archive = table.get("vcs") or {}, table.get("archive")
    made = Locked(
        table["name"],
        str(table.get("version", "")),
        tuple(map(_file, table.get("wheels") or ())),
        _file(table["sdist"]) if table.get("sdist") else None,
        _file(archive) if archive else None,
        str(vcs.get("url", "")),
        str(vcs.get("requested-revision", "")),
        str(vcs.get("commit-id", "")),
        str((archive or vcs).get("subdirectory", "")),
        str(((table.get("tool") or {}).get("ckan-formula") or {}).get("tags", "")),
    )
    if not _PACKAGE.fullmatch(made.name) or not _VERSION.fullmatch(made.version):
        raise ValueError(f"{made.name!r} {made.version!r} is no package")
    if made.subdirectory.startswith(("/", "-")) or ".." in made.subdirectory.split("/"):
        raise ValueError(f"{made.name} has its package outside of its sources")
    if sum(map(bool, (made.wheels or made.sdist, made.archive, vcs))) != 1:
        raise ValueError(f"{made.name} comes from no place, or from several")
    if vcs:
        if not COMMIT.fullmatch(made.commit) or urlsplit(made.url).password:
            raise ValueError(f"{made.name} has no commit, or a password in its address")
        Pin.of(made.pin().to_json())
    return made


def _file(table: Mapping[str, Any]) -> File:
    hashes = {str(kind): str(digits) for kind, digits in (table.get("hashes") or {}).items() if kind in _HASHES}
    url, path = str(table.get("url") or ""), str(table.get("path") or "")
    return check_file(File(url, "" if url else path, hashes))


def _value(value: Any) -> str:
    """A value of TOML. Its strings are those of JSON but for what no address and no name has."""
    if isinstance(value, dict):
        inner = ", ".join(f"{key} = {_value(item)}" for key, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list):
        return "[\n" + "".join(f"    {_value(item)},\n" for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)
