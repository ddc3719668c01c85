"""
Virtualenvs: clone, create and verify them, and compile what is in them.

A clone may share the contents of its files with its source through hard links, so nothing here ever writes into an
existing file: a file that must differ is written as a new one. Everything comes as arguments; nothing here knows of
CKAN or of releases, and no pillar is read.
"""

from __future__ import annotations

import contextlib
import csv
import glob
import os
import re
import shutil
import time
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from packaging.utils import canonicalize_name

from ckan_deploy.build import cloning, relocate
from ckan_deploy.build.cloning import Copied
from ckan_deploy.build.prefixes import inside
from ckan_deploy.build.sandbox import Sandbox
from ckan_deploy.errors import FormulaError, InvalidArgument
from ckan_deploy.system import processes, safely


def clone(
    source: str, target: str, link: str = "auto", sandbox: Sandbox | None = None, leave_out: Collection[str] = ()
) -> dict[str, float]:  # fmt: skip
    """
    Make ``target`` a complete virtualenv of its own from the virtualenv ``source``.

    Files that name the place of the source, or a place where the source was before, are written anew for the target.
    Everything under ``src`` is copied, since people edit checkouts. Left out at the top: ``run``, ``*.ini``,
    ``release.json``, ``pylock.toml`` and ``.lock``. The result is checked as ``verify`` does. After any failure there
    is no target.

    source
        Absolute path of the virtualenv to clone.
    target
        Absolute path of the virtualenv to make; must not exist, or hold nothing but a ``release.json``.
    link
        ``hard`` shares file contents by hard links, with a copy wherever a link is impossible; ``auto`` (default) does
        it by reflinks where the file system has them; ``copy`` copies every file.
    sandbox
        Where its interpreter is run for the check. Default: no check by its interpreter.
    leave_out
        Names at the top of the source that are not taken either.

    Returns ``{"files": n, "linked": n, "copied": n, "rewritten": n, "seconds": x, "own_mb": y}``; the latter is the
    disk that the target takes for itself.

    Raises ``InvalidArgument`` for wrong arguments, ``FormulaError`` when the clone fails.
    """
    started = time.monotonic()
    copied = begin(source, target, link, leave_out, nameless=False)
    with _emptied(source, target):
        _refuse(source, verify(target, forbidden=copied.prefixes, sandbox=sandbox))
    return _told(copied, started)


def begin(
    source: str, target: str, link: str = "auto", leave_out: Collection[str] = (), nameless: bool = True
) -> Copied:  # fmt: skip
    """
    Begin a clone of which it is not known yet where it will stand: what names its place is left out. After any failure
    there is no target.

    source, target, link, leave_out
        As for ``clone``.
    nameless
        False for a whole one, which is not checked.

    Returns what ``complete`` takes. Raises as ``clone``.
    """
    if link not in ("auto", "hard", "copy"):
        raise InvalidArgument(f"link is {link!r}; use 'auto', 'hard' or 'copy'.")
    source, target = _absolute("source", source), _absolute("target", target)
    if not os.path.isfile(f"{source}/pyvenv.cfg") or not os.path.exists(f"{source}/bin/python"):
        raise FormulaError(
            f"{source} is not a virtualenv (no pyvenv.cfg or no bin/python); name an existing one as the source."
        )
    if inside(os.path.realpath(target), os.path.realpath(source)):
        raise InvalidArgument(f"{target} lies inside the source {source}; choose a target outside of it.")
    _make_target(target)
    with _emptied(source, target):
        copied = cloning.copy(source, target, link, leave_out, nameless)
        if nameless:
            _refuse(source, relocate.problems(target, copied.prefixes))
        return copied


def complete(source: str, target: str, link: str, copied: Copied, begun: str) -> dict[str, float]:
    """
    Move a clone that ``begin`` has begun to its place, and end it.

    source, target, link
        As for ``clone``.
    copied
        What ``begin`` returned.
    begun
        The target of ``begin``, on the same file system; it is gone at the end.

    Returns and raises as ``clone``.
    """
    started = time.monotonic()
    source, target = _absolute("source", source), _absolute("target", target)
    _make_target(target)
    with _emptied(source, target):
        for name in os.listdir(begun):
            os.rename(f"{begun}/{name}", f"{target}/{name}")
        os.rmdir(begun)
        now = cloning.complete(source, target, link, copied)
        # The rest was looked at when it was copied.
        brought = [f"{target}/{path}" for path, kind in copied.left if kind != cloning.LINK]
        _refuse(source, relocate.problems(target, copied.prefixes, brought))
    return _told(now, started)


def verify(path: str, forbidden: Iterable[str] = (), sandbox: Sandbox | None = None) -> list[str]:
    """
    Say what is wrong with the virtualenv at ``path``; an empty list means that it stands on its own.

    path
        Absolute path of the virtualenv.
    forbidden
        Absolute paths that it must not name: where it was cloned from, other releases.
    sandbox
        Where its interpreter is asked where it belongs: it runs what the packages have for each start of Python.
        Default: it is not asked.

    Returns a list of sentences without full stop. Problems raise nothing.
    """
    path = _absolute("path", path)
    return relocate.problems(path, forbidden) + (_prefix_problems(path, sandbox) if sandbox else [])


def create(path: str, python: str = "/usr/bin/python3", pip: bool = False) -> dict[str, str]:
    """
    Make a new, empty virtualenv.

    path
        Absolute path of the virtualenv; must not exist.
    python
        Path of the interpreter to build on.
    pip
        Put the pip into it that this Python brings.

    Returns what ``interpreter`` returns. Raises ``FormulaError`` when that fails.
    """
    path = _absolute("path", path)
    if os.path.lexists(path):
        raise FormulaError(f"{path} exists; choose another path or remove it first.")
    # By Python itself and not by uv: it is there in any case, and brings no pip that would be old tomorrow.
    done = processes.run([str(python), "-I", "-m", "venv", *([] if pip else ["--without-pip"]), path])
    if done.retcode == 0 and pip:
        # Up to Python 3.11 it brings setuptools, too, which is nobody's wish.
        processes.run([f"{path}/bin/python", "-I", "-m", "pip", "uninstall", "--yes", "--quiet", "setuptools"])
    if done.retcode != 0:
        shutil.rmtree(path, ignore_errors=True)
        raise FormulaError(
            f"{python} could not make the virtualenv {path}; correct what it names and try again: "
            f"{processes.tail(done)}"
        )
    return interpreter(path)


def compile_(path: str, where: Iterable[str] = ("lib", "src"), timeout: int = 600) -> dict[str, Any]:
    """
    Write the bytecode that is missing or stale, so that no process has to compile at its start; not that of tests. The
    Python that it is made with does that, without anything of the virtualenv: nothing in it is run.

    path
        Absolute path of the virtualenv.
    where
        Directories below it, and modules.
    timeout
        Seconds.

    Returns ``{"compiled": n, "failed": [paths], "seconds": x}``. Files that are no valid Python (templates, old
    examples) are listed as failed and do no harm.
    """
    return compile_with(home_python(path), path, where, timeout)


def compile_with(
    python: str, path: str, where: Iterable[str], timeout: int = 600, skip: str = relocate.UNUSED
) -> dict[str, Any]:  # fmt: skip
    """
    Do what ``compile_`` does, by an interpreter that is named.

    python
        The interpreter.
    path, where, timeout
        As for ``compile_``.
    skip
        A regular expression; files whose path below ``path`` begins with it get no bytecode.
    """
    started = time.monotonic()
    path = _absolute("path", path)
    folders = [name for name in where if os.path.exists(f"{path}/{name}")]
    if not folders:
        return {"compiled": 0, "failed": [], "seconds": 0.0}
    # Stripping the prefix keeps this virtualenv's place out of bytecode that clones will share. compileall writes
    # beside and renames, so a linked file is replaced, not changed.
    command = [python, "-I", "-S", "-m", "compileall", "-s", path]
    command += ["-x", f"^{re.escape(path)}/({skip})"] if skip else []
    done = processes.run(command + [f"{path}/{name}" for name in folders], timeout=timeout)
    seen = re.findall(r"^Compiling '(.*)'\.\.\.$", done.stdout, re.MULTILINE)
    failed = re.findall(r"^Compiling '(.*)'\.\.\.\n\*\*\*", done.stdout, re.MULTILINE)
    if done.retcode != 0 and not failed:
        raise FormulaError(
            f"Compiling below {path} failed; correct what Python names and try again:\n{processes.tail(done)}"
        )
    return {
        "compiled": len(seen) - len(failed),
        "failed": failed,
        "seconds": round(time.monotonic() - started, 3),
    }


def interpreter(path: str) -> dict[str, str]:
    """
    Return ``{"version": "3.11.2", "home": "/usr/bin"}``: the Python that a virtualenv was made with.

    path
        Absolute path of the virtualenv.
    """
    path = _absolute("path", path)
    try:
        with open(f"{path}/pyvenv.cfg", encoding="utf-8") as handle:
            pairs = [line.partition("=") for line in handle]
    except OSError as exc:
        raise FormulaError(f"{path} has no readable pyvenv.cfg; name an existing virtualenv.") from exc
    values = {key.strip().lower(): value.strip() for key, _, value in pairs}
    version = values.get("version") or values.get("version_info", "")
    return {"version": ".".join(version.split(".")[:3]), "home": values.get("home", "")}


def home_python(path: str) -> str:
    """
    Return the interpreter that a virtualenv was made with: of the same version, and without its packages.

    path
        Absolute path of the virtualenv.

    Raises ``FormulaError`` where it is gone.
    """
    about = interpreter(path)
    short = ".".join(about["version"].split(".")[:2])
    for name in (f"python{short}", "python3"):
        found = os.path.join(about["home"], name)
        if os.path.exists(found):
            _refuse_theirs(path, found)
            return found
    raise FormulaError(f"the interpreter of {path} is gone from {about['home']}; install Python {short} there.")


def _refuse_theirs(path: str, python: str) -> None:
    """Root runs the interpreter that a virtualenv names: nobody else may write to it, or put another in its place."""
    try:
        place = safely.replaceable(python)
    except OSError as exc:
        raise FormulaError(f"{python}, which {path} is made with, cannot be looked at ({exc.strerror}).") from exc
    if place:
        raise FormulaError(
            f"{path} is made with {python}, and others than root may write to {place}; make it with the system's "
            f"Python, or type: chown root: {place} && chmod 755 {place}"
        )


def site_packages(path: str) -> list[str]:
    """
    Return the directories of a virtualenv that packages are installed into: one.

    path
        Absolute path of the virtualenv.
    """
    return sorted(glob.glob(f"{glob.escape(path)}/lib/python3*/site-packages"))


def uninstall(path: str, name: str) -> None:
    """
    Remove the files of a package, as it says itself which they are; none outside of the virtualenv.

    path
        Absolute path of the virtualenv.
    name
        The normalised name of the package; nothing is done where there is none of that name.
    """
    for folder in site_packages(path):
        for record in glob.glob(f"{glob.escape(folder)}/*.dist-info/RECORD"):
            if canonicalize_name(os.path.basename(os.path.dirname(record)).split("-")[0]) != name:
                continue
            with open(record, encoding="utf-8", newline="") as handle:
                files = [os.path.normpath(os.path.join(folder, row[0])) for row in csv.reader(handle) if row]
            for file in filter(lambda file: inside(file, path), files):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(file)
            shutil.rmtree(os.path.dirname(record), ignore_errors=True)


def _prefix_problems(path: str, sandbox: Sandbox) -> list[str]:
    """Ask the virtualenv's own interpreter where it belongs."""
    if not os.access(f"{path}/bin/python", os.X_OK):
        return ["bin/python does not exist or cannot be run"]
    command = [f"{path}/bin/python", "-I", "-c", "import sys; print(sys.prefix)"]
    done = sandbox.run(command, [path])
    prefix = done.stdout.strip()
    if done.retcode != 0:
        return [f"bin/python does not run ({processes.tail(done, 1)})"]
    return [] if prefix == path else [f"bin/python belongs to {prefix}, not to {path}"]


@contextlib.contextmanager
def _emptied(source: str, target: str) -> Iterator[None]:
    """Leave no target where a clone fails."""
    try:
        yield
    except BaseException as exc:
        _empty(target)
        if isinstance(exc, OSError):
            raise FormulaError(f"Cloning {source} to {target} failed: {exc}; correct that and try again.") from exc
        raise


def _refuse(source: str, problems: list[str]) -> None:
    if problems:
        raise FormulaError(
            f"{source} does not clone to a sound virtualenv: {problems[0]}; repair {source} and try again."
        )


def _told(copied: Copied, started: float) -> dict[str, float]:
    """Say what a clone came to."""
    counts = {"linked": copied.linked, "copied": copied.copied, "rewritten": copied.rewritten}
    about = {"seconds": round(time.monotonic() - started, 3), "own_mb": copied.own_bytes / 2**20}
    return {"files": sum(counts.values()), **counts, **about}


def _make_target(target: str) -> None:
    """Make the directory of a clone; one that is there may hold a ``release.json`` alone."""
    try:
        os.makedirs(target, exist_ok=True)
        if set(os.listdir(target)) - {"release.json"}:
            raise FormulaError(f"{target} exists; choose another target or remove it first.")
    except OSError as exc:
        raise FormulaError(f"{target} cannot be made ({exc.strerror}); make its parent directory writable.") from exc


def _empty(target: str) -> None:
    """Remove what a failed clone left; a ``release.json`` that was there before it stays, with its directory."""
    for entry in os.scandir(target):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        elif entry.name != "release.json":
            os.unlink(entry.path)
    if not os.listdir(target):
        os.rmdir(target)


def _absolute(name: str, path: str) -> str:
    """Return a path in its plain form; refuse one that cannot be written into scripts and Python files as it is."""
    if not isinstance(path, str) or not path.startswith("/") or re.search(r"""['"`$\\\x00-\x1f]""", path):
        raise InvalidArgument(
            f"{name} is {path!r}; use an absolute path without quotes, backslashes, dollar or control characters."
        )
    return os.path.normpath(path)
