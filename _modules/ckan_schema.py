"""
Whether a release can live with the database as it is now, and the ways out where it cannot.
"""

from __future__ import annotations

try:
    import ckan_deploy

    ckan_deploy.fresh(__file__)
    from ckan_deploy.database import changes, compatibility
    from ckan_deploy.host import SaltHost, fit_arguments, salt_errors
    from ckan_deploy.releases.site import Site
    from ckan_deploy.serve import maintenance
except Exception as exc:  # half a sync, another Python
    PROBLEM = f"the formula's package cannot be imported ({type(exc).__name__}: {exc})"
else:
    PROBLEM = ""


def __virtual__() -> bool | tuple[bool, str]:
    return (False, f"{PROBLEM}; type on the master: salt {__opts__['id']} saltutil.sync_all") if PROBLEM else True


def _site() -> Site:
    return Site.of(SaltHost(__salt__, __opts__, __pillar__, __context__))


def way_back(release: str, accept_schema: bool = False, downgrade: bool = False, restore: str = "") -> dict:
    """
    Compare the database with what a release knows of it. Changes nothing; a second without a boot of CKAN.

    release
        The release to go to.
    accept_schema, downgrade, restore
        What the operator allows: see ``ckan_release.rollback``.

    Returns ``{"different": {"core" or plugin: {"at": [revisions of the database], "knows": [heads of the release],
    "revisions": [what the release does not know, from old to new], "stuck": [those that cannot be undone], "lacks":
    [what the release has and the database has not]}}, "downgrade": {"core" or plugin: [heads]}, "restore": a dump or
    '', "maintenance": whether visitors get the maintenance page meanwhile, "comment"}``. Raises
    ``CommandExecutionError`` with what differs and what is possible, where no option covers it;
    ``SaltInvocationError`` for what is no release id or no name of a dump.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_schema.way_back 20261125021500Z
    """
    with salt_errors():
        return compatibility.way_back(_site(), release, accept_schema, downgrade, restore)


def downgrade(release: str, by: str = "", job: str = "", restore: str = "") -> dict:
    """
    Bring the database back to what a release knows: by the scripts of the current one, after a dump of it, unless
    ``backup:when`` is ``never``; or by a dump that is put in its place.

    release
        The release whose revisions it is brought back to.
    by, job
        Who asked, and the run of the master that this belongs to.
    restore
        The dump.

    Returns ``{"undone": {"core" or plugin: [revisions]}, "backup": {...}, "kept_as": database, "warnings": [...]}``.
    Raises ``CommandExecutionError`` that says what the database holds, ``SaltInvocationError`` for what is no release
    id or no name of a dump.

    CLI Example: not for the command line; use ``ckan_release.rollback`` with ``downgrade=True``.

    .. code-block:: bash

        salt web1 ckan_release.rollback downgrade=True
    """
    with salt_errors():
        return changes.downgrade(_site(), release, by, job, restore)


def upgrade(release: str, by: str = "", job: str = "", kept_as: str = "") -> dict:
    """
    Bring the database to the heads of a release that was live: after a downgrade or a restore whose rollback failed.

    release
        The release.
    by, job
        Who asked, and the run of the master that this belongs to.
    kept_as
        After a restore: the previous database, which takes its name again.

    Returns ``{"current": id}``. Raises ``CommandExecutionError`` that says what the database holds,
    ``SaltInvocationError`` for what is no release id or no database that a restore has kept.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_schema.upgrade 20261125021500Z
    """
    with salt_errors():
        return changes.upgrade(_site(), release, by, job, kept_as)


def mismatch(release: str) -> str:
    """
    Say in which way the database is another than a release knows; ``''`` where it is not, and for no release.

    release
        The release.

    Returns a sentence, also where the database does not answer. Raises ``CommandExecutionError`` where the settings are
    not in order, ``SaltInvocationError`` for what is no release id.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_schema.mismatch 20261125021500Z
    """
    with salt_errors():
        return compatibility.mismatch(_site(), release)


def give_back(release: str, by: str = "", job: str = "") -> dict:
    """
    Put the dump made before in the place of a database that a release has migrated, for a deploy that failed while the
    portal was closed on all hosts: nobody has written to it since. A database that the release before works with
    is left alone.

    release
        The release that migrated it; the dump has its name.
    by, job
        Who asked, and the run of the master that this belongs to.

    Returns ``{"kept_as": the name that the migrated database has now, "differs": [what did not come back]}``;
    ``kept_as`` is ``''`` where it was left alone. Raises ``CommandExecutionError`` with why it could not be given back,
    ``SaltInvocationError`` for what is no release id.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_schema.give_back 20261125021500Z
    """
    with salt_errors():
        site = _site()
        return changes.give_back(site, release, by, job, maintenance.status(site)["on"])


def accept(name: str, knows: str, at: str, by: str = "") -> list[dict]:
    """
    Declare that code which knows a plugin's migrations up to certain heads works with a database that is at
    others. Remembered on this host for that pair.

    name
        ``core`` or a plugin.
    knows
        The heads that the code knows, with commas between; ``none`` for none.
    at
        The revisions of the database, with commas between; ``none`` for none.
    by
        Who says so.

    Returns all that was accepted on this host: ``[{"name", "knows", "at", "by", "since"}]``. Raises
    ``CommandExecutionError`` where it cannot be noted, ``SaltInvocationError`` for what is no plain name.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_schema.accept mycity r1 r3
    """
    with salt_errors():
        return compatibility.accept(_site(), name, knows, at, by)


if not PROBLEM:
    fit_arguments(globals())
