"""
What `build:ship` costs: the stage build of one host, against that of hosts that one builds for. `make bench-ship` runs
it; its figures are in docs/benchmarks.md.

All minions are on this machine and share its cores. Two hosts are one that builds and one that takes, each with a core
here, as on a fleet whose hosts work at the same time; ten show what Salt and ten unpackers on few cores add to that.
The layer has the size of a real one: the files of the real CKAN lie in it, beside the small stand-in that is deployed.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import yaml

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from scale import Crowd  # noqa: E402

from parts.base import build_base, uv_path  # noqa: E402
from parts.fleet import REPO  # noqa: E402
from parts.portal import next_second  # noqa: E402
from stub import repos  # noqa: E402

TRANSFER = {"file_recv": True, "file_recv_max_size": 1000, "fileserver_backend": ["roots", "minionfs"]}
# What the slowest host took for each part, as its log has it.
PARTS = {"build": "build", "clone": "clone meanwhile", "pack": "pack", "take": "build of what was packed"}
# How many rounds, and the largest fleet.
ROUNDS, LARGEST = (int(word) for word in (sys.argv[1:] + ["3", "10"][len(sys.argv) - 1 :])[:2])
PACKAGES = "lib/python3.*/site-packages"


class Fleet(NamedTuple):
    """How many hosts, and whether one of them builds for the others."""

    size: int
    ships: bool


FLEETS = tuple(
    fleet for fleet in (Fleet(1, False), Fleet(2, True), Fleet(10, False), Fleet(10, True)) if fleet.size <= LARGEST
)


def make_base(place: Path) -> Path:
    """A virtualenv with the stand-in, and with as many files as the real CKAN has."""
    base = place / "base"
    for command in (
        [uv_path(), "venv", "-q", "-p", "/usr/bin/python3", str(base)],
        [uv_path(), "pip", "install", "-q", "-p", str(base / "bin/python"), str(REPO / "test/stub/ckan")],
    ):
        subprocess.run(command, check=True)
    (real,), (mine,) = build_base().glob(PACKAGES), base.glob(PACKAGES)
    shutil.copytree(real, mine / "bulk", symlinks=True)
    return base


def deployed(crowd: Crowd, fleet: Fleet, text: str) -> dict[str, float]:
    """Deploy a new commit to a fleet; returns the seconds of the stage build, and of its parts on the hosts."""
    hosts = crowd.hosts[: fleet.size]
    crowd.settings["build"] = {"ship": fleet.ships}
    crowd.write_pillar(crowd.settings)
    for host in crowd.hosts[fleet.size :]:
        file = crowd.overlay(host)
        file.write_text(yaml.safe_dump({"ckan": {**yaml.safe_load(file.read_text())["ckan"], "env": "idle"}}))
    next_second()
    repos.commit_change(crowd.repo, text)
    done = crowd.deploy()
    assert done["code"] == 0, done["text"]
    took: dict[str, list[float]] = {}
    for host in hosts:
        home = crowd.root(host) / "usr/lib/ckan"
        manifest = json.loads((home / "current/release.json").read_text())
        for entry in map(json.loads, (home / "shared/deploy.log").read_text().splitlines()):
            if entry["release"] == manifest["id"] and entry["stage"] in ("build", "pack", "clone"):
                name = "take" if entry["stage"] == "build" and manifest.get("built_on") else entry["stage"]
                took.setdefault(name, []).append(entry["seconds"])
    return {"stage": crowd.stage_seconds()["build"], **{name: max(seconds) for name, seconds in took.items()}}


def main() -> None:
    place = Path(tempfile.mkdtemp(prefix="ckan-b-", dir="/tmp"))
    place.chmod(0o755)
    found: dict[Fleet, list[dict[str, float]]] = {fleet: [] for fleet in FLEETS}
    try:
        crowd = Crowd(make_base(place), FLEETS[-1].size, options={"master": TRANSFER})
        try:
            # The layer is made, and handed over, once.
            print("first", [(fleet, deployed(crowd, fleet, f"First {fleet}")) for fleet in FLEETS], flush=True)
            for number in range(ROUNDS):
                # By turns, so that what else the machine has to do falls on all.
                for fleet in FLEETS:
                    found[fleet].append(deployed(crowd, fleet, f"{fleet} {number}"))
                    print(fleet, found[fleet][-1], flush=True)
        finally:
            crowd.destroy()
    finally:
        shutil.rmtree(place, ignore_errors=True)
    medians = {
        fleet: {name: statistics.median(row.get(name, 0) for row in rows) for name in ("stage", *PARTS)}
        for fleet, rows in found.items()
    }
    print(f"\n{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; medians of {ROUNDS}, seconds\n")
    print("| hosts | stage build | against one host | " + " | ".join(PARTS.values()) + " |")
    print("|---|---|---|" + "---|" * len(PARTS))
    for fleet, row in medians.items():
        ratio = row["stage"] / medians[FLEETS[0]]["stage"]
        cells = " | ".join(f"{row[name]:.2f}" for name in PARTS)
        print(f"| {fleet.size}{', shipped' if fleet.ships else ''} | {row['stage']:.1f} | {ratio:.1f} x | {cells} |")


if __name__ == "__main__":
    main()
