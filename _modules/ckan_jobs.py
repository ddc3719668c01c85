"""
What CKAN does on a host besides answering requests: services and cron jobs.
"""

from __future__ import annotations

from typing import Any

try:
    import ckan_deploy

    ckan_deploy.fresh(__file__)
    from ckan_deploy.host import SaltHost, fit_arguments, salt_errors
    from ckan_deploy.releases.site import Site
    from ckan_deploy.serve import services
except Exception as exc:  # half a sync, another Python
    PROBLEM = f"the formula's package cannot be imported ({type(exc).__name__}: {exc})"
else:
    PROBLEM = ""

# For people; --out json gives the data.
__outputter__ = {"status": "ckan"}


def __virtual__() -> bool | tuple[bool, str]:
    return (False, f"{PROBLEM}; type on the master: salt {__opts__['id']} saltutil.sync_all") if PROBLEM else True


def _site() -> Site:
    return Site.of(SaltHost(__salt__, __opts__, __pillar__, __context__), fresh=True)


def status() -> dict[str, Any]:
    """
    Say which services run, and the release that each has loaded, from the process itself.

    Returns ``{"current": id, "services": [{"service", "kind", "state", "pid", "release", "restarts", "memory_mb",
    "age_seconds"}], "workers": those with queues, "cron": [lines]}``; of one that does not run ``pid`` is 0. Raises
    ``CommandExecutionError`` where supervisor does not answer.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_jobs.status
    """
    with salt_errors():
        site = _site()
        return {"current": site.releases.current(), **services.status(site)}


if not PROBLEM:
    fit_arguments(globals())
