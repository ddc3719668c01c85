"""What the master says of an environment as a whole: ``pillar.example/ckan/fleet.sls``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from ckan_deploy.errors import FormulaError


@frozen
class Lock:
    """The deploy lock of an environment: who keeps others out, since when, why and for which job."""

    kind: str
    by: str
    since: str
    reason: str = ""
    job: str = ""


@frozen
class Wanted:
    """The release that an environment is on, what it holds, and what differed from the pillar for it."""

    release: str
    contents: Mapping[str, Any]
    extensions: Mapping[str, Any]


@frozen
class Environment:
    """``known`` is False where the pillar does not include the file."""

    known: bool = False
    lock: Lock | None = None
    wanted: Wanted | None = None

    @classmethod
    def of(cls, pillar: Mapping[str, Any]) -> Environment:
        """
        Read it from the pillar of a host.

        pillar
            The whole pillar.

        Raises ``FormulaError`` where the file says what cannot be: nobody is let in by a lock that cannot be read.
        """
        told = pillar.get("ckan_fleet")
        if not isinstance(told, Mapping) or not told:
            return cls()
        return cls(True, _lock(told.get("lock")), _wanted(told.get("wanted")))


def _lock(told: Any) -> Lock | None:
    if not told:
        return None
    if not isinstance(told, Mapping) or not all(told.get(name) for name in ("kind", "by", "since", "job")):
        raise _unreadable("lock")
    return Lock(**{name: str(told.get(name) or "") for name in ("kind", "by", "since", "reason", "job")})


def _wanted(told: Any) -> Wanted | None:
    if not told:
        return None
    if not isinstance(told, Mapping):
        raise _unreadable("wanted")
    release, contents, extensions = told.get("release"), told.get("contents"), told.get("extensions") or {}
    if not isinstance(release, str) or not isinstance(contents, Mapping) or not isinstance(extensions, Mapping):
        raise _unreadable("wanted")
    return Wanted(release, contents, extensions)


def _unreadable(name: str) -> FormulaError:
    return FormulaError(
        f"ckan_fleet:{name} in the pillar of this minion cannot be read; include ckan/fleet.sls as pillar.example "
        "does, and refresh the pillar."
    )
