"""
How the time of a deploy grows with the number of hosts: the figures of docs/scale.md. `make bench-scale` runs it.

All minions are on this machine and share its cores, so their work is measured, too: what would be at the same time on
hosts of their own is one after the other here. CKAN is the small stand-in, and no web server runs: build and boot are
the business of docs/benchmarks.md.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import psutil

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from daemon.conftest import Site, make_stub_base  # noqa: E402
from parts.portal import next_second  # noqa: E402
from stub import repos  # noqa: E402

STAGES = ("plan", "build", "check", "migrate", "activate", "verify", "finish")
ROUNDS = 3


class Crowd(Site):
    """Many hosts without web servers, after their first deploy."""

    def __init__(self, base: Path, size: int, **more: Any) -> None:
        super().__init__(base, [f"web{number:02}" for number in range(1, size + 1)], **more)
        self.settings["web"] = {"server": "none", "app": "none"}
        self.write_pillar(self.settings)
        for host in self.hosts:
            storage = self.root(host) / "var/lib/ckan/default/storage"
            storage.mkdir(parents=True)
            self.root(host).chmod(0o755)
            shutil.chown(storage, "www-data", "www-data")
        self.fleet.start()

    def cpu(self) -> dict[str, float]:
        """CPU seconds that the processes of master and minions have had, with those of jobs that are over."""
        spent = {"master": 0.0, "minions": 0.0}
        for name, service in self.fleet.services.items():
            main = psutil.Process(service.pid())
            for process in [main, *main.children(recursive=True)]:
                times = process.cpu_times()
                part = "master" if name == "master" else "minions"
                spent[part] += times.user + times.system + times.children_user + times.children_system
        return spent

    def measured(self, run) -> dict[str, float]:
        """Wall time of a call, and what master, minions and the command itself had of the CPU."""
        before, own, begun = self.cpu(), os.times(), time.monotonic()
        run()
        wall, after, own_after = time.monotonic() - begun, self.cpu(), os.times()
        command = own_after.children_user + own_after.children_system - own.children_user - own.children_system
        return {"wall": wall, "command": command, **{part: after[part] - before[part] for part in before}}

    def stage_seconds(self) -> dict[str, float]:
        """Seconds of each stage of the last deploy, as the master saw them."""
        ticket = json.loads((self.sandbox / "salt/m/var/cache/salt/master/ckan/production/run.json").read_text())
        plan = [span["seconds"] for span in ticket["spans"] if span["stage"] == "plan"]
        return {"plan": plan[0], **ticket["seconds"]}


def main(sizes: list[int]) -> None:
    rows = []
    for size in sizes:
        crowd = Crowd(make_stub_base(), size)
        try:
            done = crowd.deploy()
            assert done["code"] == 0, done["text"]
            for number in range(ROUNDS):
                next_second()
                repos.commit_change(crowd.repo, f"Hello {size} {number}")

                def deploy(crowd: Crowd = crowd) -> None:
                    done = crowd.deploy()
                    assert done["code"] == 0, done["text"]

                spent = crowd.measured(deploy)
                rows.append((size, spent, crowd.stage_seconds()))
                print(size, spent, rows[-1][2], flush=True)
            spent = crowd.measured(lambda crowd=crowd: crowd.status())
            print(size, "status", spent, flush=True)
        finally:
            crowd.destroy()
    heads = [*STAGES, "whole", "CPU of minions, per host", "CPU of master and command, per host"]
    print("\n| hosts | " + " | ".join(heads) + " |")
    print("|---|" + "---|" * len(heads))
    for size in sizes:
        # The fastest of the rounds: what else the machine had to do is in the others.
        spent, stages = min(((s, t) for n, s, t in rows if n == size), key=lambda pair: pair[0]["wall"])
        cells = " | ".join(f"{stages.get(name, 0):.1f} s" for name in STAGES)
        central = (spent["master"] + spent["command"]) / size
        print(f"| {size} | {cells} | {spent['wall']:.1f} s | {spent['minions'] / size:.2f} s | {central:.2f} s |")


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or [10, 20, 50])
