"""Environment variables of the pillar against their rules."""

from __future__ import annotations

import re
from typing import Any

from ckan_deploy.system.arguments import missing_blank

NAME = r"[A-Za-z_][A-Za-z0-9_]*"
# What the kernel takes is 128 KiB for each.
LONGEST = 32768
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# What the formula or the shell sets itself, or what would make other programs than CKAN do something else.
_TAKEN = re.compile(
    r"(HOME|PATH|SHELL|USER|LOGNAME|PWD|IFS|ENV|BASH_ENV|PS4|LANG|LC_ALL|RELEASE_DIR|VIRTUAL_ENV|TMPDIR"
    r"|(LD|UWSGI|SUPERVISOR|GIT|SALT)_.*|PYTHON.*)"
)


def check_variables(key: str, value: Any, problems: list[str]) -> dict[str, str]:
    """
    Check environment variables. No message holds a value: any of them may be secret.

    key
        What they stand under, such as ``ckan:environment``.
    value
        What the pillar has there.
    problems
        Gets a sentence for each thing that is wrong.

    Returns the variables by name.
    """
    if not isinstance(value, dict):
        problems.append(f"{key} must be a dictionary of environment variables{missing_blank(value)}")
        return {}
    found = {}
    for name, content in value.items():
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            problems.append(f"{key}: {name!r} cannot be the name of a variable; use letters, digits and '_'")
        elif re.match(r"CKAN_", name):
            problems.append(f"{key}:{name} would win over CKAN's ini; put the option into ckan:config")
        elif _TAKEN.fullmatch(name):
            problems.append(f"{key}:{name} is set by the formula, or is none of CKAN's; take it out")
        elif content is not None:
            found[name] = _text(f"{key}:{name}", content, problems)
    return found


def _text(key: str, content: Any, problems: list[str]) -> str:
    if isinstance(content, int) and not isinstance(content, bool):
        return str(content)
    if not isinstance(content, str):
        problems.append(f"{key} is no text; put the value in quotes in the pillar")
        return ""
    if _CONTROL.search(content):
        problems.append(f"{key} has control characters in it; remove them")
    if len(content.encode()) > LONGEST:
        problems.append(f"{key} is longer than {LONGEST} bytes; put the value into a file")
    return content
