"""Git origins on this host: which commit a ref stands for, and mirrors that survive what happens to them."""

from __future__ import annotations

import concurrent.futures
import shutil
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError

from stub import repos


@pytest.fixture
def source(host):
    """The functions of ckan_source."""
    return host.loaders().modules


@pytest.fixture
def repo(origins) -> Path:
    return repos.make_repo(origins, "alpha", "one", backend="uv_build")


@pytest.fixture
def mirrors(tmp_path) -> str:
    return str(tmp_path / "shared/mirrors")


def resolve(source, repo, ref: str, mirrors: str) -> tuple[str, str]:
    got = source["ckan_source.resolve"]({"url": str(repo), "ref": ref}, mirrors)
    return got["kind"], got["commit"]


def test_a_ref_may_be_a_branch_a_tag_a_full_name_a_head_or_the_beginning_of_a_commit(source, repo, mirrors):
    first = repos.git(repo, "rev-parse", "HEAD")
    repos.tag(repo, "v1")
    second = repos.commit_change(repo, "two")
    assert resolve(source, repo, "main", mirrors) == ("branch", second)
    assert resolve(source, repo, "v1", mirrors) == ("tag", first)
    assert resolve(source, repo, "refs/tags/v1", mirrors) == ("tag", first)
    assert resolve(source, repo, "HEAD", mirrors) == ("head", second)
    assert resolve(source, repo, first, mirrors) == ("commit", first)
    assert resolve(source, repo, first[:8], mirrors) == ("commit", first)
    with pytest.raises(CommandExecutionError, match=r"no branch or tag v2 \(near: v1\)"):
        resolve(source, repo, "v2", mirrors)
    with pytest.raises(CommandExecutionError, match="no branch or tag 0123456"):
        resolve(source, repo, "0123456", mirrors)


def test_a_name_of_a_branch_and_a_tag_is_refused_with_both_commits(source, repo, mirrors):
    first = repos.git(repo, "rev-parse", "HEAD")
    repos.tag(repo, "stable")
    second = repos.commit_change(repo, "two")
    repos.git(repo, "branch", "stable")
    with pytest.raises(CommandExecutionError) as failure:
        resolve(source, repo, "stable", mirrors)
    assert first[:12] in str(failure.value) and second[:12] in str(failure.value)
    assert resolve(source, repo, "refs/heads/stable", mirrors) == ("branch", second)


def test_a_commit_that_no_branch_holds_can_be_had_and_one_that_is_not_there_is_named(source, repo, mirrors, tmp_path):
    lost = repos.commit_change(repo, "two")
    repos.git(repo, "reset", "-q", "--hard", "HEAD~1")
    repos.git(repo, "config", "uploadpack.allowAnySHA1InWant", "true")
    origin = {"url": str(repo)}
    got = source["ckan_source.checkout"](origin, lost, str(tmp_path / "one"), mirrors)
    assert (got["commit"], got["fetched"]) == (lost, True)
    assert repos.git(tmp_path / "one", "rev-parse", "HEAD") == lost
    # It outlives the next fetch, which prunes.
    commit = repos.commit_change(repo, "three")
    source["ckan_source.checkout"](origin, commit, str(tmp_path / "two"), mirrors)
    assert source["ckan_source.checkout"](origin, lost, str(tmp_path / "three"), mirrors)["fetched"] is False
    with pytest.raises(CommandExecutionError, match="has no commit 0123456789"):
        source["ckan_source.checkout"](origin, "0123456789" * 4, str(tmp_path / "four"), mirrors)


@pytest.mark.parametrize("harm", ["a file of it is empty", "it is no repository", "a lock was left"])
def test_a_mirror_that_was_harmed_heals(source, repo, mirrors, tmp_path, harm):
    first = repos.git(repo, "rev-parse", "HEAD")
    source["ckan_source.checkout"]({"url": str(repo)}, first, str(tmp_path / "one"), mirrors)
    (mirror,) = Path(mirrors).glob("*.git")
    if harm == "a file of it is empty":
        (mirror / "HEAD").write_text("")
    elif harm == "it is no repository":
        shutil.rmtree(mirror / "objects")
    else:
        (mirror / "packed-refs.lock").touch()
    second = repos.commit_change(repo, "two")
    source["ckan_source.checkout"]({"url": str(repo)}, second, str(tmp_path / "two"), mirrors)
    assert repos.git(tmp_path / "two", "rev-parse", "HEAD") == second


def test_deploys_at_the_same_time_share_a_mirror(source, repo, mirrors, tmp_path):
    commits = [repos.commit_change(repo, f"turn {turn}") for turn in range(6)]
    check_out = source["ckan_source.checkout"]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        jobs = [
            pool.submit(check_out, {"url": str(repo)}, commit, str(tmp_path / commit), mirrors) for commit in commits
        ]
    assert [job.result()["commit"] for job in jobs] == commits
    assert all(repos.git(tmp_path / commit, "status", "--porcelain") == "" for commit in commits)


def test_another_address_takes_effect(host, source, repo, origins, mirrors):
    moved = origins / "moved with blanks, 'quotes' and ünicode"
    shutil.copytree(repo, moved)
    commit = repos.commit_change(moved, "moved")
    assert resolve(source, repo, "main", mirrors)[1] != commit
    assert resolve(source, moved, "main", mirrors) == ("branch", commit)
    source["ckan_source.checkout"]({"url": str(moved)}, commit, str(origins / "out"), mirrors)
    assert repos.git(origins / "out", "config", "remote.origin.url") == str(moved)
