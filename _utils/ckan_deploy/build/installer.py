"""
The installer: uv, or pip where there is no uv. One function each for what the formula wants of it; what the two print
is understood here and nowhere else.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from attrs import field, frozen
from packaging.utils import canonicalize_name

from ckan_deploy.errors import FormulaError
from ckan_deploy.settings.model import Settings
from ckan_deploy.system import disk, files, processes
from ckan_deploy.system.processes import Done

# How setuptools installs checkouts: put the directory on the module path, so that packages can share a namespace.
EDITABLE_MODE = "editable_mode=compat"


@frozen
class Installer:
    """
    How packages are installed: ``kind`` (auto, uv, pip), ``uv`` (the program), ``cache`` (its cache directory),
    ``user`` (who runs it), ``link`` (how files of the cache are shared).
    """

    kind: str = "auto"
    uv: str = ""
    index_url: str = field(default="", repr=False)
    find_links: str = ""
    offline: bool = False
    cache: str = ""
    user: str = ""
    link: str = "hard"

    @classmethod
    def of(cls, settings: Settings) -> Installer:
        """
        Take it from the settings of a host.

        settings
            The settings.
        """
        asked = settings.installer
        return cls(
            kind=asked.kind,
            uv=asked.uv,
            index_url=asked.index_url,
            find_links=asked.find_links,
            offline=asked.offline,
            cache=os.path.join(settings.paths.shared, "cache"),
            user=settings.build_user if os.geteuid() == 0 else "",
            link=settings.link,
        )


class Changes(NamedTuple):
    """What an install would change: ``{name: version}`` of what there would be anew, and what would be gone."""

    installed: dict[str, str]
    removed: list[str]


def kind(installer: Installer) -> str:
    """
    Return ``uv`` or ``pip``: which one the settings and this host lead to.

    installer
        The installer.

    Raises ``FormulaError`` when uv is asked for and is not there.
    """
    program = installer.uv or "uv"
    if installer.kind == "pip":
        return "pip"
    if shutil.which(program):
        return "uv"
    if installer.kind == "uv":
        raise FormulaError(f"uv is not installed as {program!r}; install it or correct ckan:installer:uv.")
    return "pip"


def dry_run(
    path: str, lines: Sequence[str], constraints: Sequence[str], overrides: Sequence[str], installer: Installer
) -> Changes:
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

    A checkout that was not built yet is left out. Raises ``FormulaError`` whose text is what the installer says.
    """
    given = {"wanted": lines, "constraints": constraints, "overrides": overrides}
    with _workplace(installer, given) as place:
        if kind(installer) == "uv":
            options = ["--dry-run", "--constraints", f"{place}/constraints.txt"]
            options += ["--overrides", f"{place}/overrides.txt"] if overrides else []
            changes = _changes(_uv(path, [*options, "-r", f"{place}/wanted.txt"], installer).stderr)
            installed = {name: change["new"] for name, change in changes.items() if change["new"]}
            return Changes(installed, [name for name, change in changes.items() if not change["new"]])
        if overrides:
            raise FormulaError("pip cannot override requirements; install uv, or remove override.")
        report = f"{place}/report.json"
        options = ["--dry-run", "--report", report, "-c", f"{place}/constraints.txt"]
        _pip(path, [*options, "-r", f"{place}/wanted.txt"], installer)
        return Changes(_reported(report, {line[3:] for line in lines if line.startswith("-e ")}), [])


def install(path: str, lines: Sequence[str], installer: Installer, no_deps: bool = False) -> dict[str, dict[str, str]]:
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

    Returns ``{name: {"old": version, "new": version}}`` as far as the installer says it. Raises ``FormulaError`` whose
    text is what the installer says.
    """
    # Checkouts stand in a file, too: uv builds those of its command line anew each time, these it takes from its cache.
    with _workplace(installer, {"wanted": lines}) as place:
        options = ["--no-deps"] if no_deps else []
        if kind(installer) == "uv":
            mode = "hardlink" if installer.link == "hard" and _same_device(installer, path) else "copy"
            return _changes(_uv(path, [*options, "--link-mode", mode, "-r", f"{place}/wanted.txt"], installer).stderr)
        _pip(path, [*options, "-r", f"{place}/wanted.txt"], installer)
        return {}


def check(path: str, installer: Installer) -> list[str]:
    """
    Say which packages of a virtualenv miss something that they declare, or have it in a version that does not fit.

    path
        The virtualenv.
    installer
        The installer.

    Returns a list of sentences, one a package and requirement.
    """
    if kind(installer) == "uv":
        command = [installer.uv or "uv", "pip", "check", "--python", f"{path}/bin/python"]
        said = _run(command, installer, _uv_env(installer))
        lines = [line.strip() for line in said.stderr.splitlines()]
        found = [line for line in lines if re.match(r"The package `", line)]
    else:
        said = _run([*_pip_program(path, installer), "check"], installer, {})
        found = [line.strip() for line in said.stdout.splitlines() if line.strip()]
    if said.retcode != 0 and not found:
        raise FormulaError(f"the packages in {path} cannot be checked: {_told(said, installer)}.")
    return found if said.retcode != 0 else []


def _uv(path: str, options: Sequence[str], installer: Installer) -> Done:
    program = installer.uv or "uv"
    command = [shutil.which(program) or program, "pip", "install", "--python", f"{path}/bin/python"]
    command += ["--config-setting", EDITABLE_MODE]
    command += ["--find-links", installer.find_links] if installer.find_links else []
    command += ["--offline"] if installer.offline else []
    return _done(_run([*command, *options], installer, _uv_env(installer)), installer, path)


def _uv_env(installer: Installer) -> dict[str, str]:
    return {
        # VIRTUAL_ENV of whoever started the minion must not count; nothing is to be downloaded but packages.
        "VIRTUAL_ENV": "",
        "UV_NO_PROGRESS": "1",
        "UV_NO_CONFIG": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        # The host's own certificates: an index behind a company's certificate works as it does for apt and git.
        "UV_SYSTEM_CERTS": "1",
        "NO_COLOR": "1",
        **({"UV_CACHE_DIR": f"{installer.cache}/uv"} if installer.cache else {}),
        # Here and not among the arguments: it may hold a password.
        **({"UV_DEFAULT_INDEX": installer.index_url} if installer.index_url else {}),
    }


def _pip(path: str, options: Sequence[str], installer: Installer) -> None:
    command = [*_pip_program(path, installer), "install", "--quiet", "--no-input", "--config-settings", EDITABLE_MODE]
    command += ["--find-links", installer.find_links] if installer.find_links else []
    command += ["--no-index"] if installer.offline else []
    env = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_CONFIG_FILE": os.environ.get("PIP_CONFIG_FILE", "")}
    env = {name: value for name, value in env.items() if value}
    if installer.cache:
        env["PIP_CACHE_DIR"] = f"{installer.cache}/pip"
    if installer.index_url:
        env["PIP_INDEX_URL"] = installer.index_url
    _done(_run([*command, *options], installer, env), installer, path)


def _pip_program(path: str, installer: Installer) -> list[str]:
    """The virtualenv's own pip, else that beside uv or the system's for it (a virtualenv may have none)."""
    if os.path.exists(f"{path}/bin/pip"):
        return [f"{path}/bin/python", "-m", "pip"]
    tools = os.path.dirname(installer.uv)
    python = f"{tools}/python" if os.path.exists(f"{tools}/pip") else "/usr/bin/python3"
    return [python, "-m", "pip", "--python", f"{path}/bin/python"]


def _run(command: Sequence[str], installer: Installer, env: Mapping[str, str]) -> Done:
    home = installer.cache or "/nonexistent"
    if installer.cache:
        _own(installer.cache, installer.user)
    where = home if os.path.isdir(home) else "/"
    return processes.run(command, user=installer.user, env={"HOME": home, **env}, cwd=where, timeout=1800)


def _done(said: Done, installer: Installer, path: str) -> Done:
    if said.retcode == 0:
        return said
    if "No space left on device" in said.stderr + said.stdout:
        raise FormulaError(f"the disk of {path} or of {installer.cache or 'the cache'} is full.")
    raise FormulaError(_told(said, installer))


def _told(said: Done, installer: Installer) -> str:
    return processes.tail(said, hide=[urlsplit(installer.index_url).password or ""])


def _changes(text: str) -> dict[str, dict[str, str]]:
    """What uv says that it did, or would do: ``{name: {"old", "new"}}``, '' for no version."""
    changes: dict[str, dict[str, str]] = {}
    for sign, name, version in re.findall(r"^ ([-+~]) (\S+?)==(\S+)", text, re.MULTILINE):
        change = changes.setdefault(canonicalize_name(name), {"old": "", "new": ""})
        if sign in "-~":
            change["old"] = version
        if sign in "+~":
            change["new"] = version
    return changes


def _reported(report: str, checkouts: set[str]) -> dict[str, str]:
    """What pip says in a report that it would install, without checkouts."""
    with open(report, encoding="utf-8") as handle:
        items = json.load(handle)["install"]
    return {
        canonicalize_name(item["metadata"]["name"]): item["metadata"]["version"]
        for item in items
        if item.get("download_info", {}).get("url", "").removeprefix("file://") not in checkouts
    }


@contextlib.contextmanager
def _workplace(installer: Installer, given: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """A directory with requirement files that the installer's user can read; gone at the end."""
    path = tempfile.mkdtemp(prefix="ckan-install-")
    try:
        for name, lines in given.items():
            with open(f"{path}/{name}.txt", "w", encoding="utf-8") as handle:
                handle.writelines(f"{line}\n" for line in lines)
        if installer.user and os.geteuid() == 0:
            os.chown(path, pwd.getpwnam(installer.user).pw_uid, -1)
            for name in given:
                os.chmod(f"{path}/{name}.txt", 0o644)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _own(folder: str, user: str) -> None:
    """Make the cache directory, the user's own: files of its cache can be linked only by who owns them."""
    os.makedirs(folder, mode=0o755, exist_ok=True)
    if user and os.geteuid() == 0 and os.stat(folder).st_uid != pwd.getpwnam(user).pw_uid:
        files.give(folder, user)


def _same_device(installer: Installer, path: str) -> bool:
    """Say whether hard links from the cache into a virtualenv are possible; uv's own cache is left to uv to judge."""
    place = disk.existing(os.path.abspath(installer.cache)) if installer.cache else path
    return os.stat(place).st_dev == os.stat(path).st_dev
