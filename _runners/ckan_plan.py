"""
The stage plan of a run over a fleet: what would be done, and all that must be so before anything is.

Each function fills the ticket of the run (see ``ckan_fleet``) and returns ``{"ok", "comment", ...}``.
"""

from __future__ import annotations

import time
from typing import Any

import salt.pillar

ID_FORMAT = "%Y%m%d%H%M%SZ"
READY_TIMEOUT = 20
STAGE_TIMEOUT = 30
# Seconds that a host's clock may differ from the master's: releases are ordered by the time at which they were made.
CLOCK_SECONDS = 60
NO_ANSWER = "does not answer"
KNOWN = {
    "deploy": ("env", "extensions", "dry_run", "maintenance", "groups", "allow_down", "force", "steal", "reason"),
    "rollback": (
        "env", "to", "reason", "force", "dry_run", "groups", "allow_down", "steal", "accept_schema", "downgrade",
        "restore", "maintenance",
    ),
}


def refuse_unknown(kind: str, names: list[str]) -> str:
    """
    Say which names of an orchestration's pillar are none that it knows.

    kind
        ``deploy`` or ``rollback``.
    names
        The names of the pillar that the orchestration sees.

    Returns a sentence, ``''`` for none.

    CLI Example: not for the command line.
    """
    unknown = [name for name in names if name not in KNOWN[kind]]
    if unknown:
        # The pillar of the master's own minion is among them.
        own = salt.pillar.Pillar({**__opts__, "pillar": {}}, {}, __opts__["id"], "base").compile_pillar()
        unknown = [name for name in unknown if name not in own]
    each = [f"{name}{__salt__['ckan_hosts.near'](name, KNOWN[kind])}" for name in unknown]
    return f"orch.{kind} does not know {', '.join(each)}; it knows {', '.join(KNOWN[kind])}" if unknown else ""


def hosts(ticket: dict, found: dict) -> dict:
    """
    Find the hosts of a run: they answer, have the master's modules and its time; and the groups that they go in.

    ticket
        What the run knows: ``env``, ``groups`` and ``allow_down`` as they were asked for.
    found
        What ``ckan_hosts.targets`` says of the environment: it renders the pillar of each host, so it is asked once.

    Returns ``{"ok", "comment"}``; the ticket has ``hosts``, ``groups`` and ``down`` then.

    CLI Example: not for the command line; use ``ckan.pending``.
    """
    allowed, everyone = ticket["allow_down"], found["hosts"]
    if not isinstance(allowed, list) or not all(isinstance(host, str) for host in allowed):
        return _no(f"allow_down must be a list of hosts, such as [web3], not {allowed!r}")
    for host in allowed:
        if host not in everyone:
            near = __salt__["ckan_hosts.near"](host, everyone)
            return _no(f"{host} in allow_down is no host of {ticket['env']}{near}; its hosts are {', '.join(everyone)}")
    parts = __salt__["ckan_hosts.in_groups"](ticket["asked_groups"], everyone, found["groups"])
    if not parts["ok"]:
        return parts
    answers, failures, clocks = {}, {}, {}
    begun = time.time()

    def note(host: str, failed: str, seconds: float) -> None:
        clocks[host] = begun + seconds

    told = __salt__["ckan_hosts.ask"](everyone, "ckan_plan.ready", {}, READY_TIMEOUT, note)
    answers, failures = told["results"], told["failures"]
    ticket["down"] = [host for host in everyone if host in allowed and NO_ANSWER in failures.get(host, "")]
    failures = {host: cause for host, cause in failures.items() if host not in ticket["down"]}
    for host, cause in failures.items():
        if NO_ANSWER in cause:
            failures[host] = f"{cause}; or go on without it: allow_down: [{host}]"
    if failures:
        return _no(join(failures, "plan"))
    ticket["hosts"] = [host for host in everyone if host not in ticket["down"]]
    if not ticket["hosts"]:
        return _no(f"none of {', '.join(everyone)} answers; start their salt-minion")
    ticket["groups"] = [
        {"name": part["name"], "hosts": [host for host in part["hosts"] if host in ticket["hosts"]]}
        for part in parts["groups"]
    ]
    version = __salt__["ckan_hosts.version"]()
    for host in ticket["hosts"]:
        skew = round(answers[host]["time"] - clocks[host])
        if version and answers[host]["modules"] != version:
            failures[host] = (
                f"has other modules of the formula than the master's file server; type: salt {host} saltutil.sync_all"
            )
        elif abs(skew) > CLOCK_SECONDS:
            failures[host] = (
                f"has a clock that is {abs(skew)} s {'ahead of' if skew > 0 else 'behind'} the master's; correct it "
                "(timedatectl), since releases are ordered by time"
            )
    return _no(join(failures, "plan")) if failures else {"ok": True, "comment": ""}


def deploy(ticket: dict) -> dict:
    """
    Decide what a deploy makes: refs and packages resolved once, compared with what is live.

    ticket
        What the run knows, ``hosts`` included.

    Returns ``{"ok", "comment", "release", "hosts": {host: {"current", "changes", "free_mb", "needed_mb", "prunes"}},
    "extensions", "changes", "groups", "down", "last": sentence}``.

    CLI Example: not for the command line; use ``ckan.pending``.
    """
    names = ticket["hosts"]
    ticket["release"] = time.strftime(ID_FORMAT, time.gmtime())
    arguments = {
        "release": ticket["release"], "extensions": ticket["extensions"], "fresh": False, "job": ticket["job"],
    }  # fmt: skip
    # One host asks the origins and resolves the packages, so that all build the same.
    first, failures = _ask(names[:1], "ckan_release.plan", {**arguments, "resolve": True})
    others: dict = {}
    if not failures and names[1:]:
        others, failures = _ask(names[1:], "ckan_release.plan", {**arguments, "resolve": False})
    if failures:
        return _no(join(failures, "plan"))
    plans, main = {**first, **others}, first[names[0]]
    same = _one_directory({host: plan["host"]["place"] for host, plan in plans.items()})
    if same:
        return _no(f"{same} have one directory of releases on one machine; give each a ckan:root of its own")
    ticket["contents"] = main["contents"]
    ticket["before"] = {host: plan["current"] for host, plan in plans.items()}
    remember(ticket["env"], ticket["before"], ticket["down"], ticket["job"])
    own = _told_once({host: plan["own_changes"] for host, plan in plans.items()})
    apart = [f"{', '.join(some)} on {release or 'none'}" for release, some in _by_value(ticket["before"]).items()]
    changes = [*main["changes"], *own, *([f"the hosts differ: {'; '.join(apart)}"] if len(apart) > 1 else [])]
    ticket["changes"] = changes
    ticket["nothing"] = not changes and not ticket["force"]
    if not all(plan["host"]["sees_lock"] for plan in plans.values()) and not ticket["dry_run"]:
        ticket["warnings"].append(
            "the pillar of the hosts does not show the lock, so a highstate can deploy beside this run: include "
            "ckan.fleet as pillar.example does"
        )
    what = ", ".join(f"{name} {what}" for name, what in sorted(main["extensions"].items())) or "no extension"
    comment = f"release {ticket['release']} with {what} for {', '.join(names)}{''.join(f'; {c}' for c in changes)}"
    if ticket["nothing"]:
        comment = (
            f"Nothing to deploy: {ticket['before'][names[0]]} on {', '.join(names)} is what the pillar and the origins "
            "say; force: true deploys all the same"
        )
    return {
        "ok": True, "comment": comment, "release": ticket["release"], "extensions": main["extensions"],
        "changes": changes or ["nothing"], "groups": [part["hosts"] for part in ticket["groups"]],
        "down": ticket["down"], "last": _last(ticket["env"]),
        "hosts": {
            host: {
                "current": plan["current"] or "none", **plan["host"]["disk"], "prunes": plan["host"]["prunes"],
            }
            for host, plan in plans.items()
        },
    }  # fmt: skip


def rollback(ticket: dict, to: str) -> dict:
    """
    Decide where a rollback goes: to a release that all hosts have, and that is good on all of them.

    ticket
        What the run knows, ``hosts`` included.
    to
        A release by name; by default the one before, where all hosts agree.

    Returns ``{"ok", "comment", "release", "hosts", "extensions", "changes"}``.

    CLI Example: not for the command line; use ``orch.rollback``.
    """
    names = ticket["hosts"]
    states, failures = _ask(names, "ckan_release.status", {})
    if failures:
        return _no(join(failures, "plan"))
    left = {host: state["current"] for host, state in states.items()}
    remember(ticket["env"], left, ticket["down"], ticket["job"])
    asked = [host for host in names if not to or left[host] != to]
    if not asked:
        return _no(f"{', '.join(names)} are on {to} already; name another release with to")
    answers, failures = _ask(asked, "ckan_release.rollback_target", {"to": to, "force": ticket["force"]})
    if failures:
        return _no(join(failures, "plan"))
    if not to and (len(set(answers.values())) > 1 or len(set(left.values())) > 1):
        each = ", ".join(f"{host} from {left[host]} to {answers[host]}" for host in names)
        return _no(f"the hosts would not go back together ({each}); name a release that all have with to: RELEASE")
    ticket["release"], ticket["left"] = answers[asked[0]], left
    # One host asks the database for all.
    asks = _with_dump(ticket["restore"], asked) if ticket["restore"] else asked[0]
    if not asks:
        look = f"salt -I 'ckan:env:{ticket['env']}' ckan_backup.list"
        return _no(f"no host has a dump {ticket['restore']}; look with: {look}")
    allowed = {name: ticket[name] for name in ("accept_schema", "downgrade", "restore")}
    schema, failures = _ask([asks], "ckan_schema.way_back", {"release": ticket["release"], **allowed})
    if failures:
        return _no(join(failures, "plan"))
    found = schema[asks]
    ticket["undo"], ticket["undo_on"] = bool(found["downgrade"] or found["restore"]), asks
    contents, failures = _ask(asked[:1], "ckan_release.contents", {"release": ticket["release"]})
    if failures:
        return _no(join(failures, "plan"))
    ticket["contents"] = contents[asked[0]]
    from_ = ", ".join(sorted(set(left.values()) - {ticket["release"]}))
    ticket["changes"] = [f"from {from_} back to {ticket['release']}"]
    for name, state in found["different"].items():
        if found["restore"]:
            ticket["changes"].append(f"the dump {found['restore']} of {asks} becomes the database, for {name}")
        elif ticket["undo"]:
            ticket["changes"].append(f"undone in the database: {', '.join(reversed(state['revisions']))} of {name}")
        else:
            ticket["changes"].append(f"accepted: the database has {' and '.join(state['at'])} of {name}")
    if ticket["undo"] and (found["maintenance"] or ticket["maintenance"]):
        ticket["maintenance"] = True
        ticket["changes"].append("visitors get the page of maintenance meanwhile")
    return {
        "ok": True, "release": ticket["release"], "hosts": names, "extensions": {}, "changes": ticket["changes"],
        "comment": f"{'; '.join(ticket['changes'])} on {', '.join(asked)}",
    }  # fmt: skip


def _with_dump(name: str, hosts: list[str]) -> str:
    """The host that has a dump of that name, '' for none."""
    dumps, _ = _ask(hosts, "ckan_backup.list", {})
    return next((h for h, some in dumps.items() if isinstance(some, list) and name in [d["name"] for d in some]), "")


def remember(env: str, current: dict[str, str], down: list[str], job: str = "") -> str:
    """
    Note the release that all hosts of an environment are on as the wanted one, where no run or another one is noted.

    env
        The name of the environment.
    current
        The current release of each host.
    down
        Hosts that are not among them: nothing is noted then.
    job
        The run that asks: while another one is under way, or was left where it died, nothing is noted.

    Returns the release that is wanted, ``''`` for none.

    CLI Example: not for the command line; ``ckan.status`` does it.
    """
    known = (__salt__["ckan_record.wanted"](env) or {}).get("release", "")
    release, lock = next(iter(current.values()), ""), __salt__["ckan_record.lock_of"](env)
    if lock and lock["kind"] != "lock" and lock["job"] != job:
        return known
    if down or not release or len(set(current.values())) != 1 or release == known:
        return known
    host = sorted(current)[0]
    contents, failures = _ask([host], "ckan_release.contents", {"release": release})
    if failures:
        return known
    __salt__["ckan_record.want"](env, release, contents[host], by="found on all hosts", kind="found", seconds={})
    return release


def join(failures: dict[str, str], stage: str) -> str:
    """
    Put failures of one stage into a sentence.

    failures
        The cause for each host.
    stage
        The stage.

    CLI Example: not for the command line.
    """
    return causes([{"host": host, "stage": stage, "cause": cause} for host, cause in failures.items()])


def causes(failures: list[dict]) -> str:
    """
    Say which hosts failed at which stage, and why: hosts with the same trouble in one sentence.

    failures
        ``{"host", "stage", "cause"}`` each.

    CLI Example: not for the command line.
    """
    same: dict[tuple, list[str]] = {}
    for failure in failures:
        same.setdefault((failure["stage"], failure["cause"]), []).append(failure["host"])
    return "; ".join(f"{', '.join(sorted(some))} failed at {stage}: {why}" for (stage, why), some in same.items())


def _told_once(said: dict[str, list[str]]) -> list[str]:
    """What several hosts say, once; with their names where not all say it."""
    by_sentence: dict[str, list[str]] = {}
    for host, sentences in said.items():
        for sentence in sentences:
            by_sentence.setdefault(sentence, []).append(host)
    return [
        sentence if len(some) == len(said) else f"{', '.join(some)}: {sentence}"
        for sentence, some in by_sentence.items()
    ]


def _one_directory(places: dict[str, str]) -> str:
    return "; ".join(" and ".join(some) for some in _by_value(places).values() if len(some) > 1)


def _by_value(given: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, value in sorted(given.items()):
        found.setdefault(value, []).append(key)
    return found


def _last(env: str) -> str:
    """How long the last deploy took, as far as the master knows."""
    last = __salt__["ckan_record.wanted"](env) or {}
    seconds = last.get("seconds") or {}
    if not seconds:
        return "not known"
    each = ", ".join(f"{name} {s} s" for name, s in seconds.items())
    return f"{last['kind']} of {last['release']} by {last['by']} took {round(sum(seconds.values()), 1)} s ({each})"


def _ask(names: list[str], function: str, kwargs: dict, timeout: int = STAGE_TIMEOUT) -> tuple[dict, dict]:
    told: dict[str, Any] = __salt__["ckan_hosts.ask"](names, function, kwargs, timeout)
    return told["results"], told["failures"]


def _no(comment: str) -> dict:
    return {"ok": False, "comment": comment}
