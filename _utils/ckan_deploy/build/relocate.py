"""
Relocation: copy a virtualenv to another place so that the copy names its own place only, and find what does not.

The copy may share the contents of its files with its source through hard links, so nothing here ever writes into an
existing file: a file that must differ is written as a new one. This is the lower half of ``virtualenv``, whose
``clone`` and ``verify`` check their arguments, ask the interpreter too and clean up.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import glob
import json
import logging
import os
import re
import shutil
import stat
import urllib.parse
from collections.abc import Collection, Iterable, Iterator, Mapping

from attrs import frozen

from ckan_deploy.build import prefixes
from ckan_deploy.system import files, reflink

log = logging.getLogger(__name__)

# What belongs to the source alone: its sockets, its configuration, its manifest, its lock.
SKIP = re.compile(r"^(run|.*\.ini|release\.json|\.lock|pylock\.toml)$")
# Modes that a release may have: nobody but its owner writes, and no file changes who one is.
FAIR = 0o755
# Where tests are in a virtualenv: no portal imports them, so they need no bytecode.
UNUSED = r"(?:lib|src)/.+/tests?/"
# What a file system gives at a time, mostly.
BLOCK = 4096
METADATA = ("direct_url.json", "RECORD", "SOURCES.txt", "installed-files.txt")


@frozen
class Copied:
    """
    How many files were linked, copied and written anew, what of the disk is the copy's own, and the places that the
    source named as its own.
    """

    linked: int
    copied: int
    rewritten: int
    own_bytes: int
    prefixes: tuple[str, ...]


def copy(source: str, target: str, link: str = "auto", leave_out: Collection[str] = ()) -> Copied:
    """
    Fill the empty directory ``target`` with a relocated copy of the virtualenv ``source``.

    source
        Absolute path of the virtualenv to copy, in its normal form.
    target
        Absolute path of an empty directory, in its normal form.
    link
        How file contents are shared: ``hard`` by hard links where that is possible, ``auto`` by reflinks where the file
        system has them and else by hard links, ``copy`` not at all.
    leave_out
        Names at its top that are not copied.

    Raises ``OSError`` when a file cannot be read or written.
    """
    copier = _Cloner(source, target, link, leave_out)
    with files.usual_modes(), _opened(source, None, os.O_DIRECTORY) as folder:
        copier.directory(folder, source, target, "top")
    copier.drop_stale_bytecode()
    return Copied(**copier.counts, own_bytes=copier.own_bytes, prefixes=tuple(copier.prefixes))


def is_fair(about: os.stat_result, user: int) -> bool:
    """
    Say whether a file may be shared: it is ours, and gives nobody else rights that it should not.

    about
        What the system says of it.
    user
        The number of the user that we are.
    """
    return about.st_uid == user and about.st_mode & 0o7777 == about.st_mode & FAIR


def problems(path: str, forbidden: Iterable[str] = ()) -> list[str]:
    """
    Say which files of the virtualenv at ``path`` name a place that they must not; an empty list means none.

    path
        Absolute path of the virtualenv, in its normal form.
    forbidden
        Absolute paths that it must not name: where it was cloned from, other releases.

    Returns a list of sentences without full stop.
    """
    found: list[str] = []
    own = prefixes.pattern([path])
    others = [item for item in forbidden if item.rstrip("/") != path]
    foreign, forms = prefixes.pattern(others), prefixes.forms(others)
    for name in _telling_files(path):
        shown = os.path.relpath(name, path)
        try:
            with open(name, "rb") as handle:
                data = handle.read()
        except OSError as exc:
            found.append(f"{shown} cannot be read ({exc.strerror})")
            continue
        if os.path.dirname(name) == f"{path}/bin":
            head = prefixes.shebang(data)
            if head and prefixes.is_python(head.interpreter) and not prefixes.inside(head.interpreter, path):
                found.append(f"{shown} starts {head.interpreter}, which is outside {path}")
        # The own path goes first: it may lie below a forbidden one.
        told = prefixes.mentions(data, forms) and not prefixes.is_binary(data)
        named = foreign.search(own.sub(b"", data)) if told else None
        if named:
            found.append(f"{shown} names {os.fsdecode(named['prefix'])}")
        found += [f"{shown} names {editable}, which does not exist" for editable in _lost_paths(name, data)]
    return found


def rename(path: str, places: Mapping[str, str]) -> int:
    """
    Let a virtualenv's scripts name other places: an installer was told of another interpreter.

    path
        Absolute path of the virtualenv, in its normal form.
    places
        ``{old absolute path: new absolute path}``.

    Returns how many files were written anew. Raises ``OSError``.
    """
    # The longest first: one may lie inside another.
    pairs = [(prefixes.pattern([old]), places[old]) for old in sorted(places, key=len, reverse=True)]
    count = 0
    scripts = [entry.path for entry in os.scandir(f"{path}/bin") if entry.is_file(follow_symlinks=False)]
    for name in sorted(scripts):
        with open(name, "rb") as handle:
            data = handle.read()
        changed = data
        if not prefixes.is_binary(data):
            for old, new in pairs:
                changed = prefixes.replaced(changed, old, new, script=True)
        if changed != data:
            _replace(name, changed)
            count += 1
    return count


class _Cloner:
    """One pass over a virtualenv that makes another one of it."""

    def __init__(self, source: str, target: str, link: str, leave_out: Collection[str]) -> None:
        self.leave_out = leave_out
        self.own_bytes = 0
        self.source = source
        self.target = target
        self.reflink = link == "auto" and reflink.possible(source, target)
        self.link = link != "copy" and not self.reflink
        self.prefixes = prefixes.own(source)
        self.pattern, self.forms = prefixes.pattern(self.prefixes), prefixes.forms(self.prefixes)
        self.counts = {"linked": 0, "copied": 0, "rewritten": 0}
        self.rewritten: list[str] = []
        self.user = os.geteuid()
        self.unused = re.compile(f"{re.escape(source)}/{UNUSED}")

    def directory(self, folder: int, source: str, target: str, kind: str) -> None:
        """
        Fill the directory ``target``, which exists, from ``source``, whose descriptor is ``folder``; ``kind`` says what
        its files may be. By descriptors, since the source may be somebody's who puts a link in the place of a name.
        """
        about = os.fstat(folder)
        # Nobody else changes what is in a directory that is ours alone.
        ours = is_fair(about, self.user)
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if kind == "top" and (SKIP.match(name) or name in self.leave_out):
                    continue
                old, new = f"{source}/{name}", f"{target}/{name}"
                # Most of them first, by thousands.
                if entry.is_file(follow_symlinks=False):
                    self.file(entry, folder, new, kind, ours)
                elif entry.is_symlink():
                    self.symlink(os.readlink(name, dir_fd=folder), old, new)
                elif entry.is_dir(follow_symlinks=False):
                    if name == "__pycache__" and self.unused.match(old):
                        continue
                    os.mkdir(new, 0o755)
                    with _opened(name, folder, os.O_DIRECTORY) as below:
                        self.directory(below, old, new, kind_of(kind, name))
        self.own_bytes += BLOCK
        mode = about.st_mode & FAIR
        if mode != 0o755 or kind == "top":
            # Last, since the mode may forbid writing.
            os.chmod(target, mode)

    def file(self, entry: os.DirEntry[str], folder: int, new: str, kind: str, ours: bool) -> None:
        """Rewrite, link or copy one file of a directory that is ``ours`` alone or not."""
        if kind != "plain" and may_name_prefix(kind, entry.name) and self.rewrite(entry.name, folder, new, kind):
            return
        about = entry.stat(follow_symlinks=False)
        # What others may write to, or what would give others more rights than they have, is not taken as it is.
        fair = self.link and kind != "src" and is_fair(about, self.user)
        if fair and self.linked(entry.name, folder, new, 0 if ours else about.st_ino):
            return
        with _opened(entry.name, folder) as fd, open(new, "xb") as copy:
            about = os.fstat(fd)
            if not stat.S_ISREG(about.st_mode):
                raise OSError(errno.ESTALE, "it has become something else meanwhile", entry.name)
            if not (self.reflink and reflink.copy(fd, copy.fileno())):
                self.own_bytes += _on_disk(about.st_size)
                with open(fd, "rb", closefd=False) as content:
                    shutil.copyfileobj(content, copy)
        os.chmod(new, about.st_mode & FAIR)
        # Python takes bytecode for stale otherwise.
        os.utime(new, ns=(about.st_atime_ns, about.st_mtime_ns))
        self.counts["copied"] += 1

    def linked(self, name: str, folder: int, new: str, inode: int) -> bool:
        """Share a file, if that can be done and it is the one that was looked at; 0 where it can be no other."""
        try:
            os.link(name, new, src_dir_fd=folder, follow_symlinks=False)
        except OSError as exc:
            if exc.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM):
                raise
            # Another file system stays another one; the other two may concern this file alone.
            self.link = exc.errno != errno.EXDEV
            return False
        if inode and os.lstat(new).st_ino != inode:
            os.unlink(new)
            return False
        self.counts["linked"] += 1
        return True

    def rewrite(self, name: str, folder: int, new: str, kind: str) -> bool:
        """Write a file anew that names a place of the source; False for one that names none."""
        with _opened(name, folder) as fd, open(fd, "rb", closefd=False) as handle:
            data, mode = handle.read(), os.fstat(fd).st_mode
        if not prefixes.mentions(data, self.forms) or prefixes.is_binary(data):
            return False
        changed = prefixes.replaced(data, self.pattern, self.target, kind == "bin")
        if changed == data:
            return False
        with open(new, "xb") as handle:
            handle.write(changed)
        self.own_bytes += _on_disk(len(changed))
        os.chmod(new, mode & FAIR)
        self.counts["rewritten"] += 1
        self.rewritten.append(new)
        return True

    def symlink(self, value: str, old: str, new: str) -> None:
        """Keep a symlink's meaning: what lay inside the source lies inside the target."""
        if os.path.isabs(value):
            for prefix in self.prefixes:
                if prefixes.inside(value, prefix):
                    value = self.target + value[len(prefix) :]
                    break
        else:
            place = os.path.normpath(os.path.join(os.path.dirname(old), value))
            value = value if prefixes.inside(place, self.source) else place
        os.symlink(value, new)

    def drop_stale_bytecode(self) -> None:
        """Remove the bytecode of rewritten modules: with an equal size and time it would pass as fresh."""
        for name in self.rewritten:
            for old in bytecode(name):
                self.counts["linked" if os.stat(old).st_nlink > 1 else "copied"] -= 1
                os.unlink(old)


def _on_disk(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


@contextlib.contextmanager
def _opened(name: str, folder: int | None, kind: int = 0) -> Iterator[int]:
    """Open a file or a directory of a directory to read it: neither a link is followed, nor a FIFO waited for."""
    # The directory that somebody has named may be a link.
    plain = 0 if folder is None else os.O_NOFOLLOW
    fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | plain | kind, dir_fd=folder)
    try:
        yield fd
    finally:
        os.close(fd)


def kind_of(parent: str, name: str) -> str:
    """
    Say what the files in a directory may be: plain, or of a kind that names the virtualenv's place.

    parent
        The kind of the directory that it is in; ``top`` for the virtualenv itself.
    name
        Its name.
    """
    if parent == "top":
        return name if name in ("bin", "src") else "plain"
    if parent == "src":
        return "src"
    if name == "site-packages":
        return "site"
    return "meta" if parent == "site" and name.endswith((".dist-info", ".egg-info")) else "plain"


def may_name_prefix(kind: str, name: str) -> bool:
    """
    Say whether a file is one of those that installers write the virtualenv's place into.

    kind
        The kind of its directory, as ``kind_of`` says it.
    name
        Its name.
    """
    if kind == "top":
        return name == "pyvenv.cfg" or name.endswith(".pth")
    if kind == "site":
        # Build backends name their editable finders freely, so each single-file module is looked at.
        return name.endswith((".pth", ".egg-link", ".py"))
    if kind == "meta":
        return name in METADATA
    # A submodule or worktree names its repository in a file called .git.
    return kind == "bin" or (kind == "src" and name == ".git")


def _telling_files(path: str) -> list[str]:
    """List the files of a virtualenv that may name its place (checkouts aside)."""
    folders = [(path, "top"), (f"{path}/bin", "bin")]
    for site in sorted(glob.glob(f"{glob.escape(path)}/lib/*/site-packages")):
        folders.append((site, "site"))
        folders += [(entry.path, "meta") for entry in os.scandir(site) if kind_of("site", entry.name) == "meta"]
    found = []
    for folder, kind in folders:
        if os.path.isdir(folder):
            found += [
                entry.path
                for entry in os.scandir(folder)
                if may_name_prefix(kind, entry.name) and entry.is_file() and not entry.is_symlink()
            ]
    return sorted(found)


def _lost_paths(name: str, data: bytes) -> Iterator[str]:
    """The directories that a file puts on the module path, and that do not exist."""
    for editable in _editable_paths(name, data):
        if not os.path.exists(editable) and not os.path.exists(f"{editable}.py"):
            yield editable


def _editable_paths(name: str, data: bytes) -> list[str]:
    """List the directories that a file puts on the module path."""
    base = os.path.basename(name)
    text = data.decode("utf-8", "replace")
    if base.endswith(".pth"):
        return [line.strip() for line in text.splitlines() if line.startswith("/")]
    if base.endswith(".egg-link"):
        return [line.strip() for line in text.splitlines()[:1]]
    try:
        if base.startswith("__editable__"):
            found = re.search(r"^MAPPING\b[^=\n]*= (\{.*\})$", text, re.MULTILINE)
            return list(ast.literal_eval(found[1]).values()) if found else []
        if base == "direct_url.json":
            content = json.loads(text)
            url = urllib.parse.urlsplit(content.get("url", ""))
            editable = content.get("dir_info", {}).get("editable")
            return [urllib.parse.unquote(url.path)] if editable and url.scheme == "file" else []
    except (ValueError, SyntaxError):
        log.warning("%s cannot be read as what its name says", name)
    return []


def _replace(name: str, content: bytes) -> None:
    """Put a new file of the same mode in the place of one that others may share."""
    mode = stat.S_IMODE(os.stat(name).st_mode)
    draft = f"{name}.new"
    if os.path.lexists(draft):
        os.unlink(draft)
    with open(draft, "xb") as handle:
        handle.write(content)
    os.chmod(draft, mode)
    os.rename(draft, name)


def bytecode(name: str) -> list[str]:
    """
    List the files with the bytecode of a module, none for a file that is no module.

    name
        The file.
    """
    folder, module = os.path.split(name)
    if not module.endswith(".py"):
        return []
    return glob.glob(f"{glob.escape(folder)}/__pycache__/{glob.escape(module[:-3])}.*.pyc")
