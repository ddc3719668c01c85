"""
The base virtualenv is there: the one that the official install made, or one made from a CKAN version.
"""

from __future__ import annotations

from typing import Any

try:
    import ckan_deploy

    ckan_deploy.fresh(__file__)
    from ckan_deploy.build import base
    from ckan_deploy.errors import FormulaError
    from ckan_deploy.host import SaltHost
    from ckan_deploy.releases.site import Site
    from ckan_deploy.system import files
except Exception as exc:  # half a sync, another Python
    PROBLEM = f"the formula's package cannot be imported ({type(exc).__name__}: {exc})"
else:
    PROBLEM = ""


def __virtual__() -> bool | tuple[bool, str]:
    return (False, f"{PROBLEM}; type on the master: salt {__opts__['id']} saltutil.sync_all") if PROBLEM else True


def present(name: str) -> dict[str, Any]:
    """
    Make sure that there is a virtualenv with CKAN. One that exists is adopted as it is, never changed; with
    ``ckan:base:version`` one is made under ``shared/bases``. A host that another one builds for needs none.

    name
        Any name for the state.

    .. code-block:: yaml

        ckan-base:
          ckan_base.present: []
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        # Taken here and not from arguments: an index may have a password, and states' arguments are logged.
        site = Site.of(SaltHost(__salt__, __opts__, __pillar__, __context__))
        if site.builder:
            ret["comment"] = f"releases come from {site.builder} (ckan:build:ship), so none is needed"
            return ret
        found = base.find(site)
        if found:
            ret["comment"] = f"{found.path} holds CKAN {found.ckan}"
            return ret
        version = site.settings.base.version
        if not site.host.test or not version:
            with files.usual_modes():
                found = base.ensure(site)
    except FormulaError as exc:
        ret.update(result=False, comment=str(exc))
        return ret
    ret["changes"] = {"base": {"old": None, "new": f"CKAN {version}"}}
    if found is None:
        ret.update(result=None, comment=f"a virtualenv with CKAN {version} would be made")
    else:
        ret["comment"] = f"made a virtualenv with CKAN {version} in {found.path}"
    return ret
