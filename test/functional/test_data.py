"""What outlives a release belongs to the user that runs CKAN after each stage that needs it: see test_shared_files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from functional.steps import deployed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave files of root's"),
]


def storage(host) -> Path:
    return host.root / "var/lib/ckan/default/storage"


def writable(folder: Path) -> bool:
    """Whether the user that runs CKAN can write there."""
    done = subprocess.run(["runuser", "-u", "www-data", "--", "touch", folder / "written"], capture_output=True)
    return done.returncode == 0


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


def test_an_owner_that_cannot_be_changed_is_a_warning_of_the_deploy(host):
    folder = storage(host) / "locked"
    folder.mkdir()
    subprocess.run(["chattr", "+i", folder], check=True)
    try:
        told = host.deploy()
    finally:
        subprocess.run(["chattr", "-i", folder], check=True)
    (said,) = [said for said in told["warnings"] if "storage/locked" in said]
    assert said.endswith("storage/locked is on a disk that lets root change no owners, and stays root's")
    assert told["current"] == host.current()
