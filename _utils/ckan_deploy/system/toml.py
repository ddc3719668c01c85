"""TOML, on every Python that Salt runs on: 3.10 has no parser of its own, pip brings one along."""

from __future__ import annotations

import importlib
from typing import Any

PARSERS = ("tomllib", "tomli", "pip._vendor.tomli")


def _parser() -> Any:
    for name in PARSERS:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


# With the package, so that no job has to.
_PARSER = _parser()


def loads(text: str) -> dict[str, Any]:
    """
    Read a text in TOML.

    text
        The text.

    Raises ``ValueError`` for what is none, and where no parser is installed.
    """
    if not _PARSER:
        raise ValueError("this Python has no parser of TOML")
    found: dict[str, Any] = _PARSER.loads(text)
    return found
