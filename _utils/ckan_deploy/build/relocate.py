"""
Relocation: which files of a virtualenv name its place, and what they may say after a move. ``cloning`` makes the copy.

Files may be shared with other virtualenvs through hard links, so nothing here ever writes into an existing file: a
file that must differ is written as a new one.
"""

from __future__ import annotations

import ast
import glob
import json
import logging
import os
import re
import stat
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping

from ckan_deploy.build import prefixes

log = logging.getLogger(__name__)

# What belongs to the source alone: its sockets, its configuration, its manifest, its lock.
SKIP = re.compile(r"^(run|.*\.ini|release\.json|\.lock|pylock\.toml)$")
# Modes that a release may have: nobody but its owner writes, and no file changes who one is.
FAIR = 0o755
# Where tests are in a virtualenv: no portal imports them, so they need no bytecode.
UNUSED = r"(?:lib|src)/.+/tests?/"
METADATA = ("direct_url.json", "RECORD", "SOURCES.txt", "installed-files.txt")


def is_fair(about: os.stat_result, user: int) -> bool:
    """
    Say whether a file may be shared: it is ours, and gives nobody else rights that it should not.

    about
        What the system says of it.
    user
        The number of the user that we are.
    """
    return about.st_uid == user and about.st_mode & 0o7777 == about.st_mode & FAIR


def problems(path: str, forbidden: Iterable[str] = (), among: Iterable[str] | None = None) -> list[str]:
    """
    Say which files of the virtualenv at ``path`` name a place that they must not; an empty list means none.

    path
        Absolute path of the virtualenv, in its normal form.
    forbidden
        Absolute paths that it must not name: where it was cloned from, other releases.

    among
        Absolute paths of the files to look at; by default all that may name a place.

    Returns a list of sentences without full stop.
    """
    found: list[str] = []
    own = prefixes.pattern([path])
    others = [item for item in forbidden if item.rstrip("/") != path]
    foreign, forms = prefixes.pattern(others), prefixes.forms(others)
    for name in _telling_files(path) if among is None else among:
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
