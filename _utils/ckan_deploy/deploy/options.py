"""Options of the ini that neither CKAN nor a plugin declares: a misspelling, or an extension that declares nothing."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

from ckan_deploy.releases.site import Site


def unknown(site: Site, found: Mapping[str, str], version: str) -> list[str]:
    """
    Say which options nobody declares, but for those that ``ckan:config_known`` accepts, and those that the release
    which is live had already: they were told when it was made.

    site
        The site.
    found
        What the check has found: the options, each with the declared one whose name is nearest, or ``''``.
    version
        The version of CKAN.

    Returns sentences: one for each option that looks misspelled, and one for all others.
    """
    current = site.releases.current()
    # What follows from other settings is no misspelling of anybody's.
    own = site.settings.config.keys() | site.settings.secrets.config.keys()
    told = site.releases.read(current).check.get("undeclared", {}) if current else {}
    known = site.settings.config_known
    new = {
        name: near for name, near in found.items()
        if name in own and name not in told and not any(fnmatch.fnmatchcase(name, pattern) for pattern in known)
    }  # fmt: skip
    said = [
        f"CKAN and its plugins do not know the option {name} (did you mean {near}?)"
        for name, near in new.items() if near
    ]  # fmt: skip
    if rest := [name for name, near in new.items() if not near]:
        said.append(
            f"options that neither CKAN {version} nor a plugin declares: {', '.join(rest)}; accept those that are "
            "right by name: ckan:config_known"
        )
    return said
