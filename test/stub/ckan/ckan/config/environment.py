"""Setting up the process from a configuration."""

from __future__ import annotations

import time

from ckan import plugins
from ckan.common import config
from ckan.exceptions import CkanConfigurationException


def load_environment(conf: dict) -> None:
    """Load the plugins and let them see the configuration.

    The options `stub.boot_seconds` and `stub.boot_error` make a slow and a failing boot.
    """
    config.clear()
    config.update(conf)
    config["ckan.plugins"] = str(config.get("ckan.plugins", "")).split()
    time.sleep(float(config.get("stub.boot_seconds", 0)))
    if config.get("stub.boot_error"):
        raise RuntimeError(config["stub.boot_error"])
    plugins.load_all()
    for plugin in plugins.loaded():
        if hasattr(plugin, "update_config"):
            plugin.update_config(config)
    if not str(config.get("ckan.max_resource_size", 10)).isdecimal():
        raise CkanConfigurationException(
            "Invalid configuration values provided:\nckan.max_resource_size: Please enter an integer value"
        )
    site_url = config.get("ckan.site_url")
    if not site_url:
        raise RuntimeError("ckan.site_url is not configured and it must have a value. Please amend your .ini file.")
    if not site_url.lower().startswith("http"):
        raise RuntimeError("ckan.site_url should be a full URL, including the schema (http or https)")
