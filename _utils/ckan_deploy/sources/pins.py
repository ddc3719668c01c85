"""
What an extension's ref stood for when a release was planned: the *pin*, the same for all hosts. Nothing in it is
secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

from ckan_deploy.errors import InvalidArgument
from ckan_deploy.settings.origins import is_specifier
from ckan_deploy.settings.values import CONTROL

COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HASH = re.compile(r"(sha256|sha512)[=:][0-9A-Fa-f]+")
_HELPER = re.compile(r"[A-Za-z0-9+.-]+::")
_ARCHIVE = re.compile(r"(https?|salt)://.+")
_TEXTS = ("url", "ref", "ref_kind", "commit", "subject", "moved_from", "tags", "asked", "archive", "hash", "version")


@frozen
class Patch:
    """
    A diff, its hash, and what became of it where it was applied: ``hashes`` are those of its ``files`` as they are when
    all patches of that place are applied, '' for one that is gone.
    """

    patch: str
    sha256: str
    result: str = ""
    files: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    hashes: tuple[str, ...] = ()

    @classmethod
    def of(cls, given: Any) -> Patch:
        """
        Read it from JSON.

        given
            What ``to_json`` returned.

        Raises ``InvalidArgument`` for what is none.
        """
        try:
            texts = {name: _text(given.get(name)) for name in ("patch", "sha256", "result")}
            files, left_out, hashes = (
                tuple(map(_text, _list(given.get(name)))) for name in ("files", "left_out", "hashes")
            )
            if not re.fullmatch(r"salt://\S+", texts["patch"]) or not _SHA256.fullmatch(texts["sha256"]):
                raise ValueError(texts)
        except (AttributeError, TypeError, ValueError) as exc:
            raise InvalidArgument(
                f"{given!r} is no patch of a resolution; take one that ckan_release.plan returned."
            ) from exc
        return cls(files=files, left_out=left_out, hashes=hashes, **texts)

    def to_json(self) -> dict[str, Any]:
        """Return it as manifests have it; what is empty is left out."""
        found = {"patch": self.patch, "sha256": self.sha256, "result": self.result}
        more = {"files": list(self.files), "left_out": list(self.left_out), "hashes": list(self.hashes)}
        return {name: value for name, value in {**found, **more}.items() if value}

    def contents(self) -> list[tuple[str, str]]:
        """Return its files, each with its hash; none where that was not noted."""
        return list(zip(self.files, self.hashes, strict=False))


@frozen
class Pin:
    """One extension of a release. ``kind`` says which of the fields mean something."""

    kind: str
    # git
    url: str = ""
    ref: str = ""
    ref_kind: str = ""
    commit: str = ""
    submodules: bool = True
    patches: tuple[Patch, ...] = ()
    subject: str = ""
    moved_from: str = ""
    # A hash of the tags that its version is made of, '' where it is made of none.
    tags: str = ""
    build: tuple[str, ...] = ()
    upstream: Mapping[str, Any] | None = None
    # the package index
    asked: str = ""
    # an archive
    archive: str = ""
    hash: str = ""
    # both
    version: str = ""

    @classmethod
    def of(cls, given: Any) -> Pin:
        """
        Read it from JSON.

        given
            What ``to_json`` returned, of this host or of another one.

        Raises ``InvalidArgument`` for what is none: paths and commands are made from it.
        """
        try:
            upstream = given.get("upstream")
            pin = cls(
                given.get("kind", "git"),
                submodules=bool(given.get("submodules", True)),
                patches=tuple(map(Patch.of, _list(given.get("patches")))),
                build=tuple(map(_text, _list(given.get("build")))),
                upstream=dict(upstream) if upstream else None,
                **{name: _text(given.get(name)) for name in _TEXTS},
            )
            if not pin._is_one():
                raise ValueError(given)
        except (AttributeError, TypeError, ValueError) as exc:
            raise InvalidArgument(
                f"{given!r} is no pin of an extension; take one that ckan_release.plan returned."
            ) from exc
        return pin

    def _is_one(self) -> bool:
        """Whether it says what its kind needs, and nothing that would lead elsewhere as a path or in a command."""
        words = (self.url, self.ref, self.asked, self.archive)
        if any(map(CONTROL.search, self.build)):
            return False
        if any(word.startswith("-") or CONTROL.search(word) for word in words) or _HELPER.match(self.url):
            return False
        if self.kind == "git":
            return bool(COMMIT.fullmatch(self.commit) and self.url)
        if self.kind == "index":
            return is_specifier(self.asked)
        return self.kind == "archive" and bool(_ARCHIVE.fullmatch(self.archive) and _HASH.fullmatch(self.hash))

    def to_json(self) -> dict[str, Any]:
        """Return it as manifests and arguments of jobs have it."""
        if self.kind == "index":
            found: dict[str, Any] = {"kind": "index", "asked": self.asked}
        elif self.kind == "archive":
            found = {"kind": "archive", "archive": self.archive, "hash": self.hash}
        else:
            found = {"kind": "git", "url": self.url, "ref": self.ref, "ref_kind": self.ref_kind, "commit": self.commit}
            found["submodules"] = self.submodules
            found["patches"] = [patch.to_json() for patch in self.patches]
            found.update({"build": list(self.build)} if self.build else {})
        more = {"version": self.version, "subject": self.subject, "moved_from": self.moved_from, "tags": self.tags}
        found.update({name: value for name, value in more.items() if value})
        return {**found, **({"upstream": dict(self.upstream)} if self.upstream else {})}

    def with_(self, **changes: Any) -> Pin:
        """
        Return the same with some fields changed.

        changes
            Fields.
        """
        return evolve(self, **changes)


def _text(value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise TypeError(value)
    return value or ""


def _list(value: Any) -> Sequence[Any]:
    if value is not None and not isinstance(value, (list, tuple)):
        raise TypeError(value)
    return value or ()
