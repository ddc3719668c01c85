"""
A deploy or a rollback over all hosts of an environment, stage by stage. ``orch/deploy.sls`` and ``orch/rollback.sls``
call this through the states of the same name; ``salt-run ckan...`` is what people type.

Each function returns ``{"ok": bool, "comment": sentence, ...}``: a runner that raises is shown with a traceback. What a
run knows (hosts, release, what that holds, what failed) stands in a ticket on the master, from ``plan`` to ``close``
(``ckan_record``). It is the environment's lock that keeps others out meanwhile.

``ckan_hosts`` says which hosts belong to an environment, and asks them; ``ckan_plan`` decides what is to be done.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from typing import Any

import salt.utils.user

# How often the rebuild of the search index is looked at, in seconds.
LOOK_SECONDS = 10

# What each stage calls on the hosts, in order. The last of each list is what the stage is about.
DEPLOY_STAGES = {
    "build": ["ckan_release.build"],
    "check": ["ckan_release.check"],
    "migrate": ["ckan_release.migrate"],
    "activate": ["ckan_release.start", "ckan_release.activate"],
    "verify": ["ckan_release.verify"],
    "index": ["ckan_index.rebuild"],
    "finish": ["ckan_release.finish"],
}
ROLLBACK_STAGES = {
    "downgrade": ["ckan_schema.downgrade"],
    "activate": ["ckan_release.start", "ckan_release.rollback"],
    "verify": ["ckan_release.verify"],
    "index": ["ckan_index.rebuild"],
    "finish": ["ckan_release.finish"],
}
# One host does it for all: they share the database.
ON_ONE_HOST = ("migrate", "downgrade", "index")
# Not before all groups serve the release: until then the app server of the release before makes the way back short.
FOR_ALL_GROUPS = ("index", "finish")
# The new release serves already: what goes wrong is a warning.
WARN_ONLY = ("index", "finish")


def plan(
    env: Any, kind: str = "deploy", extensions: dict | None = None, to: str = "", dry_run: bool = False,
    reason: str = "", force: bool = False, maintenance: bool = False, groups: Any = None, allow_down: Any = None,
    steal: bool = False, given: list[str] | None = None, accept_schema: bool = False, downgrade: bool = False,
    restore: str = "", job: str = "",
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
    reason
        Why.
    force
        For a rollback: a release that is marked bad will do. For a deploy: also where there is nothing to deploy.
    maintenance
        For a deploy: visitors get the page of ``ckan_maintenance`` from the stage migrate to the end of verify.
    groups
        One group of hosts after the other: see ``ckan_hosts.in_groups``.
    allow_down
        Hosts that may be down: they are left out then, and their next highstate catches up.
    steal
        Take the lock of a run that is dead, once what it left is taken back.
    given
        All names of the pillar of the orchestration, to find those that nobody knows.
    accept_schema, downgrade, restore
        For a rollback: how to go about a database that the release does not know; see ``ckan_release.rollback``.
    job
        The id of the job.

    Returns ``{"ok", "comment", "release", "hosts", "extensions": {name: what}, "changes": [sentences]}``, and more for
    a deploy: see ``ckan_plan.deploy``.

    CLI Example: not for the command line; use ``salt-run state.orch orch.deploy pillar='{env: production}'``.
    """
    ticket = {
        "env": env, "kind": kind, "hosts": [], "by": salt.utils.user.get_specific_user(), "job": job,
        "reason": reason, "force": force, "maintenance": maintenance, "extensions": extensions or {},
        "accept_schema": accept_schema is True, "downgrade": downgrade is True, "restore": str(restore),
        "asked_groups": groups or [], "allow_down": allow_down or [], "dry_run": dry_run,
        "since": __salt__["ckan_record.now"](), "seconds": {}, "spans": [], "failures": [], "warnings": [],
    }  # fmt: skip
    __salt__["ckan_progress.quiet"]()
    found = __salt__["ckan_hosts.targets"](env)
    problem = "" if not found["ok"] else __salt__["ckan_plan.refuse_unknown"](kind, given or [])
    if found["ok"] and not problem and extensions is not None and not isinstance(extensions, dict):
        problem = "extensions must be a dictionary, such as '{ckanext-mycity: {ref: fix-42}}'"
    if problem or not found["ok"]:
        return _refused(ticket, problem or found["comment"])
    held = __salt__["ckan_record.lock_of"](env)
    if not dry_run:
        taken = __salt__["ckan_record.take"](env, kind, job, reason, steal is True)
        if not taken["ok"]:
            return _refused(ticket, taken["comment"])
        if taken.get("dead"):
            recovered = _recover(taken["dead"], job)
            if not recovered["ok"]:
                __salt__["ckan_record.give_back"](env, held)
                return _refused(ticket, recovered["comment"])
    begun = time.time()
    outcome = __salt__["ckan_plan.hosts"](ticket, found)
    if outcome["ok"]:
        decide = __salt__[f"ckan_plan.{kind}"]
        outcome = decide(ticket) if kind == "deploy" else decide(ticket, to)
    if dry_run:
        return outcome
    if not outcome["ok"]:
        __salt__["ckan_record.free"](env, job)
        return _refused(ticket, outcome["comment"])
    seconds = time.time() - begun
    ticket["spans"].append({"stage": "plan", "group": "", "host": "", "at": begun, "seconds": seconds, "result": "ok"})
    __salt__["ckan_record.save_run"](ticket)
    __salt__["ckan_progress.tell"](ticket, "plan", "ok", seconds=seconds, comment=outcome["comment"])
    return outcome


def stage(env: str, name: str, group: str = "", job: str = "") -> dict:
    """
    Run one stage on the hosts of a group of the run under way, and wait for every one of them.

    env
        The name of the environment.
    name
        The stage: ``build``, ``check``, ``migrate``, ``activate``, ``verify`` or ``finish``.
    group
        The group, as ``ckan_hosts.steps`` names it; ``''`` where there is but one, or for all of them.
    job
        The id of the job that planned it.

    Returns ``{"ok", "comment", "results": {host: ...}}``.

    CLI Example: not for the command line; use ``salt-run state.orch orch.deploy pillar='{env: production}'``.
    """
    ticket = _under_way(env, job)
    if not ticket:
        return _no(f"there is no run of this job under way for {env}; start it with state.orch")
    needless = {"downgrade": not ticket.get("undo"), "index": not ticket.get("reindex")}
    if ticket.get("nothing") or needless.get(name):
        return {"ok": True, "comment": "nothing to do", "results": {}}
    part = [part["hosts"] for part in ticket["groups"] if part["name"] == group]
    hosts = ticket["hosts"] if name in FOR_ALL_GROUPS else part[0] if part else []
    hosts = hosts[:1] if name in ON_ONE_HOST else hosts
    hosts = [ticket["undo_on"]] if name == "downgrade" else hosts
    last = not ticket["groups"] or group == ticket["groups"][-1]["name"]
    begun = time.time()
    results: dict[str, Any] = {}
    if name == "migrate":
        ticket["migrates"] = hosts[0]
    closed = name in ("migrate", "downgrade") and ticket.get("maintenance")
    failures = __salt__["ckan_doors.close"](ticket) if closed else {}
    functions = (DEPLOY_STAGES if ticket["kind"] == "deploy" else ROLLBACK_STAGES)[name]
    for function in [] if failures else functions:
        asked = hosts
        if function == "ckan_release.rollback":
            # A fleet that disagrees is brought together: some hosts may be on the target already.
            asked = [host for host in hosts if ticket["left"][host] != ticket["release"]]
        results, failures = _ask_aloud(ticket, name, group, asked, function, begun, quiet=function != functions[-1])
        if failures:
            break
    _note_database(ticket, name, results, failures)
    if name == "verify" and last and not failures:
        failures = __salt__["ckan_doors.open_again"](ticket)
    ticket["seconds"][name] = round(ticket["seconds"].get(name, 0) + time.time() - begun, 1)
    if failures and name in WARN_ONLY:
        # The new release serves already: what is left over is a warning.
        ticket["warnings"] += [f"{host} at {name}: {cause}" for host, cause in failures.items()]
        __salt__["ckan_record.save_run"](ticket)
        return {"ok": True, "comment": f"warning: {_join(failures, name)}", "results": results}
    ticket["failures"] += [{"host": host, "stage": name, "cause": cause} for host, cause in failures.items()]
    if name == "verify" and last and not failures:
        _want(ticket)
    __salt__["ckan_record.save_run"](ticket)
    if failures:
        return {"ok": False, "comment": _join(failures, name), "results": results}
    return {
        "ok": True,
        "comment": f"{name}: {', '.join(hosts)} in {round(time.time() - begun, 1)} s{_remarks(name, results)}",
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
    ticket = _under_way(env, job) if isinstance(env, str) and env else None
    if not ticket:
        return _no("nothing was touched")
    reason = __salt__["ckan_plan.causes"](ticket["failures"]) or "the run did not come to its end"
    done = __salt__["ckan_undo.undo"](ticket, reason, job)
    text = f"{ticket['kind']} of {ticket['release']} to {env} failed -- {reason} -- {done['comment']}"
    __salt__["ckan_record.save_run"]({**ticket, "ended": __salt__["ckan_record.now"](), "result": "failed"})
    __salt__["ckan_record.free"](env, job)
    return _end(ticket, "way_back", text)


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
    ticket = _under_way(env, job)
    if not ticket:
        return _no(f"there is no run of this job under way for {env}")
    if ticket.get("nothing"):
        text = f"Nothing to deploy to {env}: {', '.join(ticket['hosts'])} have it all; force: true deploys all the same"
    else:
        seconds = ", ".join(f"{name} {s} s" for name, s in ticket["seconds"].items())
        text = f"{ticket['release']} is live in {env} on {', '.join(ticket['hosts'])} ({seconds})"
        # Once more, now with all the seconds.
        _want(ticket)
    missing = [
        f"{host} is down and takes it up by its next highstate: salt {host} state.highstate" for host in ticket["down"]
    ]
    __salt__["ckan_record.save_run"]({**ticket, "ended": __salt__["ckan_record.now"](), "result": "ok"})
    __salt__["ckan_record.free"](env, job)
    return _end(ticket, "done", "; ".join([text, *missing, *ticket["warnings"]]))


def recover(env: str) -> dict:
    """
    Bring the hosts of an environment together after a run that died: back to what they served before, or, where its
    release was verified on all hosts already, on to its end. Then free its lock.

    env
        The name of the environment.

    Returns ``{"ok", "comment"}``.

    CLI Example: not for the command line; ``ckan.unlock`` does it.
    """
    ticket, lock = __salt__["ckan_record.run_of"](env), __salt__["ckan_record.lock_of"](env)
    done = {"ok": True, "comment": "it had touched nothing"}
    if ticket and ticket["job"] == lock["job"]:
        done = _recover(ticket, lock["job"])
    if done["ok"]:
        __salt__["ckan_record.free"](env, lock["job"])
    return done


def _recover(ticket: dict, job: str) -> dict:
    """Finish, or undo, what a dead run left. Its hosts obey the run that holds the lock now."""
    if "ended" in ticket or "release" not in ticket:
        return {"ok": True, "comment": "it had touched nothing"}
    wanted = __salt__["ckan_record.wanted"](ticket["env"]) or {}
    if wanted.get("release") == ticket["release"]:
        arguments = _arguments("ckan_release.finish", ticket, job)
        _, failures = _ask(ticket["hosts"], "ckan_release.finish", arguments)
        done = {"ok": not failures, "comment": _join(failures, "finish") or f"{ticket['release']} is live on all hosts"}
    else:
        done = __salt__["ckan_undo.undo"](ticket, "the run died", job)
    if done["ok"]:
        ended = {"ended": __salt__["ckan_record.now"](), "result": "failed"}
        __salt__["ckan_record.save_run"]({**ticket, **ended})
    return done


def _note_database(ticket: dict, name: str, results: dict, failures: dict) -> None:
    """What the stages told of the database: for the manifests of all hosts, and for the way back."""
    told = [result for host, result in results.items() if isinstance(result, dict) and host not in failures]
    if name == "check" and any(result.get("pending") and result.get("maintenance") for result in told):
        ticket["maintenance"] = True
    if name == "migrate":
        ticket["migration"] = next((result["migration"] for result in told if result.get("migration")), {})
    if name == "verify" and any(result.get("reindex") for result in told):
        ticket["reindex"] = True
    if name == "index":
        ticket["index"] = next((result["index"] for result in told), {})
    if name == "downgrade":
        # Also where it failed half-way.
        ticket["downgraded"] = True
        # Another database than the one that the search index was filled from.
        ticket["kept_as"] = next((result["kept_as"] for result in told if result.get("kept_as")), "")
        ticket["reindex"] = ticket["restored"] = bool(ticket["kept_as"])


def _want(ticket: dict) -> None:
    """The release serves on all hosts: what a host must be on from now, also one that was not there."""
    about = {name: ticket[name] for name in ("extensions", "by", "kind", "seconds")}
    __salt__["ckan_record.want"](ticket["env"], ticket["release"], ticket["contents"], **about)


def _under_way(env: str, job: str) -> dict | None:
    """The ticket of a run whose plan came to its end, and whose lock it still holds."""
    ticket, lock = __salt__["ckan_record.run_of"](env), __salt__["ckan_record.lock_of"](env)
    return ticket if ticket and lock and ticket["job"] == lock["job"] == job else None


def _refused(ticket: dict, comment: str) -> dict:
    _end(ticket, "refused", f"{ticket['kind']} to {ticket['env']} was refused, nothing was touched: {comment}")
    return _no(comment)


def _end(ticket: dict, how: str, text: str) -> dict:
    """The end of a run: an event, the report, and the sentence that the terminal shows last."""
    ok = how == "done"
    __salt__["ckan_progress.tell"](ticket, how, "ok" if ok else "failed", comment=text)
    began = bool(ticket["spans"]) and not ticket.get("nothing")
    report = __salt__["ckan_report.write"](ticket, how, text) if began else ""
    __salt__["ckan_progress.last_word"](f"{text}\nreport: {report}" if report else text)
    return {"ok": ok, "comment": text}


def _arguments(function: str, ticket: dict, job: str) -> dict:
    """What each function on a host is told. Never a secret: arguments are kept in the job cache."""
    about = {"by": ticket["by"], "job": job}
    if function == "ckan_release.build":
        return {
            "release": ticket["release"], "contents": ticket["contents"], "extensions": ticket["extensions"], **about,
        }  # fmt: skip
    if function == "ckan_release.rollback":
        accept = {"accept_schema": True} if ticket["accept_schema"] else {}
        how = {"reason": ticket["reason"], "force": ticket["force"], "finish": False, **accept}
        return {"to": ticket["release"], **how, **about}
    if function == "ckan_index.rebuild" and ticket.get("restored"):
        return {"release": ticket["release"], "force": True, **about}
    if function == "ckan_schema.downgrade":
        return {"release": ticket["release"], "restore": ticket["restore"], **about}
    if function == "ckan_release.start" and ticket.get("migration"):
        return {"release": ticket["release"], "migration": ticket["migration"], **about}
    if function == "ckan_release.finish":
        # After a rollback the release that was left stays for a look at it; the next deploy prunes it.
        index = {"index": ticket["index"]} if ticket.get("index") else {}
        return {"release": ticket["release"], "prune": ticket["kind"] == "deploy", **index, **about}
    return {"release": ticket["release"], **about}


def _ask_aloud(
    ticket: dict, name: str, group: str, hosts: list[str], function: str, begun: float, quiet: bool
) -> tuple[dict, dict]:
    """Ask hosts for a stage, and tell of each answer as it comes."""
    waiting = list(hosts)

    def note(host: str, failed: str, _: float) -> None:
        waiting.remove(host)
        seconds = time.time() - begun
        if failed or not quiet:
            result = "ok" if not failed else "warning" if name in WARN_ONLY else "failed"
            ticket["spans"].append(
                {"stage": name, "group": group, "host": host, "at": begun, "seconds": seconds, "result": result}
            )
            __salt__["ckan_progress.tell"](ticket, name, result, host, seconds, failed)
        __salt__["ckan_progress.waiting"](name, waiting)

    if not quiet or len(hosts) == 0:
        __salt__["ckan_progress.tell"](ticket, name, "started")
    __salt__["ckan_progress.waiting"](name, waiting)
    arguments = _arguments(function, ticket, ticket["job"])
    with _index_watched(ticket, hosts, begun) if name == "index" else contextlib.nullcontext():
        told = __salt__["ckan_hosts.ask"](hosts, function, arguments, told=note)
    return told["results"], told["failures"]


@contextlib.contextmanager
def _index_watched(ticket: dict, hosts: list[str], begun: float):
    """Tell now and then how far the rebuild of the search index is: on a large portal it takes hours."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            answers, failures = _ask(hosts, "ckan_app.index_status", {})
            for host in [host for host in hosts if host not in failures and not over.is_set()]:
                how_far = answers[host]["rebuild"]
                __salt__["ckan_progress.tell"](ticket, "index", "progress", host, time.time() - begun, how_far)

    # Salt's loader finds its context only in the calling thread, or in a copy of what that has.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(look,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _ask(hosts: list[str], function: str, kwargs: dict) -> tuple[dict, dict]:
    told = __salt__["ckan_hosts.ask"](hosts, function, kwargs)
    return told["results"], told["failures"]


def _remarks(name: str, results: dict) -> str:
    remarks = {w for result in results.values() if isinstance(result, dict) for w in result.get("warnings", [])}
    done = ""
    if name == "migrate":
        migrated = any((result or {}).get("migrated") for result in results.values())
        done = "; migrated" if migrated else "; nothing pending"
    if name == "index":
        done = "".join(f"; rebuilt, since {r['why']}" for r in results.values() if (r or {}).get("rebuilt"))
    return done + "".join(f"; {remark}" for remark in sorted(remarks))


def _join(failures: dict, stage_name: str) -> str:
    return __salt__["ckan_plan.join"](failures, stage_name)


def _no(comment: str) -> dict:
    return {"ok": False, "comment": comment}
