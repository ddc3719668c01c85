"""Tables and paragraphs of text for people."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence

# What a line may be long: 120 columns, less what Salt indents it by.
WIDTH = 116
# Less than that no column gets.
LEAST = 8
# Some of it comes from elsewhere, such as subjects of commits: no terminal obeys it.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")

# Colours a text: "heading", "good" or "bad", and the text.
Paint = Callable[[str, str], str]


def plain(how: str, text: str) -> str:
    """
    Return a text as it is: the ``Paint`` of what is no terminal.

    how, text
        As for ``Paint``.
    """
    return text


def table(rows: Sequence[Sequence[str]], paint: Paint = plain, marks: Mapping[int, str] | None = None) -> str:
    """
    Return rows as lines, with columns as wide as what is in them. Where that is more than ``WIDTH``, cells of the
    widest columns go over several lines.

    rows
        The first one is the heading.
    paint
        How rows are coloured.
    marks
        Which rows are ``good`` or ``bad``, by their number; the heading is 0.
    """
    cells = [[clean(cell) for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in cells) for at in range(len(cells[0]))]
    while sum(widths) + 2 * (len(widths) - 1) > WIDTH and max(widths) > LEAST:
        widths[widths.index(max(widths))] -= 1
    lines = []
    for number, row in enumerate(cells):
        how = "heading" if not number else (marks or {}).get(number, "")
        parts = [_wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
        for at in range(max(map(len, parts))):
            each = (part[at] if at < len(part) else "" for part in parts)
            line = "  ".join(cell.ljust(width) for cell, width in zip(each, widths, strict=True)).rstrip()
            lines.append(paint(how, line) if how else line)
    return "".join(f"{line}\n" for line in lines)


def fields(rows: Sequence[tuple[str, str]]) -> str:
    """
    Return names and what is to be said of each, a line each or several; what is empty is left out.

    rows
        Names and texts.
    """
    said = [(name, clean(text)) for name, text in rows if text]
    wide = max((len(name) for name, _ in said), default=0) + 2
    return "".join(paragraph(text, f"{name:<{wide}}", " " * wide) for name, text in said)


def paragraph(text: str, first: str = "", rest: str = "  ") -> str:
    """
    Return a text as lines that are not too long. What may be copied, such as a path, stays in one piece.

    text
        The text.
    first, rest
        What stands before its first line, and before the others.
    """
    wrapped = textwrap.wrap(
        clean(text), WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    return "".join(f"{line.rstrip()}\n" for line in wrapped or [first])


def clean(text: object) -> str:
    """
    Return a text in one line, without what a terminal would take for a command.

    text
        The text; anything else is made one.
    """
    return _CONTROL.sub("?", " ".join(str(text).splitlines()) if isinstance(text, str) else str(text))


def some(names: Sequence[str], most: int = 6) -> str:
    """
    Return names in a line; of many the first ones, and how many more there are.

    names
        The names.
    most
        How many are named.
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def span(seconds: float) -> str:
    """
    Say how long something is ago, or is up.

    seconds
        Seconds.
    """
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _wrap(cell: str, width: int) -> list[str]:
    return textwrap.wrap(cell, width, break_on_hyphens=False) if len(cell) > width else [cell]
