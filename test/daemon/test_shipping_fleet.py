"""
Two web hosts without any tool of a build, a builder of its own, and Salt's own file transfer between them. A host of
another environment builds for itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from daemon.conftest import PASSWORD, SESSION, Site
from parts.portal import next_second
from stub import repos

pytestmark = pytest.mark.daemon

WEB, BUILDER, STAGING = ("web1", "web2"), "web-build", "staging-web1"
TRANSFER = {"file_recv": True, "fileserver_backend": ["roots", "minionfs"]}


@pytest.fixture(scope="module")
def site(stub_base: Path) -> Iterator[Site]:
    secrets = {env: {"database:password": PASSWORD, "secrets:session": SESSION} for env in ("production", "staging")}
    with Site(stub_base, (*WEB, BUILDER, STAGING), options={"master": TRANSFER}, secrets=secrets) as site:
        site.settings["build"] = {"ship": True, "host": BUILDER}
        site.write_pillar(site.settings)
        for host in WEB:
            # No base, and an installer that is not there.
            change(site, host, paths={"base": "/nonexistent/base"}, installer={"uv": "/nonexistent/uv"})
        change(site, BUILDER, build={**site.settings["build"], "only": True})
        change(site, STAGING, build={})
        site.set_up()
        yield site


def change(site: Site, host: str, **settings: Any) -> None:
    file = site.overlay(host)
    told = yaml.safe_load(file.read_text())
    told["ckan"].update(settings)
    file.write_text(yaml.safe_dump(told))


def deployed(site: Site, text: str) -> dict[str, Any]:
    next_second()
    repos.commit_change(site.repo, text)
    done = site.deploy()
    assert done["code"] == 0, done["text"]
    return done


def on_master(site: Site) -> list[Path]:
    return [path for path in (site.sandbox / "salt/m").rglob("*.tar.gz")]


def test_one_host_builds_and_the_others_serve_what_it_has_built(site: Site) -> None:
    # The highstate was content with hosts that have nothing yet.
    assert [site.current(host) for host in WEB] == ["", ""]
    done = deployed(site, "Hello shipped")
    (release,) = {site.current(host) for host in WEB}
    assert release and f"{release} is live in production on web1, web2 " in done["summary"]
    assert [site.get("/", host)[2] for host in WEB] == [release, release]
    assert all("Hello shipped" in site.get("/", host)[1] for host in WEB)
    lines = [line.split()[:2] for line in done["progress"].splitlines() if " s" in line]
    assert [host for stage, host in lines if stage == "build" and host in (*WEB, BUILDER)][0] == BUILDER
    manifests = [json.loads((site.root(host) / f"usr/lib/ckan/releases/{release}/release.json").read_text())
                 for host in (*WEB, BUILDER)]  # fmt: skip
    assert [manifest.get("built_on", "") for manifest in manifests] == [BUILDER, BUILDER, ""]
    assert [manifest["state"] for manifest in manifests] == ["live", "live", "built"]
    assert len({manifest["layer"] for manifest in manifests}) == 1
    assert (site.current(BUILDER), on_master(site)) == ("", [])
    assert not (site.root("web1") / "usr/lib/ckan/shared/mirrors").exists()


def test_the_next_one_takes_the_same_layer_and_nothing_to_deploy_is_seen(site: Site) -> None:
    deployed(site, "Hello again")
    assert all("Hello again" in site.get("/", host)[1] for host in WEB)
    # They cloned the layer meanwhile.
    logs = [(site.root(host) / "usr/lib/ckan/shared/deploy.log").read_text().splitlines() for host in WEB]
    ran = [
        [entry["stage"] for entry in map(json.loads, log) if entry["release"] == site.current("web1")] for log in logs
    ]
    assert [stages[:2] for stages in ran] == [["clone", "build"]] * 2
    # The builder keeps its last one alone.
    assert site.releases(BUILDER) == [site.current("web1")]
    next_second()
    done = site.deploy()
    assert done["code"] == 0 and "Nothing to deploy" in done["summary"], done["text"]
    code, told = site.status()
    assert code == 0 and set(told["hosts"]) == set(WEB), told


def test_a_promotion_is_built_once_of_the_lock_file_of_the_other_environment(site: Site) -> None:
    next_second()
    commit = repos.commit_change(site.repo, "Hello staging")
    done = site.highstate(env="staging")
    assert done["code"] == 0, done["text"]
    release = site.current(STAGING)
    later = repos.commit_change(site.repo, "Hello later")
    next_second()
    done = site.deploy(**{"from": "staging"})
    assert done["code"] == 0, done["text"]
    assert f"as {release} of staging has it" in " ".join(done["text"].split())
    assert all("Hello staging" in site.get("/", host)[1] for host in WEB)
    mine = site.current("web1")
    paths = [site.root(host) / f"usr/lib/ckan/releases/{mine}" for host in (*WEB, BUILDER)]
    paths.append(site.root(STAGING) / f"usr/lib/ckan/releases/{release}")
    manifests = [json.loads((path / "release.json").read_text()) for path in paths]
    assert [manifest.get("built_on", "") for manifest in manifests] == [BUILDER, BUILDER, "", ""]
    assert {about["extensions"]["ckanext-mycity"]["commit"] for about in manifests} == {commit} != {later}
    assert len({(path / "pylock.toml").read_bytes() for path in paths}) == 1
    code, told = site.call("web2", "ckan_release.show")
    assert code == 0 and told["promoted"] == {"env": "staging", "release": release}
    next_second()
    done = site.deploy(**{"from": "staging"})
    assert done["code"] == 0 and "Nothing to deploy" in done["text"], done["text"]


def test_a_failure_leaves_nothing_of_the_candidate_on_any_host(site: Site) -> None:
    before = site.disk()
    next_second()
    repos.commit_broken(site.repo, "no such table: trees")
    done = site.deploy()
    assert done["code"] == 1 and "no such table: trees" in done["summary"], done["text"]
    assert site.disk() == before
    assert on_master(site) == []
    repos.commit_change(site.repo, "mended")
