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
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from attrs import frozen
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from ckan_deploy.build import installer as installers
from ckan_deploy.build import wheels
from ckan_deploy.build.wheels import Builder
from ckan_deploy.errors import FormulaError


@frozen
class Wanted:
    """
    What is to be installed: a ``requirement``; for a ``checkout`` a wheel that was built of it, and the requirement
    ``files`` that go with it.
    """

    name: str
    requirement: str = ""
    checkout: str = ""
    files: tuple[str, ...] = ()


@frozen
class Locked:
    """
    What there will be, but for the packages of checkouts, ``{name: version}``; and what was overridden,
    ``{name: {"by", "base", "got"}}``.
    """

    packages: Mapping[str, str]
    overridden: Mapping[str, Mapping[str, str]]


class Installed(NamedTuple):
    """What an install changed, ``{name: {"old", "new"}}``, and the seconds that it took."""

    changes: dict[str, dict[str, str]]
    seconds: float


class _Asked(NamedTuple):
    """A requirement that an extension states in so many words, and the file that it stands in."""

    extension: str
    requirement: Requirement
    where: str


def freeze(path: str) -> dict[str, str]:
    """
    Return the packages of a virtualenv, ``{name: version}``, with normalised names in order.

    Read from the packages' metadata; no interpreter is started.

    path
        Absolute path of the virtualenv.

    Raises ``FormulaError`` where there is none.
    """
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions(path=_folders(path)):
        name, version = distribution.metadata["Name"], distribution.metadata["Version"]
        if name and version:
            found.setdefault(canonicalize_name(name), version)
    return dict(sorted(found.items()))


def version(path: str, name: str) -> str:
    """
    Return the version of one package of a virtualenv, '' where it is not there.

    path
        Absolute path of the virtualenv.
    name
        The normalised name of the package.
    """
    found = importlib.metadata.distributions(name=name, path=_folders(path))
    return next((distribution.metadata["Version"] for distribution in found), "")


def lock(
    path: str,
    wanted: Iterable[Wanted],
    pins: Mapping[str, str],
    overrides: Mapping[str, Sequence[str]],
    builder: Builder,
) -> Locked:
    """
    Resolve all that is wanted together, and install nothing.

    path
        The base virtualenv, which is not changed.
    wanted
        What is wanted; its order makes no difference.
    pins
        ``{name: version}`` of the base: nothing may ask for another version.
    overrides
        ``{extension: [requirements]}`` that win over all others, over the pins, too.
    builder
        Builds what has no wheel.

    Raises ``FormulaError`` that names library, versions and who asks.
    """
    wanted = sorted(wanted, key=lambda item: item.name)
    chosen = _overrides(overrides)
    asked = [question for item in wanted for question in _asked(item)]
    _refuse_conflicts(asked, pins, chosen)
    constraints = [f"{name}=={version}" for name, version in sorted(pins.items()) if name not in chosen]
    # An override is there also where nobody else asks for its library.
    lines = [*_lines(wanted), *(line for _, line in chosen.values())]
    if not lines:
        return Locked(dict(pins), {})
    try:
        given = (path, lines, constraints, [line for _, line in chosen.values()], builder.installer)
        found = builder.with_wheels(lambda: installers.dry_run(*given))
    except FormulaError as exc:
        who = _who_asks(str(exc), asked, pins)
        raise FormulaError(f"the packages cannot be resolved: {str(exc).rstrip('.')}{who}.") from exc
    packages = {name: version for name, version in pins.items() if name not in found.removed}
    packages.update(found.installed)
    for item in wanted:
        if " @ " in item.requirement:
            name, version = parse_wheel_filename(os.path.basename(item.requirement))[:2]
            packages[name] = str(version)
            if item.checkout:
                # Its version stands in its commit; a base may have had it at another one.
                packages.pop(name)
    overridden = {
        name: {"by": extension, "base": pins.get(name, ""), "got": packages.get(name, "")}
        for name, (extension, _) in chosen.items()
    }
    return Locked(dict(sorted(packages.items())), overridden)


def install(path: str, wanted: Iterable[Wanted], packages: Mapping[str, str] | None, builder: Builder) -> Installed:
    """
    Bring a virtualenv to a lock: install what is wanted, and every package that it has in another version.

    path
        The virtualenv.
    wanted
        As for ``lock``.
    packages
        The lock; nothing else is resolved. None to resolve freely, as for a new base.
    builder
        Builds what has no wheel.

    Raises ``FormulaError`` with what the installer says.
    """
    started = time.monotonic()
    wanted = sorted(wanted, key=lambda item: item.name)
    lines = _lines(wanted) if packages is None else _locked_lines(path, wanted, packages)
    changes = {}
    if lines:
        try:
            no_deps = packages is not None
            changes = builder.with_wheels(lambda: installers.install(path, lines, builder.installer, no_deps))
        except FormulaError as exc:
            raise FormulaError(f"the packages could not be installed: {exc}") from exc
    return Installed(changes, round(time.monotonic() - started, 3))


def check(path: str, builder: Builder, tolerate: Iterable[str] = ()) -> bool:
    """
    Return True when every package's declared dependencies are there in a fitting version.

    path
        Absolute path of the virtualenv.
    builder
        Says how it is asked.
    tolerate
        Libraries that were overridden: whoever declares another version of one of them is overruled.

    Raises ``FormulaError`` with the packages that do not fit.
    """
    names = {canonicalize_name(name) for name in tolerate}
    found = [
        line
        for line in installers.check(path, builder.installer, builder.sandbox)
        if not names & {canonicalize_name(word) for word in re.findall(r"[\w.-]+", line)[3:]}
    ]
    if found:
        raise FormulaError(f"the packages do not fit together: {' '.join(found[:10])}; change the versions asked for.")
    return True


def _folders(path: str) -> list[str]:
    """The directories of a virtualenv that packages have their metadata in."""
    folders = sorted(glob.glob(f"{glob.escape(path)}/lib/*/site-packages"))
    if not folders:
        raise FormulaError(f"{path} holds no lib/python*/site-packages; name a virtualenv, or create it first.")
    # A package installed by the old "setup.py develop" keeps its metadata in the checkout that an egg-link names.
    for link in [name for folder in folders for name in glob.glob(f"{glob.escape(folder)}/*.egg-link")]:
        with open(link, encoding="utf-8") as handle:
            folders.append(handle.readline().strip())
    return folders


def _lines(wanted: Iterable[Wanted], files: bool = True) -> list[str]:
    """What is wanted as the lines of a requirements file."""
    lines = []
    for item in wanted:
        lines.append(item.requirement)
        if files:
            lines += [f"-r {file}" for file in item.files]
    return lines


def _locked_lines(path: str, wanted: Sequence[Wanted], packages: Mapping[str, str]) -> list[str]:
    """The same for a lock: what the index has stands in it, and of that only what the virtualenv lacks."""
    have = freeze(path) if packages else {}
    from_index = {canonicalize_name(i.name) for i in wanted if i.requirement and " @ " not in i.requirement}
    archives = {canonicalize_name(i.name) for i in wanted if " @ " in i.requirement}
    lines = [
        line
        for line in _lines(wanted, files=False)
        if canonicalize_name(re.split(r"[<>=!~ \[]", line)[0]) not in from_index
    ]
    return lines + [
        f"{name}=={version}"
        for name, version in sorted(packages.items())
        if have.get(name) != version and name not in archives
    ]


def _overrides(overrides: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, str]]:
    """``{library: (extension, line)}``."""
    chosen: dict[str, tuple[str, str]] = {}
    for extension, lines in sorted(overrides.items()):
        for line in lines:
            name = canonicalize_name(Requirement(line).name)
            other = chosen.setdefault(name, (extension, line))
            if Requirement(other[1]).specifier != Requirement(line).specifier:
                raise FormulaError(
                    f"{other[0]} overrides {other[1]} and {extension} overrides {line}; let one of them win."
                )
    return chosen


def _asked(item: Wanted) -> list[_Asked]:
    found = []
    for file in item.files:
        asked = _read(file, item.checkout, set())
        found += [_Asked(item.name, requirement, os.path.basename(file)) for requirement in asked]
    if item.checkout:
        for line in wheels.read(item.requirement.partition(" @ file://")[2])[2]:
            requirement = _parse(line)
            if requirement:
                found.append(_Asked(item.name, requirement, "its package"))
    return found


def _read(file: str, checkout: str, seen: set[str]) -> list[Requirement]:
    """
    The plain requirements of a requirements file and of those that it includes. Refuses what would let the installer,
    which runs as root, read files outside of the checkout, or send what its environment holds to a server.
    """
    shown = os.path.relpath(file, checkout)
    if not os.path.realpath(file).startswith(f"{os.path.realpath(checkout)}/"):
        raise FormulaError(f"a requirements file includes {shown}, which is outside of the checkout; correct it.")
    if file in seen or not os.path.isfile(file):
        return []
    seen.add(file)
    with open(file, encoding="utf-8", errors="replace") as handle:
        text = handle.read().replace("\\\n", " ")
    if "${" in text:
        raise FormulaError(
            f"{shown} names a variable of the environment (${{...}}); write the value, or set an override."
        )
    found = []
    for line in text.splitlines():
        line = re.sub(r"(^|\s)#.*$", "", line).strip()
        include = re.match(r"(-r|--requirement|-c|--constraint)[ =]*(\S+)", line)
        if include:
            inner = _read(os.path.join(os.path.dirname(file), include[2].strip("'\"")), checkout, seen)
            found += inner if include[1] in ("-r", "--requirement") else []
        elif re.match(r"(-e|--editable)\b", line):
            raise FormulaError(
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


def _refuse_conflicts(asked: Iterable[_Asked], pins: Mapping[str, str], chosen: Mapping[str, tuple[str, str]]) -> None:
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
        raise FormulaError("; ".join(problems) + ".")


def _who_asks(text: str, asked: Iterable[_Asked], pins: Mapping[str, str]) -> str:
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
