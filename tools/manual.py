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
OUTSIDE = {"README.md": "readme.md", "SECURITY.md": "security.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that stand outside docs/."""
    for name, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(REPO / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_more: Any) -> str:
    """Return the text of a page with its links as the site needs them."""
    if page.file.src_uri in OUTSIDE.values():
        markdown = re.sub(r"\]\(docs/", "](", markdown)
        return re.sub(r"\]\((\w+\.md)", lambda link: f"]({OUTSIDE.get(link[1], link[1])}", markdown)
    return re.sub(r"\]\(\.\./(\w+\.md)", lambda link: f"]({OUTSIDE.get(link[1], '../' + link[1])}", markdown)
