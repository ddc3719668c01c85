"""
The settings of this minion: what its pillar says under ``ckan``, with every default. They are described in
docs/pillar.md; the code is ``ckan_deploy.settings``.
"""

from __future__ import annotations

from typing import Any

from salt.exceptions import CommandExecutionError

try:
    import ckan_deploy

    ckan_deploy.fresh(__file__)
    from ckan_deploy.host import SaltHost, fit_arguments, salt_errors
    from ckan_deploy.releases.site import Site
    from ckan_deploy.settings import mask
    from ckan_deploy.system import facts
except Exception as exc:  # half a sync, another Python
    PROBLEM = f"the formula's package cannot be imported ({type(exc).__name__}: {exc})"
else:
    PROBLEM = ""


def __virtual__() -> bool | tuple[bool, str]:
    return (False, f"{PROBLEM}; type on the master: salt {__opts__['id']} saltutil.sync_all") if PROBLEM else True


def _site(overrides: dict[str, Any] | None) -> Site:
    return Site.of(SaltHost(__salt__, __opts__, __pillar__, __context__), overrides)


def show(overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """
    Return the settings of this minion with secrets masked.

    overrides
        What differs from the pillar for one deploy: ``{"extensions": {name: {"ref": ...}}}``.

    Returns the dictionary described in docs/pillar.md. Raises ``CommandExecutionError`` with every problem, a line
    each.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_settings.show
    """
    with salt_errors():
        return mask.shown(_site(overrides).settings)


def validate(overrides: dict[str, Any] | None = None, raises: bool = True) -> bool | list[str]:
    """
    Check the settings of this minion, and whether it has a system that the formula knows.

    overrides
        As for ``show``.
    raises
        False for SLS files: return the problems instead, so that each is said once, and without a frame of Jinja's.

    Returns True, or, with ``raises=False``, the problems. Raises ``CommandExecutionError`` with every problem, a line
    each.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_settings.validate
    """
    try:
        with salt_errors():
            if problem := facts.unsupported():
                raise CommandExecutionError(f"{problem}.")
            found = bool(_site(overrides).settings)
    except CommandExecutionError as exc:
        if raises:
            raise
        return str(exc).splitlines()
    return found if raises else []


def secret_names() -> list[str]:
    """
    Return the names of the settings that are secrets; ``*`` stands for any name.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_settings.secret_names
    """
    with salt_errors():
        return mask.secret_names()


if not PROBLEM:
    fit_arguments(globals())
