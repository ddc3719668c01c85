"""What a run of the master asks of a host before anything else."""

from __future__ import annotations

import time
from typing import Any

try:
    import ckan_deploy

    ckan_deploy.fresh(__file__)
    from ckan_deploy.host import fit_arguments
    from ckan_deploy.system import version
except Exception as exc:  # half a sync, another Python
    PROBLEM = f"the formula's package cannot be imported ({type(exc).__name__}: {exc})"
else:
    PROBLEM = ""


def __virtual__() -> bool | tuple[bool, str]:
    return (False, f"{PROBLEM}; type on the master: salt {__opts__['id']} saltutil.sync_all") if PROBLEM else True


def ready() -> dict[str, Any]:
    """
    Take the pillar anew for the jobs to come, and say which modules and what time this host has: a run begins with it.

    Returns ``{"modules": hash, "time": seconds since 1970}``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_plan.ready
    """
    # True also when the pillar does not render: the settings look at the outcome.
    __salt__["saltutil.refresh_pillar"](wait=True)
    return {
        "modules": version.of_minion(__file__),
        "time": time.time(),
    }


if not PROBLEM:
    fit_arguments(globals())
