"""
The official CKAN package is kept, and then retired, on a host that the formula takes over. See the execution module.
"""

from __future__ import annotations

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
    return _state(name, "kept", "unkept", "keep")


def retired(name: str) -> dict:
    """
    Make sure that the package's app server, worker and nginx site are out of service, once a release serves.

    name
        Any name for the state.
    """
    return _state(name, "taken out of service", "replaced", "retire")


def _state(name: str, what: str, asked: str, done: str) -> dict:
    """Call a function of the execution module, or the one that says what it would do."""
    ret = {"name": name, "result": True, "changes": {}, "comment": "nothing of the official package is in the way"}
    test = __opts__["test"]
    try:
        settings = __salt__["ckan_settings.get"]()
        names = list(__salt__[f"ckan_package.{asked if test else done}"](settings))
    except CommandExecutionError as exc:
        return {**ret, "result": False, "comment": str(exc)}
    if not names:
        return ret
    comment = f"{'would be ' if test else ''}{what}: {', '.join(names)}"
    return {**ret, "result": None if test else True, "changes": {what: names}, "comment": comment}
