"""Several hosts need one storage: a mark that one host leaves there is what the others read."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckan_deploy.errors import FormulaError
from ckan_deploy.fleet import storage as fleet
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import storage
from fakes import fake_site
from parts.process import sandbox

RELEASE = "20260101000001Z"
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="CKAN's user writes there")


@pytest.fixture
def disk() -> Iterator[Path]:
    """What is shared: a directory of CKAN's user."""
    path = sandbox("ckan-u-")
    shutil.chown(path, "www-data", "www-data")
    yield path
    shutil.rmtree(path)


def site(place: Path | str, host: str, kind: str = "shared", **more: Any) -> Site:
    made = fake_site("/nowhere", config={"ckan.storage_path": str(place)}, storage={"kind": kind}, **more)
    made.host.id = host  # type: ignore[misc]
    return made


def seen(*sites: Site) -> dict[str, dict[str, Any]]:
    """What the hosts of a plan say: each leaves a mark, then the others read that of the first."""
    told = {one.host.id: storage.seen(one, RELEASE) for one in sites}
    first = next(iter(told))
    return {
        one.host.id: told[one.host.id] if one.host.id == first else storage.seen(one, RELEASE, of=first)
        for one in sites
    }


def test_f15_hosts_that_share_their_storage_see_the_mark_of_the_first(disk: Path) -> None:
    told = seen(site(disk, "web1"), site(disk, "web2"))
    assert [one["mark"] for one in told.values()] == ["web1", "web1"]
    assert fleet.warnings(told) == []
    # Planned once more, and that of a plan long ago goes.
    old = disk / ".ckan-shared-20250101000001Z-web1"
    old.write_text("web1")
    os.utime(old, (1, 1))
    assert fleet.warnings(seen(site(disk, "web1"), site(disk, "web2"))) == []
    assert sorted((path.name, path.owner()) for path in disk.iterdir()) == [
        (f".ckan-shared-{RELEASE}-{host}", "www-data") for host in ("web1", "web2")
    ]


def test_a_host_that_does_not_see_what_another_writes_is_named(disk: Path, tmp_path: Path) -> None:
    other = sandbox("ckan-u-")
    try:
        with pytest.raises(FormulaError) as refused:
            fleet.warnings(seen(site(disk, "web1"), site(other, "web2"), site(disk, "web3")))
    finally:
        shutil.rmtree(other)
    assert str(refused.value) == (
        f"web2 failed at plan: {other} (ckan.storage_path) does not show what web1 writes there (No such file or "
        "directory), while ckan:storage:kind is shared; mount it and give it to CKAN's user, or correct the setting"
    )


def test_a_mark_of_another_host_in_its_place_is_not_taken_for_it(disk: Path) -> None:
    told = seen(site(disk, "web1"), site(disk, "web2"))
    (disk / f".ckan-shared-{RELEASE}-web1").write_text("web9")
    told["web2"] = storage.seen(site(disk, "web2"), RELEASE, of="web1")
    with pytest.raises(FormulaError, match=r"web2 failed at plan: .* \(there is another file\)"):
        fleet.warnings(told)


def test_a_storage_that_ckan_cannot_write_to_is_named_once(disk: Path) -> None:
    shutil.chown(disk, "root")
    with pytest.raises(FormulaError) as refused:
        fleet.warnings(seen(site(disk, "web1"), site(disk, "web2")))
    assert str(refused.value).startswith(f"web1 failed at plan: {disk} (ckan.storage_path) cannot be written to (")
    assert "Permission denied" in str(refused.value) and "web2" not in str(refused.value)


def test_a_link_in_place_of_the_mark_is_not_written_through(disk: Path) -> None:
    mine = disk / "upload"
    mine.write_text("an upload")
    subprocess.run(["chown", "-R", "www-data:", str(disk)], check=True)
    (disk / f".ckan-shared-{RELEASE}-web1").symlink_to(mine)
    assert storage.seen(site(disk, "web1"), RELEASE)["mark"] == "web1"
    assert mine.read_text() == "an upload"


def test_several_hosts_with_a_storage_each_are_warned_of() -> None:
    told = seen(site("/data", "web1", "local"), site("/data", "web2", "local"))
    assert fleet.warnings(told) == [
        "each of web1, web2 has uploads of its own, which visitors of the others do not find (ckan:storage:kind is "
        "local): share /data among them and set it to shared, or to elsewhere where an extension keeps uploads"
    ]
    assert fleet.warnings(seen(site("/data", "web1", "local"))) == []
    away = seen(site("/data", "web1", "elsewhere"), site("/data", "web2", "elsewhere"))
    assert fleet.warnings(away) == []
    # One that runs jobs only has no visitors.
    worker = site("/data", "jobs1", "local", web={"server": "none", "app": "none"})
    assert fleet.warnings(seen(site("/data", "web1", "local"), worker)) == []


def test_hosts_with_different_settings_are_warned_of(disk: Path) -> None:
    told = seen(site(disk, "web1"), site(disk, "web2", "local"))
    assert fleet.warnings(told) == [
        "ckan:storage:kind is shared on web1, local on web2: a visitor finds an upload on some hosts only; make it one "
        "on all"
    ]
