"""A disk that runs full in a deploy: the release of before is served, nothing is left, and the next one works."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import quick
from quick import Quick

from ckan_deploy.deploy import prune, stages
from ckan_deploy.errors import FormulaError, sentence
from ckan_deploy.releases import lock, reserve
from ckan_deploy.serve import health

STAGES = ("build", "check", "migrate", "start", "activate", "verify", "finish")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Quick]:
    yield from quick.make(monkeypatch, keep=2, disk_free_mb=0)


def fill(folder: Path) -> None:
    """Fill a disk to its last byte."""
    with open(folder / "fill", "ab", buffering=0) as handle:
        for size in (2**16, 2**12, 1):
            while True:
                try:
                    if handle.write(b"x" * size) < size:
                        break
                except OSError:
                    break


def deployed(host: Quick) -> str:
    """Deploy, and say what it was refused with, '' for nothing."""
    try:
        host.deploy()
    except FormulaError as exc:
        return str(exc)
    return ""


def there(host: Quick) -> list[str]:
    """What is in the directory of releases, but for what the test and the reserve have put there."""
    return [name for name in host.releases() if name not in ("fill", ".reserve")]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("place", ["", "shared", "releases"], ids=lambda place: place or "one disk")
def test_a_disk_that_runs_full_at_a_stage_leaves_the_host_as_it_was_or_deployed(host, mount, place, stage):
    disk = mount(host.home / place if place else host.home, "4m")
    if not place:
        (host.home / "default/bin").mkdir(parents=True)
        (host.home / "default/bin/python").touch()
    first = host.deploy()
    with open(host.home / "shared/deploy.log", "a") as log:
        log.write(" " * (4095 - log.tell() % 4096) + "\n")  # the next line needs a block of its own
    host.hook(stage, "before", lambda: fill(disk))
    said = deployed(host)
    site = host.site()
    if said:
        # At that stage, or at a later one that was the first to need room.
        at = re.search(r"failed at (\w+): No space left on device: /", said)
        assert at and STAGES.index(at[1]) >= STAGES.index(stage)
        assert f"-- this host serves {first} as before; mend" in said
        assert (site.releases.current(), there(host)) == (first, [first])
    else:
        assert site.releases.current() > first
    current = site.releases.current()
    assert site.releases.read(current).state == "live" and lock.busy(site) == ""
    (disk / "fill").unlink()
    host.pillar["hooks"] = []
    assert deployed(host) == ""
    assert host.site().releases.current() > current
    assert len(there(host)) == 2 and not [name for name in os.listdir(host.home) if name.endswith(".tmp")]


def test_a_revert_on_a_full_disk_needs_none_of_it(host, mount, monkeypatch):
    disk = mount(host.home, "4m")
    (host.home / "default/bin").mkdir(parents=True)
    (host.home / "default/bin/python").touch()
    first = host.deploy()

    def full(*_: Any, **__: Any) -> None:
        fill(disk)
        raise FormulaError("nobody answers")

    with monkeypatch.context() as patched:
        patched.setattr(health, "health", full)
        # Not even the reserve is there.
        patched.setattr(reserve, "give_up", lambda site: None)
        said = deployed(host)
    assert f"failed at verify: nobody answers -- this host serves {first} as before" in said
    assert host.site().releases.current() == first and host.releases() == [first]


def test_the_reserve_is_given_up_by_a_revert_and_made_again_by_the_next_run(host, monkeypatch):
    host.deploy()
    kept = host.home / "shared/.reserve"
    assert (kept.stat().st_size, kept.stat().st_blocks * 512 >= 2**20) == (2**20, True)
    with monkeypatch.context() as patched:
        patched.setattr(stages, "verify", lambda *_: (_ for _ in ()).throw(FormulaError("no")))
        deployed(host)
    assert not kept.exists()
    assert prune.prune(host.site()) == [] and kept.stat().st_size == 2**20


def test_a_reserve_of_another_disk_is_kept_there_too(host, mount):
    mount(host.home / "releases", "4m")
    host.deploy()
    assert (host.home / "releases/.reserve").stat().st_size == (host.home / "shared/.reserve").stat().st_size == 2**20


def test_a_full_disk_of_what_is_shared_is_refused_at_plan(host, mount):
    disk = mount(host.home / "shared", "4m")
    host.pillar["disk_free_mb"] = 2
    host.deploy()
    fill(disk)
    said = deployed(host)
    assert f"0 MB are free under {host.home}/shared, ckan:disk_free_mb asks for 2" in said
    assert said.endswith("-- nothing was touched.")


def test_a_host_that_cannot_be_locked_says_why(host):
    (host.home / "shared").write_text("a file")
    assert deployed(host).startswith("the deploy failed at plan: this host cannot be locked (Not a directory: ")


def test_a_tree_that_cannot_be_copied_is_one_sentence(tmp_path, mount):
    """``shutil`` lists each file of it."""
    tree, full = tmp_path / "tree", mount(tmp_path / "full", "16k")
    tree.mkdir()
    for number in range(9):
        (tree / f"file{number}").write_bytes(b"x" * 4096)
    with pytest.raises(OSError) as caught:
        shutil.copytree(tree, full / "copy")
    said = sentence(caught.value)
    assert re.fullmatch(rf"{full}/copy/file\d and \d more cannot be copied: No space left on device", said)
