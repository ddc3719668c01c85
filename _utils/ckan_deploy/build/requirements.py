"""
What extensions state that they require: in their requirements files, and in the metadata of their wheels.

The lines are read here and not by the installer, which runs as root: it is given names, versions and wheels alone. An
address becomes a wheel before that: see ``addresses``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from attrs import Factory, evolve, frozen
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from ckan_deploy.errors import FormulaError
from ckan_deploy.settings.origins import has_secret
from ckan_deploy.sources.archives import SUFFIXES
from ckan_deploy.system.processes import without_logins

# Where a requirement stands that a wheel states.
METADATA = "its package"
# Options of pip that change nothing here: wheels alone are installed in any case.
HARMLESS = ("--prefer-binary", "--only-binary")
_HASH = re.compile(r"\s--hash[= ](sha(?:256|512)):([0-9a-f]+)", re.IGNORECASE)
_ADDRESS = re.compile(r"(git|hg|svn|bzr)\+|(https?|file|ssh|git)://", re.IGNORECASE)


@frozen
class Asked:
    """
    One requirement: who states it, and ``where``, such as a file; its normalised ``name``, '' where an address alone is
    given; the ``line`` for messages. ``hashes`` are those that its files may have, ``kind:hex``; none for any.
    """

    who: str
    where: str
    line: str
    name: str
    specifier: SpecifierSet = Factory(SpecifierSet)
    extras: str = ""
    marker: str = ""
    address: str = ""
    hashes: tuple[str, ...] = ()

    @property
    def plain(self) -> str:
        """The requirement as an installer takes it, without its address."""
        marker = f" ; {self.marker}" if self.marker else ""
        return f"{self.name}{self.extras}{'' if self.address else self.specifier}{marker}"

    def __str__(self) -> str:
        return f"{self.who} asks for {self.line!r} ({self.where})"


@frozen
class Stated:
    """What an extension states in all: requirements, and the constraints of its files."""

    asked: list[Asked]
    constraints: list[Asked]


def environment(python: str) -> dict[str, str]:
    """
    Return what markers of requirements are decided by, where it is another Python than this one.

    python
        Its version, such as ``3.11.2``.
    """
    return {"python_full_version": python, "python_version": ".".join(python.split(".")[:2])}


def of_line(who: str, where: str, line: str, python: Mapping[str, str]) -> Asked | None:
    """
    Read one requirement.

    who, where
        As in ``Asked``.
    line
        The requirement as it is written.
    python
        What ``environment`` returned.

    Returns None for one that is for another Python or system. Raises ``FormulaError`` for what is none.
    """
    if has_secret(line):
        shown = without_logins(line, "****")
        raise FormulaError(
            f"{who} has the line {shown!r} in {where} with a password or a token in it, which manifests would show; "
            "take it out, and list that package under ckan:extensions with its token."
        )
    hashes = tuple(f"{kind}:{digits}".lower() for kind, digits in _HASH.findall(line))
    text = re.split(r"\s--hash|\s;;", line)[0].strip()
    asked = _by_address_alone(who, where, line, text)
    if asked:
        return evolve(asked, hashes=hashes)
    try:
        found = Requirement(text)
    except InvalidRequirement as exc:
        raise FormulaError(
            f"{who} has the line {line!r} in {where}, which is no requirement; correct it, or set requirements."
        ) from exc
    if found.marker and not found.marker.evaluate(dict(python)):
        return None
    extras = f"[{','.join(sorted(found.extras))}]" if found.extras else ""
    name, marker = canonicalize_name(found.name), str(found.marker or "")
    return Asked(who, where, line, name, found.specifier, extras, marker, found.url or "", hashes)


def of_metadata(who: str, requires: list[str], python: Mapping[str, str]) -> list[Asked]:
    """
    Read what a wheel says that it requires.

    who, python
        As for ``of_line``.
    requires
        Its lines ``Requires-Dist``.
    """
    return [asked for line in requires if (asked := of_line(who, METADATA, line, python))]


def of_file(who: str, file: str, checkout: str, python: Mapping[str, str]) -> Stated:
    """
    Read a requirements file, and those that it includes.

    who, python
        As for ``of_line``.
    file
        Its path.
    checkout
        The checkout that it stands in: no other file is read.

    Raises ``FormulaError`` for what it states and nobody can keep to.
    """
    stated = Stated([], [])
    for where, line, constrains in _lines(who, file, checkout, set(), False):
        if line.startswith("-"):
            line = _option(who, where, line)
        if line in ("", ".", "./") or re.fullmatch(r"\.\[[\w,. -]*\]", line):
            continue  # the extension itself
        if line.startswith((".", "/")) or line.endswith(SUFFIXES) and not _ADDRESS.search(line):
            raise FormulaError(
                f"{who} has the line {line!r} in {where}, a file or directory of its own; name it by an address, "
                "or put a wheel of it into ckan:installer:find_links and write its name."
            )
        asked = of_line(who, where, line, python)
        if asked and constrains and asked.address:
            raise FormulaError(
                f"{who} has the constraint {asked.line!r} in {where}; an address belongs into its requirements."
            )
        if asked:
            (stated.constraints if constrains else stated.asked).append(asked)
    return stated


def _by_address_alone(who: str, where: str, line: str, text: str) -> Asked | None:
    """One that is an address, such as ``git+https://...#egg=NAME``; the marker may follow."""
    if not _ADDRESS.match(text):
        return None
    address, _, marker = text.partition(" ;")
    egg = re.search(r"[#&]egg=([A-Za-z0-9._-]+)(\[[\w,.-]*\])?", address)
    named = re.fullmatch(r"([A-Za-z0-9._]+)-\d[^-]*-.*\.whl", re.split("[#?]", address)[0].rpartition("/")[2])
    name = egg[1] if egg else named[1] if named else ""
    if marker and not Requirement(f"x ; {marker}").marker.evaluate():  # type: ignore[union-attr]
        return None
    extras = (egg[2] or "") if egg else ""
    return Asked(who, where, line, canonicalize_name(name) if name else "", extras=extras, address=address.strip())


def _option(who: str, where: str, line: str) -> str:
    """What an option of a requirements file comes to: a requirement, or '' for none. Refuses all others by name."""
    editable = re.match(r"(-e|--editable)[ =]*(.*)", line)
    if editable:
        inner = editable[2].strip().strip("'\"")
        if _ADDRESS.match(inner) or " @ " in inner or re.fullmatch(r"\.?/?(\[[\w,. -]*\])?", inner):
            return inner
        raise FormulaError(
            f"{who} has the line {line!r} in {where}; list it under ckan:extensions with its url, ref and "
            f"subdirectory, and set ckan:extensions:{who}:requirements to none or to another file."
        )
    if line.startswith(HARMLESS):
        return ""
    shown = without_logins(line, "****")
    raise FormulaError(
        f"{who} has the line {shown!r} in {where}; where packages come from is said under ckan:installer alone, so "
        f"take the line out, or set ckan:extensions:{who}:requirements to none or to another file."
    )


def _lines(who: str, file: str, checkout: str, seen: set[str], constrains: bool) -> Iterator[tuple[str, str, bool]]:
    """The lines of a requirements file: where each stands, its text, and whether it is a constraint."""
    shown = os.path.relpath(file, checkout)
    if not os.path.realpath(file).startswith(f"{os.path.realpath(checkout)}/"):
        raise FormulaError(
            f"{who}: a requirements file includes {shown}, which is outside of the checkout; correct it."
        )
    if file in seen:
        return
    if not os.path.isfile(file):
        raise FormulaError(f"{who}: a requirements file includes {shown}, which is not there; correct it.")
    seen.add(file)
    with open(file, encoding="utf-8", errors="replace") as handle:
        text = handle.read().replace("\\\n", " ").lstrip("\ufeff")
    if "${" in text:
        raise FormulaError(
            f"{who}: {shown} names a variable of the environment (${{...}}); write the value, or set an override."
        )
    for line in text.splitlines():
        line = re.sub(r"(^|\s)#.*$", "", line).strip()
        include = re.match(r"(-r|--requirement|-c|--constraint)[ =]*(\S+)", line)
        if include:
            inner = os.path.join(os.path.dirname(file), include[2].strip("'\""))
            yield from _lines(who, inner, checkout, seen, constrains or include[1] in ("-c", "--constraint"))
        elif line:
            yield shown, line, constrains
