"""A plain stand-in for Salt's minion behind the package (`ckan_deploy.host.Host`), and a site on it."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ckan_deploy.releases.site import Site

REPO = Path(__file__).resolve().parents[1]


class FakeHost:
    """A minion without Salt: `file_roots` are directories that stand for the file server."""

    def __init__(self, pillar: dict[str, Any] | None = None, file_roots: tuple[Path, ...] = ()) -> None:
        self.id, self.test, self.stays = "web1", False, False
        self.pillar: dict[str, Any] = pillar or {}
        self.file_roots = [*file_roots, REPO]
        # Where the master keeps files of minions, None for one that takes none.
        self.takes: Path | None = None
        # What hooks may name.
        self.functions: dict[str, Callable[..., Any]] = {}
        self.scheduled: dict[str, tuple[str, int]] = {}
        # What the master would say of the pillar now, where it stays with a host (`stays`).
        self.rendered: dict[str, Any] | None = None

    def refresh_pillar(self) -> bool:
        if not self.stays or self.rendered is None:
            return False
        self.pillar = copy.deepcopy(self.rendered)
        return True

    def file(self, source: str) -> str:
        name = source.removeprefix("salt://")
        return next((str(root / name) for root in self.file_roots if (root / name).is_file()), "")

    def download(self, source: str, target: str) -> str:
        path = self.file(source)
        return str(shutil.copyfile(path, target)) if path else ""

    def push(self, path: str, name: str) -> bool:
        """Put a file where another host's `salt://MINION/...` finds it."""
        if not self.takes:
            return False
        target = self.takes / self.id / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        return True

    def has(self, function: str) -> bool:
        return function in self.functions

    def call(self, function: str, *args: Any, **kwargs: Any) -> tuple[Any, int]:
        return self.functions[function](*args, **kwargs), 0

    def schedule(self, name: str, function: str, seconds: int) -> bool:
        self.scheduled[name] = (function, seconds)
        return True

    def unschedule(self, name: str) -> None:
        self.scheduled.pop(name, None)


def least_pillar(root: Path | str = "", **changes: Any) -> dict[str, Any]:
    """The least that a host needs, with changes; `web__listen` stands for web:listen."""
    made: dict[str, Any] = {
        "env": "production",
        "root": str(root),
        "site_url": "https://data.example.org",
        "database": {"password": "database-secret"},
        "secrets": {"session": "session-secret", "api_token": "token-secret"},
    }
    for name, value in changes.items():
        group, _, leaf = name.rpartition("__")
        (made.setdefault(group, {}) if group else made)[leaf] = value
    return made


def fake_site(root: Path | str, file_roots: tuple[Path, ...] = (), **changes: Any) -> Site:
    """A site whose whole tree is under a directory; changes as for `least_pillar`."""
    return Site.of(FakeHost({"ckan": least_pillar(root, **changes)}, file_roots))
