"""docs/exit-codes.md: each row names a test that is there."""

from __future__ import annotations

import re
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


def test_each_exit_code_has_a_test():
    rows = [
        line for line in (REPO / "docs/exit-codes.md").read_text().splitlines() if re.match(r"\|.*\| [01] \|", line)
    ]
    assert len(rows) > 30
    named = [re.search(r"`(test_\w+)` \|$", row).group(1) for row in rows]
    there = set()
    for file in (REPO / "test").glob("*/test_*.py"):
        there.update(re.findall(r"^def (test_\w+)", file.read_text(), re.M))
    assert [name for name in named if name not in there] == []
