"""
Whether patches are in what a release imports. One that was applied can be lost since: what is installed later may bring
the module anew, or in another place that goes first.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

from ckan_deploy.errors import FormulaError
from ckan_deploy.sources.pins import Patch
from ckan_deploy.system import processes
from ckan_deploy.system.processes import Done

Run = Callable[[Sequence[str]], Done]
# Where modules are imported from, by name; imports none but the packages above them.
FINDER = """
import importlib.util, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        spec = importlib.util.find_spec(name)
    except BaseException:
        spec = None
    found[name] = list(spec.submodule_search_locations or ()) if spec else []
print("FOUND " + json.dumps(found))
"""
# Directories of a repository that look like packages, and that no release imports.
NOT_INSTALLED = ("bin", "contrib", "doc", "docs", "example", "examples", "scripts", "test", "tests")


def digest(path: str) -> str:
    """
    Return the SHA-256 of a file, ``''`` where there is none.

    path
        The file.
    """
    try:
        with open(path, "rb") as handle:
            return hashlib.sha256(handle.read()).hexdigest()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return ""


def lost(path: str, core: Iterable[Patch], extensions: Mapping[str, Sequence[Patch]], run: Run) -> list[str]:
    """
    Find the patches that are not in what a release imports.

    path
        The directory of the release.
    core
        The patches of CKAN itself, as they were applied.
    extensions
        Those of each extension that has a checkout, by its name.
    run
        Runs a command line of the release's interpreter, where code of others may run.

    Returns a sentence for each patch that is not there as a whole. Raises ``FormulaError`` when the interpreter does
    not run.
    """
    patched = [(patch, file, sha256, "") for patch in core for file, sha256 in patch.contents()]
    for name, patches in extensions.items():
        patched += [(patch, file, sha256, name) for patch in patches for file, sha256 in patch.contents()]
    if not patched:
        return []
    names = {(file, name): _module(path, file, name) for _, file, _, name in patched}
    places = _places(path, sorted({module for module, _ in names.values() if module}), run)
    found: dict[str, str] = {}
    for patch, file, sha256, name in patched:
        module, rest = names[file, name]
        copies = [os.path.join(place, rest) for place in places.get(module, [])]
        if name and not copies:
            copies = [os.path.join(path, "src", name, file)]  # imported by nobody
        if sha256 not in {digest(copy) for copy in copies or [""]}:
            found.setdefault(patch.patch, _sentence(path, patch, file, name, copies))
    return list(found.values())


def _module(path: str, file: str, extension: str) -> tuple[str, str]:
    """The package that a file belongs to, and its name in that; '' for one of none."""
    parts = file.split("/")
    if not extension:
        size = 2 if parts[0] == "ckanext" and len(parts) > 2 else 1
        return ".".join(parts[:size]), "/".join(parts[size:])
    for index, part in enumerate(parts[:-1]):
        folder = os.path.join(path, "src", extension, *parts[: index + 1])
        if part == "ckanext" and len(parts) > index + 2:
            return f"ckanext.{parts[index + 1]}", "/".join(parts[index + 2 :])
        if part in NOT_INSTALLED:
            break
        if os.path.isfile(os.path.join(folder, "__init__.py")):
            return part, "/".join(parts[index + 1 :])
    return "", file


def _places(path: str, modules: Sequence[str], run: Run) -> dict[str, list[str]]:
    if not modules:
        return {}
    said = run([f"{path}/bin/python", "-I", "-B", "-c", FINDER, *modules])
    lines = [line for line in said.stdout.splitlines() if line.startswith("FOUND ")]
    if not lines:
        raise FormulaError(f"{path}/bin/python does not run: {processes.tail(said, 1)}.")
    places: dict[str, list[str]] = json.loads(lines[-1][6:])
    return places


def _sentence(path: str, patch: Patch, file: str, extension: str, copies: Sequence[str]) -> str:
    where = f"{copies[0].removeprefix(f'{path}/')} is another file" if copies else "nothing of that name is imported"
    said = f"{patch.patch} was applied, but {file} is not as it left it in what is imported ({where}): "
    if extension:
        return said + f"something else brings the module of {extension}, so take that out or the patch"
    source = next(iter(glob.glob(os.path.join(glob.escape(path), "src", "*", "ckan", "__init__.py"))), "")
    name = os.path.relpath(source, os.path.join(path, "src")).split("/")[0] if source else ""
    if copies and name and copies[0].startswith(os.path.join(path, "src", name) + "/"):
        return said + f"CKAN comes from the extension {name}, so list the patch under ckan:extensions:{name}:patches"
    return said + (
        "what was installed after it brings that file anew (an override of ckan, or a package that ships files of "
        "CKAN); take that out, or bring the patch into it"
    )
