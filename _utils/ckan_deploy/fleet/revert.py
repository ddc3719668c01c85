"""
The revert of a run that failed or died: every host gets back what it served before, and the database that it knows.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ckan_deploy.fleet import details, end, hosts, maintenance, shipping, stages
from ckan_deploy.fleet.hosts import Answers
from ckan_deploy.fleet.master import Master
from ckan_deploy.fleet.names import NAME
from ckan_deploy.fleet.record import Record
from ckan_deploy.fleet.run import Run, Span, causes, join
from ckan_deploy.releases import ids

# How long is waited for a host that does not answer at once, or for a master that is being restarted.
PATIENCE = 60
# What is said of a host that may answer a moment later.
SILENT = re.compile(r"does not (answer; start|take jobs)")
UNTOUCHED = {"ok": True, "comment": "it had touched nothing"}


def revert(run: Run) -> dict[str, Any]:
    """
    Undo a run that failed: every host gets back the release that it served before. Frees this run's lock only.

    run
        The run.

    Returns ``{"ok": False, "comment"}``: the comment names host, stage and cause, and what each host serves now.
    """
    reasons = [causes(run.failures), run.interrupted]
    reason = "; ".join(filter(None, reasons)) or "the run did not come to its end"
    done = undo(run, reason, run.job)
    details.look(run)
    end.over(run, "failed")
    result = f"{run.kind} of {run.release} to {run.env} failed"
    again = "" if run.interrupted else "when that is mended, "
    lines = [
        f"{result}, {'and was reverted' if done['ok'] else 'and could not be reverted on all hosts'}",
        f"cause: {reason}", *(f"now: {said}" for said in done["lines"]),
        f"type: {again}salt-run state.orch orch.{run.kind} pillar='{{env: {run.env}}}'",
    ]  # fmt: skip
    return end.end(run, "revert", f"{result} -- {reason} -- {done['comment']}", lines=lines)


def nothing(master: Master, env: Any, job: str) -> str:
    """
    Say why there is nothing to revert for a job.

    master
        The master.
    env
        The name of the environment.
    job
        The id of the job that planned it.
    """
    told = Record(master, env).run() if isinstance(env, str) and NAME.fullmatch(env) else None
    # A run is noted when its plan has come to its end, and no stage begins before that.
    if not told or told.get("job") != job:
        return "nothing was touched"
    if told.get("ended"):
        return f"the run has ended already ({told.get('result')})"
    return f"the run has lost its deploy lock, so it reverts nothing; look with: salt-run ckan.status {env}"


def recover(master: Master, env: str) -> dict[str, Any]:
    """
    Bring the hosts of an environment together after a run that died: back to what they served before, or, where its
    release was verified on all hosts already, on to its end. Then free its lock.

    master
        The master.
    env
        The name of the environment.

    Returns ``{"ok", "comment"}``.
    """
    record = Record(master, env)
    told, lock = record.run(), record.lock()
    job = lock.job if lock else ""
    done = recover_run(Run.of(master, told), job) if told and told.get("job") == job else UNTOUCHED
    if done["ok"]:
        record.free(job)
    return done


def recover_run(run: Run, job: str) -> dict[str, Any]:
    """
    Finish, or undo, what a dead run left.

    run
        The dead run.
    job
        The job that holds the deploy lock now: the hosts obey it.

    Returns ``{"ok", "comment"}``.
    """
    if run.ended:
        return {"ok": True, "comment": f"it had ended ({run.result})"}
    if not run.release:
        return UNTOUCHED
    if run.record.wanted().get("release") == run.release:
        arguments = stages.arguments("ckan_release.finish", run, job)
        failures = hosts.ask(run.master, run.hosts, "ckan_release.finish", arguments).failures
        done = {"ok": not failures, "comment": join(failures, "finish") or f"{run.release} is live on all hosts"}
    else:
        done = undo(run, "the run died", job)
    if done["ok"]:
        run.ended, run.result = ids.now(), "failed"
        run.save()
        shipping.forget(run)
    return done


def undo(run: Run, reason: str, job: str) -> dict[str, Any]:
    """
    Bring all hosts of a run back.

    run
        The run.
    reason
        Why; stands in the log of each host.
    job
        The job that asks.

    Returns ``{"ok": whether that could be done, "comment": what each host serves now, and what is left to do, "lines":
    the same, a sentence each}``.
    """
    told, commands, begun = Answers(), {}, time.time()
    remarks, stays_closed = _database(run, job)
    function = "ckan_release.abort" if run.kind == "deploy" else "ckan_release.activate"
    force = {} if run.kind == "deploy" else {"force": True}
    for release, names in _back_to(run).items():
        about = {"release": release, "reason": reason, "by": run.by, "job": job, **force}
        some = _ask(run.master, names, function, about)
        told.results.update(some.results)
        told.failures.update(some.failures)
        commands.update({host: f"{function} {release}{' force=True' if force else ''}" for host in names})
    for host, cause in {} if stays_closed else maintenance.open_again(run).items():
        told.failures.setdefault(host, f"{cause}; it is in maintenance, too: salt {host} ckan_maintenance.off")
    serving: dict[str, list[str]] = {}
    for host, result in told.good.items():
        if host in run.hosts:
            serving.setdefault(result["current"] or "no release (as before)", []).append(host)
            run.serves[host] = result["current"]
    run.spans.append(Span("revert", "", "", begun, time.time() - begun, "failed" if told.failures else "ok"))
    remarks += _what_stays(run, told.results)
    parts = [f"{', '.join(sorted(names))} on {release}" for release, names in sorted(serving.items())]
    parts += [
        f"{host} could not be reverted ({cause}): when it is up, type: salt {host} {commands[host]}"
        for host, cause in told.failures.items()
    ]
    return {"ok": not told.failures, "comment": " -- ".join([*parts, *remarks]), "lines": [*parts, *remarks]}


def _database(run: Run, job: str) -> tuple[list[str], bool]:
    """
    Before hosts get back what they served: the database that it knows. Returns remarks, and whether the portal stays
    closed, since that could not be done.
    """
    if run.kind == "deploy":
        return _give_back(run, job) if run.closed is not None else ([], False)
    return (_bring_forward(run, job) if run.downgraded else []), False


def _give_back(run: Run, job: str) -> tuple[list[str], bool]:
    """After a deploy that closed the portal: the database of before, from its dump. Nobody has written to it since."""
    host, release = run.migrates, run.release
    told = _ask(run.master, [host], "ckan_schema.give_back", {"release": release, "by": run.by, "job": job})
    if not told.failures:
        kept, differs = told.results[host]["kept_as"], "; ".join(told.results[host].get("differs", []))
        but = f", but for what did not come back: {differs}" if differs else ""
        said = f"the database is as it was before the migration ({kept} has what came of it){but}"
        return [said] if kept else [], False
    text = (
        f"the database could not be given back as it was before ({told.failures[host]}), so the portal stays closed: "
        f"restore it, such as by: salt {host} ckan_backup.restore {release} confirm={release}; then open it: salt -L "
        f"{','.join(run.hosts)} ckan_maintenance.off"
    )
    return [text], True


def _what_stays(run: Run, results: Mapping[str, Any]) -> list[str]:
    """After a deploy that migrated with an open portal: in what the database differs from what is served again."""
    host = run.migrates
    if run.kind != "deploy" or run.closed is not None or not run.migration:
        return []
    served = results[host]["current"] if isinstance(results.get(host), dict) else ""
    told = _ask(run.master, [host], "ckan_schema.mismatch", {"release": served})
    return [f"the database stays migrated: {told.results[host]}"] if told.results[host] and not told.failures else []


def _bring_forward(run: Run, job: str) -> list[str]:
    """After a rollback that changed the database: the one that the newer release knows."""
    host, kept_as = run.undo_on, run.kept_as
    release = run.left[host]
    about = {"release": release, "kept_as": kept_as, "by": run.by, "job": job}
    told = _ask(run.master, [host], "ckan_schema.upgrade", about)
    typed = f"salt {host} ckan_schema.upgrade {release}" + (f" kept_as={kept_as}" if kept_as else "")
    what = f"the database could not be brought back to {release}"
    return [f"{what} ({cause}): type: {typed}" for cause in told.failures.values()]


def _back_to(run: Run) -> dict[str, list[str]]:
    """What each host is told: for a deploy the candidate to abort, for a rollback the release that it left."""
    if run.kind == "deploy":
        return {run.release: shipping.everyone(run)}
    back: dict[str, list[str]] = {}
    for host in run.hosts:
        back.setdefault(run.left[host], []).append(host)
    return back


def _ask(master: Master, names: Sequence[str], function: str, kwargs: Mapping[str, Any]) -> Answers:
    """Ask until each host has answered, for a while: a master that was restarted is not there at once."""
    deadline, silent = time.monotonic() + PATIENCE, list(names)
    told = Answers()
    while True:
        again = hosts.ask(master, silent, function, kwargs)
        told.results.update(again.results)
        told.failures = {host: cause for host, cause in told.failures.items() if host not in silent} | again.failures
        silent = [host for host, cause in told.failures.items() if SILENT.search(cause)]
        if not silent or time.monotonic() > deadline:
            return told
        time.sleep(2)
