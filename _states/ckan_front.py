"""
The site's file of nginx or Apache is there, and the server has read it. See the execution module of the same name.
"""

from __future__ import annotations

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_front"


def __virtual__() -> str:
    return __virtualname__


def installed(name: str) -> dict:
    """
    Make sure that the site's file is what the settings say. A file that the server does not take is not left there: the
    one before is put back, the server goes on with it, and the state fails with the server's own words.

    name
        Any name for the state.

    .. code-block:: yaml

        ckan-front:
          ckan_front.installed: []
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "the site's file is as it should be"}
    try:
        # Taken there and not from arguments: the settings hold secrets, and states' arguments are logged.
        if __opts__["test"]:
            ret["changes"] = __salt__["ckan_front.changes"]()
            if ret["changes"]:
                ret.update(result=None, comment=f"{next(iter(ret['changes']))} would be written")
            return ret
        done = __salt__["ckan_front.install"]()
    except CommandExecutionError as exc:
        ret.update(result=False, comment=str(exc))
        return ret
    ret["changes"] = done["changes"]
    if done["changes"]:
        how = "the server was reloaded" if done["reloaded"] else "the server reads it when it starts"
        ret["comment"] = f"{done['path']} was written, and {how}"
    return ret
