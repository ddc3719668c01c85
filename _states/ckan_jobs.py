"""
Workers and cron are what the settings say, and of the current release. See the execution module of the same name.
"""

from __future__ import annotations

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_jobs"


def __virtual__() -> str:
    return __virtualname__


def followed(name: str) -> dict:
    """
    Make sure that the workers run, of the release that is current, and that cron has its lines. What is so already is
    left alone. Nothing is done where no release is live.

    name
        Any name for the state.

    .. code-block:: yaml

        ckan-jobs:
          ckan_jobs.followed: []
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "workers and cron are as they should be"}
    try:
        # Taken there and not from arguments: the settings hold secrets, and states' arguments are logged.
        settings = __salt__["ckan_settings.get"]()
        done = __salt__[f"ckan_jobs.{'pending' if __opts__['test'] else 'follow'}"](settings)
    except CommandExecutionError as exc:
        ret.update(result=False, comment=str(exc))
        return ret
    ret["changes"] = _changes(done)
    if ret["changes"] and __opts__["test"]:
        ret.update(result=None, comment=f"would be brought to the release: {_names(done)}")
    elif ret["changes"]:
        ret["comment"] = "; ".join(done["warnings"]) or f"brought to the release: {_names(done)}"
    return ret


def _changes(done: dict) -> dict:
    changes = {f"worker {name}": what for name, what in done["workers"].items()}
    return {**changes, **({"cron": "written"} if done["cron"] else {})}


def _names(done: dict) -> str:
    return ", ".join([*(f"worker {name}" for name in done["workers"]), *(["cron"] if done["cron"] else [])])
