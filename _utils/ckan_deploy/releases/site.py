"""The site that a call is about: made once by a thin module, and handed down."""

from __future__ import annotations

import os
from typing import Any

from attrs import frozen

from ckan_deploy.errors import FormulaError
from ckan_deploy.host import Host
from ckan_deploy.releases.log import Log
from ckan_deploy.releases.release import Release
from ckan_deploy.releases.store import Releases
from ckan_deploy.settings.environment import Environment
from ckan_deploy.settings.model import Paths, Settings
from ckan_deploy.settings.resolve import resolve


@frozen
class Site:
    """The portal on this host: its settings, and Salt's minion behind it."""

    settings: Settings
    host: Host

    @classmethod
    def of(cls, host: Host, overrides: dict[str, Any] | None = None, fresh: bool = False) -> Site:
        """
        Read the site from the pillar of a host.

        host
            The host.
        overrides
            What differs from the pillar for one deploy: ``{"extensions": {name: {"ref": ...}}}``.
        fresh
            Take the pillar anew from the master first.

        Raises ``FormulaError`` with every problem of the settings, a line each.
        """
        if fresh:
            host.refresh_pillar()
        try:
            return cls(_settings(host, overrides), host)
        except FormulaError:
            # What the minion remembers may be from before the correction.
            if fresh or not host.refresh_pillar():
                raise
            return cls(_settings(host, overrides), host)

    @property
    def paths(self) -> Paths:
        """The settings ``ckan:paths``."""
        return self.settings.paths

    @property
    def builder(self) -> str:
        """The host that builds for this one and others, as far as the settings name it; '' where this one builds."""
        about = self.settings.build
        return about.host if about.ship and about.host != self.host.id else ""

    @property
    def home(self) -> str:
        """The home of the user that runs CKAN: for what libraries want to keep there."""
        return os.path.join(self.paths.data, "home")

    @property
    def releases(self) -> Releases:
        """The releases on this host."""
        return Releases(self.paths.releases, self.paths.current)

    def release(self, release: str) -> Release:
        """
        Return a release on this host.

        release
            Its id.

        Raises ``FormulaError`` when there is no such release here, ``InvalidArgument`` for what is no id.
        """
        return Release(self.releases, self.releases.read(release))

    @property
    def log(self) -> Log:
        """The deploy log of this host."""
        return Log(self.paths.shared)

    @property
    def environment(self) -> Environment:
        """What the master says of the environment, as far as the pillar is known now."""
        return Environment.of(self.host.pillar)


def _settings(host: Host, overrides: dict[str, Any] | None) -> Settings:
    errors = host.pillar.get("_errors")
    if errors:
        each = "; ".join(dict.fromkeys(map(str, errors)))
        # Salt tells a minion no more: what is in the pillar of others is none of its business.
        raise FormulaError(
            f"the pillar failed to render: {each.rstrip('.')}; file and line are told by: salt-run ckan.pending ENV, "
            "with the name of the environment"
        )
    return resolve(host.pillar.get("ckan"), overrides)
