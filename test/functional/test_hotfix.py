"""What releases share: an edit in one of them is not in another, or it is said, and can be taken back."""

from __future__ import annotations

import shutil
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


VENDOR = "src/ckanext-mycity/ckanext/mycity/public/vendor/lib.js"
PLUGIN = "src/ckanext-mycity/ckanext/mycity/plugin.py"


@pytest.fixture
def bulky(host, mycity):
    """Two releases of one commit that has a library of others in it."""
    host.pillar["link"] = "hard"
    vendor = mycity / VENDOR.removeprefix("src/ckanext-mycity/")
    vendor.parent.mkdir(parents=True)
    vendor.write_text("const lib = 1;\n")
    for name in ("README.md", "LICENSE", "ckanext/mycity/tests/test_plugin.py", "ckanext/mycity/templates/mail.txt"):
        file = mycity / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{name}\n")
    repos.git(mycity, "add", "-A")
    repos.commit_change(mycity, "Hello vendor")
    names = [deployed(host)]
    host.pillar["config"] = {"ckan.site_title": "Another title"}
    names.append(deployed(host))
    return [host.home / "releases" / name for name in names]


def shared(one: Path, two: Path) -> set[str]:
    """The files of checkouts that two releases share."""
    paths = [path.relative_to(one) for path in (one / "src").rglob("*") if path.is_file()]
    return {str(path) for path in paths if (one / path).samefile(two / path)}


def test_what_nobody_edits_in_a_checkout_is_shared_and_what_people_edit_is_not(host, bulky):
    first, live = bulky
    both = shared(first, live)
    assert VENDOR in both and any("/.git/objects/" in path for path in both)
    assert any(path.endswith(".pyc") for path in both)
    for name in ("README.md", "LICENSE", "pyproject.toml", ".git/index", "ckanext/mycity/tests/test_plugin.py"):
        assert f"src/ckanext-mycity/{name}" in both
    edited = ("plugin.py", ".html", ".txt", ".git/config")
    assert not [path for path in both if path.endswith(edited) and "/tests/" not in path]
    edit(first, PLUGIN)
    assert "HOTFIX" not in (live / PLUGIN).read_text() and "changed" not in host.status()
    # Git writes a new file and renames it, so what is noted in one release stays there. It touches objects that it has.
    checkouts = [place / "src/ckanext-mycity" for place in (first, live)]
    repos.git(checkouts[0], "add", "-A")
    staged = [repos.git(place, "diff", "--cached", "--name-only") for place in checkouts]
    assert ["plugin.py" in str(names) for names in staged] == [True, False]
    assert "changed" not in host.status()
    # A release is nothing but its own: what its checkouts were made from may go without harm to it.
    shutil.rmtree(host.home / "shared/sources")
    assert host.python(live.name, "import ckanext.mycity.plugin as p; print(p.TEXT)") == "Hello vendor"
    assert "changed" not in host.status()


def test_f07_a_change_to_what_checkouts_share_is_told_and_taken_back(host, bulky):
    first, live = bulky
    edit(first, VENDOR)
    assert "HOTFIX" in (live / VENDOR).read_text()
    told = host.status()["changed"]
    assert VENDOR in told and first.name in told and live.name in told
    with pytest.raises(CommandExecutionError, match="ckan_release.repair"):
        host.plan()
    done = host.repair()
    assert (done["repaired"], done["kept"]) == ([VENDOR], live.name)
    assert [(place / VENDOR).read_text() == "const lib = 1;\n" for place in bulky] == [True, False]
    assert "changed" not in host.status()
    third = host.home / "releases" / deployed(host)
    assert (third / VENDOR).read_text() == "const lib = 1;\n"
    # One that is gone from the checkout that releases are made of would be gone from the next release.
    ready = next((host.home / "shared/sources").rglob(f"ready/ckanext-mycity/{VENDOR}"))
    ready.unlink()
    assert VENDOR in host.status()["changed"]
    assert host.repair()["repaired"] == [VENDOR] and ready.read_text() == "const lib = 1;\n"
    edit(host.home / "releases" / deployed(host), VENDOR)
    assert host.repair(accept=True)["accepted"] == [VENDOR]
    assert "HOTFIX" in (host.home / "releases" / deployed(host) / VENDOR).read_text()


def test_f07_bytecode_of_a_checkout_that_was_written_to_is_made_again(host, bulky):
    first, live = bulky
    bytecode = next(path for path in sorted(shared(first, live)) if path.endswith(".pyc"))
    before = (first / bytecode).read_bytes()
    with open(first / bytecode, "ab") as handle:
        handle.write(b"more")
    assert bytecode in host.status()["changed"]
    assert host.repair()["repaired"] == [bytecode]
    assert (first / bytecode).read_bytes() == before
    assert "changed" not in host.status()


def test_with_copies_checkouts_share_nothing(host, mycity):
    host.pillar["link"] = "copy"
    names = [deployed(host), deployed(host)]
    assert shared(*(host.home / "releases" / name for name in names)) == set()


def test_f07_verify_says_what_was_changed_meanwhile(host, mycity, own_base):
    host.pillar["link"] = "hard"
    host.pillar["hooks"] = [
        {"stage": "activate", "when": "after", "function": "cmd.shell", "args": [f"echo >> {own_base}/{FILE}"]}
    ]
    done = host.deploy()
    assert any(FILE in said and "ckan_release.repair" in said for said in done["warnings"])
