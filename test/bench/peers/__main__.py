"""
The formula against other ways to deploy the same portal, turn by turn: docs/benchmarks.md. `make bench-peers` runs it.

BENCH_ROUNDS is how often, BENCH_HOSTS on how many hosts ("1,3"), BENCH_CONTESTANTS who ("formula,standby,ansible,
capistrano"). `--write` writes the table into docs/benchmarks.md.
"""

from __future__ import annotations

import compileall
import os
import shutil
import signal
import sys
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

# Salt's programs, and those of the others, start with their bytecode.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[2]), str(HERE.parents[3])]

import salt  # noqa: E402
from bench import disk_mb  # noqa: E402

from parts.portal import next_second  # noqa: E402
from parts.process import PartError, sandbox  # noqa: E402
from parts.visitors import Visitors  # noqa: E402
from peers import table  # noqa: E402
from peers.contestants import Ansible, Capistrano, Contestant, Formula, Services, Standby  # noqa: E402
from peers.measure import Watch  # noqa: E402

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "4"))
HOSTS = [int(word) for word in os.environ.get("BENCH_HOSTS", "1,3").split(",")]
ALL: dict[str, type[Contestant]] = {
    "formula": Formula, "standby": Standby, "ansible": Ansible, "capistrano": Capistrano,
}  # fmt: skip
WANTED = os.environ.get("BENCH_CONTESTANTS", ",".join(ALL)).split(",")
VISITORS, VISITED_TURNS = 2, 2
BEGUN = time.monotonic()


def say(text: str) -> None:
    """Print a progress line with the time since the start."""
    print(f"[{time.monotonic() - BEGUN:5.0f} s] {text}", flush=True)


class Comparison:
    """All contestants on so many hosts, from their first deploys to their last rollbacks.

    place
        Directory of all.
    hosts
        How many hosts each has.
    names
        Who takes part, in the words of BENCH_CONTESTANTS.
    """

    def __init__(self, place: Path, hosts: int, names: list[str]) -> None:
        self.services, self.hosts = Services(place, say), hosts
        self.contestants: list[Contestant] = []
        for name in names:
            if name == "standby":
                formula = next(one for one in self.contestants if isinstance(one, Formula))
                self.contestants.append(Standby(formula))
            else:
                self.contestants.append(ALL[name](self.services, place / name[:2], hosts))
        # By contestant: CPU seconds of an idle second, and of an answer to those who watch.
        self.idle: dict[str, tuple[float, float]] = {}
        self.rows: list[dict[str, Any]] = []
        self.turns = 0

    def __enter__(self) -> Comparison:
        return self

    def __exit__(self, *_: object) -> None:
        # One that cannot be ended does not leave the others behind.
        with ExitStack() as stack:
            stack.callback(self.services.stop)
            for contestant in self.contestants:
                stack.callback(contestant.tear_down)

    def run(self) -> list[dict[str, Any]]:
        """Run all of it; returns what was measured, a row for each turn."""
        self.services.start()
        for contestant in self.contestants:
            say(f"{contestant.name}, {self.hosts} host(s): set up, and two deploys to warm up")
            contestant.set_up()
            for _ in range(2):
                self.commit()
                contestant.run("deploy")
            contestant.restore()
        for contestant in self.contestants:
            self.calibrate(contestant)
        for number in range(ROUNDS + min(ROUNDS, VISITED_TURNS)):
            first = number % len(self.contestants)
            for contestant in self.contestants[first:] + self.contestants[:first]:
                self.turn(contestant, visited=number >= ROUNDS)
        return self.rows

    def commit(self) -> None:
        """Make a new commit of an extension."""
        self.turns += 1
        self.services.origins.commit(f"turn {self.turns}")
        next_second()

    def calibrate(self, contestant: Contestant) -> None:
        """Measure what a contestant has of the CPU when nothing is done, and for each answer to those who watch."""
        contestant.group.settle(0.1)
        before = contestant.group.seconds()
        time.sleep(5)
        idle = (contestant.group.seconds() - before) / 5
        with Watch(contestant.ports) as watch:
            before, answers, begun = contestant.group.seconds(), watch.answers, time.monotonic()
            time.sleep(5)
            spent = contestant.group.seconds() - before - idle * (time.monotonic() - begun)
            each = max(0.0, spent / (watch.answers - answers))
        self.idle[contestant.name] = idle, each
        say(f"{contestant.name}: idle {idle:.3f} CPU seconds a second, {1000 * each:.1f} ms an answer")

    def turn(self, contestant: Contestant, visited: bool) -> None:
        """A deploy and a rollback of one contestant."""
        self.commit()
        row: dict[str, Any] = {"name": contestant.name, "hosts": self.hosts, "visited": visited}
        for what in ("deploy", "rollback"):
            row[what] = self.measured(contestant, what, visited)
            if what == "deploy":
                paths, newest = contestant.disk()
                row["disk"] = disk_mb(*paths) - disk_mb_without(paths, newest)
        contestant.restore()
        self.rows.append(row)
        say(f"{row}, load {os.getloadavg()[0]:.1f}")

    def measured(self, contestant: Contestant, what: str, visited: bool) -> dict[str, float]:
        """Run a deploy or a rollback while visitors come, or while one asks for the mark; returns what was seen."""
        idle, each = self.idle[contestant.name]
        # Those who watch would count among the visitors: they only wait for the end then.
        with Visitors(contestant.front_port, threads=VISITORS) if visited else nullcontext() as visitors:
            with Watch(contestant.ports, 1.0 if visited else 0.02) as watch:
                before, answers, begun = contestant.group.seconds(), watch.answers, time.monotonic()
                contestant.run(what)
                whole = time.monotonic() - begun
                watch.wait()
        if visitors:
            contestant.group.settle(idle)
            return {"asked": visitors.asked, "failed": len(visitors.failed), "longest": visitors.longest}
        contestant.group.settle(idle)
        cpu = contestant.group.seconds() - before - each * (watch.answers - answers)
        return {"whole": whole, "visitors": watch.changed() - begun, "cpu": cpu}


def disk_mb_without(paths: list[Path], newest: Path) -> float:
    """Disk that paths take together without one release in one of them, in MB; hard links count once."""
    kept = [entry for path in paths for entry in (path.iterdir() if path == newest.parent else [path])]
    return disk_mb(*(path for path in kept if path != newest))


def available() -> tuple[list[str], list[str]]:
    """Return who can take part, and a sentence for each who cannot."""
    unknown = sorted(set(WANTED) - set(ALL))
    if unknown:
        raise SystemExit(f"BENCH_CONTESTANTS has {', '.join(unknown)}; there are {', '.join(ALL)}")
    names, missing = [], []
    # The standby is that of the formula's own portal, which comes first.
    for name in [name for name in ALL if name in WANTED or (name == "formula" and "standby" in WANTED)]:
        try:
            ALL[name].install(say)
            names.append(name)
        except PartError as exc:
            missing.append(f"{ALL[name].name} is left out: {exc}")
            say(missing[-1])
    return names, missing


def main() -> None:
    """Measure, print the table, and write it where that is asked for."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    say("compiling Salt's bytecode")
    compileall.compile_dir(str(Path(salt.__file__).parent), quiet=2)
    names, missing = available()
    rows: list[dict[str, Any]] = []
    load, kind = os.getloadavg()[0], ""
    for hosts in HOSTS:
        place = sandbox("ckan-p-")
        try:
            with Comparison(place, hosts, names) as comparison:
                kind = comparison.contestants[0].group.kind
                rows += comparison.run()
        finally:
            shutil.rmtree(place, ignore_errors=True)
    made = table.made(rows, kind, load, missing, time.monotonic() - BEGUN)
    print(f"\n{made}")
    if "--write" in sys.argv[1:]:
        table.write(made)


if __name__ == "__main__":
    main()
