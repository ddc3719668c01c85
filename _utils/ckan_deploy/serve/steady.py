"""
Whether what was started stays up. Supervisor starts anew what ends, and a second later it is "RUNNING" again. So the
processes that were started on purpose are noted: another one has taken the place of one that ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Collection, Iterable
from typing import NamedTuple

import psutil
from attrs import define

from ckan_deploy.releases.site import Site
from ckan_deploy.system import disk, files

# That of /proc/uptime, which nobody sets.
CLOCK = time.CLOCK_BOOTTIME
POLL_SECONDS = 0.2
# For so long a process counts as just started, and it is told that it has taken the place of another one.
YOUNG_SECONDS = 120
# A service boots CKAN: that is watched, too, for so long at most, and is over when it sleeps.
BOOT_SECONDS = 30
# So many programs whose processes have ended are remembered, the latest ones.
MOST_ENDED = 100
AT_WORK = (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP)
BUSY = 0.25


class _Process(NamedTuple):
    """
    A process, its parent (supervisor), and when it was started: by a clock that nobody sets, unlike psutil's; 0 for one
    that had ended before it could be looked at.
    """

    pid: int
    parent: int
    started: float

    @property
    def age(self) -> float:
        return time.clock_gettime(CLOCK) - self.started


def note(site: Site, program: str, pids: Iterable[int]) -> None:
    """
    Note the processes of a program of supervisor as started on purpose.

    site
        The site.
    program
        The name of the program, or of its group.
    pids
        Its processes.
    """
    path = _file(site)
    running = [_Process(pid, 0, 0.0) if (process := _look(pid)) is None else process for pid in pids]
    # Nothing fails for it, not even on a full disk.
    with contextlib.suppress(OSError), files.locked(f"{path}.lock"):
        known = {name: those for name, those in _notes(site).items() if name != program}
        # What has ended tells that another one has taken its place. But not for all the releases that there were.
        ended = [name for name, those in known.items() if not any(map(_alive, those))]
        for name in ended[:-MOST_ENDED]:
            del known[name]
        known[program] = running
        files.write(path, json.dumps({"boot": disk.boot_id(), "programs": known}))


def watch(
    site: Site, programs: Iterable[str], booted: bool = False, trees: Collection[str] = ()
) -> dict[str, str]:  # fmt: skip
    """
    Wait until programs that were noted have been up for ``stable_seconds``, all at once.

    site
        The site.
    programs
        Their names.
    booted
        They have answered already, so their boot is over.
    trees
        Those whose boot is that of the processes that they start.

    Returns ``{program: what is wrong}`` with those that do not stay up; none is watched where ``stable_seconds`` is 0.
    """
    notes, wrong = _notes(site), {}
    seconds = site.settings.stable_seconds
    left = {name: _Watched(notes.get(name, []), booted, name in trees) for name in programs if seconds}
    while left:
        for name, watched in list(left.items()):
            if problem := watched.ended():
                wrong[name] = problem
            if problem or watched.settled(seconds):
                del left[name]
        if left:
            time.sleep(POLL_SECONDS)
    return wrong


def restarted(site: Site, program: str, pid: int) -> str:
    """
    Say that a process was not started on purpose, but took the place of one that had ended; ``''`` where that is not
    so, or long ago, or supervisor itself was started again.

    site
        The site.
    program
        The name of the program.
    pid
        The process that runs.
    """
    noted, now = _notes(site).get(program), _look(pid)
    if noted is None or now in noted:
        return ""
    if now is None:
        return "ended a moment ago"
    if noted and not any(process.parent in (now.parent, 0) for process in noted):
        return ""
    return f"ended and was started again {now.age:.0f} s ago" if now.age < YOUNG_SECONDS else ""


def since(site: Site, program: str, pid: int) -> float:
    """
    Say since when a program has been up, restarts of supervisor's left aside: since it was started on purpose, or since
    supervisor was.

    site
        The site.
    program
        The name of the program.
    pid
        One of its processes.

    Returns seconds of ``CLOCK``.
    """
    noted, now = _notes(site).get(program, []), _look(pid)
    if now and (mine := [process.started for process in noted if process.parent in (now.parent, 0)]):
        return min(mine)
    parent = _look(now.parent) if now else None
    return parent.started if parent else 0.0


class _Watched:
    """Processes that are watched."""

    def __init__(self, noted: list[_Process], booted: bool, tree: bool) -> None:
        self.noted = [process for process in noted if not process.started or process.age < YOUNG_SECONDS]
        self.booted = booted
        self.windows = {process: _Window(time.monotonic(), _taken(process.pid, tree), tree) for process in self.noted}

    def ended(self) -> str:
        for process in self.noted:
            if not process.started:
                return "ended as soon as it was started"
            if not _alive(process):
                return f"ended within {process.age:.0f} s of its start"
        return ""

    def settled(self, seconds: int) -> bool:
        done = True
        for process in self.noted:
            # All are looked at, whatever the others do.
            idle = self.booted or self.windows[process].idle_after_a_look(process.pid)
            done = done and process.age >= seconds and (idle or process.age > BOOT_SECONDS)
        return done


@define
class _Window:
    """A second of a process. One that sleeps at each look, and took little time of a core, does not boot any more."""

    begun: float
    taken: float
    tree: bool  # with all that it has started
    asleep: bool = True
    idle: bool = False  # in the window before

    def idle_after_a_look(self, pid: int) -> bool:
        try:
            # On a busy machine a boot gets little time, but it waits for more of it.
            self.asleep = self.asleep and not any(one.status() in AT_WORK for one in _tree(pid, self.tree))
        except psutil.Error:
            return True
        now = time.monotonic()
        if now - self.begun >= 1:
            taken = _taken(pid, self.tree)
            self.idle = self.asleep and (taken - self.taken) / (now - self.begun) < BUSY
            self.begun, self.taken, self.asleep = now, taken, True
        return self.idle


def _tree(pid: int, tree: bool) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *(process.children(recursive=True) if tree else [])]


def _taken(pid: int, tree: bool) -> float:
    """The seconds of a core that a process has taken."""
    with contextlib.suppress(psutil.Error):
        return float(sum(one.cpu_times().user + one.cpu_times().system for one in _tree(pid, tree)))
    return 0.0


def _file(site: Site) -> str:
    return os.path.join(site.paths.shared, "started.json")


def _notes(site: Site) -> dict[str, list[_Process]]:
    """What was noted since this host was started."""
    try:
        told = json.loads(files.read(_file(site)) or "{}")
        if told.get("boot") != disk.boot_id():
            return {}
        return {name: [_Process(*process) for process in those] for name, those in told["programs"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def _look(pid: int) -> _Process | None:
    """A process as it is now; None where it has ended."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as handle:
            # The name in brackets may hold anything.
            state, parent, *more = handle.read().rpartition(")")[2].split()
        if state not in ("Z", "X"):
            return _Process(pid, int(parent), int(more[17]) / os.sysconf("SC_CLK_TCK"))
    return None


def _alive(process: _Process) -> bool:
    return _look(process.pid) == process
