"""
The defaults of CKAN's options, as CKAN and extensions declare them in files that come with them. Read as data: nothing
is booted. A default that CKAN computes, and options that are declared in Python, are not known.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from ckan_deploy.system import files

NAME = "config_declaration.yaml"
_TRUE, _FALSE = ("true", "yes", "on", "y", "t", "1"), ("false", "no", "off", "n", "f", "0")


def defaults(tree: str) -> dict[str, Any]:
    """
    Return the defaults of options.

    tree
        A virtualenv with CKAN.

    Returns ``{option: default}``, with None for an option that has none. Files that cannot be read count as absent.
    """
    found: dict[str, Any] = {}
    tree = glob.escape(tree)
    for packages in (f"{tree}/lib/python3*/site-packages", f"{tree}/src/*"):
        for file in [*glob.glob(f"{packages}/ckan/config/{NAME}"), *glob.glob(f"{packages}/ckanext/*/{NAME}")]:
            for option in _options(file):
                if "default_callable" not in option:
                    # As CKAN reads them: a switch that says nothing is off.
                    nothing = False if option.get("type") == "bool" else None
                    found.setdefault(option["key"], option.get("default", nothing))
    return found


def says_nothing(value: str, default: Any) -> bool:
    """
    Say whether an option's value is what CKAN takes without it.

    value
        The value, as an ini has it.
    default
        What ``defaults`` says.
    """
    value = " ".join(value.split())
    if default is None or not value:
        return not default and not value
    if isinstance(default, bool):
        return value.lower() in (_TRUE if default else _FALSE)
    if isinstance(default, (list, tuple)):
        default = " ".join(map(str, default))
    return value == " ".join(str(default).split())


def _options(file: str) -> Iterator[Mapping[str, Any]]:
    """The options that a file declares."""
    try:
        content = yaml.load(files.read(file), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        groups = content["groups"]
        options = [option for group in groups for option in group["options"]]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return
    yield from (option for option in options if isinstance(option, dict) and isinstance(option.get("key"), str))
