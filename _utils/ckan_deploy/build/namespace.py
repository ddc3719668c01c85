"""
The namespace ``ckanext``: all extensions of a virtualenv import in one process, whatever way each was installed.

A wheel without ``ckanext/__init__.py`` and a checkout with one do not by themselves: one hides the other, depending on
the module path (pypa/setuptools#4039, ckan/ckan#9414). So one file in site-packages, read last when Python starts,
makes ``ckanext`` a namespace of all its parts.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Collection

from attrs import frozen

from ckan_deploy.build.sandbox import Sandbox
from ckan_deploy.errors import FormulaError
from ckan_deploy.system import files, processes

# After all others: these put directories on the module path.
FILE = "zz-ckanext-namespace.pth"
LINE = (
    "import importlib.machinery, importlib.util, pkgutil, sys; "
    "_s = importlib.machinery.ModuleSpec('ckanext', None, is_package=True); "
    "_s.submodule_search_locations = pkgutil.extend_path([], 'ckanext'); "
    "sys.modules['ckanext'] = importlib.util.module_from_spec(_s)\n"
)
# Finds the modules of the plugins that are enabled, and imports none but the packages above them: CKAN itself is dear
# to import. What nobody enables is looked at by the boot of the stage `check`, where most of it is there already.
FINDER = """
import importlib.metadata, importlib.util, json, sys
enabled = json.loads(sys.argv[1])
points = [
    (distribution.metadata["Name"], point)
    for distribution in importlib.metadata.distributions()
    for point in distribution.entry_points
    if point.group == "ckan.plugins" and point.name in enabled
]
def say(word, what):
    sys.stdout.write("\\n" + word + " " + json.dumps(what) + "\\n")
    sys.stdout.flush()
def look(name, point):
    try:
        spec = importlib.util.find_spec(point.module)
        problem = "" if spec else "there is no module " + point.module
        if spec and spec.origin and not spec.origin.startswith(sys.prefix + "/"):
            problem = point.module + " comes from " + spec.origin
    except BaseException as exc:
        problem = point.module + ": " + type(exc).__name__ + ": " + " ".join(str(exc).split())
    if problem:
        say("LOST", [name, point.name, problem])
for name, point in points:
    look(name, point)
say("ENABLED", sys.prefix)
"""
# What is said of one plugin, at most.
LONGEST = 300


@frozen
class Lost:
    """A plugin that cannot be imported: the package that names it, and why."""

    package: str
    plugin: str
    reason: str


def unify(path: str) -> None:
    """
    Write the file that makes ``ckanext`` one namespace of all its parts.

    path
        The virtualenv.
    """
    for folder in glob.glob(f"{glob.escape(path)}/lib/python*/site-packages"):
        # By a new file: the one that is there may be shared with other virtualenvs.
        files.write(os.path.join(folder, FILE), LINE)


def missing(path: str, enabled: Collection[str], sandbox: Sandbox) -> list[Lost]:
    """
    Find the enabled plugins that cannot be found in one process of a virtualenv's interpreter.

    path
        The virtualenv.
    enabled
        The names of the plugins that are to be loaded.
    sandbox
        Where the interpreter is run.

    Returns those that cannot. Raises ``FormulaError`` when the interpreter does not run, or a package
    of an enabled plugin ends it.
    """
    command = [f"{path}/bin/python", "-I", "-B", "-c", FINDER, json.dumps(sorted(enabled))]
    said = sandbox.run(command, [path])
    lines = said.stdout.splitlines()
    prefix = next((line[8:] for line in lines if line.startswith("ENABLED ")), "")
    if not prefix:
        raise FormulaError(f"{path}/bin/python does not run: {processes.tail(said, 1)}.")
    if prefix != json.dumps(path):
        raise FormulaError(f"{path}/bin/python belongs to {prefix}; repair the base and deploy again.")
    return [lost for line in lines if line.startswith("LOST ") and (lost := _lost(line[5:]))]


def _lost(text: str) -> Lost | None:
    """What was said of one plugin; code of others may have written it."""
    try:
        package, plugin, reason = (" ".join(str(word).split())[:LONGEST] for word in json.loads(text))
    except (ValueError, TypeError):
        return None
    return Lost(package, plugin, reason)
