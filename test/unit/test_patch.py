"""Patches from the file server: real git, and files that are shared by hard links."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import pytest

from ckan_deploy.errors import FormulaError, InvalidArgument
from ckan_deploy.sources import patches as module
from ckan_deploy.sources.patches import Copy
from fakes import FakeHost

CLEAN = {
    "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@x",
    "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@x",
}  # fmt: skip
ONE = "".join(f"one {number}\n" for number in range(1, 41))
TWO = "".join(f"two {number}\n" for number in range(1, 41))


def git(repo: Path, *arguments: str) -> bytes:
    return subprocess.run(
        ["git", "-C", str(repo), *arguments], check=True, capture_output=True, env={**os.environ, **CLEAN}
    ).stdout


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    """Write files; returns the folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def state(folder: Path) -> dict[str, tuple]:
    """All that could change below a folder: content, inode, mode, number of links."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else ""
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not content else content
        found[str(path.relative_to(folder))] = (content, status.st_ino if path.is_file() else 0, status.st_mode)
    return found


class Patches:
    """The file server's folder of patches, and the module that applies them."""

    def __init__(self, served: Path, scratch: Path):
        self.host = FakeHost(file_roots=(served,))
        self.folder = served / "patches"
        self.folder.mkdir(exist_ok=True)
        self.scratch = scratch

    def add(self, name: str, data: bytes | str) -> str:
        (self.folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        return f"salt://patches/{name}"

    def made(self, name: str, before: dict, after: dict, *options: str) -> str:
        """A patch that git makes of two sets of files; None as content stands for a file that is gone."""
        repo = self.scratch / f"made-{name}"
        repo.mkdir()
        git(repo, "init", "-q")
        git(write(repo, before), "add", "-A")
        git(repo, "commit", "-qm", "before")
        write(repo, {path: content for path, content in after.items() if content is not None})
        for path in [path for path, content in after.items() if content is None]:
            (repo / path).unlink()
        git(repo, "add", "-A")
        return self.add(name, git(repo, "diff", "--cached", *options))

    def read(self, *sources: str) -> list[Copy]:
        return module.read(self.host, list(sources))

    def apply(self, directory: Path, *sources: str, **arguments) -> list[dict]:
        """Apply patches; returns what a manifest says of them."""
        done = module.apply(self.host, str(directory), self.read(*sources), **arguments)
        return [patch.to_json() for patch in done]

    def refused(self, directory: Path, *sources: str, **arguments) -> str:
        """What is said of a patch that is refused; nothing may have changed."""
        before = state(directory)
        with pytest.raises(FormulaError) as failure:
            self.apply(directory, *sources, **arguments)
        assert state(directory) == before
        text = str(failure.value)
        assert "\n" not in text and sources[-1] in text
        return text


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture
def open_dir():
    """A directory that every user may go into; pytest's own is closed."""
    path = Path(tempfile.mkdtemp(prefix="ckan-p-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def patches(served, tmp_path) -> Patches:
    return Patches(served, tmp_path)


def results(done: list[dict]) -> list[str]:
    return [patch["result"] for patch in done]


def test_a08_a_patch_that_upstream_has_is_skipped_and_one_that_does_not_apply_is_named(patches, tmp_path):
    one, two = ONE.replace("one 20\n", "one 20, ours\n"), TWO.replace("two 30\n", "two 30, ours\n")
    first = patches.made("01.patch", {"ckan/one.py": ONE}, {"ckan/one.py": one})
    second = patches.made("02.patch", {"ckan/two.py": TWO}, {"ckan/two.py": two})
    patched = {"ckan/one.py": one, "ckan/two.py": two}

    v1 = write(tmp_path / "v1", {"ckan/one.py": ONE, "ckan/two.py": TWO})
    done = patches.apply(v1, first, second)
    digest = hashlib.sha256((patches.folder / "01.patch").read_bytes()).hexdigest()
    assert done[0] == {"patch": first, "sha256": digest, "result": "applied", "files": ["ckan/one.py"],
                       "hashes": [hashlib.sha256(one.encode()).hexdigest()]}  # fmt: skip
    again = state(v1)
    assert results(patches.apply(v1, first, second)) == ["already applied", "already applied"]
    assert state(v1) == again and {name: (v1 / name).read_text() for name in patched} == patched

    # The next version has the first one, and both files have grown.
    v2 = write(tmp_path / "v2", {"ckan/one.py": f"new\n{one}", "ckan/two.py": f"new\n{TWO}"})
    assert results(patches.apply(v2, first, second)) == ["already applied", "applied"]
    assert (v2 / "ckan/one.py").read_text() == f"new\n{one}"
    assert (v2 / "ckan/two.py").read_text() == f"new\n{two}"

    v3 = write(tmp_path / "v3", {"ckan/one.py": one, "ckan/two.py": TWO.replace("two 30\n", "rewritten\n")})
    said = patches.refused(v3, first, second)
    assert "02.patch does not apply" in said and "hunk 1 of ckan/two.py (line 27)" in said and "deploy again" in said
    assert not [path for folder in (v1, v2, v3) for path in folder.rglob("*") if path.suffix in (".rej", ".orig")]


def test_the_hunk_that_does_not_match_is_counted_within_its_file(patches, tmp_path):
    after = {"a.py": ONE.replace("one 5\n", "x\n"), "b.py": TWO.replace("two 5\n", "x\n").replace("two 30\n", "y\n")}
    patch = patches.made("x.patch", {"a.py": ONE, "b.py": TWO}, after)
    work = write(tmp_path / "work", {"a.py": ONE, "b.py": TWO.replace("two 31\n", "other\n")})
    assert "hunk 2 of b.py (line 27) does not match" in patches.refused(work, patch)
    (work / "b.py").unlink()
    assert "b.py does not exist" in patches.refused(work, patch)


def test_a_patch_of_which_upstream_has_one_file_is_refused_as_a_whole(patches, tmp_path):
    one, two = ONE.replace("one 5\n", "x\n"), TWO.replace("two 5\n", "x\n")
    patch = patches.made("x.patch", {"a.py": ONE, "b.py": TWO}, {"a.py": one, "b.py": two})
    work = write(tmp_path / "work", {"a.py": one, "b.py": TWO})
    said = patches.refused(work, patch)
    assert "half in" in said and "a.py has its part, b.py has not" in said
    write(work, {"b.py": TWO.replace("two 5\n", "rewritten\n")})
    assert "a.py has its part, hunk 1 of b.py (line 2) does not match the file" in patches.refused(work, patch)


def test_lines_that_repeat_do_not_make_a_patch_apply_twice_or_not_at_all(patches, tmp_path):
    block = "begin\nstep\nmiddle\nmore\nend\n"
    gap = "".join(f"{number}\n" for number in range(30))
    once = block.replace("middle\n", "middle\nours\n")
    patch = patches.made("x.patch", {"a.py": gap + block + gap + block + gap}, {"a.py": gap + once + gap + block + gap})
    work = write(tmp_path / "work", {"a.py": gap + block + gap + block + gap})
    assert results(patches.apply(work, patch) + patches.apply(work, patch)) == ["applied", "already applied"]
    assert (work / "a.py").read_text() == gap + once + gap + block + gap
    # The other way round: what stands at the second place is not the patch.
    other = write(tmp_path / "other", {"a.py": gap + block + gap + once + gap})
    assert results(patches.apply(other, patch)) == ["applied"]
    assert (other / "a.py").read_text() == gap + once + gap + once + gap
    # Moved, so that neither place is the exact one: nothing tells.
    moved = write(tmp_path / "moved", {"a.py": "new\n" + gap + block + gap + once + gap})
    assert "more context" in patches.refused(moved, patch)


@pytest.mark.parametrize(
    "place", ["checkout", "checkout with changes", "inside a foreign repository", "outside of any"]
)
def test_a_patch_applies_wherever_the_directory_lies(patches, tmp_path, place):
    """Inside a repository, below its top, git apply would skip each file and say that all is well."""
    patch = patches.made("x.patch", {"ckan/a.py": ONE}, {"ckan/a.py": ONE.replace("one 5\n", "x\n")})
    top = tmp_path / "top"
    work = write(top / "deep/er" if "inside" in place else top, {"ckan/a.py": ONE, "other.py": "o\n"})
    if place != "outside of any":
        git(top, "init", "-q")
        git(top, "add", "-A")
        git(top, "commit", "-qm", "all")
        # Would turn line ends, and stop at blanks, if it counted.
        git(top, "config", "core.autocrlf", "true")
        git(top, "config", "apply.whitespace", "error-all")
    if "changes" in place:
        (work / "other.py").write_text("changed\n")
    assert results(patches.apply(work, patch) + patches.apply(work, patch)) == ["applied", "already applied"]
    assert (work / "ckan/a.py").read_bytes() == ONE.replace("one 5\n", "x\n").encode()


@pytest.mark.parametrize("user", ["", "nobody"])
def test_files_shared_with_another_release_stay_as_they_are(patches, tmp_path, open_dir, user):
    before = {
        "ckan/a.py": ONE,
        "ckan/gone.py": TWO,
        "ckan/old.py": TWO + "old\n",
        "ckan/run.sh": "echo\n",
        "k.py": "k\n",
    }
    repo = write(tmp_path / "repo", before)
    git(repo, "init", "-q")
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "before")
    write(repo, {"ckan/a.py": ONE.replace("one 5\n", "x\n"), "ckan/deep/new.py": "new\n"})
    git(repo, "rm", "-q", "ckan/gone.py")
    git(repo, "mv", "ckan/old.py", "ckan/renamed.py")
    (repo / "ckan/run.sh").chmod(0o755)
    git(repo, "add", "-A")
    patch = patches.add("x.patch", git(repo, "diff", "--cached", "-M"))

    base = write(open_dir / "base", before)
    release = open_dir / "release"
    subprocess.run(["cp", "-al", base, release], check=True)
    if user:
        # As a clone for the build user is: directories its own, files shared.
        subprocess.run(["chown", user, release, release / "ckan"], check=True)
    shared = state(base)
    done = patches.apply(release, patch, user=user)
    assert state(base) == shared
    assert done[0]["files"] == [
        "ckan/a.py", "ckan/deep/new.py", "ckan/gone.py", "ckan/old.py", "ckan/renamed.py", "ckan/run.sh",
    ]  # fmt: skip
    now = {str(path.relative_to(release)): path for path in release.rglob("*") if path.is_file()}
    assert sorted(now) == ["ckan/a.py", "ckan/deep/new.py", "ckan/renamed.py", "ckan/run.sh", "k.py"]
    assert (release / "k.py").stat().st_ino == (base / "k.py").stat().st_ino
    assert all(now[name].stat().st_nlink == 1 for name in now if name != "k.py")
    assert now["ckan/run.sh"].stat().st_mode & 0o777 == 0o755 and now["ckan/a.py"].stat().st_mode & 0o777 == 0o644
    assert now["ckan/deep/new.py"].owner() == (user or "root")
    assert results(patches.apply(release, patch, user=user)) == ["already applied"]
    # One that fails leaves them as well.
    patches.refused(release, patches.add("y.patch", "--- a/ckan/a.py\n+++ b/ckan/a.py\n@@ -1 +1 @@\n-no\n+yes\n"))
    assert state(base) == shared


def test_a_change_of_mode_alone_is_applied_once(patches, tmp_path):
    patch = patches.add("x.patch", "diff --git a/bin/x y b/bin/x y\nold mode 100644\nnew mode 100755\n")
    work = write(tmp_path / "work", {"bin/x y": "#!/bin/sh\n"})
    assert results(patches.apply(work, patch) + patches.apply(work, patch)) == ["applied", "already applied"]
    assert (work / "bin/x y").stat().st_mode & 0o777 == 0o755


HUNK = "@@ -1,2 +1,2 @@\n one\n-two\n+2\n"
FORMS = {
    "git": f"diff --git a/ckan/x.py b/ckan/x.py\nindex 123456..89abcd 100644\n--- a/ckan/x.py\n+++ b/ckan/x.py\n{HUNK}",
    "no prefix": f"diff --git ckan/x.py ckan/x.py\nindex 1234567..89abcde 100644\n--- ckan/x.py\n+++ ckan/x.py\n{HUNK}",
    "mnemonic": f"diff --git i/ckan/x.py w/ckan/x.py\n--- i/ckan/x.py\n+++ w/ckan/x.py\n{HUNK}",
    "svn": f"Index: ckan/x.py\n{'=' * 67}\n--- ckan/x.py\t(revision 3)\n+++ ckan/x.py\t(working copy)\n{HUNK}",
    "diff -u": f"--- ckan/x.py.orig\t2024-01-02 03:04:05.1 +0100\n+++ ckan/x.py\t2024-01-02 03:04:06.1 +0100\n{HUNK}",
    "diff -ru": f"diff -ru old new\n--- old/ckan/x.py 2024-01-02 03:04:05\n+++ new/ckan/x.py\n{HUNK}",
    "mail": "From 1234567 Mon Sep 17 00:00:00 2001\nFrom: A <a@x>\nSubject: x\n\n--- not a name\n---\n x.py | 2 +-\n\n"
    f"diff --git a/ckan/x.py b/ckan/x.py\n--- a/ckan/x.py\n+++ b/ckan/x.py\n{HUNK}-- \n2.39.5\n\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_diffs_of_every_tool_apply(patches, tmp_path, form):
    # A directory that a wrong number of leading directories would find.
    work = write(tmp_path / "work", {"ckan/x.py": "one\ntwo\n", "x.py": "one\ntwo\n"})
    patch = patches.add("x.patch", FORMS[form])
    done = patches.apply(work, patch)
    assert (done[0]["result"], done[0]["files"]) == ("applied", ["ckan/x.py"])
    assert ((work / "ckan/x.py").read_text(), (work / "x.py").read_text()) == ("one\n2\n", "one\ntwo\n")
    assert results(patches.apply(work, patch)) == ["already applied"]


@pytest.mark.parametrize("options", [["--no-prefix"], [], ["--no-prefix", "-M"], ["--binary"]], ids=" ".join)
def test_names_with_blanks_and_unicode_and_any_bytes_in_the_file(patches, tmp_path, options):
    before = {
        "ckan/with blank.py": ONE, "ckan/datós – x.py": ONE + "x\n", 'ckan/quo"te.py': ONE, "ckan/latin.txt": b"\xe9\n",
        "ckan/dos.txt": b"a\r\nb\r\nc\r\n", "ckan/old name.py": TWO, "ckan/no end": b"x", "ckan/mac.txt": b"a\rb\nc\n",
    }  # fmt: skip
    after = {
        "ckan/with blank.py": ONE.replace("one 5\n", "x\n"), "ckan/datós – x.py": "new\n", 'ckan/quo"te.py': "q\n",
        "ckan/latin.txt": b"\xe9\xe8\n", "ckan/dos.txt": b"a\r\nB\r\nc\r\n", "ckan/empty é.py": b"",
        "ckan/old name.py": None, "ckan/new näme.py": TWO, "ckan/no end": b"y", "ckan/mac.txt": b"a\rB\nc\n",
    }  # fmt: skip
    if "--binary" in options:
        before["ckan/image.png"], after["ckan/image.png"] = bytes(range(256)), bytes(range(255, -1, -1))
    patch = patches.made("x é.patch", before, after, *options)
    work = write(tmp_path / "work", before)
    done = patches.apply(work, patch) + patches.apply(work, patch)
    assert results(done) == ["applied", "already applied"]
    assert done[0]["files"] == sorted(after)
    now = {str(path.relative_to(work)): path.read_bytes() for path in work.rglob("*") if path.is_file()}
    wanted = {
        name: text if isinstance(text, bytes) else text.encode() for name, text in after.items() if text is not None
    }
    assert now == wanted


def test_a_patch_saved_with_windows_line_ends_is_for_a_file_with_such(patches, tmp_path):
    patch = patches.add("x.patch", FORMS["git"].replace("\n", "\r\n"))
    work = write(tmp_path / "work", {"ckan/x.py": b"one\r\ntwo\r\n"})
    assert results(patches.apply(work, patch) + patches.apply(work, patch)) == ["applied", "already applied"]
    assert (work / "ckan/x.py").read_bytes() == b"one\r\n2\r\n"
    write(work, {"ckan/x.py": b"one\ntwo\n"})
    assert "hunk 1 of ckan/x.py (line 1) does not match" in patches.refused(work, patch)


def test_several_commits_in_one_patch_touch_the_same_file(patches, tmp_path):
    middle, last = ONE.replace("one 5\n", "x\n"), ONE.replace("one 5\n", "y\n")
    data = b""
    for number, (before, after) in enumerate([(ONE, middle), (middle, last)]):
        patches.made(f"{number}.patch", {"a.py": before}, {"a.py": after})
        data += b"commit\n\n" + (patches.folder / f"{number}.patch").read_bytes()
    patch = patches.add("x.patch", data)
    work = write(tmp_path / "work", {"a.py": ONE})
    assert results(patches.apply(work, patch) + patches.apply(work, patch)) == ["applied", "already applied"]
    assert (work / "a.py").read_text() == last


def test_files_that_an_installed_package_does_not_have_are_left_out_and_named(patches, tmp_path):
    before = {"ckan/a.py": ONE, "ckanext/b.py": TWO, "CHANGELOG.rst": "1\n", "doc/x.rst": "2\n", "ckan-like.txt": "3\n"}
    after = {
        "ckan/a.py": "x\n",
        "ckanext/b.py": "y\n",
        "CHANGELOG.rst": "x\n",
        "doc/x.rst": "x\n",
        "ckan-like.txt": "x\n",
    }
    patch = patches.made("x.patch", before, after)
    work = write(tmp_path / "work", {"ckan/a.py": ONE, "ckanext/b.py": TWO, "ckan-like.txt": "of another package\n"})
    only = ["ckan/", "ckanext/"]
    done = patches.apply(work, patch, only=only)[0]
    assert (done["files"], done["left_out"]) == (
        ["ckan/a.py", "ckanext/b.py"],
        ["CHANGELOG.rst", "ckan-like.txt", "doc/x.rst"],
    )
    assert sorted(path.name for path in work.iterdir()) == ["ckan", "ckan-like.txt", "ckanext"]
    assert (work / "ckan-like.txt").read_text() == "of another package\n"
    assert patches.apply(work, patch, only=only)[0]["result"] == "already applied"
    docs = patches.made("docs.patch", {"doc/x.rst": "2\n"}, {"doc/x.rst": "3\n"})
    assert "changes nothing in ckan/, ckanext/, only doc/x.rst" in patches.refused(work, docs, only=only)
    moves = patches.made("moves.patch", {"ckan/b.py": TWO}, {"ckan/b.py": None, "doc/b.py": TWO}, "-M")
    assert "moves ckan/b.py to doc/b.py" in patches.refused(work, moves, only=only)


NEW = "@@ -0,0 +1 @@\n+evil\n"
EVIL = {
    "parent": (f"--- /dev/null\n+++ b/../evil\n{NEW}", "leads outside"),
    "parent within": (f"--- /dev/null\n+++ b/ckan/../../evil\n{NEW}", "leads outside"),
    "parent, no prefix": (f"--- ../evil\n+++ ../evil\n{NEW}", "leads outside"),
    "rename": ("diff --git a/x b/y\nrename from ckan/x.py\nrename to ../evil\n", "leads outside"),
    "quoted": (f'--- /dev/null\n+++ "b/\\056\\056/evil"\n{NEW}', "leads outside"),
    "absolute": (f"--- /dev/null\n+++ /tmp/evil\n{NEW}", "absolute"),
    "absolute behind a prefix": (f"--- /dev/null\n+++ b//tmp/evil\n{NEW}", "leads outside"),
    "git": (f"--- /dev/null\n+++ b/.git/config\n{NEW}", "belongs to git"),
    "Git": (f"--- /dev/null\n+++ b/ckan/.Git/hooks/pre-commit\n{NEW}", "belongs to git"),
    "directory link": (f"--- /dev/null\n+++ b/ckan/link/evil\n{NEW}", "link is a symbolic link"),
    "file link": ("--- a/ckan/file\n+++ b/ckan/file\n@@ -1 +1 @@\n-outside\n+evil\n", "file is a symbolic link"),
    "makes a link": (
        "diff --git a/l b/l\nnew file mode 120000\n--- /dev/null\n+++ b/l\n@@ -0,0 +1 @@\n+/etc\n", "symbolic link",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", EVIL)
def test_nothing_outside_of_the_directory_is_touched(patches, tmp_path, case):
    data, reason = EVIL[case]
    outside = write(tmp_path / "top/outside", {"there": "outside\n"})
    work = write(tmp_path / "top/work", {"ckan/x.py": "one\n"})
    (work / "ckan/link").symlink_to(outside)
    (work / "ckan/file").symlink_to(outside / "there")
    before = state(tmp_path / "top")
    assert reason in patches.refused(work, patches.add("evil.patch", data))
    assert state(tmp_path / "top") == before and not Path("/tmp/evil").exists()


def test_what_is_no_patch_or_not_there_is_refused_by_name(patches, tmp_path):
    work = write(tmp_path / "work", {"ckan/x.py": "one\ntwo\n"})
    for data, reason in (
        ("", "no unified diff"),
        ("some text\n--- a line\nmore\n", "no unified diff"),
        (b"\x89PNG\x00\xff", "no unified diff"),
        ("*** ckan/x.py\n--- ckan/x.py\n***************\n*** 1 ****\n! one\n--- 1 ----\n! 1\n", "no unified diff"),
        (FORMS["git"].rpartition("+2")[0], "damaged: the hunk in its line 5"),
        ("Binary files a/x.png and b/x.png differ\n", "git diff --binary"),
        (FORMS["git"] + FORMS["no prefix"].replace("x.py", "y.py"), "with and without a/ and b/"),
        (b"--- a/\xe9\n+++ b/\xe9\n@@ -1 +1 @@\n-1\n+2\n", "UTF-8"),
        ("diff --git a/x.py b/x.py\nindex 1234567..89abcde 100644\n", "x.patch"),
    ):
        assert reason in patches.refused(work, patches.add("x.patch", data))
    with pytest.raises(FormulaError, match=r"salt://patches/no\.patch is not in the file server; put"):
        patches.read(patches.add("x.patch", FORMS["git"]), "salt://patches/no.patch")
    for source in ("/etc/passwd", "salt://../x.patch", None, 3):
        with pytest.raises(FormulaError, match="salt://path/name"):
            patches.read(source)


def test_a_patch_that_changes_after_it_was_read_is_not_applied(patches, tmp_path):
    work = write(tmp_path / "work", {"ckan/x.py": "one\ntwo\n"})
    found = patches.read(patches.add("x.patch", FORMS["git"]))
    with open(found[0].path, "a", encoding="utf-8") as handle:
        handle.write("more\n")
    with pytest.raises(FormulaError, match="was changed since it was read"):
        module.apply(patches.host, str(work), found)
    assert (work / "ckan/x.py").read_text() == "one\ntwo\n"


def test_apply_takes_addresses_too_and_refuses_wrong_arguments(patches, tmp_path):
    apply, source = partial(module.apply, patches.host), patches.add("x.patch", FORMS["git"])
    work = write(tmp_path / "work", {"ckan/x.py": "one\ntwo\n"})
    assert [patch.result for patch in apply(str(work), [source])] == ["applied"]
    assert apply(str(work), []) == []
    for arguments in (("work", []), (str(work), source), (None, [])):
        with pytest.raises(InvalidArgument):
            apply(*arguments)
    with pytest.raises(FormulaError, match="no directory"):
        apply(str(work / "no"), [])
    with pytest.raises(FormulaError, match="no user 'no-such-user'"):
        apply(str(work), [source], user="no-such-user")


def test_the_hash_of_a_patched_file_is_that_of_all_patches_and_of_a_file_that_is_gone_there_is_none(patches, tmp_path):
    first = patches.made("h1.patch", {"a.py": "1\n", "b.py": "1\n"}, {"a.py": "2\n", "b.py": None})
    second = patches.made("h2.patch", {"a.py": "2\n"}, {"a.py": "3\n"})
    done = patches.apply(write(tmp_path / "v", {"a.py": "1\n", "b.py": "1\n"}), first, second)
    last = hashlib.sha256(b"3\n").hexdigest()
    assert [(patch["files"], patch["hashes"]) for patch in done] == [(["a.py", "b.py"], [last, ""]), (["a.py"], [last])]


@pytest.mark.parametrize(
    ("line", "text"),
    [("one 20\n", "ours\n"), ("one 20\n", "one 20\nours\n"), ("one 20\n", ""), ("one 40\n", "one 40\nours\n")],
    ids=["changed", "added", "removed", "at the end"],
)
def test_h09_a_patch_without_context_lines_is_refused_as_such_before_anything_is_made(patches, tmp_path, line, text):
    made = patches.made("x.patch", {"a.py": ONE}, {"a.py": ONE.replace(line, text)}, "-U0")
    said = patches.refused(write(tmp_path / "work", {"a.py": ONE}), made)
    assert "x.patch has no context lines (the hunk in its line 5)" in said and "without -U0" in said
    with pytest.raises(FormulaError, match="has no context lines"):
        patches.read(made)


@pytest.mark.parametrize("text", ["ours\n", "ours\none 1\n", ""], ids=["changed", "added", "removed"])
def test_h09_at_the_top_of_a_file_it_is_refused_when_it_is_applied(patches, tmp_path, text):
    made = patches.made("x.patch", {"a.py": ONE}, {"a.py": ONE.replace("one 1\n", text, 1)}, "-U0")
    said = patches.refused(write(tmp_path / "work", {"a.py": ONE}), made)
    assert "hunk 1 of a.py" in said and "has no context lines" in said


def test_h09_files_that_are_new_or_gone_or_changed_in_every_line_need_no_context(patches, tmp_path):
    before = {"gone.py": ONE, "short.py": "one\n", "whole.py": "1\n2\n3\n4\n"}
    after = {"gone.py": None, "short.py": "two\n", "whole.py": "5\n6\n", "new.py": TWO}
    made = patches.made("x.patch", before, after, "-U0")
    work = write(tmp_path / "work", before)
    assert results(patches.apply(work, made)) == ["applied"]
    assert (work / "whole.py").read_text() == "5\n6\n" and not (work / "gone.py").exists()
