"""A release on this host: its directory, its manifest, and what can be done with it."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.manifest import Manifest
from ckan_deploy.releases.store import Releases


@frozen
class Release:
    """
    A release as it was when it was looked at. What changes it returns it anew.

    store
        The releases of the site.
    manifest
        What it is, and what happened to it.
    """

    store: Releases
    manifest: Manifest

    @property
    def id(self) -> str:
        """Its id, a UTC stamp."""
        return self.manifest.id

    @property
    def state(self) -> str:
        """Its state, such as ``checked`` or ``live``."""
        return self.manifest.state

    @property
    def directory(self) -> str:
        """Its directory: a complete virtualenv, with its ini."""
        return self.store.directory(self.id)

    @property
    def is_current(self) -> bool:
        """Whether the link ``current`` names it now."""
        return self.store.current() == self.id

    def expect(self, *states: str) -> None:
        """
        Refuse a release that is in none of the states.

        states
            The states.

        Raises ``FormulaError``.
        """
        if self.state not in states:
            raise FormulaError(f"release {self.id} is {self.state}, not {' or '.join(states)}; see ckan_release.list.")

    def become(self, state: str, by: str = "", reason: str = "", **changes: Any) -> Release:
        """
        Move it to another state, and note when, by whom and why.

        state, by, reason, changes
            As for ``Manifest.became``.

        Raises ``FormulaError`` when it is not in a state that the new one may follow.
        """
        return Release(self.store, self.store.set_state(self.id, state, by, reason, **changes))

    def note(self, by: str = "", **changes: Any) -> Release:
        """
        Change fields of its manifest; its state stays.

        by
            Who asked for it.
        changes
            The fields.
        """
        return self.become(self.state, by, **changes)

    def remove(self) -> None:
        """Remove it. Raises ``FormulaError`` where it is current."""
        self.store.remove(self.id)
