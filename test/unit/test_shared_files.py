"""What outlives a release belongs to the user that runs CKAN, all the way down, and to nobody else's harm."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckan_deploy.serve import shared_files
from fakes import REPO, fake_site
from parts.process import sandbox

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave files of root's")


@pytest.fixture
def root() -> Iterator[Path]:
    """The root of a host that all users may enter: pytest's own directories are closed to them."""
    path = sandbox("ckan-u-")
    storage(path).mkdir(parents=True)
    yield path
    shutil.rmtree(path)


def storage(root: Path) -> Path:
    return root / "var/lib/ckan/default/storage"


def writable(folder: Path) -> bool:
    """Whether the user that runs CKAN can write there."""
    done = subprocess.run(["runuser", "-u", "www-data", "--", "touch", folder / "written"], capture_output=True)
    return done.returncode == 0


def test_a20_what_root_left_below_the_storage_is_ckans_before_the_switch_and_links_are_not_followed(root, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("root's")
    made = [storage(root) / "uploads/group", storage(root) / "resources/1a/2b", storage(root).parent / "sessions/a"]
    for folder in made:
        folder.mkdir(parents=True)
        (folder / "file").write_text("x")
    (made[0] / "out").symlink_to(outside)
    os.link(outside / "file", made[0] / "second-name")
    assert not any(writable(folder) for folder in made)
    shared_files.own(fake_site(root))
    assert all(writable(folder) and (folder / "file").owner() == "www-data" for folder in made)
    assert (outside.owner(), (outside / "file").owner()) == ("root", "root")
    assert (made[0] / "out").lstat().st_uid == made[0].stat().st_uid


def test_a_storage_on_another_disk_is_followed_once_and_an_option_of_ckan_counts(root, tmp_path):
    disk = tmp_path / "disk"
    (disk / "resources").mkdir(parents=True)
    link = root / "srv-storage"
    link.symlink_to(disk)
    shared_files.own(fake_site(root, config={"ckan.storage_path": str(link)}))
    assert ((disk / "resources").owner(), disk.owner()) == ("www-data", "www-data")


def test_an_owner_that_cannot_be_changed_is_named(root):
    folder = storage(root) / "locked"
    folder.mkdir()
    subprocess.run(["chattr", "+i", folder], check=True)
    try:
        (said,) = shared_files.own(fake_site(root))["warnings"]
        assert "storage/locked is on a disk that lets root change no owners, and stays root's" in said
    finally:
        subprocess.run(["chattr", "-i", folder], check=True)


# Root without what makes it more than any user: what an NFS server makes of it that takes root for nobody.
SQUASHED = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search,-chown,-fowner", "--"]
OWN = """
import sys
sys.path[:0] = [{repo!r} + "/_utils", {repo!r} + "/test"]
from ckan_deploy.serve import shared_files
from fakes import fake_site
print("\\n".join(shared_files.own(fake_site({root!r}))["warnings"]))
"""


@pytest.mark.parametrize("closed", ["resources/deep", ""])
def test_f15_a_storage_that_does_not_let_root_in_is_a_warning(root: Path, closed: str) -> None:
    shared_files.own(fake_site(root))
    folder = storage(root) / closed
    subprocess.run(["runuser", "-u", "www-data", "--", "mkdir", "-p", "-m", "700", str(folder)], check=True)
    folder.chmod(0o700)
    (storage(root) / "resources").mkdir(exist_ok=True)
    code = OWN.format(repo=str(REPO), root=str(root))
    done = subprocess.run([*SQUASHED, sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{folder} is on a disk that does not let root in, and stays as it is" in done.stdout.splitlines()
