"""
The installer: uv, or pip where there is no uv. One function each for what the formula wants of it; what the two print
is understood here and nowhere else.

An *installer* is the dictionary that ``ckan_build.installer`` makes: ``kind`` (auto, uv, pip), ``uv`` (the program),
``index_url``, ``find_links``, ``offline``, ``cache`` (its cache directory), ``user`` (who runs it), ``link``.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import tempfile
from typing import Any
from urllib.parse import urlsplit

from packaging.utils import canonicalize_name
from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_installer"

# How setuptools installs checkouts: put the directory on the module path, so that packages can share a namespace.
EDITABLE_MODE = "editable_mode=compat"


def __virtual__() -> str:
    return __virtualname__


def kind(installer: dict) -> str:
    """
    Return ``uv`` or ``pip``: which one the settings and this host lead to.

    installer
        The installer.

    Raises ``CommandExecutionError`` when uv is asked for and is not there.

    CLI Example: not for the command line.
    """
    wanted, program = installer.get("kind", "auto"), installer.get("uv") or "uv"
    if wanted == "pip":
        return "pip"
    if shutil.which(program):
        return "uv"
    if wanted == "uv":
        raise CommandExecutionError(f"uv is not installed as {program!r}; install it or correct ckan:installer:uv.")
    return "pip"


def dry_run(path: str, lines: list[str], constraints: list[str], overrides: list[str], installer: dict) -> dict:
    """
    Resolve requirements against what a virtualenv has, and change nothing.

    path
        The virtualenv.
    lines
        The lines of a requirements file.
    constraints, overrides
        The lines of a constraints file, and of a file of overrides (uv only).
    installer
        The installer.

    Returns ``{"installed": {name: version}, "removed": [names]}``; a checkout that was not built yet is left out.
    Raises ``CommandExecutionError`` whose text is what the installer says.

    CLI Example: not for the command line.
    """
    files = {"wanted": lines, "constraints": constraints, "overrides": overrides}
    with _workplace(installer, files) as place:
        if kind(installer) == "uv":
            options = ["--dry-run", "--constraints", f"{place}/constraints.txt"]
            options += ["--overrides", f"{place}/overrides.txt"] if overrides else []
            said = _uv(path, [*options, "-r", f"{place}/wanted.txt"], installer)
            return _changes(said["stderr"])
        if overrides:
            raise CommandExecutionError("pip cannot override requirements; install uv, or remove override.")
        report = f"{place}/report.json"
        options = ["--dry-run", "--report", report, "-c", f"{place}/constraints.txt"]
        _pip(path, [*options, "-r", f"{place}/wanted.txt"], installer)
        with open(report, encoding="utf-8") as handle:
            items = json.load(handle)["install"]
        checkouts = {line[3:] for line in lines if line.startswith("-e ")}
        found = {
            canonicalize_name(item["metadata"]["name"]): item["metadata"]["version"]
            for item in items
            if item.get("download_info", {}).get("url", "").removeprefix("file://") not in checkouts
        }
        return {"installed": found, "removed": []}


def install(path: str, lines: list[str], installer: dict, no_deps: bool = False) -> dict[str, dict[str, str]]:
    """
    Install requirements into a virtualenv.

    path
        The virtualenv.
    lines
        The lines of a requirements file.
    installer
        The installer.
    no_deps
        Install these and nothing that they require.

    Returns ``{name: {"old": version, "new": version}}`` as far as the installer says it. Raises
    ``CommandExecutionError`` whose text is what the installer says.

    CLI Example: not for the command line.
    """
    # Checkouts stand in a file, too: uv builds those of its command line anew each time, these it takes from its cache.
    with _workplace(installer, {"wanted": lines}) as place:
        options = ["--no-deps"] if no_deps else []
        if kind(installer) == "uv":
            mode = "hardlink" if installer.get("link", "hard") == "hard" and _same_device(installer, path) else "copy"
            said = _uv(path, [*options, "--link-mode", mode, "-r", f"{place}/wanted.txt"], installer)
            return _changes(said["stderr"])["changes"]
        _pip(path, [*options, "-r", f"{place}/wanted.txt"], installer)
        return {}


def check(path: str, installer: dict) -> list[str]:
    """
    Say which packages of a virtualenv miss something that they declare, or have it in a version that does not fit.

    path
        The virtualenv.
    installer
        The installer.

    Returns a list of sentences, one a package and requirement.

    CLI Example: not for the command line.
    """
    if kind(installer) == "uv":
        said = _run([installer["uv"], "pip", "check", "--python", f"{path}/bin/python"], installer, _uv_env(installer))
        lines = [line.strip() for line in said["stderr"].splitlines()]
        found = [line for line in lines if re.match(r"The package `", line)]
    else:
        said = _run([*_pip_program(path, installer), "check"], installer, {})
        found = [line.strip() for line in said["stdout"].splitlines() if line.strip()]
    if said["retcode"] != 0 and not found:
        raise CommandExecutionError(f"the packages in {path} cannot be checked: {_told(said, installer)}.")
    return found if said["retcode"] != 0 else []


def _uv(path: str, options: list[str], installer: dict) -> dict[str, Any]:
    command = [shutil.which(installer.get("uv") or "uv"), "pip", "install", "--python", f"{path}/bin/python"]
    command += ["--config-setting", EDITABLE_MODE]
    command += ["--find-links", installer["find_links"]] if installer.get("find_links") else []
    command += ["--offline"] if installer.get("offline") else []
    return _done(_run([*command, *options], installer, _uv_env(installer)), installer, path)


def _uv_env(installer: dict) -> dict[str, str]:
    return {
        # VIRTUAL_ENV of whoever started the minion must not count; nothing is to be downloaded but packages.
        "VIRTUAL_ENV": "",
        "UV_NO_PROGRESS": "1",
        "UV_NO_CONFIG": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        # The host's own certificates: an index behind a company's certificate works as it does for apt and git.
        "UV_SYSTEM_CERTS": "1",
        "NO_COLOR": "1",
        **({"UV_CACHE_DIR": f"{installer['cache']}/uv"} if installer.get("cache") else {}),
        # Here and not among the arguments: it may hold a password.
        **({"UV_DEFAULT_INDEX": installer["index_url"]} if installer.get("index_url") else {}),
    }


def _pip(path: str, options: list[str], installer: dict) -> None:
    command = [*_pip_program(path, installer), "install", "--quiet", "--no-input", "--config-settings", EDITABLE_MODE]
    command += ["--find-links", installer["find_links"]] if installer.get("find_links") else []
    command += ["--no-index"] if installer.get("offline") else []
    env = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_CONFIG_FILE": os.environ.get("PIP_CONFIG_FILE", "")}
    env = {name: value for name, value in env.items() if value}
    if installer.get("cache"):
        env["PIP_CACHE_DIR"] = f"{installer['cache']}/pip"
    if installer.get("index_url"):
        env["PIP_INDEX_URL"] = installer["index_url"]
    _done(_run([*command, *options], installer, env), installer, path)


def _pip_program(path: str, installer: dict) -> list[str]:
    """The virtualenv's own pip, else that beside uv or the system's for it (a virtualenv may have none)."""
    if os.path.exists(f"{path}/bin/pip"):
        return [f"{path}/bin/python", "-m", "pip"]
    tools = os.path.dirname(installer.get("uv") or "")
    python = f"{tools}/python" if os.path.exists(f"{tools}/pip") else "/usr/bin/python3"
    return [python, "-m", "pip", "--python", f"{path}/bin/python"]


def _run(command: list[str], installer: dict, env: dict[str, str]) -> dict[str, Any]:
    home = installer.get("cache") or "/nonexistent"
    if installer.get("cache"):
        _own(installer["cache"], installer.get("user", ""))
    where = home if os.path.isdir(home) else "/"
    run = __salt__["ckan_process.run"]
    return run(command, user=installer.get("user", ""), env={"HOME": home, **env}, cwd=where, timeout=1800)


def _done(said: dict[str, Any], installer: dict, path: str) -> dict[str, Any]:
    if said["retcode"] == 0:
        return said
    if "No space left on device" in said["stderr"] + said["stdout"]:
        raise CommandExecutionError(f"the disk of {path} or of {installer.get('cache') or 'the cache'} is full.")
    raise CommandExecutionError(_told(said, installer))


def _told(said: dict[str, Any], installer: dict) -> str:
    secret = urlsplit(installer.get("index_url") or "").password or ""
    return __salt__["ckan_process.tail"](said, hide=[secret])


def _changes(text: str) -> dict[str, Any]:
    """What uv says that it did, or would do."""
    changes: dict[str, dict[str, str]] = {}
    for sign, name, version in re.findall(r"^ ([-+~]) (\S+?)==(\S+)", text, re.MULTILINE):
        change = changes.setdefault(canonicalize_name(name), {"old": "", "new": ""})
        if sign in "-~":
            change["old"] = version
        if sign in "+~":
            change["new"] = version
    return {
        "changes": changes,
        "installed": {name: change["new"] for name, change in changes.items() if change["new"]},
        "removed": [name for name, change in changes.items() if not change["new"]],
    }


class _workplace:
    """A directory with requirement files that the installer's user can read; gone at the end."""

    def __init__(self, installer: dict, files: dict[str, list[str]]):
        self.installer, self.files, self.path = installer, files, ""

    def __enter__(self) -> str:
        self.path = tempfile.mkdtemp(prefix="ckan-install-")
        for name, lines in self.files.items():
            with open(f"{self.path}/{name}.txt", "w", encoding="utf-8") as handle:
                handle.writelines(f"{line}\n" for line in lines)
        user = self.installer.get("user")
        if user and os.geteuid() == 0:
            os.chown(self.path, pwd.getpwnam(user).pw_uid, -1)
            for name in self.files:
                os.chmod(f"{self.path}/{name}.txt", 0o644)
        return self.path

    def __exit__(self, *exc: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _own(folder: str, user: str) -> None:
    """Make the cache directory, the user's own: files of its cache can be linked only by who owns them."""
    os.makedirs(folder, mode=0o755, exist_ok=True)
    if user and os.geteuid() == 0:
        entry = pwd.getpwnam(user)
        if os.stat(folder).st_uid != entry.pw_uid:
            for place, folders, files in os.walk(folder):
                for name in [".", *folders, *files]:
                    os.chown(os.path.join(place, name), entry.pw_uid, entry.pw_gid, follow_symlinks=False)


def _same_device(installer: dict, path: str) -> bool:
    """Say whether hard links from the cache into a virtualenv are possible; uv's own cache is left to uv to judge."""
    place = os.path.abspath(installer["cache"]) if installer.get("cache") else path
    while not os.path.exists(place):
        place = os.path.dirname(place)
    return os.stat(place).st_dev == os.stat(path).st_dev
