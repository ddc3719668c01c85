"""
Which state of the formula this minion has: told by the contents of its files, so that nobody has to count versions.
"""

from __future__ import annotations

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


def modules() -> str:
    """
    Return a hash of the formula's execution modules and of its package as they are on this minion.

    The master makes the same of those in its file server: where the two differ, the modules were not synced since the
    formula was changed.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_version.modules
    """
    return version.of_minion(__file__)


if not PROBLEM:
    fit_arguments(globals())
