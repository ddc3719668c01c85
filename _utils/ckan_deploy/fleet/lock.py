"""The deploy lock of an environment, for people: take it, free it, look who has it."""

from __future__ import annotations

from typing import Any

from ckan_deploy.errors import FormulaError
from ckan_deploy.fleet import hosts, revert
from ckan_deploy.fleet.master import Master
from ckan_deploy.fleet.record import Record


def take(master: Master, env: Any, reason: str) -> str:
    """
    Keep deploys and rollbacks of an environment out until it is freed: by orchestrations, and on each host.

    master
        The master.
    env
        The name of the environment.
    reason
        Why; shown to whoever is kept out.

    Returns a sentence. Raises ``FormulaError`` where somebody holds it, or there is no such environment.
    """
    hosts.targets(master, env)
    Record(master, env).take("lock", "by hand", reason)
    return f"{env} is locked; free it with: salt-run ckan.unlock {env}"


def free(master: Master, env: Any, force: bool = False) -> str:
    """
    Free the lock of an environment, whoever holds it. Where that is a run that died, its hosts are brought together
    first. The lock of a run that is still at work is kept: that run needs it for its revert.

    master
        The master.
    env
        The name of the environment.
    force
        Free it in any case, and touch no host.

    Returns a sentence. Raises ``FormulaError`` where it is kept, or there is no such environment.
    """
    record = _known(master, env)
    held = record.lock()
    if not held:
        return f"{env} is not locked"
    was = held.sentence()
    if force or held.by_hand:
        record.free()
        return f"freed: {was}"
    if not held.stale:
        raise FormulaError(f"{was} and is still at work; wait for it, or repeat with force=True")
    done = revert.recover(master, env)
    if not done["ok"]:
        raise FormulaError(f"{was} -- {done['comment']} -- then repeat, or free it all the same with force=True")
    return f"freed: {was} -- {done['comment']}"


def status(master: Master, env: Any) -> str:
    """
    Say who holds the lock of an environment, since when, why, and whether that run is still alive.

    master
        The master.
    env
        The name of the environment.

    Raises ``FormulaError`` where there is no such environment.
    """
    held = _known(master, env).lock()
    return held.sentence() if held else f"{env} is not locked"


def _known(master: Master, env: Any) -> Record:
    """What the master has a record of needs no look at the hosts."""
    record = Record(master, env)
    if not record.known:
        hosts.targets(master, env)
    return record
