"""
Maintenance mode of one host: visitors get a page, until it is turned off.
"""

from __future__ import annotations

from typing import Any

try:
    import ckan_deploy

    ckan_deploy.fresh(__file__)
    from ckan_deploy.host import SaltHost, fit_arguments, salt_errors
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


def on(
    reason: str = "", by: str = "", stop_workers: bool = False, message: Any = "", until: str = "", test: bool = False
) -> dict[str, Any]:  # fmt: skip
    """
    Answer visitors with 503, ``Retry-After`` and a page, and requests of the API with JSON.

    reason, by
        Why, and who asked; for ``status``, not for visitors.
    stop_workers
        Background workers and cron jobs stop as well, each when its job is done. ``off`` starts them.
    message
        What visitors read: a line in the language of the portal, or ``{language: line}``.
    until
        When it is expected to end: date, time and zone, such as ``2026-11-29T18:30+01:00``.
    test
        Only look whether that can be done.

    Where maintenance mode is on already, a message or an end changes the page, and nothing else.

    Returns ``{"on": True, "changed": bool, "since", "by", "reason"}``, with ``message`` and ``until`` where there are
    any, and ``warnings`` of jobs that are not done. Raises ``SaltInvocationError`` for an end in the past or a language
    that the page does not have, ``CommandExecutionError`` when the page cannot be made, or no server of the formula's
    looks for it.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_maintenance.on reason='the database moves'
        salt web1 ckan_maintenance.on message='{en: New servers, de: Neue Server}' until=2026-11-29T18:30+01:00
    """
    with salt_errors():
        return maintenance.on(_site(), reason, by, stop_workers, message, until, test)


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

    Returns ``{"on": False}``, or ``{"on": True, "since", "by", "reason"}``, with ``message`` and ``until`` where the
    page has them. Raises ``CommandExecutionError`` where the settings are not valid.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_maintenance.status
    """
    with salt_errors():
        return maintenance.status(_site())


if not PROBLEM:
    fit_arguments(globals())
