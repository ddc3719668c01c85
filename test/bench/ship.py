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

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from scale import Crowd  # noqa: E402

from parts.base import build_base, uv_path  # noqa: E402
from parts.fleet import REPO  # noqa: E402
from parts.portal import next_second  # noqa: E402
from stub import repos  # noqa: E402

TRANSFER = {"file_recv": True, "file_recv_max_size": 1000, "fileserver_backend": ["roots", "minionfs"]}
ROUNDS = int((sys.argv[1:] or ["3"])[0])
PACKAGES = "lib/python3.*/site-packages"


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


def warm(crowd: Crowd, text: str) -> dict[str, float]:
    """Deploy a new commit; returns the seconds of the stage build, and of its parts on the hosts."""
    next_second()
    repos.commit_change(crowd.repo, text)
    done = crowd.deploy()
    assert done["code"] == 0, done["text"]
    told: dict[str, list[float]] = {}
    for host in crowd.hosts:
        home = crowd.root(host) / "usr/lib/ckan"
        manifest = json.loads((home / "current/release.json").read_text())
        for line in (home / "shared/deploy.log").read_text().splitlines():
            entry = json.loads(line)
            if entry["release"] == manifest["id"] and entry["stage"] in ("build", "pack", "clone"):
                name = "take" if entry["stage"] == "build" and manifest.get("built_on") else entry["stage"]
                told.setdefault(name, []).append(entry["seconds"])
    return {"stage": crowd.stage_seconds()["build"], **{name: max(took) for name, took in told.items()}}


def measured(base: Path, size: int, ways: list[bool]) -> dict[str, list[dict[str, float]]]:
    """All rounds of a fleet, for each way to build: shipped or not."""
    crowd, found = Crowd(base, size, options={"master": TRANSFER}), {}
    try:
        for ships in ways:
            crowd.settings["build"] = {"ship": ships}
            crowd.write_pillar(crowd.settings)
            key = f"{size} host{'s' if size > 1 else ''}{', shipped' if ships else ''}"
            # The first makes the layers, or is the first that is handed over.
            first = warm(crowd, f"First {key}")
            found[key] = [warm(crowd, f"{key} {number}") for number in range(ROUNDS)]
            print(key, {"first": first}, found[key], flush=True)
    finally:
        crowd.destroy()
    return found


def main() -> None:
    place = Path(tempfile.mkdtemp(prefix="ckan-b-", dir="/tmp"))
    place.chmod(0o755)
    try:
        base = make_base(place)
        found = {**measured(base, 1, [False]), **measured(base, 2, [True]), **measured(base, 10, [True, False])}
    finally:
        shutil.rmtree(place, ignore_errors=True)
    one = statistics.median(row["stage"] for row in found["1 host"])
    print(f"\n{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; medians of {ROUNDS}, seconds\n")
    print("| hosts | stage build | against one host | build | pack | clone meanwhile | build of what was packed |")
    print("|---|---|---|---|---|---|---|")
    for key, rows in found.items():
        cells = [statistics.median(row.get(name, 0) for row in rows) for name in ("build", "pack", "clone", "take")]
        stage = statistics.median(row["stage"] for row in rows)
        print(f"| {key} | {stage:.1f} | {stage / one:.2f} x | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
