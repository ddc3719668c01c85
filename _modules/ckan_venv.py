"""
Virtualenvs: clone, create and relocate them, and install packages into them.

A clone shares the contents of its files with its source through hard links, so nothing here ever writes into an
existing file: a file that must differ is written as a new one. Everything comes as arguments; nothing here knows of
CKAN or of releases, and no pillar is read.
"""

from __future__ import annotations

import ast
import errno
import glob
import importlib.metadata
import json
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from salt.exceptions import CommandExecutionError, SaltInvocationError

log = logging.getLogger(__name__)

__virtualname__ = "ckan_venv"
__func_alias__ = {"compile_": "compile"}

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


def clone(source: str, target: str, link: str = "hard", owner: str | None = None) -> dict[str, Any]:
    """
    Make ``target`` a complete virtualenv of its own from the virtualenv ``source``.

    Files that name the place of the source, or a place where the source was before, are written anew for the target.
    Everything under ``src`` is copied, since people edit checkouts. Left out at the top: ``run``, ``*.ini``,
    ``release.json`` and ``.lock``. The result is checked as :py:func:`verify` does. After any failure there is no
    target.

    source
        Absolute path of the virtualenv to clone.
    target
        Absolute path of the virtualenv to make; must not exist.
    link
        ``hard`` (default) shares file contents by hard links, with a copy wherever a link is impossible; ``copy``
        copies every file.
    owner
        User, or ``user:group``, who gets the new directories and the new files. Files shared with the source keep
        the owner that they have. Default: whoever runs this.

    Returns ``{"files": n, "linked": n, "copied": n, "rewritten": n, "seconds": x}``.

    Raises SaltInvocationError for wrong arguments, CommandExecutionError when the clone fails.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_venv.clone /usr/lib/ckan/default /usr/lib/ckan/releases/20261125021500Z
    """
    started = time.monotonic()
    if link not in ("hard", "copy"):
        raise SaltInvocationError(f"link is {link!r}; use 'hard' or 'copy'.")
    source, target = _absolute("source", source), _absolute("target", target)
    if not os.path.isfile(f"{source}/pyvenv.cfg") or not os.path.exists(f"{source}/bin/python"):
        raise CommandExecutionError(
            f"{source} is not a virtualenv (no pyvenv.cfg or no bin/python); name an existing one as the source."
        )
    if _inside(os.path.realpath(target), os.path.realpath(source)):
        raise SaltInvocationError(f"{target} lies inside the source {source}; choose a target outside of it.")
    user, ids = _owner(owner)
    copier = _Cloner(source, target, link == "hard", ids)
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.mkdir(target)
    except FileExistsError as exc:
        raise CommandExecutionError(f"{target} exists; choose another target or remove it first.") from exc
    except OSError as exc:
        raise CommandExecutionError(
            f"{target} cannot be made ({exc.strerror}); make its parent directory writable."
        ) from exc
    try:
        copier.directory(source, target, "top")
        copier.drop_stale_bytecode()
        problems = verify(target, forbidden=copier.prefixes, user=user)
        if problems:
            raise CommandExecutionError(
                f"{source} does not clone to a sound virtualenv: {problems[0]}; repair {source} and try again."
            )
    except BaseException as exc:
        shutil.rmtree(target, ignore_errors=True)
        if isinstance(exc, OSError):
            raise CommandExecutionError(
                f"Cloning {source} to {target} failed: {exc}; correct that and try again."
            ) from exc
        raise
    counts = copier.counts
    return {"files": sum(counts.values()), **counts, "seconds": round(time.monotonic() - started, 3)}


def verify(path: str, forbidden: Iterable[str] = (), user: str | None = None) -> list[str]:
    """
    Say what is wrong with the virtualenv at ``path``; an empty list means that it stands on its own.

    path
        Absolute path of the virtualenv.
    forbidden
        Absolute paths that it must not name: where it was cloned from, other releases.
    user
        User who runs its interpreter for the check. Default: whoever runs this.

    Returns a list of sentences without full stop. Problems raise nothing.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_venv.verify /usr/lib/ckan/releases/20261125021500Z forbidden='[/usr/lib/ckan/default]'
    """
    path = _absolute("path", path)
    problems = []
    own = _prefix_pattern([path])
    foreign = _prefix_pattern([item for item in forbidden if item.rstrip("/") != path])
    for name in _telling_files(path):
        shown = os.path.relpath(name, path)
        try:
            with open(name, "rb") as handle:
                data = handle.read()
        except OSError as exc:
            problems.append(f"{shown} cannot be read ({exc.strerror})")
            continue
        if os.path.dirname(name) == f"{path}/bin":
            head = _shebang(data)
            if head and _is_python(head[0]) and not _inside(head[0], path):
                problems.append(f"{shown} starts {head[0]}, which is outside {path}")
        # The own path goes first: it may lie below a forbidden one.
        found = foreign.search(own.sub(b"", data)) if foreign and not _is_binary(data) else None
        if found:
            problems.append(f"{shown} names {os.fsdecode(found['prefix'])}")
        for editable in _editable_paths(name, data):
            if not os.path.exists(editable) and not os.path.exists(f"{editable}.py"):
                problems.append(f"{shown} names {editable}, which does not exist")
    return problems + _prefix_problems(path, user)


def create(
    path: str, python: str = "/usr/bin/python3", uv: str = "uv", user: str | None = None
) -> dict[str, str]:
    """
    Make a new, empty virtualenv.

    path
        Absolute path of the virtualenv; must not exist.
    python
        Interpreter to build on: a path or a version. Nothing is downloaded.
    uv
        Name or path of the uv program.
    user
        User who runs uv and owns the result. Default: whoever runs this.

    Returns what :py:func:`interpreter` returns. Raises CommandExecutionError when uv fails.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_venv.create /usr/lib/ckan/default python=/usr/bin/python3.11
    """
    path = _absolute("path", path)
    if os.path.lexists(path):
        raise CommandExecutionError(f"{path} exists; choose another path or remove it first.")
    ret = _uv(["venv", "--python", str(python), path], uv=uv, user=user)
    if ret["retcode"] != 0:
        shutil.rmtree(path, ignore_errors=True)
        raise CommandExecutionError(
            f"uv could not make the virtualenv {path}; correct what it names and try again:\n{_tail(ret)}"
        )
    return interpreter(path)


def install(
    path: str,
    requirements: Iterable[str] = (),
    editable: Iterable[str] = (),
    constraints: str | None = None,
    uv: str = "uv",
    index_url: str = "",
    find_links: str = "",
    offline: bool = False,
    cache_dir: str | None = None,
    no_deps: bool = False,
    user: str | None = None,
    timeout: int = 1800,
    requirement_files: Iterable[str] = (),
    link: str = "hard",
    editable_mode: str = "compat",
) -> dict[str, Any]:
    """
    Install packages into a virtualenv. All of them are resolved together, before anything is changed.

    path
        Absolute path of the virtualenv.
    requirements
        Requirements such as ``requests>=2.31`` or ``uwsgi``.
    editable
        Directories of checkouts to install editable.
    constraints
        Path of a constraints file.
    uv
        Name or path of the uv program.
    index_url
        Package index in place of uv's own default. Passed in the environment, since it may hold a password.
    find_links
        Directory or URL with further packages.
    offline
        True to use nothing but the cache and ``find_links``.
    cache_dir
        uv's cache. On the file system of the virtualenv, files are linked from it.
    no_deps
        True to leave dependencies out.
    user
        User who runs uv. Default: whoever runs this.
    timeout
        Seconds.
    requirement_files
        Paths of requirements files.
    link
        ``hard`` (default) links files from the cache where that is possible, ``copy`` copies them.
    editable_mode
        How setuptools installs checkouts. ``compat`` (default) puts the checkout on the module path, so that
        several packages can share a namespace; an empty string leaves the choice to the build backend.

    Returns ``{"changes": {name: {"old": version, "new": version}}, "seconds": x}``.

    Raises SaltInvocationError for wrong arguments, CommandExecutionError with uv's explanation when uv fails.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_venv.install /usr/lib/ckan/releases/20261125021500Z requirements='[uwsgi]'
    """
    started = time.monotonic()
    path = _absolute("path", path)
    wanted = []
    for option, values in (("", requirements), ("--requirements", requirement_files), ("--editable", editable)):
        if isinstance(values, str):
            raise SaltInvocationError(f"{values!r} is a text where a list is needed; write [{values}].")
        for value in values:
            if not value or str(value).startswith("-"):
                raise SaltInvocationError(
                    f"{value!r} is not a requirement; use one requirement or path an item, and no options."
                )
            wanted += [option, str(value)] if option else [str(value)]
    if not wanted:
        return {"changes": {}, "seconds": 0.0}
    mode = "hardlink" if link == "hard" and _same_device(cache_dir, path) else "copy"
    command = ["pip", "install", "--python", f"{path}/bin/python", "--link-mode", mode]
    command += ["--constraints", constraints] if constraints else []
    command += ["--find-links", find_links] if find_links else []
    command += ["--offline"] if offline else []
    command += ["--no-deps"] if no_deps else []
    if editable and editable_mode:
        command += ["--config-setting", f"editable_mode={editable_mode}"]
    env = {"UV_DEFAULT_INDEX": index_url} if index_url else {}
    ret = _uv(command + wanted, uv=uv, user=user, cwd=path, env=env, cache_dir=cache_dir, timeout=timeout)
    if ret["retcode"] != 0:
        raise CommandExecutionError(
            f"uv could not install packages into {path}; correct what it names and try again:\n{_tail(ret)}"
        )
    changes: dict[str, dict[str, str]] = {}
    for sign, name, version in re.findall(r"^ ([-+~]) (\S+?)==(\S+)", ret["stderr"], re.MULTILINE):
        change = changes.setdefault(_normal(name), {"old": "", "new": ""})
        if sign in "-~":
            change["old"] = version
        if sign in "+~":
            change["new"] = version
    return {"changes": changes, "seconds": round(time.monotonic() - started, 3)}


def compile_(
    path: str, where: Iterable[str] = ("lib", "src"), user: str | None = None, timeout: int = 600
) -> dict[str, Any]:
    """
    Write the bytecode that is missing or stale, so that no process has to compile at its start.

    path
        Absolute path of the virtualenv.
    where
        Directories below it.
    user
        User who runs the compiler. Default: whoever runs this.
    timeout
        Seconds.

    Returns ``{"compiled": n, "failed": [paths], "seconds": x}``. Files that are no valid Python (templates, old
    examples) are listed as failed and do no harm.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_venv.compile /usr/lib/ckan/default
    """
    started = time.monotonic()
    path = _absolute("path", path)
    folders = [name for name in where if os.path.isdir(f"{path}/{name}")]
    if not folders:
        return {"compiled": 0, "failed": [], "seconds": 0.0}
    # Stripping the prefix keeps this virtualenv's place out of bytecode that clones will share. compileall writes
    # beside and renames, so a linked file is replaced, not changed.
    command = [f"{path}/bin/python", "-I", "-m", "compileall", "-s", path]
    ret = _run(command + [f"{path}/{name}" for name in folders], user=user, timeout=timeout)
    done = re.findall(r"^Compiling '(.*)'\.\.\.$", ret["stdout"], re.MULTILINE)
    failed = re.findall(r"^Compiling '(.*)'\.\.\.\n\*\*\*", ret["stdout"], re.MULTILINE)
    if ret["retcode"] != 0 and not failed:
        raise CommandExecutionError(
            f"Compiling below {path} failed; correct what Python names and try again:\n{_tail(ret)}"
        )
    return {
        "compiled": len(done) - len(failed),
        "failed": failed,
        "seconds": round(time.monotonic() - started, 3),
    }


def freeze(path: str) -> dict[str, str]:
    """
    Return the packages of a virtualenv, ``{name: version}``, with normalised names in order.

    Read from the packages' metadata; no interpreter is started.

    path
        Absolute path of the virtualenv.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_venv.freeze /usr/lib/ckan/default
    """
    path = _absolute("path", path)
    folders = _site_packages(path)
    if not folders:
        raise CommandExecutionError(
            f"{path} holds no lib/python*/site-packages; name a virtualenv, or create it first."
        )
    # A package installed by the old "setup.py develop" keeps its metadata in the checkout that an egg-link names.
    for link in [name for folder in folders for name in glob.glob(f"{glob.escape(folder)}/*.egg-link")]:
        with open(link, encoding="utf-8") as handle:
            folders.append(handle.readline().strip())
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions(path=folders):
        name, version = distribution.metadata["Name"], distribution.metadata["Version"]
        if name and version:
            found.setdefault(_normal(name), version)
    return dict(sorted(found.items()))


def check(path: str, uv: str = "uv") -> bool:
    """
    Return True when every package's declared dependencies are there in a fitting version.

    path
        Absolute path of the virtualenv.
    uv
        Name or path of the uv program.

    Raises CommandExecutionError with the packages that do not fit.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_venv.check /usr/lib/ckan/default
    """
    path = _absolute("path", path)
    ret = _uv(["pip", "check", "--python", f"{path}/bin/python"], uv=uv)
    if ret["retcode"] != 0:
        raise CommandExecutionError(
            f"The packages in {path} do not fit together; change the versions asked for:\n{_tail(ret)}"
        )
    return True


def interpreter(path: str) -> dict[str, str]:
    """
    Return ``{"version": "3.11.2", "home": "/usr/bin"}``: the Python that a virtualenv was made with.

    path
        Absolute path of the virtualenv.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_venv.interpreter /usr/lib/ckan/default
    """
    path = _absolute("path", path)
    try:
        with open(f"{path}/pyvenv.cfg", encoding="utf-8") as handle:
            pairs = [line.partition("=") for line in handle]
    except OSError as exc:
        raise CommandExecutionError(f"{path} has no readable pyvenv.cfg; name an existing virtualenv.") from exc
    values = {key.strip().lower(): value.strip() for key, _, value in pairs}
    version = values.get("version") or values.get("version_info", "")
    return {"version": ".".join(version.split(".")[:3]), "home": values.get("home", "")}


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
    home = os.path.dirname(interpreter(source)["home"].rstrip("/"))
    for prefix in candidates:
        above = any(_inside(place, prefix) for place in (source, os.path.realpath(source)))
        if prefix not in (*SYSTEM_PREFIXES, home) and not above:
            found.add(prefix)
    return sorted({*found, source}, key=lambda item: (-len(item), item))


def _prefix_pattern(prefixes: Iterable[str]) -> re.Pattern[bytes] | None:
    """Compile an expression that finds any of the paths, plain or in a file URL; None without paths."""
    plain = {item.rstrip("/") for item in prefixes if item.rstrip("/")}
    names = sorted({form for item in plain for form in (item, quote(item))}, key=lambda item: (-len(item), item))
    if not names:
        return None
    body = b"|".join(re.escape(os.fsencode(name)) for name in names)
    return re.compile(
        rb"(?:(?P<url>file://)|(?<![/%s]))(?P<prefix>%s)(?![%s])" % (NAME_BYTES, body, NAME_BYTES)
    )


def _relocate(data: bytes, pattern: re.Pattern[bytes], target: str, script: bool) -> bytes:
    """Return a file's content with every old prefix replaced by ``target``."""
    plain, in_url = os.fsencode(target), quote(target).encode()

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
        line = b"#!/bin/sh\n'''exec' '" + moved + b"'" + args + b' "$0" "$@"\n\' \'\'\'\n'
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
            url = urlsplit(content.get("url", ""))
            editable = content.get("dir_info", {}).get("editable")
            return [unquote(url.path)] if editable and url.scheme == "file" else []
    except (ValueError, SyntaxError):
        log.warning("%s cannot be read as what its name says", name)
    return []


def _prefix_problems(path: str, user: str | None) -> list[str]:
    """Ask the virtualenv's own interpreter where it belongs."""
    if not os.access(f"{path}/bin/python", os.X_OK):
        return ["bin/python does not exist or cannot be run"]
    command = [f"{path}/bin/python", "-I", "-c", "import sys; print(sys.prefix)"]
    ret = _run(command, user=user, timeout=60)
    prefix = ret["stdout"].strip()
    if ret["retcode"] != 0:
        return [f"bin/python does not run ({_tail(ret, 1)})"]
    return [] if prefix == path else [f"bin/python belongs to {prefix}, not to {path}"]


def _site_packages(path: str) -> list[str]:
    return sorted(glob.glob(f"{glob.escape(path)}/lib/*/site-packages"))


def _uv(
    args: list[str],
    uv: str,
    user: str | None = None,
    cwd: str | None = None,
    env: dict[str, str] | None = None,
    cache_dir: str | None = None,
    timeout: int = 600,
) -> dict[str, Any]:
    """Run uv and return what ``cmd.run_all`` returns."""
    program = shutil.which(uv)
    if not program:
        raise CommandExecutionError(f"uv is not installed as {uv!r}; install it or name its path.")
    # VIRTUAL_ENV of whoever started the minion must not count; nothing is to be downloaded but packages.
    env = {"VIRTUAL_ENV": "", "UV_NO_PROGRESS": "1", "UV_PYTHON_DOWNLOADS": "never", "NO_COLOR": "1", **(env or {})}
    if cache_dir:
        env["UV_CACHE_DIR"] = cache_dir
    return _run([program, *args], user=user, cwd=cwd, env=env, timeout=timeout)


def _run(
    command: list[str],
    user: str | None = None,
    cwd: str | None = None,
    env: dict[str, str] | None = None,
    timeout: int = 600,
) -> dict[str, Any]:
    return __salt__["cmd.run_all"](
        command,
        python_shell=False,
        cwd=cwd,
        runas=user,
        umask="022",
        env={"LC_ALL": "C.UTF-8", **(env or {})},
        reset_system_locale=False,
        output_loglevel="quiet",
        ignore_retcode=True,
        timeout=timeout,
    )


def _tail(ret: dict[str, Any], lines: int = 12) -> str:
    """Return the last lines of what a program said, without passwords in addresses."""
    text = ret["stderr"] if ret["stderr"].strip() else ret["stdout"]
    kept = [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]
    return re.sub(r"://[^/@\s]+@", "://", "\n".join(kept))


def _same_device(cache_dir: str | None, path: str) -> bool:
    """Say whether hard links from the cache into ``path`` are possible; uv's own cache is left to uv to judge."""
    place = os.path.abspath(cache_dir) if cache_dir else path
    while not os.path.exists(place):
        place = os.path.dirname(place)
    return os.stat(place).st_dev == os.stat(path).st_dev


def _owner(owner: str | None) -> tuple[str | None, tuple[int, int] | None]:
    """Return the user's name and the ids of user and group for ``user`` or ``user:group``."""
    import grp
    import pwd

    if not owner:
        return None, None
    user, _, group = owner.partition(":")
    try:
        entry = pwd.getpwnam(user)
        return user, (entry.pw_uid, grp.getgrnam(group).gr_gid if group else entry.pw_gid)
    except KeyError as exc:
        raise CommandExecutionError(f"There is no user or group {owner!r} here; create it first.") from exc


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


def _absolute(name: str, path: str) -> str:
    """Return a path in its plain form; refuse one that cannot be written into scripts and Python files as it is."""
    if not isinstance(path, str) or not path.startswith("/") or re.search(r"""['"`$\\\x00-\x1f]""", path):
        raise SaltInvocationError(
            f"{name} is {path!r}; use an absolute path without quotes, backslashes, dollar or control characters."
        )
    return os.path.normpath(path)
