"""
The steps of a deploy or a rollback over a fleet, for orchestration files. Each wraps the function of the same name of
the runner ``ckan_fleet``, and makes its sentence the comment of the step.
"""

from __future__ import annotations

import logging
from typing import Any

import salt.loader

log = logging.getLogger(__name__)

__virtualname__ = "ckan_fleet"


def __virtual__() -> str:
    return __virtualname__


def planned(name: str, env: Any, kind: str = "deploy", **options: Any) -> dict:
    """
    Begin a run: see ``ckan_fleet.plan`` of the runners.

    name
        Any name for the step.
    env
        The name of the environment.
    kind
        ``deploy`` or ``rollback``.
    options
        ``extensions``, ``to``, ``reason``, ``force``, ``dry_run``, ``maintenance``, ``groups``, ``allow_down``,
        ``steal``, ``given``, ``accept_schema``, ``downgrade``, ``restore``, ``from_env``, ``from_release``,
        ``fresh``, ``message``, ``until``.
    """
    _known().clear()
    if not __opts__.get("test"):
        return _step(name, "ckan_fleet.plan", env=env, kind=kind, **options)
    done = _step(name, "ckan_fleet.plan", env=env, kind=kind, **{**options, "dry_run": True})
    return {**done, "result": done["result"] and None}


def staged(name: str, env: Any, stage: str = "", group: str = "", after: str = "") -> dict:
    """
    Run one stage on the hosts of the run under way: see ``ckan_fleet.stage`` of the runners.

    name
        Any name for the step.
    env
        The name of the environment.
    stage
        The stage; by default the name.
    group
        The group of hosts, where there are several.
    after
        The step that must have gone well. Where it has not, this one is left out: that is no failure of its own, as it
        were with ``require``, and the listing says once what failed.
    """
    if missing := _missing(after):
        return _left_out(name, missing)
    if __opts__.get("test"):
        return _would(name, f"{name} would run")
    return _step(name, "ckan_fleet.stage", env=env, arguments={"name": stage or name, "group": group})


def reverted(name: str, env: Any) -> dict:
    """
    Undo a run that failed: see ``ckan_fleet.revert`` of the runners. Always a failure, so that the exit code is 1.

    name
        Any name for the step.
    env
        The name of the environment.
    """
    if __opts__.get("test"):
        # `onfail` takes a step that would run for one that failed.
        return _would(name, "a failure would be reverted")
    return _step(name, "ckan_fleet.revert", env=env)


def closed(name: str, env: Any, after: str = "") -> dict:
    """
    End a run that went well: see ``ckan_fleet.close`` of the runners.

    name
        Any name for the step.
    env
        The name of the environment.
    after
        As for ``staged``.
    """
    if missing := _missing(after):
        return _left_out(name, missing)
    if __opts__.get("test"):
        return _would(name, "the run would be closed")
    return _step(name, "ckan_fleet.close", env=env)


def _known() -> dict[str, bool]:
    """The steps of this run that are over, and whether each went well."""
    return __context__.setdefault("ckan steps", {}).setdefault(_job(), {})


def _missing(after: str) -> str:
    """The step for want of which another one is left out, '' for none. What Salt itself has stopped is missing, too."""
    failed = [step for step, good in _known().items() if not good]
    return failed[0] if failed else "" if not after or after in _known() else after


def _left_out(name: str, missing: str) -> dict:
    return {"name": name, "result": True, "changes": {}, "comment": f"left out, since {missing} did not go well"}


def _job() -> str:
    # The id of the orchestration tells the steps of one run from those of another.
    return globals().get("__orchestration_jid__") or ""


def _would(name: str, comment: str) -> dict:
    _known()[name] = True
    return {"name": name, "result": None, "changes": {}, "comment": comment}


def _step(name: str, function: str, arguments: dict | None = None, **kwargs: Any) -> dict:
    options = {key: value for key, value in kwargs.items() if not key.startswith("__")}
    options.update(arguments or {})
    answer = _ask(function, {"job": _job(), **options})
    _known()[name] = answer["ok"]
    # Of the plan no changes: it touches nothing, and says in its comment what would be another one.
    comment = answer.get("text", answer["comment"])
    return {"name": name, "result": answer["ok"], "changes": answer.get("changed", {}), "comment": comment}


def _ask(function: str, options: dict) -> dict:
    """
    Call a runner in this process. ``saltutil.runner`` makes a client, and with it a minion of the master and all
    runners that there are, for each step: a fifth of a second each.
    """
    if "ckan runners" not in __context__:
        __context__["ckan runners"] = salt.loader.runner(__opts__, utils=salt.loader.utils(__opts__))
    runners = __context__["ckan runners"]
    if function not in runners:
        return {"ok": False, "comment": f"the runner {function} is not available; type: salt-run saltutil.sync_all"}
    try:
        return runners[function](**options)
    except Exception as exc:
        log.exception("%s failed", function)
        return {"ok": False, "comment": f"{type(exc).__name__}: {exc}; see the log of the master"}
