"""
The plugins that a release will have, known before anything is installed: none may be listed that nothing brings.

What an extension brings cannot always be told from its files (see ``ckan_entry_points``). Then nothing is refused;
whether all plugins load is asked again by the boot of the stage ``check``.
"""

from __future__ import annotations

import difflib
import glob
import os

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_plugins"


def __virtual__() -> str:
    return __virtualname__


def check(plugins: list[str], base: str, extensions: dict, new: dict[str, str], find_links: str = "") -> bool:
    """
    Refuse plugins that neither CKAN nor an extension brings.

    plugins
        The names in ``ckan:plugins``.
    base
        The base virtualenv.
    extensions
        ``{name: what ckan_origin.prepare returns}``.
    new
        ``{name: version}`` of the packages that the base does not have, or has in another version.
    find_links
        A folder with wheels, where those of the index may be found.

    Returns True when all are brought, False when that cannot be told. Raises ``CommandExecutionError`` that names the
    unknown plugins, each with the nearest one that is known.

    CLI Example: not for the command line; ``ckan_release.plan`` uses it.
    """
    brought: dict[str, list[str] | None] = {}
    for name, item in extensions.items():
        archive = item.get("requirement", "").partition(" @ file://")[2]
        if "editable" in item:
            brought[canonicalize_name(name)] = __salt__["ckan_entry_points.of_checkout"](item["editable"])
        elif archive:
            brought[canonicalize_name(name)] = __salt__["ckan_entry_points.of_archive"](archive)
    asked = {canonicalize_name(name) for name in extensions}
    for name, version in new.items():
        # Extensions from the index, and those that others require.
        if name not in brought and (name in asked or name.startswith("ckanext")):
            brought[name] = _of_wheel(name, version, find_links)
    parts = [__salt__["ckan_entry_points.of_virtualenv"](base, without={*brought, *new}), *brought.values()]
    if None in parts:
        return False
    known = {plugin for part in parts for plugin in part}
    unknown = [plugin for plugin in plugins if plugin not in known]
    if not unknown:
        return True
    named = []
    for plugin in unknown:
        close = difflib.get_close_matches(plugin, sorted(known), n=1)
        named.append((plugin, f" (did you mean {close[0]}?)" if close else ""))
    if len(named) == 1:
        plugin, hint = named[0]
        raise CommandExecutionError(
            f"plugin {plugin} is in ckan:plugins, but neither CKAN nor an extension brings it{hint}; correct it or add "
            "its extension."
        )
    raise CommandExecutionError(
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
            return __salt__["ckan_entry_points.of_archive"](file)
    return None
