"""Directories of root's for the time of a call, under ``shared/work``. What killed calls have left is removed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from ckan_deploy.system import files, safely

PREFIX = "ckan-"


@contextlib.contextmanager
def temporary(shared: str, what: str) -> Iterator[str]:
    """
    Have a directory of root's own for a while.

    shared
        The directory ``paths:shared``, under which it stands.
    what
        What it is for, in a word.

    Yields its path, mode 0700.
    """
    top = _top(shared)
    safely.ensure(top)
    files.sweep(top, PREFIX)
    with files.scratch(top, f"{PREFIX}{what}-") as place:
        yield place


def sweep(shared: str) -> None:
    """
    Remove what killed calls have left.

    shared
        As for ``temporary``.
    """
    files.sweep(_top(shared), PREFIX)


def _top(shared: str) -> str:
    return os.path.join(shared, "work")
