"""A hardened host: what the minion's umask is makes no difference to a release, and to what stands beside it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from pathlib import Path

import pytest

from functional.steps import deployed, extension
from stub import repos
from stub.wheels import make_extension, make_wheel

pytestmark = pytest.mark.slow
# Notes of times, inodes, processes, and who is at work.
NOTES = re.compile(
    r"(lock|deploy\.log|release\.json|\.ckan-ahead\.json|[0-9a-f]{16}([0-9a-f]{48})?\.json|uv_cache\.json|\.reserve)"
)
# The installer's own, with names by chance, and git's.
FOREIGN = re.compile(r"/(packages|\.git|mirrors)/")
STAMP = re.compile(rb"20\d{12}Z")


def picture(host) -> dict[str, str]:
    """Mode, owner and content of all that stands under the home, the data and the configuration of a site."""
    found = {}
    for top in (host.home, host.root / "var/lib/ckan", host.root / "etc"):
        for folder, folders, files in os.walk(top):
            for name in [".", *folders, *files]:
                path = Path(folder, name)
                shown = STAMP.sub(b"RELEASE", str(path.relative_to(host.root)).encode()).decode()
                if FOREIGN.search(f"{shown}/") or path.is_symlink():
                    continue
                about = path.lstat()
                found[shown] = f"{stat.S_IMODE(about.st_mode):04o} {path.owner()}"
                if stat.S_ISREG(about.st_mode) and not NOTES.fullmatch(name):
                    found[shown] += f" {content(path)}"
    return found


def content(path: Path) -> str:
    data = STAMP.sub(b"RELEASE", path.read_bytes())
    if path.suffix == ".pyc":
        data = data[:8] + data[12:]  # when its module was written
    if path.name == "RECORD":
        data = re.sub(rb"[^\n]*/uv_cache\.json,[^\n]*\n", b"", data)
    return hashlib.sha256(data).hexdigest()[:12]


@pytest.mark.parametrize("installer", ["uv", "pip"])
def test_f12_a_release_is_the_same_whatever_the_umask_is(host, origins, shelf, own_umask, installer):
    make_wheel(shelf, "shared-lib", "1.0")
    make_extension(shelf, "shelved", "from the index")
    host.pillar["installer"]["kind"] = installer
    host.pillar["extensions"] = {"ckanext-shelved": {"version": "1.0"}}
    if installer == "uv":  # which brings what this one is built with
        repo = repos.make_repo(origins, "mycity", "Hello", requirements=["shared-lib"], backend="uv_build")
        host.pillar["extensions"]["ckanext-mycity"] = extension(repo)
    host.pillar["plugins"] = [name.removeprefix("ckanext-") for name in host.pillar["extensions"]]
    found = {}
    for umask in (0o022, 0o027, 0o077):
        own_umask(umask)
        release = deployed(host)
        assert host.python(release, "import ckanext.shelved.plugin") == ""
        found[umask] = picture(host)
        # The next one makes all of it anew.
        shutil.rmtree(host.home)
        shutil.rmtree(host.root / "etc", ignore_errors=True)
        shutil.rmtree(host.root / "var/lib/ckan/default/webassets", ignore_errors=True)
    assert len(found[0o022]) > 100
    for umask in (0o027, 0o077):
        usual, other = found[0o022], found[umask]
        names = sorted(usual.keys() | other.keys())
        assert {name: (usual.get(name), other.get(name)) for name in names if usual.get(name) != other.get(name)} == {}


@pytest.fixture
def own_umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)
