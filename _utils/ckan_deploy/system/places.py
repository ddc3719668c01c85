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
    Remove what killed calls have left.

    shared
        As for ``temporary``.
    """
    top = os.path.join(shared, "work")
    if os.path.isdir(top):
        with contextlib.suppress(OSError), files.locked(f"{top}/.ckan.lock"):
            _sweep(top)


def _sweep(top: str) -> None:
    """Remove the directories that nobody holds the lock of; for who holds the lock of all."""
    for name in os.listdir(top):
        place = os.path.join(top, name)
        if not name.startswith("ckan-") or not os.path.isdir(place) or os.path.islink(place):
            continue
        if not os.path.exists(f"{place}/.lock"):
            shutil.rmtree(place, ignore_errors=True)  # killed before it had one
            continue
        # One that has just ended has removed it itself.
        with contextlib.suppress(OSError), files.locked(f"{place}/.lock", wait=False) as left:
            if left:
                shutil.rmtree(place, ignore_errors=True)
