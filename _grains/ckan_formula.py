"""
The version of the formula that a minion has.

A minion forks a process for each job, which has what the minion itself has loaded. Nothing of a minion's modules is
loaded before they are asked for, but grains are: so the package is, with the rules of the settings, and no job has to
load it, which takes a third of a second each.
"""

from __future__ import annotations

from typing import Any

try:
    import ckan_deploy

    ckan_deploy.fresh(__file__)
except Exception:  # another Python: the execution modules say what
    VERSION = ""
else:
    VERSION = ckan_deploy.VERSION


def versions() -> dict[str, Any]:
    """
    Return ``{"ckan_formula": {"version"}}``, and nothing where the package cannot be imported.

    CLI Example:

    .. code-block:: bash

        salt -G 'ckan_formula:version:1.0.0' test.ping
    """
    # A program that somebody types loads grains as well, and forks nothing.
    loaded = __opts__.get("__cli") != "salt-minion" or _loaded()
    return {"ckan_formula": {"version": VERSION}} if VERSION and loaded else {}


def _loaded() -> bool:
    """Load what jobs need; returns whether that could be done."""
    try:
        from ckan_deploy.deploy import deploy, plan, rollback, status  # noqa: F401
        from ckan_deploy.settings import rules
        from ckan_deploy.settings.model import Settings

        # Each is worked out once a process.
        list(rules.table(Settings))
    except Exception:  # half a sync: the execution modules say what
        return False
    return True
