"""
What the master keeps of an environment, in ``CACHEDIR/ckan/ENV`` (0700): three files.

``lock.json``
    Who keeps others out: a run that is under way, or a person. Without it nobody does.
``run.json``
    What the run under way, or the last one, knows: hosts, release, resolution, failures.
``wanted.json``
    The release that the environment is to be on, and what it holds: the last one that was verified on all hosts. A
    host that missed deploys builds this one, whatever its origins say by now.

The pillar of each host shows lock and wanted release (``pillar.example/ckan/fleet.sls``), so a host needs no copy of
its own that could be out of date. If the files are lost, nothing is locked, and the next look at hosts that agree
(``ckan.status``, a deploy) notes what they are on as wanted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import attr
import psutil
from attrs import frozen

from ckan_deploy.errors import FormulaError
from ckan_deploy.fleet.master import Master
from ckan_deploy.fleet.names import check_env
from ckan_deploy.releases import ids
from ckan_deploy.system import files


@frozen
class Lock:
    """The deploy lock of an environment; ``pid`` and ``started`` tell the process that it is held for."""

    env: str
    kind: str
    by: str
    since: str
    reason: str = ""
    job: str = ""
    pid: int = 0
    started: float = 0.0

    @property
    def by_hand(self) -> bool:
        """Whether a person holds it, until it is freed."""
        return self.kind == "lock"

    @property
    def stale(self) -> bool:
        """Whether the process that it is held for is gone. A lock by hand is never stale."""
        return not self.by_hand and _started(self.pid) != self.started

    def sentence(self) -> str:
        """Say who holds it, since when, why and for which job."""
        why = f", {self.reason}" if self.reason else ""
        job = "by hand" if self.by_hand else f"{self.kind}, job {self.job}"
        gone = "; it is stale: the process of that job is gone" if self.stale else ""
        return f"{self.env} is locked by {self.by} since {self.since} ({job}{why}){gone}"

    def way_out(self, by_hand: bool = False) -> str:
        """
        Say what can be done about it.

        by_hand
            Whether somebody is told who wants to lock by hand, and not to deploy.
        """
        if self.stale and by_hand:
            return f"type: salt-run ckan.unlock {self.env}"
        if self.stale:
            return f"repeat with steal: true, or type: salt-run ckan.unlock {self.env}"
        if self.by_hand:
            return f"wait, or type: salt-run ckan.unlock {self.env}"
        return f"wait for it; to see how far it is: salt-run ckan.watch {self.env}"

    def shown(self) -> dict[str, str]:
        """Return what of it is for everybody to see."""
        return {name: getattr(self, name) for name in ("env", "kind", "by", "since", "reason", "job")}


class Record:
    """The files of one environment."""

    def __init__(self, master: Master, env: str) -> None:
        self.master, self.env = master, check_env(env)

    @property
    def folder(self) -> str:
        """The directory of the environment on the master."""
        return os.path.join(self.master.cachedir, "ckan", self.env)

    @property
    def known(self) -> bool:
        """Whether there is anything of that environment."""
        return os.path.isdir(self.folder)

    def lock(self) -> Lock | None:
        """Return the deploy lock, None where nobody holds it."""
        held = self._read("lock")
        return Lock(**{name: held[name] for name in attr.fields_dict(Lock) if name in held}) if held else None

    def take(self, kind: str, job: str, reason: str = "", steal: bool = False) -> bool:
        """
        Take the lock for this process, or for a person.

        kind
            ``deploy`` or ``rollback``: held as long as this process lives; or ``lock``, by hand, until it is freed.
        job
            The id of the job; of a lock by hand any word.
        reason
            Why; shown to whoever is kept out.
        steal
            Take a lock whose run is dead, too.

        Returns whether it was stolen. Raises ``FormulaError`` where somebody holds it.
        """
        lock = Lock(self.env, kind, self.master.user, ids.now(), reason, job, os.getpid(), _started(os.getpid()))
        # Look at it and change it in one step: of two who begin in the same moment one comes first.
        with files.locked(self._guard()):
            held = self.lock()
            if held and not (steal and held.stale):
                raise FormulaError(f"{held.sentence()}; {held.way_out(by_hand=lock.by_hand)}")
            self._write("lock", attr.asdict(lock))
        return bool(held)

    def free(self, job: str = "") -> bool:
        """
        Free the lock.

        job
            Only where this job holds it; by default whoever does.

        Returns whether there was one to free.
        """
        with files.locked(self._guard()):
            held = self.lock()
            if not held or (job and held.job != job):
                return False
            # Not removed: a pillar that is rendered in this moment finds one or the other.
            self._write("lock", None)
            return True

    def give_back(self, lock: Lock | None) -> None:
        """
        Put a lock back that was stolen in vain.

        lock
            What ``lock`` returned before.
        """
        with files.locked(self._guard()):
            self._write("lock", attr.asdict(lock) if lock else None)

    def run(self) -> dict[str, Any] | None:
        """Return what the run under way, or the last one, knows; None where there was none."""
        return self._read("run")

    def save_run(self, run: Mapping[str, Any]) -> None:
        """
        Keep what a run knows.

        run
            All of it.
        """
        self._write("run", run)

    def wanted(self) -> dict[str, Any]:
        """
        Return the release that the environment is to be on, {} when it is not known.

        Returns ``{"release", "contents", "extensions", "at", "by", "kind", "seconds": {stage: s}}``.
        """
        return self._read("wanted") or {}

    def want(self, release: str, contents: Mapping[str, Any], **about: Any) -> None:
        """
        Note the release that the environment is to be on from now.

        release
            Its id.
        contents
            Its resolution.
        about
            What else is known of it: ``extensions`` that differ from the pillar, ``by``, ``kind``, ``seconds``.
        """
        with files.locked(self._guard()):
            self._write("wanted", {"release": release, "contents": contents, "at": ids.now(), **about})

    def _guard(self) -> str:
        return os.path.join(self._made(), "guard")

    def _made(self) -> str:
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        return self.folder

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            with open(os.path.join(self.folder, f"{name}.json"), encoding="utf-8") as handle:
                found = json.load(handle)
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _write(self, name: str, content: Mapping[str, Any] | None) -> None:
        text = json.dumps(content, ensure_ascii=False)
        files.write(os.path.join(self._made(), f"{name}.json"), text, mode=0o600, durable=True)


def _started(pid: int) -> float:
    """When a process was started, 0 for none: a number that is given to another process later is not the same one."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return 0.0
