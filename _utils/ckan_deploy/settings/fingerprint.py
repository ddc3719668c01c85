"""A hash of each part of the settings that a release is made of, to tell later which have changed."""

from __future__ import annotations

import hashlib
import hmac
import json

from ckan_deploy.settings.model import Settings
from ckan_deploy.settings.plain import as_dict

# Settings that take effect without a deploy, or say only how one is made.
NOT_OF_A_RELEASE = (
    "keep", "deploy_group", "disk_free_mb", "manage", "hooks", "installer", "build", "build_user", "link", "git",
    "aliases", "domain", "tls", "stable_seconds", "config_known", "storage",
)  # fmt: skip

# What services and app servers are started with, besides what is in the release.
OF_SERVICES = ("services", "workers", "environment", "secrets:environment", "web", "user", "group")

# What a release made by an older version has no note of; where there is none, nothing has changed.
CAME_LATER = ("services", "environment")


def hashes(settings: Settings) -> dict[str, str]:
    """
    Return a hash of each part of the settings that a release is made of.

    Keyed with the session secret: nobody can try out what a secret may be.

    settings
        The settings.
    """
    key, found = settings.secrets.session.encode("utf-8"), as_dict(settings)
    if variables := found["secrets"].pop("environment"):
        found["secrets:environment"] = variables
    return {
        name: hmac.new(key, json.dumps(value, sort_keys=True).encode("utf-8"), hashlib.sha256).hexdigest()[:16]
        for name, value in found.items()
        if name not in NOT_OF_A_RELEASE and (value or name not in CAME_LATER)
    }


def of_services(settings: Settings) -> dict[str, str]:
    """
    Return the hashes of what services and app servers are started with, as ``hashes`` makes them.

    settings
        The settings.
    """
    return {name: hashed for name, hashed in hashes(settings).items() if name in OF_SERVICES}
