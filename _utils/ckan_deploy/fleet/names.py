"""What the name of an environment may be."""

from __future__ import annotations

import re
from typing import Any

from ckan_deploy.errors import FormulaError

NAME = re.compile(r"[a-z][a-z0-9_-]*")


def check_env(env: Any) -> str:
    """
    Return ``env`` when it can be the name of an environment.

    env
        What was given.

    Raises ``FormulaError`` for anything else, so that no path is ever made from an odd name.
    """
    if not isinstance(env, str) or not NAME.fullmatch(env):
        raise FormulaError(f"{env!r} cannot be the name of an environment")
    return env
