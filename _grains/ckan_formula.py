"""
The version of the formula that a minion has.

A minion forks a process for each job, which has what the minion itself has loaded. Nothing of a minion's modules is
loaded before they are asked for, but grains are: so the package is, and no job has to load it, which takes a third of a
second each.
"""

from __future__ import annotations

from typing import Any

try:
    import ckan_deploy

    ckan_deploy.fresh(__file__)
    from ckan_deploy.deploy import deploy, plan, rollback, status
except Exception:  # half a sync, another Python: the execution modules say what
    VERSION = ""
else:
    VERSION = ckan_deploy.VERSION
    LOADED = (deploy, plan, rollback, status)


def versions() -> dict[str, Any]:
    """
    Return ``{"ckan_formula": {"version"}}``, and nothing where the package cannot be imported.

    CLI Example:

    .. code-block:: bash

        salt -G 'ckan_formula:version:1.0.0' test.ping
    """
    return {"ckan_formula": {"version": VERSION}} if VERSION else {}
