"""A hardened host: what the minion's umask is makes no difference to a release, and to what stands beside it."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from functional.steps import deployed

pytestmark = pytest.mark.slow
NOTES = ("lock", "deploy.log")


def modes(host) -> dict[str, str]:
    """The modes of all that stands under the home and the data of a site; ids and hashes are left out of the names."""
    found = {}
    for top in (host.home, host.root / "var/lib/ckan", host.root / "etc"):
        for folder, folders, files in os.walk(top):
            for name in [".", *folders, *files]:
                path = Path(folder, name)
                shown = str(path.relative_to(host.root))
                for part in path.relative_to(host.root).parts:
                    if part.startswith("20") and part.endswith("Z"):
                        shown = shown.replace(part, "RELEASE")
                # The caches of uv have random names and modes of their own; root alone reads its notes.
                if "/packages/" not in shown and "/.git/" not in shown and name not in NOTES and not path.is_symlink():
                    found[shown] = f"{stat.S_IMODE(path.stat().st_mode):04o} {path.owner()}"
    return found


@pytest.mark.parametrize("mask", [0o027, 0o077])
def test_f12_a_release_is_the_same_whatever_the_umask_is(host, mycity, own_umask, mask):
    found = {}
    for umask in (mask, 0o022):
        own_umask(umask)
        release = deployed(host)
        assert host.python(release, "import ckanext.mycity") == ""
        found[umask] = modes(host)
        # The next one makes all of it anew.
        shutil.rmtree(host.home)
        shutil.rmtree(host.root / "etc", ignore_errors=True)
    different = {
        name: (found[mask].get(name), mode) for name, mode in found[0o022].items() if found[mask].get(name) != mode
    }
    assert different == {} and found[mask].keys() == found[0o022].keys()


@pytest.fixture
def own_umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)
