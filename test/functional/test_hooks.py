"""Hooks before and after stages: order, what they are told, what counts as a failure, and what that stops."""

from __future__ import annotations

from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError

from functional.steps import deployed

pytestmark = pytest.mark.slow


def say(host, stage: str, when: str, text: str = "") -> dict:
    """A hook that writes a line into a file."""
    (host.root / "said").touch()
    line = text or f"{when} {stage} {{release}} {{previous}} {{env}} {{host}}"
    return {
        "stage": stage, "when": when, "function": "file.append",
        "kwargs": {"path": str(host.root / "said"), "args": line},
    }  # fmt: skip


def said(host) -> list[str]:
    path = host.root / "said"
    return path.read_text().splitlines() if path.exists() else []


def command(host, stage: str, when: str, cmd: str, **more) -> dict:
    return {"stage": stage, "when": when, "function": "cmd.shell", "args": [cmd], **more}


def test_hooks_run_in_order_and_are_told_what_it_is_about(host):
    first = deployed(host)
    stages = ("build", "check", "migrate", "start", "activate", "verify", "finish")
    host.pillar["hooks"] = [say(host, stage, when) for stage in stages for when in ("after", "before")]
    second = deployed(host)
    assert said(host) == [
        f"{when} {stage} {second} {first if (stage, when) < ('activate', 'b') or stages.index(stage) < 5 else second}"
        " production web1"
        for stage in stages
        for when in ("before", "after")
    ]
    entry = next(entry for entry in host.history() if entry["stage"] == "verify" and entry["release"] == second)
    assert [(hook["hook"], hook["problem"]) for hook in entry["hooks"]] == [
        ("hook before verify (file.append)", ""), ("hook after verify (file.append)", ""),
    ]  # fmt: skip
    host.pillar["hooks"] = [say(host, "rollback", "after", "back to {release} from {previous}")]
    host.rollback()
    assert said(host)[-1] == f"back to {first} from {second}"


@pytest.mark.parametrize(
    ("hook", "cause"),
    [
        ({"function": "test.exception", "args": ["no such server"]}, r"\*{10}"),  # it says its argument
        ({"function": "test.false"}, "it returned False"),
        ({"function": "cmd.shell", "args": ["echo in vain; exit 3"]}, "exit code 3: in vain"),
        (
            {"function": "cmd.run_all", "args": ["echo in vain >&2; exit 4"], "kwargs": {"python_shell": True}},
            "exit code 4: in vain",
        ),
        ({"function": "test.echo"}, "missing 1 required positional argument"),
        ({"state": "drain"}, "drain-it: .*no such server"),
    ],
)
def test_a_hook_before_a_stage_that_fails_stops_it_before_anything_is_done(host, tmp_path, hook, cause):
    (tmp_path / "drain.sls").write_text(
        "drain-it:\n  test.configurable_test_state:\n    - result: False\n    - changes: False\n"
        "    - comment: no such server for {{ pillar['ckan_hook']['release'] }}\n"
    )
    host.file_roots.append(str(tmp_path))
    first = deployed(host)
    host.pillar["hooks"] = [
        {"stage": "activate", "when": "before", **hook}, say(host, "activate", "after"), say(host, "abort", "after"),
    ]  # fmt: skip
    with pytest.raises(CommandExecutionError, match=f"failed at activate: hook before activate .* failed: .*{cause}"):
        deployed(host)
    assert (host.current(), host.releases()) == (first, [first])
    # What undoes a hook that did its work is one of the revert.
    assert [line.split()[:2] for line in said(host)] == [["after", "abort"]]


def test_a_hook_after_a_stage_that_fails_warns_or_stops(host):
    first = deployed(host)
    host.pillar["hooks"] = [command(host, "verify", "after", "echo no balancer; exit 1")]
    second = deployed(host)
    assert host.current() == second
    entry = next(entry for entry in host.history() if entry["stage"] == "verify" and entry["release"] == second)
    assert (entry["result"], entry["hooks"][0]["problem"]) == ("ok", "exit code 1: no balancer")
    assert host.loaders().modules["ckan_release.verify"](second)["warnings"] == [
        "hook after verify (cmd.shell) failed: exit code 1: no balancer"
    ]
    host.pillar["hooks"][0]["on_failure"] = "stop"
    with pytest.raises(CommandExecutionError, match="failed at verify: hook after verify"):
        deployed(host)
    assert (host.current(), host.releases()) == (second, [first, second])


def test_h03_a_hook_before_finish_that_fails_is_a_warning_and_what_is_left_is_seen(host):
    host.pillar["keep"] = 2
    releases = [deployed(host), deployed(host)]
    host.pillar["hooks"] = [{"stage": "finish", "when": "before", "function": "test.false"}]
    done = host.deploy()
    third = done["current"]
    assert host.current() == third and host.show()["state"] == "live"
    assert f"{third} is live, but its finish failed: hook before finish (test.false) failed" in done["warnings"][0]
    missing = f"the finish of {third} is missing: {releases[0]} is to be pruned; type: ckan_release.finish {third}"
    assert host.status()["unfinished"] == missing
    # A highstate does what is left, and says so.
    host.pillar["hooks"] = []
    would = host.loaders(test=True).states["ckan_release.live"]("production")
    assert would.result is None and missing in would.comment
    did = host.loaders().states["ckan_release.live"]("production")
    assert did.result is True and did.changes == {"finish": {"old": "missing", "new": third}}
    assert host.releases() == [releases[1], third] and "unfinished" not in host.status()
    assert host.loaders().states["ckan_release.live"]("production").changes == {}


@pytest.mark.parametrize(
    ("hook", "sentence"),
    [
        ({"function": "no.such"}, "ckan:hooks:0 names the function no.such, which this host does not have"),
        ({"state": "no.such"}, "ckan:hooks:0 names the state no.such, which is not there"),
        ({}, "ckan:hooks:0 must have a function or a state"),
        ({"function": "test.ping", "state": "x"}, "ckan:hooks:0 must have a function or a state"),
        ({"function": "test.ping", "stage": "deploy"}, "ckan:hooks:0:stage is 'deploy'; use build or check"),
        ({"function": "test.ping", "when": "around"}, "ckan:hooks:0:when is 'around'; use before or after"),
        ({"function": "rm -rf"}, "ckan:hooks:0:function"),
        ({"function": "test.ping", "args": "x"}, "args is a list"),
        (
            {"function": "test.ping", "on_fail": "stop"},
            "ckan:hooks:0:on_fail is not a setting; did you mean ckan:hooks:0:on_failure",
        ),
    ],
)
def test_a_hook_that_cannot_run_is_refused_at_plan(host, hook, sentence):
    host.pillar["hooks"] = [{"stage": "activate", "when": "before", **hook}]
    before = host.tree()
    with pytest.raises(CommandExecutionError, match=sentence):
        deployed(host)
    assert host.releases() == [] and not any(name.startswith("releases/") for name in host.tree() if name not in before)


def test_no_secret_is_in_what_is_said_of_a_hook(host):
    host.pillar["hooks"] = [command(host, "check", "before", "echo wrong: database-password; exit 1")]
    with pytest.raises(CommandExecutionError, match=r"exit code 1: wrong: \*+") as failure:
        deployed(host)
    log = Path(host.home / "shared/deploy.log").read_text()
    assert "database-password" not in str(failure.value) + log
