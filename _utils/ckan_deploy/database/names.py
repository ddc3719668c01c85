"""
Names that somebody types: of dumps, plugins, revisions and databases. What is no plain name is refused before it
becomes part of a path or of a statement.
"""

from __future__ import annotations

import hashlib
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


def trial(site: Site) -> str:
    """
    Return the word for a database that a trial makes: each host its own, since all of them try at the same time.

    site
        The site.
    """
    return f"trial{hashlib.sha256(site.host.id.encode()).hexdigest()[:4]}"


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


def left_over(site: Site) -> str:
    """
    Return a regular expression, as PostgreSQL and Python read it, for the names of the databases that a restore, a
    rehearsal or a trial of this site makes, and removes or renames at its end.

    site
        The site.
    """
    each = "|".join(
        re.escape(_begin(site, word)) + end
        for word, end in (("new", "_"), ("dump", "_"), ("rehearsal", "_"), ("trial0000", "[0-9a-f]{4}_"))
    ).replace("_trial0000", "_trial")
    return f"^({each})[0-9]{{14}}Z$"


def _beside(site: Site, what: str) -> str:
    return f"{_begin(site, what)}_"


def _begin(site: Site, what: str) -> str:
    # Names of PostgreSQL have at most 63 bytes, 15 of them for the stamp.
    return f"{site.settings.database.name[: min(40, 46 - len(what))]}_{what}"
