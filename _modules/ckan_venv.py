"""
Virtualenvs: clone, create and verify them, and compile what is in them.

A clone shares the contents of its files with its source through hard links, so nothing here ever writes into an
existing file: a file that must differ is written as a new one. Everything comes as arguments; nothing here knows of
CKAN or of releases, and no pillar is read.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import time
from collections.abc import Iterable
from typing import Any

from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "ckan_venv"
__func_alias__ = {"compile_": "compile"}


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
        Absolute path of the virtualenv to make; must not exist, or hold nothing but a ``release.json``.
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
    try:
        os.makedirs(target, exist_ok=True)
        found = set(os.listdir(target)) - {"release.json"}
        if found:
            raise CommandExecutionError(f"{target} exists; choose another target or remove it first.")
    except OSError as exc:
        raise CommandExecutionError(
            f"{target} cannot be made ({exc.strerror}); make its parent directory writable."
        ) from exc
    try:
        counts = __salt__["ckan_relocate.copy"](source, target, link=link, ids=ids)
        problems = verify(target, forbidden=counts.pop("prefixes"), user=user)
        if problems:
            raise CommandExecutionError(
                f"{source} does not clone to a sound virtualenv: {problems[0]}; repair {source} and try again."
            )
    except BaseException as exc:
        _empty(target)
        if isinstance(exc, OSError):
            raise CommandExecutionError(
                f"Cloning {source} to {target} failed: {exc}; correct that and try again."
            ) from exc
        raise
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
    return __salt__["ckan_relocate.problems"](path, forbidden=list(forbidden)) + _prefix_problems(path, user)


def create(path: str, python: str = "/usr/bin/python3") -> dict[str, str]:
    """
    Make a new, empty virtualenv.

    path
        Absolute path of the virtualenv; must not exist.
    python
        Path of the interpreter to build on.

    Returns what :py:func:`interpreter` returns. Raises CommandExecutionError when that fails.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_venv.create /usr/lib/ckan/default python=/usr/bin/python3.11
    """
    path = _absolute("path", path)
    if os.path.lexists(path):
        raise CommandExecutionError(f"{path} exists; choose another path or remove it first.")
    # By Python itself and not by uv: it is there in any case, and brings no pip that would be old tomorrow.
    ret = _run([str(python), "-I", "-m", "venv", "--without-pip", path], None, 600)
    if ret["retcode"] != 0:
        shutil.rmtree(path, ignore_errors=True)
        raise CommandExecutionError(
            f"{python} could not make the virtualenv {path}; correct what it names and try again: {_tail(ret)}"
        )
    return interpreter(path)


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


def _run(command: list[str], user: str | None, timeout: int) -> dict[str, Any]:
    return __salt__["ckan_process.run"](command, user=user or "", timeout=timeout)


def _tail(ret: dict[str, Any], lines: int = 12) -> str:
    return __salt__["ckan_process.tail"](ret, lines)


def _owner(owner: str | None) -> tuple[str | None, tuple[int, int] | None]:
    """Return the user's name and the ids of user and group for ``user`` or ``user:group``."""
    if not owner:
        return None, None
    user, _, group = owner.partition(":")
    try:
        entry = pwd.getpwnam(user)
        return user, (entry.pw_uid, grp.getgrnam(group).gr_gid if group else entry.pw_gid)
    except KeyError as exc:
        raise CommandExecutionError(f"There is no user or group {owner!r} here; create it first.") from exc


def _empty(target: str) -> None:
    """Remove what a failed clone left; a ``release.json`` that was there before it stays, with its directory."""
    for entry in os.scandir(target):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        elif entry.name != "release.json":
            os.unlink(entry.path)
    if not os.listdir(target):
        os.rmdir(target)


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


def _absolute(name: str, path: str) -> str:
    """Return a path in its plain form; refuse one that cannot be written into scripts and Python files as it is."""
    if not isinstance(path, str) or not path.startswith("/") or re.search(r"""['"`$\\\x00-\x1f]""", path):
        raise SaltInvocationError(
            f"{name} is {path!r}; use an absolute path without quotes, backslashes, dollar or control characters."
        )
    return os.path.normpath(path)
