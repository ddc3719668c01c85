"""
The secrets that nobody needs to know, made once per environment and kept on the master.

CKAN signs sessions and API tokens with them. All hosts of an environment must have the same ones, and a deploy must not
change them.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from typing import Any

from ckan_deploy.fleet.names import NAME

NAMES = ("session", "api_token")


def lacking(pillar: Mapping[str, Any], directory: str) -> dict[str, str]:
    """
    Return what the pillar of a host of a CKAN environment lacks of ``ckan:secrets``; {} for other hosts.

    pillar
        What the other sources of the pillar say.
    directory
        Where the secrets are kept, an absolute path: one file for each environment (0600).

    Raises ``OSError`` or ``ValueError`` where the directory cannot be used.
    """
    ckan = pillar.get("ckan")
    if not isinstance(ckan, dict) or not NAME.fullmatch(str(ckan.get("env"))):
        return {}
    given = ckan.get("secrets") or {}
    if not isinstance(given, dict) or all(given.get(name) for name in NAMES):
        return {}
    made = _made_once(directory, ckan["env"])
    return {name: made[name] for name in NAMES if not given.get(name)}


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
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        finally:
            os.unlink(draft)
    with open(path, encoding="utf-8") as handle:
        found: dict[str, str] = json.load(handle)
    return found
