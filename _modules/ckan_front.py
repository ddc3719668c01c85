"""
The site's virtual host: its file for nginx or Apache, as it is to be, as it is written, and the reload of that server.
"""

from __future__ import annotations

from typing import Any

try:
    import ckan_deploy

    ckan_deploy.fresh(__file__)
    from ckan_deploy.host import SaltHost, fit_arguments, salt_errors
    from ckan_deploy.releases.site import Site
    from ckan_deploy.serve import virtual_host
except Exception as exc:  # half a sync, another Python
    PROBLEM = f"the formula's package cannot be imported ({type(exc).__name__}: {exc})"
else:
    PROBLEM = ""


def __virtual__() -> bool | tuple[bool, str]:
    return (False, f"{PROBLEM}; type on the master: salt {__opts__['id']} saltutil.sync_all") if PROBLEM else True


def _site() -> Site:
    return Site.of(SaltHost(__salt__, __opts__, __pillar__, __context__))


def render() -> str:
    """
    Return the text of the site's virtual host, for the server of ``web:server``. There is no secret in it.

    Raises ``CommandExecutionError`` where the server is ``none``, or the formula's file server lacks the template.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_front.render
    """
    with salt_errors():
        return virtual_host.render(_site())


def changes() -> dict[str, str]:
    """
    Say what ``install`` would change.

    Returns ``{path: what differs}``, empty when the file is as it should be. Raises ``CommandExecutionError`` as
    ``render``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_front.changes
    """
    with salt_errors():
        return virtual_host.changes(_site())


def install() -> dict[str, Any]:
    """
    Write the virtual host, let the server test its configuration, and reload the server. Nothing is done when the file
    is as it should be.

    Returns ``{"path", "changes": {path: what differs}, "reloaded": bool}``; a server that does not run is not reloaded.
    Raises ``CommandExecutionError`` with the server's own words when it does not take the new file: the old one is
    back then, and the server goes on as before.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_front.install
    """
    with salt_errors():
        return virtual_host.install(_site())


def reload() -> bool:
    """
    Let the server test its configuration and then read it anew, for example after a certificate was renewed.

    Returns True, or False where the server does not run: it reads the configuration when it starts. Raises
    ``CommandExecutionError`` with the server's own words when the configuration is not valid; the one that runs stays.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_front.reload
    """
    with salt_errors():
        return virtual_host.reload(_site())


if not PROBLEM:
    fit_arguments(globals())
