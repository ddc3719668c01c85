"""
The end of app servers: each finishes its requests first, or is kept for a while as the standby of the release before.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection
from typing import NamedTuple

import psutil

from ckan_deploy.releases.ids import ID_PATTERN
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import answers, drains, uwsgi
from ckan_deploy.system import supervisor
from ckan_deploy.system.unix_http import UnixConnection

POLL_SECONDS = 0.05
# After the switch no new connection comes to the old server; the last ones get this long to come.
LINGER_SECONDS = 1.0
# What supervisor needs to kill a server that takes longer than it may.
KILL_SECONDS = 10


class Drained(NamedTuple):
    """The releases whose app servers have ended, and those whose are still at requests."""

    stopped: list[str]
    draining: list[str]


def stop(site: Site, path: str, drain: bool = True) -> bool:
    """
    Stop the app server of a release: requests under way are finished first, for ``web:drain_timeout`` seconds at most.

    site
        The site.
    path
        The directory of the release.
    drain
        Wait first until those who stand in line have been let in. A server that never had visitors need not, and is
        ended at once.

    Returns True when one was running.
    """
    if not os.path.exists(uwsgi.program_file(site, path)):
        return False
    if drain:
        _let_in(site, [path])
    os.unlink(uwsgi.program_file(site, path))
    if not drain:
        # Told to finish its requests while it still loads CKAN, uWSGI never ends; and after that it minds no signal.
        conf, program = site.settings.web.supervisor_conf, _program(site, path)
        with contextlib.suppress(supervisor.NoSupervisor):
            supervisor.begin_stop(conf, program)
            supervisor.signal(conf, program, "KILL")
    wait(site, path)
    return True


def stop_others(site: Site, path: str, standby: str = "", seconds: float | None = None) -> Drained:
    """
    Stop the app servers of all releases of this site but one: all at once, each when its requests are finished.

    site
        The site.
    path
        The directory of the release that stays, ``""`` for none.
    standby
        A release whose server stays, too.
    seconds
        How long their end is waited for, once all who stood in line have been let in; by default for as long as it
        takes. Supervisor has been told to stop the others, and ends them after ``web:drain_timeout``.
    """
    names = [name for name in uwsgi.releases(site) if name not in (os.path.basename(path), standby)]
    places = {name: os.path.join(site.paths.releases, name) for name in names}
    _let_in(site, list(places.values()))
    for name, place in places.items():
        os.unlink(uwsgi.program_file(site, place))
        with contextlib.suppress(supervisor.NoSupervisor):
            supervisor.begin_stop(site.settings.web.supervisor_conf, uwsgi.program(site, name))
    drains.told(site, names, os.path.basename(path))
    # Also those that were still at it when a deploy before has ended.
    left = {**places, **{name: os.path.join(site.paths.releases, name) for name in _told(site)}}
    deadline = time.monotonic() + (seconds if seconds is not None else site.settings.web.drain_timeout + KILL_SECONDS)
    while left:
        at_it = under_way(site)
        for name in [name for name in left if name not in at_it]:
            wait(site, left.pop(name))
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS if left else 0)
    return Drained([name for name in names if name not in left], sorted(left))


def under_way(site: Site) -> list[str]:
    """
    Return the releases whose app servers were told to stop and still finish requests.

    site
        The site.
    """
    return [name for name, runs in _told(site).items() if runs]


def wait(site: Site, path: str) -> None:
    """
    Wait for the end of an app server that was told to stop, and let supervisor forget it.

    site
        The site.
    path
        The directory of the release.
    """
    conf, program = site.settings.web.supervisor_conf, _program(site, path)
    # A supervisor that was ended has taken its programs with it; of one that was killed they are left.
    with contextlib.suppress(supervisor.NoSupervisor):
        when = supervisor.ends(conf, program)
        supervisor.remove(conf, program)
        if when is not None:
            drains.ended(site, path, when or time.time())
    _end_left(site, path)


def keep_standby(site: Site, release: str) -> bool:
    """
    Arrange that the app server of the release before is stopped in ``web:standby`` seconds, and not now.

    site
        The site.
    release
        The id of that release, or ``""``.

    Returns whether it stays: not without a release, the setting, or a minion that runs all the time and so can stop it.
    """
    web = site.settings.web
    if not (release and web.standby and web.app == "uwsgi" and site.host.stays):
        return False
    return site.host.schedule(_standby_job(site), "ckan_release.end_standby", web.standby)


def forget_standby(site: Site) -> None:
    """
    Take back what ``keep_standby`` arranged.

    site
        The site.
    """
    if site.settings.web.standby and site.host.stays:
        site.host.unschedule(_standby_job(site))


def _program(site: Site, path: str) -> str:
    return uwsgi.program(site, os.path.basename(path))


def _told(site: Site) -> dict[str, bool]:
    """The releases whose app servers were told to stop, and that supervisor still knows: whether they run."""
    kept, prefix = uwsgi.releases(site), uwsgi.program(site, "")
    try:
        known = supervisor.processes(site.settings.web.supervisor_conf)
    except supervisor.NoSupervisor:
        return {}
    names = {group: group.removeprefix(prefix) for group in known if group.startswith(prefix)}
    return {
        name: any(process.pid for process in known[group])
        for group, name in sorted(names.items())
        if ID_PATTERN.fullmatch(name) and name not in kept
    }


def _let_in(site: Site, paths: Collection[str]) -> None:
    """
    Wait until the servers of releases that visitors are not sent to any more have taken all who stand in line at their
    sockets: a server that is told to end leaves the others standing. For ``web:drain_timeout`` seconds at most.
    """
    if not paths:
        return
    time.sleep(LINGER_SECONDS)
    deadline = time.monotonic() + site.settings.web.drain_timeout
    for path in paths:
        while (left := deadline - time.monotonic()) > 0 and not _came_last(site, path, left):
            time.sleep(POLL_SECONDS)


def _came_last(site: Site, path: str, seconds: float) -> bool:
    """Whether we were let in, and so all who came before us: a line has an order. False where it is full."""
    connection = UnixConnection(answers.socket_of(path), seconds)
    try:
        connection.request("GET", site.settings.web.health_path, headers=answers.headers(site))
        # The first byte tells; what else comes is nobody's business.
        connection.sock.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True  # nobody is there, or nobody is let in
    finally:
        connection.close()
    return True


def _end_left(site: Site, path: str) -> None:
    """End what still listens for a release that supervisor knows nothing of: nobody else would."""
    pid = answers.pid(path)
    if not pid:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        left = psutil.Process(pid)
        # The socket is CKAN's user's, and may be a link to anybody's.
        if left.username() != site.settings.user:
            return
        left.terminate()
        _, alive = psutil.wait_procs([left], timeout=site.settings.web.drain_timeout + 5)
        for process in [*left.children(recursive=True), left] if alive else []:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _standby_job(site: Site) -> str:
    return f"ckan-standby-{site.settings.site}"
