"""What killed runs leave outside of releases goes at the start of the next one; what is somebody else's stays."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import quick
from quick import Quick

from ckan_deploy.deploy import prune
from ckan_deploy.sources import git, origins, patches
from ckan_deploy.system import files, places, processes
from fakes import FakeHost

PATCH = b"--- a/x.txt\n+++ b/x.txt\n@@ -1 +1,2 @@\n one\n+two\n"


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Quick]:
    yield from quick.make(monkeypatch)


def test_keys_and_workplaces_of_killed_runs_go_whatever_is_done_next(host):
    host.deploy()
    shared = host.home / "shared"
    (shared / "keys/key-killed").mkdir(parents=True)
    (shared / "keys/key-killed/id").write_text("a key")
    (shared / "work/ckan-adopt-killed").mkdir(parents=True)
    (shared / "work/ckan-adopt-killed/.lock").touch()
    (shared / "work/theirs").mkdir()
    with files.scratch(str(shared / "keys"), git.KEY) as key, places.temporary(str(shared), "build") as work:
        prune.prune(host.site())
        assert os.path.isdir(key) and os.path.isdir(work)
        assert os.listdir(shared / "keys") == [os.path.basename(key)]
        there = [name for name in os.listdir(shared / "work") if name != ".ckan.lock"]
        assert sorted(there) == sorted([os.path.basename(work), "theirs"])


def test_what_is_somebody_else_s_among_checkouts_stays_and_stops_no_prune(tmp_path: Path):
    top = tmp_path / "sources"
    ours = top / ("a" * 16) / ("b" * 40)
    for path in (ours, ours.with_name(ours.name + ".wheels"), top / "notes", top / ("a" * 16) / "notes"):
        path.mkdir(parents=True)
    (top / "notes.txt.gone").write_text("theirs")
    assert len(origins.forget([], str(tmp_path))) == 2
    assert sorted(os.listdir(top)) == ["a" * 16, "notes", "notes.txt.gone"]
    assert sorted(os.listdir(top / ("a" * 16))) == [".lock", "notes"]


def test_a_patch_has_no_name_on_disk_while_git_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, temporary = tmp_path / "tree", tmp_path / "tmp"
    folder.mkdir()
    temporary.mkdir()
    (folder / "x.txt").write_text("one\n")
    (tmp_path / "one.patch").write_bytes(PATCH)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    seen: list[str] = []

    def run(*args, **kwargs):
        seen.extend(os.listdir(temporary))
        return real(*args, **kwargs)

    real = processes.run
    monkeypatch.setattr(processes, "run", run)
    host = FakeHost({}, (tmp_path,))
    patches.apply(host, str(folder), patches.read(host, ["salt://one.patch"]))
    assert (folder / "x.txt").read_text() == "one\ntwo\n" and seen == []
