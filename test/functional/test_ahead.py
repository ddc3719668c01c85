"""What is cloned ahead of a release: the next build takes it where it holds the same, and nothing else of it."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError

from ckan_deploy.build import ahead, assembly, cloning, layers, sharing, virtualenv
from ckan_deploy.errors import FormulaError
from functional.steps import deployed, extension
from stub import repos
from stub.wheels import make_wheel

pytestmark = pytest.mark.slow

SITE = "lib/python3.11/site-packages"
CITY, TOWN = "src/ckanext-mycity", "src/ckanext-town"


@pytest.fixture
def two(host, origins, shelf, own_base) -> dict[str, Path]:
    """Two extensions, one of which requires a library, on a base of which some files name their place."""
    for number in ("1.0", "2.0"):
        make_wheel(shelf, "shared-lib", number)
    made = {
        "ckanext-mycity": repos.make_repo(origins, "mycity", "one", requirements=["shared-lib<2"], backend="uv_build"),
        "ckanext-town": repos.make_repo(origins, "town", "one", backend="uv_build"),
    }
    (own_base / SITE / "placed.py").write_text(f"PLACE = '{own_base}/share'\n")
    (own_base / "share/own").mkdir(parents=True)
    (own_base / "share/link").symlink_to(own_base / "share/own")
    host.pillar["extensions"] = {name: extension(repo) for name, repo in made.items()}
    host.pillar["plugins"] = ["mycity", "town"]
    host.pillar["link"] = "hard"
    return made


def place(host) -> Path:
    return host.home / "releases" / ahead.NAME


def release(host, **options) -> Path:
    return host.home / "releases" / deployed(host, **options)


def inodes(path: Path, *names: str) -> list[int]:
    return [(path / name).stat().st_ino for name in names]


def content(path: Path) -> dict[str, tuple]:
    """All of a release that does not tell when it was made: kinds, modes and content, without the name of its place."""
    found: dict[str, tuple] = {}
    for folder, folders, names in os.walk(path):
        for name in [*folders, *names]:
            file = Path(folder, name)
            inner, about = str(file.relative_to(path)), file.lstat()
            if inner.split("/")[0] in ("run", "release.json", "production.ini"):
                continue
            if file.is_symlink():
                found[inner] = ("link", os.readlink(file).replace(str(path), "PLACE"))
            elif file.is_dir():
                found[inner] = ("directory", stat.S_IMODE(about.st_mode))
            else:
                data = file.read_bytes().replace(str(path).encode(), b"PLACE")
                if name == "RECORD":  # in the order of its lines, and with the digest of the scripts
                    data = b"\n".join(sorted(line.split(b",")[0] for line in data.splitlines()))
                found[inner] = (stat.S_IMODE(about.st_mode), data)
    return found


def test_a_build_moves_what_was_cloned_ahead_and_does_what_differs(host, two, monkeypatch):
    first = release(host)
    assert [item["release"] for item in host.list()] == [first.name]
    seen = inodes(place(host), "lib", SITE, "bin")
    for checkout in (CITY, TOWN):
        (place(host) / checkout / "trace").write_text("x")
    commit = repos.commit_change(two["ckanext-mycity"], "two")
    monkeypatch.setattr(virtualenv, "clone", lambda *_args, **_more: pytest.fail("it is cloned again"))
    second = release(host)
    assert inodes(second, "lib", SITE, "bin") == seen
    assert [(second / checkout / "trace").exists() for checkout in (CITY, TOWN)] == [False, True]
    assert host.python(second.name, "import ckanext.mycity.plugin as p; print(p.TEXT)") == "two"
    assert host.python(first.name, "import ckanext.mycity.plugin as p; print(p.TEXT)") == "one"
    assert host.show(second.name)["extensions"]["ckanext-mycity"]["commit"] == commit
    assert not (second / ahead.MARK).exists()
    # For the one after it.
    assert (place(host) / CITY).is_dir() and (place(host) / ahead.MARK).is_file()


def test_a_release_is_the_same_whether_or_not_it_was_cloned_ahead(host, two):
    release(host)
    repos.commit_change(two["ckanext-mycity"], "two")
    taken = release(host)
    shutil.rmtree(place(host))
    host.pillar["config"] = {"ckan.site_title": "Another"}
    cloned = release(host)
    one, other = content(taken), content(cloned)
    assert {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)} == set()
    assert (
        one["share/link"] == ("link", "PLACE/share/own") and one[f"{SITE}/placed.py"][1] == b"PLACE = 'PLACE/share'\n"
    )
    # The bytecode of a module that is written anew is made for it, and has its place.
    assert host.python(taken.name, "import placed; print(placed.PLACE)") == f"{taken}/share"
    told = [host.show(path.name) for path in (taken, cloned)]
    assert told[0]["disk_mb"] == told[1]["disk_mb"] and told[0]["packages"] == told[1]["packages"]


def another_boot(_host, monkeypatch):
    monkeypatch.setattr(ahead.disk, "boot_id", lambda: "another")


def another_version(_host, monkeypatch):
    monkeypatch.setattr(ahead, "VERSION", "0.0.1")


def another_layer(host, _monkeypatch):
    """A layer of the same name that was made in the place of the first one."""
    (mark,) = host.home.glob("shared/layers/*/.ckan-layer.json")
    text = mark.read_text()
    mark.rename(mark.with_name("before"))
    mark.write_text(text)
    mark.with_name("before").unlink()


def another_link(host, _monkeypatch):
    host.pillar["link"] = "auto"


def half_made(host, _monkeypatch):
    (place(host) / ahead.MARK).unlink()


def damaged(host, _monkeypatch):
    (place(host) / ahead.MARK).write_text("[1,")


def of_another_kind(host, _monkeypatch):
    (place(host) / ahead.MARK).write_text("[]")


def without_a_part(host, _monkeypatch):
    """What is left to be written anew is not there any more: it is cloned as if nothing was there."""
    mark = place(host) / ahead.MARK
    about = json.loads(mark.read_text())
    about["copied"]["left"].append([f"{SITE}/gone.py", "site"])
    mark.write_text(json.dumps(about))


def without_a_file_at_the_top(host, _monkeypatch):
    mark = place(host) / ahead.MARK
    about = json.loads(mark.read_text())
    about["copied"]["left"].append(["gone", "top"])
    mark.write_text(json.dumps(about))


def removed_in_part(host, _monkeypatch):
    shutil.rmtree(place(host) / "bin")


def test_what_is_not_of_the_same_is_not_used(host, two, monkeypatch):
    """With a file in it that whoever uses it would have."""
    live = release(host).name
    (key,) = [mark.parent.name for mark in host.home.glob("shared/layers/*/.ckan-layer.json")]
    release_path = host.home / "releases/20990101000000Z"
    changes = (
        None, another_boot, another_version, another_layer, another_link, half_made, damaged, of_another_kind,
        without_a_part, without_a_file_at_the_top, removed_in_part,
    )  # fmt: skip
    for change in changes:
        ahead.make(host.site(), host.site().release(live).manifest)
        (place(host) / "trace").mkdir()
        release_path.mkdir()
        with monkeypatch.context() as patch:
            if change:
                change(host, patch)
            site = host.site()
            with layers.known(site.paths.shared, key) as layer:
                cloned, there = ahead.clone(site, layer, str(release_path), {})
        used = change is None
        assert ((release_path / "trace").exists(), there) == (used, frozenset()), change
        assert virtualenv.verify(str(release_path)) == [] and cloned["rewritten"] > 3, change
        assert not (release_path / "src").exists() or list((release_path / "src").iterdir()) == []
        shutil.rmtree(release_path)


def test_another_lock_is_another_layer_and_takes_nothing_of_it(host, two):
    release(host)
    (two["ckanext-mycity"] / "requirements.txt").write_text("shared-lib==2.0\n")
    repos.commit_change(two["ckanext-mycity"], "two")
    second = release(host)
    assert "2.0" in (second / SITE / "shared_lib.py").read_text()
    assert "2.0" in (place(host) / SITE / "shared_lib.py").read_text()


def test_a_checkout_that_the_pillar_lists_no_more_is_in_no_later_release(host, two):
    release(host)
    assert (place(host) / TOWN).is_dir()
    del host.pillar["extensions"]["ckanext-town"]
    host.pillar["plugins"] = ["mycity"]
    second = release(host)
    assert not (second / TOWN).exists() and (second / CITY).is_dir()
    assert not (place(host) / TOWN).exists()


def test_an_edit_of_what_it_shares_is_in_no_later_release(host, two):
    live = release(host)
    with open(live / SITE / "shared_lib.py", "a", encoding="utf-8") as handle:
        handle.write("HOTFIX = True\n")
    assert "HOTFIX" in (place(host) / SITE / "shared_lib.py").read_text()
    repos.commit_change(two["ckanext-mycity"], "two")
    with pytest.raises(CommandExecutionError, match="ckan_release.repair"):
        host.deploy()
    host.repair()
    assert not place(host).exists()
    assert "HOTFIX" not in (release(host) / SITE / "shared_lib.py").read_text()


def test_an_edit_of_a_checkout_of_the_live_release_is_in_no_later_one(host, two):
    live = release(host)
    with open(live / TOWN / "ckanext/town/plugin.py", "a", encoding="utf-8") as handle:
        handle.write("HOTFIX = True\n")
    repos.commit_change(two["ckanext-mycity"], "two")
    assert "HOTFIX" not in (release(host) / TOWN / "ckanext/town/plugin.py").read_text()


def test_a_release_that_fails_takes_it_with_it_and_the_next_one_does_without(host, two, monkeypatch):
    release(host)
    repos.commit_change(two["ckanext-mycity"], "two")
    monkeypatch.setattr(assembly, "put_lock", lambda *_: (_ for _ in ()).throw(FormulaError("no")))
    with pytest.raises(CommandExecutionError, match="no"):
        host.deploy()
    # What is left is the checkout that had another commit, until the next deploy is at its end.
    assert [name.name for name in place(host).iterdir()] == ["ckanext-mycity"]
    monkeypatch.undo()
    assert host.python(release(host).name, "import ckanext.mycity.plugin as p; print(p.TEXT)") == "two"


def test_nothing_is_cloned_ahead_where_it_would_take_a_whole_release_or_the_last_of_the_disk(host, two, monkeypatch):
    live = release(host).name
    site = host.site()
    monkeypatch.setattr(ahead.disk, "free_mb", lambda _path: site.settings.disk_free_mb - 1)
    ahead.make(site, site.release(live).manifest)
    assert not place(host).exists()
    monkeypatch.undo()
    ahead.make(site, site.release(live).manifest)
    assert place(host).is_dir()
    host.pillar["link"] = "copy"
    release(host)
    assert not place(host).exists()


def test_nothing_is_fetched_or_built_for_it(host, two, monkeypatch):
    live = release(host).name
    shutil.rmtree(host.home / "shared/sources")
    site = host.site()
    asked: list[str] = []
    monkeypatch.setattr(ahead, "prepare", lambda _site, pins, _builder: asked.extend(pins) or {})
    ahead.make(site, site.release(live).manifest)
    assert asked == [] and (place(host) / ahead.MARK).is_file() and list((place(host) / "src").iterdir()) == []


def test_that_it_cannot_be_made_keeps_no_deploy(host, two, monkeypatch):
    real = cloning.copy

    def full(source, target, *args):
        if target.endswith(ahead.NAME):
            Path(target, "half").write_text("x")
            raise OSError(28, "No space left on device")
        return real(source, target, *args)

    monkeypatch.setattr(cloning, "copy", full)
    done = host.deploy()
    assert host.current() == done["current"] and not place(host).exists()


def test_a_rollback_keeps_it_and_a_prune_by_hand_removes_it(host, two):
    release(host)
    repos.commit_change(two["ckanext-mycity"], "two")
    release(host)
    seen = inodes(place(host), "lib")
    host.rollback()
    assert inodes(place(host), "lib") == seen
    host.prune()
    assert not place(host).exists()


def test_a_deploy_changes_of_shared_files_what_tells_by_itself_that_nothing_was_edited(host, two, monkeypatch):
    """With a link more by the clone and one less by the prune, or by a rename, only the content would tell."""
    host.pillar["keep"] = 2
    for number in range(3):
        repos.commit_change(two["ckanext-mycity"], str(number))
        release(host)
    asked: list[str] = []
    installed = sharing.Packages.installed
    monkeypatch.setattr(sharing.Packages, "installed", lambda self, path: asked.append(path) or installed(self, path))
    repos.commit_change(two["ckanext-mycity"], "last")
    release(host)
    assert sharing.changed(host.site()) == []
    assert asked == []
