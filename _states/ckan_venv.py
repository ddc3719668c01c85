"""
The base virtualenv: the one that the official install made, or one made from a CKAN version.
"""

from __future__ import annotations

import os

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_venv"


def __virtual__() -> str:
    return __virtualname__


def base(name: str, version: str = "", python: str = "/usr/bin/python3", packages: list | None = None) -> dict:
    """
    Make sure that there is a virtualenv with CKAN. One that exists is adopted as it is, never changed.

    name
        Its directory.
    version
        The CKAN version to make it from when it is missing; '' means that it must be there.
    python
        The interpreter to make it with.
    packages
        Further requirements to install beside CKAN.

    .. code-block:: yaml

        /usr/lib/ckan/default:
          ckan_venv.base:
            - version: '2.12.0'
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    if os.path.exists(os.path.join(name, "bin", "python")):
        found = __salt__["ckan_venv.freeze"](name).get("ckan")
        if not found:
            ret["result"] = False
            ret["comment"] = f"{name} is a virtualenv without CKAN; install CKAN into it, or move it away"
        elif version and found != version:
            ret["comment"] = f"{name} holds CKAN {found} and is left as it is (ckan:base:version says {version})"
        else:
            ret["comment"] = f"{name} holds CKAN {found}"
        return ret
    if not version:
        ret.update(
            result=False,
            comment=f"there is no virtualenv in {name}; install CKAN there, or set ckan:base:version to have it made",
        )
        return ret
    ret["changes"] = {"base": {"old": None, "new": f"CKAN {version}"}}
    if __opts__["test"]:
        ret.update(result=None, comment=f"a virtualenv with CKAN {version} would be made in {name}")
        return ret
    # Taken here and not from arguments: an index may have a password, and states' arguments are logged.
    settings = __salt__["ckan_settings.get"]()
    installer, uv = settings["installer"], settings["installer"]["uv"]
    try:
        __salt__["ckan_venv.create"](name, python=python, uv=uv)
        __salt__["ckan_venv.install"](
            name,
            requirements=[f"ckan[requirements]=={version}", "uwsgi", *(packages or [])],
            cache_dir=os.path.join(settings["paths"]["shared"], "cache"),
            uv=uv,
            index_url=installer["index_url"],
            find_links=installer["find_links"],
            offline=installer["offline"],
        )
        __salt__["ckan_venv.compile"](name)
    except CommandExecutionError as exc:
        __salt__["file.remove"](name)  # half a base would be adopted by the next run
        ret.update(result=False, changes={}, comment=str(exc))
        return ret
    ret["comment"] = f"made a virtualenv with CKAN {version} in {name}"
    return ret
