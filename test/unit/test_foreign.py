"""Trees of other users: copied by their rights, and taken from them; with the real users, as root."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckan_deploy.errors import FormulaError
from ckan_deploy.system import foreign, safely
from parts.process import sandbox

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root works on trees of others")

THEIRS = {"user": "nobody", "group": "nogroup", "extra_groups": []}
RACE_SECONDS = 0.7
# Another user at work in a tree: a directory and a link change places, files of all kinds come and go.
AT_WORK = """
import contextlib, os, sys
tree, victim = sys.argv[1:]
place = f"{tree}/inner"
os.symlink(victim, f"{tree}/link")
print("begun", flush=True)
while True:
    with contextlib.suppress(OSError):
        os.rename(place, f"{place}.dir")
        os.rename(f"{tree}/link", place)
        os.rename(place, f"{tree}/link")
        os.rename(f"{place}.dir", place)
        os.mkfifo(f"{tree}/file")
        os.unlink(f"{tree}/file")
        os.close(os.open(f"{tree}/file", os.O_CREAT, 0o4777))
        os.unlink(f"{tree}/file")
"""


@pytest.fixture
def root() -> Iterator[Path]:
    path = sandbox("ckan-u-")
    (path / "victim").mkdir(mode=0o700)
    (path / "victim/secret").write_text("a secret of root's")
    (path / "tree/inner").mkdir(parents=True)
    (path / "tree/inner/secret").write_text("their own")
    give(path / "tree")
    yield path
    shutil.rmtree(path)


def give(top: Path) -> None:
    for path in [top, *top.rglob("*")]:
        shutil.chown(path, "nobody", "nogroup")


@contextlib.contextmanager
def at_work(root: Path) -> Iterator[None]:
    """The owner of the tree changes it all the time."""
    command = ["/usr/bin/python3", "-c", AT_WORK, str(root / "tree"), str(root / "victim")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, **THEIRS) as process:
        assert process.stdout and process.stdout.readline() == b"begun\n"
        try:
            yield
        finally:
            process.kill()


def state(root: Path) -> list[tuple]:
    found = [(path, path.lstat()) for path in (root / "victim", root / "victim/secret")]
    return [(path, s.st_uid, s.st_mode, s.st_mtime_ns) for path, s in found]


def everything(top: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for folder, folders, files in os.walk(top):
        for name in [".", *folders, *files]:
            yield Path(folder, name), Path(folder, name).lstat()


@pytest.mark.slow
def test_a_copy_that_is_made_while_its_owner_changes_the_tree_holds_nothing_of_others(root):
    before, made = state(root), 0
    with at_work(root):
        until = time.monotonic() + RACE_SECONDS
        while time.monotonic() < until:
            target = root / f"copy{made}"
            target.mkdir()
            # tar may find that something went away, and says so.
            with contextlib.suppress(FormulaError):
                foreign.copy(str(root / "tree"), str(target), "www-data", "www-data")
            made += 1
    assert made > 1 and state(root) == before
    for path, status in (row for copy in root.glob("copy*") for row in everything(copy)):
        if not stat.S_ISLNK(status.st_mode):
            assert status.st_uid == 0 and not status.st_mode & 0o7022, path
            assert not path.is_file() or path.read_text() in ("", "their own"), path


@pytest.mark.parametrize(
    ("mode", "owner", "theirs"),
    [(0o755, "root", False), (0o777, "root", True), (0o755, "nobody", True), (0o1777, "root", True)],
)
def test_a_tree_is_roots_alone_where_nobody_else_may_change_a_part_of_it(root, mode, owner, theirs):
    tree = root / "own"
    (tree / "lib/inner").mkdir(parents=True)
    (tree / "link").symlink_to("/tmp")
    assert foreign.is_roots_tree(str(tree))
    (tree / "lib/inner").chmod(mode)
    shutil.chown(tree / "lib/inner", owner)
    assert foreign.is_roots_tree(str(tree)) is not theirs
    # The same of a directory above it.
    assert foreign.is_roots_tree(str(tree / "lib/inner")) is not theirs
    (tree / "lib/inner/deep").mkdir()
    assert foreign.is_roots_tree(str(tree / "lib/inner/deep")) is (not theirs or mode == 0o1777)


def test_a_file_is_read_by_its_path_along_links_of_roots_alone(root):
    (root / "link").symlink_to(root / "victim/secret")
    with safely.file(str(root / "link")) as handle:
        assert handle.read() == b"a secret of root's"
    (root / "tree/link").symlink_to(root / "victim/secret")
    os.link(root / "victim/secret", root / "tree/name")
    os.mkfifo(root / "tree/fifo")
    for name, sentence in (("link", "is a link, and others"), ("name", "has a second name elsewhere, and others")):
        with pytest.raises(FormulaError, match=sentence), safely.file(str(root / "tree" / name)):
            pass
    with pytest.raises(OSError, match="is no plain file"), safely.file(str(root / "tree/fifo")):
        pass
