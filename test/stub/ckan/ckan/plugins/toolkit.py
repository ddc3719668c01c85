"""The names of CKAN's plugins toolkit that extensions and the formula use."""

from __future__ import annotations

import ckan
from ckan import plugins
from ckan.common import config


def add_template_directory(config_: dict, relative_path: str) -> None:
    """Templates are not rendered here: the front page shows each plugin's front_text() instead."""


def _status_show(context: dict, data_dict: dict) -> dict:
    return {
        "ckan_version": ckan.__version__,
        "site_url": config.get("ckan.site_url"),
        "site_title": config.get("ckan.site_title", "CKAN"),
        "extensions": [plugin.name for plugin in plugins.loaded()],
    }


def _package_search(context: dict, data_dict: dict) -> dict:
    # `stub.search_error` stands for a Solr that does not answer.
    if config.get("stub.search_error"):
        raise RuntimeError(config["stub.search_error"])
    return {"count": 0, "results": [], "sort": "score desc", "facets": {}, "search_facets": {}}


_ACTIONS = {"status_show": _status_show, "package_search": _package_search}


def get_action(name: str):
    """An action function by its name. Raises KeyError for an unknown one."""
    if name not in _ACTIONS:
        raise KeyError(f"Action '{name}' not found")
    return _ACTIONS[name]
