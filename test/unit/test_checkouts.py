"""A checkout is what `git clone` gives: the same files, contents, links and modes, whatever the repository asks for."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ckan_deploy.build import editable
from ckan_deploy.errors import FormulaError
from ckan_deploy.sources.git import Origin
from ckan_deploy.sources.repositories import checkout
from stub import repos, wheels

# Submodules of origins that are paths.
LOCAL = ("-c", "protocol.file.allow=always")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 12345\n"
LONG = "/".join(["d" * 200] * 4) + "/" + "f" * 240


def write(repo: Path, name: str, data: bytes | str, mode: int = 0o644) -> None:
    path = repo / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    path.chmod(mode)


def line_endings(repo: Path) -> None:
    write(repo, "auto.txt", "one\ntwo\n")
    write(repo, "windows.bat", "one\ntwo\n")
    write(repo, "raw.txt", "one\r\ntwo\r\n")
    write(repo, "unix.sh", "one\ntwo\n", 0o755)
    write(repo, "sub/.gitattributes", "*.txt eol=crlf\n")
    write(repo, "sub/windows.txt", "one\ntwo\n")
    write(repo, ".gitattributes", "* text=auto\n*.bat eol=crlf\nraw.txt -text\n*.sh eol=lf\n")


def encodings(repo: Path) -> None:
    write(repo, ".gitattributes", "*.u16 working-tree-encoding=UTF-16LE\n*.l1 text working-tree-encoding=ISO-8859-1\n")
    write(repo, "a.u16", "Grüße\n".encode("utf-16-le"))
    write(repo, "a.l1", "Grüße\n".encode("latin-1"))


def exported(repo: Path) -> None:
    write(repo, ".gitattributes", "secret export-ignore\nversion.txt export-subst\nid.txt ident\n*.x filter=none\n")
    write(repo, "secret", "not for archives\n")
    write(repo, "version.txt", "$Format:%H$\n")
    write(repo, "id.txt", "$Id$\n")
    write(repo, "a.x", "through a filter that nobody has\n")


def names(repo: Path) -> None:
    for name in ("README", "readme", "Größe und Maß.txt", "日本語/文.txt", "-rf", ' "quoted"\t\n', "a\\b", LONG):
        write(repo, name, name[:20])
    write(repo, "ckanext/ckan-notes.json", "{}")
    Path(os.fsdecode(os.fsencode(repo) + b"/latin-\xe9")).write_bytes(b"latin")


def links(repo: Path) -> None:
    write(repo, "bin/run", "#!/bin/sh\n", 0o755)
    write(repo, "bin/plain", "#!/bin/sh\n")
    for name, target in {
        "to file": "bin/run", "to folder": "bin", "nowhere": "no such", "outside": "../../../etc/passwd", "loop": "loop"
    }.items():  # fmt: skip
        (repo / name).symlink_to(target)


def ignored(repo: Path) -> None:
    write(repo, ".gitignore", "*\n")
    write(repo, "dist/built.js", "built\n")
    write(repo, "empty", "")
    repos.git(repo, "add", "--force", "--all")


def submodules(repo: Path) -> None:
    inner = new(repo.parent / "inner.git")
    write(inner, "inner.txt", "inner\n")
    write(inner, "run", "#!/bin/sh\n", 0o755)
    repos._commit(inner, "inner")
    middle = new(repo.parent / "middle.git")
    write(middle, ".gitattributes", "*.txt eol=crlf\n")
    write(middle, "middle.txt", "middle\n")
    repos.git(middle, *LOCAL, "submodule", "add", "-q", "../inner.git", "deep er/inner")
    repos._commit(middle, "middle")
    repos.git(repo, "remote", "add", "origin", str(repo))
    repos.git(repo, *LOCAL, "submodule", "add", "-q", "../middle.git", "vendor/middle")
    repos.git(repo, *LOCAL, "submodule", "add", "-q", str(inner), "absolute")
    repos.git(repo, *LOCAL, "submodule", "add", "-q", str(inner), "never")
    repos.git(repo, "config", "--file", ".gitmodules", "submodule.never.update", "none")
    # Of a commit that is not its head any more.
    repos._commit(inner, "newer")


AWKWARD: dict[str, Callable[[Path], None]] = {
    made.__name__: made for made in (line_endings, encodings, exported, names, links, ignored, submodules)
}


def new(path: Path) -> Path:
    path.mkdir()
    repos.git(path, "init", "-q", "--initial-branch=main")
    return path


@pytest.fixture(scope="session")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A repository for each kind of trouble."""
    made = {}
    for name, fill in AWKWARD.items():
        made[name] = new(tmp_path_factory.mktemp("awkward") / name)
        fill(made[name])
        repos._commit(made[name], name)
    return made


@pytest.fixture
def strange_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose git is set up for its user: it must not matter to what is deployed."""
    home = tmp_path / "home"
    (home / ".config/git").mkdir(parents=True)
    (home / ".config/git/attributes").write_text("*.txt eol=crlf\n*.x filter=mine\n")
    (home / ".gitconfig").write_text(
        "[core]\n autocrlf = true\n symlinks = false\n fileMode = false\n[clone]\n defaultRemoteName = upstream\n"
        f'[filter "none"]\n smudge = touch {home}/ran; cat\n'
        f'[filter "lfs"]\n smudge = touch {home}/ran; false\n process = touch {home}/ran; false\n required = true\n'
        f"[submodule]\n recurse = true\n[init]\n templateDir = {home}/template\n"
    )
    (home / "template/hooks").mkdir(parents=True)
    write(home, "template/hooks/post-checkout", f"#!/bin/sh\ntouch {home}/ran\n", 0o755)
    write(home, "template/info/attributes", "*.txt eol=crlf\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return home


def cloned(repo: Path, target: Path) -> None:
    """What git gives to somebody who has set nothing."""
    command = ["git", *LOCAL, "clone", "-q", "--recurse-submodules", str(repo), str(target)]
    plain = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(command, env=plain, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def tree(top: Path) -> dict[bytes, tuple]:
    """Each file, link and directory below a directory, but what is git's."""
    found: dict[bytes, tuple] = {}
    for folder, folders, files in os.walk(os.fsencode(top)):
        folders[:] = [name for name in folders if name != b".git"]
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            about = os.lstat(path)
            if name == b".git":
                continue
            if stat.S_ISLNK(about.st_mode):
                what: tuple = ("link", os.readlink(path))
            elif stat.S_ISDIR(about.st_mode):
                what = ("directory",)
            else:
                with open(path, "rb") as handle:
                    what = ("file", bool(about.st_mode & 0o100), handle.read())
            found[os.path.relpath(path, os.fsencode(top))] = what
    return found


@pytest.mark.slow
@pytest.mark.parametrize("home", ["no settings of git", "settings of git"])
@pytest.mark.parametrize("kind", AWKWARD)
def test_a_checkout_is_file_by_file_what_git_clone_gives(awkward, tmp_path, kind, home, request: pytest.FixtureRequest):
    repo, target = awkward[kind], tmp_path / "checkout"
    ran = request.getfixturevalue("strange_home") / "ran" if home == "settings of git" else tmp_path / "none"
    cloned(repo, tmp_path / "clone")
    checkout(Origin(str(repo)), repos.git(repo, "rev-parse", "HEAD"), str(target), str(tmp_path / "shared/mirrors"))
    assert tree(target) == tree(tmp_path / "clone")
    assert len(tree(target)) > 2
    assert not ran.exists()
    assert subprocess.run(
        ["git", "-C", target, "status", "--porcelain"], capture_output=True, text=True,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"}, check=True,
    ).stdout == ""  # fmt: skip


@pytest.mark.parametrize("kind", AWKWARD)
def test_a_release_has_the_checkout_as_it_is(awkward, tmp_path, kind):
    repo = awkward[kind]
    got = tmp_path / "checkout"
    checkout(Origin(str(repo)), repos.git(repo, "rev-parse", "HEAD"), str(got), str(tmp_path / "shared/mirrors"))
    (got / ".git/ckan-notes.json").write_text("{}")
    wheel = wheels.make_wheel(tmp_path, "none", "1.0", {"none-1.0.data/scripts/none": "#!/bin/sh\n"})
    shared = str(tmp_path / "shared")
    made = editable.make(str(got), str(wheel), "it", "", sys.executable, shared)
    (tmp_path / "release/src").mkdir(parents=True)
    editable.put(made, str(tmp_path / "release/src/it"))
    there = tree(tmp_path / "release/src/it")
    # What Python would write beside its modules is there already.
    assert {path: what for path, what in there.items() if b"__pycache__" not in path} == tree(got)
    assert not (tmp_path / "release/src/it/.git/ckan-notes.json").exists()
    # Each release would have git's thirteen examples of hooks, 64 KB for each extension.
    assert not list((tmp_path / "release/src/it").rglob("*.sample"))


@pytest.mark.parametrize("kind", AWKWARD)
def test_the_objects_of_a_checkout_and_its_submodules_are_in_packs(awkward, tmp_path, kind):
    """An origin on this host has each in a file of its own, in directories that every release would have as well."""
    repo, target = awkward[kind], tmp_path / "checkout"
    checkout(Origin(str(repo)), repos.git(repo, "rev-parse", "HEAD"), str(target), str(tmp_path / "shared/mirrors"))
    found = [folder for folder in target.rglob("objects") if ".git" in folder.parts and (folder / "pack").is_dir()]
    assert found
    for objects in found:
        assert {folder.name for folder in objects.iterdir()} <= {"pack", "info"}


def in_lfs(repo: Path, *names: str) -> None:
    write(repo, ".gitattributes", "*.png filter=lfs diff=lfs merge=lfs -text\n")
    for name in names:
        write(repo, name, POINTER.format("0" * 64))
    repos._commit(repo, "lfs")


@pytest.mark.parametrize("where", ["in it", "in a submodule"])
def test_files_that_are_in_git_lfs_only_are_refused_by_name_and_nothing_runs(tmp_path, where, request):
    repo = new(tmp_path / "repo")
    if where == "in it":
        in_lfs(repo, "a.png", "b/b.png", "c.png", "d.png")
    else:
        in_lfs(new(tmp_path / "inner"), "logo.png")
        repos.git(repo, *LOCAL, "submodule", "add", "-q", str(tmp_path / "inner"), "vendor/inner")
        repos._commit(repo, "a submodule")
    home = request.getfixturevalue("strange_home")  # not for the making of them
    named = "a.png, c.png, d.png, ..." if where == "in it" else "vendor/inner/logo.png"
    with pytest.raises(FormulaError) as failure:
        checkout(Origin(str(repo)), repos.git(repo, "rev-parse", "HEAD"), str(tmp_path / "one"), str(tmp_path / "m"))
    assert f"{repo} keeps files in Git LFS, which is not fetched ({named}); commit the files" in str(failure.value)
    assert not (home / "ran").exists()


def test_what_is_committed_beside_lfs_is_no_pointer_of_it(tmp_path):
    repo = new(tmp_path / "repo")
    write(repo, ".gitattributes", "*.png filter=lfs\n")
    write(repo, "whole.png", b"\x89PNG whole")
    write(repo, "docs/lfs.txt", POINTER.format("0" * 64))
    (repo / "link.png").symlink_to("docs/lfs.txt")
    commit = repos._commit(repo, "whole")
    checkout(Origin(str(repo)), commit, str(tmp_path / "one"), str(tmp_path / "m"))
    assert (tmp_path / "one/whole.png").read_bytes() == b"\x89PNG whole"
