"""
The secrets that nobody needs to know, made once per environment and kept on the master.

CKAN signs sessions and API tokens with them. All hosts of an environment must have the same ones, and a deploy must not
change them. Where the pillar gives them, nothing is made. In the configuration of the master:

.. code-block:: yaml

    ext_pillar:
      - ckan_secrets: /etc/salt/ckan-secrets

The directory holds one file for each environment (0600): back it up, it takes the place of lines in the pillar.
"""

from __future__ import annotations

import logging

try:
    import ckan_deploy

    ckan_deploy.fresh(__file__)
    from ckan_deploy.fleet import made_secrets
except Exception as exc:  # half a sync, another Python
    PROBLEM = (
        f"the formula's package ckan_deploy cannot be imported ({type(exc).__name__}: {exc}); "
        "type: salt-run saltutil.sync_all"
    )
else:
    PROBLEM = ""

__virtualname__ = "ckan_secrets"

log = logging.getLogger(__name__)


def __virtual__() -> str:
    # Also where PROBLEM says why not: Salt would log only that this is unavailable.
    return __virtualname__


def ext_pillar(minion_id: str, pillar: dict, directory: str) -> dict:
    """
    Return what the pillar of a host of a CKAN environment lacks of ``ckan:secrets``; Salt calls this.

    minion_id
        The host.
    pillar
        What the other sources of the pillar say.
    directory
        Where the secrets are kept, an absolute path.

    Returns ``{"ckan": {"secrets": {...}}}``, or an empty dictionary. Nothing is returned, and the log says why, when
    the directory cannot be used: the settings then name what is missing.
    """
    if PROBLEM:
        log.error("the secrets of CKAN for %s cannot be had: %s", minion_id, PROBLEM)
        return {}
    try:
        lacking = made_secrets.lacking(pillar, directory)
    except (OSError, ValueError) as exc:
        log.error("the secrets of %s for %s cannot be had: %s", pillar["ckan"]["env"], minion_id, exc)
        return {}
    return {"ckan": {"secrets": lacking}} if lacking else {}
