"""
Archives of extensions, wheels and sdists: brought here by address and hash, and looked into before they are unpacked.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import tarfile
import zipfile
from urllib.parse import unquote, urlsplit

from salt.exceptions import CommandExecutionError, SaltException

__virtualname__ = "ckan_archive"

KINDS = (".whl", ".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LARGEST = 500 * 2**20


def __virtual__() -> str:
    return __virtualname__


def fetch(name: str, source: str, source_hash: str, directory: str) -> str:
    """
    Bring an archive here, unless it is here already.

    name
        The extension that it is for.
    source
        ``https://...``, ``http://...`` or ``salt://...``.
    source_hash
        ``sha256=...`` or ``sha512=...``.
    directory
        Where archives are kept, each in a directory named after its hash.

    Returns the path of the archive, which has the file name that it came with. Raises ``CommandExecutionError`` when it
    cannot be had, or is another one than the hash says.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_archive.fetch ckanext-x salt://ckanext_x-1.0-py3-none-any.whl sha256=0f1e... /usr/lib/ckan/shared
    """
    kind, _, wanted = re.sub(r"^(sha\d+):", r"\1=", source_hash).partition("=")
    wanted = wanted.lower()
    file = os.path.basename(unquote(urlsplit(source).path or source.partition("://")[2]))
    if not re.fullmatch(r"[\w.+!-]+", file) or not file.endswith(KINDS):
        raise CommandExecutionError(f"the archive {file} is none of {', '.join(KINDS)}; correct archive in the pillar.")
    target = os.path.join(directory, wanted[:16], file)
    if os.path.isfile(target) and _hash(target, kind) == wanted:
        return target
    try:
        cached = __salt__["cp.cache_file"](source)
        problem = "" if cached else "it is not there"
    except (SaltException, OSError, ValueError) as exc:
        cached, problem = "", str(exc)
    shown = re.sub(r"://[^/@]+@", "://", source)
    if not cached:
        problem = re.sub(r"://[^/@\s]+@", "://", " ".join(problem.split()))
        raise CommandExecutionError(f"the archive {shown} cannot be had: {problem}; correct archive in the pillar.")
    got = _hash(cached, kind)
    if got != wanted:
        # Not kept: Salt would give the same file again.
        os.unlink(cached)
        raise CommandExecutionError(
            f"the archive {shown} has the {kind} {got}, and not {wanted}; find out why before you change hash."
        )
    os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
    shutil.copyfile(cached, f"{target}.draft")
    os.chmod(f"{target}.draft", 0o644)
    os.rename(f"{target}.draft", target)
    return target


def check_members(path: str, largest: int = LARGEST) -> None:
    """
    Refuse an archive that would write outside of where it is unpacked, or is none.

    path
        The archive.
    largest
        How many bytes it may have when it is unpacked.

    Raises ``CommandExecutionError`` that names archive and member.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_archive.check_members /usr/lib/ckan/shared/archives/0f1e/ckanext_x-1.0-py3-none-any.whl
    """
    shown = os.path.basename(path)
    try:
        if path.endswith((".whl", ".zip")):
            with zipfile.ZipFile(path) as archive:
                members = [(info.filename, _zip_link(archive, info), info.file_size, True) for info in archive.filelist]
        else:
            with tarfile.open(path) as archive:
                members = [(info.name, _tar_link(info), info.size, _ordinary(info)) for info in archive]
    except (zipfile.BadZipFile, tarfile.TarError, OSError, EOFError) as exc:
        raise CommandExecutionError(f"{shown} is not an archive of its kind ({exc}); correct archive.") from exc
    for name, link, _, ordinary in members:
        if not ordinary:
            raise CommandExecutionError(f"{shown} holds {name}, which is neither file nor directory; refused.")
        if _outside(name) or _outside(link):
            raise CommandExecutionError(f"{shown} holds {name}, which leads outside of it; refused.")
    size = sum(member[2] for member in members)
    if size > largest:
        raise CommandExecutionError(f"{shown} has {size // 2**20} MB unpacked, more than {largest // 2**20}; refused.")


def _zip_link(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> str:
    """Where a symbolic link leads, from the top of the archive; the member's own name for all others."""
    if stat.S_ISLNK(info.external_attr >> 16) and info.file_size < 4096:
        return os.path.join(os.path.dirname(info.filename), archive.read(info).decode("utf-8", "replace"))
    return info.filename


def _tar_link(info: tarfile.TarInfo) -> str:
    if info.issym():
        return os.path.join(os.path.dirname(info.name), info.linkname)
    return info.linkname if info.islnk() else info.name


def _ordinary(info: tarfile.TarInfo) -> bool:
    return info.isfile() or info.isdir() or info.issym() or info.islnk()


def _outside(name: str) -> bool:
    name = name.replace("\\", "/")
    return name.startswith("/") or os.path.normpath(name).split("/")[0] == ".." or bool(re.match(r"^[A-Za-z]:", name))


def _hash(path: str, kind: str) -> str:
    digest = hashlib.new(kind)
    with open(path, "rb") as handle:
        while block := handle.read(2**20):
            digest.update(block)
    return digest.hexdigest()
