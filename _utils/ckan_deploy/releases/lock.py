"""
Who may change something on this host now.

Two things keep others out: the *deploy lock* of the environment, which the master holds and the pillar shows, and the
*host lock*, a file under ``shared`` that the process at work holds open. The kernel frees that one with the process, so
it is never left over. Whoever takes it sweeps first what a process before has left that was killed.
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import fcntl
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from typing import Any, TextIO

from ckan_deploy.errors import FormulaError, sentence
from ckan_deploy.releases import reserve
from ckan_deploy.releases.ids import ID_PATTERN, now
from ckan_deploy.releases.site import Site
from ckan_deploy.sources import git
from ckan_deploy.system import arguments, files, places, safely

log = logging.getLogger(__name__)

# Somebody who only looks (``busy``) holds it for a moment, too.
SHORTEST_WAIT = 0.5  # seconds

# The locks that this job holds already: a deploy that runs its stages one after the other holds one for all.
HELD: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("ckan_lock_held", default=())


@contextlib.contextmanager
def held(
    site: Site, what: str, release: str = "", by: str = "", job: str = "", wait: float = 0, locked: bool = True
) -> Iterator[None]:
    """
    Hold the lock of this host for as long as the context lasts. What is inside of another one goes through.

    site
        The site.
    what, release, by
        What is done, for whoever is kept out.
    job
        The run of the master that this belongs to: its deploy lock is no obstacle.
    wait
        How long to wait for another process, in seconds.
    locked
        False where a deploy lock is no obstacle: what is repaired, not deployed.

    Raises ``InvalidArgument`` for a ``by`` or a ``job`` that is no text, ``FormulaError`` at once, or when the time is
    over, that names who is at work and since when; and where there can be no such file.
    """
    path, by, job = _file(site), arguments.text("by", by), arguments.text("job", job)
    if path in HELD.get():
        yield
        return
    if locked:
        refuse(site, job)
    with _file_of_lock(path) as handle:
        _take(handle, wait)
        _note(handle, {"what": what, "release": release, "by": by or "somebody", "since": now(), "pid": os.getpid()})
        token = HELD.set((*HELD.get(), path))
        try:
            _sweep(site)
            reserve.keep(site)
            yield
        finally:
            HELD.reset(token)


def refuse(site: Site, job: str = "") -> None:
    """
    Refuse where the environment is locked on the master by another than the given job.

    site
        The site.
    job
        The run that this belongs to.

    Raises ``FormulaError`` that says who has locked it, since when and why.
    """
    env, lock = site.settings.env, site.environment.lock
    if (lock and lock.job != job) or not job:
        # What the minion remembers may be over, or may have begun since.
        site.host.refresh_pillar()
        lock = site.environment.lock
    if lock and lock.job != job:
        why = f": {lock.reason}" if lock.reason else ""
        raise FormulaError(
            f"{env} is locked by {lock.by} since {lock.since} ({lock.kind}{why}); wait, or type on the "
            f"master: salt-run ckan.unlock {env}"
        )


def busy(site: Site) -> str:
    """
    Say who is at work on this host, '' for nobody or this very job.

    site
        The site.
    """
    path = _file(site)
    if path in HELD.get() or not os.path.exists(path):
        return ""
    with open(path, encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _sentence(handle)
    return ""


def _file_of_lock(path: str) -> TextIO:
    try:
        safely.ensure(os.path.dirname(path))
        # Kept after the end: a lock on a file that another one has removed would keep nobody out.
        with files.usual_modes():
            return open(path, "a+", encoding="utf-8", opener=lambda p, flags: os.open(p, flags, 0o644))
    except OSError as exc:
        raise FormulaError(problem(exc)) from exc


def problem(exc: OSError) -> str:
    """
    Say why a host cannot be locked.

    exc
        What opening the file of its lock raised.
    """
    if exc.errno == errno.EROFS:
        return f"this host cannot be locked: {sentence(exc)}"
    return f"this host cannot be locked ({exc.strerror}: {exc.filename}); correct that"


def _note(handle: TextIO, about: dict[str, Any]) -> None:
    """Say who holds it. On a full disk it is held all the same: a revert must not fail by that."""
    try:
        # Not through the buffer of the handle, which would try again at its end.
        os.ftruncate(handle.fileno(), 0)
        os.write(handle.fileno(), json.dumps(about).encode("utf-8"))
    except OSError as exc:
        log.warning("%s does not say who holds it: %s", handle.name, exc.strerror)


def _sweep(site: Site) -> None:
    """Remove what a process left that was killed. It held this lock, so nobody is at work on it."""
    # Keys first. A question to an origin needs no host lock: what is at work holds locks of its own.
    git.sweep(os.path.join(site.paths.shared, "keys"))
    places.sweep(site.paths.shared)
    drafts = [(site.paths.shared, re.compile(r".+\.tmp"))]
    # The names of two sites may begin alike.
    program = rf"ckan-{re.escape(site.settings.site)}-{ID_PATTERN.pattern}\.conf\.tmp"
    drafts.append((site.paths.supervisor_programs, re.compile(program)))
    for folder, pattern in drafts:
        for path in files.matching(folder, pattern):
            if os.path.isfile(path):
                files.try_unlink(path)
    for left in site.releases.sweep():
        log.warning("%s", left)


def _take(handle: TextIO, wait: float) -> None:
    deadline = time.monotonic() + max(wait, SHORTEST_WAIT)
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise FormulaError(_sentence(handle)) from None
        time.sleep(0.2)


def _sentence(handle: TextIO) -> str:
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


def _file(site: Site) -> str:
    return os.path.join(site.paths.shared, "lock")
