"""
A release is live on this host: the first deploy as a state. See the execution module of the same name.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re

import salt.payload
from salt.exceptions import CommandExecutionError, SaltDeserializationError

__virtualname__ = "ckan_release"


def __virtual__() -> str:
    return __virtualname__


def live(name: str) -> dict:
    """
    Make sure that the release of the environment is live: the one that ``orch.deploy`` has brought to all hosts. A host
    that missed it builds that very one. Where the master knows of none, the first release is made, and one that is live
    stays, whatever the pillar says since: a highstate never deploys behind the back of ``orch.deploy``. An app server
    that is down is started.

    name
        Any name for the state; the environment's is a good one.

    .. code-block:: yaml

        production:
          ckan_release.live: []
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        # First of all: it takes the pillar anew.
        current = __salt__["ckan_release.status"]()
        settings, fleet = __salt__["ckan_settings.get"](), __salt__["ckan_settings.fleet"]()
        missed = __salt__["ckan_plan.missed"](settings)
        serves = bool(current["current"]) and current["answers"] == current["current"]
        if missed and current["current"] and ("bad" in missed or (serves and fleet["lock"])):
            # Someone has left it here on purpose, or is about to change what the environment is on.
            why = f"is marked bad here ({missed['bad']})" if "bad" in missed else "is not taken up: deploys are locked"
            ret["warnings"] = [f"the environment is on {missed['release']}, which {why}"]
            missed = {}
        if serves and not missed:
            ret["comment"] = f"release {current['current']} is live"
            return ret
        ret["changes"], would, did = _what(current["current"], missed)
        if __opts__["test"]:
            return {**ret, "result": None, "comment": would}
        job = _job()
        if missed:
            __salt__["ckan_release.catch_up"](by="highstate", job=job)
        elif current["current"]:
            __salt__["ckan_release.start"](current["current"], by="highstate")
            __salt__["ckan_release.verify"](current["current"], by="highstate")
        else:
            done = __salt__["ckan_release.deploy"](release=_release_of(job), by="highstate", job=job, fresh=False)
            ret["changes"]["release"]["new"] = done["current"]
    except CommandExecutionError as exc:
        return {**ret, "result": False, "changes": {}, "comment": str(exc)}
    return {**ret, "comment": did.format(release=__salt__["ckan_release.status"]()["current"])}


def _what(current: str, missed: dict) -> tuple[dict, str, str]:
    """What is to be done, as changes, and in words before and after."""
    if missed:
        return (
            {"release": {"old": current or None, "new": missed["release"]}},
            f"the environment is on {missed['release']}, which would be made live here",
            "release {release}, which the environment is on, is live",
        )
    if current:
        return (
            {"app server": {"old": "down", "new": current}},
            f"release {current} does not answer and would be started",
            "the app server of release {release} was started",
        )
    return (
        {"release": {"old": None, "new": "the first release"}},
        "no release is live; the first one would be built, checked and made live",
        "release {release} is live",
    )


def _job() -> str:
    """
    The id of the Salt job that this process works for, '' when there is none.

    From the minion's own notes: ``saltutil.running`` leaves out the job that asks.
    """
    folder, mine = os.path.join(__opts__["cachedir"], "proc"), []
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        with contextlib.suppress(OSError, SaltDeserializationError):
            with open(os.path.join(folder, name), "rb") as handle:
                job = salt.payload.load(handle)
            if isinstance(job, dict) and job.get("pid") == os.getpid():
                mine.append(str(job["jid"]))
    # A minion that works in threads has several jobs in one process.
    return mine[0] if len(mine) == 1 else ""


def _release_of(job: str) -> str:
    """
    The id of a first release: the second at which the job was made, so that all hosts of one highstate get the same.

    A job id is the master's local time. Its distance from UTC is a whole number of quarter hours, and the job is only
    minutes old, so the distance can be told. '' (a stamp of now) where there is no job.
    """
    if not re.match(r"^[0-9]{20}$", job):
        return ""
    made = datetime.datetime.strptime(job[:14], "%Y%m%d%H%M%S")
    now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
    quarter = 15 * 60
    made -= datetime.timedelta(seconds=round((made - now).total_seconds() / quarter) * quarter)
    return made.strftime("%Y%m%d%H%M%SZ")
