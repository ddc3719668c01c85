"""The release that an environment is to be on: noted when a run has verified it, or found on all hosts."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ckan_deploy.fleet import hosts
from ckan_deploy.fleet.record import Record


def remember(record: Record, current: Mapping[str, str], down: Collection[str], job: str = "") -> str:
    """
    Note the release that all hosts of an environment are on as the wanted one, where no run or another one is noted.

    record
        What the master keeps of the environment.
    current
        The current release of each host.
    down
        Hosts that are not among them: nothing is noted then.
    job
        The run that asks: while another one is under way, or was left where it died, nothing is noted.

    Returns the release that is wanted, ``''`` for none.
    """
    known = str(record.wanted().get("release", ""))
    release, lock = next(iter(current.values()), ""), record.lock()
    if lock and not lock.by_hand and lock.job != job:
        return known
    if down or not release or len(set(current.values())) != 1 or release == known:
        return known
    host = sorted(current)[0]
    told = hosts.ask(record.master, [host], "ckan_release.contents", {"release": release})
    if told.failures:
        return known
    record.want(release, told.results[host], by="found on all hosts", kind="found", seconds={})
    return release


def last(record: Record) -> str:
    """
    Say how long the last deploy took, as far as the master knows.

    record
        What the master keeps of the environment.
    """
    found = record.wanted()
    seconds = found.get("seconds") or {}
    if not seconds:
        return "no orchestration has deployed yet"
    each = ", ".join(f"{name} {s} s" for name, s in seconds.items())
    took = round(sum(seconds.values()), 1)
    return f"{found['kind']} of {found['release']} by {found['by']}; its stages took {took} s ({each})"
