"""
The figures of docs/benchmarks.md, measured on one host with a real CKAN. `make bench` runs it.

Everything is measured in one run; compare ratios, the machine may be noisy.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from parts.portal import next_second  # noqa: E402
from parts.process import sandbox  # noqa: E402
from parts.real import RealPortal  # noqa: E402
from stub import repos  # noqa: E402

ROUNDS = 5


def disk_mb(*paths: Path) -> float:
    """Disk that paths take together, in MB; a file that several names share counts once."""
    done = subprocess.run(["du", "-sk", "--total", *map(str, paths)], capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1].split()[0]) / 1024


def log_seconds(portal: RealPortal, stage: str) -> list[float]:
    """The seconds that a stage took on the minion, from its log."""
    code, entries = portal.call("web1", "ckan_release.history", "limit=500")
    assert code == 0, entries
    return [entry["seconds"] for entry in entries if entry["stage"] == stage and entry["result"] == "ok"]


def ten_extensions(portal: RealPortal) -> list[tuple[str, str]]:
    """What it takes to fetch and install ten extensions from git: new ones, the same again, one with a new commit."""
    made = [repos.make_repo(portal.sandbox / "git", f"ten{number}", f"Ten {number}") for number in range(10)]
    known = {repo.name: {"url": str(repo), "ref": "main"} for repo in made}
    portal.write_pillar({**portal.settings, "extensions": {**portal.settings["extensions"], **known}})
    rows = []
    for what in ("all new", "the same again", "the same again", "one with a new commit"):
        if what.startswith("one"):
            repos.commit_change(made[0], "Ten, changed")
        next_second()
        # With nothing new a deploy would leave it at that.
        done = portal.deploy(force=True)
        assert done["code"] == 0, done["text"]
        code, shown = portal.call("web1", "ckan_release.show")
        assert code == 0, shown
        plan = float(re.search(r"ID: plan\n(?:.*\n)*?\s+Duration: ([0-9.]+) ms", done["text"]).group(1)) / 1000
        build = shown["build_seconds"]
        parts = f"sources {build['sources']:.2f} s, packages {build['packages']:.2f} s"
        rows.append((f"ten extensions from git, {what}", f"{parts}; plan, which resolves them, {plan:.1f} s"))
    return rows


def main() -> None:
    """Measure and print a table."""
    portal = RealPortal(sandbox("ckan-b-"), hosts=["web1"], say=print)
    rows: list[tuple[str, str]] = []
    try:
        portal.start()
        assert portal.highstate()["code"] == 0
        deploys, without_finish = [], []
        for turn in range(ROUNDS):
            repos.commit_change(portal.mycity, f"turn {turn}")
            next_second()
            begun = time.monotonic()
            done = portal.deploy()
            deploys.append(time.monotonic() - begun)
            assert done["code"] == 0, done["text"]
            finish = re.search(r"finish ([0-9.]+) s", done["text"])
            without_finish.append(deploys[-1] - float(finish.group(1)))
        rows.append(("warm deploy, whole command", f"{statistics.median(deploys):.1f} s (of {ROUNDS}: "
                     f"{min(deploys):.1f} to {max(deploys):.1f})"))  # fmt: skip
        rows.append(("the same without draining and pruning", f"{statistics.median(without_finish):.1f} s"))
        for stage in ("build", "check", "start", "activate", "verify", "finish"):
            seconds = log_seconds(portal, stage)[:ROUNDS]
            rows.append((f"stage {stage} on the minion", f"{1000 * statistics.median(seconds):.0f} ms"))
        releases = [portal.root("web1") / "usr/lib/ckan/releases" / name for name in portal.releases("web1")]
        more = disk_mb(portal.base, *releases) - disk_mb(portal.base, *releases[:-1])
        rows.append(("disk of one more release", f"{more:.1f} MB"))
        # Both app servers up: what is left of an activation is the switch itself.
        first, second = portal.releases("web1")[-2:]
        portal.call("web1", "ckan_release.start", first)
        for turn in range(10):
            code, answer = portal.call("web1", "ckan_release.activate", (first, second)[turn % 2])
            assert code == 0, answer
        seconds = log_seconds(portal, "activate")[:10]
        rows.append(("activate on the minion, app server up", f"{1000 * statistics.median(seconds):.0f} ms (of 10: "
                     f"{1000 * min(seconds):.0f} to {1000 * max(seconds):.0f})"))  # fmt: skip
        rollbacks = []
        for _ in range(ROUNDS):
            code, answer = portal.call("web1", "ckan_release.activate", second, "force=True")
            assert code == 0, answer
            code, answer = portal.call("web1", "ckan_release.rollback", f"to={first}", "finish=False", "force=True")
            assert code == 0, answer
            rollbacks.append(log_seconds(portal, "rollback")[0])
        rows.append(("rollback on the minion, app server up", f"{1000 * statistics.median(rollbacks):.0f} ms (of "
                     f"{ROUNDS}: {1000 * min(rollbacks):.0f} to {1000 * max(rollbacks):.0f})"))  # fmt: skip
        rows += ten_extensions(portal)
    finally:
        portal.destroy()
    width = max(len(name) for name, _ in rows)
    print("\n".join(["", *(f"{name:<{width}}  {value}" for name, value in rows)]))


if __name__ == "__main__":
    main()
