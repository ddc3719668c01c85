"""One value of the pillar against its rule. What is wrong is added to a list of problems, each a sentence."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Collection
from typing import Any

from ckan_deploy.settings.rules import Rule
from ckan_deploy.settings.variables import check_variables
from ckan_deploy.system.arguments import missing_blank

# The name of an option of CKAN.
OPTION = r"[A-Za-z0-9_.-]+"
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# Options of CKAN may have several lines.
CONTROL_IN_OPTION = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def check_value(key: str, value: Any, rule: Rule, problems: list[str]) -> Any:
    """
    Check one value.

    key
        What it is called in messages, such as ``ckan:web:listen``.
    value
        The value as the pillar has it; None for none.
    rule
        Its rule.
    problems
        Gets a sentence for each thing that is wrong.

    Returns the value, or the default where there is none.
    """
    if rule.kind == "any":
        return copy.deepcopy(rule.default if value is None else value)
    if value is None or value == "" and rule.required:
        if rule.required:
            made = ", or let the master make it (docs/secrets.md)" if key.startswith("ckan:secrets:") else ""
            problems.append(f"{key} is missing; set it in the pillar{made}")
        return copy.copy(rule.default)
    if rule.kind in ("options", "variables"):
        return _options(key, value, problems) if rule.kind == "options" else check_variables(key, value, problems)
    if rule.kind in ("list", "lines"):
        if rule.one and isinstance(value, (int, float)):
            problems.append(f"{key} is {named(value)}; put the value in quotes in the pillar")
            return rule.default
        value = [value] if rule.one and isinstance(value, str) else value
        return _lines(key, value, problems) if rule.kind == "lines" else _words(key, value, rule, problems)
    wanted = {"str": str, "text": str, "int": int, "bool": bool}[rule.kind]
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        if wanted is str:
            problems.append(f"{key} is {named(value, rule.secret)}; put the value in quotes in the pillar")
        else:
            problems.append(
                f"{key} must be {'a whole number' if wanted is int else 'True or False'}, not {quoted(value)}"
            )
        return rule.default
    _check_against(key, value, rule, problems)
    return value


def check_fields(key: str, given: dict[str, Any], rules: dict[str, Rule], problems: list[str]) -> dict[str, Any]:
    """
    Check the values of a group or a part, each by its rule.

    key
        What the group is called in messages.
    given
        ``{name: value}`` as the pillar has it.
    rules
        The rules by name.
    problems
        Gets a sentence for each thing that is wrong.

    Returns ``{name: value}`` with the defaults.
    """
    return {name: check_value(f"{key}:{name}", given.get(name), rule, problems) for name, rule in rules.items()}


def refuse_unknown(key: str, found: Collection[Any], known: Collection[str], problems: list[str]) -> None:
    """
    Add a problem for each name that is no setting, with the nearest one that is.

    key
        What they stand under.
    found
        The names.
    known
        The names that there are.
    problems
        Gets the sentences.
    """
    for name in found:
        if name not in known:
            close = difflib.get_close_matches(str(name), sorted(known), n=1, cutoff=0.5)
            hint = f"; did you mean {key}:{close[0]}?" if close else "; see docs/pillar.md"
            if without := missing_blank(name):
                # What follows the colon may be a secret.
                name, _, _ = str(name).partition(":")
                hint = f"{without} ({name}: ...)"
            problems.append(f"{key}:{name} is not a setting{hint}")


def named(value: Any, secret: bool = False) -> str:
    """
    Say what YAML made of a value, for people; never the value of text or of a secret.

    value
        The value.
    secret
        Whether it may be one.
    """
    if secret and isinstance(value, (int, float)):
        return "a number or a yes/no value"
    if isinstance(value, bool):
        return f"the yes/no value {value}"
    if isinstance(value, (int, float)):
        return f"the number {value}"
    words: dict[type, str] = {dict: "a dictionary", list: "a list", str: "text"}
    return words.get(type(value), type(value).__name__)


def quoted(value: Any) -> str:
    """
    Say what YAML made of a value that is no secret, with the text.

    value
        The value.
    """
    text = isinstance(value, str) and not CONTROL.search(value)
    return f"the text {value[:60]!r}" if text else named(value)


def _check_against(key: str, value: Any, rule: Rule, problems: list[str]) -> None:
    """Pattern, choices and limits of a single value."""
    if rule.kind == "text":
        if CONTROL_IN_OPTION.search(value):
            problems.append(f"{key} has control characters in it; remove them")
    elif rule.kind == "str" and CONTROL.search(value):
        problems.append(f"{key} has control characters or line breaks in it; remove them")
    elif rule.pattern and not re.fullmatch(rule.pattern, value):
        problems.append(f"{key} is not valid ({value!r}); {rule.text[0].lower()}{rule.text[1:]}")
    elif rule.choices and value not in rule.choices:
        problems.append(f"{key} is {value!r}; use {' or '.join(rule.choices)}")
    elif rule.kind == "int" and value < rule.least:
        problems.append(f"{key} is {value}; use {rule.least} or more")
    elif rule.most and value > rule.most:
        problems.append(f"{key} is {value}; use {rule.most} or less")


def _lines(key: str, value: Any, problems: list[str]) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        problems.append(f"{key} must be a list of text, a line an item, not {_odd(value)}")
        return []
    if any(CONTROL.search(item) for item in value):
        problems.append(f"{key} has an item with control characters or line breaks; write one line an item")
    return value


def _odd(value: Any) -> str:
    """What stands in place of a list of text."""
    if not isinstance(value, list):
        return named(value)
    odd = next(item for item in value if not isinstance(item, str) or not item.strip())
    return f"one with {'empty text' if isinstance(odd, str) else named(odd)}"


def _words(key: str, value: Any, rule: Rule, problems: list[str]) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        problems.append(f"{key} must be a list of text (put numbers and yes/no words in quotes), not {_odd(value)}")
        return []
    if any(re.search(r"\s", item) or CONTROL.search(item) for item in value):
        problems.append(f"{key} has an item with blanks or control characters; write one name an item")
    elif rule.pattern and (odd := [item for item in value if not re.fullmatch(rule.pattern, item)]):
        problems.append(f"{key} has the item {odd[0]!r}, which is not valid; correct it")
    if len(set(value)) != len(value):
        problems.append(f"{key} lists {next(i for i in value if value.count(i) > 1)} twice; remove one")
    return value


def _options(key: str, value: Any, problems: list[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        what = "texts by language" if key.endswith(":maintenance_message") else "CKAN's options"
        problems.append(f"{key} must be a dictionary of {what}{missing_blank(value)}")
        return {}
    for option, content in value.items():
        if not isinstance(option, str) or not re.fullmatch(OPTION, option):
            problems.append(f"{key}: {option!r} cannot be the name of an option; correct it")
        for item in content if isinstance(content, list) else [content]:
            if not isinstance(item, (str, int, float)):
                problems.append(f"{key}:{option} must be text, a number, True or False, or a list of them")
            elif isinstance(item, str) and CONTROL_IN_OPTION.search(item):
                problems.append(f"{key}:{option} has control characters in it; remove them")
    return value
