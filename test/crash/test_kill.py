"""
kill -9 at the n-th call that changes files: `current` is whole, nothing foreign is gone, and the next deploy works
without a repair and leaves what one leaves that nothing has disturbed.
"""

from __future__ import annotations

import pytest

from ckan_deploy.deploy import adopt
from crash.after import follows, undisturbed
from crash.rig import ADOPTED, WORK, Rig

pytestmark = pytest.mark.crash

POINTS = [(name, number) for name, (_, _, count) in WORK.items() for number in range(1, count + 1)]


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
    if name == "adopt-in-place":
        # What has no manifest yet is nobody's; who asked for it asks again. A message says so when it needs the ini.
        running.settle()
        rig.run(
            lambda site: adopt.adopt(site, ADOPTED, ini_file=f"{site.paths.releases}/{ADOPTED}/ckan.ini") and None
        ).wait()
    follows(rig, before, where, running)
