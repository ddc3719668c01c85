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
    Make sure that a release is live. Where there is one already nothing is built, whatever the pillar says since:
    a highstate never deploys behind the back of ``orch.deploy``. An app server that is down is started.

    name
        Any name for the state; the environment's is a good one.

    .. code-block:: yaml

        production:
          ckan_release.live: []
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        current = __salt__["ckan_release.status"]()
        if current["current"] and current["answers"] == current["current"]:
            ret["comment"] = f"release {current['current']} is live"
            return ret
        if __opts__["test"]:
            ret["result"] = None
            if current["current"]:
                ret["comment"] = f"release {current['current']} does not answer and would be started"
                ret["changes"] = {"app server": {"old": "down", "new": current["current"]}}
            else:
                ret["comment"] = "no release is live; the first one would be built, checked and made live"
                ret["changes"] = {"release": {"old": None, "new": "the first release"}}
            return ret
        if current["current"]:
            __salt__["ckan_release.start"](current["current"], by="highstate")
            __salt__["ckan_release.verify"](current["current"], by="highstate")
            ret["changes"] = {"app server": {"old": "down", "new": current["current"]}}
            ret["comment"] = f"the app server of release {current['current']} was started"
            return ret
        job = _job()
        done = __salt__["ckan_release.deploy"](release=_release_of(job), by="highstate", job=job, fresh=False)
    except CommandExecutionError as exc:
        ret.update(result=False, comment=str(exc))
        return ret
    ret["changes"] = {"release": {"old": None, "new": done["current"]}}
    ret["comment"] = f"release {done['current']} is live"
    return ret


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
