"""Hosts with the version before take an update by a sync alone, and go back to a release of that version."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from daemon.conftest import Site
from parts.fleet import FORMULA, REPO

pytestmark = [pytest.mark.daemon, pytest.mark.long]

# Version 1.0.0: another one with each version, as docs/releasing.md says.
BEFORE = "4a2aa0da"


def clear(file_roots: Path) -> None:
    """Take the formula out of the file server: the next version may lack a file."""
    for name in FORMULA:
        shutil.rmtree(file_roots / name)


def publish(file_roots: Path, commit: str) -> None:
    """Put the formula into the file server as a commit has it."""
    archive = subprocess.run(["git", "-C", REPO, "archive", commit, *FORMULA], capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", file_roots], input=archive, check=True)


def test_hosts_with_the_version_before_take_the_update_by_a_sync_and_go_back_to_their_old_release(stub_base):
    with Site(stub_base) as site:
        site.fleet.synced = False
        clear(site.fleet.file_roots)
        publish(site.fleet.file_roots, BEFORE)
        site.set_up()
        old = site.good_deploy("by the version before")
        clear(site.fleet.file_roots)
        site.fleet.publish_formula()
        # Salt keeps the list of files for 20 seconds.
        assert site.fleet.run("salt-run", "fileserver.clear_file_list_cache").returncode == 0
        site.fleet.sync()
        code, status = site.status()
        assert code == 0 and {host["linked"] for host in status["hosts"].values()} == {old}, status
        new = site.good_deploy("by this version")
        assert site.linked() == [new] * 2 and set(site.served()) == {"by this version"}
        done = site.deploy("rollback")
        assert done["code"] == 0, done["text"]
        assert site.linked() == [old] * 2 and set(site.served()) == {"by the version before"}
        done = site.highstate()
        assert done["code"] == 0 and site.linked() == [old] * 2, done["text"]
        assert site.deploy(force=True)["code"] == 0
        assert set(site.served()) == {"by this version"}
