"""The scripts that a release's interpreter is given by standard input."""

from __future__ import annotations

from pathlib import Path

FILES = Path(__file__).resolve().parents[2] / "ckan/files"


def test_the_parts_of_the_probe_are_one_script():
    text = "\n".join((FILES / f"{name}.py").read_text() for name in ("schema", "search", "probe"))
    names: dict = {"__name__": "probe"}
    exec(compile(text, "probe", "exec"), names)
    assert callable(names["main"]) and callable(names["read"]) and callable(names["rebuild_index"])
