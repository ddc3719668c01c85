"""
Which state of the formula this minion has: told by the contents of its modules, so that nobody has to count versions.
"""

from __future__ import annotations

import hashlib
import os

__virtualname__ = "ckan_version"


def __virtual__() -> str:
    return __virtualname__


def modules() -> str:
    """
    Return a hash of the formula's execution modules as they are on this minion.

    The master makes the same of those in its file server (``ckan_hosts.version``): where the two differ, the modules
    were not synced since the formula was changed.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_version.modules
    """
    folder, digest = os.path.dirname(os.path.abspath(__file__)), hashlib.sha256()
    for name in sorted(os.listdir(folder)):
        if name.startswith("ckan_") and name.endswith(".py"):
            with open(os.path.join(folder, name), "rb") as handle:
                digest.update(f"{name} {hashlib.sha256(handle.read()).hexdigest()}\n".encode())
    return digest.hexdigest()
