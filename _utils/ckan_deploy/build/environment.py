"""
The environment variables of a release: a file that a shell reads and Python, too. It belongs to the release, so they go
back with a rollback. Only root and CKAN's group may read it.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping

from ckan_deploy.releases.site import Site
from ckan_deploy.settings.model import Settings
from ckan_deploy.system import files

NAME = "environment.sh"
# For a script that is in the directory of a release.
SOURCED = f"[ ! -e {NAME} ] || . ./{NAME}"


def of(settings: Settings) -> dict[str, str]:
    """
    Return the variables of the settings, secret ones included.

    settings
        The settings.
    """
    return {**settings.environment, **settings.secrets.environment}


def write(site: Site, directory: str) -> None:
    """
    Write the variables of a release; no file where there are none.

    site
        The site.
    directory
        The directory of the release.
    """
    path, text = os.path.join(directory, NAME), exports(of(site.settings))
    files.try_unlink(path)
    if text:
        files.write(path, text, mode=0o640, group=site.settings.group)


def read(directory: str) -> dict[str, str]:
    """
    Return the variables of a release; none where it has no file, as an older one or a base.

    directory
        The directory of the release.
    """
    text = files.read(os.path.join(directory, NAME))
    return dict(word.split("=", 1) for word in shlex.split(text) if "=" in word)


def exports(variables: Mapping[str, str]) -> str:
    """
    Return lines of sh that set variables.

    variables
        The variables by name.
    """
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
