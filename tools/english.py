"""
Check the English of the manual: proselint, with a list of our own words.

Usage: `python tools/english.py [FILE ...]`, by default README.md, SECURITY.md and all pages of docs/. Prints what it
finds, a line each, and exits 1 if that is anything. Code is not looked at.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from proselint.checks import __register__ as checks
from proselint.config import DEFAULT
from proselint.registry import CheckRegistry
from proselint.registry.checks import Check, types
from proselint.tools import LintFile

REPO = Path(__file__).resolve().parents[1]
# Left: what is not said here. Right: the field's word for it, or plain English.
WORDS = {
    "front door": "web server, or load balancer",
    "site's file": "virtual host",
    "way back": "revert",
    "taken back": "reverted, or rolled back",
    "takes back": "reverts, or rolls back",
    "take back": "revert, or roll back",
    "taken up": "activated",
    "takes up": "activates",
    "ticket": "run",
    "judge": "health check",
    "obstacles": "preflight",
    "page of maintenance": "maintenance page",
    "line of cron": "cron job",
    "at the least": "at least",
    "no more than this": "only this",
    "any more": "any longer, or no longer",
    "gets along with": "works with",
    "get along with": "work with",
    "of then": "of that time",
    "of before": "previous, or from before",
    "it is so": "it is true",
    "is not so": "is not true",
}
# Signs of typesetting: the sources are plain text. "orch orch.deploy" and the like are code.
LEFT_OUT = {"typography": False, "restricted": False}
CODE = re.compile(r"^(?P<indent> *)```.*?^(?P=indent)```|`[^`]+`|<!--.*?-->|\]\([^)]*\)", re.M | re.S)


def prose(text: str) -> str:
    """Return a page with its code, comments and addresses replaced by dots; places and lines stay the same."""
    return CODE.sub(lambda found: re.sub(r"[^\n]", "·", found[0]), text)


def register() -> None:
    """Make proselint's checks and our own known to it."""
    message = "Write '{}' instead of '{}'."
    own = Check(check_type=types.PreferredFormsSimple(items=WORDS), path="terms.own", message=message)
    CheckRegistry().register_many((*checks, own))


def found(path: Path) -> Iterator[str]:
    """Yield a sentence for each thing that is found in a file."""
    config = {**DEFAULT, "checks": {**DEFAULT["checks"], **LEFT_OUT}}
    file = LintFile(path, prose(path.read_text(encoding="utf-8")))
    for result in file.lint(config):
        start, end = result.check_result.span
        if result.check_result.check_path == "lexical_illusions" and "\n\n" in file.content[start:end]:
            continue  # a heading, and the first words of the text below it
        line, column = result.pos
        yield f"{path.relative_to(REPO)}:{line}:{column}: {result.check_result.message}"


def main(arguments: list[str]) -> int:
    """Print what is found; returns the exit code."""
    register()
    named = [Path(name).resolve() for name in arguments]
    pages = named or [REPO / "README.md", REPO / "SECURITY.md", *sorted((REPO / "docs").rglob("*.md"))]
    sentences = [sentence for page in pages for sentence in found(page)]
    for sentence in sentences:
        print(sentence, file=sys.stderr)
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
