"""
Say which modules and functions of the formula are too long, and exit 1 if there are any.

Usage: `python tools/sizes.py`. A module may have 400 lines, a function 50 without its docstring.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
FOLDERS = ("_utils", "_modules", "_states", "_runners", "_pillar", "_grains", "_output")
MODULE, FUNCTION = 400, 50


def too_long(path: Path) -> Iterator[str]:
    """Yield a sentence for the module if it is too long, and for each of its functions that is."""
    text = path.read_text(encoding="utf-8")
    name, lines = path.relative_to(REPO), len(text.splitlines())
    if lines > MODULE:
        yield f"{name} has {lines} lines, {MODULE} at most"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (count := length(node)) > FUNCTION:
            yield f"{name}:{node.lineno}: {node.name} has {count} lines, {FUNCTION} at most"


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how many lines a function has, its docstring left out."""
    first = function.body[0]
    documented = ast.get_docstring(function, clean=False) is not None
    return _lines(function) - (_lines(first) if documented else 0)


def _lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def main() -> int:
    """Print what is too long; returns the exit code."""
    found = [
        sentence for folder in FOLDERS for path in sorted((REPO / folder).rglob("*.py")) for sentence in too_long(path)
    ]
    for sentence in found:
        print(sentence, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
