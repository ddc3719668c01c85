"""Directories for the time of a call, which the next call removes where a kill has left one."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator

from ckan_deploy.system import files


@contextlib.contextmanager
def temporary(shared: str, what: str) -> Iterator[str]:
    """
    Have a directory of root's own for a while. What killed calls have left beside it is removed first.

    shared
        The directory ``paths:shared``, under which it stands.
    what
        What it is for, in a word.

    Yields its path, mode 0700.
    """
    top = os.path.join(shared, "work")
    os.makedirs(top, mode=0o755, exist_ok=True)
    with contextlib.ExitStack() as stack:
        # Directory and lock come into being together, or another call would take it for a killed one's.
        with files.locked(f"{top}/.ckan.lock"):
            _sweep(top)
            place = tempfile.mkdtemp(prefix=f"ckan-{what}-", dir=top)
            stack.callback(shutil.rmtree, place, ignore_errors=True)
            stack.enter_context(files.locked(f"{place}/.lock"))
        yield place


def sweep(shared: str) -> None:
    """
    Remove what killed calls have left of ``temporary``.

    shared
        The directory ``paths:shared``.
    """
    top = os.path.join(shared, "work")
    if os.path.isdir(top):
        with files.locked(f"{top}/.ckan.lock"):
            _sweep(top)


def _sweep(top: str) -> None:
    for name in os.listdir(top):
        if name.startswith("ckan-") and os.path.isdir(f"{top}/{name}"):
            _remove(f"{top}/{name}")


def _remove(place: str) -> None:
    """Remove a directory, unless somebody holds its lock. One without a lock is not ours."""
    with contextlib.suppress(OSError):
        if os.path.exists(f"{place}/.lock"):
            with files.locked(f"{place}/.lock", wait=False) as left:
                if left:
                    shutil.rmtree(place, ignore_errors=True)
