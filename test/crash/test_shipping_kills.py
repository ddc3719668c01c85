"""
A host that is killed while it packs what it has built, or while it takes what another one has: nothing half-made is
used later, and the next attempt gives the same release.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from ckan_deploy.build import layers, resolution, shipping
from ckan_deploy.build.shipment import Shipment
from ckan_deploy.deploy import stages
from ckan_deploy.releases.manifest import Resolution
from ckan_deploy.releases.site import Site
from crash import kill
from fakes import REPO, fake_site
from functional.test_shipping_hosts import look
from parts.base import uv_path
from stub import repos

FIRST, SECOND = "20260101000001Z", "20260101000002Z"
# How many points of each are tried, where not all are.
POINTS = 10


@frozen
class Built:
    """What one host has built, with its archives, and the release as another host has made it of them."""

    place: Path
    site: Site
    resolution: Resolution
    shipment: Shipment
    tree: dict[str, object]


@pytest.fixture(scope="module")
def built() -> Iterator[Built]:
    place = Path(tempfile.mkdtemp(prefix="ckan-s-", dir="/tmp"))
    place.chmod(0o755)
    (place / "store").mkdir()
    stub_base = place / "base"
    for command in (
        [uv_path(), "venv", "-q", "-p", "/usr/bin/python3", str(stub_base)],
        [uv_path(), "pip", "install", "-q", "-p", str(stub_base / "bin/python"), str(REPO / "test/stub/ckan")],
    ):
        subprocess.run(command, check=True, capture_output=True)
    repo = repos.make_repo(place / "origins", "mycity", "one", backend="uv_build")
    site = host(place, "one", base=str(stub_base), uv=uv_path(), repo=repo)
    stages.build(site, FIRST, resolution.resolve(site))
    packed = stages.pack(site, FIRST)
    found = Built(place, site, Resolution.of(packed["contents"]), Shipment.of(packed["shipped"]), {})
    other = host(place, "whole", repo=repo)
    receive(found, other, FIRST)
    yield Built(place, site, found.resolution, found.shipment, tree(other, FIRST))
    shutil.rmtree(place, ignore_errors=True)


def host(
    place: Path, name: str, base: str = "/nowhere/base", uv: str = "/nowhere/uv", repo: Path | None = None
) -> Site:
    root = place / name
    storage = root / "var/lib/ckan/default/storage"
    storage.mkdir(parents=True)
    shutil.chown(storage, "www-data", "www-data")
    return fake_site(
        root, build_user="nobody", paths={"base": base}, installer={"uv": uv},
        web={"server": "none", "app": "none"}, build={"ship": True, "store": str(place / "store")},
        manage={"packages": False, "services": False, "user": False}, plugins=["mycity"],
        extensions={"ckanext-mycity": {"url": str(repo or place / "origins/mycity"), "ref": "main"}},
    )  # fmt: skip


def receive(built: Built, site: Site, release: str) -> Any:
    return stages.build(site, release, built.resolution, shipped=built.shipment).state


def tree(site: Site, release: str) -> dict[str, object]:
    path = Path(site.releases.directory(release))
    found = look(path, str(path))
    return {name: what for name, what in found.items() if name not in ("release.json", "production.ini")}


def points(calls: int) -> list[int]:
    if os.environ.get("CRASH_POINTS") == "all":
        return list(range(1, calls + 1))
    return [1 + calls * number // POINTS for number in range(POINTS)]


def test_a_host_that_is_killed_while_it_takes_a_release_takes_it_whole_afterwards(built: Built) -> None:
    counted = host(built.place, "count")
    calls = len(kill.run(lambda: receive(built, counted, FIRST)).calls)
    assert calls > 100
    for at in points(calls):
        site = host(built.place, f"at-{at}")
        assert kill.run(lambda site=site, at=at: receive(built, site, FIRST), at).killed
        shared = Path(site.paths.shared)
        # A layer that is taken for one is whole.
        whole = layers.keys(str(shared))
        stages.abort(site, FIRST)
        assert receive(built, site, SECOND) == "built", at
        assert whole in ([], layers.keys(str(shared)))
        assert tree(site, SECOND) == built.tree, at
        assert list((shared / "work").iterdir()) == [], at
        assert [path.name for path in Path(site.paths.releases).iterdir() if path.name.startswith("2026")] == [SECOND]
        shutil.rmtree(site.settings.root)


def test_a_host_that_is_killed_while_it_clones_ahead_takes_the_release_whole_afterwards(built: Built) -> None:
    site = host(built.place, "ahead")
    receive(built, site, FIRST)

    def ahead() -> None:
        stages.clone(site, SECOND, built.resolution, built.shipment.key)

    calls = len(kill.run(ahead).calls)
    stages.abort(site, SECOND)
    assert calls > 50
    for at in points(calls):
        assert kill.run(ahead, at).killed
        # The build of the same run goes on with a whole clone, and with no other.
        if shipping.begun(site.releases.directory(SECOND)):
            assert receive(built, site, SECOND) == "built", at
        stages.abort(site, SECOND)
        assert receive(built, site, SECOND) == "built", at
        assert tree(site, SECOND) == built.tree, at
        stages.abort(site, SECOND)
        assert list(Path(site.paths.shared, "work").iterdir()) == [], at
    shutil.rmtree(site.settings.root)


def test_a_host_that_is_killed_while_it_packs_packs_the_same_afterwards(built: Built) -> None:
    key = built.shipment.key
    notes = [Path(f"{built.site.paths.shared}/layers/{key}{suffix}") for suffix in (".tar.gz", ".json")]

    def again() -> None:
        for path in [*notes, *(built.place / "store").iterdir()]:
            path.unlink(missing_ok=True)

    again()
    calls = len(kill.run(lambda: stages.pack(built.site, FIRST)).calls)
    for at in points(calls):
        again()
        assert kill.run(lambda at=at: stages.pack(built.site, FIRST), at).killed
        assert Shipment.of(stages.pack(built.site, FIRST)["shipped"]) == built.shipment, at
        assert sorted(path.name for path in (built.place / "store").iterdir()) == sorted(
            [built.shipment.layer.name, built.shipment.release.name]
        )
        assert list(Path(built.site.paths.shared, "work").iterdir()) == []
