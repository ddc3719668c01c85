"""
Virtualenvs: clone, create and relocate them, and install packages into them.

A clone shares the contents of its files with its source through hard links, so nothing here ever writes into an
existing file: a file that must differ is written as a new one. Everything comes as arguments; nothing here knows of
CKAN or of releases, and no pillar is read.
"""

from __future__ import annotations

import glob
import grp
import importlib.metadata
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


def create(path: str, python: str = "/usr/bin/python3", uv: str = "uv", user: str | None = None) -> dict[str, str]:
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
    for option, values in (
        ("", requirements),
        ("--requirements", requirement_files),
        ("--editable", editable),
    ):
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
            f"uv could not install the packages: {_tail(ret)}; correct what it names and deploy again."
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
    env = {
        "VIRTUAL_ENV": "",
        "UV_NO_PROGRESS": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        # The host's own certificates: an index behind a company's certificate works as it does for apt and git.
        "UV_SYSTEM_CERTS": "1",
        "NO_COLOR": "1",
        **(env or {}),
    }
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
    """Return the last lines of what a program said as one, without its progress and passwords in addresses."""
    text = ret["stderr"] if ret["stderr"].strip() else ret["stdout"]
    kept = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    first = next((index for index, line in enumerate(kept) if re.match(r"(error|×|x )", line)), 0)
    return re.sub(r"://[^/@\s]+@", "://", " ".join(kept[first:][-lines:]))


def _same_device(cache_dir: str | None, path: str) -> bool:
    """Say whether hard links from the cache into ``path`` are possible; uv's own cache is left to uv to judge."""
    place = os.path.abspath(cache_dir) if cache_dir else path
    while not os.path.exists(place):
        place = os.path.dirname(place)
    return os.stat(place).st_dev == os.stat(path).st_dev


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


def _normal(name: str) -> str:
    """Return a package's name in the one form that all its spellings share."""
    return re.sub(r"[-_.]+", "-", name).lower()
