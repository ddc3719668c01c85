"""Stages on one host: what they refuse before anything is done, and what must never keep a revert from being made."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckan_deploy.database import search_index
from ckan_deploy.deploy import deploy, stages
from ckan_deploy.errors import FormulaError, InvalidArgument
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import maintenance
from fakes import FakeHost, least_pillar

RELEASE = "20260101000000Z"
ODD = ["x; touch /tmp/x", "../20260101000000Z", "20260101000000Z\n", "", None, 20260101000000, ["20260101000000Z"]]
BY_RELEASE = [
    stages.build, stages.check, stages.migrate, stages.start, stages.activate, stages.verify, stages.finish,
    stages.abort, search_index.rebuild,
]  # fmt: skip


@pytest.fixture
def site() -> Iterator[Site]:
    root = Path(tempfile.mkdtemp(prefix="ckan-u-", dir="/tmp"))  # pytest's own directories are too long for a socket
    names = ("build", "check", "migrate", "start", "activate", "verify", "finish", "abort", "index")
    hooks = [{"stage": name, "when": "before", "function": "x.tell", "args": ["{release}"]} for name in names]
    host = FakeHost({"ckan": least_pillar(root, hooks=hooks)})
    host.functions["x.tell"] = lambda release: told.append(release)
    told: list[str] = []
    host.told = told  # type: ignore[attr-defined]
    yield Site.of(host)
    shutil.rmtree(root)


@pytest.mark.parametrize("stage", BY_RELEASE, ids=lambda stage: stage.__name__)
@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_what_is_no_release_is_refused_before_a_hook_is_told_of_it(site: Site, stage: Any, odd: Any):
    with pytest.raises(InvalidArgument, match="is not a release id"):
        stage(site, odd)
    assert site.host.told == [] and site.log.read() == []  # type: ignore[attr-defined]


def test_a_deploy_refuses_an_odd_release_before_it_takes_the_lock(site: Site):
    with pytest.raises(FormulaError, match="the deploy failed at plan: .* is not a release id"):
        deploy.deploy(lambda: site, release={"x": 1})  # type: ignore[arg-type]
    assert not Path(site.paths.shared, "lock").exists()


def test_a_host_is_reverted_whatever_the_reason_is(site: Site):
    site.releases.create(RELEASE)
    reason = "build: the packages cannot be resolved:\n  x\u00a01 " + "and so on " * 500
    assert stages.abort(site, RELEASE, reason) == {"current": "", "removed": True}
    entry = site.log.read(1)[0]
    assert entry["result"] == "ok" and entry["reason"].startswith("build: the packages cannot be resolved: x 1 and so")
    assert len(entry["reason"]) == 2000


@pytest.mark.parametrize("odd", [{"by": ["eve"]}, {"by": "eve\n"}, {"job": {}}, {"reason": {}}], ids=repr)
def test_who_asks_and_why_are_text(site: Site, odd: dict[str, Any]):
    site.releases.create(RELEASE)
    with pytest.raises(InvalidArgument, match="must be a line of text"):
        stages.abort(site, RELEASE, **odd)
    with pytest.raises(InvalidArgument, match="must be a line of text"):
        stages.activate(site, RELEASE, **odd)
    if "job" not in odd:
        with pytest.raises(InvalidArgument, match="must be a line of text"):
            maintenance.on(site, **odd)
        assert not maintenance.status(site)["on"]


@pytest.mark.parametrize(
    "odd", [{"a": 1}, {"ckan": "2.11", "schema": "h"}, {"ckan": "2.11", "schema": 1, "plugins": {}},
            {"ckan": "2.11", "schema": "h", "plugins": {"p": {}}}, {"ckan": "2.11", "schema": "h", "plugins": ["p"]}],
    ids=repr,
)  # fmt: skip
def test_what_an_index_cannot_be_made_of_is_refused(odd: dict[str, Any]):
    with pytest.raises(InvalidArgument, match="that is not what an index is made of"):
        search_index.checked(odd)


def test_what_an_index_is_made_of_is_taken():
    for made_of in (
        {},
        {"ckan": "2.11", "schema": "h", "plugins": {}},
        {"ckan": "2", "schema": "h", "plugins": {"p": "1"}},
    ):
        assert search_index.checked(made_of) is made_of
