"""
The base virtualenv that releases are clones of: the one that the official install made, or one made from a version.

A base that is found is adopted as it is and never changed. One that is made stands under ``shared/bases``, named after
all that it is made from, so that another CKAN version is another base and the releases of the old one keep theirs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from typing import Any

from ckan_deploy.build import packages, sharing, virtualenv
from ckan_deploy.build.packages import Wanted
from ckan_deploy.build.sandbox import Sandbox
from ckan_deploy.build.wheels import Builder
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.manifest import Base
from ckan_deploy.releases.site import Site
from ckan_deploy.system import files, processes, safely

# Written last, so that a base without it was never finished.
DONE = ".ckan-base.json"


def path(site: Site) -> str:
    """
    Return where the base of the settings stands, or will stand.

    site
        The site.

    Raises ``FormulaError`` when ``ckan:base:python`` does not run.
    """
    version = site.settings.base.version
    if not version:
        return site.paths.base
    python = _python_version(site)
    made_from = json.dumps([_requirements(site), python])
    key = hashlib.sha256(made_from.encode("utf-8")).hexdigest()[:8]
    return os.path.join(site.paths.shared, "bases", f"ckan-{version}-py{python}-{key}")


def find(site: Site) -> Base | None:
    """
    Return the base if it is there.

    site
        The site.

    Raises ``FormulaError`` when there is a virtualenv without CKAN.
    """
    place = path(site)
    if not os.path.exists(os.path.join(place, "bin", "python")):
        return None
    if site.settings.base.version and not os.path.exists(os.path.join(place, DONE)):
        return None
    found = describe(place)
    if not found:
        raise FormulaError(
            f"{place} is a virtualenv without CKAN; install CKAN into it, or set ckan:base:version to have one made."
        )
    return found


def describe(place: str) -> Base | None:
    """
    Say what a virtualenv has, None without CKAN.

    place
        The virtualenv.
    """
    found = packages.version(place, "ckan")
    if not found:
        return None
    version = virtualenv.interpreter(place)["version"]
    return Base(found, ".".join(version.split(".")[:2]), place)


def ensure(site: Site) -> Base:
    """
    Return the base, after making it where ``ckan:base:version`` says so.

    site
        The site.

    Raises ``FormulaError`` when there is none and none can be made.
    """
    found = find(site)
    if found:
        return found
    place = path(site)
    if not site.settings.base.version:
        raise FormulaError(
            f"there is no virtualenv in {place}; install CKAN there, or set ckan:base:version to have one made."
        )
    # Before minutes of downloads: some of CKAN's requirements have no wheel, and are built.
    if problem := Sandbox.of(site.settings).problem():
        raise FormulaError(f"{problem}.")
    files.once(place, lambda: _make(place, site), DONE, durable=True)
    made = find(site)
    assert made
    return made


def _make(place: str, site: Site) -> dict[str, Any]:
    virtualenv.create(place, python=site.settings.base.python)
    wanted = [Wanted("base", requirement=item) for item in _requirements(site)]
    packages.install(place, wanted, Builder.of(site, place))
    virtualenv.compile_(place)
    sharing.note(site.paths.shared, place)
    return {"requirements": _requirements(site), "python": _python_version(site)}


def _requirements(site: Site) -> list[str]:
    about = site.settings.base
    server = ["uwsgi"] if site.settings.web.app == "uwsgi" else []
    return [f"ckan[requirements]=={about.version}", *server, *sorted(about.packages)]


def _python_version(site: Site) -> str:
    python = site.settings.base.python
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    if found := shutil.which(python):
        safely.refuse_replaceable(found, "ckan:base:python", "Python")
        done = processes.run([python, "-I", "-c", code])
        if done.retcode == 0:
            return done.stdout.strip()
    raise FormulaError(f"{python} does not run; correct ckan:base:python.")
