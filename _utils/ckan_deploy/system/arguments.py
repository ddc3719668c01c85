"""Arguments that people type, or that come over Salt's wire: refused where they cannot be meant."""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ckan_deploy.errors import InvalidArgument

LONGEST = 2000


def text(name: str, value: Any) -> str:
    """
    Return an argument as text; Salt reads a word of digits as a number.

    name
        What it is called in the message.
    value
        The argument.

    Raises ``InvalidArgument`` for a list, a dictionary, control characters, or more than 2,000 characters.
    """
    if not isinstance(value, (str, int, float)) or len(str(value)) > LONGEST or not str(value).isprintable():
        raise InvalidArgument(f"{name} must be a line of text of at most {LONGEST} characters.")
    return str(value)


def line(name: str, value: Any) -> str:
    """
    Return an argument as a line of text, whatever it holds: a reason may be what a program said, and must be no reason
    to refuse a revert.

    name, value
        As for ``text``.

    Control characters become blanks, and what is longer than 2,000 characters is cut. Raises ``InvalidArgument`` for a
    list or a dictionary.
    """
    if not isinstance(value, (str, int, float)):
        raise InvalidArgument(f"{name} must be a line of text.")
    words = "".join(letter if letter.isprintable() else " " for letter in str(value)).split()
    said = " ".join(words)
    return said if len(said) <= LONGEST else f"{said[: LONGEST - 3]}..."


def whole(name: str, value: Any, least: int = 0) -> int:
    """
    Return an argument that is a whole number.

    name, value
        As for ``text``.
    least
        The least that it may be.

    Raises ``InvalidArgument`` for anything else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidArgument(f"{name} must be a whole number, {least} or more, not {value!r}.")
    return value


def flag(name: str, value: Any) -> bool:
    """
    Return an argument that is true or false.

    name
        What it is called.
    value
        What was typed.

    Raises ``InvalidArgument`` for anything else.
    """
    if not isinstance(value, bool):
        raise InvalidArgument(f"{name} is {value!r}; use True or False.")
    return value


def mapping(name: str, value: Any) -> dict[str, Any]:
    """
    Return an argument that is a dictionary; None stands for an empty one.

    name, value
        As for ``text``.

    Raises ``InvalidArgument`` for anything else, and for one that JSON cannot hold, as a date.
    """
    if value is not None and not isinstance(value, Mapping):
        raise InvalidArgument(f"{name} must be a dictionary, not {value!r}.")
    try:
        json.dumps(value)
    except (TypeError, ValueError) as exc:
        raise InvalidArgument(f"{name} must be a dictionary of text, numbers, lists and dictionaries ({exc}).") from exc
    return dict(value or {})


def missing_blank(value: Any) -> str:
    """
    Return what is to be done where YAML made a word of a name, a colon and a value; '' where it did not.

    value
        What stands where a dictionary or a name should.
    """
    found = isinstance(value, str) and re.match(r"[A-Za-z_][\w.-]*:[^\s/]", value)
    return "; write a blank after the colon" if found else ""


def near(name: str, known: Iterable[str]) -> str:
    """
    Return `` (did you mean X?)`` for a name that is close to a known one, else ``''``.

    name
        What was given.
    known
        The names that there are.
    """
    found = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def fit(
    name: str, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], more: Sequence[str] = ()
) -> dict[str, Any]:
    """
    Return the arguments by name that a function is called with, without what Salt adds to them.

    name
        What the function is called in the message.
    function
        The function; what it takes by ``**`` is what ``more`` names.
    args, kwargs
        The arguments.
    more
        Names that cannot be written as one of Python's.

    Raises ``InvalidArgument`` for an argument that it does not take, or for one that is missing. Salt prints the manual
    of a runner then, and exits with 0.
    """
    parameters = inspect.signature(function).parameters.values()
    named = [parameter for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    known = [*(parameter.name for parameter in named), *more]
    takes = f"it takes {', '.join(known) or 'nothing'}"
    given = {key: value for key, value in kwargs.items() if not key.startswith("__")}
    for key in given:
        if key not in known:
            raise InvalidArgument(f"{name} does not know {key}{near(key, known)}; {takes}")
    if len(args) > len(named):
        plural = "" if len(named) == 1 else "s"
        raise InvalidArgument(f"{name} takes {len(named)} argument{plural}, not {len(args)}; {takes}")
    for parameter in named[len(args) :]:
        if parameter.default is parameter.empty and parameter.name not in given:
            raise InvalidArgument(f"{name} needs {parameter.name}; {takes}")
    for parameter in named[: len(args)]:
        if parameter.name in given:
            raise InvalidArgument(f"{name} was given {parameter.name} twice; {takes}")
    return given


def typed(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """
    Return arguments as the annotations of a function want them: a number that is to be text becomes text, and of
    ``key: `` without a value the default holds.

    function
        The function.
    args, kwargs
        Arguments that ``fit`` has looked at.

    Raises ``InvalidArgument`` for one of another type.
    """
    parameters = inspect.signature(function).parameters
    by_place = [_as_wanted(parameter, value) for parameter, value in zip(parameters.values(), args, strict=False)]
    by_name = {
        name: _as_wanted(parameters[name], value) if name in parameters else value for name, value in kwargs.items()
    }
    return by_place, by_name


def _as_wanted(parameter: inspect.Parameter, value: Any) -> Any:
    wanted = str(parameter.annotation)
    if value is None and parameter.default is not parameter.empty:
        return parameter.default
    if wanted == "bool":
        return flag(parameter.name, value)
    if wanted in ("int", "int | None"):
        if not isinstance(value, int) or isinstance(value, bool):
            raise InvalidArgument(f"{parameter.name} must be a whole number, not {value!r}.")
    elif wanted.startswith("dict["):
        return mapping(parameter.name, value)
    elif wanted == "str":
        if not isinstance(value, (str, int, float)) or isinstance(value, bool):
            raise InvalidArgument(f"{parameter.name} must be a line of text, not {value!r}.")
        return str(value)
    return value
