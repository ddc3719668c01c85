"""
Relocation: copy a virtualenv to another place so that the copy names its own place only, and find what does not.

The copy shares the contents of its files with its source through hard links, so nothing here ever writes into an
existing file: a file that must differ is written as a new one. This is the lower half of ``ckan_venv``, whose ``clone``
and ``verify`` check their arguments, ask the interpreter too and clean up.
"""

from __future__ import annotations

import ast
import errno
import glob
import json
import logging
import os
import re
import shutil
import stat
import urllib.parse
from collections.abc import Iterable
from typing import Any

log = logging.getLogger(__name__)

__virtualname__ = "ckan_relocate"

# What belongs to the source alone: its sockets, its configuration, its manifest, its lock.
SKIP = re.compile(r"^(run|.*\.ini|release\.json|\.lock)$")
# A prefix ends where a file name cannot go on: /x/default is neither in /x/default2 nor in /y/x/default.
NAME_BYTES = rb"\w.+~@%\x80-\xff-"
METADATA = ("direct_url.json", "RECORD", "SOURCES.txt", "installed-files.txt")
# The kernel reads no more than this of a script's first line.
SHEBANG_MAX = 127
TRAMPOLINE = re.compile(
    rb"""#! ?/bin/sh\n'''exec' (?:'(?P<one>/[^'\n]*)'|"(?P<two>/[^"\n]*)"|(?P<bare>/[^\s'"]*))"""
    rb"""(?P<args>[^\n]*?) "\$0" "\$@"\n' '''\n"""
)
DIRECT = re.compile(rb"#![ \t]*(?P<bare>/[^\s]*)(?P<args>[^\n]*)\n")
SYSTEM_PREFIXES = ("", "/", "/usr", "/usr/local", "/opt")


def __virtual__() -> str:
    return __virtualname__


def copy(source: str, target: str, link: str = "hard", ids: Iterable[int] | None = None) -> dict[str, Any]:
    """
    Fill the empty directory ``target`` with a relocated copy of the virtualenv ``source``.

    source
        Absolute path of the virtualenv to copy, in its normal form.
    target
        Absolute path of an empty directory, in its normal form.
    link
        ``hard`` shares file contents by hard links where that is possible, ``copy`` copies every file.
    ids
        Numbers of the user and the group that get the new directories and files. Default: whoever runs this.

    Returns ``{"linked": n, "copied": n, "rewritten": n, "prefixes": [places that the source named as its own]}``.
    Raises OSError when a file cannot be read or written.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_relocate.copy /usr/lib/ckan/default /srv/ckan-copy
    """
    copier = _Cloner(source, target, link == "hard", tuple(ids) if ids else None)
    copier.directory(source, target, "top")
    copier.drop_stale_bytecode()
    return {**copier.counts, "prefixes": copier.prefixes}


def problems(path: str, forbidden: Iterable[str] = ()) -> list[str]:
    """
    Say which files of the virtualenv at ``path`` name a place that they must not; an empty list means none.

    path
        Absolute path of the virtualenv, in its normal form.
    forbidden
        Absolute paths that it must not name: where it was cloned from, other releases.

    Returns a list of sentences without full stop.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_relocate.problems /srv/ckan-copy forbidden='[/usr/lib/ckan/default]'
    """
    found_problems = []
    own = _prefix_pattern([path])
    foreign = _prefix_pattern([item for item in forbidden if item.rstrip("/") != path])
    for name in _telling_files(path):
        shown = os.path.relpath(name, path)
        try:
            with open(name, "rb") as handle:
                data = handle.read()
        except OSError as exc:
            found_problems.append(f"{shown} cannot be read ({exc.strerror})")
            continue
        if os.path.dirname(name) == f"{path}/bin":
            head = _shebang(data)
            if head and _is_python(head[0]) and not _inside(head[0], path):
                found_problems.append(f"{shown} starts {head[0]}, which is outside {path}")
        # The own path goes first: it may lie below a forbidden one.
        found = foreign.search(own.sub(b"", data)) if foreign and not _is_binary(data) else None
        if found:
            found_problems.append(f"{shown} names {os.fsdecode(found['prefix'])}")
        for editable in _editable_paths(name, data):
            if not os.path.exists(editable) and not os.path.exists(f"{editable}.py"):
                found_problems.append(f"{shown} names {editable}, which does not exist")
    return found_problems


def rename(path: str, places: dict[str, str]) -> int:
    """
    Let a virtualenv's files name other places: a checkout that it was installed from stands elsewhere in the end.

    path
        Absolute path of the virtualenv, in its normal form.
    places
        ``{old absolute path: new absolute path}``.

    Returns how many files were written anew. Raises OSError.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_relocate.rename /srv/venv '{/srv/old: /srv/venv/src/new}'
    """
    # The longest first: one may lie inside another.
    pairs = [(_prefix_pattern([old]), places[old]) for old in sorted(places, key=len, reverse=True)]
    count = 0
    for name in _telling_files(path):
        with open(name, "rb") as handle:
            data = handle.read()
        changed = data
        if not _is_binary(data):
            for pattern, new in pairs:
                changed = _relocate(changed, pattern, new, os.path.dirname(name) == f"{path}/bin")
        if changed == data:
            continue
        status = os.stat(name)
        draft = f"{name}.new"
        if os.path.lexists(draft):
            os.unlink(draft)
        with open(draft, "xb") as handle:
            handle.write(changed)
        os.chmod(draft, stat.S_IMODE(status.st_mode))
        os.rename(draft, name)
        if name.endswith(".py"):
            folder, module = os.path.split(name)
            for old in glob.glob(f"{glob.escape(folder)}/__pycache__/{glob.escape(module[:-3])}.*.pyc"):
                os.unlink(old)
        count += 1
    return count


class _Cloner:
    """One pass over a virtualenv that makes another one of it."""

    def __init__(self, source: str, target: str, link: bool, ids: tuple[int, int] | None) -> None:
        self.source = source
        self.target = target
        self.link = link
        self.ids = ids
        self.prefixes = _old_prefixes(source)
        self.pattern = _prefix_pattern(self.prefixes)
        self.counts = {"linked": 0, "copied": 0, "rewritten": 0}
        self.rewritten_modules: list[str] = []

    def directory(self, source: str, target: str, kind: str) -> None:
        """Fill the directory ``target``, which exists, from ``source``; ``kind`` says what its files may be."""
        with os.scandir(source) as entries:
            for entry in entries:
                name = entry.name
                if kind == "top" and SKIP.match(name):
                    continue
                new = f"{target}/{name}"
                if entry.is_symlink():
                    self.symlink(entry.path, new)
                elif entry.is_dir():
                    os.mkdir(new)
                    self.directory(entry.path, new, _kind(kind, name))
                elif entry.is_file():
                    self.file(entry, new, kind)
        # Last, since the mode may forbid writing.
        os.chmod(target, stat.S_IMODE(os.stat(source).st_mode))
        self.own(target)

    def file(self, entry: os.DirEntry[str], new: str, kind: str) -> None:
        """Rewrite, link or copy one file."""
        if _may_name_prefix(kind, entry.name):
            with open(entry.path, "rb") as handle:
                data = handle.read()
            changed = data if _is_binary(data) else _relocate(data, self.pattern, self.target, kind == "bin")
            if changed != data:
                with open(new, "xb") as handle:
                    handle.write(changed)
                os.chmod(new, stat.S_IMODE(entry.stat().st_mode))
                self.own(new)
                self.counts["rewritten"] += 1
                if new.endswith(".py"):
                    self.rewritten_modules.append(new)
                return
        if self.link and kind != "src":
            try:
                os.link(entry.path, new)
                self.counts["linked"] += 1
                return
            except OSError as exc:
                if exc.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM):
                    raise
                # Another file system stays another one; the other two may concern this file alone.
                self.link = exc.errno != errno.EXDEV
        shutil.copy2(entry.path, new)
        self.own(new)
        self.counts["copied"] += 1

    def symlink(self, old: str, new: str) -> None:
        """Keep a symlink's meaning: what lay inside the source lies inside the target."""
        value = os.readlink(old)
        if os.path.isabs(value):
            for prefix in self.prefixes:
                if _inside(value, prefix):
                    value = self.target + value[len(prefix) :]
                    break
        else:
            place = os.path.normpath(os.path.join(os.path.dirname(old), value))
            value = value if _inside(place, self.source) else place
        os.symlink(value, new)
        self.own(new)

    def own(self, path: str) -> None:
        """Give a path that was made here to the owner asked for; a linked file would change its source."""
        if self.ids:
            os.chown(path, *self.ids, follow_symlinks=False)

    def drop_stale_bytecode(self) -> None:
        """Remove the bytecode of rewritten modules: with an equal size and time it would pass as fresh."""
        for module in self.rewritten_modules:
            folder, name = os.path.split(module)
            for old in glob.glob(f"{glob.escape(folder)}/__pycache__/{glob.escape(name[:-3])}.*.pyc"):
                self.counts["linked" if os.stat(old).st_nlink > 1 else "copied"] -= 1
                os.unlink(old)


def _kind(parent: str, name: str) -> str:
    """Say what the files in directory ``name`` may be: plain, or of a kind that names the virtualenv's place."""
    if parent == "top":
        return name if name in ("bin", "src") else "plain"
    if parent == "src":
        return "src"
    if name == "site-packages":
        return "site"
    return "meta" if parent == "site" and name.endswith((".dist-info", ".egg-info")) else "plain"


def _may_name_prefix(kind: str, name: str) -> bool:
    """Say whether a file is one of those that installers write the virtualenv's place into."""
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
    for site in _site_packages(path):
        folders.append((site, "site"))
        folders += [(entry.path, "meta") for entry in os.scandir(site) if _kind("site", entry.name) == "meta"]
    found = []
    for folder, kind in folders:
        if os.path.isdir(folder):
            found += [
                entry.path
                for entry in os.scandir(folder)
                if _may_name_prefix(kind, entry.name) and entry.is_file() and not entry.is_symlink()
            ]
    return sorted(found)


def _old_prefixes(source: str) -> list[str]:
    """List the places that a virtualenv's files may name as its own, the longest first."""
    found = {os.path.realpath(source)}
    candidates = set()
    for entry in os.scandir(f"{source}/bin"):
        if not entry.is_file(follow_symlinks=False):
            continue
        with open(entry.path, "rb") as handle:
            data = handle.read(8192)
        if entry.name == "activate":
            named = re.findall(rb"""VIRTUAL_ENV=['"]?(/[^'"\n]+)""", data)
            candidates |= {os.fsdecode(item).rstrip("/") for item in named}
        head = _shebang(data)
        if head and _is_python(head[0]) and os.path.basename(os.path.dirname(head[0])) == "bin":
            prefix = os.path.dirname(os.path.dirname(head[0]))
            # A prefix with an interpreter but no pyvenv.cfg is an installation of Python, not a virtualenv.
            if os.path.exists(f"{prefix}/pyvenv.cfg") or not os.path.exists(head[0]):
                candidates.add(prefix)
    with open(f"{source}/pyvenv.cfg", encoding="utf-8") as handle:
        home = re.search(r"^home\s*=\s*(.*?)/bin/?\s*$", handle.read(), re.MULTILINE)
    for prefix in candidates:
        above = any(_inside(place, prefix) for place in (source, os.path.realpath(source)))
        if prefix not in (*SYSTEM_PREFIXES, home[1] if home else "") and not above:
            found.add(prefix)
    return sorted({*found, source}, key=lambda item: (-len(item), item))


def _prefix_pattern(prefixes: Iterable[str]) -> re.Pattern[bytes] | None:
    """Compile an expression that finds any of the paths, plain or in a file URL; None without paths."""
    plain = {item.rstrip("/") for item in prefixes if item.rstrip("/")}
    names = sorted(
        {form for item in plain for form in (item, urllib.parse.quote(item))},
        key=lambda item: (-len(item), item),
    )
    if not names:
        return None
    body = b"|".join(re.escape(os.fsencode(name)) for name in names)
    return re.compile(rb"(?:(?P<url>file://)|(?<![/%s]))(?P<prefix>%s)(?![%s])" % (NAME_BYTES, body, NAME_BYTES))


def _relocate(data: bytes, pattern: re.Pattern[bytes], target: str, script: bool) -> bytes:
    """Return a file's content with every old prefix replaced by ``target``."""
    plain, in_url = os.fsencode(target), urllib.parse.quote(target).encode()

    def replacement(match: re.Match[bytes]) -> bytes:
        return b"file://" + in_url if match["url"] else plain

    head = _shebang(data) if script else None
    if not head or not _is_python(head[0]):
        return pattern.sub(replacement, data)
    interpreter_, args, end = head
    moved = pattern.sub(replacement, os.fsencode(interpreter_))
    rest = pattern.sub(replacement, data[end:])
    if moved == os.fsencode(interpreter_):
        return data[:end] + rest
    line = b"#!" + moved + args + b"\n"
    if b" " in moved or len(line) > SHEBANG_MAX:
        # The kernel cuts such a first line; the shell and Python both read this one.
        line = b"#!/bin/sh\n'''exec' '" + moved + b"'" + args + b" \"$0\" \"$@\"\n' '''\n"
    return line + rest


def _shebang(data: bytes) -> tuple[str, bytes, int] | None:
    """Return a script's interpreter, the interpreter's arguments and where the script goes on; None without."""
    match = TRAMPOLINE.match(data)
    if match:
        name = match["one"] or match["two"] or match["bare"]
    else:
        match = DIRECT.match(data)
        if not match:
            return None
        name = match["bare"]
    return os.fsdecode(name), match["args"].rstrip(), match.end()


def _is_python(name: str) -> bool:
    return os.path.basename(name).startswith(("python", "pypy"))


def _is_binary(data: bytes) -> bool:
    return b"\0" in data[:8192]


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


def _site_packages(path: str) -> list[str]:
    return sorted(glob.glob(f"{glob.escape(path)}/lib/*/site-packages"))


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")
