"""What the script of the boot check does without a CKAN."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from ckan_deploy import scripts


def made() -> ModuleType:
    """The script as a module."""
    module = ModuleType("probe")
    exec(compile(scripts.text(scripts.PROBE), "probe", "exec"), vars(module))
    return module


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "release"))
    return made()


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


def test_web_assets_that_two_releases_have_are_one_file(script, tmp_path):
    mine, its = tmp_path / "release/run/webassets", tmp_path / "live/run/webassets"
    for folder, style in ((mine, "new"), (its, "old")):
        for name, text in {"base/1_main.css": "main", "base/2_own.css": style, ".webassets-cache/n": "note"}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    (mine / "3_new.js").write_text("alone")
    (its / "4.css").symlink_to("/etc/hostname")
    (mine / "4.css").write_bytes(Path("/etc/hostname").read_bytes())
    for _ in range(2):
        script.share(str(mine), str(its))
        both = [path for path in mine.rglob("*") if path.is_file() and path.stat().st_nlink > 1]
        assert {str(path.relative_to(mine)) for path in both} == {".webassets-cache/n", "base/1_main.css"}
    assert (mine / "base/2_own.css").read_text() == "new"
    assert sorted(path.name for path in mine.rglob("*.*")) == [
        *(".webassets-cache", "1_main.css", "2_own.css", "3_new.js", "4.css")
    ]


def test_web_assets_that_an_option_puts_elsewhere_are_left_as_they_are(script, tmp_path):
    for folder in ("data", "live"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1_main.css").write_text("main")
    script.share(str(tmp_path / "data"), str(tmp_path / "live"))
    assert (tmp_path / "data/1_main.css").stat().st_nlink == 1


def test_migrations_that_ckan_does_not_find_are_told_with_the_file_that_is_missing(tmp_path, monkeypatch):
    schema = made()
    about = tmp_path / "trees-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: trees\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[ckan.plugins]\n" + "".join(f"{name} = city_trees.plugin:{name}\n" for name in ("oaks", "limes", "birches"))
    )
    for name, files in {"oaks": ["versions/1_oaks.py", "alembic.ini"], "limes": ["versions/1_limes.py"]}.items():
        for file in files:
            path = tmp_path / "city_trees/migration" / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    (tmp_path / "city_trees/__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert schema.lost_migrations(["oaks", "limes", "birches", "not_there"]) == [
        "plugin limes brings migrations that CKAN does not run, since there is no "
        f"{tmp_path}/city_trees/migration/limes/alembic.ini; add that file to the package data of its extension"
    ]
