"""
What the master keeps of an environment, in ``CACHEDIR/ckan/ENV`` (0700): three files.

``lock.json``
    Who keeps others out: a run that is under way, or a person. Without it nobody does.
``run.json``
    What the run under way, or the last one, knows: hosts, release, contents, failures.
``wanted.json``
    The release that the environment is to be on, and what it holds: the last one that was verified on all hosts. A
    host that missed deploys builds this one, whatever its origins say by now.

The pillar of each host shows lock and wanted release (``pillar.example/ckan/fleet.sls``), so a host needs no copy of
its own that could be out of date. If the files are lost, nothing is locked, and the next look at hosts that agree
(``ckan.status``, a deploy) notes what they are on as wanted.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from typing import Any

import psutil
import salt.utils.user

SHOWN = ("env", "kind", "by", "since", "reason", "job")


def take(env: str, kind: str, job: str, reason: str = "", steal: bool = False) -> dict:
    """
    Take the lock of an environment for this process, or for a person.

    env
        The name of the environment.
    kind
        ``deploy`` or ``rollback``: held as long as this process lives; or ``lock``, by hand, until it is freed.
    job
        The id of the job; of a lock by hand any word.
    reason
        Why; shown to whoever is kept out.
    steal
        Take a lock whose run is dead, too.

    Returns ``{"ok", "comment", "dead": what the dead run knew}``; the last only where a lock was stolen.

    CLI Example: not for the command line; use ``ckan.lock``.
    """
    lock = {"env": env, "kind": kind, "job": job, "reason": reason, "since": now()}
    lock.update(by=salt.utils.user.get_specific_user(), pid=os.getpid(), started=_started(os.getpid()))
    with _guarded(env):
        held = lock_of(env)
        if held and not (steal and stale(held)):
            return {"ok": False, "comment": f"{sentence(held)}; {_way_out(held)}"}
        _write(env, "lock", lock)
        return {"ok": True, "comment": "", **({"dead": run_of(env) or {}} if held else {})}


def free(env: str, job: str = "") -> bool:
    """
    Free the lock of an environment.

    env
        The name of the environment.
    job
        Only where this job holds it; by default whoever does.

    Returns whether there was one to free.

    CLI Example: not for the command line; use ``ckan.unlock``.
    """
    with _guarded(env):
        held = lock_of(env)
        if not held or (job and held.get("job") != job):
            return False
        # Not removed: a pillar that is rendered in this moment finds one or the other.
        _write(env, "lock", None)
        return True


def give_back(env: str, lock: dict) -> bool:
    """
    Put a lock back that was stolen in vain.

    env
        The name of the environment.
    lock
        What ``lock_of`` returned before.

    CLI Example: not for the command line.
    """
    with _guarded(env):
        _write(env, "lock", lock)
    return True


def lock_of(env: str) -> dict | None:
    """
    Return the lock of an environment: ``{"env", "kind", "by", "since", "reason", "job", "pid", "started"}``, or None.

    env
        The name of the environment.

    CLI Example: not for the command line; use ``ckan.lock_status``.
    """
    return _read(env, "lock")


def stale(lock: dict) -> bool:
    """
    Say whether the process that a lock is held for is gone. A lock by hand is never stale.

    lock
        What ``lock_of`` returned.

    CLI Example: not for the command line; ``ckan.lock_status`` says it.
    """
    return lock["kind"] != "lock" and _started(lock["pid"]) != lock["started"]


def sentence(lock: dict) -> str:
    """
    Say who holds a lock, since when, why and for which job.

    lock
        What ``lock_of`` returned.

    CLI Example: not for the command line; use ``ckan.lock_status``.
    """
    why = f", {lock['reason']}" if lock.get("reason") else ""
    job = "by hand" if lock["kind"] == "lock" else f"{lock['kind']}, job {lock['job']}"
    gone = "; it is stale: the process of that job is gone" if stale(lock) else ""
    return f"{lock['env']} is locked by {lock['by']} since {lock['since']} ({job}{why}){gone}"


def shown() -> tuple[str, ...]:
    """
    Return what of a lock is for everybody to see.

    CLI Example: not for the command line.
    """
    return SHOWN


def run_of(env: str) -> dict | None:
    """
    Return what the run under way, or the last one, knows; None where there was none.

    env
        The name of the environment.

    CLI Example: not for the command line; use ``ckan.watch``.
    """
    return _read(env, "run")


def save_run(ticket: dict) -> bool:
    """
    Keep what a run knows.

    ticket
        All of it; ``env`` is the name of the environment.

    CLI Example: not for the command line.
    """
    _write(ticket["env"], "run", ticket)
    return True


def wanted(env: str) -> dict | None:
    """
    Return the release that the environment is to be on, None when it is not known.

    env
        The name of the environment.

    Returns ``{"release", "contents", "extensions", "at", "by", "kind", "seconds": {stage: s}}``.

    CLI Example:

    .. code-block:: bash

        salt-run ckan_record.wanted production
    """
    return _read(env, "wanted")


def want(env: str, release: str, contents: dict, **about: Any) -> bool:
    """
    Note the release that the environment is to be on from now.

    env
        The name of the environment.
    release
        Its id.
    contents
        What it holds: see ``ckan_build.resolve``.
    about
        What else is known of it: ``extensions`` that differ from the pillar, ``by``, ``kind``, ``seconds``.

    CLI Example: not for the command line.
    """
    _write(env, "wanted", {"release": release, "contents": contents, "at": now(), **about})
    return True


def folder(env: str, make: bool = True) -> str:
    """
    Return the directory of an environment on the master.

    env
        The name of the environment.
    make
        Make it if it is missing.

    Raises ``ValueError`` where that is no name of an environment.

    CLI Example: not for the command line.
    """
    if not isinstance(env, str) or not re.fullmatch(r"[a-z][a-z0-9_-]*", env):
        raise ValueError(f"{env!r} cannot be the name of an environment")
    path = os.path.join(__opts__["cachedir"], "ckan", env)
    if make:
        os.makedirs(path, mode=0o700, exist_ok=True)
    return path


def now() -> str:
    """
    Return the present time: UTC, ISO 8601, whole seconds.

    CLI Example: not for the command line.
    """
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _way_out(lock: dict) -> str:
    if stale(lock):
        return f"repeat with steal: true, or type: salt-run ckan.unlock {lock['env']}"
    if lock["kind"] == "lock":
        return f"wait, or type: salt-run ckan.unlock {lock['env']}"
    return f"wait for it; to see how far it is: salt-run ckan.watch {lock['env']}"


def _started(pid: int) -> float:
    """When a process was started, 0 for none: a number that is given to another process later is not the same one."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return 0.0


def _file(env: str, name: str) -> str:
    return os.path.join(folder(env, make=False), f"{name}.json")


@contextlib.contextmanager
def _guarded(env: str):
    """Look at the lock and change it in one step: of two who begin in the same moment one comes first."""
    with open(os.path.join(folder(env), "guard"), "w", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _read(env: str, name: str) -> dict | None:
    try:
        with open(_file(env, name), encoding="utf-8") as handle:
            return json.load(handle)
    except (OSError, ValueError):
        return None


def _write(env: str, name: str, content: dict | None) -> None:
    path = os.path.join(folder(env), f"{name}.json")
    with open(f"{path}.tmp", "w", encoding="utf-8", opener=lambda p, flags: os.open(p, flags, 0o600)) as handle:
        json.dump(content, handle, ensure_ascii=False)
        handle.flush()
        os.fsync(handle.fileno())
    os.rename(f"{path}.tmp", path)
