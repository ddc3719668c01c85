"""Which points are tried: a sample by a seed, or all of them (``make test-crash``)."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from crash.rig import Rig

SAMPLE = 60
# Another one each day; what fails is repeated by its name, whatever the seed. Kept for the other workers of this run.
SEED = os.environ.setdefault("CRASH_SEED", time.strftime("%Y%m%d", time.gmtime()))
WHOLE = os.environ.get("CRASH_POINTS") == "all"
MARK = "crash"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    points = [item for item in items if item.get_closest_marker(MARK)]
    if WHOLE or any("::" in argument for argument in config.args):
        return
    chosen = sample([(item.nodeid, _kind(item)) for item in points], SAMPLE, SEED)
    left = [item for item in points if item.nodeid not in chosen]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]


def sample(points: list[tuple[str, str]], size: int, seed: str) -> set[str]:
    """Choose some of the points, each ``(name, kind)``: one of each kind, and the others by chance."""
    by_chance = random.Random(seed).sample(points, len(points))
    kinds: dict[str, str] = {}
    for name, kind in by_chance:
        kinds.setdefault(kind, name)
    first = list(kinds.values())
    return set([*first, *(name for name, _ in by_chance if name not in first)][:size])


def _kind(item: pytest.Item) -> str:
    """`build` of `test_killed[build-17]`: what a point belongs to."""
    return item.nodeid.partition("[")[2].rpartition("-")[0]


@pytest.fixture(scope="session")
def rig() -> Iterator[Rig]:
    # Short, open to the user that builds, and in memory: a disk would have to write each of thousands of copies.
    top = Path(tempfile.mkdtemp(prefix="ckan-c-", dir="/tmp"))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", top], capture_output=True, check=False).returncode == 0
    top.chmod(0o755)
    yield Rig(top)
    if mounted:
        subprocess.run(["umount", "-l", top], check=False)
    shutil.rmtree(top, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    report = yield
    if item.get_closest_marker(MARK):
        report.user_properties.append((MARK, _kind(item)))
        if report.failed:
            report.sections.append(("To repeat it", f"make test-crash POINT='{item.nodeid}'"))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts: dict[str, Counter[str]] = {"passed": Counter(), "failed": Counter()}
    for outcome, counted in counts.items():
        for report in terminalreporter.stats.get(outcome, []):
            counted.update(kind for name, kind in getattr(report, "user_properties", []) if name == MARK)
    kinds = sorted({*counts["passed"], *counts["failed"]})
    if not kinds:
        return
    chosen = "all points" if WHOLE else f"a sample by the seed {SEED} (make test CRASH_SEED={SEED})"
    terminalreporter.section(f"points of a crash: {chosen}")
    for kind in kinds:
        held, lost = counts["passed"][kind], counts["failed"][kind]
        terminalreporter.line(f"{kind:24} {held + lost:4} points, {lost} lost")
    held, lost = counts["passed"].total(), counts["failed"].total()
    terminalreporter.line(f"{'in all':24} {held + lost:4} points, {lost} lost")
