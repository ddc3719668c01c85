"""Git origins on this host: which commit a ref stands for, and mirrors that survive what happens to them."""

from __future__ import annotations

import concurrent.futures
import shutil
from pathlib import Path

import pytest

from ckan_deploy.errors import FormulaError
from ckan_deploy.sources.git import Origin
from ckan_deploy.sources.repositories import checkout
from ckan_deploy.sources.repositories import resolve as resolved
from stub import repos


@pytest.fixture
def origins(tmp_path) -> Path:
    path = tmp_path / "origins"
    path.mkdir()
    return path


@pytest.fixture
def repo(origins) -> Path:
    return repos.make_repo(origins, "alpha", "one", backend="uv_build")


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


def test_deploys_at_the_same_time_share_a_mirror(repo, mirrors, tmp_path):
    commits = [repos.commit_change(repo, f"turn {turn}") for turn in range(6)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(checkout, Origin(str(repo)), commit, str(tmp_path / commit), mirrors) for commit in commits]
    assert [job.result().commit for job in jobs] == commits
    assert all(repos.git(tmp_path / commit, "status", "--porcelain") == "" for commit in commits)


def test_another_address_takes_effect(repo, origins, mirrors):
    moved = origins / "moved with blanks, 'quotes' and ünicode"
    shutil.copytree(repo, moved)
    commit = repos.commit_change(moved, "moved")
    assert resolve(repo, "main", mirrors)[1] != commit
    assert resolve(moved, "main", mirrors) == ("branch", commit)
    checkout(Origin(str(moved)), commit, str(origins / "out"), mirrors)
    assert repos.git(origins / "out", "config", "remote.origin.url") == str(moved)
