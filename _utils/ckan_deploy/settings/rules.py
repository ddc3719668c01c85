"""
What is known of one setting: its default, its rule and its text stand together, at the field of a class.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import attrs

# Kinds that follow from the type of a field; a field may name another one: "text" (of several lines), "lines"
# (a list of text).
_KINDS: dict[Any, str] = {str: "str", int: "int", bool: "bool", Any: "any"}


@attrs.frozen
class Rule:
    """The rule of a setting, and what docs/pillar.md and pillar.schema.json say of it."""

    kind: str
    default: Any
    text: str
    required: bool = False
    pattern: str = ""
    choices: tuple[str, ...] = ()
    secret: bool = False
    least: int = 0
    most: int = 0
    # Of a list: one value may stand there alone.
    one: bool = False


def setting(default: Any, text: str, **rule: Any) -> Any:
    """
    Declare a setting: the value of a class's field.

    default
        Its default.
    text
        What it is, in a sentence.
    rule
        Fields of ``Rule``.
    """
    about = {"default": default, "text": text, **rule}
    # What is secret is not shown where an object is printed.
    shown = not about.get("secret", False)
    if isinstance(default, (dict, list)):
        return attrs.field(factory=default.copy, repr=shown, metadata={"rule": about})
    return attrs.field(default=default, repr=shown, metadata={"rule": about})


@cache
def rules(cls: type) -> Mapping[str, Rule]:
    """
    Return the rules of the settings that are fields of a class, in order; groups are left out.

    cls
        The class.
    """
    types = typing.get_type_hints(cls)
    return {
        field.name: Rule(**{"kind": _kind(types[field.name]), **field.metadata["rule"]})
        for field in attrs.fields(cls)
        if "rule" in field.metadata
    }


@cache
def groups(cls: type) -> Mapping[str, type]:
    """
    Return the groups of a class of settings: name and class of each.

    cls
        The class.
    """
    types = typing.get_type_hints(cls)
    return {field.name: types[field.name] for field in attrs.fields(cls) if "rule" not in field.metadata}


def table(cls: type) -> Iterator[tuple[str, Rule]]:
    """
    Go through all settings of a class and of its groups.

    cls
        The class.

    Yields their names, such as ``web:listen``, and rules.
    """
    for field in attrs.fields(cls):
        if "rule" in field.metadata:
            yield field.name, rules(cls)[field.name]
        else:
            yield from ((f"{field.name}:{leaf}", rule) for leaf, rule in rules(groups(cls)[field.name]).items())


def _kind(annotation: Any) -> str:
    if annotation in _KINDS:
        return _KINDS[annotation]
    arguments = typing.get_args(annotation)
    if not arguments:
        return str(annotation.__name__).lower()
    if typing.get_origin(annotation) is tuple:
        return "list" if arguments[0] is str else "hooks"
    # Mappings: of CKAN's options, or of parts by name.
    if arguments[1] is str:
        return "variables"
    return "options" if arguments[1] is Any else arguments[1].__name__.lower()
