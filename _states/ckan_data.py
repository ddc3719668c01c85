"""
The directories of what outlives a release are there: ``paths:data`` is root's, what is below belongs to CKAN's user.
"""

from __future__ import annotations

from typing import Any

try:
    import ckan_deploy

    ckan_deploy.fresh(__file__)
    from ckan_deploy.errors import FormulaError
    from ckan_deploy.host import SaltHost
    from ckan_deploy.releases.site import Site
    from ckan_deploy.serve import shared_files
except Exception as exc:  # half a sync, another Python
    PROBLEM = f"the formula's package cannot be imported ({type(exc).__name__}: {exc})"
else:
    PROBLEM = ""


def __virtual__() -> bool | tuple[bool, str]:
    return (False, f"{PROBLEM}; type on the master: salt {__opts__['id']} saltutil.sync_all") if PROBLEM else True


def present(name: str) -> dict[str, Any]:
    """
    Make sure that the directories are there. A link that CKAN's user may have put in place of one is not followed: the
    state fails, names it, and says what to type. Salt's ``file.directory`` would follow it.

    name
        Any name for the state.

    .. code-block:: yaml

        ckan-data:
          ckan_data.present: []
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": "the directories are there"}
    try:
        site = Site.of(SaltHost(__salt__, __opts__, __pillar__, __context__))
        done = shared_files.pending(site) if site.host.test else shared_files.prepare(site)
    except FormulaError as exc:
        ret.update(result=False, comment=str(exc))
        return ret
    if done:
        ret["changes"] = done
        ret["comment"] = f"{', '.join(done)}: made, or made root's"
        if site.host.test:
            ret.update(result=None, comment=f"{', '.join(done)} would be made, or made root's")
    return ret
