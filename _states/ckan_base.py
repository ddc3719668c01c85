"""
The base virtualenv is there: the one that the official install made, or one made from a CKAN version.
"""

from __future__ import annotations

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_base"


def __virtual__() -> str:
    return __virtualname__


def present(name: str) -> dict:
    """
    Make sure that there is a virtualenv with CKAN. One that exists is adopted as it is, never changed; with
    ``ckan:base:version`` one is made under ``shared/bases``.

    name
        Any name for the state.

    .. code-block:: yaml

        ckan-base:
          ckan_base.present: []
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        # Taken here and not from arguments: an index may have a password, and states' arguments are logged.
        settings = __salt__["ckan_settings.get"]()
        found = __salt__["ckan_base.find"](settings)
        if found:
            ret["comment"] = f"{found['path']} holds CKAN {found['ckan']}"
            return ret
        version = settings["base"]["version"]
        if not __opts__["test"] or not version:
            found = __salt__["ckan_base.ensure"](settings)
    except CommandExecutionError as exc:
        ret.update(result=False, comment=str(exc))
        return ret
    ret["changes"] = {"base": {"old": None, "new": f"CKAN {version}"}}
    if __opts__["test"]:
        ret.update(result=None, comment=f"a virtualenv with CKAN {version} would be made")
    else:
        ret["comment"] = f"made a virtualenv with CKAN {version} in {found['path']}"
    return ret
