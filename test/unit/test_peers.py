"""What `make bench-peers` makes of what it has seen; the rest of it runs real parts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

from peers import table  # noqa: E402
from peers.measure import Watch  # noqa: E402


def row(name: str, whole: float, visited: bool = False) -> dict:
    """A turn as it is measured: each figure follows from the first."""
    if visited:
        seen = {"asked": 500, "failed": int(whole), "longest": 0.5}
        return {"name": name, "hosts": 1, "visited": True, "deploy": seen, "rollback": seen, "disk": 9.0}
    deploy = {"whole": whole, "visitors": whole / 2, "cpu": whole / 4}
    return {"name": name, "hosts": 1, "visited": False, "deploy": deploy, "rollback": deploy, "disk": 8.4}


@pytest.mark.parametrize(
    "marks, moment",
    [
        (["a", "a", "b", "b"], 3.0),
        # One worker has the new release while another still has the old one.
        (["a", "b", "a", "b", "c"], 4.0),
    ],
)
def test_visitors_have_a_release_from_the_first_answer_after_the_last_old_one(marks, moment):
    watch = Watch([1, 2])
    watch.old = ["a", "x"]
    watch.seen = [[(float(at), mark) for at, mark in enumerate(marks, 1)], [(0.5, "x"), (0.7, "b")]]
    assert watch.changed() == moment


def test_waiting_for_a_release_that_does_not_come_is_an_error():
    watch = Watch([1], pause=1)
    watch.old, watch.seen = ["a"], [[(1.0, "a"), (2.0, "b"), (3.0, "a")]]
    with pytest.raises(RuntimeError, match="visitors still get"):
        watch.wait(0)
    watch.seen[0] += [(4.0, "b"), (5.0, "b")]
    watch.wait(0)


def test_the_table_has_medians_ranges_ratios_and_failed_requests():
    rows = [row(table.FORMULA, seconds) for seconds in (8.0, 4.0, 6.0)]
    rows += [row(table.ANSIBLE, 12.0), row(table.FORMULA, 0, True), row(table.ANSIBLE, 30, True)]
    lines = table.made(rows, "cgroup v2", 0.1, ["Capistrano is left out: no apt"], 60).splitlines()
    assert "Capistrano is left out: no apt" in lines
    ours = next(line for line in lines if line.startswith(f"| {table.FORMULA} | 6.0"))
    assert ours.startswith("| this formula | 6.0 s (4.0 to 8.0) | 3.0 s (2.0 to 4.0) | 1.5 s (1.0 to 2.0) |"), ours
    assert ours.endswith("| 8 MB | 0 of 1000, longest 0.5 s |"), ours
    assert any(line.endswith("| 60 of 1000, longest 0.5 s |") for line in lines)
    assert "| this formula | 0.50 (target 0.5) | 0.50 (target 0.3) | 0.50 (target 0.6) |" in "\n".join(lines)


def test_the_table_is_written_between_its_marks_alone(tmp_path, monkeypatch):
    docs = tmp_path / "benchmarks.md"
    docs.write_text(f"before\n{table.FIRST}\nold\n{table.LAST}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(table, "DOCS", docs)
    table.write("| new |")
    assert docs.read_text(encoding="utf-8") == f"before\n{table.FIRST}\n\n| new |\n\n{table.LAST}\nafter\n"
    docs.write_text("no marks\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="no block"):
        table.write("| new |")
    assert docs.read_text(encoding="utf-8") == "no marks\n"
