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
    """
    Each part is read when it is asked for: what cannot be read of one does not stand in the way of the other.

    told
        What the pillar says under ``ckan_fleet``.
    """

    told: Mapping[str, Any]

    @classmethod
    def of(cls, pillar: Mapping[str, Any]) -> Environment:
        """
        Take it from the pillar of a host.

        pillar
            The whole pillar.
        """
        told = pillar.get("ckan_fleet")
        return cls(told if isinstance(told, Mapping) else {})

    @property
    def known(self) -> bool:
        """Whether the pillar includes the file."""
        return bool(self.told)

    @property
    def lock(self) -> Lock | None:
        """
        The deploy lock, None where there is none.

        Raises ``FormulaError`` for one that cannot be read: nobody is let in by it.
        """
        return _lock(self.told.get("lock"))

    @property
    def wanted(self) -> Wanted | None:
        """
        The release that the environment is on, None where that is not known.

        Raises ``FormulaError`` where it cannot be read.
        """
        return _wanted(self.told.get("wanted"))


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
