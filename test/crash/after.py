"""What must hold after a crash: the next deploy works, and leaves what one leaves that nothing has disturbed."""

from __future__ import annotations

import re
from typing import NamedTuple

from crash import kill
from crash import rig as rigs
from crash.rig import WORK, Rig

MAY_LACK = re.compile(r"/releases/ID|/sources/\w+/COMMIT")


class Undisturbed(NamedTuple):
    """What is without a kill: how many calls there are, and the host after the next deploy."""

    calls: int
    tree: dict[str, int]
    used: int
    secrets: set[str]


_UNDISTURBED: dict[str, Undisturbed] = {}


def undisturbed(rig: Rig, name: str) -> Undisturbed:
    """A stage and the next deploy without a crash; once for all its points."""
    if name not in _UNDISTURBED:
        state, work, _ = WORK[name]
        rig.bring(state)
        calls = len(rig.done(work).calls)
        _UNDISTURBED[name] = then(rig, calls)
    return _UNDISTURBED[name]


def then(rig: Rig, calls: int = 0) -> Undisturbed:
    """The next deploy, and what is then."""
    rig.done(rigs.next_deploy)
    return Undisturbed(calls, rig.tree(), rig.used(), rig.secrets())


def follows(rig: Rig, before: Undisturbed, where: str, running: kill.Running | None = None) -> None:
    """The next deploy works, and the host is as if nothing had been."""
    after = rig.run(rigs.next_deploy)
    said = after.wait().said
    after.settle()
    if running:
        running.settle()
    assert not said, f"{where}; the next deploy: {said}"
    broken = rig.broken(rig.whole())
    assert not broken, f"{where}; after the next deploy {'; '.join(broken)}"
    assert rig.site().releases.current() == rigs.NEXT, where
    different = _different(before.tree, rig.tree())
    assert not different, f"{where}; after the next deploy {different}"
    assert rig.secrets() == before.secrets, f"{where}; secrets are in {rig.secrets() ^ before.secrets}"
    # What git and uv keep is packed in other ways.
    assert rig.used() <= before.used * 1.1 + 64, f"{where}; {rig.used()} KB are used, {before.used} else"


def _different(before: dict[str, int], now: dict[str, int]) -> str:
    """What differs; the release before the next one may be an older one, or not be there."""
    said = {
        "there is more": sorted(set(now) - set(before)),
        "there is less": sorted(name for name in set(before) - set(now) if not MAY_LACK.search(name)),
        "of another size": sorted(
            name for name in set(now) & set(before) if rigs.NEXT in name and now[name] != before[name]
        ),
    }
    return "; ".join(f"{what}: {', '.join(names[:5])} ({len(names)})" for what, names in said.items() if names)
