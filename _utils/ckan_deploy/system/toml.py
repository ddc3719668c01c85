"""TOML, on every Python that Salt runs on: 3.10 has no parser of its own, pip brings one along."""

from __future__ import annotations

import importlib
from typing import Any

PARSERS = ("tomllib", "tomli", "pip._vendor.tomli")


def loads(text: str) -> dict[str, Any]:
    """
    Read a text in TOML.

    text
        The text.

    Raises ``ValueError`` for what is none, and where no parser is installed.
    """
    for name in PARSERS:
        try:
            parser = importlib.import_module(name)
        except ImportError:
            continue
        found: dict[str, Any] = parser.loads(text)
        return found
    raise ValueError("this Python has no parser of TOML")
