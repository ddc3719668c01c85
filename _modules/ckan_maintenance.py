"""
Maintenance mode of one host: visitors get a page, until it is turned off.
"""

from __future__ import annotations

from typing import Any

try:
    import ckan_deploy

    ckan_deploy.fresh(__file__)
    from ckan_deploy.host import SaltHost, salt_errors
    from ckan_deploy.releases.site import Site
    from ckan_deploy.serve import maintenance
except Exception as exc:  # half a sync, another Python
    PROBLEM = f"the formula's package cannot be imported ({type(exc).__name__}: {exc})"
else:
    PROBLEM = ""


def __virtual__() -> bool | tuple[bool, str]:
    return (False, f"{PROBLEM}; type on the master: salt {__opts__['id']} saltutil.sync_all") if PROBLEM else True


def _site() -> Site:
    return Site.of(SaltHost(__salt__, __opts__, __pillar__, __context__))


def on(reason: str = "", by: str = "", stop_workers: bool = False) -> dict[str, Any]:
    """
    Answer visitors with 503, ``Retry-After`` and a page, and requests of the API with JSON.

    reason, by
        Why, and who asked; for ``status``, not for visitors.
    stop_workers
        Background workers and cron jobs stop as well, each when its job is done. ``off`` starts them.

    Returns ``{"on": True, "changed": bool, "since", "by", "reason"}``, and ``warnings`` of jobs that are not done.
    Raises ``CommandExecutionError`` when the page of ``web:maintenance_page`` is not there, or no server of the
    formula's looks for it.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_maintenance.on reason='the database moves'
    """
    with salt_errors():
        return maintenance.on(_site(), reason, by, stop_workers)


def off(by: str = "") -> dict[str, Any]:
    """
    Let visitors in again, and start the workers that were stopped for it.

    by
        Who asked.

    Returns ``{"on": False, "changed": bool}``, and ``warnings`` where a worker does not start. Raises
    ``CommandExecutionError`` where the settings are not valid.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_maintenance.off
    """
    with salt_errors():
        return maintenance.off(_site(), by)


def status() -> dict[str, Any]:
    """
    Say whether this host is in maintenance.

    Returns ``{"on": False}``, or ``{"on": True, "since", "by", "reason"}``. Raises ``CommandExecutionError`` where the
    settings are not valid.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_maintenance.status
    """
    with salt_errors():
        return maintenance.status(_site())
