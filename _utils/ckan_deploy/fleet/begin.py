"""The beginning of a run: what was asked for can be meant, the deploy lock is taken, the plan is made."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from ckan_deploy.errors import FormulaError
from ckan_deploy.fleet import end, hosts, interrupts, plan_text, progress, promote, revert
from ckan_deploy.fleet import maintenance as notices
from ckan_deploy.fleet import plan as plans
from ckan_deploy.fleet.master import Master
from ckan_deploy.fleet.run import Run, Span
from ckan_deploy.releases import ids
from ckan_deploy.system import arguments, tables

BLANK = "; write a blank after the colon"

# What the pillar of an orchestration may say.
KNOWN = {
    "deploy": (
        "env", "extensions", "dry_run", "maintenance", "groups", "allow_down", "force", "steal", "reason",
        "from", "release", "fresh", "message", "until",
    ),
    "rollback": (
        "env", "to", "reason", "force", "dry_run", "groups", "allow_down", "steal", "accept_schema", "downgrade",
        "restore", "maintenance", "message", "until",
    ),
}  # fmt: skip
# What takes most of a plan, for whoever waits.
WORK = {
    "deploy": "resolves refs and packages, and compares with what is live",
    "rollback": "compares the database with the release to go back to",
}


def plan(
    master: Master, env: Any, kind: str = "deploy", extensions: Any = None, to: Any = "", dry_run: Any = False,
    reason: Any = "", force: Any = False, maintenance: Any = False, groups: Any = None, allow_down: Any = None,
    steal: Any = False, given: Any = None, accept_schema: Any = False, downgrade: Any = False,
    restore: Any = "", job: str = "", source: Any = "", source_release: Any = "", fresh: Any = False,
    message: Any = "", until: Any = "",
) -> dict[str, Any]:  # fmt: skip
    """
    Begin a run: hosts answer, lock taken, settings valid, refs and packages resolved once. Nothing served is touched.

    master
        The master.
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
        Visitors get the maintenance page from the stage migrate, or downgrade, to the end of verify.
    groups
        One group of hosts after the other: see ``hosts.in_groups``.
    allow_down
        Hosts that may be down: they are left out then, and their next highstate catches up.
    steal
        Take the lock of a run that is dead, once what it left is reverted.
    given
        All names of the pillar of the orchestration, to find those that nobody knows.
    accept_schema, downgrade, restore
        For a rollback: how to go about a database that the release does not know.
    job
        The id of the job.
    source, source_release
        For a deploy: the environment that it takes a release from, and which one; by default what is live there.
    fresh
        For a deploy: ask the package index, also where nothing has changed since that was done.
    message, until
        What visitors read in maintenance mode, and its expected end, as ``ckan.maintenance`` takes them.

    Returns ``{"ok", "comment", "release", "hosts", "extensions": {name: what}, "changes": [sentences]}``, and more for
    a deploy: see ``plan.deploy``. Where it was refused, ``{"ok": False, "comment"}``.
    """
    run = Run(
        master=master, env=env, kind=kind, by=master.user, job=job, since=ids.now(),
        force=force is True, maintenance=maintenance is True, extensions=extensions or {}, dry_run=dry_run is True,
        accept_schema=accept_schema is True, downgrade=downgrade is True, restore=str(restore or ""),
        asked_groups=groups or [], allow_down=allow_down or [], source=source or "",
        source_release=source_release or "", fresh=fresh is True,
    )  # fmt: skip
    begun = time.time()
    reverted: list[str] = []
    progress.quiet()
    progress.note("plan", f"{kind} to {env or 'no environment'}: looks for its hosts")
    try:
        _words(run, reason, message, until)
        if not env:
            known = hosts.environments(master)
            raise FormulaError(
                f"the pillar names no environment; type pillar='{{env: {[*known, 'production'][0]}}}' (write a blank "
                f"after the colon); environments known: {', '.join(known) or 'none'}"
            )
        found = hosts.targets(master, env)
        _refuse(run, given, extensions)
        _refuse_switches(
            dry_run=dry_run, force=force, maintenance=maintenance, steal=steal, accept_schema=accept_schema,
            downgrade=downgrade, fresh=fresh,
        )  # fmt: skip
        if kind == "deploy":
            promote.check(run, given or [])
        if not run.dry_run:
            interrupts.hold(run.env)
            _lock(run, steal is True, reverted)
    except FormulaError as exc:
        return end.refused(run, str(exc), reverted)
    return _planned(run, found, str(to or ""), reverted, begun)


def _words(run: Run, reason: Any, message: Any, until: Any) -> None:
    """Take what people are to read."""
    run.reason = arguments.line("reason", reason or "")
    run.message = dict(message) if isinstance(message, Mapping) else arguments.line("message", message or "")
    run.until = arguments.text("until", until or "")


def _planned(run: Run, found: hosts.Targets, to: str, reverted: list[str], begun: float) -> dict[str, Any]:
    """Make the plan of a run that holds its deploy lock; frees that where there is none to be made."""
    try:
        progress.note("plan", f"checks that {tables.some(found.hosts)} can take a {run.kind}", time.time() - begun)
        plans.choose_hosts(run, found)
        notices.check(run)
        progress.note("plan", WORK[run.kind], time.time() - begun)
        outcome = plans.deploy(run) if run.kind == "deploy" else plans.rollback(run, to)
        if run.dry_run:
            return {**outcome, "text": plan_text.text(run, outcome)}
        _tell(run, begun, str(outcome["comment"]))
        return outcome
    except FormulaError as exc:
        if run.dry_run:
            return {"ok": False, "comment": str(exc)}
        run.record.free(run.job)
        return end.refused(run, str(exc), reverted)
    except BaseException:
        # Nothing was touched yet: whatever it is, nobody has to be kept out for it.
        if not run.dry_run:
            run.record.free(run.job)
        raise


def _tell(run: Run, begun: float, comment: str) -> None:
    """Note that the plan is made, and tell it with what was found."""
    seconds = time.time() - begun
    run.spans.append(Span("plan", "", "", begun, seconds, "ok"))
    run.save()
    progress.tell(run, "plan", "ok", seconds=seconds, comment=comment)
    release = [f"release {run.release}"] if run.kind == "deploy" else []
    for text in [comment] if run.nothing else [*release, *run.changes]:
        progress.note("plan", text, seconds)
    progress.warn(run, "plan", run.warnings, seconds)


def _refuse(run: Run, given: Any, extensions: Any) -> None:
    """Raise ``FormulaError`` for what cannot be meant."""
    known = KNOWN.get(str(run.kind))
    if not known:
        raise FormulaError(f"{run.kind!r} is neither deploy nor rollback")
    if given is not None and not isinstance(given, list):
        raise FormulaError(f"given must be a list of names, not {given!r}")
    unknown = [str(name) for name in given or [] if name not in known]
    if unknown:
        # The pillar of the master's own minion is among them.
        own = set(map(str, run.master.own_pillar()))
        each = [_unknown(name, known) for name in unknown if name not in own]
        if each:
            raise FormulaError(f"orch.{run.kind} does not know {', '.join(each)}; it knows {', '.join(known)}")
    if extensions is not None and not isinstance(extensions, dict):
        raise FormulaError(f"extensions must be a dictionary, such as {{ckanext-mycity: {{ref: fix-42}}}}{BLANK}")
    for name, content in (extensions or {}).items():
        odd = next((leaf for leaf in content if arguments.missing_blank(leaf)), "") if isinstance(content, dict) else ""
        if odd or content is None or arguments.missing_blank(content):
            raise FormulaError(f"{name} in extensions must be a dictionary, such as {{ref: fix-42}}{BLANK}")


def _unknown(name: str, known: Sequence[str]) -> str:
    """A name of the pillar that nobody knows, with what was meant."""
    word, _, rest = name.partition(":")
    if word in known and rest:
        return f"{name} (write a blank after the colon: {word}: {rest})"
    return f"{name}{arguments.near(name, known)}"


def _refuse_switches(**switches: Any) -> None:
    for name, value in switches.items():
        if value is not None and not isinstance(value, bool):
            raise FormulaError(f"{name} must be true or false, not {value!r}")


def _lock(run: Run, steal: bool, reverted: list[str]) -> None:
    """Take the deploy lock, and revert what a dead run has left that held it; ``reverted`` gets what came of that."""
    record = run.record
    held = record.lock()
    if not record.take(run.kind, run.job, run.reason, steal):
        return
    dead = record.run()
    done = revert.recover_run(Run.of(run.master, dead), run.job) if dead else revert.UNTOUCHED
    if done is not revert.UNTOUCHED:
        reverted.append(str(done["comment"]))
    if not done["ok"]:
        record.give_back(held)
        raise FormulaError("a run that died could not be reverted on all hosts")
