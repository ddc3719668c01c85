"""
The app servers of a host, and which release each of their processes has loaded.
"""

from __future__ import annotations

from typing import Any

try:
    import ckan_deploy

    ckan_deploy.fresh(__file__)
    from ckan_deploy.host import SaltHost, fit_arguments, salt_errors
    from ckan_deploy.releases.site import Site
    from ckan_deploy.serve import app_server
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
    Say which release is linked, and what runs: for each process of CKAN on this host the release that it has loaded.

    Returns ``{"current": id, "processes": [{"pid", "release", "memory_mb", "age_seconds"}]}``; the release is what the
    process itself was started with (uWSGI) or has loaded from (mod_wsgi), ``""`` where that cannot be seen. Memory is
    what the process alone takes (USS); what uWSGI's master takes is in it as a process of its own. Raises
    ``CommandExecutionError`` where the settings are not valid.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_web.status
    """
    with salt_errors():
        site = _site()
        return {"current": site.releases.current(), "processes": app_server.processes(site)}


if not PROBLEM:
    fit_arguments(globals())
