"""What a deploy on one host says, and leaves, when something fails: at each stage and between them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import quick
from quick import Quick

from ckan_deploy.build import resolution
from ckan_deploy.database import backends, changes, compatibility
from ckan_deploy.deploy import candidates, deploy, preflight, rollback, stages, status, switch
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases import lock
from ckan_deploy.releases.log import Log
from ckan_deploy.releases.store import Releases
from ckan_deploy.serve import app_server, draining, health, maintenance, services

BEFORE_THE_END = ("build", "check", "migrate", "start", "activate", "verify")
CAUSES = [
    pytest.param(FormulaError("the cause"), id="sentence"),
    pytest.param(OSError(errno.ENOSPC, "No space left on device", "/x/y"), id="system"),
    pytest.param(KeyError("cause"), id="fault of the code"),
]
SAID = {FormulaError: "the cause", OSError: "No space left on device: /x/y", KeyError: "KeyError: 'cause'"}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Quick]:
    yield from quick.make(monkeypatch)


@pytest.fixture
def closing(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A portal whose maintenance mode is a note here; returns the note."""
    note = {"on": False}

    def on(*_: Any, **__: Any) -> dict[str, Any]:
        note["on"] = True
        return {"changed": True}

    def off(*_: Any) -> dict[str, Any]:
        note["on"] = False
        return {}

    monkeypatch.setattr(maintenance, "on", on)
    monkeypatch.setattr(maintenance, "off", off)
    monkeypatch.setattr(maintenance, "status", lambda site: dict(note))
    monkeypatch.setattr(compatibility, "mismatch", lambda *_: "")
    return note


def raising(exc: BaseException) -> Any:
    def fail(*_: Any, **__: Any) -> Any:
        raise exc

    return fail


def fails(host: Quick, **options: Any) -> str:
    with pytest.raises(FormulaError) as failure:
        host.deploy(**options)
    return str(failure.value)


def is_as_before(host: Quick, first: str) -> None:
    """One release, live and current; nothing else is left, nobody is at work."""
    site = host.site()
    assert (site.releases.current(), host.releases()) == (first, [first])
    assert site.releases.read(first).state == "live"
    assert not [name for name in os.listdir(host.home) if name.endswith(".tmp")]
    assert lock.busy(site) == ""


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("stage", BEFORE_THE_END)
def test_whatever_fails_in_a_stage_is_reverted_and_said(host, monkeypatch, stage, cause):
    first = host.deploy()
    with monkeypatch.context() as patched:
        patched.setattr(stages, stage, raising(cause))
        said = fails(host)
    assert f"failed at {stage}: {SAID[type(cause)]} -- this host serves {first} as before" in said
    assert "nothing was touched" not in said
    is_as_before(host, first)
    assert host.deploy() > first


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("stage", BEFORE_THE_END)
def test_a_hook_that_fails_is_a_failure_of_its_stage(host, stage, when, cause):
    first = host.deploy()
    host.hook(stage, when, raising(cause), on_failure="stop")
    said = fails(host)
    assert f"failed at {stage}: hook {when} {stage}" in said and f"-- this host serves {first} as before" in said
    is_as_before(host, first)


def test_apache_is_asked_until_it_has_nothing_of_a_candidate_before_that_is_removed(host, monkeypatch):
    """A process that still loads CKAN from a release that is removed answers 500."""
    first = host.deploy()
    monkeypatch.setattr(health, "POLL_SECONDS", 0)
    seen, leave = [], health.leave

    def of_apache(site: Any) -> Any:
        return attrs.evolve(
            site, settings=attrs.evolve(site.settings, web=attrs.evolve(site.settings.web, server="apache"))
        )

    def processes(site: Any) -> list[dict[str, Any]]:
        candidate = max(host.releases())
        assert candidate > first and site.releases.current() == first
        # It has loaded nothing yet, then the candidate, and then there is one of the release before.
        return [{"pid": 1, "release": ["", candidate, first][len(seen)]}]

    with monkeypatch.context() as patched:
        patched.setattr(stages, "verify", raising(FormulaError("the cause")))
        patched.setattr(app_server, "processes", processes)
        patched.setattr(health, "_problem", lambda site, release: seen.append(release))
        patched.setattr(health, "leave", lambda site, release: leave(of_apache(site), release))
        fails(host)
    assert len(seen) == 2
    is_as_before(host, first)


@pytest.mark.parametrize(("stage", "visited"), [("check", False), ("start", False), ("verify", True)])
def test_only_a_candidate_that_visitors_were_sent_to_is_waited_for(host, monkeypatch, stage, visited):
    host.deploy()
    real, drained = draining.stop, []

    def stop(site: Any, path: str, drain: bool = True) -> bool:
        drained.append(drain)
        return real(site, path, drain)

    with monkeypatch.context() as patched:
        patched.setattr(stages, stage, raising(FormulaError("the cause")))
        patched.setattr(draining, "stop", stop)
        fails(host)
    assert drained == [visited]


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("between", ["close", "open", "switch noted", "left noted", "told to apache"])
def test_whatever_fails_between_the_stages_is_reverted_and_said(host, monkeypatch, closing, between, cause):
    first = host.deploy()
    real, calls = Releases.set_state, []

    def noting(self: Releases, release: str, state: str, *args: Any, **kwargs: Any) -> Any:
        if (state, release == first) == (("live", False) if between == "switch noted" else ("retired", True)):
            if not calls:
                calls.append(state)
                raise cause
        return real(self, release, state, *args, **kwargs)

    with monkeypatch.context() as patched:
        if between in ("close", "open"):
            function = {"close": "on", "open": "off"}[between]
            work = getattr(maintenance, function)

            def half(*args: Any, **kwargs: Any) -> Any:
                if not calls:
                    calls.append(function)
                    if function == "on":
                        work()  # visitors have the page already
                    raise cause
                return work(*args, **kwargs)

            patched.setattr(maintenance, function, half)
        elif between == "told to apache":
            patched.setattr(
                app_server, "switched", lambda *_: calls.append("") or raising(cause)() if not calls else None
            )
        else:
            patched.setattr(Releases, "set_state", noting)
        said = fails(host, closed=True)
    assert calls
    stage = {"close": "migrate", "open": "verify"}.get(between, "activate")
    assert f"failed at {stage}: {SAID[type(cause)]} -- this host serves {first} as before; mend" in said
    assert not closing["on"]
    is_as_before(host, first)


@pytest.mark.parametrize("cause", CAUSES)
def test_what_fails_at_plan_has_touched_nothing(host, monkeypatch, cause):
    first = host.deploy()
    with monkeypatch.context() as patched:
        patched.setattr(deploy.plan, "make", raising(cause))
        assert fails(host) == f"the deploy failed at plan: {SAID[type(cause)]} -- nothing was touched."
    is_as_before(host, first)


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("what", ["hook", "stop_others", "follow", "log", "whole"])
def test_h03_what_fails_after_verify_is_a_warning_and_the_release_is_live(host, monkeypatch, what, cause):
    first = host.deploy()
    with monkeypatch.context() as patched:
        if what == "hook":
            host.hook("finish", "before", raising(cause))
        elif what == "stop_others":
            patched.setattr(draining, "stop_others", raising(cause))
        elif what == "follow":
            patched.setattr(services, "follow", raising(cause))
        elif what == "whole":
            patched.setattr(stages, "finish", raising(cause))
        else:
            patched.setattr(Log, "append", lambda self, **entry: "" if entry["stage"] != "finish" else "no history")
        done = host.deployed()
    second = done["current"]
    assert host.site().releases.current() == second > first
    assert host.site().releases.read(second).state == "live"
    assert len(done["warnings"]) == 1
    if what in ("hook", "stop_others", "whole"):
        assert done["warnings"][0].startswith(f"{second} is live, but its finish failed: ")
        assert done["warnings"][0].endswith(f"; mend that, then type: ckan_release.finish {second}")


def test_h03_a_release_that_cannot_be_pruned_is_a_warning_for_that_one(host, immutable):
    host.pillar["keep"] = 2
    releases = [host.deploy(), host.deploy()]
    immutable(host.home / "releases" / releases[0] / "bin/file")
    done = host.deployed()
    assert "cannot be deleted (Operation not permitted: " in done["warnings"][0] and len(done["warnings"]) == 1
    assert host.releases() == [f".removed-{releases[0]}", releases[1], done["current"]]
    fourth = host.deployed()
    assert host.releases() == [f".removed-{releases[0]}", done["current"], fourth["current"]]
    immutable.free()
    fifth = host.deployed()
    assert host.releases() == [fourth["current"], fifth["current"]] and "warnings" not in fifth


def test_a_revert_that_fails_is_said_with_where_the_host_is_now(host, monkeypatch):
    host.deploy()
    with monkeypatch.context() as patched:
        patched.setattr(stages, "verify", raising(FormulaError("nobody answers")))
        patched.setattr(switch, "back", raising(OSError(errno.EIO, "Input/output error", "/x")))
        said = fails(host)
    second = host.site().releases.current()
    assert f"failed at verify: nobody answers -- the revert failed, too (Input/output error: /x): this host is on "\
           f"{second} now; mend that, then type: ckan_release.abort {second}" in said  # fmt: skip
    assert stages.abort(host.site(), second)["removed"]


def test_a_deploy_that_is_stopped_from_outside_is_reverted(host, monkeypatch):
    first = host.deploy()
    with monkeypatch.context() as patched:
        patched.setattr(health, "health", raising(SystemExit(1)))
        with pytest.raises(SystemExit):
            host.deploy()
    is_as_before(host, first)
    failed = [entry for entry in host.site().log.read() if entry["result"] == "failed"]
    assert [(entry["stage"], entry["reason"]) for entry in failed] == [("verify", "it was stopped")]


def test_a_first_deploy_that_fails_leaves_the_link_of_another_tool(host, monkeypatch):
    (host.home / "current").symlink_to("default")
    with monkeypatch.context() as patched:
        patched.setattr(stages, "verify", raising(FormulaError("nobody answers")))
        said = fails(host)
    assert "this host serves what it served as before" in said
    assert os.readlink(host.home / "current") == "default" and host.releases() == []


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_h05_a_current_that_is_no_link_is_refused_at_plan_and_stays(host, kind):
    current = host.home / "current"
    if kind == "directory":
        current.mkdir()
    (current / "precious" if kind == "directory" else current).write_text("mine")
    said = fails(host)
    assert f"failed at plan: {current} is a {kind} and not a symbolic link" in said
    assert f"(mv {current} {current}.before)" in said and said.endswith("-- nothing was touched.")
    assert (current / "precious" if kind == "directory" else current).read_text() == "mine"
    assert host.releases() == []
    assert f"mv {current}" in status.status(host.site())["link"]
    with pytest.raises(FormulaError, match=f"mv {current}"):
        rollback.rollback(host.site())


@pytest.mark.parametrize("there", [True, False])
def test_h04_a_link_to_a_release_without_a_manifest_is_replaced_and_said(host, there):
    first = host.deploy()
    dead = host.home / "releases/20200101000000Z"
    if there:
        dead.mkdir()
        (dead / "precious").write_text("mine")
    (host.home / "current").unlink()
    (host.home / "current").symlink_to("releases/20200101000000Z")
    told = status.status(host.site())
    assert (told["current"], told["state"]) == ("", "")
    assert f"deploy, or go back to {first} with: ckan_release.rollback" in told["link"]
    done = host.deployed()
    assert any("20200101000000Z" in change and "that link is replaced" in change for change in done["changes"])
    assert host.site().releases.current() == done["current"]
    assert "link" not in status.status(host.site())
    assert not there or (dead / "precious").read_text() == "mine"


def test_h04_a_rollback_from_it_goes_to_the_newest_that_was_live_or_leaves_it(host, monkeypatch):
    releases = [host.deploy(), host.deploy()]
    (host.home / "current").unlink()
    (host.home / "current").symlink_to("releases/20300101000000Z")
    monkeypatch.setattr(compatibility, "way_back", lambda *_, **__: {"different": {}, "downgrade": {}, "restore": ""})
    with monkeypatch.context() as patched:
        patched.setattr(health, "health", raising(FormulaError("nobody answers")))
        with pytest.raises(FormulaError, match="nobody answers; this host is back on releases/20300101000000Z"):
            rollback.rollback(host.site())
    assert os.readlink(host.home / "current") == "releases/20300101000000Z"
    assert rollback.rollback(host.site())["current"] == releases[1] == host.site().releases.current()


def test_h08_forward_again_the_good_older_release_is_not_marked_bad(host, monkeypatch):
    monkeypatch.setattr(compatibility, "way_back", lambda *_, **__: {"different": {}, "downgrade": {}, "restore": ""})
    first, second = host.deploy(), host.deploy()
    rollback.rollback(host.site(), reason="slow")
    assert host.site().releases.read(second).state == "bad"
    rollback.rollback(host.site(), to=second, force=True, reason="it was not that")
    left = host.site().releases.read(first)
    assert (left.state, left.bad_reason, left.events[-1]["reason"]) == ("retired", "", "it was not that")
    assert host.site().releases.read(second).state == "live"
    assert rollback.rollback_target(host.site()) == first


def test_a_rollback_watches_what_was_steady_when_it_served_only_where_something_else_changed(host, monkeypatch):
    found: dict[str, Any] = {"different": {}, "downgrade": {}, "restore": "", "maintenance": False}
    monkeypatch.setattr(compatibility, "way_back", lambda *_, **__: found)
    watched: list[str] = []
    monkeypatch.setattr(switch, "watch", lambda site, release: watched.append(release) or [])
    first, second = host.deploy(), host.deploy()
    assert watched == [first, second]
    rollback.rollback(host.site())
    assert watched == [first, second]
    # Its services are started with something else than then.
    host.pillar["environment"] = {"HTTP_TIMEOUT": "1"}
    rollback.rollback(host.site(), to=second, force=True)
    assert watched == [first, second, second]
    # It has met a database that is another one than then.
    del host.pillar["environment"]
    found["downgrade"] = {"core": ["x"]}
    monkeypatch.setattr(changes, "downgrade", lambda *_: {"undone": found["downgrade"]})
    rollback.rollback(host.site(), to=first)
    assert watched == [first, second, second, first]


def test_what_did_not_stay_up_when_it_served_is_watched_by_a_rollback(host, monkeypatch):
    monkeypatch.setattr(compatibility, "way_back", lambda *_, **__: {"different": {}, "downgrade": {}, "restore": ""})
    monkeypatch.setattr(switch, "watch", lambda site, release: ["worker default does not stay up"])
    first, _ = host.deploy(), host.deploy()
    assert rollback.rollback(host.site())["warnings"] == ["worker default does not stay up"]
    assert host.site().releases.read(first).steady == {}


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("where", ["start", "switch", "health", "after"])
def test_a_rollback_that_fails_says_where_the_host_is(host, monkeypatch, where, cause):
    monkeypatch.setattr(compatibility, "way_back", lambda *_, **__: {"different": {}, "downgrade": {}, "restore": ""})
    first, second = host.deploy(), host.deploy()
    with monkeypatch.context() as patched:
        place = {"start": (switch, "start"), "switch": (app_server, "switched"), "health": (health, "health"),
                 "after": (draining, "stop_others")}[where]  # fmt: skip
        calls: list[int] = []
        real = getattr(*place)

        def once(*args: Any, **kwargs: Any) -> Any:
            if calls:
                return real(*args, **kwargs)
            calls.append(1)
            raise cause

        patched.setattr(*place, once)
        if where == "after":
            done = rollback.rollback(host.site())
            assert (done["current"], host.site().releases.current()) == (first, first)
            assert "not all has followed it" in done["warnings"][0]
            return
        with pytest.raises(FormulaError) as failure:
            rollback.rollback(host.site())
    on = "serves" if where == "start" else "is back on"
    assert str(failure.value).startswith(f"{SAID[type(cause)]}; this host {on} {second}")
    assert host.site().releases.current() == second
    assert [host.site().releases.read(release).state for release in (first, second)] == ["retired", "live"]


def test_a_hook_before_the_revert_does_not_keep_it_from_being_made(host, monkeypatch):
    first = host.deploy()
    host.hook("abort", "before", raising(FormulaError("no balancer")))
    with monkeypatch.context() as patched:
        patched.setattr(stages, "verify", raising(FormulaError("nobody answers")))
        said = fails(host)
    assert f"this host serves {first} as before; hook before abort" in said
    is_as_before(host, first)


def test_what_the_backends_say_is_told_with_what_cannot_be_resolved(host, monkeypatch):
    """Both are asked side by side, and a plan names all that is in the way."""
    monkeypatch.setattr(backends, "ask", lambda site: backends.Backends(("ckan:redis_url: nobody answers",)))
    said = fails(host)
    assert said == "the deploy failed at plan: ckan:redis_url: nobody answers. -- nothing was touched."
    monkeypatch.setattr(resolution, "resolve", raising(FormulaError("alpha cannot be had.")))
    said = fails(host)
    assert said.startswith("the deploy failed at plan: ckan:redis_url: nobody answers; alpha cannot be had.")
    monkeypatch.setattr(preflight, "obstacles", lambda *_, **__: ["there is no room"])
    assert "failed at plan: there is no room; ckan:redis_url: nobody answers" in fails(host)


def test_an_app_server_boots_beside_the_check_unless_the_stage_start_has_hooks(host, monkeypatch):
    """What is to be done before it starts is done before it starts."""
    booted, real = [], candidates.booted
    monkeypatch.setattr(candidates, "booted", lambda site, path: booted.append(path) or real(site, path))
    host.deploy()
    assert len(booted) == 1
    host.hook("start", "before", lambda *_, **__: True)
    host.deploy()
    assert len(booted) == 1
