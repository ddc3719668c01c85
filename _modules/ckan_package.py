"""
What served a host before the formula took it over, the official CKAN package or another tool: the way back to it.
"""

from __future__ import annotations

try:
    import ckan_deploy

    ckan_deploy.fresh(__file__)
    from ckan_deploy.host import SaltHost, fit_arguments, salt_errors
    from ckan_deploy.releases.site import Site
    from ckan_deploy.serve import official_package
except Exception as exc:  # half a sync, another Python
    PROBLEM = f"the formula's package cannot be imported ({type(exc).__name__}: {exc})"
else:
    PROBLEM = ""


def __virtual__() -> bool | tuple[bool, str]:
    return (False, f"{PROBLEM}; type on the master: salt {__opts__['id']} saltutil.sync_all") if PROBLEM else True


def _site() -> Site:
    return Site.of(SaltHost(__salt__, __opts__, __pillar__, __context__))


def restore() -> list[str]:
    """
    Put back what served before the formula: the package's files, or those of another tool and what ``current`` named
    then. The app servers, workers and cron jobs of the formula stop. Releases stay where they are, and so do the
    copies. Take the formula out of the host's highstate first, else that takes the host over again.

    Returns the paths that were put back. Raises ``CommandExecutionError`` when nothing was kept, what ``current`` named
    is gone, the web server does not take the old file, or somebody else is at work.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_package.restore
    """
    with salt_errors():
        return official_package.restore(_site())


if not PROBLEM:
    fit_arguments(globals())
