"""
Whether what was started stays up. Supervisor starts anew what ends, and a second later it is "RUNNING" again. So the
processes that were started on purpose are noted: another one has taken the place of one that ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable
from typing import Any

import psutil

from ckan_deploy.releases.site import Site
from ckan_deploy.system import disk, files

POLL_SECONDS = 0.2
# For so long a process counts as just started, and it is told that it has taken the place of another one.
YOUNG_SECONDS = 120
# A service boots CKAN: that is watched, too, for so long at most, and is over when it takes no more time of a core.
BOOT_SECONDS = 30
BUSY = 0.25


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
    running = [[pid, _created(pid)] for pid in pids]
    # Nothing fails for it, not even on a full disk.
    with contextlib.suppress(OSError), files.locked(f"{path}.lock"):
        known = {name: pids for name, pids in _notes(site).items() if name != program and any(map(_alive, pids))}
        known[program] = running
        files.write(path, json.dumps({"boot": disk.boot_id(), "programs": known}))


def watch(site: Site, programs: Iterable[str], booted: bool = False) -> dict[str, str]:
    """
    Wait until programs that were noted have been up for ``stable_seconds``, all at once.

    site
        The site.
    programs
        Their names.
    booted
        They have answered already, so their boot is over.

    Returns ``{program: what is wrong}`` with those that do not stay up; none is watched where ``stable_seconds`` is 0.
    """
    notes, wrong = _notes(site), {}
    left = {name: _Watched(notes.get(name, []), booted) for name in programs if site.settings.stable_seconds}
    while left:
        for name, watched in list(left.items()):
            if problem := watched.ended():
                wrong[name] = problem
            if problem or watched.settled(site.settings.stable_seconds):
                del left[name]
        if left:
            time.sleep(POLL_SECONDS)
    return wrong


def restarted(site: Site, program: str, pid: int) -> str:
    """
    Say that a process was not started on purpose, but took the place of one that had ended; ``''`` where that is not
    so, or long ago.

    site
        The site.
    program
        The name of the program.
    pid
        The process that runs.
    """
    noted = _notes(site).get(program)
    created = _created(pid)
    if noted is None or [pid, created] in noted:
        return ""
    if not created:
        return "ended a moment ago"
    seconds = time.time() - created
    return f"ended and was started again {seconds:.0f} s ago" if seconds < YOUNG_SECONDS else ""


class _Watched:
    """Processes that are watched; how much time of a core each had taken a while ago tells whether it boots."""

    def __init__(self, noted: list[list[Any]], booted: bool) -> None:
        self.noted = [(pid, created) for pid, created in noted if time.time() - created < YOUNG_SECONDS]
        self.booted = booted
        self.taken: dict[int, tuple[float, float]] = {}

    def ended(self) -> str:
        for pid, created in self.noted:
            if not _alive([pid, created]):
                return f"ended within {time.time() - created:.0f} s of its start"
        return ""

    def settled(self, seconds: int) -> bool:
        ages = [time.time() - created for _, created in self.noted]
        if self.booted or all(age > BOOT_SECONDS for age in ages):
            return all(age >= seconds for age in ages)
        # One after the other would keep the later ones from being looked at.
        idle = [self._idle(pid) for pid, _ in self.noted]
        return all(idle) and all(age >= seconds for age in ages)

    def _idle(self, pid: int) -> bool:
        now = time.monotonic()
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            then, before = self.taken.setdefault(pid, (now, times.user + times.system))
            if now - then < 1:
                return False
            self.taken[pid] = (now, times.user + times.system)
            return (times.user + times.system - before) / (now - then) < BUSY
        return True


def _file(site: Site) -> str:
    return os.path.join(site.paths.shared, "started.json")


def _notes(site: Site) -> dict[str, list[list[Any]]]:
    """What was noted since this host was started."""
    try:
        told = json.loads(files.read(_file(site)) or "{}")
    except ValueError:
        return {}
    found: dict[str, list[list[Any]]] = told.get("programs", {}) if told.get("boot") == disk.boot_id() else {}
    return found


def _created(pid: int) -> float:
    with contextlib.suppress(psutil.Error):
        return float(psutil.Process(pid).create_time())
    return 0.0


def _alive(noted: list[Any]) -> bool:
    pid, created = noted
    return bool(created) and _created(pid) == created
