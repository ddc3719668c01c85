"""What the check of a release keeps of the pages that its plugins add, and what settings of pages are refused."""

from __future__ import annotations

import json

import pytest
from salt.exceptions import CommandExecutionError

from functional.steps import deployed
from stub import repos


@pytest.mark.slow
def test_the_check_keeps_the_pages_of_plugins_in_the_manifest(host, mycity):
    repos.commit_pages(mycity, "Hello pages", {"/harvest": "'well'", "/a b": "'odd'"})
    release = deployed(host)
    manifest = json.loads((host.home / "releases" / release / "release.json").read_text())
    assert manifest["check"]["pages"] == ["/a%20b", "/harvest"]
    assert manifest["check"]["examples"] == []


@pytest.mark.slow
def test_a_login_without_a_password_is_refused_before_anything_is_touched(host, mycity):
    deployed(host)
    before = host.tree()
    host.pillar["web"]["smoke"] = [{"path": "/ckan-admin/", "login": "visitor"}]
    with pytest.raises(CommandExecutionError, match="ckan:secrets:smoke:visitor is missing"):
        host.deploy()
    assert host.tree() == before
