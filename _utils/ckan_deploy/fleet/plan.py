"""
The stage plan of a run: what would be done, and all that must be so before anything is.

Each function fills the run, and raises ``FormulaError`` with what is in the way.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckan_deploy.errors import FormulaError
from ckan_deploy.fleet import details, hosts, promote, shipping, storage, wanted
from ckan_deploy.fleet.hosts import NO_ANSWER, Group, Targets
from ckan_deploy.fleet.run import Run, join, told_once
from ckan_deploy.releases import ids
from ckan_deploy.system import arguments, beside

READY_TIMEOUT = 20
STAGE_TIMEOUT = 30
# Seconds that a host's clock may differ from the master's: releases are ordered by the time at which they were made.
CLOCK_SECONDS = 60


def choose_hosts(run: Run, found: Targets) -> None:
    """
    Find the hosts of a run: they answer, have the master's modules and its time; and the groups that they go in.

    run
        The run, with what was asked for; it has ``hosts``, ``groups`` and ``down`` then.
    found
        The hosts of the environment: their pillars are rendered for it, so it is asked once.
    """
    everyone, allowed = found.hosts, _allowed_down(run, found.hosts)
    parts = hosts.in_groups(run.asked_groups, everyone, found.members)
    clocks: dict[str, float] = {}

    def note(host: str, failed: str) -> None:
        clocks[host] = time.time()

    apart = shipping.own_builder(run, found)
    told = hosts.ask(run.master, [*everyone, *apart], "ckan_plan.ready", {}, READY_TIMEOUT, note)
    run.down = [host for host in everyone if host in allowed and NO_ANSWER in told.failures.get(host, "")]
    failures = {
        host: f"{cause}; or go on without it: allow_down: [{host}]"
        if NO_ANSWER in cause and host in everyone else cause
        for host, cause in told.failures.items() if host not in run.down
    }  # fmt: skip
    if failures:
        raise FormulaError(join(failures, "plan"))
    run.hosts = [host for host in everyone if host not in run.down]
    if not run.hosts:
        raise FormulaError(f"none of {', '.join(everyone)} answers; start their salt-minion")
    run.groups = [Group(part.name, [host for host in part.hosts if host in run.hosts]) for part in parts]
    if run.kind == "deploy" and not run.groups[0].hosts:
        raise FormulaError(
            f"no host of the first group ({parts[0].name}) answers, and one of them has to migrate the database; begin "
            "with another group"
        )
    version = hosts.version(run.master)
    for host in [*run.hosts, *apart]:
        problem = _differs(host, told.results[host], version, clocks[host])
        if problem:
            failures[host] = problem
    if failures:
        raise FormulaError(join(failures, "plan"))
    shipping.choose(run, found)


def deploy(run: Run) -> dict[str, Any]:
    """
    Decide what a deploy makes: refs and packages resolved once, compared with what is live.

    run
        The run, with its hosts.

    Returns ``{"ok", "comment", "release", "hosts": {host: {"current", "changes", "free_mb", "needed_mb", "prunes",
    "backends"}},
    "extensions", "changes", "groups", "down", "last": sentence}``, where there are any ``warnings``, and of a release
    that is promoted ``from`` and ``differs``.
    """
    names, run.release = run.hosts, ids.new_id()
    taken = promote.take(run) if run.source else None
    plans, main = _plans(run, taken)
    shipping.refuse_differences(run, {host: plan["host"] for host, plan in plans.items()}, main)
    same = _one_directory({host: plan["host"]["place"] for host, plan in plans.items()})
    if same:
        raise FormulaError(f"{same} have one directory of releases on one machine; give each a ckan:root of its own")
    # A builder of its own serves nothing.
    plans = {host: plans[host] for host in names}
    run.warn(storage.warnings(_storage(run, {host: plan["host"]["storage"] for host, plan in plans.items()})))
    run.contents = main["contents"]
    run.warn([*main.get("notes", []), *told_once({host: plan["own_remarks"] for host, plan in plans.items()})])
    run.backends = main["host"].get("backends", {})
    run.before = {host: plan["current"] for host, plan in plans.items()}
    wanted.remember(run.record, run.before, run.down, run.job)
    changes = _changes(run, main["changes"], {host: plan["own_changes"] for host, plan in plans.items()})
    remarks = main["remarks"]
    run.nothing = not changes and not run.force
    run.changes = [*changes, *remarks]
    run.details = details.of_plans(plans, main)
    run.differs = promote.differences(run, taken, main) if taken else []
    if not all(plan["host"]["sees_lock"] for plan in plans.values()) and not run.dry_run:
        run.warn([
            "the pillar of the hosts does not show the lock, so a highstate can deploy beside this run: include "
            "ckan.fleet as pillar.example does"
        ])  # fmt: skip
    return {
        "ok": True, "comment": _comment(run, main["extensions"]), "release": run.release,
        "extensions": main["extensions"], "changes": [*(changes or ["nothing"]), *remarks],
        "groups": [part.hosts for part in run.groups], "down": run.down, "last": wanted.last(run.record),
        **({"warnings": run.warnings} if run.warnings else {}),
        "hosts": {
            host: {
                "current": plan["current"] or "none", **plan["host"]["disk"], "prunes": plan["host"]["prunes"],
                "backends": plan["host"].get("backends", {}),
            }
            for host, plan in plans.items()
        },
        **({"from": f"{taken.release} of {run.source}", "differs": run.differs} if taken else {}),
    }  # fmt: skip


def _plans(run: Run, taken: promote.Taken | None) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The plan of each host, side by side, and that of the one which resolved."""
    asked = {"release": run.release, "extensions": run.extensions, "fresh": False, "job": run.job}
    if run.fresh:
        asked["renew"] = True
    if taken:
        run.source_release, asked["contents"] = taken.release, taken.contents
    # One host asks the origins and resolves the packages, so that all build the same.
    first = run.builder or run.hosts[0]
    others = [host for host in run.hosts if host != first]
    resolved = {**asked, "resolve": False}
    with beside.running(functools.partial(_asked, run, others, "ckan_release.plan", resolved)) as asking:
        plans = _asked(run, [first], "ckan_release.plan", {**asked, "resolve": True})
    return {**plans, **asking.result()}, plans[first]


def _storage(run: Run, seen: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """What the hosts see of a shared storage: each has left a mark there, and all look for that of the first."""
    first = next(iter(seen))
    others = [host for host in seen if host != first and seen[host]["kind"] == "shared"]
    if seen[first]["kind"] != "shared" or seen[first]["problem"] or not others:
        return dict(seen)
    asked = {"release": run.release, "resolve": False, "fresh": False, "job": run.job, "sees": first}
    told = _asked(run, others, "ckan_release.plan", asked)
    return {**seen, **{host: plan["host"]["storage"] for host, plan in told.items()}}


def rollback(run: Run, to: str) -> dict[str, Any]:
    """
    Decide where a rollback goes: to a release that all hosts have, and that is good on all of them.

    run
        The run, with its hosts.
    to
        A release by name; by default the one before, where all hosts agree.

    Returns ``{"ok", "comment", "release", "hosts", "extensions", "changes"}``.
    """
    names, about = run.hosts, {"to": to, "force": run.force, "about": True}
    try:
        told = _asked(run, names, "ckan_release.rollback_target", about)
    except FormulaError as exc:
        # A host says what is typed on a host.
        hint = str(exc).replace("with to=RELEASE", "with to: RELEASE").replace("with force=True", "with force: true")
        raise FormulaError(hint) from exc
    left = {host: told[host]["current"] for host in names}
    wanted.remember(run.record, left, run.down, run.job)
    asked = [host for host in names if not to or left[host] != to]
    if not asked:
        raise FormulaError(f"{', '.join(names)} are on {to} already; name another release with to: RELEASE")
    answers = {host: told[host]["target"] for host in asked}
    if not to and (len(set(answers.values())) > 1 or len(set(left.values())) > 1):
        each = ", ".join(f"{host} from {left[host]} to {answers[host]}" for host in names)
        raise FormulaError(
            f"the hosts would not go back together ({each}); name a release that all have with to: RELEASE"
        )
    run.release, run.left = answers[asked[0]], left
    contents = functools.partial(_asked, run, asked[:1], "ckan_release.contents", {"release": run.release})
    compared = functools.partial(details.of_rollback, run, asked[0])
    with beside.running(contents) as asking, beside.running(compared) as comparing, _booted(run, asked):
        found = _database(run, asked)
    run.contents, run.details = asking.result()[asked[0]], comparing.result()
    from_ = ", ".join(sorted(set(left.values()) - {run.release}))
    run.changes = [f"from {from_} back to {run.release}", *_database_changes(run, found)]
    if run.undo and (found["maintenance"] or run.maintenance):
        run.maintenance = True
        run.changes.append("visitors get the maintenance page meanwhile")
    return {
        "ok": True, "release": run.release, "hosts": names, "extensions": {}, "changes": run.changes,
        "comment": f"{'; '.join(run.changes)} on {', '.join(asked)}",
    }  # fmt: skip


def _allowed_down(run: Run, everyone: list[str]) -> list[str]:
    allowed = run.allow_down
    if not isinstance(allowed, list) or not all(isinstance(host, str) for host in allowed):
        raise FormulaError(f"allow_down must be a list of hosts, such as [web3], not {allowed!r}")
    for host in allowed:
        if host not in everyone:
            near = arguments.near(host, everyone)
            raise FormulaError(
                f"{host} in allow_down is no host of {run.env}{near}; its hosts are {', '.join(everyone)}"
            )
    return allowed


def _differs(host: str, answer: Mapping[str, Any], version: str, clock: float) -> str:
    """What a host has other than the master, '' for nothing."""
    skew = round(answer["time"] - clock)
    if version and answer["modules"] != version:
        return f"has other modules of the formula than the master's file server; type: salt {host} saltutil.sync_all"
    if abs(skew) > CLOCK_SECONDS:
        return (
            f"has a clock that is {abs(skew)} s {'ahead of' if skew > 0 else 'behind'} the master's; correct it "
            "(timedatectl), since releases are ordered by time"
        )
    return ""


def _changes(run: Run, found: list[str], own: Mapping[str, list[str]]) -> list[str]:
    """What differs from what is live: by origins and pillar, by each host's own pillar, and from host to host."""
    apart = [f"{', '.join(some)} on {release or 'none'}" for release, some in _by_value(run.before).items()]
    return [*found, *told_once(own), *([f"the hosts differ: {'; '.join(apart)}"] if len(apart) > 1 else [])]


def _comment(run: Run, extensions: Mapping[str, str]) -> str:
    names = ", ".join(run.hosts)
    source = f"{run.source_release} of {run.source}" if run.source else ""
    if run.nothing:
        return (
            f"Nothing to deploy: {run.before[run.hosts[0]]} on {names} is what "
            f"{source or 'the pillar and the origins'} {'has' if source else 'say'}; force: true deploys all the same"
        )
    what = ", ".join(f"{name} {what}" for name, what in sorted(extensions.items())) or "no extension"
    said = [f"release {run.release} with {what} for {names}{f', as {source} has it' if source else ''}"]
    return "; ".join([*said, *run.changes, *run.differs, *(f"warning: {each}" for each in run.warnings)])


def _database(run: Run, asked: list[str]) -> Mapping[str, Any]:
    """What the database says to a rollback. One host asks it for all."""
    asks = _with_dump(run, asked) if run.restore else asked[0]
    if not asks:
        look = f"salt -I 'ckan:env:{run.env}' ckan_backup.list"
        raise FormulaError(f"no host has a dump {run.restore}; look with: {look}")
    allowed = {"accept_schema": run.accept_schema, "downgrade": run.downgrade, "restore": run.restore}
    found = _asked(run, [asks], "ckan_schema.way_back", {"release": run.release, **allowed})[asks]
    run.undo, run.undo_on = bool(found["downgrade"] or found["restore"]), asks
    return dict(found)


@contextlib.contextmanager
def _booted(run: Run, asked: list[str]) -> Iterator[None]:
    """
    The app servers of the release boot while the database is looked at, but not where that is to be changed for it.
    They are stopped again where the rollback is refused; of one that fails the stage activate says why.
    """
    if run.dry_run or run.downgrade or run.restore:
        yield
        return
    about = {"release": run.release, "by": run.by, "job": run.job, "ahead": True}
    with beside.running(functools.partial(hosts.ask, run.master, asked, "ckan_release.start", about)) as booting:
        try:
            yield
        except BaseException:
            started = [host for host, answer in booting.result().good.items() if answer.get("started")]
            hosts.ask(run.master, started, "ckan_release.end_standby", {"release": run.release})
            raise


def _with_dump(run: Run, asked: list[str]) -> str:
    """The host that has the dump to restore, '' for none."""
    for host, dumps in hosts.ask(run.master, asked, "ckan_backup.list", {}, STAGE_TIMEOUT).results.items():
        if isinstance(dumps, list) and run.restore in [dump["name"] for dump in dumps]:
            return host
    return ""


def _database_changes(run: Run, found: Mapping[str, Any]) -> list[str]:
    said = []
    for name, state in found["different"].items():
        if found["restore"]:
            said.append(f"the dump {found['restore']} of {run.undo_on} becomes the database, for {name}")
        elif run.undo:
            said.append(f"undone in the database: {', '.join(reversed(state['revisions']))} of {name}")
        else:
            said.append(f"accepted: the database has {' and '.join(state['at'])} of {name}")
    return said


def _asked(run: Run, names: Sequence[str], function: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    told = hosts.ask(run.master, names, function, kwargs, STAGE_TIMEOUT)
    if told.failures:
        raise FormulaError(join(told.failures, "plan"))
    return told.results


def _one_directory(places: Mapping[str, str]) -> str:
    return "; ".join(" and ".join(some) for some in _by_value(places).values() if len(some) > 1)


def _by_value(given: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, value in sorted(given.items()):
        found.setdefault(value, []).append(key)
    return found
