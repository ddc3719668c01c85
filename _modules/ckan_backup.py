"""
Dumps of CKAN's database on the host that migrates it: made, listed, read back, restored.
"""

from __future__ import annotations

try:
    import ckan_deploy

    ckan_deploy.fresh(__file__)
    from ckan_deploy.database import backup
    from ckan_deploy.database import restore as restoring
    from ckan_deploy.host import SaltHost, fit_arguments, salt_errors
    from ckan_deploy.releases.site import Site
except Exception as exc:  # half a sync, another Python
    PROBLEM = f"the formula's package cannot be imported ({type(exc).__name__}: {exc})"
else:
    PROBLEM = ""

__func_alias__ = {"list_": "list"}
# For people; --out json gives the data.
__outputter__ = {"list_": "ckan"}


def __virtual__() -> bool | tuple[bool, str]:
    return (False, f"{PROBLEM}; type on the master: salt {__opts__['id']} saltutil.sync_all") if PROBLEM else True


def _site(fresh: bool = False) -> Site:
    return Site.of(SaltHost(__salt__, __opts__, __pillar__, __context__), fresh=fresh)


def dump(name: str = "") -> dict:
    """
    Dump the database now.

    name
        What to call it, letters, digits, '.', '_' and '-', 100 at most; by default a stamp of now.

    Returns ``{"file", "size_mb", "seconds"}``. Raises ``CommandExecutionError`` where there can be no dump, or where
    there is one of that name already, ``SaltInvocationError`` for another name.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_backup.dump
    """
    with salt_errors():
        return backup.dump(_site(fresh=True), name)


def list_() -> list[dict]:
    """
    Return the dumps on this host, newest first: ``[{"name", "file", "size_mb"}]``. Raises ``CommandExecutionError``
    where the settings are not in order.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_backup.list
    """
    with salt_errors():
        return backup.list_dumps(_site())


def heads(name: str) -> dict:
    """
    Return the revisions that the database of a dump is at.

    name
        The dump, as ``list`` names it.

    Returns ``{"core" or plugin: [revisions]}``. Raises ``CommandExecutionError`` where there is no such dump here,
    ``SaltInvocationError`` for what is no name of a dump.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_backup.heads 20261125021500Z
    """
    with salt_errors():
        return backup.heads(_site(), name)


def restore(name: str, confirm: str = "") -> dict:
    """
    Put a dump in the place of the database: into a new database first, then the two change names. The previous one is
    kept under another name, so nothing is lost, also where this is interrupted.

    What came into the portal after the dump is missing then. Visitors are cut off for the moment of the change.

    name
        The dump, as ``list`` names it.
    confirm
        The same name again.

    Returns ``{"database", "kept_as": name of the previous database, '' where there was none, "seconds"}``, with
    ``differs``, sentences, where not all came back, and ``warnings`` where there are any. Raises
    ``CommandExecutionError`` with one sentence, the database is as it was then; ``SaltInvocationError`` for what is no
    name of a dump.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_backup.restore 20261125021500Z confirm=20261125021500Z
    """
    with salt_errors():
        return restoring.restore(_site(fresh=True), name, confirm)


if not PROBLEM:
    fit_arguments(globals())
