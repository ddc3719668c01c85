"""What is seen of a change to a shared file, what is none, and how long it takes to look."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from ckan_deploy.build import cloning, sharing
from ckan_deploy.system import reflink
from stub.wheels import record_line

SITE = "lib/python3.11/site-packages"
MODULE = f"{SITE}/lib.py"


class Tree:
    """A virtualenv with one package, and what shares its files."""

    def __init__(self, root: Path) -> None:
        self.root, self.shared = root / "base", str(root / "shared")
        self.write(MODULE, "VERSION = 1\n")
        self.write(f"{SITE}/__pycache__/lib.cpython-311.pyc", "bytecode")
        self.installed("1.0", MODULE)
        assert self.changed() == []  # the first time

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_text(text)

    def installed(self, version: str, *paths: str) -> None:
        """A package says which files it brought."""
        for info in (self.root / SITE).glob("*.dist-info"):
            shutil.rmtree(info)
        lines = [record_line(os.path.relpath(path, SITE), (self.root / path).read_text()) for path in paths]
        self.write(f"{SITE}/lib-{version}.dist-info/RECORD", "".join(lines))

    def changed(self) -> list[str]:
        return [item.path for item in sharing.check(self.shared, str(self.root))]

    def edit(self, path: str = MODULE, text: str = "VERSION = 2\n") -> None:
        """As an editor does that writes in place."""
        with open(self.root / path, "r+", encoding="utf-8") as handle:
            handle.write(text)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_f07_an_edit_in_place_is_seen_until_it_is_taken_back(tree):
    tree.edit()
    assert tree.changed() == tree.changed() == [MODULE]
    tree.edit(text="VERSION = 1\n")
    assert tree.changed() == []


def test_f07_an_edit_that_leaves_size_and_time_as_they_were_is_seen(tree):
    was = os.stat(tree.root / MODULE)
    time.sleep(0.01)
    tree.edit()
    os.utime(tree.root / MODULE, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert tree.changed() == [MODULE]


def test_f07_what_shares_a_file_or_does_no_more_is_no_change_and_nothing_is_read(tree, monkeypatch):
    monkeypatch.setattr(sharing, "digest", lambda path: pytest.fail(f"{path} was read"))
    os.link(tree.root / MODULE, tree.root.parent / "release")
    assert tree.changed() == []
    os.unlink(tree.root.parent / "release")
    assert tree.changed() == []


def test_f07_a_touched_file_is_read_once(tree, monkeypatch):
    os.utime(tree.root / MODULE)
    assert tree.changed() == []
    monkeypatch.setattr(sharing, "digest", lambda path: pytest.fail(f"{path} was read again"))
    assert tree.changed() == []


def test_f07_another_version_of_a_package_is_no_change_but_another_base(tree):
    before = sharing.identity(tree.shared, str(tree.root))
    tree.write(f"{SITE}/new.py", "NEW = 1\n")
    (tree.root / MODULE).unlink()
    tree.installed("2.0", f"{SITE}/new.py")
    assert tree.changed() == []
    assert sharing.identity(tree.shared, str(tree.root)) != before


def test_f07_a_file_that_is_replaced_or_removed_by_hand_is_seen(tree):
    tree.write(MODULE, "VERSION = 3\n")
    assert tree.changed() == [MODULE]
    (tree.root / MODULE).unlink()
    assert tree.changed() == [MODULE]


def test_f07_bytecode_that_is_written_to_is_seen_and_bytecode_that_is_made_anew_is_not(tree):
    bytecode = f"{SITE}/__pycache__/lib.cpython-311.pyc"
    before = sharing.identity(tree.shared, str(tree.root))
    tree.write(bytecode, "made anew")
    assert (tree.changed(), sharing.identity(tree.shared, str(tree.root))) == ([], before)
    os.link(tree.root / bytecode, tree.root.parent / "release")
    tree.edit(bytecode, "evil")
    assert tree.changed() == [bytecode]


def test_f07_what_no_release_shares_is_nobodys_business(tree):
    for path in ("src/ext/a.py", "production.ini", f"{SITE}/open.py"):
        tree.write(path, "x = 1\n")
    (tree.root / f"{SITE}/open.py").chmod(0o666)
    assert tree.changed() == []
    before = sharing.identity(tree.shared, str(tree.root))
    for path in ("src/ext/a.py", "production.ini", f"{SITE}/open.py"):
        tree.edit(path)
    assert tree.changed() == []
    # But for a layer it makes a difference what the base has as a checkout.
    assert sharing.identity(tree.shared, str(tree.root)) != before


def test_f07_a_tree_that_came_back_from_a_backup_is_as_it_was(tree):
    copy = tree.root.with_name("copy")
    shutil.copytree(tree.root, copy)
    shutil.rmtree(tree.root)
    copy.rename(tree.root)
    assert tree.changed() == []


def test_f07_a_change_is_taken_as_it_is_when_it_is_noted(tree):
    tree.edit()
    sharing.note(tree.shared, str(tree.root))
    assert tree.changed() == []


def test_f07_what_was_written_down_of_a_tree_goes_with_it(tree):
    sharing.forget(tree.shared)
    assert len(os.listdir(f"{tree.shared}/installed")) == 2
    shutil.rmtree(tree.root)
    sharing.forget(tree.shared)
    assert os.listdir(f"{tree.shared}/installed") == [".lock"]


@pytest.mark.slow
def test_f07_a_look_at_15000_files_takes_no_more_than_a_fifth_of_a_second(tmp_path):
    tree = Tree(tmp_path)
    for number in range(150):
        folder = tree.root / SITE / f"package{number}"
        folder.mkdir()
        for module in range(100):
            os.close(os.open(folder / f"module{module}.py", os.O_CREAT | os.O_WRONLY, 0o644))
    tree.changed()
    seconds = []
    for _ in range(3):
        # Not by the clock: others are at work on the machine.
        begun = time.process_time()
        assert tree.changed() == []
        seconds.append(time.process_time() - begun)
    assert min(seconds) <= 0.2


def test_f07_with_reflinks_a_clone_shares_no_file(tree, tmp_path, monkeypatch):
    """Where the file system has them; this one may not, so that an ordinary copy stands for one."""
    clones = []

    def copy(source: int, target: int) -> bool:
        clones.append(os.sendfile(target, source, 0, 2**20))
        return True

    (tree.root / "bin").mkdir()
    (tree.root / "pyvenv.cfg").write_text("home = /usr/bin\n")
    if not reflink.possible(str(tree.root), str(tmp_path)):
        monkeypatch.setattr(reflink, "possible", lambda *_: True)
        monkeypatch.setattr(reflink, "copy", copy)
    for link, shares in (("auto", False), ("hard", True), ("copy", False)):
        target = tmp_path / link
        target.mkdir()
        cloning.copy(str(tree.root), str(target), link)
        assert os.path.samefile(tree.root / MODULE, target / MODULE) == shares
        assert (target / MODULE).read_text() == "VERSION = 1\n"
        assert os.stat(target / MODULE).st_mtime_ns == os.stat(tree.root / MODULE).st_mtime_ns


def test_f07_reflinks_are_tried_once_for_a_file_system(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(reflink, "_TRIED", {})
    monkeypatch.setattr(reflink, "copy", lambda *_: asked.append(1) or True)
    (tmp_path / "a").mkdir()
    assert [reflink.possible(str(tmp_path), str(tmp_path / "a")) for _ in range(3)] == [True] * 3
    assert asked == [1]
    assert os.listdir(tmp_path / "a") == []


def test_a_checkout_must_stay_as_it_was_made_whatever_releases_share_of_it(tmp_path):
    shared, made = str(tmp_path / "shared"), tmp_path / "ready/ext"
    module, object_, vendor = (made / "src/ext" / name for name in ("a.py", ".git/objects/ab/cd", "vendor/lib.js"))
    for file in (module, object_, vendor):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("1\n")
    sharing.note(shared, str(made))
    os.link(vendor, tmp_path / "lib.js")
    # A later version may share less, or more: all are compared.
    assert sharing.check(shared, str(made)) == []
    for file in (module, object_):
        file.write_text("22\n")
    vendor.unlink()
    found = {item.path for item in sharing.check(shared, str(made))}
    assert found == {"src/ext/a.py", "src/ext/.git/objects/ab/cd", "src/ext/vendor/lib.js"}
    # It is told until it is brought back.
    assert len(sharing.check(shared, str(made))) == 3
