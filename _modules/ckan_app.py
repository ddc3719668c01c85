"""
The database and the search index of a portal, as a release sees them. Changes nothing, and boots no CKAN.
"""

from __future__ import annotations

try:
    import ckan_deploy

    ckan_deploy.fresh(__file__)
    from ckan_deploy.database import probe
    from ckan_deploy.host import SaltHost, fit_arguments, salt_errors
    from ckan_deploy.releases.site import Site
except Exception as exc:  # half a sync, another Python
    PROBLEM = f"the formula's package cannot be imported ({type(exc).__name__}: {exc})"
else:
    PROBLEM = ""


def __virtual__() -> bool | tuple[bool, str]:
    return (False, f"{PROBLEM}; type on the master: salt {__opts__['id']} saltutil.sync_all") if PROBLEM else True


def _site() -> Site:
    return Site.of(SaltHost(__salt__, __opts__, __pillar__, __context__))


def _path(site: Site, release: str) -> str:
    return site.paths.current if release == "" else site.releases.directory(release)


def heads(release: str = "") -> dict:
    """
    Return the revisions that the database is at, of CKAN itself and of each plugin of a release. Boots no CKAN.

    release
        The id of a release on this host; by default the current one.

    Returns ``{"core" or plugin: [revisions]}``. Raises ``CommandExecutionError`` with what is wrong with the database,
    ``SaltInvocationError`` for what is no release id.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_app.heads
        salt web1 ckan_app.heads 20261125021500Z
    """
    with salt_errors():
        site = _site()
        return probe.heads(site, _path(site, release))


def pending_migrations(release: str = "") -> dict:
    """
    Return the revisions that a release has and the database has not, from old to new. Boots no CKAN.

    release
        The id of a release on this host; by default the current one.

    Returns ``{"core" or plugin: [revisions]}``, only those with any. Raises ``CommandExecutionError`` with what is
    wrong with the database, ``SaltInvocationError`` for what is no release id.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_app.pending_migrations
    """
    with salt_errors():
        site = _site()
        return probe.pending_migrations(site, _path(site, release))


def index_status(release: str = "") -> dict:
    """
    Say what the search index holds. Boots no CKAN.

    release
        The id of a release on this host; by default the current one.

    Returns ``{"datasets": in the database, "indexed": in Solr, "rebuild": how far the last rebuild is or ''}``, and
    ``problem`` where Solr does not say. Raises ``CommandExecutionError`` with what is wrong with the database,
    ``SaltInvocationError`` for what is no release id.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_app.index_status
    """
    with salt_errors():
        site = _site()
        return probe.index_status(site, _path(site, release))


if not PROBLEM:
    fit_arguments(globals())
