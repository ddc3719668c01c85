"""
The official CKAN package is kept, and then retired, on a host that the formula takes over. See the execution module.
"""

from __future__ import annotations

from collections.abc import Callable

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_package"


def __virtual__() -> str:
    return __virtualname__


def kept(name: str) -> dict:
    """
    Make sure that there is a copy of the package's files before the formula writes over any.

    name
        Any name for the state.
    """
    settings = __salt__["ckan_settings.get"]()
    todo = sorted(__salt__["ckan_package.unkept"](settings))
    return _state(name, todo, "kept", lambda: __salt__["ckan_package.keep"](settings))


def retired(name: str) -> dict:
    """
    Make sure that the package's app server, worker and nginx site are out of service, once a release serves.

    name
        Any name for the state.
    """
    settings = __salt__["ckan_settings.get"]()
    todo = sorted(__salt__["ckan_package.replaced"](settings))
    return _state(name, todo, "taken out of service", lambda: __salt__["ckan_package.retire"](settings))


def _state(name: str, todo: list[str], what: str, run: Callable[[], list[str]]) -> dict:
    ret = {"name": name, "result": True, "changes": {}, "comment": "nothing of the official package is in the way"}
    if not todo:
        return ret
    if __opts__["test"]:
        return {**ret, "result": None, "changes": {what: todo}, "comment": f"would be {what}: {', '.join(todo)}"}
    try:
        done = run()
    except CommandExecutionError as exc:
        return {**ret, "result": False, "comment": str(exc)}
    return {**ret, "changes": {what: done} if done else {}, "comment": f"{what}: {', '.join(done) or 'nothing'}"}
