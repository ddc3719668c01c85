"""Build once, ship to all: another host makes the same release of what it is sent, and needs no tools."""

from __future__ import annotations

import copy
import json
import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest

from functional.conftest import Host
from functional.steps import extension, later_id
from stub import repos
from stub.wheels import make_wheel

# What a host has that does not build: no git, no uv, no pip, no compiler.
TOOLS = ("runuser", "bwrap", "sh", "sync", "setpriv", "systemctl", "ps", "id", "getent", "prlimit", "env", "cp")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    path.mkdir()
    return path


@pytest.fixture
def builder(host, origins, shelf, store) -> Host:
    """A host that builds an extension with a patch, a library of the index, a script and a data file."""
    make_wheel(shelf, "shared-lib", "1.0")
    repo = repos.make_repo(origins, "mycity", "one", requirements=["shared-lib<2"], backend="uv_build")
    (repo / "docs").mkdir()
    (repo / "docs/latest").symlink_to("../README.md")
    repos.commit_change(repo, "two")
    host.pillar["extensions"] = {"ckanext-mycity": extension(repo)}
    host.pillar["plugins"] = ["mycity"]
    host.pillar["build"] = {"ship": True, "store": str(store)}
    return host


@pytest.fixture
def other(builder, monkeypatch):
    """Another host of the same environment, with a root of its own, and with none of the tools of a build."""
    root = Path(tempfile.mkdtemp(prefix="ckan-i-", dir="/tmp"))
    made = Host(root, root / "no-base", builder._loaders)
    made.pillar = {
        **copy.deepcopy(builder.pillar), "root": str(root), "paths": {"base": str(root / "no-base")},
        "installer": {"uv": str(root / "no-uv"), "index_url": "http://127.0.0.1:1/"},
        "site_id": "another",
    }  # fmt: skip
    tools = root / "tools"
    tools.mkdir()
    for name in TOOLS:
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    made.tools = str(tools)
    yield made
    shutil.rmtree(root, ignore_errors=True)


def shipped(builder: Host) -> tuple[str, dict]:
    """Build on the builder; returns the release and what it has packed."""
    release = later_id(builder)
    planned = builder.plan(release=release)
    builder.build(release, contents=planned["contents"])
    # As it goes over the wire.
    return release, json.loads(json.dumps(builder.pack(release)))


def received(other: Host, release: str, packed: dict, monkeypatch) -> Path:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", other.tools)
        other.build(release, **packed)
    return other.home / "releases" / release


def look(tree: Path, *mine: str) -> dict[str, object]:
    """All of a release by path: modes, links and contents, with its own places under one name."""
    found: dict[str, object] = {}
    for folder, folders, names in os.walk(tree):
        for name in folders + names:
            path = Path(folder, name)
            about, key = path.lstat(), str(path.relative_to(tree))
            if path.is_symlink():
                found[key] = os.readlink(path)
            elif path.is_dir():
                found[key] = stat.S_IMODE(about.st_mode)
            else:
                data = path.read_bytes()
                for place in mine:
                    data = data.replace(place.encode(), b"PLACE")
                found[key] = (stat.S_IMODE(about.st_mode), about.st_uid, data)
    return found


def test_another_host_gets_the_same_release_without_any_tool_of_a_build(builder, other, monkeypatch):
    release, packed = shipped(builder)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", other.tools)
        assert other.plan(release=release, resolve=False)["host"]["facts"]["architecture"]
    there = received(other, release, packed, monkeypatch)
    here = builder.home / "releases" / release
    mine, theirs = look(here, str(here)), look(there, str(there))
    own = {"production.ini", "release.json"}
    assert {name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)} == own
    # Nothing has to be compiled on the other host, and nothing is taken for stale.
    modules = [path for path in there.rglob("*.py") if f"{path.stem}.cpython-311.pyc" in map(
        lambda p: p.name, path.parent.glob("__pycache__/*"))]  # fmt: skip
    assert len(modules) > 3
    for path in modules:
        code = path.parent / "__pycache__" / f"{path.stem}.cpython-311.pyc"
        assert int.from_bytes(code.read_bytes()[8:12], "little") == int(path.stat().st_mtime), path
    ini = (there / "production.ini").read_text()
    assert "ckan.site_id = another" in ini and str(other.root) in ini
    said, seen = builder.show(release), other.show(release)
    differ = {name for name in said.keys() | seen.keys() if said.get(name) != seen.get(name)}
    assert differ <= {"built_on", "configuration", "created", "events", "lock", "settings", "build_seconds",
                      "disk_mb"}  # fmt: skip
    assert seen["built_on"] == "web1" and "built_on" not in said
    assert other.python(release, "import shared_lib, ckanext.mycity.plugin as p; print(p.TEXT)") == "two"


def test_a_shipped_release_is_checked_and_served_like_one_that_was_built_here(builder, other, monkeypatch):
    release, packed = shipped(builder)
    received(other, release, packed, monkeypatch)
    monkeypatch.setenv("PATH", other.tools)
    assert other.check(release)["plugins"]


def test_a_layer_that_is_there_is_not_fetched_again(builder, other, store, monkeypatch):
    release, packed = shipped(builder)
    received(other, release, packed, monkeypatch)
    layer = store / packed["shipped"]["layer"]["name"]
    layer.unlink()
    release, packed = shipped(builder)
    assert packed["shipped"]["layer"]["name"] == layer.name
    layer.unlink()
    received(other, release, packed, monkeypatch)
    assert other.releases()[-1] == release
