"""
A deploy or a rollback over all hosts of an environment, stage by stage. ``orch/deploy.sls`` and ``orch/rollback.sls``
call this through the states of the same name; ``salt-run ckan...`` is what people type.

Each function returns ``{"ok": bool, "comment": sentence, ...}``: a runner that raises is shown with a traceback. What a
run knows (hosts, release, what that holds, what failed) stands in a ticket, a file on the master, from ``plan`` to
``close``. The ticket is the lock, too: one run at a time per environment.

``ckan_hosts`` says which hosts belong to an environment, and asks them.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import salt.utils.user

ID_FORMAT = "%Y%m%d%H%M%SZ"
PLAN_TIMEOUT = 20
STAGE_TIMEOUT = 30

# What each stage calls on the hosts, in order. The last of each list is what the stage is about.
DEPLOY_STAGES = {
    "build": ["ckan_release.build"],
    "check": ["ckan_release.check"],
    "migrate": ["ckan_release.migrate"],
    "activate": ["ckan_release.start", "ckan_release.activate"],
    "verify": ["ckan_release.verify"],
    "finish": ["ckan_release.finish"],
}
ROLLBACK_STAGES = {
    "activate": ["ckan_release.start", "ckan_release.rollback"],
    "verify": ["ckan_release.verify"],
    "finish": ["ckan_release.finish"],
}
# One host does it for all: they share the database.
ON_ONE_HOST = ("migrate",)


def plan(
    env: Any, kind: str = "deploy", extensions: dict | None = None, to: str = "", dry_run: bool = False,
    reason: str = "", force: bool = False, maintenance: bool = False, job: str = "",
) -> dict:  # fmt: skip
    """
    Begin a run: hosts answer, lock taken, settings valid, refs and packages resolved once. Nothing served is touched.

    env
        The name of the environment.
    kind
        ``deploy`` or ``rollback``.
    extensions
        What differs from the pillar for this deploy.
    to
        The release that a rollback goes to.
    dry_run
        Say what would be done, and end.
    reason, force
        For a rollback: why, and whether a release that is marked bad will do.
    maintenance
        For a deploy: visitors get the page of ``ckan_maintenance`` from the stage migrate to the end of verify.
    job
        The id of the job.

    Returns ``{"ok", "comment", "release", "hosts", "extensions": {name: what}, "changes": [sentences]}``.

    CLI Example: not for the command line; use ``salt-run state.orch orch.deploy pillar='{env: production}'``.
    """
    found = __salt__["ckan_hosts.targets"](env)
    if not found["ok"]:
        return found
    if extensions is not None and not isinstance(extensions, dict):
        return _no("extensions must be a dictionary, such as '{ckanext-mycity: {ref: fix-42}}'")
    hosts, by = found["hosts"], salt.utils.user.get_specific_user()
    ticket = {
        "env": env, "kind": kind, "hosts": hosts, "by": by, "job": job, "pid": os.getpid(), "reason": reason,
        "force": force, "maintenance": maintenance, "extensions": extensions or {}, "since": _now(), "seconds": {},
        "failures": [],
    }  # fmt: skip
    if not dry_run:
        taken = _lock(ticket)
        if taken:
            return _no(taken)
    outcome = _plan_deploy(ticket) if kind == "deploy" else _plan_rollback(ticket, to)
    if not outcome["ok"] or dry_run:
        if not dry_run:
            _release(env)
        return outcome
    _save(ticket)
    return outcome


def stage(env: str, name: str, job: str = "") -> dict:
    """
    Run one stage on all hosts of the run under way, and wait for every one of them.

    env
        The name of the environment.
    name
        The stage: ``build``, ``check``, ``migrate``, ``activate``, ``verify`` or ``finish``.
    job
        The id of the job that planned it.

    Returns ``{"ok", "comment", "results": {host: ...}}``.

    CLI Example: not for the command line; use ``salt-run state.orch orch.deploy pillar='{env: production}'``.
    """
    ticket = _load(env)
    if not ticket or ticket["job"] != job:
        return _no(f"there is no run of this job under way for {env}; start it with state.orch")
    begun = time.monotonic()
    hosts = ticket["hosts"][:1] if name in ON_ONE_HOST else ticket["hosts"]
    results: dict[str, Any] = {}
    failures = _close_doors(ticket) if name == "migrate" and ticket.get("maintenance") else {}
    for function in [] if failures else (DEPLOY_STAGES if ticket["kind"] == "deploy" else ROLLBACK_STAGES)[name]:
        asked = hosts
        if function == "ckan_release.rollback":
            # A fleet that disagrees is brought together: some hosts may be on the target already.
            asked = [host for host in hosts if ticket["left"][host] != ticket["release"]]
        results, failures = _ask(asked, function, _arguments(function, ticket))
        if failures:
            break
    if name == "verify" and not failures:
        failures = _open_doors(ticket)
    ticket["seconds"][name] = round(time.monotonic() - begun, 1)
    if failures and name == "finish":
        # The new release serves already: what is left over is a warning.
        ticket["warnings"] = [f"{host} at {name}: {cause}" for host, cause in failures.items()]
        _save(ticket)
        return {"ok": True, "comment": f"warning: {_join(failures, name)}", "results": results}
    ticket["failures"] += [{"host": host, "stage": name, "cause": cause} for host, cause in failures.items()]
    _save(ticket)
    if failures:
        return {"ok": False, "comment": _join(failures, name), "results": results}
    return {
        "ok": True,
        "comment": f"{name}: {', '.join(hosts)} in {ticket['seconds'][name]} s{_remarks(name, results)}",
        "results": results,
    }


def take_back(env: str, job: str = "") -> dict:
    """
    Undo a run that failed: every host gets back the release that it served before. Frees this run's lock only.

    env
        The name of the environment.
    job
        The id of the job that planned it.

    Returns ``{"ok": False, "comment"}``: the comment names host, stage and cause, and what each host serves now.

    CLI Example: not for the command line; ``orch/deploy.sls`` uses it.
    """
    ticket = _load(env) if isinstance(env, str) and env else None
    if not ticket or ticket["job"] != job:
        return _no("nothing was touched")
    if "release" not in ticket:
        _release(env)
        return _no("the plan did not come to its end; nothing was touched")
    causes = _causes(ticket["failures"])
    results, failures, undo = {}, {}, {}
    for release, hosts in _ways_back(ticket).items():
        function = "ckan_release.abort" if ticket["kind"] == "deploy" else "ckan_release.activate"
        force = {} if ticket["kind"] == "deploy" else {"force": True}
        some, not_reached = _ask(hosts, function, {"release": release, "reason": causes, "by": ticket["by"], **force})
        results.update(some)
        failures.update(not_reached)
        undo.update({host: f"{function} {release}{' force=True' if force else ''}" for host in hosts})
    for host, cause in _open_doors(ticket).items():
        failures.setdefault(host, f"{cause}; it is in maintenance, too: salt {host} ckan_maintenance.off")
    serving: dict[str, list[str]] = {}
    for host, result in results.items():
        if host not in failures:
            serving.setdefault(result["current"] or "no release (as before)", []).append(host)
    parts = [causes or "the run did not come to its end"]
    parts += [f"{', '.join(sorted(hosts))} on {release}" for release, hosts in sorted(serving.items())]
    parts += [
        f"{host} could not be taken back ({cause}): when it is up, type: salt {host} {undo[host]}"
        for host, cause in failures.items()
    ]
    _release(env)
    return _no(f"{ticket['kind']} of {ticket['release']} to {env} failed -- {' -- '.join(parts)}")


def close(env: str, job: str = "") -> dict:
    """
    End a run that went well: free its lock, and say in a line what is live where.

    env
        The name of the environment.
    job
        The id of the job that planned it.

    Returns ``{"ok", "comment"}``.

    CLI Example: not for the command line; ``orch/deploy.sls`` uses it.
    """
    ticket = _load(env)
    if not ticket or ticket["job"] != job:
        return _no(f"there is no run of this job under way for {env}")
    _release(env)
    seconds = ", ".join(f"{name} {s} s" for name, s in ticket["seconds"].items())
    text = f"{ticket['release']} is live in {env} on {', '.join(ticket['hosts'])} ({seconds})"
    return {"ok": True, "comment": "; ".join([text, *ticket.get("warnings", [])])}


def _plan_deploy(ticket: dict) -> dict:
    hosts = ticket["hosts"]
    ticket["release"] = time.strftime(ID_FORMAT, time.gmtime())
    failures = _refresh(hosts)
    if failures:
        return _no(_join(failures, "plan"))
    # One host asks the origins and resolves the packages, so that all build the same.
    arguments = {"release": ticket["release"], "extensions": ticket["extensions"], "fresh": False}
    first, failures = _ask(hosts[:1], "ckan_release.plan", {**arguments, "resolve": True})
    others: dict = {}
    if not failures and hosts[1:]:
        others, failures = _ask(hosts[1:], "ckan_release.plan", {**arguments, "resolve": False})
    if failures:
        return _no(_join(failures, "plan"))
    plan_ = first[hosts[0]]
    ticket["contents"] = plan_["contents"]
    ticket["before"] = {host: answer["current"] for host, answer in {**first, **others}.items()}
    extensions = ", ".join(f"{name} {what}" for name, what in sorted(plan_["extensions"].items())) or "no extension"
    changes = "".join(f"; {sentence}" for sentence in plan_["changes"])
    return {
        "ok": True, "release": ticket["release"], "hosts": hosts, "extensions": plan_["extensions"],
        "changes": plan_["changes"],
        "comment": f"release {ticket['release']} with {extensions} for {', '.join(hosts)}{changes}",
    }  # fmt: skip


def _plan_rollback(ticket: dict, to: str) -> dict:
    hosts = ticket["hosts"]
    failures = _refresh(hosts)
    if failures:
        return _no(_join(failures, "plan"))
    states, failures = _ask(hosts, "ckan_release.status", {})
    if failures:
        return _no(_join(failures, "plan"))
    left = {host: state["current"] for host, state in states.items()}
    asked = [host for host in hosts if not to or left[host] != to]
    if not asked:
        return _no(f"{', '.join(hosts)} are on {to} already; name another release with to")
    answers, failures = _ask(asked, "ckan_release.rollback_target", {"to": to, "force": ticket["force"]})
    if failures:
        return _no(_join(failures, "plan"))
    if not to and (len(set(answers.values())) > 1 or len(set(left.values())) > 1):
        each = ", ".join(f"{host} from {left[host]} to {answers[host]}" for host in hosts)
        return _no(f"the hosts would not go back together ({each}); name a release that all have with to: RELEASE")
    ticket["release"], ticket["left"] = answers[asked[0]], left
    from_ = ", ".join(sorted(set(left.values()) - {ticket["release"]}))
    return {
        "ok": True, "release": ticket["release"], "hosts": hosts, "extensions": {}, "changes": [],
        "comment": f"from {from_} back to {ticket['release']} on {', '.join(asked)}",
    }  # fmt: skip


def _ways_back(ticket: dict) -> dict[str, list[str]]:
    """What each host is told when a run is undone: for a deploy the candidate to abort, for a rollback the one left."""
    if ticket["kind"] == "deploy":
        return {ticket["release"]: ticket["hosts"]}
    back: dict[str, list[str]] = {}
    for host in ticket["hosts"]:
        back.setdefault(ticket["left"][host], []).append(host)
    return back


def _close_doors(ticket: dict) -> dict:
    """Turn maintenance on; a host that somebody else turned to it stays in it afterwards."""
    answers, failures = _ask(ticket["hosts"], "ckan_maintenance.on", {"reason": "deploy", "by": ticket["by"]})
    ticket["closed"] = [host for host, answer in answers.items() if host in failures or answer["changed"]]
    _save(ticket)
    return failures


def _open_doors(ticket: dict) -> dict:
    closed = ticket.get("closed") or []
    answers, failures = _ask(closed, "ckan_maintenance.off", {"by": ticket["by"]}) if closed else ({}, {})
    ticket["closed"] = sorted(failures)
    return failures


def _refresh(hosts: list[str]) -> dict:
    """Let the hosts take their pillar anew (it exits 0 when it fails: the settings look at the outcome)."""
    return _ask(hosts, "saltutil.refresh_pillar", {"wait": True}, PLAN_TIMEOUT)[1]


def _arguments(function: str, ticket: dict) -> dict:
    """What each function on a host is told. Never a secret: arguments are kept in the job cache."""
    by = {"by": ticket["by"]}
    if function == "ckan_release.build":
        return {
            "release": ticket["release"], "contents": ticket["contents"], "extensions": ticket["extensions"],
            "job": ticket["job"], **by,
        }  # fmt: skip
    if function == "ckan_release.rollback":
        return {"to": ticket["release"], "reason": ticket["reason"], "force": ticket["force"], "finish": False, **by}
    if function == "ckan_release.finish":
        # After a rollback the release that was left stays for a look at it; the next deploy prunes it.
        return {"release": ticket["release"], "prune": ticket["kind"] == "deploy", **by}
    return {"release": ticket["release"], **by}


def _ask(hosts: list[str], function: str, kwargs: dict, timeout: int = STAGE_TIMEOUT) -> tuple[dict, dict]:
    told = __salt__["ckan_hosts.ask"](hosts, function, kwargs, timeout)
    return told["results"], told["failures"]


def _remarks(name: str, results: dict) -> str:
    remarks = {w for result in results.values() if isinstance(result, dict) for w in result.get("warnings", [])}
    done = ""
    if name == "migrate":
        migrated = any((result or {}).get("migrated") for result in results.values())
        done = "; migrated" if migrated else "; nothing pending"
    return done + "".join(f"; {remark}" for remark in sorted(remarks))


def _join(failures: dict, stage_name: str) -> str:
    return _causes([{"host": host, "stage": stage_name, "cause": cause} for host, cause in failures.items()])


def _causes(failures: list[dict]) -> str:
    """Which hosts failed at which stage, and why: hosts with the same trouble in one sentence."""
    same: dict[tuple, list[str]] = {}
    for failure in failures:
        same.setdefault((failure["stage"], failure["cause"]), []).append(failure["host"])
    return "; ".join(f"{', '.join(sorted(hosts))} failed at {name}: {why}" for (name, why), hosts in same.items())


def _no(comment: str) -> dict:
    return {"ok": False, "comment": comment}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _file(env: str) -> str:
    return os.path.join(__opts__["cachedir"], "ckan", f"{env}.json")


def _lock(ticket: dict) -> str:
    """Make the ticket, unless there is one: then say whose."""
    path = _file(ticket["env"])
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        held = _load(ticket["env"]) or {}
        why = f": {held['reason']}" if held.get("reason") else ""
        gone = "" if held.get("kind") == "lock" or _alive(held.get("pid")) else ", but its process is gone"
        return (
            f"{ticket['env']} is locked by {held.get('by', 'somebody')} since {held.get('since', 'a moment ago')} "
            f"({held.get('kind', 'run')}{why}{gone}); wait, or type: salt-run ckan.unlock {ticket['env']}"
        )
    with os.fdopen(fd, "w", encoding="utf-8") as handle:
        json.dump(ticket, handle)
    return ""


def _alive(pid: Any) -> bool:
    return isinstance(pid, int) and os.path.exists(f"/proc/{pid}")


def _load(env: str) -> dict | None:
    try:
        with open(_file(env), encoding="utf-8") as handle:
            return json.load(handle)
    except (FileNotFoundError, ValueError):
        return None


def _save(ticket: dict) -> None:
    path = _file(ticket["env"])
    with open(f"{path}.tmp", "w", encoding="utf-8") as handle:
        json.dump(ticket, handle)
    os.chmod(f"{path}.tmp", 0o600)
    os.rename(f"{path}.tmp", path)


def _release(env: str) -> None:
    if os.path.exists(_file(env)):
        os.unlink(_file(env))
