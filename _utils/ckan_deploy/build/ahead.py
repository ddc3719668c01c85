"""
What the next release will have as well, cloned ahead of it.

The end of a deploy waits for the app server before. Meanwhile the layer of the live release is cloned once more, and
its checkouts are put beside it, in ``releases/.ahead``. The next build moves that into its release, and has only what
differs to do. Until then it is nothing but a second copy: whoever has a doubt about it removes it, and the next build
clones the layer itself.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from typing import Any

from ckan_deploy import VERSION
from ckan_deploy.build import base as bases
from ckan_deploy.build import editable, layers, sharing, virtualenv
from ckan_deploy.build.cloning import Copied
from ckan_deploy.build.layers import Layer
from ckan_deploy.build.resolution import prepare
from ckan_deploy.build.wheels import Builder
from ckan_deploy.errors import FormulaError, sentence
from ckan_deploy.releases.manifest import Manifest
from ckan_deploy.releases.site import Site
from ckan_deploy.sources import origins
from ckan_deploy.system import disk, files

log = logging.getLogger(__name__)

# Another one where it is made in another way.
FORMAT = 1
NAME = ".ahead"
# Written last, and removed first: what lacks it is not used.
MARK = ".ckan-ahead.json"


def make(site: Site, manifest: Manifest) -> None:
    """
    Clone ahead what a release has, for the next one; what there is of another one goes. That it fails keeps nobody from
    anything, so it is logged alone.

    Nothing is made where files are not shared, since it would take as much of the disk as a release, nor where the disk
    has less left than ``ckan:disk_free_mb``.

    site
        The site. Nobody else is at work on this host.
    manifest
        The release.
    """
    try:
        forget(site)
        if _is_worth_it(site, manifest):
            _make(site, manifest)
            # Each file has a link more now, and after a prune as many as before: that is nothing to look into.
            sharing.changed(site)
    except (FormulaError, OSError) as exc:
        log.warning("nothing was cloned ahead: %s", sentence(exc))


def clone(
    site: Site, layer: Layer, path: str, ready: Mapping[str, str]
) -> tuple[Mapping[str, float], frozenset[str]]:  # fmt: skip
    """
    Clone the layer of a release: by what was made ahead of it, where that is of this layer.

    site
        The site.
    layer
        The layer, which is held.
    path
        The directory of the release; holds its manifest and nothing else.
    ready
        The checkouts that the release will have: what ``editable.make`` returned, by the name of the extension.

    Returns what ``virtualenv.clone`` does, and the names of the checkouts that are in their places already. Raises
    ``FormulaError``.
    """
    about = _of(site, layer)
    if about:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(_place(site), MARK))
        try:
            copied = Copied.of(about["copied"])
            cloned = virtualenv.complete(layer.path, path, site.settings.link, copied, _place(site))
        except FormulaError as exc:
            log.warning("what was cloned ahead is not used: %s", sentence(exc))
        else:
            put: dict[str, Any] = about["checkouts"]
            there = {name for name, made in put.items() if name in ready and _identity(ready[name]) == made}
            _put_away(site, [os.path.join(path, "src", name) for name in put.keys() - there])
            return cloned, frozenset(there)
    return virtualenv.clone(layer.path, path, link=site.settings.link, leave_out=(layers.DONE,)), frozenset()


def forget(site: Site) -> None:
    """
    Remove what was cloned ahead.

    site
        The site. Nobody else is at work on this host.

    Raises ``OSError`` for what cannot be removed; it is not used any more.
    """
    place = _place(site)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(os.path.join(place, MARK))
    if os.path.lexists(place):
        shutil.rmtree(place)


def _place(site: Site) -> str:
    # Beside the releases: it becomes one by renames.
    return os.path.join(site.paths.releases, NAME)


def _is_worth_it(site: Site, manifest: Manifest) -> bool:
    shared, releases = site.paths.shared, site.paths.releases
    shares = site.settings.link != "copy" and os.stat(shared).st_dev == os.stat(releases).st_dev
    return shares and manifest.layer in layers.keys(shared) and disk.free_mb(releases) >= site.settings.disk_free_mb


def _make(site: Site, manifest: Manifest) -> None:
    place = _place(site)
    with layers.known(site.paths.shared, manifest.layer) as layer, files.usual_modes():
        try:
            copied = virtualenv.begin(layer.path, place, site.settings.link, leave_out=(layers.DONE,))
            put = _put_checkouts(site, manifest, place)
            about = {"made_from": _facts(site, layer), "checkouts": put, "copied": copied.to_json()}
            files.write(os.path.join(place, MARK), json.dumps(about))
        except BaseException:
            forget(site)
            raise


def _put_checkouts(site: Site, manifest: Manifest, place: str) -> dict[str, Any]:
    """Put the checkouts of a release where the next one has them, none that would be made; returns what each was."""
    if manifest.built_on or not manifest.resolution:
        return {}
    pins = {
        name: pin for name, pin in manifest.resolution.extensions.items()
        if name in site.settings.extensions and pin.kind == "git"
        and editable.is_made(origins.place(pin, site.paths.shared), name)
    }  # fmt: skip
    prepared = prepare(site, pins, Builder.of(site, bases.ensure(site).path))
    os.makedirs(os.path.join(place, "src"), mode=0o755, exist_ok=True)
    put = {}
    for item in prepared.values():
        target = os.path.join(place, "src", item.name)
        # The base brought one of its own, which a release without this extension has.
        if item.checkout and not os.path.lexists(target):
            editable.put(item.ready, target, site.settings.link)
            put[item.name] = _identity(item.ready)
    return put


def _put_away(site: Site, checkouts: list[str]) -> None:
    """Take checkouts out of a release. The end of the deploy removes them with what was there before, and has time."""
    away = _place(site)
    if checkouts:
        os.makedirs(away, mode=0o755, exist_ok=True)
    for checkout in checkouts:
        os.rename(checkout, os.path.join(away, os.path.basename(checkout)))


def _of(site: Site, layer: Layer) -> dict[str, Any]:
    """What was made ahead of a layer, as it is now; empty where there is nothing to be used."""
    try:
        about: dict[str, Any] = json.loads(files.read(os.path.join(_place(site), MARK), "{}"))
        return about if about.get("made_from") == _facts(site, layer) else {}
    except (ValueError, AttributeError):
        return {}


def _facts(site: Site, layer: Layer) -> list[Any]:
    """What must be as it was. A power failure may have left files empty that were not on the disk yet."""
    layer_made = _seen(os.path.join(layer.path, layers.DONE))
    return [FORMAT, VERSION, disk.boot_id(), site.settings.link, layer_made]


def _identity(ready: str) -> list[Any]:
    return _seen(os.path.join(ready, sharing.READY))


def _seen(mark: str) -> list[Any]:
    """What tells a finished directory from another one that was made in its place."""
    about = os.stat(mark)
    return [mark, about.st_ino, about.st_mtime_ns]
