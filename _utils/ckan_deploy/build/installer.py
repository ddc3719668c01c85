"""
The installer: uv, or pip where there is no uv. One function each for what the formula wants of it; what the two print
is understood here and nowhere else.

It installs wheels alone, and runs nothing of what it installs: it is told of a virtualenv as a directory, and looks at
it from an interpreter that has no packages. What has no wheel is built in the sandbox first: see ``sdists``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from attrs import field, frozen
from packaging.utils import canonicalize_name

from ckan_deploy.build import relocate, virtualenv
from ckan_deploy.build.sandbox import Sandbox
from ckan_deploy.errors import FormulaError
from ckan_deploy.settings.model import Settings
from ckan_deploy.system import files, places, processes, reflink, toml
from ckan_deploy.system.processes import Done


class NoWheel(FormulaError):
    """Packages have no wheel for this Python: ``names``."""

    def __init__(self, text: str, names: Sequence[str]) -> None:
        super().__init__(text)
        self.names = tuple(names)


@frozen
class Installer:
    """
    How packages are installed: ``shared`` (the directory ``paths:shared``, with its cache and the wheels
    that were built here), ``kind`` (auto, uv, pip), ``uv`` (the program), ``link`` (how files of its cache are shared).
    """

    shared: str
    kind: str = "auto"
    uv: str = ""
    index_url: str = field(default="", repr=False)
    find_links: str = ""
    offline: bool = False
    link: str = "auto"

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
            shared=settings.paths.shared,
            link=settings.link,
        )

    @property
    def cache(self) -> str:
        """The directory of its cache. Not the one in which earlier versions let build code write."""
        return os.path.join(self.shared, "packages")

    @property
    def wheels(self) -> str:
        """The directory of the wheels that were built on this host."""
        return os.path.join(self.shared, "wheels")


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
    name = installer.uv or "uv"
    if installer.kind == "pip":
        return "pip"
    if shutil.which(name):
        return "uv"
    if installer.kind == "uv":
        raise FormulaError(f"uv is not installed as {name!r}; install it or correct ckan:installer:uv.")
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

    Raises ``NoWheel``, ``FormulaError`` whose text is what the installer says.
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
        _pip(
            path, ["--dry-run", "--report", report, "-c", f"{place}/constraints.txt"], f"{place}/wanted.txt", installer
        )
        return Changes(_reported(report), [])


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

    Returns ``{name: {"old": version, "new": version}}`` as far as the installer says it. Raises ``NoWheel``,
    ``FormulaError`` whose text is what the installer says.
    """
    with _workplace(installer, {"wanted": lines}) as place:
        options = ["--no-deps"] if no_deps else []
        if kind(installer) == "uv":
            # Never by hard links: who edits a file of a release would change what is installed from the cache later.
            mode = "clone" if installer.link == "auto" and reflink.possible(place, path) else "copy"
            said = _uv(path, [*options, "--link-mode", mode, "-r", f"{place}/wanted.txt"], installer)
            _rename_interpreter(path, installer)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{path}/.lock")  # uv's own, which all may write to
            return _changes(said.stderr)
        report = f"{place}/report.json"
        _pip(path, [*options, "--dry-run", "--report", report], f"{place}/wanted.txt", installer)
        for name in _reported(report):
            virtualenv.uninstall(path, name)
        _pip(path, options, f"{place}/wanted.txt", installer)
        _rename_interpreter(path, installer)
        return {}


def source(name: str, specifiers: str, path: str, installer: Installer) -> dict[str, Any]:
    """
    Say which sdist there is of a package.

    name
        Its name.
    specifiers
        What its version must be, such as ``>=1,<2``; ``''`` for any.
    path
        The virtualenv that it is for.
    installer
        The installer.

    Returns ``{"url", "sha256"}``. Raises ``FormulaError``.
    """
    if kind(installer) != "uv":
        raise FormulaError(
            f"{name} has no wheel for this Python, and pip cannot tell of an sdist without running it; install uv, or "
            "put a wheel of it into ckan:installer:find_links."
        )
    # That it requires nothing is said for it, or uv would run it to learn that; the wheel will say what it requires.
    config = f'[[dependency-metadata]]\nname = "{name}"\nrequires-dist = []\n'
    with _workplace(installer, {"wanted": [f"{name}{specifiers}"], "uv": [config]}) as place:
        command = [
            program(installer),
            "pip",
            "compile",
            "--no-deps",
            "--format",
            "pylock.toml",
            "--no-header",
            "--quiet",
        ]
        command += ["--config-file", f"{place}/uv.txt", "--python", _bare(path, installer), f"{place}/wanted.txt"]
        env = {name: value for name, value in _uv_env(installer).items() if name != "UV_NO_CONFIG"}
        said = _done(_run([*command, *_places(installer)], installer, env), installer, path)
    listed: list[dict[str, Any]] = toml.loads(said.stdout).get("packages", [])
    found = listed[0].get("sdist") if listed else None
    if not found:
        raise FormulaError(f"{name}{specifiers} has neither a wheel for this Python nor an sdist.")
    return {"url": str(found.get("url") or f"file://{found['path']}"), "sha256": str(found["hashes"]["sha256"])}


def check(path: str, installer: Installer, sandbox: Sandbox) -> list[str]:
    """
    Say which packages of a virtualenv miss something that they declare, or have it in a version that does not fit.

    path
        The virtualenv.
    installer
        The installer.
    sandbox
        Where its interpreter is asked.

    Returns a list of sentences, one a package and requirement.
    """
    if kind(installer) == "uv":
        uv = program(installer)
        env = {**_uv_env(installer), "UV_NO_CACHE": "1", "UV_DEFAULT_INDEX": "", "UV_OFFLINE": "1"}
        said = sandbox.run([uv, "pip", "check", "--python", f"{path}/bin/python"], [path, uv], env=env)
        found = [line for line in map(str.strip, said.stderr.splitlines()) if line.startswith("The package `")]
    else:
        tools = _bare(path, installer)
        python = f"{path}/bin/python"
        command = [tools, "-m", "pip", "--python", python, "check", "--disable-pip-version-check"]
        said = sandbox.run(command, [path, os.path.dirname(os.path.dirname(tools))])
        found = [line.strip() for line in said.stdout.splitlines() if line.strip()]
    if said.retcode != 0 and not found:
        raise FormulaError(f"the packages in {path} cannot be checked: {_told(said, installer)}.")
    return found if said.retcode != 0 else []


def program(installer: Installer) -> str:
    """
    Return the path of uv.

    installer
        The installer.
    """
    name = installer.uv or "uv"
    return shutil.which(name) or name


def _places(installer: Installer) -> list[str]:
    """Options of uv and pip: where packages come from, beside the index."""
    found = ["--find-links", installer.find_links] if installer.find_links else []
    if os.path.isdir(installer.wheels):
        found += ["--find-links", installer.wheels]
    return found


def _uv(path: str, options: Sequence[str], installer: Installer) -> Done:
    command = [program(installer), "pip", "install", "--python", _bare(path, installer), "--prefix", path]
    command += [*_places(installer), "--no-build", *(["--offline"] if installer.offline else [])]
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
        "UV_CACHE_DIR": f"{installer.cache}/uv",
        # Here and not among the arguments: it may hold a password.
        **({"UV_DEFAULT_INDEX": installer.index_url} if installer.index_url else {}),
    }


def _pip(path: str, options: Sequence[str], file: str, installer: Installer) -> None:
    command = [_bare(path, installer), "-m", "pip", "install", "--quiet", "--no-input", "--prefix", path]
    command += ["--only-binary", ":all:", *_places(installer), *(["--no-index"] if installer.offline else [])]
    env = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_CONFIG_FILE": os.environ.get("PIP_CONFIG_FILE", "")}
    env = {name: value for name, value in env.items() if value}
    # What the virtualenv has is seen, and nothing of it is run: what a .pth file says holds for site directories only.
    env["PYTHONPATH"] = ":".join(virtualenv.site_packages(path))
    env["PIP_CACHE_DIR"] = f"{installer.cache}/pip"
    if installer.index_url:
        env["PIP_INDEX_URL"] = installer.index_url
    _done(_run([*command, *options, "-r", file], installer, env), installer, path)


def _bare(path: str, installer: Installer) -> str:
    """
    Return an interpreter that has no packages, of the Python that a virtualenv is made with: to ask that one where it
    belongs would run what its packages have for each start of Python.
    """
    python, pip = virtualenv.home_python(path), kind(installer) == "pip"
    key = hashlib.sha256(f"{python} {virtualenv.interpreter(path)['version']}".encode()).hexdigest()[:12]
    place = os.path.join(installer.shared, "interpreters", f"{key}{'-pip' if pip else ''}")
    files.once(place, lambda: virtualenv.create(place, python=python, pip=pip))
    return f"{place}/bin/python"


def _rename_interpreter(path: str, installer: Installer) -> None:
    """Scripts that were just installed name the interpreter that the installer was told of: they get their own."""
    relocate.rename(path, {os.path.dirname(os.path.dirname(_bare(path, installer))): path})


def _run(command: Sequence[str], installer: Installer, env: Mapping[str, str]) -> Done:
    os.makedirs(installer.cache, mode=0o755, exist_ok=True)
    return processes.run(command, env={"HOME": installer.cache, **env}, cwd=installer.cache, timeout=1800)


def _done(said: Done, installer: Installer, path: str) -> Done:
    if said.retcode == 0:
        return said
    if "No space left on device" in said.stderr + said.stdout:
        raise FormulaError(f"the disk of {path} or of {installer.cache} is full.")
    # uv gives the name in a hint.
    names = re.findall(r"^hint: Wheels are required for `([\w.-]+)`", said.stderr, re.MULTILINE)
    if names:
        raise NoWheel(_told(said, installer), [canonicalize_name(name) for name in names])
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


def _reported(report: str) -> dict[str, str]:
    """What pip says in a report that it would install."""
    with open(report, encoding="utf-8") as handle:
        items = json.load(handle)["install"]
    return {canonicalize_name(item["metadata"]["name"]): item["metadata"]["version"] for item in items}


@contextlib.contextmanager
def _workplace(installer: Installer, given: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """A directory with requirement files; gone at the end."""
    with places.temporary(installer.shared, "install") as path:
        for name, lines in given.items():
            with open(f"{path}/{name}.txt", "w", encoding="utf-8") as handle:
                handle.writelines(f"{line}\n" for line in lines)
        yield path
