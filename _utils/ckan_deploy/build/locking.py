"""
The resolution of packages: all that extensions require, and ``ckan:packages``, is resolved together, held to the
versions of the base, and becomes a lock file. Nothing is installed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from attrs import evolve, frozen
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from ckan_deploy.build import addresses, editable, requirements, resolved, virtualenv, wheels
from ckan_deploy.build import installer as installers
from ckan_deploy.build.addresses import Library
from ckan_deploy.build.installer import Changes
from ckan_deploy.build.packages import Wanted
from ckan_deploy.build.requirements import Asked
from ckan_deploy.build.wheels import Builder
from ckan_deploy.errors import FormulaError
from ckan_deploy.sources import pylock
from ckan_deploy.sources.pylock import Locked
from ckan_deploy.system import places

# Who asks for what the settings list by themselves.
SETTINGS = "ckan:packages"


@frozen
class Wish:
    """
    What is wished for: the extensions and what goes with them, further requirements ``packages``, the lines that win
    over all others ``{extension: [requirement]}``, and by which names and places of git the settings list extensions,
    ``{name or place: extension}``.
    """

    wanted: Sequence[Wanted]
    packages: Sequence[str] = ()
    overrides: Mapping[str, Sequence[str]] = {}
    listed: Mapping[str, str] = {}


@frozen
class Decided:
    """
    What there will be: ``packages`` but for those of checkouts, ``{name: version}``; what was overridden,
    ``{name: {"by", "base", "got"}}``; the text of the ``lock`` file; and ``notes``, a sentence each.
    """

    packages: Mapping[str, str]
    overridden: Mapping[str, Mapping[str, str]] = {}
    lock: str = ""
    notes: tuple[str, ...] = ()


def lock(path: str, wish: Wish, pins: Mapping[str, str], builder: Builder, renew: bool = False) -> Decided:
    """
    Resolve all that is wished for together, and install nothing.

    path
        The base virtualenv, which is not changed.
    wish
        What is wished for; its order makes no difference.
    pins
        ``{name: version}`` of the base: nothing may ask for another version.
    builder
        Builds what has no wheel, and what comes from git.
    renew
        Ask the package index, also where that was done a moment ago.

    Raises ``FormulaError`` that names library, versions and who asks.
    """
    wish = evolve(wish, wanted=sorted(wish.wanted, key=lambda item: item.name))
    python = requirements.environment(virtualenv.interpreter(path)["version"])
    chosen = _overrides(wish.overrides, python)
    stated = _stated(wish, python)
    asked, notes = _without_listed(stated.asked, wish.listed)
    libraries, more = _libraries([*asked, *chosen.values()], chosen, wish.listed, builder, python)
    asked += more
    _refuse_conflicts(asked, pins, chosen)
    if not (wish.wanted or asked or chosen):
        return Decided(dict(pins), lock=pylock.dumps([]), notes=notes)
    with places.temporary(builder.installer.shared, "lock") as place:
        lines = [_wanted_line(item, place) for item in wish.wanted]
        lines += [item.plain for item in asked if item.where != requirements.METADATA and not item.address]
        lines += [_library_line(item, libraries, place) for item in asked if item.address]
        overrides = [_library_line(item, libraries, place) for item in chosen.values()]
        held = [f"{name}=={version}" for name, version in sorted(pins.items()) if name not in chosen]
        held += [item.plain for item in stated.constraints if item.name not in chosen]
        given = (path, list(dict.fromkeys([*lines, *overrides])), held, overrides)
        made_from = {"from": _made_from(wish, libraries), "lines": lines, "held": held, "overrides": overrides}
        ours = _ours(wish.wanted) | libraries.keys()
        try:
            found = _resolved(given, {**made_from, "pins": dict(pins), "place": place}, ours, builder, renew)
        except FormulaError as exc:
            who = _who_asks(str(exc), asked, pins)
            raise FormulaError(f"the packages cannot be resolved: {str(exc).rstrip('.')}{who}.") from exc
    entries = [_with_hashes(item, asked) for item in found.files]
    packages = {name: version for name, version in pins.items() if name not in found.removed}
    packages.update(found.installed)
    packages.update({name: library.locked.version for name, library in libraries.items()})
    for item in wish.wanted:
        # The version of a checkout stands in its commit; a base may have had it at another one.
        if item.checkout:
            packages.pop(_name(item), None)
        elif item.archive:
            packages[_name(item)] = wheels.read(item.archive)[1]
    overridden = {
        name: {"by": item.who, "base": pins.get(name, ""), "got": packages.get(name, "")}
        for name, item in chosen.items()
    }
    text = pylock.dumps([*entries, *(library.locked for library in libraries.values())])
    return Decided(dict(sorted(packages.items())), overridden, text, notes)


def _resolved(
    given: tuple[str, list[str], list[str], list[str]], made_from: dict[str, Any], ours: Collection[str],
    builder: Builder, renew: bool,
) -> Changes:  # fmt: skip
    """What would be installed, with the files of all but ``ours``: as it was resolved before, or asked for now."""
    path, installer = given[0], builder.installer
    # The directory of what is written for this very call has another name each time.
    asked = json.loads(json.dumps(made_from).replace(made_from["place"], ""))
    kept = None if renew else resolved.find(resolved.key(path, asked, installer), installer)
    if kept:
        return kept
    found = builder.with_wheels(lambda: installers.dry_run(*given, installer))
    new = {name: version for name, version in found.installed.items() if name not in ours}
    entries = [item for item in found.files if item.name in new] or installers.files_of(path, new, installer)
    found = found._replace(files=[addresses.hashed(item, builder) for item in entries])
    # By what there is now: wheels may have been built for it.
    resolved.keep(resolved.key(path, asked, installer), found, installer)
    return found


def _made_from(wish: Wish, libraries: Mapping[str, Library]) -> list[Any]:
    """The commits and archives of all that is wished for, with what these say that they are and require."""
    found: list[Any] = [[item.name, item.requirement, item.checkout] for item in wish.wanted]
    found += [wheels.read(item.archive) for item in wish.wanted if item.archive]
    return [*found, *([name, pylock.dumps([library.locked])] for name, library in sorted(libraries.items()))]


def _stated(wish: Wish, python: Mapping[str, str]) -> requirements.Stated:
    """All that is required, in so many words."""
    found = requirements.Stated([], [])
    for line in wish.packages:
        asked = requirements.of_line(SETTINGS, "the pillar", line, python)
        found.asked.extend([asked] if asked else [])
    for item in wish.wanted:
        for file in item.files:
            inner = requirements.of_file(item.name, file, item.checkout, python)
            found.asked.extend(inner.asked)
            found.constraints.extend(inner.constraints)
        if item.archive:
            found.asked.extend(requirements.of_metadata(item.name, wheels.read(item.archive)[2], python))
    return found


def _overrides(overrides: Mapping[str, Sequence[str]], python: Mapping[str, str]) -> dict[str, Asked]:
    """The lines that win, by library."""
    chosen: dict[str, Asked] = {}
    for who, lines in sorted(overrides.items()):
        for line in lines:
            asked = requirements.of_line(who, "override", line, python)
            if not asked:
                continue
            other = chosen.setdefault(asked.name, asked)
            if (other.specifier, other.address) != (asked.specifier, asked.address):
                raise FormulaError(
                    f"{other.who} overrides {other.line} and {who} overrides {line}; let one of them win."
                )
    return chosen


def _without_listed(asked: Iterable[Asked], listed: Mapping[str, str]) -> tuple[list[Asked], tuple[str, ...]]:
    """Addresses of what the settings list say nothing: it comes from where the settings say."""
    kept, notes = [], []
    for item in asked:
        extension = _listed(item, listed)
        if not extension:
            kept.append(item)
        elif extension != item.who:
            notes.append(
                f"{item.who} has {item.line!r} ({item.where}), which is skipped: {extension} comes from where "
                f"ckan:extensions:{extension} says"
            )
    return kept, tuple(dict.fromkeys(notes))


def _listed(item: Asked, listed: Mapping[str, str]) -> str:
    """The extension of the settings that an address leads to, '' for none."""
    if not item.address:
        return ""
    if item.name in listed:
        return listed[item.name]
    try:
        about = addresses.parse(item.address)
    except FormulaError:
        return ""  # said by who brings it
    # A directory tells several packages of one repository apart.
    return listed.get(addresses.same_place(about.url), "") if about.git and not about.subdirectory else ""


def _libraries(
    asked: Iterable[Asked], chosen: Mapping[str, Asked], listed: Mapping[str, str], builder: Builder,
    python: Mapping[str, str],
) -> tuple[dict[str, Library], list[Asked]]:  # fmt: skip
    """
    Bring what is asked for by an address, and what that asks for by one. Returns the libraries by name, and what they
    state themselves.
    """
    found: dict[str, Library] = {}
    by: dict[str, Asked] = {}
    more: list[Asked] = []
    waiting = [item for item in asked if item.address]
    known: dict[str, Library] = {}
    while waiting:
        item = waiting.pop(0)
        if item.name in chosen and item is not chosen[item.name]:
            continue
        new = item.address not in known
        library = known.setdefault(item.address, known.get(item.address) or addresses.bring(item, builder))
        name = library.locked.name
        if name in listed:
            continue
        other = found.setdefault(name, library)
        by.setdefault(name, item)
        if other.locked != library.locked and name not in chosen:
            raise FormulaError(
                f"{by[name]} and {item}: these are two of {name}; make them one, or let one win by its override."
            )
        if new:
            inner = requirements.of_metadata(name, list(library.requires), python)
            more += inner
            waiting += [inner_item for inner_item in inner if inner_item.address and not _listed(inner_item, listed)]
    return found, more


def _wanted_line(item: Wanted, place: str) -> str:
    return f"{_name(item)} @ file://{_described(item.archive, place)}" if item.archive else item.requirement


def _library_line(item: Asked, libraries: Mapping[str, Library], place: str) -> str:
    """The line of one that has an address: its wheel. Of one that has none, as for an override, the line itself."""
    if not item.address:
        return item.plain
    found = next(
        (library for name, library in libraries.items() if name == item.name or _is_of(library.locked, item.address)),
        None,
    )
    if found is None:
        return item.name  # an extension of the settings
    return f"{found.locked.name}{item.extras} @ file://{_described(found.wheel, place)}"


def _is_of(locked: Locked, address: str) -> bool:
    about = addresses.parse(address)
    if about.git:
        return (locked.url, locked.ref, locked.subdirectory) == (about.url, about.ref, about.subdirectory)
    return bool(locked.archive and locked.archive.url == about.url)


def _described(wheel: str, place: str) -> str:
    """
    Return a wheel whose requirements have no addresses, which an installer would follow: itself, or one that has its
    description alone.
    """
    if not any(Requirement(line).url for line in wheels.read(wheel)[2]):
        return wheel
    with zipfile.ZipFile(wheel) as archive:
        info = {name: archive.read(name) for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/\w+", name)}
    about = next(name for name in info if name.endswith("/METADATA"))
    lines = []
    for line in info[about].decode("utf-8").split("\n"):
        if line.startswith("Requires-Dist:"):
            found = Requirement(line.partition(":")[2].strip())
            found.url = None
            line = f"Requires-Dist: {found}"
        lines.append(line)
    info[about] = "\n".join(lines).encode("utf-8")
    target = os.path.join(place, os.path.basename(wheel))
    if not os.path.exists(target):
        editable.write_wheel(target, info)
    return target


def _with_hashes(entry: Locked, asked: Iterable[Asked]) -> Locked:
    """Leave those files of a package that have a hash which a requirement states."""
    for item in asked:
        if item.name == entry.name and item.hashes and not item.address:
            wheels_ = tuple(
                file for file in entry.wheels if any(f"{k}:{d}" in item.hashes for k, d in file.hashes.items())
            )
            sdist = entry.sdist
            if sdist and not any(f"{k}:{d}" in item.hashes for k, d in sdist.hashes.items()):
                sdist = None
            entry = evolve(entry, wheels=wheels_, sdist=sdist)
            if not wheels_ and not sdist:
                raise FormulaError(
                    f"{item}: {entry.name} {entry.version} has no file with a hash that it states; correct it."
                )
    return entry


def _refuse_conflicts(asked: Iterable[Asked], pins: Mapping[str, str], chosen: Mapping[str, Asked]) -> None:
    """Name at once every requirement that the base's versions do not meet, before the installer is asked."""
    found: dict[str, list[Asked]] = {}
    for item in asked:
        if item.name in chosen or item.name not in pins or item.address:
            continue
        with contextlib.suppress(InvalidVersion):
            if not item.specifier.contains(Version(pins[item.name]), prereleases=True):
                found.setdefault(item.who, []).append(item)
    if found:
        raise FormulaError("; ".join(_conflict(who, items, pins, chosen) for who, items in found.items()) + ".")


def _conflict(who: str, items: list[Asked], pins: Mapping[str, str], chosen: Mapping[str, Asked]) -> str:
    """What one asks for that the base's versions do not meet, and one list of overrides for all of it."""
    told = [f"{item.name}{item.specifier} ({item.where}), CKAN's own is {item.name} {pins[item.name]}"
            for item in items]  # fmt: skip
    setting = "ckan:override" if who == SETTINGS else f"ckan:extensions:{who}:override"
    # What it has already would be lost otherwise.
    have = [item.line for item in chosen.values() if item.who in (who, setting)]
    lines = list(dict.fromkeys([*have, *(f"{item.name}{item.specifier}" for item in items)]))
    return (
        f"{who} asks for {', and for '.join(told)}; correct {'it' if len(items) == 1 else 'them'}, or set {setting}: "
        f"{lines}"
    )


def _who_asks(text: str, asked: Iterable[Asked], pins: Mapping[str, str]) -> str:
    """For the libraries that an installer's explanation names: who asks for them, in so many words."""
    named = {canonicalize_name(word.rstrip(".")) for word in re.findall(r"[A-Za-z][\w.-]*", text)}
    by_library: dict[str, list[str]] = {}
    for item in asked:
        if item.name in named:
            what = item.address or item.specifier or "any"
            by_library.setdefault(item.name, []).append(f"{item.who} {what} ({item.where})")
    told = [
        f"{name}: {', '.join(sorted(who))}" + (f", CKAN's own is {pins[name]}" if name in pins else "")
        for name, who in sorted(by_library.items())
    ]
    return f" -- who asks: {'; '.join(told)}; to let one win set its override" if told else ""


def _ours(wanted: Iterable[Wanted]) -> set[str]:
    """The names of what comes as a wheel of this host."""
    return {_name(item) for item in wanted if item.archive}


def _name(item: Wanted) -> str:
    return canonicalize_name(wheels.read(item.archive)[0])
