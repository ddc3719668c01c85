"""
The search index of a portal: rebuilt where a release indexes datasets in another way.
"""

from __future__ import annotations

try:
    import ckan_deploy

    ckan_deploy.fresh(__file__)
    from ckan_deploy.database import search_index
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


def rebuild(release: str, force: bool = False, by: str = "", job: str = "") -> dict:
    """
    Rebuild the search index where the current release indexes datasets in another way than the one that filled it.
    The portal stays as it is meanwhile: nothing is emptied.

    release
        The id of the live release.
    force
        Rebuild it all the same.
    by, job
        Who asked, and the run of the master that this belongs to.

    Returns ``{"rebuilt": bool, "index": what the index is made of, "why", "datasets", "indexed", "seconds",
    "warnings": [sentences]}``. Raises ``CommandExecutionError`` with what CKAN says, ``SaltInvocationError`` for what
    is no release id.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_index.rebuild 20261125021500Z force=True
    """
    with salt_errors():
        return search_index.rebuild(_site(), release, force, by, job)


if not PROBLEM:
    fit_arguments(globals())
