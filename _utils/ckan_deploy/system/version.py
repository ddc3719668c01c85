"""Which state of the formula a machine has: told by the contents of its files, so that nobody has to count versions."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping

# What counts, by names as in the file server: the execution modules, and all of the package. Where the formula is
# installed by pip, Salt's module folders are in the package's.
COUNTED = re.compile(
    r"_modules/ckan_\w+\.py|_utils/ckan_deploy/(?!(?:modules|states|runners|pillar|grains|output)/)(?:\w+/)*\w+\.py"
)


def digest(files: Mapping[str, bytes]) -> str:
    """
    Return a hash of the formula's files.

    files
        What is in them, by name as in the file server: ``_modules/ckan_x.py``, ``_utils/ckan_deploy/x/y.py``.
    """
    made = hashlib.sha256()
    for name, content in sorted(files.items()):
        made.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return made.hexdigest()


def of_minion(module_file: str) -> str:
    """
    Return the hash of the formula's files on this minion.

    module_file
        The ``__file__`` of one of its execution modules.
    """
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return of_folders(os.path.dirname(os.path.abspath(module_file)), package)


def of_folders(modules: str, package: str) -> str:
    """
    Return the hash of the formula's files where Salt has put them on a minion.

    modules
        The directory of its execution modules.
    package
        The directory of the package.
    """
    files = {}
    for top, name in ((modules, "_modules"), (package, "_utils/ckan_deploy")):
        for folder, _, found in os.walk(top):
            under = os.path.relpath(folder, top)
            for file in found:
                called = "/".join(filter(None, [name, "" if under == "." else under, file]))
                if COUNTED.fullmatch(called):
                    with open(os.path.join(folder, file), "rb") as handle:
                        files[called] = handle.read()
    return digest(files)
