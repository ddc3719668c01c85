"""Plugins, loaded from the entry point group `ckan.plugins` as in CKAN."""

from __future__ import annotations

from importlib.metadata import entry_points

from ckan.common import config

_PLUGINS: dict[str, SingletonPlugin] = {}


class PluginNotFoundException(Exception):
    """Requested plugin cannot be found."""


class Interface:
    """Base of the interfaces."""


class IConfigurer(Interface):
    """Lets a plugin change the configuration."""


class SingletonPlugin:
    """Base class of plugins."""

    def __init__(self, name: str = "") -> None:
        self.name = name


def implements(interface: type[Interface], inherit: bool = False) -> None:
    """Declare an interface; here the methods of the plugin alone decide."""


def loaded() -> list[SingletonPlugin]:
    """The loaded plugins in the order of `ckan.plugins`."""
    return list(_PLUGINS.values())


def plugin_loaded(name: str) -> bool:
    """Whether a plugin is loaded."""
    return name in _PLUGINS


def load_all() -> None:
    """Load every plugin of the option `ckan.plugins`."""
    _PLUGINS.clear()
    for plugin in config["ckan.plugins"]:
        if plugin in _PLUGINS:
            raise Exception(f"Plugin `{plugin}` already loaded")
        _PLUGINS[plugin] = _get_service(plugin)


# The names of the variables, too, are CKAN's: a traceback tells by them which plugin it was about.
def _get_service(plugin_name: str) -> SingletonPlugin:
    found = entry_points(group="ckan.plugins", name=plugin_name)
    if not found:
        raise PluginNotFoundException(plugin_name)
    return found[plugin_name].load()(name=plugin_name)


from ckan.plugins import toolkit  # noqa: E402, F401  (last: it needs what is above)
