"""
Archives: wheels and sdists, brought here by address and hash, and looked through before anything unpacks them.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, NamedTuple, cast
from urllib.parse import unquote, urlsplit

from ckan_deploy.errors import FormulaError, InvalidArgument
from ckan_deploy.host import Host
from ckan_deploy.system import files

LIMIT = 500 * 2**20
# How the names of directories begin in which archives arrive.
DRAFT = ".fetch-"
WHEEL = re.compile(r"[^-]+-[^-]+(-\d[^-]*)?-[^-]+-[^-]+-[^-]+\.whl")
ZIPS = (".whl", ".zip")
TARS: dict[str, Callable[..., Any]] = {
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tar.bz2": bz2.open,
    ".tar.xz": lzma.open,
}
SUFFIXES = (*ZIPS, *TARS)
DIGITS = {"sha256": 64, "sha512": 128}
# What archives that are damaged or none can make the readers raise.
UNREADABLE = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError,
    ArithmeticError, NotImplementedError,
)  # fmt: skip


class Member(NamedTuple):
    """What an archive says about one member; ``link`` is where a link leads, from the top of the archive."""

    name: str
    kind: str
    size: int
    link: str = ""


def fetch(host: Host, name: str, source: str, source_hash: str, directory: str) -> str:
    """
    Bring an archive here, unless it is here already.

    Salt's ``http_connect_timeout`` and ``http_request_timeout`` hold for it.

    host
        The host, which fetches it.
    name
        The extension that it is for; messages name its key in the pillar.
    source
        Its address: ``https://...``, ``http://...`` or ``salt://...``.
    source_hash
        ``sha256=HEX`` or ``sha512=HEX``, also with a colon, also the digits alone.
    directory
        Where archives are kept, each with its own file name in a directory named after its hash. Made if need be.

    Returns the path of the archive. One that is there with the right hash is taken as it is: no server is asked.

    Raises ``FormulaError`` when the address or the hash is none, when the archive cannot be had, or is another one than
    the hash says. No message has a password in it.
    """
    if not isinstance(directory, str) or not os.path.isabs(directory):
        raise InvalidArgument(f"directory is {directory!r}; use an absolute path.")
    key = f"ckan:extensions:{name}"
    _hash(key, source_hash)  # which a file of the lock file may have none of, for a moment
    return _fetch(host, key, source, source_hash, directory)


def fetch_locked(
    host: Host, name: str, source: str, source_hash: str, directory: str, index_urls: Iterable[str] = ()
) -> str:
    """
    Bring a file of a package here, unless it is here already.

    host, source_hash, directory
        As for ``fetch``; without a hash what is there now is taken.
    name
        The package.
    source
        Its address: ``https://...``, ``http://...`` or ``file://...``; such a file is taken where it is.
    index_urls
        The addresses of package indexes: their users and passwords are for files on the same server, too.

    Returns the path of the file. Raises ``FormulaError`` as ``fetch`` does.
    """
    if source.startswith("file://"):
        path = unquote(urlsplit(source).path)
        if not os.path.isfile(path):
            raise FormulaError(f"there is no file {path} on this host; put it there, or use an index.")
        if source_hash:
            _expect(path, *_hash(name, source_hash), name, os.path.basename(path))
        return path
    parts = urlsplit(source)
    for index in map(urlsplit, index_urls):
        if (
            index.username
            and "@" not in parts.netloc
            and (parts.scheme, parts.hostname) == (index.scheme, index.hostname)
        ):
            source = parts._replace(netloc=f"{index.netloc.rpartition('@')[0]}@{parts.netloc}").geturl()
            break
    return _fetch(host, f"the lock file of {name}", source.partition("#")[0], source_hash, directory)


def _fetch(host: Host, key: str, source: str, source_hash: str, directory: str) -> str:
    shown = _shown(source)
    kind, wanted = _hash(key, source_hash) if source_hash else ("sha256", "")
    file = _file_name(key, source, shown)
    target = os.path.join(directory, wanted[:16], file)
    if wanted and os.path.isfile(target) and digest(target, kind) == wanted:
        return target
    try:
        _make(directory)
        files.sweep(directory, DRAFT)
        # A directory for each run: two deploys at once do not write to one file.
        with files.scratch(directory, DRAFT) as draft:
            got = _download(host, source, os.path.join(draft, file), f"{shown} of {key}:archive")
            if wanted:
                _expect(got, kind, wanted, key, shown)
            else:
                target = os.path.join(directory, digest(got, kind)[:16], file)
            os.chmod(got, 0o644)
            _make(os.path.dirname(target))
            os.replace(got, target)
    except OSError as exc:
        raise FormulaError(
            f"the archive {shown} cannot be kept in {directory} ({exc.strerror}); correct that and deploy again."
        ) from exc
    return target


def check_members(path: str, limit: int = LIMIT) -> dict[str, Any]:
    """
    Refuse an archive that could write outside of where it is unpacked, or is none, or is too large.

    Nothing is unpacked, and no more than ``limit`` is decompressed.

    path
        The archive; its name ends in ``.whl``, ``.zip``, ``.tar.gz``, ``.tgz``, ``.tar.bz2`` or ``.tar.xz``.
    limit
        Bytes that its members may have in all when unpacked, default 500 MB.

    Returns ``{"kind": "wheel" or "sdist", "members": n, "bytes": n}``.

    Raises ``FormulaError`` that names the archive and the member.
    """
    shown = os.path.basename(path)
    suffix = _suffix(path)
    if not suffix:
        raise FormulaError(f"{shown} is none of {', '.join(SUFFIXES)}; name a wheel or an sdist.")
    found: list[Member] = []
    total = 0
    try:
        for member in _tar_members(path, suffix, limit) if suffix in TARS else _zip_members(path):
            problem = _problem(member)
            if problem:
                raise FormulaError(f"the archive {shown} holds {member.name!r}, {problem}; do not use it.")
            total += member.size
            if total > limit:
                raise _TooLarge(member.name)
            found.append(member)
    except _TooLarge as exc:
        raise FormulaError(
            f"the archive {shown} is larger than {limit} bytes when unpacked (at {str(exc)!r}); do not use it."
        ) from exc
    except FileNotFoundError as exc:
        raise FormulaError(f"the archive {path} does not exist; fetch it first.") from exc
    except UNREADABLE as exc:
        raise FormulaError(
            f"{shown} is not the {suffix} archive that its name says ({exc}); correct its address."
        ) from exc
    if not found:
        raise FormulaError(f"the archive {shown} is empty; correct its address.")
    _refuse_paths_through_links(shown, found)
    return {"kind": "wheel" if suffix == ".whl" else "sdist", "members": len(found), "bytes": total}


def digest(path: str, kind: str = "sha256") -> str:
    """
    Return the hash of a file.

    path
        The file.
    kind
        ``sha256`` or ``sha512``.
    """
    found = hashlib.new(kind)
    with open(path, "rb") as handle:
        while block := handle.read(2**20):
            found.update(block)
    return found.hexdigest()


class _TooLarge(Exception):
    """An archive is larger than allowed; says at which member."""


class _Limited:
    """A stream that gives no more than some bytes: also what a tar says of its members may be too large to read."""

    def __init__(self, stream: Any, limit: int) -> None:
        self.stream = stream
        self.left = limit

    def read(self, size: int) -> bytes:
        data: bytes = self.stream.read(min(size, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise _TooLarge("its list of members")
        return data


def _zip_members(path: str) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            mode = info.external_attr >> 16
            if stat.S_ISLNK(mode):
                value = archive.read(info).decode("utf-8") if info.file_size < 4096 else "/"
                yield Member(info.filename, "link", info.file_size, _beside(info.filename, value))
            elif stat.S_IFMT(mode) in (0, stat.S_IFREG, stat.S_IFDIR):
                yield Member(info.filename, "directory" if info.is_dir() else "file", info.file_size)
            else:
                yield Member(info.filename, "device", info.file_size)


def _tar_members(path: str, suffix: str, limit: int) -> Iterator[Member]:
    # Headers and padding come on top of the contents.
    with TARS[suffix](path) as stream:
        limited = cast(IO[bytes], _Limited(stream, limit + limit // 4 + 2**20))
        with tarfile.open(fileobj=limited, mode="r|") as archive:
            for info in archive:
                if info.issym():
                    yield Member(info.name, "link", 0, _beside(info.name, info.linkname))
                elif info.islnk():
                    yield Member(info.name, "hard link", 0, info.linkname)
                elif info.isfile() or info.isdir():
                    yield Member(info.name, "directory" if info.isdir() else "file", info.size)
                else:
                    yield Member(info.name, "device", info.size)


def _beside(name: str, value: str) -> str:
    """Return where a symbolic link leads, from the top of the archive."""
    return os.path.join(os.path.dirname(name.rstrip("/")), value)


def _problem(member: Member) -> str:
    """Say what is wrong with a member by itself, '' for nothing."""
    if member.kind == "device":
        return "which is neither a file nor a directory nor a link"
    if _absolute(member.name) or ".." in re.split(r"[/\\]", member.name):
        return "which leads outside"
    if member.link and (_absolute(member.link) or os.path.normpath(member.link).split("/")[0] == ".."):
        return f"a link that leads outside ({member.link})"
    return ""


def _absolute(name: str) -> bool:
    return name.startswith(("/", "\\")) or bool(re.match(r"[A-Za-z]:[/\\]", name)) or "\0" in name


def _refuse_paths_through_links(shown: str, members: list[Member]) -> None:
    """
    Refuse members and links whose way leads over a link. ``..`` behind a link is not what the text says, so a chain of
    links that each look harmless can lead outside.
    """
    links = {os.path.normpath(member.name) for member in members if member.kind == "link"}
    for member in members if links else []:
        # A link itself, and what it leads to, may be links; nothing may be written or read through one.
        over = _link_on(member.name, links, last=member.kind != "link")
        if not over and member.link:
            over = _link_on(member.link, links, last=member.kind == "hard link")
        if over:
            raise FormulaError(
                f"the archive {shown} holds {member.name!r}, which leads over the link {over!r}; do not use it."
            )


def _link_on(way: str, links: set[str], last: bool) -> str:
    """Return the first link that a way leads over, '' for none; ``last`` says whether its end counts."""
    place: list[str] = []
    parts = [part for part in way.split("/") if part not in ("", ".")]
    for index, part in enumerate(parts, 1):
        place = place[:-1] if part == ".." else [*place, part]
        if "/".join(place) in links and (last or index < len(parts)):
            return "/".join(place)
    return ""


def _download(host: Host, source: str, target: str, what: str) -> str:
    """Fetch by Salt's own client, which may raise, or return a false value."""
    try:
        got = host.download(source, target)
        reason = "it is not in the file server" if source.startswith("salt://") else "it was not given"
    except (FormulaError, OSError, ValueError) as exc:
        got, reason = "", _without_secrets(str(exc), source)
    if not got or not os.path.isfile(target):
        raise FormulaError(f"the archive {what} cannot be had ({reason}); correct it or try again later.")
    return target


def _expect(path: str, kind: str, wanted: str, key: str, shown: str) -> None:
    found = digest(path, kind)
    if found != wanted:
        raise FormulaError(
            f"the archive {shown} has the {kind} {found}, and {key}:hash says {wanted}; "
            f"find out why before you change it."
        )


def _hash(key: str, text: str) -> tuple[str, str]:
    """Take apart what the settings say of a hash."""
    match = re.fullmatch(r"(?:(sha256|sha512)[=:])?([0-9a-f]+)", str(text).strip().lower())
    kind, digits = (match[1] or "", match[2]) if match else ("", "")
    kind = kind or next((name for name, count in DIGITS.items() if count == len(digits)), "")
    if not kind or len(digits) != DIGITS[kind]:
        raise FormulaError(f"{key}:hash is {text!r}, which is no sha256 or sha512; write sha256= and 64 hex digits.")
    return kind, digits


def _file_name(key: str, source: str, shown: str) -> str:
    """Return the file name in an address: installers read name and version in it."""
    scheme, _, rest = str(source).partition("://")
    if scheme not in ("https", "http", "salt") or re.search(r"[\s\x00-\x1f]", source):
        raise FormulaError(f"{key}:archive is {shown}; use an address with https://, http:// or salt://.")
    path = urlsplit(source).path if scheme != "salt" else rest.partition("?")[0]
    if ".." in path.split("/"):
        raise FormulaError(f"{key}:archive is {shown}; write the address without '..'.")
    file = os.path.basename(unquote(path))
    if not re.fullmatch(r"\w[\w.+!~-]*", file) or not _suffix(file):
        raise FormulaError(f"{key}:archive is {shown}, which ends in none of {', '.join(SUFFIXES)}.")
    if file.endswith(".whl") and not WHEEL.fullmatch(file):
        raise FormulaError(
            f"{key}:archive is {shown}, and installers need the name of a wheel as it was built: "
            f"name-version-python-abi-platform.whl."
        )
    return file


def _suffix(path: str) -> str:
    return next((suffix for suffix in SUFFIXES if path.endswith(suffix)), "")


def _shown(source: Any) -> str:
    """Return an address as it may be shown: without a user, a password or a query."""
    text, query, _ = " ".join(str(source).split()).partition("?")
    scheme, mark, rest = text.partition("://")
    # From the last @ on, since a password may hold a slash.
    shown = f"{scheme}://****@{rest.rpartition('@')[2]}" if mark and "@" in rest else text
    return shown + ("?****" if query else "")


def _without_secrets(text: str, source: str) -> str:
    """Return what Salt said without what must not be shown; it ends with the path, which the message names anyway."""
    text = text.partition(" reading ")[0].removeprefix("Error: ")
    address = source.partition("://")[2]
    secrets = [source, address, address.partition("?")[2], address.partition("?")[0].rpartition("@")[0]]
    for secret in filter(None, [*secrets, secrets[3].partition(":")[2]]):
        text = text.replace(secret, "****")
    return " ".join(text.split())


def _make(directory: str) -> None:
    """Make a directory that all may read, with those above it, whatever the umask is."""
    missing = []
    while not os.path.isdir(directory):
        missing.append(directory)
        directory = os.path.dirname(directory)
    for path in reversed(missing):
        try:
            os.mkdir(path)
            os.chmod(path, 0o755)
        except FileExistsError:
            pass  # another run was quicker
