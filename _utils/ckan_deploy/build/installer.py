"""
The installer: uv, or pip where there is no uv. One function each for what the formula wants of it; what the two answer
is understood here and nowhere else.

It installs wheels alone, and runs nothing of what it installs: it is told of a virtualenv as a directory, and looks at
it from an interpreter that has no packages. What has no wheel is built in the sandbox first: see ``wheels``.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from packaging.utils import canonicalize_name

from ckan_deploy.build import uv_and_pip as programs
from ckan_deploy.build import virtualenv
from ckan_deploy.build.sandbox import Sandbox
from ckan_deploy.build.uv_and_pip import Installer, kind
from ckan_deploy.errors import FormulaError
from ckan_deploy.sources import pylock
from ckan_deploy.sources.pylock import File, Locked
from ckan_deploy.system import processes, reflink, toml


class Changes(NamedTuple):
    """
    What an install would change: ``{name: version}`` of what there would be anew, what would be gone, and the files of
    it where the installer says them at once.
    """

    installed: dict[str, str]
    removed: list[str]
    files: list[Locked]


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
    with programs.workplace(installer, given) as place:
        if kind(installer) == "uv":
            options = ["--dry-run", "--output-format", "json", "--constraints", f"{place}/constraints.txt"]
            options += ["--overrides", f"{place}/overrides.txt"] if overrides else []
            said = programs.uv(path, [*options, "-r", f"{place}/wanted.txt"], installer)
            return _changes(said.stdout)
        if overrides:
            raise FormulaError("pip cannot override requirements; install uv, or remove override.")
        items = _pip_report(path, ["-c", f"{place}/constraints.txt"], f"{place}/wanted.txt", installer)
        return Changes({item.name: item.version for item in items}, [], items)


def files_of(path: str, versions: Mapping[str, str], installer: Installer) -> list[Locked]:
    """
    Say which files packages of the index have, with their hashes (uv only).

    path
        The virtualenv that they are for.
    versions
        ``{name: version}``.
    installer
        The installer.

    Returns an entry of a lock file for each. Raises ``FormulaError``.
    """
    if not versions:
        return []
    found = _compiled(path, [f"{name}=={version}" for name, version in sorted(versions.items())], versions, installer)
    missing = versions.keys() - {item.name for item in found}
    if missing:
        raise FormulaError(f"the package index names no files of {', '.join(sorted(missing))}.")
    return found


def source(name: str, specifiers: str, path: str, installer: Installer) -> File:
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

    Returns the sdist. Raises ``FormulaError``.
    """
    if kind(installer) != "uv":
        raise FormulaError(
            f"{name} has no wheel for this Python, and pip cannot tell of an sdist without running it; install uv, or "
            "put a wheel of it into ckan:installer:find_links."
        )
    found = _compiled(path, [f"{name}{specifiers}"], [name], installer)
    if not found or not found[0].sdist:
        raise FormulaError(f"{name}{specifiers} has neither a wheel for this Python nor an sdist.")
    return found[0].sdist


def install(path: str, lines: Sequence[str], installer: Installer, no_deps: bool = False) -> None:
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

    Raises ``NoWheel``, ``FormulaError`` whose text is what the installer says.
    """
    with programs.workplace(installer, {"wanted": lines}) as place:
        options = ["--no-deps"] if no_deps else []
        if kind(installer) == "uv":
            _uv_install(path, [*options, "-r", f"{place}/wanted.txt"], installer)
        else:
            _pip_install(path, options, f"{place}/wanted.txt", installer)


def install_locked(path: str, items: Sequence[Locked], installer: Installer) -> None:
    """
    Install the files that a lock file names, and nothing else.

    path
        The virtualenv.
    items
        Entries with a wheel each, by address or by path: those of an index under ``wheels``, others as ``archive``.
    installer
        The installer.

    Raises ``FormulaError`` where a file cannot be had, or is another one than its hash says.
    """
    if not items:
        return
    if kind(installer) == "uv":
        with programs.workplace(installer, {}) as place:
            file = f"{place}/{pylock.NAME}"
            with open(file, "x", encoding="utf-8") as handle:
                handle.write(pylock.dumps(items))
            _uv_install(path, ["--no-deps", "--preview-features", "pylock", "-r", file], installer)
        return
    # With one hash pip wants one of all.
    for hashed in (True, False):
        lines = [_pip_line(item) for item in items if _has_hash(item) is hashed]
        if lines:
            options = ["--no-deps", *(["--require-hashes"] if hashed else [])]
            with programs.workplace(installer, {"wanted": lines}) as place:
                _pip_install(path, options, f"{place}/wanted.txt", installer)


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
        uv = programs.program(installer)
        env = {
            **programs.uv_env(installer),
            "UV_NO_CACHE": "1",
            "UV_DEFAULT_INDEX": "",
            "UV_INDEX": "",
            "UV_OFFLINE": "1",
        }
        said = sandbox.run([uv, "pip", "check", "--python", f"{path}/bin/python"], [path, uv], env=env)
        found = [line for line in map(str.strip, said.stderr.splitlines()) if line.startswith("The package `")]
    else:
        tools = programs.bare(path, installer)
        python = f"{path}/bin/python"
        command = [tools, "-m", "pip", "--python", python, "check", "--disable-pip-version-check"]
        said = sandbox.run(command, [path, os.path.dirname(os.path.dirname(tools))])
        found = [line.strip() for line in said.stdout.splitlines() if line.strip()]
    if said.retcode != 0 and not found:
        raise FormulaError(f"the packages in {path} cannot be checked: {programs.told(said, installer)}.")
    return found if said.retcode != 0 else []


def _uv_install(path: str, options: Sequence[str], installer: Installer) -> None:
    # Never by hard links: who edits a file of a release would change what is installed from the cache later.
    mode = "clone" if installer.link == "auto" and reflink.possible(installer.shared, path) else "copy"
    programs.uv(path, ["--link-mode", mode, *options], installer)
    programs.rename_interpreter(path, installer)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{path}/.lock")  # uv's own, which all may write to


def _pip_install(path: str, options: Sequence[str], file: str, installer: Installer) -> None:
    for item in _pip_report(path, options, file, installer):
        virtualenv.uninstall(path, item.name)
    programs.pip(path, options, file, installer)
    programs.rename_interpreter(path, installer)


def _pip_report(path: str, options: Sequence[str], file: str, installer: Installer) -> list[Locked]:
    """What pip says in a report that it would install: https://pip.pypa.io/en/stable/reference/installation-report"""
    with programs.workplace(installer, {}) as place:
        report = f"{place}/report.json"
        programs.pip(path, [*options, "--dry-run", "--report", report], file, installer)
        with open(report, encoding="utf-8") as handle:
            items = json.load(handle)["install"]
    return [_reported(item) for item in items]


def _reported(item: Mapping[str, Any]) -> Locked:
    got, about = item["download_info"], item["metadata"]
    archive = got.get("archive_info") or {}
    hashes = archive.get("hashes") or dict([archive["hash"].split("=", 1)] if archive.get("hash") else [])
    name, version = canonicalize_name(about["name"]), str(about["version"])
    return _plain(Locked(name, version, wheels=(File(url=got["url"], hashes=hashes),)))


def _pip_line(item: Locked) -> str:
    """The line of a requirements file for an entry."""
    files = _files(item)
    local = next((file for file in files if file.path), None)
    asked = f"{item.name} @ file://{local.path}" if local else f"{item.name}=={item.version}"
    hashes = [f"--hash={kind}:{digits}" for file in files for kind, digits in file.hashes.items()]
    return " ".join([asked, *hashes])


def _files(item: Locked) -> list[File]:
    return [*item.wheels, *([item.archive] if item.archive else [])]


def _has_hash(item: Locked) -> bool:
    return any(file.hashes for file in _files(item))


def _compiled(path: str, lines: Sequence[str], names: Iterable[str], installer: Installer) -> list[Locked]:
    """The entries that uv would write into a lock file for some lines, without what they require."""
    # That it requires nothing is said for each, or uv would run an sdist to learn that.
    config = "".join(f'[[dependency-metadata]]\nname = "{name}"\nrequires-dist = []\n' for name in sorted(names))
    with programs.workplace(installer, {"wanted": lines, "uv": [config]}) as place:
        command = [programs.program(installer), "pip", "compile", "--no-deps", "--format", pylock.NAME]
        command += ["--no-header", "--quiet", "--config-file", f"{place}/uv.txt"]
        command += ["--python", programs.bare(path, installer), f"{place}/wanted.txt"]
        command += [*programs.sources(installer, built=False), *(["--offline"] if installer.offline else [])]
        env = {name: value for name, value in programs.uv_env(installer).items() if name != "UV_NO_CONFIG"}
        said = programs.done(programs.run(command, installer, env), installer, path)
    found = toml.loads(said.stdout).get("packages", [])
    return [_plain(_from_uv(table)) for table in found]


def _from_uv(table: Mapping[str, Any]) -> Locked:
    def file(about: Mapping[str, Any]) -> File:
        place = str(about.get("url") or f"file://{about['path']}")
        return File(url=place, hashes={kind: str(digits) for kind, digits in (about.get("hashes") or {}).items()})

    wheels = tuple(map(file, table.get("wheels") or ()))
    sdist = file(table["sdist"]) if table.get("sdist") else None
    return Locked(canonicalize_name(table["name"]), str(table["version"]), wheels, sdist)


def _plain(item: Locked) -> Locked:
    """An entry without logins in its addresses, and without hashes of kinds that no lock file of ours has."""

    def plain(file: File) -> File:
        parts = urlsplit(file.url)
        query = "" if processes.secret_parameters(file.url) else parts.query
        url = parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query, fragment="").geturl()
        known = {kind: digits.lower() for kind, digits in file.hashes.items() if kind in ("sha256", "sha512")}
        return pylock.check_file(File(url=url, hashes=known))

    return Locked(item.name, item.version, tuple(map(plain, item.wheels)), plain(item.sdist) if item.sdist else None)


def _changes(text: str) -> Changes:
    """What uv says in JSON that it would do."""
    changes = json.loads(text)["changes"]
    new: dict[str, str] = {
        canonicalize_name(item["name"]): str(item["version"]) for item in changes if item["action"] != "uninstalled"
    }
    old = {canonicalize_name(item["name"]) for item in changes if item["action"] == "uninstalled"}
    return Changes(new, sorted(old - new.keys()), [])
