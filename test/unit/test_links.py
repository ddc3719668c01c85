"""The pages that show a commit, by the address of its origin."""

from __future__ import annotations

import pytest

from ckan_deploy.sources import links

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("origin", "page"),
    [
        ("https://github.com/ckan/ckanext-x.git", f"https://github.com/ckan/ckanext-x/commit/{COMMIT}"),
        ("git@github.com:ckan/ckanext-x.git", f"https://github.com/ckan/ckanext-x/commit/{COMMIT}"),
        ("ssh://git@gitlab.example.org:2222/a/b/c.git", f"https://gitlab.example.org/a/b/c/-/commit/{COMMIT}"),
        ("https://me:secret@gitlab.com:8443/a/b?private_token=x", f"https://gitlab.com:8443/a/b/-/commit/{COMMIT}"),
        ("https://gitea.example.org/a/b/", f"https://gitea.example.org/a/b/commit/{COMMIT}"),
        ("https://codeberg.org/a/b.git", f"https://codeberg.org/a/b/commit/{COMMIT}"),
        ("https://bitbucket.org/a/b.git", f"https://bitbucket.org/a/b/commits/{COMMIT}"),
        # Nobody knows where such a server shows commits.
        ("https://git.example.org/a/b.git", ""),
        ("/srv/git/github/a/b.git", ""),
        ("file:///srv/github.com/a/b", ""),
        ("http://github.com/a/b", ""),
        ("https://github.com/a", ""),
        ("https://github.com/a/../b", ""),
        ('https://github.com/a/b"onclick=x', ""),
        ("javascript:alert(1)//github.com/a/b", ""),
        ("https://github.com:port/a/b", ""),
        ("", ""),
    ],
)
def test_the_page_of_a_commit_follows_from_its_origin_and_has_no_login(origin: str, page: str) -> None:
    assert links.commit_page(origin, COMMIT) == page


@pytest.mark.parametrize("commit", ["main", COMMIT[:12], "", COMMIT + "/../.."])
def test_what_is_no_commit_has_no_page(commit: str) -> None:
    assert links.commit_page("https://github.com/a/b", commit) == ""
