"""
A disk that is full after so many KB, where releases, what they share, or what is made for a moment stands: the release
of before is served, and when there is room again the next deploy works and nothing is left.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from crash import after
from crash.rig import WORK, Rig

pytestmark = pytest.mark.crash

# Where, and how much more than what is there already a deploy needs at most, in KB.
PLACES = {"releases": ("usr/lib/ckan/releases", 2400), "shared": ("usr/lib/ckan/shared", 1600), "tmp": ("tmp", 80)}
SIZES = 40
POINTS = [(name, number) for name in PLACES for number in range(1, SIZES + 1)]
_UNDISTURBED: dict[str, after.Undisturbed] = {}


@contextmanager
def disk(place: Path, more: int) -> Iterator[None]:
    """Have a place on a small disk of its own, with what is there and so many KB more."""
    stash = place.with_name(f"{place.name}.stash")
    place.rename(stash)
    place.mkdir()
    files = sum(-(-path.lstat().st_size // 4096) for path in stash.rglob("*") if not path.is_dir())
    size = f"size={4 * files + 8 + more}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", place], check=True)
    try:
        subprocess.run(["cp", "-a", f"{stash}/.", place], check=True)
        shutil.rmtree(stash)
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def undisturbed(rig: Rig, name: str) -> after.Undisturbed:
    if name not in _UNDISTURBED:
        state, work, _ = WORK["deploy"]
        rig.bring(state)
        with disk(rig.root / PLACES[name][0], 2**20):
            rig.done(work)
            _UNDISTURBED[name] = after.then(rig)
    return _UNDISTURBED[name]


@pytest.mark.parametrize(("name", "number"), POINTS, ids=[f"full-{name}-{number}" for name, number in POINTS])
def test_full(rig: Rig, name: str, number: int):
    before = undisturbed(rig, name)
    state, work, _ = WORK["deploy"]
    rig.bring(state)
    whole, place, room = rig.whole(), rig.root / PLACES[name][0], PLACES[name][1] * (number - 1) // (SIZES - 1)
    with disk(place, room):
        running = rig.run(work)
        said = running.wait().said
        running.settle()
        where = f"{name} had {room} KB for a deploy ({said or 'it went well'})"
        broken = rig.broken(whole)
        assert not broken, f"{where}; {'; '.join(broken)}"
        served = rig.site().releases.current()
        # What it says of itself is so.
        assert not said or f"this host serves {served} as before" in said or "nothing was touched" in said, where
        subprocess.run(["mount", "-o", "remount,size=1g", place], check=True)
        after.follows(rig, before, where)
