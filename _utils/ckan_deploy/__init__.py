"""
The CKAN formula: what it knows of hosts, releases and fleets. Salt's module folders hold thin modules that call it.

A process that lives on (a minion, the master) keeps an imported package after ``saltutil.sync_all`` has replaced its
files. So each thin module calls ``fresh`` right after ``import ckan_deploy``, before it imports anything else of the
package. Its name and its parameter never change, nor do ``_LOCK``, ``_IMPORTED`` and ``VERSION``: it is the old copy's
``fresh`` that runs after a sync.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib.machinery
import importlib.util
import os
import re
import sys
import threading
from collections.abc import Sequence
from types import ModuleType
from typing import Any

VERSION = "1.0.0"
PYTHON, SALT = (3, 10), 3008
# Of all copies of the package in a process.
_LOCK = threading.Lock()
_FOLDER = os.path.dirname(os.path.abspath(__file__))


def fresh(module_file: str) -> None:
    """
    Take the package anew where its files have changed since they were imported.

    module_file
        The ``__file__`` of the thin module that calls.

    Raises ``ImportError`` where Salt or Python is too old, or a copy of another version was synced beside one that is
    installed. Where the files cannot be imported, the package stays as it is and their error is raised.
    """
    import salt.version

    if problem := too_old(salt.version.__version_info__, sys.version_info):
        raise ImportError(problem)
    with _LOCK:
        # Another thread may have taken it anew since this one imported it.
        if _state() != sys.modules[__name__]._IMPORTED:
            _take_anew()
        version = sys.modules[__name__].VERSION
    synced = os.path.join(os.path.dirname(os.path.dirname(module_file)), "utils", "ckan_deploy", "__init__.py")
    if os.path.exists(synced) and not os.path.samefile(synced, __file__):
        with open(synced, encoding="utf-8") as handle:
            other = re.search(r'^VERSION = "(.*)"$', handle.read(), re.MULTILINE)
        if not other or other[1] != version:
            raise ImportError(
                f"version {version} of the formula is installed in {_FOLDER}, and another one "
                f"({other[1] if other else 'unknown'}) was synced; remove one: pip uninstall ckan-formula"
            )


def too_old(salt_version: Sequence[Any], python_version: Sequence[Any]) -> str:
    """
    Say what is too old for the formula, '' for nothing.

    salt_version, python_version
        The versions, as numbers.
    """
    if tuple(python_version[:2]) < PYTHON:
        return f"the formula needs Python 3.10 or newer, and this is {'.'.join(map(str, python_version[:2]))}"
    if int(salt_version[0]) < SALT:
        have = ".".join(map(str, salt_version[:2]))
        return f"the formula needs Salt {SALT} or newer, and this is {have}"
    return ""


def _state() -> dict[str, tuple[int, int]]:
    """Modification time and size of each file of the package."""
    found = {}
    for folder, folders, files in os.walk(_FOLDER):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in files:
            if name.endswith(".py"):
                path = os.path.join(folder, name)
                with contextlib.suppress(FileNotFoundError):  # a sync has removed it in this very moment
                    status = os.stat(path)
                    found[path] = (status.st_mtime_ns, status.st_size)
    return found


def _take_anew() -> None:
    """
    Load all modules of the package that are loaded a second time, and put these in place of the first at once.

    ``sys.modules`` has a whole package at any time: a thread that imports meanwhile never finds a part of one, and a
    thread that is at work in the first keeps all of it.
    """
    importlib.invalidate_caches()
    new: dict[str, ModuleType] = {}
    space = dict(vars(builtins))
    space["__import__"] = functools.partial(_import, new, space)
    vars(_load(__name__, new, space))["_LOCK"] = _LOCK
    # A second time round for what another thread has begun to import meanwhile: it may have found some of the first.
    while more := {name for name in list(sys.modules) if name.startswith(f"{__name__}.")} - new.keys():
        for name in more:
            if not _load_if_there(name, new, space):
                sys.modules.pop(name, None)
        sys.modules.update(new)
    sys.modules.update(new)
    # From here on these modules import like any other.
    space["__import__"] = builtins.__import__


def _load(name: str, new: dict[str, ModuleType], space: dict[str, Any]) -> ModuleType:
    """Load a module of the package, and what it imports of the package, into ``new`` and nowhere else."""
    if name not in new:
        parent, _, child = name.rpartition(".")
        path = _load(parent, new, space).__path__ if parent else [os.path.dirname(_FOLDER)]
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if not spec or not spec.loader or not spec.has_location:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        new[name] = module = importlib.util.module_from_spec(spec)
        vars(module)["__builtins__"] = space
        spec.loader.exec_module(module)
        if parent:
            setattr(new[parent], child, module)
    return new[name]


def _load_if_there(name: str, new: dict[str, ModuleType], space: dict[str, Any]) -> bool:
    """As ``_load``; returns whether there is such a module."""
    try:
        _load(name, new, space)
        return True
    except ModuleNotFoundError as exc:
        if not f"{name}.".startswith(f"{exc.name}."):
            raise
        return False


def _import(
    new: dict[str, ModuleType],
    space: dict[str, Any],
    name: str,
    globals: dict[str, Any] | None = None,
    locals: dict[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """The import statement in modules that are loaded a second time: of the package they get such modules, too."""
    if level or name.partition(".")[0] != __name__:
        return builtins.__import__(name, globals, locals, fromlist or (), level)
    module = _load(name, new, space)
    for child in fromlist or ():
        if hasattr(module, "__path__") and not hasattr(module, child):
            _load_if_there(f"{name}.{child}", new, space)
    return module if fromlist else new[__name__]


_IMPORTED = _state()
