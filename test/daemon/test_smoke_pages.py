"""A deploy asks a new release for its pages: one that is broken in it alone never reaches a visitor."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.conftest import Site
from parts.portal import next_second
from stub import repos

pytestmark = pytest.mark.daemon

WELL, BROKEN, HANGS = "'a page'", "1 / 0", "__import__('time').sleep(20) or 'late'"


@pytest.fixture(scope="module")
def lone(stub_base: Path) -> Iterator[Site]:
    """A portal on one host whose plugin has a page, after its first highstate."""
    with Site(stub_base, hosts=["web1"]) as site:
        repos.commit_pages(site.repo, "Hello pages", {"/harvest": WELL})
        site.settings["web"].update(smoke_timeout=2, warm=["/", "/harvest"])
        site.write_pillar(site.settings)
        site.set_up()
        yield site


def deploy(site: Site, pages: dict[str, str]) -> tuple[int, str]:
    """Deploy a plugin with such pages; the exit code, and what was said on one line."""
    next_second()
    repos.commit_pages(site.repo, f"Hello {' '.join(pages.values())}", pages)
    done = site.deploy()
    assert "Traceback" not in done["text"], done["text"]
    return done["code"], " ".join(done["text"].split())


def test_h14_a_page_that_is_broken_by_a_release_stops_it_before_the_switch(lone):
    before, served = lone.current("web1"), lone.served()
    code, said = deploy(lone, {"/harvest": BROKEN})
    assert code == 1 and "web1 failed at activate: " in said, said
    assert "fail: /harvest answers 500 (the live release answers 200); see " in said, said
    assert (lone.current("web1"), lone.served(), lone.get("/harvest", "web1")[0]) == (before, served, 200)


def test_a_page_that_hangs_stops_it_within_its_time(lone):
    before = lone.current("web1")
    begun = time.monotonic()
    code, said = deploy(lone, {"/harvest": WELL, "/new": HANGS})
    assert code == 1 and "/new gives no answer within 2 seconds (ckan:web:smoke_timeout)" in said, said
    assert lone.current("web1") == before and time.monotonic() - begun < 60


def test_a_page_that_is_broken_already_is_a_warning_and_a_page_may_be_left_out(lone):
    web = {**lone.settings["web"], "smoke_skip": ["/harvest"]}
    lone.write_pillar({**lone.settings, "web": web})
    code, said = deploy(lone, {"/harvest": BROKEN})
    assert code == 0 and lone.get("/harvest", "web1")[0] == 500, said
    lone.write_pillar(lone.settings)
    code, said = deploy(lone, {"/harvest": BROKEN, "/more": WELL})
    assert code == 0 and "/harvest answers 500, as in the release before" in said, said
    assert lone.get("/more", "web1")[0] == 200
