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
# Finds the modules of entry points and imports none but the packages above them: CKAN itself is dear to import.
FINDER = """
import importlib.metadata, importlib.util, json, sys
lost, named = {}, {}
for distribution in importlib.metadata.distributions():
    for point in distribution.entry_points:
        if point.group == "ckan.plugins":
            try:
                spec = importlib.util.find_spec(point.module)
                problem = "" if spec else "there is no module " + point.module
                if spec and spec.origin and not spec.origin.startswith(sys.prefix + "/"):
                    problem = point.module + " comes from " + spec.origin
            except BaseException as exc:
                problem = point.module + ": " + type(exc).__name__ + ": " + " ".join(str(exc).split())
            if problem:
                lost.setdefault(distribution.metadata["Name"], "plugin " + point.name + ": " + problem)
print("LOST " + json.dumps([sys.prefix, lost]))
"""


def unify(path: str) -> None:
    """
    Write the file that makes ``ckanext`` one namespace of all its parts.

    path
        The virtualenv.
    """
    for folder in glob.glob(f"{glob.escape(path)}/lib/python*/site-packages"):
        # By a new file: the one that is there may be shared with other virtualenvs.
        files.write(os.path.join(folder, FILE), LINE)


def missing(path: str, sandbox: Sandbox) -> dict[str, str]:
    """
    Find the extensions whose plugins cannot be found in one process of a virtualenv's interpreter.

    path
        The virtualenv.
    sandbox
        Where the interpreter is run.

    Returns ``{distribution: reason}``, empty when all are there. Raises ``FormulaError`` when the interpreter
    does not run.
    """
    said = sandbox.run([f"{path}/bin/python", "-I", "-B", "-c", FINDER], [path])
    lines = [line for line in said.stdout.splitlines() if line.startswith("LOST ")]
    if not lines:
        raise FormulaError(f"{path}/bin/python does not run: {processes.tail(said, 1)}.")
    prefix, found = json.loads(lines[-1][5:])
    if prefix != path:
        raise FormulaError(f"{path}/bin/python belongs to {prefix}; repair the base and deploy again.")
    return dict(found)
