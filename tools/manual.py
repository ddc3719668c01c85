"""
What MkDocs needs to make a site of the manual: README.md and the like become pages of it, so that links lead there.

The pages in docs/ link to `../README.md`, as GitHub and editors read them; README.md links to `docs/...`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

REPO = Path(__file__).resolve().parents[1]
# Pages of the repository that stand outside docs/, and their names in the site.
OUTSIDE = {"README.md": "readme.md", "SECURITY.md": "security.md", "CHANGELOG.md": "changelog.md",
           "CONTRIBUTING.md": "contributing.md"}  # fmt: skip


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that stand outside docs/."""
    for name, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(REPO / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_more: Any) -> str:
    """Return the text of a page with its links and lists as the site needs them."""
    markdown = in_items(markdown)
    if page.file.src_uri in OUTSIDE.values():
        markdown = re.sub(r"\]\(docs/", "](", markdown)
        return re.sub(r"\]\((\w+\.md)", lambda link: f"]({OUTSIDE.get(link[1], link[1])}", markdown)
    return re.sub(r"\]\(\.\./(\w+\.md)", lambda link: f"]({OUTSIDE.get(link[1], '../' + link[1])}", markdown)


def in_items(markdown: str) -> str:
    """
    Return a page whose paragraphs and blocks of code in items of lists are indented by four spaces, as MkDocs wants
    them. GitHub and editors want them as far in as the item's text, which is two spaces or three.
    """
    made: list[str] = []
    width, code = 0, False
    for line in markdown.splitlines():
        if line.startswith("```"):
            width, code = 0, not code
        item = None if code else re.match(r"(\d+\.|-) (?=\S)", line)
        if item:
            if made and made[-1].startswith("    "):
                made.append("")
            width = len(item[0])
        elif width and line.startswith(" " * width):
            line = " " * (4 - width) + line
        elif line.strip():
            width = 0
        made.append(line)
    return "\n".join(made) + "\n"
