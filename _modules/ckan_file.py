"""
Files of text that are there whole or not at all: written under another name, and renamed.

Manifests are the store's own, which also makes sure that they outlive a power failure (``ckan_store``).
"""

from __future__ import annotations

import os
import shutil
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_file"


def __virtual__() -> str:
    return __virtualname__


def read(path: str, default: Any = "", errors: str = "strict") -> Any:
    """
    Read a file in UTF-8.

    path
        The file.
    default
        What to return where there is no such file.
    errors
        What becomes of bytes that are no UTF-8, as for ``open``.

    CLI Example: not for the command line; use Salt's ``file.read``.
    """
    try:
        with open(path, encoding="utf-8", errors=errors) as handle:
            return handle.read()
    except (FileNotFoundError, IsADirectoryError):
        return default


def of_formula(source: str) -> str:
    """
    Return the text of a file of the formula.

    source
        Its address in the file server.

    Raises ``CommandExecutionError`` where the file server does not have it.

    CLI Example: not for the command line; use Salt's ``cp.get_file_str``.
    """
    text = __salt__["cp.get_file_str"](source)
    if not text:
        raise CommandExecutionError(f"{source} is not in the file server; add the formula to file_roots.")
    return text


def write(path: str, text: str, mode: int = 0o644, group: str = "", errors: str = "strict") -> None:
    """
    Write a file in UTF-8, in place of the one that is there.

    path
        The file; its directory must exist.
    text
        What it holds.
    mode
        Its mode.
    group
        Its group, where root writes it; empty for that of whoever writes.
    errors
        What becomes of characters that UTF-8 does not have, as for ``open``.

    CLI Example: not for the command line; use Salt's ``file.write``.
    """
    draft = f"{path}.tmp"
    if os.path.lexists(draft):
        os.unlink(draft)  # of a run that was killed
    # Nobody reads it before it has its mode, and nobody's link is followed.
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8", errors=errors) as handle:
        handle.write(text)
    if group and os.geteuid() == 0:
        shutil.chown(draft, "root", group)
    os.chmod(draft, mode)
    os.rename(draft, path)
