"""
The search index of a portal, and whether it fits the release that is served: rebuilt where datasets are indexed in
another way than by the release that filled it.

``ckan_app`` asks CKAN, and has it rebuild the index; ``ckan/files/search.py`` does both inside the release.
"""

from __future__ import annotations

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_index"


def __virtual__() -> str:
    return __virtualname__


def rebuild(release: str, force: bool = False, by: str = "", job: str = "") -> dict:
    """
    Rebuild the search index where the current release indexes datasets in another way than the one that filled it.
    The portal stays as it is meanwhile: nothing is emptied.

    release
        The id of the live release.
    force
        Rebuild it all the same.
    by, job
        Who asked, and the run of the master that this belongs to.

    Returns ``{"rebuilt": bool, "index": what the index is made of, "why", "datasets", "indexed", "seconds"}``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_index.rebuild 20261125021500Z force=True
    """
    settings = __salt__["ckan_settings.get"]()
    paths = settings["paths"]
    with __salt__["ckan_stage.running"](settings, "index", release, by, job) as warned:
        manifest = __salt__["ckan_store.read"](paths, release)
        wanted = manifest.get("check", {}).get("index", {})
        changed, made_of = differs(settings, manifest)
        why = "it was asked for" if force else changed
        if not why:
            return {"rebuilt": False, "index": wanted, "why": "nothing has changed", "warnings": warned}
        if settings["search"]["rebuild"] == "skip" and not force:
            warned.append(f"{why}: rebuild the search index with: ckan_index.rebuild {release} force=True")
            return {"rebuilt": False, "index": made_of, "why": "ckan:search:rebuild is skip",
                    "warnings": warned}  # fmt: skip
        try:
            done = __salt__["ckan_app.rebuild_index"](__salt__["ckan_store.directory"](paths, release), settings)
        except CommandExecutionError:
            # The next release sees that it is still to be done.
            __salt__["ckan_store.set_state"](paths, release, manifest["state"], by, index=made_of)
            raise
        return {"rebuilt": True, "index": wanted, "why": why, **done, "warnings": warned}


def differs(settings: dict, manifest: dict) -> tuple[str, dict]:
    """
    Say why the index must be rebuilt for a release.

    settings
        The settings.
    manifest
        The manifest of the release.

    Returns ``(why, made_of)``: ``''`` where nothing has changed or where that is not known, and what the index is made
    of now, as ``ckan_app.check`` says it.

    CLI Example: not for the command line; ``ckan_release.verify`` uses it.
    """
    wanted = manifest.get("check", {}).get("index") or {}
    manifests = __salt__["ckan_store.all_manifests"](settings["paths"])
    before = next((m for m in manifests if m["id"] == manifest.get("came_after")), {})
    made_of = before.get("index") or before.get("check", {}).get("index") or {}
    if not made_of or not wanted or made_of == wanted:
        return "", made_of
    parts = [name for name in ("ckan", "schema") if made_of[name] != wanted[name]]
    plugins = {*made_of["plugins"].items()} ^ {*wanted["plugins"].items()}
    changed = [*parts, *sorted({name for name, _ in plugins})]
    return f"{', '.join(changed)} changed how datasets are indexed", made_of
