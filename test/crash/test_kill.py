"""
kill -9 at the n-th call that changes files: `current` is whole, nothing foreign is gone, and the next deploy works
without a repair and leaves what one leaves that nothing has disturbed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from crash import rig as rigs
from crash.rig import WORK, Rig

pytestmark = pytest.mark.crash

POINTS = [(name, number) for name, (_, _, count) in WORK.items() for number in range(1, count + 1)]


class Undisturbed(NamedTuple):
    """What is without a kill: how many calls there are, and the host after the next deploy."""

    calls: int
    tree: dict[str, int]
    used: int
    secrets: set[str]


_UNDISTURBED: dict[str, Undisturbed] = {}


def undisturbed(rig: Rig, name: str) -> Undisturbed:
    if name not in _UNDISTURBED:
        state, work, _ = WORK[name]
        rig.bring(state)
        calls = len(rig.done(work).calls)
        rig.done(rigs.next_deploy)
        _UNDISTURBED[name] = Undisturbed(calls, rig.tree(), rig.used(), rig.secrets())
    return _UNDISTURBED[name]


@pytest.mark.parametrize(("name", "number"), POINTS, ids=[f"{name}-{number}" for name, number in POINTS])
def test_killed(rig: Rig, name: str, number: int):
    state, work, count = WORK[name]
    before = undisturbed(rig, name)
    rig.bring(state)
    whole = rig.whole()
    at = 1 + (number - 1) * before.calls // count
    # Every other time the programs that it has started live on for a while, and the next deploy finds them at work.
    running = rig.run(work, at, together=bool(number % 2))
    ended = running.wait()
    where = f"{name} was killed at call {at} of {before.calls}: {ended.calls[-1]}"
    broken = rig.broken(whole)
    assert ended.killed and not broken, f"{where}; {'; '.join(broken)}"
    follows(rig, before, where, running)


def follows(rig: Rig, before: Undisturbed, where: str, running: Any = None) -> None:
    """The next deploy works, and the host is as if nothing had been."""
    then = rig.run(rigs.next_deploy)
    said = then.wait().said
    then.settle()
    if running:
        running.settle()
    assert not said, f"{where}; the next deploy: {said}"
    broken = rig.broken(rig.whole())
    assert not broken, f"{where}; after the next deploy {'; '.join(broken)}"
    assert rig.site().releases.current() == rigs.NEXT, where
    tree = rig.tree()
    assert tree == before.tree, f"{where}; after the next deploy {_different(before.tree, tree)}"
    assert rig.secrets() == before.secrets, f"{where}; secrets are in {rig.secrets() ^ before.secrets}"
    # What git and uv keep is packed in other ways.
    assert rig.used() <= before.used * 1.1 + 64, f"{where}; {rig.used()} KB are used, {before.used} else"


def _different(before: dict[str, int], now: dict[str, int]) -> str:
    more, less = sorted(set(now) - set(before)), sorted(set(before) - set(now))
    other = sorted(name for name in set(now) & set(before) if now[name] != before[name])
    said = {"there is more": more, "there is less": less, "of another size": other}
    return "; ".join(f"{what}: {', '.join(names[:5])} ({len(names)})" for what, names in said.items() if names)
