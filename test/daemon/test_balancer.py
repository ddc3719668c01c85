"""Hooks in an orchestration, and a load balancer that takes a host out while it is deployed to (docs/hooks.md)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from parts.haproxy import HAProxy
from parts.portal import next_second
from parts.visitors import Visitors
from stub import repos

pytestmark = pytest.mark.daemon

DOCS = Path(__file__).resolve().parents[2] / "docs/hooks.md"


def hook(stage: str, when: str, command: str, **more) -> dict:
    return {"stage": stage, "when": when, "function": "cmd.shell", "args": [command], **more}


@pytest.mark.long
def test_a_hook_that_fails_before_a_stage_on_one_host_takes_all_hosts_back(site):
    before = site.linked()
    site.write_host("web2", hooks=[hook("activate", "before", "echo the balancer says no; exit 1")])
    next_second()
    repos.commit_change(site.repo, "Hello hooks")
    done = site.deploy()
    assert done["code"] == 1, done["text"]
    text = " ".join(done["text"].split())
    assert "web2 failed at activate: hook before activate (cmd.shell) failed: exit code 1: the balancer says no" in text
    assert site.linked() == before


@pytest.mark.long
def test_a_hook_that_fails_after_a_stage_is_a_warning_in_the_answer(site):
    site.write_pillar({**site.settings, "hooks": [hook("verify", "after", "echo nobody listens; exit 7")]})
    release = site.good_deploy("Hello warned")
    assert site.linked() == [release, release]
    next_second()
    repos.commit_change(site.repo, "Hello warned again")
    done = site.deploy()
    assert done["code"] == 0
    assert "verify: web1, web2 in" in done["text"]
    assert "hook after verify (cmd.shell) failed: exit code 7: nobody listens" in " ".join(done["text"].split())


def test_the_balancer_of_the_docs_takes_a_host_out_while_it_is_deployed_to(site):
    example = re.search(r"```yaml\n(ckan:\n  hooks:.*?)```", DOCS.read_text(), re.S).group(1)
    balancer = HAProxy(site.sandbox, {host: site.ports[host] for host in site.hosts}).start()
    try:
        text = example.replace("balancer.example.org:9999", f"127.0.0.1:{balancer.admin}")
        hooks = yaml.safe_load(text)["ckan"]["hooks"]
        look = f"echo 'show stat' | socat stdio tcp:127.0.0.1:{balancer.admin} >> {site.sandbox}/seen"
        site.write_pillar({**site.settings, "hooks": [*hooks, hook("activate", "after", look)]})
        for host in site.hosts:
            with Visitors(balancer.port) as visitors:
                next_second()
                repos.commit_change(site.repo, f"Hello {host}")
                code, told = site.call(host, "ckan_release.deploy")
                assert code == 0 and isinstance(told, dict), told
            assert (visitors.failed, visitors.asked > 20) == ([], True)
            seen = (site.sandbox / "seen").read_text().splitlines()
            (site.sandbox / "seen").unlink()
            (drained,) = [line.split(",")[1] for line in seen if line.startswith("ckan,") and ",DRAIN," in line]
            assert drained == host
            assert set(balancer.states().values()) == {"UP"}
        # One that fails comes back into the balancer, too.
        next_second()
        repos.commit_change(site.repo, "Hello never")
        site.write_host("web1", hooks=hooks, web={**site.settings["web"], "health_url": "http://127.0.0.1:1"})
        code, told = site.call("web1", "ckan_release.deploy")
        assert "failed at verify" in str(told)
        assert set(balancer.states().values()) == {"UP"}
    finally:
        balancer.stop()
    site.write_pillar(site.settings)
    site.good_deploy("Hello together")
