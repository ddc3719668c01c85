"""
Builds of a portal with nine real extensions, against one with one small extension: docs/benchmarks.md. `make bench`
runs it.

Everything is measured in one run; compare ratios, the machine may be noisy. BENCH_ROUNDS is how often.
"""

from __future__ import annotations

import copy
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from bench import disk_mb, log_seconds  # noqa: E402

from parts.nine import VERSIONS, NinePortal, commit_to  # noqa: E402
from parts.portal import next_second  # noqa: E402
from parts.process import sandbox  # noqa: E402

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))


def builds(portal: NinePortal, what: str, change: Callable[[int], Any]) -> list[str]:
    """Deploy again and again, each time with a change, and say what the stage build took; the first is to warm up."""
    seconds, parts = [], []
    for turn in range(ROUNDS + 1):
        change(turn)
        next_second()
        begun = time.monotonic()
        done = portal.deploy()
        assert done["code"] == 0, done["text"]
        if turn:
            seconds.append(log_seconds(portal, "build")[0])
            parts.append(portal.call("web1", "ckan_release.show")[1]["build_seconds"])
            load = os.getloadavg()[0]
            print(f"{what}: {seconds[-1]:.2f} s, {parts[-1]}, deploy {time.monotonic() - begun:.1f} s, load {load:.1f}")
    told = ", ".join(f"{name} {statistics.median(part[name] for part in parts):.2f}" for name in sorted(parts[0]))
    span = f"{ROUNDS}: {min(seconds):.2f} to {max(seconds):.2f}"
    return [what, f"{statistics.median(seconds):.2f} s ({span})", told]


def main() -> None:
    """Measure and print a table."""
    rows: list[list[str]] = []
    with NinePortal(sandbox("ckan-b-"), say=print) as portal:
        portal.set_up()
        rows.append(
            builds(portal, "one small extension, one commit", lambda turn: commit_to(portal.mycity, f"Turn {turn}"))
        )
        pillar = copy.deepcopy(portal.nine)
        for name in VERSIONS:
            pillar["extensions"][f"ckanext-{name}"]["ref"] = "main"
        portal.write_pillar(pillar)
        # Another one each time.
        changed = [portal.repos[name] for name in ("harvest", "spatial", "dcat", "scheming", "xloader")]
        rows.append(
            builds(
                portal, "nine, one commit in one", lambda turn: commit_to(changed[turn % len(changed)], f"Turn {turn}")
            )
        )

        def retitle(turn: int) -> None:
            titled = {**pillar["config"], "ckan.site_title": f"Turn {turn}"}
            portal.write_pillar({**pillar, "config": titled})

        rows.append(builds(portal, "nine, nothing new but the ini", retitle))
        releases = [portal.root("web1") / "usr/lib/ckan/releases" / name for name in portal.releases("web1")]
        layers = portal.root("web1") / "usr/lib/ckan/shared/layers"
        more = disk_mb(portal.base, layers, *releases) - disk_mb(portal.base, layers, *releases[:-1])
        own = {name: disk_mb(releases[-1] / name) for name in ("src", "run")}
        parts = ", ".join(f"{name} {size:.1f}" for name, size in own.items())
        rows.append(["disk of one more release", f"{more:.1f} MB", f"{parts}, all else {more - sum(own.values()):.1f}"])
    width = max(len(row[0]) for row in rows)
    print("\n".join(["", *(f"{row[0]:<{width}}  {'; '.join(row[1:])}" for row in rows)]))


if __name__ == "__main__":
    main()
