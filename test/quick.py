"""
Deploys in a moment: everything is real but what takes long or needs a CKAN, the filling of a release, its boot check
and its migration. For what happens to releases when something fails.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckan_deploy.build import assembly, packages, resolution
from ckan_deploy.database import migration, probe
from ckan_deploy.deploy import deploy
from ckan_deploy.releases.manifest import Base, Resolution
from ckan_deploy.releases.site import Site
from fakes import FakeHost, least_pillar
from functional.steps import later_id

RESOLUTION = Resolution(Base("2.12.0", "3.11"), {})


class Quick:
    """A host without Salt and without CKAN. `site()` is the site as the pillar says now."""

    def __init__(self, root: Path, **pillar: Any) -> None:
        self.root = root
        about = {"build_user": "nobody", "web": {"server": "none", "app": "none"}, "manage": {}, **pillar}
        self.host = FakeHost({"ckan": least_pillar(root, **about)})
        base = root / "usr/lib/ckan/default/bin"
        base.mkdir(parents=True)
        (base / "python").touch()
        (root / "var/lib/ckan/default/storage").mkdir(parents=True)

    @property
    def pillar(self) -> dict[str, Any]:
        return self.host.pillar["ckan"]  # type: ignore[no-any-return]

    @property
    def home(self) -> Path:
        return self.root / "usr/lib/ckan"

    def site(self) -> Site:
        return Site.of(self.host)

    def releases(self) -> list[str]:
        """All that is in the directory of releases."""
        folder = self.home / "releases"
        return sorted(os.listdir(folder)) if folder.exists() else []

    def deploy(self, **options: Any) -> str:
        return str(self.deployed(**options)["current"])

    def deployed(self, **options: Any) -> dict[str, Any]:
        return deploy.deploy(self.site, **{"release": later_id(self), **options})

    def hook(self, stage: str, when: str, function: Any, **more: Any) -> None:
        """Have a function of Python run before or after a stage."""
        name = f"x.call{len(self.host.functions)}"
        self.host.functions[name] = lambda *args, **kwargs: function(*args, **kwargs)
        self.pillar.setdefault("hooks", []).append({"stage": stage, "when": when, "function": name, **more})


def make(monkeypatch: pytest.MonkeyPatch, **pillar: Any) -> Iterator[Quick]:
    """Make such a host for as long as a test takes."""

    def fill(site: Site, path: str, planned: Resolution) -> dict[str, Any]:
        for name in ("bin", "run"):
            os.makedirs(os.path.join(path, name), exist_ok=True)
        for name in ("bin/python", f"{site.settings.env}.ini"):
            Path(path, name).write_text("x")
        return {"resolution": planned, "plugins": (), "disk_mb": 1}

    checked = {"pending": {}, "schema": {}, "plugins": [], "datasets": 0, "warnings": [], "seconds": 0.0}
    monkeypatch.setattr(resolution, "resolve", lambda site, renew=False: RESOLUTION)
    monkeypatch.setattr(assembly, "fill", fill)
    monkeypatch.setattr(packages, "check", lambda *_, **__: None)
    monkeypatch.setattr(probe, "check", lambda *_: {**checked, "warnings": []})
    monkeypatch.setattr(migration, "run", lambda *_: {"migrated": False, "migration": {}, "warnings": []})
    root = Path(tempfile.mkdtemp(prefix="ckan-q-", dir="/tmp"))
    root.chmod(0o755)
    yield Quick(root, **pillar)
    shutil.rmtree(root, ignore_errors=True)
