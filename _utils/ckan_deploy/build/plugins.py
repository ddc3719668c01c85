"""
The plugins that a release will have, known before anything is installed: none may be listed that nothing brings.

What a package of the index brings can be told only where its wheel is at hand. Else nothing is refused; whether all
plugins load is asked again by the boot of the stage ``check``.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping
from typing import Any

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from ckan_deploy.build import entry_points, uv_and_pip
from ckan_deploy.build.uv_and_pip import Installer
from ckan_deploy.errors import FormulaError
from ckan_deploy.settings.model import Settings
from ckan_deploy.sources.origins import Prepared
from ckan_deploy.system import arguments

# setuptools has had no pkg_resources since 82, and has warned of that since 81.
WITH_PKG_RESOURCES = "setuptools<81"


def check(
    plugins: Iterable[str], base: str, prepared: Mapping[str, Prepared], new: Mapping[str, str], find_links: str = ""
) -> bool:
    """
    Refuse plugins that neither CKAN nor an extension brings.

    plugins
        The names in ``ckan:plugins``.
    base
        The base virtualenv.
    prepared
        What each extension is installed from, by its name.
    new
        ``{name: version}`` of the packages that the base does not have, or has in another version.
    find_links
        A folder with wheels, where those of the index may be found.

    Returns True when all are brought, False when that cannot be told. Raises ``FormulaError`` that names the
    unknown plugins, each with the nearest one that is known.
    """
    brought = _brought(prepared, new, find_links)
    parts = [entry_points.of_virtualenv(base, without={*brought, *new}), *brought.values()]
    known: set[str] = set()
    for part in parts:
        if part is None:
            return False
        known.update(part)
    unknown = [plugin for plugin in plugins if plugin not in known]
    if unknown:
        raise FormulaError(_told(unknown, known))
    return True


def enabled(options: Mapping[str, Any]) -> tuple[str, ...]:
    """
    Return the plugins that CKAN will load.

    options
        The options of its ini.
    """
    value = options.get("ckan.plugins", "")
    return tuple(map(str, value)) if isinstance(value, (list, tuple)) else tuple(str(value).split())


def advised(text: str, path: str, plugin: str, settings: Settings) -> str:
    """
    Return a sentence on a plugin that does not import, with what to type where that is known.

    text
        The sentence, without full stop.
    path
        The virtualenv.
    plugin
        The name of the plugin, '' where nobody knows it.
    settings
        The settings.
    """
    if "No module named 'pkg_resources'" not in text:
        return text
    bringer = entry_points.provider(path, plugin)
    name = next((name for name in settings.extensions if canonicalize_name(name) == bringer), "")
    if not name:
        return f"{text} ({WITH_PKG_RESOURCES} brings it: override setuptools in the extension that wants it)"
    if uv_and_pip.kind(Installer.of(settings)) == "pip":
        return f"{text} ({WITH_PKG_RESOURCES} brings it: add that to what {name} requires)"
    return f"{text} (set ckan:extensions:{name}:override: ['{WITH_PKG_RESOURCES}'], which brings it)"


def _brought(prepared: Mapping[str, Prepared], new: Mapping[str, str], find_links: str) -> dict[str, list[str] | None]:
    """The plugins of each package that is not the base's, None where they cannot be told."""
    brought: dict[str, list[str] | None] = {}
    for name, item in prepared.items():
        if item.archive:
            brought[canonicalize_name(name)] = entry_points.of_wheel(item.archive)
    asked = {canonicalize_name(name) for name in prepared}
    for name, version in new.items():
        # Extensions from the index, and those that others require.
        if name not in brought and (name in asked or name.startswith("ckanext")):
            brought[name] = _of_wheel(name, version, find_links)
    return brought


def _told(unknown: Iterable[str], known: Iterable[str]) -> str:
    """Say which plugins nothing brings, each with the nearest one that is known."""
    named = []
    for plugin in unknown:
        named.append((plugin, arguments.near(plugin, sorted(known))))
    if len(named) == 1:
        plugin, hint = named[0]
        return (
            f"plugin {plugin} is in ckan:plugins, but neither CKAN nor an extension brings it{hint}; correct it or add "
            "its extension."
        )
    return (
        f"plugins {', '.join(plugin + hint for plugin, hint in named)} are in ckan:plugins, but neither CKAN nor an "
        "extension brings them; correct them or add their extensions."
    )


def _of_wheel(name: str, version: str, folder: str) -> list[str] | None:
    """What the package brings, if its wheel is in the folder."""
    for file in sorted(glob.glob(f"{glob.escape(folder)}/*.whl")) if folder else []:
        try:
            found = parse_wheel_filename(os.path.basename(file))
        except InvalidWheelFilename:
            continue
        if (found[0], str(found[1])) == (name, version):
            return entry_points.of_wheel(file)
    return None
