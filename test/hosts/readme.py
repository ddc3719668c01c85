"""
What README.md tells a newcomer to type and to write, and docs/install.md whoever has gitfs: the blocks below a comment
`<!-- hosts: NAME -->`.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

README = Path(__file__).resolve().parents[2] / "README.md"
INSTALL = README.parent / "docs/install.md"
MARKED = re.compile(r"^ *<!-- hosts: (?P<name>[\w-]+) -->\n *```(?P<kind>\w*)\n(?P<text>.*?)^ *```$", re.M | re.S)


class Block(NamedTuple):
    """A block of code.

    path
        The file that it is, which its first line names; "" for commands.
    text
        Commands for a shell, or all that the file holds.
    """

    path: str
    text: str


def blocks(page: str = "") -> dict[str, Block]:
    """Return the marked blocks of a page by name, in their order; by default those of README.md.

    Raises ValueError for a name that is there twice, and for a file without its path.
    """
    found: dict[str, Block] = {}
    for match in MARKED.finditer(page or README.read_text(encoding="utf-8")):
        name, text = match["name"], textwrap.dedent(match["text"])
        path = re.match(r"# (/\S+)\n", text)
        if name in found or (match["kind"] and not path):
            raise ValueError(f"the block {name} is there twice, or is a file and names no path")
        found[name] = Block(path[1] if path else "", text)
    return found
