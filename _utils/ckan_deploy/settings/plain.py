"""Settings as a plain dictionary: for people, and for hashes."""

from __future__ import annotations

from typing import Any

import attr

from ckan_deploy.settings.model import Settings


def as_dict(settings: Settings) -> dict[str, Any]:
    """
    Return the settings by group and name, as the pillar has them; an extension says its ``kind`` besides.

    settings
        The settings; nothing of the answer is shared with them.
    """
    found: dict[str, Any] = attr.asdict(settings, retain_collection_types=False)
    for name, extension in found["extensions"].items():
        extension["kind"] = settings.extensions[name].kind
    for group in ("extensions", "services", "workers", "cron"):
        for part in found[group].values():
            del part["remove"]  # what is removed is not here
    return found
