"""
What is wrong with a command or a schedule, before cron finds out: it reads no line of a file in which one is not right.
"""

from __future__ import annotations

import re
import shlex
from typing import Any

# The fields of crontab(5), with the least and the most of each. Those that have names count from the least.
_FIELDS = {"minute": (0, 59), "hour": (0, 23), "day of month": (1, 31), "month": (1, 12), "day of week": (0, 7)}
_NAMES = {
    "month": "jan feb mar apr may jun jul aug sep oct nov dec".split(),
    "day of week": "sun mon tue wed thu fri sat".split(),
}
# A step goes with a star or a range.
_ITEM = re.compile(r"(?:\*|(\w+)-(\w+)|(\w+)(?!/))(?:/[1-9][0-9]{0,2})?", re.ASCII)
_LIMIT = 500


def check_cron_job(key: str, job: dict[str, Any], problems: list[str]) -> None:
    """
    Check the schedule and the command of a cron job.

    key
        What it is called in messages, such as ``ckan:cron:harvest``.
    job
        Its settings by name.
    problems
        Gets a sentence for each thing that is wrong.
    """
    if bool(job["command"]) == bool(job["shell"]):
        problems.append(f"{key} must have a command or a shell, one of them")
    if len(job["shell"]) > _LIMIT:
        problems.append(f"{key}:shell is longer than {_LIMIT} characters; put it into a script")
    check_command(key, job["command"], problems)
    schedule = job["schedule"]
    if not schedule or re.fullmatch(r"@(reboot|yearly|annually|monthly|weekly|daily|midnight|hourly)", schedule):
        return
    # Cron knows blanks; others that look like one are part of a field for it, and it reads none of the file.
    fields = [field for field in schedule.split(" ") if field]
    if len(fields) != len(_FIELDS):
        problems.append(f"{key}:schedule ({schedule!r}) must have five fields, or be @daily and the like")
        return
    for text, (name, (least, most)) in zip(fields, _FIELDS.items(), strict=True):
        if not all(_is_item(item, name) for item in text.split(",")):
            problems.append(f"{key}:schedule ({schedule!r}) has {text!r} for the {name}; use {least} to {most}, or *")


def check_command(key: str, command: str, problems: list[str]) -> None:
    """
    Check a command of CKAN.

    key
        What it belongs to in messages, such as ``ckan:cron:harvest``.
    command
        The command, without ``ckan -c INI``; '' for none.
    problems
        Gets a sentence for each thing that is wrong.
    """
    if len(command) > _LIMIT:
        problems.append(f"{key}:command is longer than {_LIMIT} characters; put it into a script")
    try:
        words = shlex.split(command)
        if words and words[0] == "ckan":
            problems.append(f"{key}:command begins with 'ckan', which is put before it; leave it out")
        if words and words[0].startswith("-"):
            problems.append(f"{key}:command begins with an option; begin it with a command of CKAN")
    except ValueError as exc:
        problems.append(f"{key}:command cannot be split into words ({str(exc).lower()}); correct it")


def _is_item(item: str, field: str) -> bool:
    """Whether cron takes this for a value, a range or a step in a field."""
    match = _ITEM.fullmatch(item)
    if not match:
        return False
    least, most = _FIELDS[field]
    ends = [_number(end, field) for end in match.groups() if end]
    return ends == sorted(ends) and all(least <= end <= most for end in ends)


def _number(text: str, field: str) -> int:
    names = _NAMES.get(field, [])
    if text.lower() in names:
        return names.index(text.lower()) + _FIELDS[field][0]
    return int(text) if re.fullmatch(r"[0-9]{1,2}", text) else -1
