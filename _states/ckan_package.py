"""
What serves a host that the formula takes over is kept; the official CKAN package is then retired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

try:
    import ckan_deploy

    ckan_deploy.fresh(__file__)
    from ckan_deploy.errors import FormulaError
    from ckan_deploy.host import SaltHost
    from ckan_deploy.releases.site import Site
    from ckan_deploy.serve import official_files, official_package
except Exception as exc:  # half a sync, another Python
    PROBLEM = f"the formula's package cannot be imported ({type(exc).__name__}: {exc})"
else:
    PROBLEM = ""


def __virtual__() -> bool | tuple[bool, str]:
    return (False, f"{PROBLEM}; type on the master: salt {__opts__['id']} saltutil.sync_all") if PROBLEM else True


def kept(name: str) -> dict[str, Any]:
    """
    Make sure that there is a copy of the files that serve the host before the formula writes over any: pointers,
    virtual host, cron's file, those of the official package; and a note of what ``current`` names. The comment says
    where.

    name
        Any name for the state.

    .. code-block:: yaml

        ckan-package-kept:
          ckan_package.kept: []
    """
    return _state(name, "kept", official_files.unkept, official_files.keep)


def retired(name: str) -> dict[str, Any]:
    """
    Make sure that the package's app server, worker and nginx site are out of service, once a release serves.

    name
        Any name for the state.

    .. code-block:: yaml

        ckan-package-retired:
          ckan_package.retired: []
    """
    return _state(name, "taken out of service", official_files.replaced, official_package.retire)


def _state(
    name: str, what: str, foreseen: Callable[[Site], Iterable[str]], done: Callable[[Site], Iterable[object]]
) -> dict[str, Any]:
    """Do something, or with ``test=True`` ask only what it would be done with."""
    comment = "nothing of another tool is in the way"
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": comment}
    try:
        site = Site.of(SaltHost(__salt__, __opts__, __pillar__, __context__))
        test = site.host.test
        names = list(map(str, foreseen(site) if test else done(site)))
    except FormulaError as exc:
        return {**ret, "result": False, "comment": str(exc)}
    if not names:
        return ret
    comment = f"{'would be ' if test else ''}{what}: {', '.join(names)}"
    return {**ret, "result": None if test else True, "changes": {what: names}, "comment": comment}
