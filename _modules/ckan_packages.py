"""
Packages of a virtualenv: what is in it, what would be (the *lock*), and bringing it there.

All extensions of a release are resolved together, held to the versions of the base, before anything is installed; what
comes out of it is installed as it is on every host. Nothing here knows of releases.
"""

from __future__ import annotations

import glob
import importlib.metadata
import os
import re
import time
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version
from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_packages"


def __virtual__() -> str:
    return __virtualname__


def freeze(path: str) -> dict[str, str]:
    """
    Return the packages of a virtualenv, ``{name: version}``, with normalised names in order.

    Read from the packages' metadata; no interpreter is started.

    path
        Absolute path of the virtualenv.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_packages.freeze /usr/lib/ckan/default
    """
    folders = sorted(glob.glob(f"{glob.escape(path)}/lib/*/site-packages"))
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
            found.setdefault(canonicalize_name(name), version)
    return dict(sorted(found.items()))


def lock(path: str, wanted: list[dict], pins: dict, overrides: dict, installer: dict) -> dict:
    """
    Resolve all that is wanted together, and install nothing.

    path
        The base virtualenv, which is not changed.
    wanted
        ``[{"name", "editable": directory or "requirement": text, "files": [requirement files]}]``; their order makes no
        difference.
    pins
        ``{name: version}`` of the base: nothing may ask for another version.
    overrides
        ``{extension: [requirements]}`` that win over all others, over the pins, too.
    installer
        The installer (see ``ckan_installer``).

    Returns ``{"packages": {name: version}, "overridden": {name: {"by", "base", "got"}}}``; ``packages`` is all that
    there will be but for the packages of checkouts. Raises ``CommandExecutionError`` that names library, versions and
    who asks.

    CLI Example: not for the command line; ``ckan_release.plan`` uses it.
    """
    wanted = sorted(wanted, key=lambda item: item["name"])
    chosen = _overrides(overrides)
    asked = [question for item in wanted for question in _asked(item)]
    _refuse_conflicts(asked, pins, chosen)
    constraints = [f"{name}=={version}" for name, version in sorted(pins.items()) if name not in chosen]
    lines = _lines(wanted)
    if not lines:
        return {"packages": dict(pins), "overridden": {}}
    try:
        found = __salt__["ckan_installer.dry_run"](
            path, lines, constraints, [line for _, line in chosen.values()], installer
        )
    except CommandExecutionError as exc:
        text = str(exc)
        who = _who_asks(text, asked, pins)
        raise CommandExecutionError(f"the packages cannot be resolved: {text.rstrip('.')}{who}.") from exc
    packages = {name: version for name, version in pins.items() if name not in found["removed"]}
    packages.update(found["installed"])
    for item in wanted:
        if item.get("requirement", "").endswith(".whl"):
            packages[canonicalize_name(item["name"])] = str(
                parse_wheel_filename(os.path.basename(item["requirement"]))[1]
            )
        elif "editable" in item:
            # Its version stands in its commit; a base may have had it at another one.
            packages.pop(canonicalize_name(item["name"]), None)
    overridden = {
        name: {"by": extension, "base": pins.get(name, ""), "got": packages.get(name, "")}
        for name, (extension, _) in chosen.items()
    }
    return {"packages": dict(sorted(packages.items())), "overridden": overridden}


def install(path: str, wanted: list[dict], packages: dict | None, installer: dict) -> dict[str, Any]:
    """
    Bring a virtualenv to a lock: install what is wanted, and every package that it has in another version.

    path
        The virtualenv.
    wanted
        As for ``lock``; an entry with ``editable`` may say in ``place`` where the checkout will stand in the end.
    packages
        The lock; nothing else is resolved. None to resolve freely, as for a new base.
    installer
        The installer.

    Returns ``{"changes": {name: {"old", "new"}}, "seconds": x}``. Raises ``CommandExecutionError`` with what the
    installer says.

    CLI Example: not for the command line; ``ckan_release.build`` uses it.
    """
    started = time.monotonic()
    wanted = sorted(wanted, key=lambda item: item["name"])
    lines = _lines(wanted, files=packages is None)
    if packages is not None:
        have = freeze(path)
        from_index = {
            canonicalize_name(i["name"]) for i in wanted if "requirement" in i and " @ " not in i["requirement"]
        }
        lines = [line for line in lines if canonicalize_name(re.split(r"[<>=!~ \[]", line)[0]) not in from_index]
        archives = {canonicalize_name(i["name"]) for i in wanted if " @ " in i.get("requirement", "")}
        lines += [
            f"{name}=={version}"
            for name, version in sorted(packages.items())
            if have.get(name) != version and name not in archives
        ]
    changes = {}
    if lines:
        try:
            changes = __salt__["ckan_installer.install"](path, lines, installer, no_deps=packages is not None)
        except CommandExecutionError as exc:
            raise CommandExecutionError(f"the packages could not be installed: {exc}") from exc
    places = {item["editable"]: item["place"] for item in wanted if item.get("place")}
    if places:
        __salt__["ckan_relocate.rename"](path, places)
    return {"changes": changes, "seconds": round(time.monotonic() - started, 3)}


def check(path: str, installer: dict, tolerate: list[str] | None = None) -> bool:
    """
    Return True when every package's declared dependencies are there in a fitting version.

    path
        Absolute path of the virtualenv.
    installer
        The installer.
    tolerate
        Libraries that were overridden: whoever declares another version of one of them is overruled.

    Raises CommandExecutionError with the packages that do not fit.

    CLI Example: not for the command line; ``ckan_release.check`` uses it.
    """
    found = __salt__["ckan_installer.check"](path, installer)
    names = {canonicalize_name(name) for name in tolerate or []}
    found = [
        line for line in found if not names & {canonicalize_name(word) for word in re.findall(r"[\w.-]+", line)[3:]}
    ]
    if found:
        raise CommandExecutionError(
            f"the packages do not fit together: {' '.join(found[:10])}; change the versions asked for."
        )
    return True


def _lines(wanted: list[dict], files: bool = True) -> list[str]:
    """What is wanted as the lines of a requirements file."""
    lines = []
    for item in wanted:
        lines.append(f"-e {item['editable']}" if "editable" in item else item["requirement"])
        if files:
            lines += [f"-r {file}" for file in item.get("files", [])]
    return lines


def _overrides(overrides: dict) -> dict[str, tuple[str, str]]:
    """``{library: (extension, line)}``."""
    chosen: dict[str, tuple[str, str]] = {}
    for extension, lines in sorted(overrides.items()):
        for line in lines:
            name = canonicalize_name(Requirement(line).name)
            other = chosen.setdefault(name, (extension, line))
            if Requirement(other[1]).specifier != Requirement(line).specifier:
                raise CommandExecutionError(
                    f"{other[0]} overrides {other[1]} and {extension} overrides {line}; let one of them win."
                )
    return chosen


def _asked(item: dict) -> list[tuple[str, Requirement, str]]:
    """The requirements that an entry states in so many words: ``[(extension, requirement, where)]``."""
    found = []
    for file in item.get("files", []):
        found += [(item["name"], requirement, os.path.basename(file)) for requirement in _read(file, set())]
    project = os.path.join(item.get("editable", ""), "pyproject.toml")
    if "editable" in item and os.path.isfile(project):
        for line in _static_dependencies(project):
            requirement = _parse(line)
            if requirement:
                found.append((item["name"], requirement, "pyproject.toml"))
    return found


def _read(file: str, seen: set[str]) -> list[Requirement]:
    """The plain requirements of a requirements file and of those that it includes."""
    if file in seen or not os.path.isfile(file):
        return []
    seen.add(file)
    with open(file, encoding="utf-8", errors="replace") as handle:
        text = handle.read().replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        line = re.sub(r"(^|\s)#.*$", "", line).strip()
        include = re.match(r"(?:-r|--requirement)[ =]+(\S+)", line)
        if include:
            found += _read(os.path.join(os.path.dirname(file), include[1]), seen)
        elif re.match(r"(-e|--editable)\b", line):
            raise CommandExecutionError(
                f"{os.path.basename(file)} has the line {line!r}; a checkout belongs under ckan:extensions, so set "
                "requirements: none, or another file."
            )
        else:
            requirement = _parse(line)
            if requirement:
                found.append(requirement)
    return found


def _parse(line: str) -> Requirement | None:
    try:
        requirement = Requirement(re.split(r"\s--|\s;;", line)[0])
    except InvalidRequirement:
        return None  # an option, an address: the installer's business
    return requirement if not requirement.marker or requirement.marker.evaluate() else None


def _static_dependencies(project: str) -> list[str]:
    """The dependencies of a pyproject.toml; read without a parser for it, which Python 3.10 does not have."""
    with open(project, encoding="utf-8", errors="replace") as handle:
        text = handle.read()
    table = re.search(r"^\[project\]\s*$(.*?)(?=^\[|\Z)", text, re.MULTILINE | re.DOTALL)
    array = re.search(r"^dependencies\s*=\s*\[(.*?)^\s*\]|^dependencies\s*=\s*\[(.*?)\]", table[1] if table else "",
                      re.MULTILINE | re.DOTALL)  # fmt: skip
    return re.findall(r"""["']([^"'\n]+)["']""", (array[1] or array[2] or "") if array else "")


def _refuse_conflicts(asked: list, pins: dict, chosen: dict) -> None:
    """Name at once every requirement that the base's versions do not meet, before the installer is asked."""
    problems = []
    for extension, requirement, where in asked:
        name = canonicalize_name(requirement.name)
        if name in chosen or name not in pins or requirement.url:
            continue
        try:
            fits = requirement.specifier.contains(Version(pins[name]), prereleases=True)
        except InvalidVersion:
            continue
        if not fits:
            problems.append(
                f"{extension} asks for {name}{requirement.specifier} ({where}), CKAN's own is {name} {pins[name]}; "
                f"correct it, or set ckan:extensions:{extension}:override: ['{name}{requirement.specifier}']"
            )
    if problems:
        raise CommandExecutionError("; ".join(problems) + ".")


def _who_asks(text: str, asked: list, pins: dict) -> str:
    """For the libraries that an installer's explanation names: who asks for them, in so many words."""
    named = {canonicalize_name(word.rstrip(".")) for word in re.findall(r"[A-Za-z][\w.-]*", text)}
    by_library: dict[str, list[str]] = {}
    for extension, requirement, where in asked:
        name = canonicalize_name(requirement.name)
        if name in named:
            by_library.setdefault(name, []).append(f"{extension} {requirement.specifier or 'any'} ({where})")
    told = [
        f"{name}: {', '.join(sorted(who))}" + (f", CKAN's own is {pins[name]}" if name in pins else "")
        for name, who in sorted(by_library.items())
    ]
    return f" -- who asks: {'; '.join(told)}; to let one win set its override" if told else ""
