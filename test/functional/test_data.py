"""What outlives a release belongs to the user that runs CKAN, all the way down, and to nobody else's harm."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError

from functional.steps import deployed

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave files of root's")


def storage(host) -> Path:
    return host.root / "var/lib/ckan/default/storage"


def writable(folder: Path) -> bool:
    """Whether the user that runs CKAN can write there."""
    done = subprocess.run(["runuser", "-u", "www-data", "--", "touch", folder / "written"], capture_output=True)
    return done.returncode == 0


def test_a20_what_root_left_below_the_storage_is_ckans_before_the_switch_and_links_are_not_followed(host, tmp_path):
    deployed(host)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("root's")
    made = [storage(host) / "uploads/group", storage(host) / "resources/1a/2b", storage(host).parent / "sessions/a"]
    for folder in made:
        folder.mkdir(parents=True)
        (folder / "file").write_text("x")
    (made[0] / "out").symlink_to(outside)
    os.link(outside / "file", made[0] / "second-name")
    assert not any(writable(folder) for folder in made)
    deployed(host)
    assert all(writable(folder) and (folder / "file").owner() == "www-data" for folder in made)
    assert (outside.owner(), (outside / "file").owner()) == ("root", "root")
    assert (made[0] / "out").lstat().st_uid == made[0].stat().st_uid


def test_a20_what_a_set_up_command_made_as_root_is_put_right_by_a_rollback_too(host):
    first, _ = deployed(host), deployed(host)
    folder = storage(host) / "storage/uploads"
    folder.mkdir(parents=True)
    assert host.rollback()["current"] == first
    assert writable(folder) and writable(folder.parent)


def test_a20_uploads_outlive_deploys_rollback_and_prune(host):
    deployed(host)
    upload = storage(host) / "uploads/user/photo.jpg"
    upload.parent.mkdir(parents=True)
    upload.write_text("a photo")
    for _ in range(5):
        deployed(host)
    host.rollback()
    host.prune(keep=2)
    assert len(host.releases()) < 6
    assert upload.read_text() == "a photo"
    assert upload.owner() == "www-data"


def test_a_storage_on_another_disk_is_followed_once_and_an_option_of_ckan_counts(host, tmp_path):
    disk = tmp_path / "disk"
    (disk / "resources").mkdir(parents=True)
    tmp_path.chmod(0o755)
    link = host.root / "srv-storage"
    link.symlink_to(disk)
    host.pillar["config"] = {"ckan.storage_path": str(link), "stub.database": str(storage(host) / "stub.json")}
    deployed(host)
    assert ((disk / "resources").owner(), disk.owner()) == ("www-data", "www-data")


def test_an_owner_that_cannot_be_changed_is_named(host):
    folder = storage(host) / "locked"
    folder.mkdir()
    subprocess.run(["chattr", "+i", folder], check=True)
    try:
        with pytest.raises(CommandExecutionError, match=r"storage/locked cannot be given to www-data"):
            deployed(host)
    finally:
        subprocess.run(["chattr", "-i", folder], check=True)
    assert host.releases() == []
