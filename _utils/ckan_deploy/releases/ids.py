"""Release ids: UTC stamps, one for the whole fleet. Order is by id, never by file times."""

from __future__ import annotations

import datetime
import re
import time
from typing import Any

from ckan_deploy.errors import InvalidArgument

ID_FORMAT = "%Y%m%d%H%M%SZ"
ID_PATTERN = re.compile(r"[0-9]{14}Z")


def new_id() -> str:
    """Return a release id for now."""
    return time.strftime(ID_FORMAT, time.gmtime())


def check_id(release: Any) -> str:
    """
    Return ``release`` when it is a release id.

    release
        The id to look at, text of the form ``YYYYMMDDhhmmssZ``.

    Raises ``InvalidArgument`` for anything else, so that no path is ever made from an odd id.
    """
    if not isinstance(release, str) or not ID_PATTERN.fullmatch(release):
        raise InvalidArgument(
            f"{release!r} is not a release id; give a UTC stamp such as 20261125021500Z "
            "(ckan_release.list shows the ones there are)."
        )
    return release


def now() -> str:
    """Return the present time as manifests record it: UTC, ISO 8601, whole seconds."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
