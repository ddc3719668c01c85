"""
A release is live on this host: the first deploy as a state. See the execution module of the same name.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
from typing import Any

import salt.payload
from salt.exceptions import SaltDeserializationError

try:
    import ckan_deploy

    ckan_deploy.fresh(__file__)
    from ckan_deploy.deploy import deploy, plan, stages, status
    from ckan_deploy.errors import FormulaError, sentence
    from ckan_deploy.host import SaltHost
    from ckan_deploy.releases.site import Site
except Exception as exc:  # half a sync, another Python
    PROBLEM = f"the formula's package cannot be imported ({type(exc).__name__}: {exc})"
else:
    PROBLEM = ""


def __virtual__() -> bool | tuple[bool, str]:
    return (False, f"{PROBLEM}; type on the master: salt {__opts__['id']} saltutil.sync_all") if PROBLEM else True


def live(name: str) -> dict[str, Any]:
    """
    Make sure that the release of the environment is live: the one that ``orch.deploy`` has brought to all hosts. A host
    that missed it builds that very one. Where the master knows of none, the first release is made, and one that is live
    stays, whatever the pillar says since: a highstate never deploys behind the back of ``orch.deploy``. A host that
    another one builds for waits for the first release. An app server that is down is started. What a deploy left undone
    that died before its end is done.

    name
        Any name for the state; the environment's is a good one.

    .. code-block:: yaml

        production:
          ckan_release.live: []
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        site = Site.of(_host(), fresh=True)
        current = status.status(site)
        missed, bad = plan.missed(site)
        serves = bool(current["current"]) and current["answers"] == current["current"]
        if missed and current["current"] and (bad is not None or (serves and site.environment.lock)):
            # Someone has left it here on purpose, or is about to change what the environment is on.
            why = f"is marked bad here ({bad})" if bad is not None else "waits: deploys are locked"
            ret["warnings"] = [f"the environment is on {missed}, which {why}"]
            missed = ""
        undone = current.get("unfinished", "") if serves and not missed and not site.environment.lock else ""
        if serves and not missed and not undone:
            ret["comment"] = f"release {current['current']} is live"
            return ret
        if site.builder and not current["current"] and not missed:
            ret["comment"] = f"the first release comes from {site.builder}, by orch.deploy (ckan:build:ship)"
            return ret
        ret["changes"], would, did = _what(current["current"], missed, undone)
        before = {manifest.id for manifest in site.releases.manifests()}
        if site.host.test:
            return {**ret, "result": None, "comment": would}
        job = _job()
        if missed:
            deploy.catch_up(lambda overrides: Site.of(_host(), overrides, fresh=not overrides), "highstate", job)
        elif undone:
            ret["warnings"] = stages.finish(site, current["current"], by="highstate", job=job)["warnings"]
        elif current["current"]:
            stages.start(site, current["current"], by="highstate")
            stages.verify(site, current["current"], by="highstate")
        else:
            done = deploy.deploy(lambda: site, _release_of(job), "highstate", job)
            ret["changes"]["release"]["new"] = done["current"]
    except (FormulaError, OSError) as exc:
        return {**ret, "result": False, "changes": {}, "comment": sentence(exc)}
    release = site.releases.current()
    if site.settings.build.ship and release not in before:
        did += "; it was built here, since archives are handed over by orch.deploy alone (ckan:build:ship)"
    return {
        **{name: value for name, value in ret.items() if value or name != "warnings"},
        "comment": did.format(release=release),
    }


def _host() -> SaltHost:
    return SaltHost(__salt__, __opts__, __pillar__, __context__)


def _what(current: str, missed: str, undone: str) -> tuple[dict[str, Any], str, str]:
    """What is to be done, as changes, and in words before and after."""
    if undone:
        return (
            {"finish": {"old": "missing", "new": current}},
            f"{undone}; that would be done",
            "the finish of release {release} was missing, and is done",
        )
    if missed:
        return (
            {"release": {"old": current or None, "new": missed}},
            f"the environment is on {missed}, which would be made live here",
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
