"""
Who may change something on this host now.

Two things keep others out: the *lock of the environment*, which the master holds and the pillar shows, and the *lock
of the host*, a file under ``shared`` that the process at work holds open. The kernel frees that one with the process,
so it is never left over.
"""

from __future__ import annotations

import contextlib
import contextvars
import fcntl
import json
import os
import time

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_lock"

# The locks that this job holds already: a deploy that runs its stages one after the other holds one for all.
HELD: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("ckan_lock_held", default=())


def __virtual__() -> str:
    return __virtualname__


@contextlib.contextmanager
def held(
    settings: dict, what: str, release: str = "", by: str = "", job: str = "", wait: float = 0, locked: bool = True
):
    """
    Hold the lock of this host for as long as the context lasts. What is inside of another one goes through.

    settings
        The settings.
    what, release, by
        What is done, for whoever is kept out.
    job
        The run of the master that this belongs to: its lock of the environment is no obstacle.
    wait
        How long to wait for another process, in seconds.
    locked
        False where a lock of the environment is no obstacle: what is repaired, not deployed.

    Raises ``CommandExecutionError`` at once, or when the time is over, that names who is at work and since when.

    CLI Example: not for the command line.
    """
    path = _file(settings)
    if path in HELD.get():
        yield
        return
    if locked:
        refuse(settings["env"], job)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    # Kept after the end: a lock on a file that another one has removed would keep nobody out.
    with open(path, "a+", encoding="utf-8", opener=lambda p, flags: os.open(p, flags, 0o644)) as handle:
        _take(handle, settings, wait)
        about = {"what": what, "release": release, "by": by or "somebody", "since": __salt__["ckan_store.now"]()}
        handle.truncate(0)
        handle.write(json.dumps({**about, "pid": os.getpid()}))
        handle.flush()
        token = HELD.set((*HELD.get(), path))
        try:
            yield
        finally:
            HELD.reset(token)


def refuse(env: str, job: str = "") -> None:
    """
    Refuse where the environment is locked on the master by another than the given job.

    env
        The name of the environment.
    job
        The run that this belongs to.

    Raises ``CommandExecutionError`` that says who has locked it, since when and why.

    CLI Example: not for the command line; use ``ckan.lock_status`` of the runners.
    """
    lock = __salt__["ckan_settings.fleet"]()["lock"]
    if (lock and lock["job"] != job) or not job:
        # What the minion remembers may be over, or may have begun since.
        __salt__["ckan_settings.refresh"]()
        lock = __salt__["ckan_settings.fleet"]()["lock"]
    if lock and lock["job"] != job:
        why = f": {lock['reason']}" if lock.get("reason") else ""
        raise CommandExecutionError(
            f"{env} is locked by {lock['by']} since {lock['since']} ({lock['kind']}{why}); wait, or type on the "
            f"master: salt-run ckan.unlock {env}"
        )


def busy(settings: dict) -> str:
    """
    Say who is at work on this host, ``''`` for nobody or this very job.

    settings
        The settings.

    CLI Example: not for the command line; ``ckan_release.plan`` says it.
    """
    path = _file(settings)
    if path in HELD.get() or not os.path.exists(path):
        return ""
    with open(path, encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _sentence(handle)
    return ""


def _take(handle, settings: dict, wait: float) -> None:
    # Somebody who only looks (``busy``) holds it for a moment, too.
    deadline = time.monotonic() + max(wait, 0.5)
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise CommandExecutionError(_sentence(handle)) from None
        time.sleep(0.2)


def _sentence(handle) -> str:
    handle.seek(0)
    try:
        about = json.loads(handle.read())
    except ValueError:
        return "another deploy begins on this host in this moment; wait for it"  # between its lock and its note
    release = f" of {about['release']}" if about["release"] else ""
    return (
        f"{about['by']} is at work on this host since {about['since']} ({about['what']}{release}, process "
        f"{about['pid']}); wait for it"
    )


def _file(settings: dict) -> str:
    return os.path.join(settings["paths"]["shared"], "lock")
