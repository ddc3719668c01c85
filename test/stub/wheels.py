"""Wheels made by hand: a package index without network for the tests (`ckan:installer:find_links`)."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path


def make_wheel(
    folder: str | Path,
    name: str,
    version: str,
    files: Mapping[str, str] | None = None,
    plugins: Mapping[str, str] | None = None,
    requires: Iterable[str] = (),
) -> Path:
    """Make a pure wheel.

    folder
        Where it is made.
    name, version
        Of the distribution.
    files
        Content by path; by default one module of the name with VERSION in it.
    plugins
        Entry points of the group ckan.plugins.
    requires
        Its requirements.

    Returns the path of the wheel.
    """
    module = name.replace("-", "_")
    content = dict(files or {f"{module}.py": f"VERSION = {version!r}\n"})
    info = f"{module}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    content[f"{info}/METADATA"] = "\n".join([*lines, *(f"Requires-Dist: {item}" for item in requires)]) + "\n"
    content[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    if plugins:
        entries = "".join(f"{plugin} = {target}\n" for plugin, target in plugins.items())
        content[f"{info}/entry_points.txt"] = f"[ckan.plugins]\n{entries}"
    record = "".join(record_line(path, text) for path, text in content.items())
    content[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    Path(folder).mkdir(parents=True, exist_ok=True)
    wheel = Path(folder) / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)
    return wheel


def record_line(path: str, text: str) -> str:
    """The line of a file in a RECORD."""
    return f"{path},{_digest(text)},{len(text.encode())}\n"


def make_extension(folder: str | Path, name: str, text: str, version: str = "1.0") -> Path:
    """Make the wheel of an extension `ckanext-NAME` for the stand-in CKAN; it has no `ckanext/__init__.py`.

    folder, version
        As for make_wheel.
    name
        Name of the extension and its plugin.
    text
        What it shows on each page.

    Returns the path of the wheel.
    """
    plugin = (
        "from ckan import plugins\n\n"
        f"TEXT = {text!r}\n\n\n"
        "class Plugin(plugins.SingletonPlugin):\n"
        "    plugins.implements(plugins.IConfigurer)\n\n"
        "    def update_config(self, config):\n        pass\n\n"
        "    def front_text(self):\n        return TEXT\n"
    )
    files = {f"ckanext/{name}/__init__.py": "", f"ckanext/{name}/plugin.py": plugin}
    return make_wheel(folder, f"ckanext-{name}", version, files, {name: f"ckanext.{name}.plugin:Plugin"})


def _digest(text: str) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
