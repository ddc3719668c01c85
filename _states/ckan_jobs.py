"""
Services and cron jobs are what the settings say, and of the current release.
"""

from __future__ import annotations

from typing import Any

try:
    import ckan_deploy

    ckan_deploy.fresh(__file__)
    from ckan_deploy.errors import FormulaError
    from ckan_deploy.host import SaltHost
    from ckan_deploy.releases import lock
    from ckan_deploy.releases.site import Site
    from ckan_deploy.serve import services
except Exception as exc:  # half a sync, another Python
    PROBLEM = f"the formula's package cannot be imported ({type(exc).__name__}: {exc})"
else:
    PROBLEM = ""

# Seconds: a deploy of this host alone takes some.
LOCK_WAIT = 120


def __virtual__() -> bool | tuple[bool, str]:
    return (False, f"{PROBLEM}; type on the master: salt {__opts__['id']} saltutil.sync_all") if PROBLEM else True


def followed(name: str) -> dict[str, Any]:
    """
    Make sure that the services run and stay up, of the release that is current, and that cron has its jobs. What is so
    already is left alone. Nothing is done where no release is live.

    name
        Any name for the state.

    .. code-block:: yaml

        ckan-jobs:
          ckan_jobs.followed: []
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}}
    ret["comment"] = "services and cron are as they should be"
    try:
        # Taken here and not from arguments: the settings hold secrets, and states' arguments are logged.
        site = Site.of(SaltHost(__salt__, __opts__, __pillar__, __context__))
        if site.host.test:
            done, down = services.pending(site), []
        else:
            # While a deploy or a rollback is at work, its services are its business: its end is waited for.
            with lock.held(site, "services", wait=LOCK_WAIT, locked=False):
                done, down = services.follow(site), services.watch(site)
    except FormulaError as exc:
        ret.update(result=False, comment=str(exc))
        return ret
    ret["changes"] = _changes(done)
    if down:
        ret.update(result=False, comment="; ".join(down))
        return ret
    if ret["changes"] and site.host.test:
        ret.update(result=None, comment=f"would be brought to the release: {_names(done)}")
    elif ret["changes"]:
        ret["comment"] = "; ".join(done["warnings"]) or f"brought to the release: {_names(done)}"
    return ret


def _changes(done: dict[str, Any]) -> dict[str, str]:
    changes = {f"{kind} {name}": what for kind in ("worker", "service") for name, what in done[f"{kind}s"].items()}
    return {**changes, **({"cron": "written"} if done["cron"] else {})}


def _names(done: dict[str, Any]) -> str:
    return ", ".join(_changes(done))
