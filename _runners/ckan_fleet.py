"""
A deploy or a rollback over all hosts of an environment, stage by stage. ``orch/deploy.sls`` and ``orch/rollback.sls``
call this through the states of the same name; ``salt-run ckan...`` is what people type.

Each function but ``steps`` returns ``{"ok": bool, "comment": sentence, ...}``: a runner that raises is shown with a
traceback.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

try:
    import ckan_deploy

    ckan_deploy.fresh(__file__)
    from ckan_deploy import errors
    from ckan_deploy.fleet import begin, end, hosts, master, progress, stages
    from ckan_deploy.fleet import revert as reverts
    from ckan_deploy.fleet import run as runs
except Exception as exc:  # half a sync, another Python
    PROBLEM = (
        f"the formula's package ckan_deploy cannot be imported ({type(exc).__name__}: {exc}); "
        "type: salt-run saltutil.sync_all"
    )
else:
    PROBLEM = ""


def _answers(function: Callable[..., dict]) -> Callable[..., dict]:
    """Make an answer of what is raised, of PROBLEM and of unknown arguments: the step that asks shows the sentence."""

    @functools.wraps(function)
    def answer(*args: Any, **kwargs: Any) -> dict:
        if PROBLEM:
            return _no(PROBLEM)
        try:
            inspect.signature(function).bind(*args, **kwargs)
        except TypeError as exc:
            # The orchestrations come from the file server, and are new as soon as that is.
            return _no(
                f"the orchestrations are of another version than the runners, which were synchronized before ({exc}); "
                "type: salt-run saltutil.sync_all, and salt '*' saltutil.sync_all"
            )
        try:
            return function(*args, **kwargs)
        except (errors.FormulaError, OSError) as exc:
            return _no(str(exc))

    return answer


@_answers
def plan(
    env: Any, kind: str = "deploy", extensions: dict | None = None, to: str = "", dry_run: bool = False,
    reason: str = "", force: bool = False, maintenance: bool = False, groups: Any = None, allow_down: Any = None,
    steal: bool = False, given: list[str] | None = None, accept_schema: bool = False, downgrade: bool = False,
    restore: str = "", job: str = "", from_env: Any = "", from_release: Any = "", fresh: Any = False,
    message: Any = "", until: Any = "",
) -> dict:  # fmt: skip
    """
    Begin a run: hosts answer, lock taken, settings valid, refs and packages resolved once. Nothing served is touched.

    env
        The name of the environment.
    kind
        ``deploy`` or ``rollback``.
    extensions, to, dry_run, reason, force, fresh, maintenance, groups, allow_down, steal, accept_schema, downgrade,
    restore, message, until
        What the pillar of the orchestration may say (docs/commands.md).
    given
        All names of that pillar, to find those that nobody knows.
    job
        The id of the job.
    from_env, from_release
        The environment whose release is taken (``from``), and which one (``release``); by default what is live there.

    Returns ``{"ok", "comment", "release", "hosts", "extensions": {name: what}, "changes": [sentences]}``, and of a
    deploy ``groups``, ``down`` and ``last`` besides; of one ``from`` another environment ``from`` and ``differs``; with
    ``dry_run`` also ``text``, lines for people.

    CLI Example: not for the command line; use ``salt-run state.orch orch.deploy pillar='{env: production}'``.
    """
    return begin.plan(
        _master(), env, kind, extensions=extensions, to=to, dry_run=dry_run, reason=reason, force=force,
        maintenance=maintenance, groups=groups, allow_down=allow_down, steal=steal, given=given,
        accept_schema=accept_schema, downgrade=downgrade, restore=restore, job=job, source=from_env,
        source_release=from_release, fresh=fresh, message=message, until=until,
    )  # fmt: skip


@_answers
def stage(env: str, name: str, group: str = "", job: str = "") -> dict:
    """
    Run one stage on the hosts of a group of the run under way, and wait for every one of them.

    env
        The name of the environment.
    name
        The stage: ``build``, ``check``, ``migrate``, ``activate``, ``verify``, ``index`` or ``finish``, of a rollback
        ``downgrade``.
    group
        The group, as ``steps`` names it; ``''`` where there is but one, or for all of them.
    job
        The id of the job that planned it.

    Returns ``{"ok", "comment", "results": {host: ...}}``.

    CLI Example: not for the command line; use ``salt-run state.orch orch.deploy pillar='{env: production}'``.
    """
    run = runs.Run.under_way(_master(), env, job)
    if not run:
        return _no(f"there is no run of this job under way for {env}; start it with state.orch")
    return stages.stage(run, name, group)


@_answers
def revert(env: str, job: str = "") -> dict:
    """
    Undo a run that failed: every host gets back the release that it served before. Frees this run's lock only.

    env
        The name of the environment.
    job
        The id of the job that planned it.

    Returns ``{"ok": False, "comment"}``: the comment names host, stage and cause, and what each host serves now.

    CLI Example: not for the command line; ``orch/deploy.sls`` uses it.
    """
    run = runs.Run.under_way(_master(), env, job)
    return reverts.revert(run) if run else _no(reverts.nothing(_master(), env, job))


@_answers
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
    run = runs.Run.under_way(_master(), env, job)
    return end.close(run) if run else _no(f"there is no run of this job under way for {env}")


def steps(env: Any, groups: Any = None) -> list[str]:
    """
    Return the names of the groups of a run, for the steps of ``orch/deploy.sls``; one empty name for no groups, and
    where something is wrong: the stage plan says what.

    env
        The name of the environment.
    groups
        Names of groups, or a number of hosts.

    CLI Example: not for the command line; ``orch/deploy.sls`` uses it.
    """
    if PROBLEM:
        return [""]
    progress.quiet()
    return hosts.steps(_master(), env, groups)


def _master() -> master.SaltMaster:
    return master.SaltMaster(__opts__)


def _no(comment: str) -> dict:
    return {"ok": False, "comment": comment}
