"""What releases share: an edit in one of them is not in another, or it is said, and can be taken back."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError

from fakes import REPO
from functional.steps import deployed, extension
from parts.base import uv_path
from stub import repos
from stub.wheels import make_wheel

pytestmark = pytest.mark.slow

FILE = "lib/python3.11/site-packages/ckan/__init__.py"
FIX = "\nHOTFIX = True\n"


def edit(release: Path, file: str = FILE) -> None:
    """As an editor does that writes in place."""
    with open(release / file, "a", encoding="utf-8") as handle:
        handle.write(FIX)


def has_fix(*places: Path) -> list[bool]:
    return ["HOTFIX" in (place / FILE).read_text() for place in places]


@pytest.fixture
def two(host, mycity, own_base, shelf):
    """A host with two releases that share the files of its base; the package index has CKAN's wheel."""
    command = [uv_path(), "build", "--quiet", "--wheel", "--offline", str(REPO / "test/stub/ckan"), "-o", str(shelf)]
    subprocess.run(command, check=True, capture_output=True)
    host.pillar["installer"]["offline"] = True
    host.pillar["link"] = "hard"
    names = [deployed(host)]
    repos.commit_change(mycity, "Hello two")
    names.append(deployed(host))
    return [host.home / "releases" / name for name in names]


def test_f07_a_hotfix_in_a_release_is_told_and_taken_back(host, two, own_base):
    first, live = two
    edit(live)
    # All of them have it, since they share the file.
    assert has_fix(own_base, first, live) == [True, True, True]
    told = host.status()["changed"]
    assert FILE in told and "(ckan 2.12.0)" in told and first.name in told and live.name in told
    with pytest.raises(CommandExecutionError, match="ckan_release.repair") as refused:
        host.plan()
    assert told in str(refused.value)
    with pytest.raises(CommandExecutionError, match="nothing was touched"):
        host.deploy()
    done = host.repair()
    assert (done["repaired"], done["kept"]) == ([FILE], live.name)
    # What is served keeps it, until it goes.
    assert has_fix(own_base, first, live) == [False, False, True]
    assert "changed" not in host.status()
    third = host.home / "releases" / deployed(host)
    assert has_fix(third) == [False]
    assert host.repair()["repaired"] == []


def test_f07_a_change_that_is_wanted_is_kept_by_accept(host, two, own_base):
    edit(two[1])
    done = host.repair(accept=True)
    assert done["accepted"] == [FILE]
    assert "changed" not in host.status()
    assert has_fix(host.home / "releases" / deployed(host), own_base) == [True, True]


def test_f07_with_copies_a_hotfix_stays_where_it_was_made(host, mycity, own_base):
    host.pillar["link"] = "copy"
    names = [deployed(host), deployed(host)]
    first, live = (host.home / "releases" / name for name in names)
    edit(live)
    assert has_fix(own_base, first, live) == [False, False, True]
    assert "changed" not in host.status()
    host.plan()


def test_f07_a_package_of_the_index_is_brought_back_from_there(host, origins, own_base, shelf):
    """Its hotfix is neither in the installer's cache nor in the next release."""
    make_wheel(shelf, "shared-lib", "1.0")
    repo = repos.make_repo(origins, "mycity", "one", requirements=["shared-lib"], backend="uv_build")
    host.pillar["extensions"] = {"ckanext-mycity": extension(repo)}
    host.pillar["link"] = "hard"
    release = host.home / "releases" / deployed(host)
    lib = "lib/python3.11/site-packages/shared_lib.py"
    edit(release, lib)
    repos.commit_change(repo, "two")
    if "changed" in host.status():
        assert host.repair()["repaired"] == [lib]
    again = host.home / "releases" / deployed(host)
    assert "HOTFIX" not in (again / lib).read_text() and "HOTFIX" in (release / lib).read_text()


def test_f07_verify_says_what_was_changed_meanwhile(host, mycity, own_base):
    host.pillar["link"] = "hard"
    host.pillar["hooks"] = [
        {"stage": "activate", "when": "after", "function": "cmd.shell", "args": [f"echo >> {own_base}/{FILE}"]}
    ]
    done = host.deploy()
    assert any(FILE in said and "ckan_release.repair" in said for said in done["warnings"])
