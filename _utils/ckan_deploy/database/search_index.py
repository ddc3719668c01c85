"""
The search index of a portal, and whether it fits the release that is served: rebuilt where datasets are indexed in
another way than by the release that filled it.

``probe`` asks CKAN, and has it rebuild the index; ``ckan/files/search.py`` does both inside the release.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckan_deploy.database import probe
from ckan_deploy.errors import FormulaError, InvalidArgument
from ckan_deploy.releases import stage
from ckan_deploy.releases.manifest import Manifest
from ckan_deploy.releases.site import Site


def rebuild(site: Site, release: str, force: bool = False, by: str = "", job: str = "") -> dict[str, Any]:
    """
    Rebuild the search index where the current release indexes datasets in another way than the one that filled it.
    The portal stays as it is meanwhile: nothing is emptied.

    site
        The site.
    release
        The id of the live release.
    force
        Rebuild it all the same.
    by, job
        Who asked, and the run of the master that this belongs to.

    Returns ``{"rebuilt": bool, "index": what the index is made of, "why", "datasets", "indexed", "seconds",
    "warnings"}``. Raises ``InvalidArgument`` for what is no release, ``FormulaError`` with what CKAN says.
    """
    path = site.releases.directory(release)
    with stage.running(site, "index", release, by, job) as warned:
        manifest = site.releases.read(release)
        wanted = manifest.check.get("index", {})
        changed, made_of = differs(site, manifest)
        why = "it was asked for" if force else changed
        if not why:
            return {"rebuilt": False, "index": wanted, "why": "nothing has changed", "warnings": warned}
        if site.settings.search.rebuild == "skip" and not force:
            warned.append(f"{why}: rebuild the search index with: ckan_index.rebuild {release} force=True")
            return {"rebuilt": False, "index": made_of, "why": "ckan:search:rebuild is skip",
                    "warnings": warned}  # fmt: skip
        try:
            done = probe.rebuild_index(site, path)
        except FormulaError:
            # The next release sees that it is still to be done.
            site.releases.set_state(release, manifest.state, by, index=made_of)
            raise
        return {"rebuilt": True, "index": wanted, "why": why, **done, "warnings": warned}


def differs(site: Site, manifest: Manifest) -> tuple[str, Mapping[str, Any]]:
    """
    Say why the index must be rebuilt for a release.

    site
        The site.
    manifest
        The manifest of the release.

    Returns ``(why, made_of)``: ``''`` where nothing has changed or where that is not known, and what the index is made
    of now, as ``probe.check`` says it.
    """
    wanted = manifest.check.get("index") or {}
    before = site.releases.find(manifest.came_after)
    made_of: Mapping[str, Any] = (before.index or before.check.get("index") or {}) if before else {}
    if not made_of or not wanted or made_of == wanted:
        return "", made_of
    parts = [name for name in ("ckan", "schema") if made_of[name] != wanted[name]]
    plugins = {*made_of["plugins"].items()} ^ {*wanted["plugins"].items()}
    changed = [*parts, *sorted({name for name, _ in plugins})]
    return f"{', '.join(changed)} changed how datasets are indexed", made_of


def checked(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """
    Return what the index is said to be made of, where that can be.

    given
        What ``rebuild`` returned as ``index`` on some host; {} for what is not known.

    Raises ``InvalidArgument`` for anything else: the next release is compared with it.
    """
    plugins = given.get("plugins")
    texts = [given.get("ckan"), given.get("schema"), *(plugins.values() if isinstance(plugins, Mapping) else [None])]
    if given and not all(isinstance(text, str) for text in texts):
        raise InvalidArgument("that is not what an index is made of; take what ckan_index.rebuild returned as index.")
    return given
