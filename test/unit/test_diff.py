"""What differs between two releases, in words: what is true of both is no change."""

from __future__ import annotations

from attrs import evolve

from ckan_deploy.releases import diff
from ckan_deploy.releases.manifest import Base, Resolution
from ckan_deploy.sources.pins import Patch, Pin

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HOW = {"by": "ckanext-a", "base": "82.0", "got": "79.0"}
MERGED = Patch("salt://a.patch", "a" * 64, "already applied")
PIN = Pin("git", url="/srv/a", ref="main", ref_kind="branch", commit=COMMIT, patches=(MERGED,), upstream={"behind": 3})
ONE = Resolution(Base("2.12.0", "3.11"), {"ckanext-a": PIN}, (), {"setuptools": "79.0"}, {"setuptools": HOW})


def said(old: Resolution | None, new: Resolution) -> list[str]:
    return diff.sentences(diff.compare(old, new, "/nonexistent"), new)


def test_h17_an_override_is_a_change_where_the_live_release_has_it_not():
    other = evolve(ONE, overridden={"setuptools": {**HOW, "got": "78.0"}})
    without = evolve(ONE, overridden={})
    assert said(ONE, ONE) == []
    assert said(without, ONE) == ["ckanext-a overrides setuptools: 79.0 in place of 82.0"]
    assert said(ONE, other) == ["ckanext-a overrides setuptools: 78.0 in place of 82.0"]
    assert said(ONE, without) == ["setuptools is not overridden any more"]
    assert "ckanext-a overrides setuptools: 79.0 in place of 82.0" in said(None, ONE)


def test_h17_what_an_operator_should_know_in_any_case_is_no_change():
    assert diff.remarks(ONE) == [
        "ckanext-a is 3 commits behind its upstream", "salt://a.patch is in ckanext-a already and is skipped"
    ]  # fmt: skip
    moved = evolve(ONE, extensions={"ckanext-a": PIN.with_(moved_from="f" * 40, ref="v1", ref_kind="tag")})
    assert any("tag v1 of ckanext-a moved" in line for line in said(ONE, moved))
