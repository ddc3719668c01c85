"""
Libraries that are required by an address: a wheel or sdist, or a repository of git. At plan each becomes a wheel and an
entry of the lock file with hash or commit; later on every host makes the wheel again from that entry.

Neither the installer nor anything else of root follows such an address on its own: git runs as for an extension, and
what has to be built is built in the sandbox.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

from attrs import evolve, frozen
from packaging.utils import canonicalize_name

from ckan_deploy.build import wheels
from ckan_deploy.build.requirements import Asked
from ckan_deploy.build.wheels import Builder
from ckan_deploy.errors import FormulaError
from ckan_deploy.sources import archives, origins, repositories, tags
from ckan_deploy.sources.git import Origin
from ckan_deploy.sources.pylock import File, Locked
from ckan_deploy.system import ownership

DIGESTS = ("sha256", "sha512")


@frozen
class Address:
    """An address taken apart: of ``git`` with its ref, or of an archive with the ``hash`` that it states."""

    url: str
    git: bool = False
    ref: str = ""
    subdirectory: str = ""
    hash: str = ""


@frozen
class Library:
    """What an address came to: the entry of the lock file, its wheel on this host, and what that requires."""

    locked: Locked
    wheel: str
    requires: Sequence[str]


def parse(address: str) -> Address:
    """
    Take an address apart: https://packaging.python.org/specifications/version-specifiers/#direct-references

    address
        The address.

    Raises ``FormulaError`` for a kind that is not known here.
    """
    plain, _, fragment = address.partition("#")
    about = {key: values[0] for key, values in parse_qs(fragment).items()}
    subdirectory = about.get("subdirectory", "").strip("/")
    if ".." in subdirectory.split("/") or subdirectory.startswith("-"):
        raise FormulaError("its subdirectory leads outside of the repository; correct it")
    if plain.lower().startswith("git+") or plain.startswith(("git://", "ssh://")):
        url, ref = _revision(re.sub(r"^git\+", "", plain, flags=re.IGNORECASE))
        return Address(url, True, ref or "HEAD", subdirectory)
    scheme = urlsplit(plain).scheme
    if scheme not in ("https", "http", "file"):
        raise FormulaError(f"addresses with {scheme}: are not known here; use https, file or git+https")
    hashes = [f"{kind}={about[kind]}" for kind in DIGESTS if kind in about]
    return Address(plain, False, "", subdirectory, hashes[0] if hashes else "")


def same_place(url: str) -> str:
    """
    Return what two addresses of one repository of git have in common: without login, scheme and ``.git``.

    url
        An address, also in the short form of ssh.
    """
    scp = re.fullmatch(r"(?:[^@/]+@)?([^:/]+):(?!//)(.+)", url)
    if scp:
        host, path = scp[1], scp[2]
    else:
        parts = urlsplit(url)
        host, path = parts.hostname or "", parts.path
    path = path.strip("/").removesuffix(".git")
    # What is on this host is told apart by case.
    return f"{host.lower()}/{path.lower()}" if host else f"/{path}"


def bring(asked: Asked, builder: Builder) -> Library:
    """
    Decide what an address stands for now, and make a wheel of it.

    asked
        The requirement that has it.
    builder
        Builds what is no wheel.

    Raises ``FormulaError`` that names who asks, the line, and what cannot be had.
    """
    try:
        about = parse(asked.address)
        found = _of_git(about, builder) if about.git else _of_archive(about, builder)
        wheel = wheel_of(found, builder)
        name, version, requires = wheels.read(wheel)
        if asked.name and canonicalize_name(name) != asked.name:
            raise FormulaError(f"what is there is {name}; correct the name or the address")
        archive = found.archive
        if archive and asked.hashes and not _states(asked.hashes, archive):
            raise FormulaError("what is there has none of the hashes that the line states; find out why")
    except FormulaError as exc:
        private = ""
        if asked.address.startswith("git"):
            private = "; if it is private, list it under ckan:extensions with its key or token"
        raise FormulaError(f"{asked}: {str(exc).rstrip('.')}{private}") from exc
    locked = Locked(
        canonicalize_name(name), version, archive=found.archive, url=found.url, ref=found.ref, commit=found.commit,
        subdirectory=found.subdirectory, tags=found.tags,
    )  # fmt: skip
    return Library(locked, wheel, requires)


def hashed(locked: Locked, builder: Builder) -> Locked:
    """
    Return an entry with a hash for each file: where the package index states none, that of what is there now.

    locked
        The entry, of a package index.
    builder
        Has the host, which fetches it.

    Raises ``FormulaError``.
    """

    def with_hash(file: File) -> File:
        if file.hashes:
            return file
        return File(url=file.url, hashes={"sha256": archives.digest(_fetched(locked.name, file.url, "", builder))})

    sdist = with_hash(locked.sdist) if locked.sdist else None
    return evolve(locked, wheels=tuple(map(with_hash, locked.wheels)), sdist=sdist)


def wheel_of(locked: Locked, builder: Builder) -> str:
    """
    Return the wheel of an entry of the lock file on this host; what has to be fetched and built is.

    locked
        The entry: an archive or a checkout; of a package index, one that has an sdist.
    builder
        Builds it.

    Raises ``FormulaError``.
    """
    if locked.commit:
        place = origins.library(locked.pin(), builder.installer.shared)
        return builder.of_checkout(place, locked.subdirectory)
    file = locked.archive or locked.sdist
    kind = next((kind for kind in DIGESTS if file and kind in file.hashes), "")
    if file is None or not kind:
        raise FormulaError(f"the lock file has no sources of {locked.name} with a hash; deploy again for a new one")
    if locked.archive:
        _refuse_others_file(file.url)
    path = _fetched(locked.name, file.url, f"{kind}={file.hashes[kind]}", builder)
    return path if path.endswith(".whl") else builder.of_sdist(path)


def _revision(url: str) -> tuple[str, str]:
    """Address and ref: what stands behind the last @ of the path."""
    if "://" in url:
        parts = urlsplit(url)
        path, mark, ref = parts.path.rpartition("@")
        return (urlunsplit(parts._replace(path=path)), ref) if mark else (url, "")
    host, _, path = url.partition(":")
    inner, mark, ref = path.rpartition("@")
    return (f"{host}:{inner}", ref) if mark else (url, "")


def _of_git(about: Address, builder: Builder) -> Locked:
    if about.url.startswith("file://") or about.url.startswith("/"):
        _refuse_others(about.url.removeprefix("file://"), folder=True)
    origin, mirrors = Origin(about.url, about.ref), os.path.join(builder.installer.shared, "mirrors")
    got = repositories.resolve(origin, mirrors)
    return Locked(
        "x", "0", url=about.url, ref=about.ref, commit=got.commit, subdirectory=about.subdirectory,
        tags=tags.known(origin, got.commit, about.subdirectory, mirrors),
    )  # fmt: skip


def _of_archive(about: Address, builder: Builder) -> Locked:
    _refuse_others_file(about.url)
    if about.subdirectory:
        raise FormulaError("a subdirectory of an archive is not known here; use the address of a wheel")
    kind, _, digits = about.hash.partition("=")
    if not digits:
        # What is there now is what all hosts will take.
        kind, digits = "sha256", archives.digest(_fetched("a requirement", about.url, "", builder))
    return Locked("x", "0", archive=File(url=about.url, hashes={kind: digits.lower()}))


def _fetched(name: str, url: str, source_hash: str, builder: Builder) -> str:
    folder = os.path.join(builder.installer.shared, "archives")
    path = archives.fetch_locked(builder.host, name, url, source_hash, folder, builder.installer.indexes)
    archives.check_members(path)
    return path


def _refuse_others_file(url: str) -> None:
    if url.startswith("file:"):
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise FormulaError(f"{url} is on another host; write file:///...")
        _refuse_others(unquote(parts.path), folder=False)


def _refuse_others(path: str, folder: bool) -> None:
    """Root reads for an extension what all may read anyway, and what nobody else can change under its hands."""
    if not os.path.isabs(path):
        raise FormulaError(f"{path} is no whole path; write file:///...")
    try:
        for place in (*ownership.above(path), *ownership.above(os.path.realpath(path))):
            if not os.stat(place).st_mode & 0o001 or not ownership.is_fixed(place):
                raise FormulaError(
                    f"not all may go into {place}, or others than root may change what is in it; name another place"
                )
        _refuse_one(path, folder)
        # git takes these for the repository as well: https://git-scm.com/docs/git-upload-pack
        for repository in (f"{path}/.git", f"{path}.git", f"{path}.git/.git") if folder else ():
            if os.path.lexists(repository):
                _refuse_one(repository, folder)
    except OSError as exc:
        raise FormulaError(f"{path} cannot be had on this host ({exc.strerror}); correct it") from exc


def _refuse_one(path: str, folder: bool) -> None:
    status = os.stat(path)
    if not (stat.S_ISDIR if folder else stat.S_ISREG)(status.st_mode):
        raise FormulaError(f"{path} is no {'directory' if folder else 'file'}; correct it")
    readable = 0o005 if folder else 0o004
    if not ownership.is_roots(status) or status.st_mode & readable != readable:
        raise FormulaError(f"{path} is not root's own, or not to be read by all; correct that, or name another place")


def _states(hashes: Sequence[str], file: File) -> bool:
    return any(f"{kind}:{digits}" in hashes for kind, digits in file.hashes.items())
