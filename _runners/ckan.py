"""
What the master can be asked about the hosts of an environment: where they stand, what a deploy would do, who holds
the lock. An answer with ``error`` is a complaint, and makes the exit code 1: ``salt-run`` takes it from ``retcode``.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

try:
    import ckan_deploy

    ckan_deploy.fresh(__file__)
    from ckan_deploy import errors
    from ckan_deploy.fleet import begin, master, progress, secrets
    from ckan_deploy.fleet import history as histories
    from ckan_deploy.fleet import index as indexes
    from ckan_deploy.fleet import lock as locks
    from ckan_deploy.fleet import maintenance as maintenances
    from ckan_deploy.fleet import status as statuses
    from ckan_deploy.system import arguments
except Exception as exc:  # half a sync, another Python
    PROBLEM = (
        f"the formula's package ckan_deploy cannot be imported ({type(exc).__name__}: {exc}); "
        "type: salt-run saltutil.sync_all"
    )
else:
    PROBLEM = ""


def _answers(function: Callable[..., Any], more: tuple[str, ...] = ()) -> Callable[..., Any]:
    """
    Make a complaint of what is raised, and of arguments that the function does not take: a runner that raises is shown
    with a traceback, and for such an argument with its manual and exit code 0. ``__virtual__`` could not say PROBLEM,
    since ``salt-run`` exits with 0 for a module that does not load.
    """

    @functools.wraps(function)
    def answer(*args: Any, **kwargs: Any) -> Any:
        if PROBLEM:
            return _complain(PROBLEM)
        progress.quiet()
        try:
            return function(*args, **arguments.fit(f"ckan.{function.__name__}", function, args, kwargs, more))
        except (errors.FormulaError, OSError) as exc:
            return _complain(str(exc))

    # Salt looks at this, so that any argument comes this far.
    del answer.__wrapped__
    known = inspect.signature(function).parameters.values()
    rest = inspect.Parameter("more", inspect.Parameter.VAR_KEYWORD)
    answer.__signature__ = inspect.Signature([*(one for one in known if one.kind is not one.VAR_KEYWORD), rest])
    return answer


@_answers
def status(env: str) -> dict:
    """
    Say where each host stands: the release linked, the ones that its processes have loaded, the one that answers
    visitors, its services, and how its last deploy went. And who keeps deploys out.

    env
        The name of the environment.

    Returns a table; with ``--out json`` ``{"env", "wanted", "lock", "hosts": {host: {"linked", "serving", "answers",
    "services", "workers", "last", "wrong": [sentences]}}}``. The exit code is 1, and ``error`` says why, when a host
    does not answer, serves another release than the one that is linked, or the hosts disagree.

    CLI Example:

    .. code-block:: bash

        salt-run ckan.status production
        salt-run ckan.status production --out json
    """
    found = statuses.look(_master(), env)
    trouble = _complain("; ".join(found.wrong)) if found.wrong else {}
    return {**(found.to_json() if __opts__.get("output") else {env: found.text()}), **trouble}


@_answers
def history(env: str, limit: int = 20) -> dict:
    """
    Say who deployed what and when, how long it took and how it went: from the logs of the hosts, newest first.

    env
        The name of the environment.
    limit
        How many deploys and rollbacks at most.

    Returns a table; with ``--out json`` ``{"env", "runs": [{"at", "kind", "release", "by", "hosts", "seconds",
    "result", "reason", "changed": {extension: ref and commit}}]}``. The exit code is 1 when a host does not answer.

    CLI Example:

    .. code-block:: bash

        salt-run ckan.history production limit=5
    """
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        return _complain(f"limit must be a number of runs, such as 20, not {limit!r}")
    runs, missing = histories.read(_master(), env, limit)
    shown = {"env": env, "runs": runs} if __opts__.get("output") else {env: histories.text(runs)}
    return {**shown, **(_complain(missing) if missing else {})}


@_answers
def report(env: str, limit: int = 200) -> dict:
    """
    Write a page of HTML with all runs of an environment: what, when, by whom, how it went, and a chart of how long each
    took. It links to the reports of the runs, which the master keeps beside it.

    env
        The name of the environment.
    limit
        How many deploys and rollbacks at most, newest first.

    Returns the path of the page. The exit code is 1 when a host does not answer; the page is written without it then.

    CLI Example:

    .. code-block:: bash

        salt-run ckan.report production
    """
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        return _complain(f"limit must be a number of runs, such as 200, not {limit!r}")
    path, missing = indexes.write(_master(), env, limit)
    return {env: path, **(_complain(missing) if missing else {})}


@_answers
def watch(env: str, timeout: int = 3600) -> dict:
    """
    Show a deploy or a rollback while it goes on, a line for each stage and host. Where none is under way the next one
    is waited for.

    env
        The name of the environment.
    timeout
        How long at most, in seconds.

    Returns how it ended. The exit code is 1 where it failed, or nothing was seen of an end in that time.

    CLI Example:

    .. code-block:: bash

        salt-run ckan.watch production
    """
    if not isinstance(timeout, (int, float)) or isinstance(timeout, bool) or timeout < 0:
        return _complain(f"timeout must be a number of seconds, such as 3600, not {timeout!r}")
    return {env: progress.watch(_master(), env, timeout)}


# A word of Python's own cannot be the name of a parameter.
@functools.partial(_answers, more=("from",))
def pending(
    env: str, extensions: dict | None = None, groups: Any = None, allow_down: list | None = None, release: str = "",
    fresh: bool = False, **more: Any,
) -> dict:  # fmt: skip
    """
    Say what a deploy would do now: the same plan that it would make. Nothing that is served is touched.

    env
        The name of the environment.
    extensions, groups, allow_down
        As for a deploy.
    from
        Another environment: what would change if its live release were built here.
    release
        With ``from``: an older release there.
    fresh
        Ask the package index, also where nothing has changed since that was done.

    Returns a table; with ``--out json`` ``{"release", "changes": [sentences], "extensions": {name: what}, "hosts":
    {host: {"current", "free_mb", "needed_mb", "prunes", "backends"}}, "groups", "down", "last": how long the last one
    took}``; with ``from`` also ``from`` and ``differs``, how that release goes with the pillar here.

    CLI Example:

    .. code-block:: bash

        salt-run ckan.pending production
        salt-run ckan.pending production --out json
        salt-run ckan.pending production from=staging
    """
    if not env:
        return _complain("no environment is named; type: salt-run ckan.pending ENV")
    given = [*more, *(["release"] if release else [])]
    planned = begin.plan(
        _master(), env, dry_run=True, extensions=extensions, groups=groups, allow_down=allow_down, given=given,
        source=more.get("from", ""), source_release=release, fresh=fresh,
    )  # fmt: skip
    if not planned["ok"]:
        # What is told of a run is in the syntax of a pillar.
        return _complain(re.sub(r" (from|allow_down): (?=[\w\[{])", r" \1=", planned["comment"]))
    if not __opts__.get("output"):
        return {env: planned["text"]}
    return {key: value for key, value in planned.items() if key not in ("ok", "comment", "text")}


@_answers
def encrypt(env: str, key: str, recipients: str = "") -> dict | str:
    """
    Encrypt a secret for the pillar. It is read from standard input, or asked for at the terminal.

    env
        The name of the environment.
    key
        The setting, such as ``database:password`` or ``extensions:ckanext-mycity:token``.
    recipients
        Keys to encrypt for, with commas between; by default all in the master's key ring that can be used.

    Returns the lines of YAML to paste.

    CLI Example:

    .. code-block:: bash

        salt-run ckan.encrypt production database:password
        openssl rand -hex 32 | salt-run ckan.encrypt production secrets:session
    """
    keys = arguments.text("recipients", recipients).split(",")
    return secrets.encrypt(_master(), env, key, [name for name in keys if name])


@_answers
def maintenance(env: str, state: str, reason: str = "", message: Any = "", until: str = "") -> dict:
    """
    Turn maintenance on or off on all hosts of an environment: visitors get a page and status 503.

    env
        The name of the environment.
    state
        ``on`` or ``off``.
    reason
        Why; for those who ask, not for visitors.
    message
        What visitors read: a line in the language of the portal, or ``{language: line}``.
    until
        When it is expected to end: date, time and zone, such as ``2026-11-29T18:30+01:00``.

    Returns ``{"hosts": {host: {"on": bool, ...}}}``, with ``error`` when a host did not do it.

    CLI Example:

    .. code-block:: bash

        salt-run ckan.maintenance production on reason='the database moves'
        salt-run ckan.maintenance production on message='New servers' until=2026-11-29T18:30+01:00
        salt-run ckan.maintenance production off
    """
    # YAML reads on and off, without quotes, as yes and no.
    wanted = "on" if state is True else "off" if state is False else state
    if wanted not in ("on", "off"):
        return _complain(f"{state!r} is neither on nor off")
    message = message if isinstance(message, dict) else arguments.line("message", message)
    if wanted == "off" and (message or until):
        return _complain("message and until are for visitors in maintenance mode; leave them out to turn it off")
    notice = {"message": message, "until": arguments.text("until", until)}
    told = maintenances.turn(_master(), env, wanted, arguments.line("reason", reason), notice)
    each = "; ".join(f"{host}: {cause}" for host, cause in sorted(told.failures.items()))
    return {"hosts": told.results, **(_complain(f"not all hosts are {wanted}: {each}") if each else {})}


@_answers
def lock(env: str, reason: str) -> dict | str:
    """
    Keep deploys and rollbacks of an environment out until ``ckan.unlock``: by orchestrations, and on each host.

    env
        The name of the environment.
    reason
        Why; shown to whoever is kept out.

    CLI Example:

    .. code-block:: bash

        salt-run ckan.lock production reason='election night'
    """
    return locks.take(_master(), env, arguments.line("reason", reason))


@_answers
def unlock(env: str, force: bool = False) -> dict | str:
    """
    Free the lock of an environment, whoever holds it. Where that is a run that died, its hosts are brought together
    first. The lock of a run that is still at work is kept: that run needs it for its revert.

    env
        The name of the environment.
    force
        Free it in any case, and touch no host.

    CLI Example:

    .. code-block:: bash

        salt-run ckan.unlock production
    """
    if not isinstance(force, bool):
        return _complain(f"force must be True or False, not {force!r}")
    return locks.free(_master(), env, force)


@_answers
def lock_status(env: str) -> dict | str:
    """
    Say who holds the lock of an environment, since when, why, and whether that run is still alive.

    env
        The name of the environment.

    CLI Example:

    .. code-block:: bash

        salt-run ckan.lock_status production
    """
    return locks.status(_master(), env)


def _master() -> master.SaltMaster:
    return master.SaltMaster(__opts__)


def _complain(sentence: str) -> dict:
    return {"error": sentence, "retcode": 1}
