"""
A little disk that is kept for a revert: on a disk that has run full, a failed deploy must still be taken back.
"""

from __future__ import annotations

import contextlib
import os

from ckan_deploy.releases.site import Site
from ckan_deploy.system import disk, files

# Manifests, a link, the files of an app server, a line of the log: some kilobytes.
SIZE = 2**20
_NAME = ".reserve"


def keep(site: Site) -> None:
    """
    Have the reserve, where there is room for it.

    site
        The site.
    """
    for path in _places(site):
        with contextlib.suppress(OSError):
            if not os.path.isdir(os.path.dirname(path)) or _size(path) == SIZE:
                continue
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                os.posix_fallocate(handle, 0, SIZE)
            except OSError:
                os.unlink(path)  # what is left of the disk is for others
            finally:
                os.close(handle)


def give_up(site: Site) -> None:
    """
    Free the reserve, for what is written from now on.

    site
        The site.
    """
    for path in _places(site):
        files.try_unlink(path)


def _places(site: Site) -> list[str]:
    """In ``shared``, and beside the releases where that is another disk."""
    shared, releases = site.paths.shared, site.paths.releases
    same = os.stat(disk.existing(shared)).st_dev == os.stat(disk.existing(releases)).st_dev
    return [os.path.join(folder, _NAME) for folder in ([shared] if same else [shared, releases])]


def _size(path: str) -> int:
    return os.stat(path).st_size if os.path.isfile(path) else 0
