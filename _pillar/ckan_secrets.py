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

import json
import logging
import os
import re
import secrets
import tempfile

__virtualname__ = "ckan_secrets"

NAMES = ("session", "api_token")
log = logging.getLogger(__name__)


def __virtual__() -> str:
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
    ckan = pillar.get("ckan")
    if not isinstance(ckan, dict) or not re.fullmatch(r"[a-z][a-z0-9_-]*", str(ckan.get("env"))):
        return {}
    given = ckan.get("secrets") or {}
    if not isinstance(given, dict) or all(given.get(name) for name in NAMES):
        return {}
    try:
        made = _made_once(directory, ckan["env"])
    except (OSError, ValueError) as exc:
        log.error("the secrets of %s for %s cannot be had: %s", ckan["env"], minion_id, exc)
        return {}
    return {"ckan": {"secrets": {name: made[name] for name in NAMES if not given.get(name)}}}


def _made_once(directory: str, env: str) -> dict[str, str]:
    path = os.path.join(directory, f"{env}.json")
    if not os.path.exists(path):
        os.makedirs(directory, mode=0o700, exist_ok=True)
        fd, draft = tempfile.mkstemp(dir=directory)
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as handle:
                json.dump({name: secrets.token_urlsafe(48) for name in NAMES}, handle)
                handle.flush()
                os.fsync(handle.fileno())
            # Two hosts may ask at once: one of them makes the file, both read the same.
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            os.unlink(draft)
    with open(path, encoding="utf-8") as handle:
        return json.load(handle)
