"""What the script of the boot check does without a CKAN."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from fakes import REPO


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("probe_script", REPO / "ckan/files/probe.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.sys, "prefix", str(tmp_path / "release"))
    return module


@pytest.mark.parametrize("where, left", [("release/run/webassets", ["note"]), ("data/webassets", ["note", "result"])])
def test_of_the_cache_of_web_assets_a_release_keeps_the_notes(script, tmp_path, where, left):
    cache = tmp_path / where / ".webassets-cache"
    cache.mkdir(parents=True)
    (cache / "note").write_bytes(b"x" * 47)
    (cache / "result").write_bytes(b"x" * 5000)
    script.drop_results(str(cache))
    assert sorted(path.name for path in cache.iterdir()) == left


def test_where_webassets_has_no_cache_there_is_nothing_to_remove(script, tmp_path):
    script.drop_results(str(tmp_path / "release/run/webassets/.webassets-cache"))
    assert not (tmp_path / "release").exists()
