"""What the stage ``check`` asks of a release, and holds the answers against: settings, database, patches."""

from __future__ import annotations

import functools
from typing import Any

from ckan_deploy.build.sandbox import Sandbox
from ckan_deploy.database import backends, compatibility, migration, probe
from ckan_deploy.deploy import options
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.manifest import Manifest
from ckan_deploy.releases.site import Site
from ckan_deploy.sources import seen
from ckan_deploy.system import beside


def ask(site: Site, path: str) -> tuple[dict[str, Any], list[str]]:
    """
    Boot the CKAN of a release, and ask what is behind it meanwhile.

    site
        The site.
    path
        The directory of the release.

    Returns what ``probe.check`` returns, with ``backends``, and remarks. Raises ``FormulaError``.
    """
    with beside.running(functools.partial(probe.check, site, path)) as booting:
        # First: it names the setting of what does not answer, and a boot only trips over it.
        behind = _behind(site, path)
        return {**booting.result(), "backends": behind.versions}, list(behind.remarks)


def compare(site: Site, manifest: Manifest, result: dict[str, Any], served: bool, closes: bool) -> None:
    """
    Hold what a release says against settings and database, and add what is to be known to it.

    site
        The site.
    manifest
        The manifest of the release.
    result
        What ``ask`` returned.
    served, closes
        As for ``stages.check``.

    Raises ``FormulaError``.
    """
    result["warnings"] += options.unknown(site, result.get("undeclared", {}), result.get("ckan_version", ""))
    newer = compatibility.unknown(site, result["schema"], served)
    if newer["problem"]:
        raise FormulaError(newer["problem"])
    result["warnings"] += [f"the database is newer in {name}, which was accepted" for name in newer["leave"]]
    if result["pending"]:
        ahead = migration.foresee(site, manifest, result, closes)
        result["maintenance"], result["warnings"] = ahead["maintenance"], result["warnings"] + ahead["warnings"]


def refuse_lost_patches(site: Site, path: str, manifest: Manifest) -> None:
    """
    Refuse a release in which a patch is not where CKAN and its plugins are imported from.

    site
        The site.
    path
        The directory of the release.
    manifest
        Its manifest.

    Raises ``FormulaError``.
    """
    if not manifest.resolution:
        return
    extensions = {name: pin.patches for name, pin in manifest.resolution.extensions.items()}
    sandbox = Sandbox.of(site.settings)
    lost = seen.lost(path, manifest.resolution.patches, extensions, lambda command: sandbox.run(command, [path]))
    if lost:
        raise FormulaError("; ".join(lost) + ".")


def _behind(site: Site, path: str) -> backends.Backends:
    """What is behind CKAN, asked by the very release: a first one could not be asked for at plan by a CKAN."""
    behind = backends.ask(site, path)
    if behind.problems:
        raise FormulaError("; ".join(behind.problems))
    return behind
