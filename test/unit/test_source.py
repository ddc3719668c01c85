"""Git origins on this host: which commit a ref stands for, and mirrors that survive what happens to them."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ckan_deploy.errors import FormulaError
from ckan_deploy.settings.parts import Extension
from ckan_deploy.sources import archives, origins
from ckan_deploy.sources.git import Origin
from ckan_deploy.sources.pins import Pin
from ckan_deploy.sources.repositories import checkout
from ckan_deploy.sources.repositories import resolve as resolved
from fakes import FakeHost
from stub import repos, wheels


@pytest.fixture
def places(tmp_path) -> Path:
    path = tmp_path / "origins"
    path.mkdir()
    return path


@pytest.fixture
def repo(places) -> Path:
    return repos.make_repo(places, "alpha", "one", backend="uv_build")


@pytest.fixture
def mirrors(tmp_path) -> str:
    return str(tmp_path / "shared/mirrors")


def resolve(repo, ref: str, mirrors: str) -> tuple[str, str]:
    got = resolved(Origin(str(repo), ref), mirrors)
    return got.kind, got.commit


def test_a_pin_takes_the_credentials_of_an_origin_but_no_token_to_another_server():
    origin = Origin(
        "https://git.example.org/a.git", "main", deploy_key="k", host_keys=("h",), token="t", submodules=True
    )
    moved = origin.at("https://git.example.org/b.git", False)
    assert (moved.url, moved.token, moved.deploy_key, moved.submodules) == (
        "https://git.example.org/b.git",
        "t",
        "k",
        False,
    )
    for url in (
        "https://evil.example/a.git",
        "http://git.example.org/a.git",
        "https://git.example.org:1/a.git",
        "https://[x",
    ):
        assert origin.at(url, True).token == "" and origin.at(url, True).url == url


def test_a_ref_may_be_a_branch_a_tag_a_full_name_a_head_or_the_beginning_of_a_commit(repo, mirrors):
    first = repos.git(repo, "rev-parse", "HEAD")
    repos.tag(repo, "v1")
    second = repos.commit_change(repo, "two")
    assert resolve(repo, "main", mirrors) == ("branch", second)
    assert resolve(repo, "v1", mirrors) == ("tag", first)
    assert resolve(repo, "refs/tags/v1", mirrors) == ("tag", first)
    assert resolve(repo, "HEAD", mirrors) == ("head", second)
    assert resolve(repo, first, mirrors) == ("commit", first)
    assert resolve(repo, first[:8], mirrors) == ("commit", first)
    with pytest.raises(FormulaError, match=r"no branch or tag v2 \(near: v1\)"):
        resolve(repo, "v2", mirrors)
    with pytest.raises(FormulaError, match="no branch or tag 0123456"):
        resolve(repo, "0123456", mirrors)


def test_a_name_of_a_branch_and_a_tag_is_refused_with_both_commits(repo, mirrors):
    first = repos.git(repo, "rev-parse", "HEAD")
    repos.tag(repo, "stable")
    second = repos.commit_change(repo, "two")
    repos.git(repo, "branch", "stable")
    with pytest.raises(FormulaError) as failure:
        resolve(repo, "stable", mirrors)
    assert first[:12] in str(failure.value) and second[:12] in str(failure.value)
    assert resolve(repo, "refs/heads/stable", mirrors) == ("branch", second)


def test_a_commit_that_no_branch_holds_can_be_had_and_one_that_is_not_there_is_named(repo, mirrors, tmp_path):
    lost = repos.commit_change(repo, "two")
    repos.git(repo, "reset", "-q", "--hard", "HEAD~1")
    repos.git(repo, "config", "uploadpack.allowAnySHA1InWant", "true")
    origin = Origin(str(repo))
    got = checkout(origin, lost, str(tmp_path / "one"), mirrors)
    assert (got.commit, got.fetched) == (lost, True)
    assert repos.git(tmp_path / "one", "rev-parse", "HEAD") == lost
    # It outlives the next fetch, which prunes.
    commit = repos.commit_change(repo, "three")
    checkout(origin, commit, str(tmp_path / "two"), mirrors)
    assert checkout(origin, lost, str(tmp_path / "three"), mirrors).fetched is False
    with pytest.raises(FormulaError, match="has no commit 0123456789"):
        checkout(origin, "0123456789" * 4, str(tmp_path / "four"), mirrors)


@pytest.mark.parametrize("harm", ["a file of it is empty", "it is no repository", "a lock was left"])
def test_a_mirror_that_was_harmed_heals(repo, mirrors, tmp_path, harm):
    first = repos.git(repo, "rev-parse", "HEAD")
    checkout(Origin(str(repo)), first, str(tmp_path / "one"), mirrors)
    (mirror,) = Path(mirrors).glob("*.git")
    if harm == "a file of it is empty":
        (mirror / "HEAD").write_text("")
    elif harm == "it is no repository":
        shutil.rmtree(mirror / "objects")
    else:
        (mirror / "packed-refs.lock").touch()
    second = repos.commit_change(repo, "two")
    checkout(Origin(str(repo)), second, str(tmp_path / "two"), mirrors)
    assert repos.git(tmp_path / "two", "rev-parse", "HEAD") == second


@pytest.mark.slow
def test_deploys_at_the_same_time_share_a_mirror(repo, mirrors, tmp_path):
    commits = [repos.commit_change(repo, f"turn {turn}") for turn in range(6)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(checkout, Origin(str(repo)), commit, str(tmp_path / commit), mirrors) for commit in commits]
    assert [job.result().commit for job in jobs] == commits
    assert all(repos.git(tmp_path / commit, "status", "--porcelain") == "" for commit in commits)


def test_another_address_takes_effect(repo, places, mirrors):
    moved = places / "moved with blanks, 'quotes' and ünicode"
    shutil.copytree(repo, moved)
    commit = repos.commit_change(moved, "moved")
    assert resolve(repo, "main", mirrors)[1] != commit
    assert resolve(moved, "main", mirrors) == ("branch", commit)
    checkout(Origin(str(moved)), commit, str(places / "out"), mirrors)
    assert repos.git(places / "out", "config", "remote.origin.url") == str(moved)


def fetched_in_part(repo: Path, mirrors: str, tmp_path: Path, lost: str) -> str:
    """A mirror into which a newer commit came as far as a fetch that was killed left it; returns the commit."""
    checkout(Origin(str(repo)), repos.git(repo, "rev-parse", "HEAD"), str(tmp_path / "before"), mirrors)
    commit = repos.commit_change(repo, "two")
    (mirror,) = Path(mirrors).glob("*.git")
    kept = [commit] if lost == "trees" else repos.git(repo, "rev-list", "--objects", commit).split()
    change = repos.git(repo, "rev-parse", f"{commit}:ckanext/alpha/plugin.py")
    for name in kept:
        if (repo / ".git/objects" / name[:2] / name[2:]).exists() and (lost == "trees" or name != change):
            (mirror / "objects" / name[:2]).mkdir(exist_ok=True)
            shutil.copy(repo / ".git/objects" / name[:2] / name[2:], mirror / "objects" / name[:2] / name[2:])
    repos.git(mirror, "cat-file", "-e", f"{commit}^{{commit}}")
    return commit


@pytest.mark.parametrize("lost", ["trees", "a file"])
@pytest.mark.parametrize("tip", [True, False], ids=["of a branch", "of no branch"])
def test_h23_a_commit_that_a_killed_fetch_has_left_in_part_is_fetched_again(repo, mirrors, tmp_path, lost, tip):
    commit = fetched_in_part(repo, mirrors, tmp_path, lost)
    if not tip:
        repos.git(repo, "config", "uploadpack.allowAnySHA1InWant", "true")
        repos.git(repo, "reset", "-q", "--hard", "HEAD~1")
    got = checkout(Origin(str(repo)), commit, str(tmp_path / "two"), mirrors)
    assert (got.fetched, repos.git(tmp_path / "two", "status", "--porcelain")) == (True, "")
    assert "two" in (tmp_path / "two/ckanext/alpha/plugin.py").read_text()
    # Known to be whole from now on: nobody is asked again, and nothing is looked through.
    shutil.rmtree(repo)
    assert checkout(Origin(str(repo)), commit, str(tmp_path / "three"), mirrors).fetched is False


def test_h23_what_a_killed_git_has_left_in_a_mirror_stops_nothing_and_is_removed(repo, mirrors, tmp_path):
    checkout(Origin(str(repo)), repos.git(repo, "rev-parse", "HEAD"), str(tmp_path / "one"), mirrors)
    (mirror,) = Path(mirrors).glob("*.git")
    left = [mirror / name for name in ("refs/heads/main.lock", "objects/pack/tmp_pack_x", "objects/tmp_objdir-x/y")]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    second = repos.commit_change(repo, "two")
    checkout(Origin(str(repo)), second, str(tmp_path / "two"), mirrors)
    assert repos.git(tmp_path / "two", "rev-parse", "HEAD") == second
    assert [path for path in left if path.exists()] == []


@pytest.mark.parametrize("harm", ["a branch is empty", "a file is lost", "an older file is lost"])
def test_h23_a_mirror_that_lost_something_is_made_anew_when_the_origin_gives_it(repo, mirrors, tmp_path, harm):
    first = repos.git(repo, "rev-parse", "HEAD")
    checkout(Origin(str(repo)), first, str(tmp_path / "one"), mirrors)
    (mirror,) = Path(mirrors).glob("*.git")
    repos.git(mirror, "repack", "-qad")
    change = repos.git(repo, "rev-parse", "HEAD:ckanext/alpha/plugin.py")
    wanted = first if harm == "a file is lost" else repos.commit_change(repo, "two")
    if harm == "a branch is empty":
        (mirror / "packed-refs").unlink(missing_ok=True)
        (mirror / "refs/heads/main").write_text("")
    else:
        (pack,) = (mirror / "objects/pack").glob("*.pack")
        data = pack.read_bytes()
        for file in (mirror / "objects/pack").iterdir():
            file.unlink()
        subprocess.run(["git", "-C", mirror, "unpack-objects", "-q"], input=data, check=True)
        (mirror / "objects" / change[:2] / change[2:]).unlink()
    moved = repo.rename(repo.with_name("away"))
    with pytest.raises(FormulaError, match="cannot be fetched"):
        checkout(Origin(str(repo)), wanted, str(tmp_path / "two"), mirrors)
    assert mirror.is_dir()
    moved.rename(repo)
    checkout(Origin(str(repo)), wanted, str(tmp_path / "three"), mirrors)
    assert repos.git(tmp_path / "three", "rev-parse", "HEAD") == wanted
    assert repos.git(tmp_path / "three", "status", "--porcelain") == ""
    assert sorted(path.name for path in Path(mirrors).iterdir()) == [mirror.name, f"{mirror.name}.lock"]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_h23_a_fetch_that_the_disk_had_no_room_for_is_done_again(repo, tmp_path):
    first, commits = repos.git(repo, "rev-parse", "HEAD"), []
    for turn in range(2):
        for name in range(40):
            (repo / f"{turn}-{name}").write_bytes(os.urandom(6000))
        repos.git(repo, "add", "--all")
        repos.git(repo, "commit", "-qm", f"turn {turn}")
        commits.append(repos.git(repo, "rev-parse", "HEAD"))
    repos.git(repo, "reset", "-q", "--hard", first)
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "none", disk], check=True)
    try:
        checkout(Origin(str(repo)), first, str(tmp_path / "first"), str(disk / "mirrors"))
        for commit, room in zip(commits, (20, 150), strict=True):
            repos.git(repo, "reset", "-q", "--hard", commit)
            used = int(subprocess.check_output(["du", "-sk", disk], text=True).split()[0])
            subprocess.run(["mount", "-o", f"remount,size={used + room}k", disk], check=True)
            with pytest.raises(FormulaError, match="cannot be fetched"):
                checkout(Origin(str(repo)), commit, str(tmp_path / "none"), str(disk / "mirrors"))
            subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
            checkout(Origin(str(repo)), commit, str(tmp_path / commit), str(disk / "mirrors"))
            assert repos.git(tmp_path / commit, "status", "--porcelain") == ""
    finally:
        subprocess.run(["umount", disk], check=True)


def pin_of(repo: Path, commit: str) -> tuple[Extension, Pin]:
    return Extension(url=str(repo), ref="main"), Pin("git", url=str(repo), ref="main", commit=commit)


def test_h23_a_checkout_that_is_not_whole_is_made_anew(repo, tmp_path):
    commit, shared = repos.git(repo, "rev-parse", "HEAD"), str(tmp_path / "shared")
    extension, pin = pin_of(repo, commit)
    # What a power failure, or a removal that was killed, left.
    (Path(origins.place(pin, shared)) / "ckanext").mkdir(parents=True)
    got = origins.prepare(FakeHost(), "ckanext-alpha", extension, pin, shared)
    assert repos.git(Path(got.checkout), "status", "--porcelain") == ""


def test_h23_a_checkout_is_out_of_its_place_before_its_removal_begins(repo, tmp_path, monkeypatch):
    commit, shared = repos.git(repo, "rev-parse", "HEAD"), str(tmp_path / "shared")
    extension, pin = pin_of(repo, commit)
    place = Path(origins.prepare(FakeHost(), "ckanext-alpha", extension, pin, shared).checkout)

    def killed(path: str, ignore_errors: bool = False) -> None:
        if Path(path).is_dir():
            (Path(path) / "ckanext/alpha/plugin.py").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "rmtree", killed)
        origins.forget([], shared)
    got = origins.prepare(FakeHost(), "ckanext-alpha", extension, pin, shared)
    assert repos.git(Path(got.checkout), "status", "--porcelain") == ""
    # The rest of it goes with the next one.
    assert origins.forget([pin], shared) == [f"{place}.gone"]
    assert sorted(path.name for path in place.parent.iterdir()) == [".lock", commit]


def test_an_archive_that_a_killed_run_was_fetching_leaves_nothing(tmp_path):
    (tmp_path / "files").mkdir()
    file = wheels.make_wheel(tmp_path / "files", "sharedlib", "1.0")
    kept = tmp_path / "archives"
    (kept / ".fetch-killed").mkdir(parents=True)
    (kept / ".fetch-killed/half.whl").write_bytes(b"x")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    host = FakeHost(file_roots=(tmp_path / "files",))
    got = archives.fetch(host, "sharedlib", f"salt://{file.name}", f"sha256={digest}", str(kept))
    assert Path(got).read_bytes() == file.read_bytes()
    assert [path.name for path in kept.iterdir()] == [digest[:16]]
