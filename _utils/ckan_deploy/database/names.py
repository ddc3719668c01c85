"""
Names that somebody types: of dumps, plugins, revisions and databases. What is no plain name is refused before it
becomes part of a path or of a statement.
"""

from __future__ import annotations

import re
from typing import Any

from ckan_deploy.errors import InvalidArgument
from ckan_deploy.releases.ids import ID_PATTERN, new_id
from ckan_deploy.releases.site import Site

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def plain(given: Any, what: str) -> str:
    """
    Return what was typed as text, where it is a plain name.

    given
        What was typed; Salt's command line makes a number of what looks like one.
    what
        What it is meant to be, such as ``a dump``.

    Raises ``InvalidArgument`` for anything else.
    """
    name = str(given)
    if not _PLAIN.fullmatch(name):
        raise InvalidArgument(
            f"{name!r} is not the name of {what}; it begins with a letter or a digit and has letters, digits, '.', "
            "'_' and '-', 100 at most."
        )
    return name


def dump(given: Any) -> str:
    """
    Return the name of a dump, as ``plain`` does.

    given
        What was typed.
    """
    return plain(given, "a dump")


def beside(site: Site, what: str) -> str:
    """
    Return a new name for a database beside the one of the site.

    site
        The site.
    what
        What it holds, in a word.
    """
    return f"{_beside(site, what)}{new_id()}"


def kept(site: Site, given: Any) -> str:
    """
    Return the name of a database that a restore has kept.

    site
        The site.
    given
        What was typed.

    Raises ``InvalidArgument`` for any other name: that database would take the place of the site's own.
    """
    name, begin = str(given), _beside(site, "old")
    if not (name.startswith(begin) and ID_PATTERN.fullmatch(name[len(begin) :])):
        raise InvalidArgument(
            f"{name!r} is not the name of a database that a restore of this site has kept; such a name is {begin} and "
            "a UTC stamp (kept_as in what the restore returned)."
        )
    return name


def _beside(site: Site, what: str) -> str:
    # Names of PostgreSQL have at most 63 bytes.
    return f"{site.settings.database.name[:40]}_{what}_"
