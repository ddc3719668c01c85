"""
Build once, ship to all: one host packs what it has built, the others make the same release of that. What they need
besides is Python: no base, no git, no compiler, no index.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from ckan_deploy.build import ahead, assembly, layers, packages, packing, relocate, sharing, unpacking, virtualenv
from ckan_deploy.build.sandbox import Sandbox
from ckan_deploy.build.shipment import NAME, Archive, Shipment
from ckan_deploy.build.wheels import Builder
from ckan_deploy.errors import FormulaError, sentence
from ckan_deploy.releases.manifest import Resolution
from ckan_deploy.releases.site import Site
from ckan_deploy.sources import archives
from ckan_deploy.system import facts, files, places

# In a release: the clone of its layer is there, and nothing else yet.
CLONED = ".ckan-cloned.json"
# Below what the master keeps of a minion's files.
FOLDER = "ckan-ship"


def about_host(site: Site) -> dict[str, str]:
    """
    Say what this host is, for whoever compares it with the one that builds.

    site
        The site.
    """
    return facts.of(site.settings.base.python)


def problem(site: Site, builds: bool) -> str:
    """
    Say what keeps archives from being handed over here, '' for nothing.

    site
        The site.
    builds
        Whether this host builds.
    """
    about = site.settings.build
    folder, name = (_outbox(site), "publish" if about.publish else "store") if builds else (about.store, "store")
    if not about.ship or "://" in folder or not folder or os.path.isdir(folder):
        return ""
    return f"there is no directory {folder} (ckan:build:{name}); mount it, or make it"


def pack(site: Site, release: str, with_layer: bool = True) -> Shipment:
    """
    Pack a release that was built here, and its layer, and hand both over to where the other hosts find them.

    site
        The site.
    release
        Its id.
    with_layer
        Hand over the layer, too; False where all the others have it.

    Raises ``FormulaError``.
    """
    path, manifest = site.releases.directory(release), site.releases.read(release)
    if manifest.state != "built" or not manifest.resolution or not manifest.layer or manifest.built_on:
        raise FormulaError(f"release {release} was not just built here (it is {manifest.state}); deploy again.")
    if site.settings.build.only:
        # Nobody else looks: the others do not ask an installer.
        packages.check(path, Builder.of(site, path), tolerate=sorted(manifest.resolution.overridden))
    about = {**about_host(site), "Python": manifest.resolution.base.python}
    shared = site.paths.shared
    with places.temporary(shared, "ship") as work, layers.known(shared, manifest.layer) as layer:
        with _told(f"release {release} cannot be packed"):
            layer_file, packed_layer = _layer_archive(layer, with_layer)
            packed = packing.release(path, layer.path, f"{work}/release")
        made = Shipment(
            site.host.id, about, layer.key, _archive(site, layer.key, packed_layer), layer.path,
            _archive(site, release, packed), path,
        )  # fmt: skip
        _forget_old(site, made)
        if with_layer:
            _hand_over(site, layer_file, made.layer)
        _hand_over(site, f"{work}/release", made.release)
    return made


def clone(site: Site, path: str, key: str) -> None:
    """
    Begin to fill the directory of a new release with the clone of a layer that is here, while another host builds.

    site
        The site.
    path
        The directory of the release; holds its manifest and nothing else.
    key
        The name of the layer.

    Raises ``FormulaError``.
    """
    with layers.known(site.paths.shared, key) as layer:
        cloned, _ = ahead.clone(site, layer, path, {})
    # Last: without it the clone was not finished.
    files.write(os.path.join(path, CLONED), json.dumps({"layer": key, "cloned": cloned}))


def begun(path: str) -> bool:
    """
    Say whether ``clone`` came to its end in the directory of a release.

    path
        The directory.
    """
    return os.path.isfile(os.path.join(path, CLONED))


def receive(site: Site, path: str, resolution: Resolution, shipment: Shipment) -> dict[str, Any]:
    """
    Fill the directory of a new release with what another host has built.

    site
        The site.
    path
        The directory of the release; holds its manifest and nothing else, or what ``clone`` has begun.
    resolution
        What it holds, as the other host has built it.
    shipment
        What that host has packed.

    Returns the fields of the manifest. Raises ``FormulaError``.
    """
    _refuse_another(site, resolution, shipment)
    shared, seconds = site.paths.shared, dict[str, float]()
    with places.temporary(shared, "ship") as work:
        with contextlib.ExitStack() as stack:
            with assembly.timed(seconds, "layer"):
                layer = stack.enter_context(
                    layers.known(shared, shipment.key, lambda place: _unpacked_layer(site, place, shipment, work))
                )
            with assembly.timed(seconds, "clone"):
                cloned = _cloned(site, path, layer)
        with assembly.timed(seconds, "unpack"), _told(f"{shipment.release.name} cannot be unpacked"):
            unpacking.release(_fetched(site, shipment, shipment.release, work), path, shipment.release_path)
    _refuse_unsound(path, shipment)
    assembly.put_lock(path, resolution)
    broken = assembly.broken_plugins(site, path, layer.key, resolution, Sandbox.of(site.settings), seconds)
    return {
        **assembly.fields(site, path, layer, cloned, seconds),
        "resolution": resolution,
        "broken_plugins": broken,
        "built_on": shipment.host,
    }


def _cloned(site: Site, path: str, layer: layers.Layer) -> Mapping[str, float]:
    """What the clone of a layer came to, made here if need be."""
    mark = os.path.join(path, CLONED)
    told = json.loads(files.read(mark, "{}"))
    if told:
        os.unlink(mark)
        if told["layer"] == layer.key:
            return dict(told["cloned"])
        raise FormulaError(
            f"the release was begun with the layer {told['layer']}, and is of {layer.key}; deploy again."
        )
    return ahead.clone(site, layer, path, {})[0]


def _refuse_another(site: Site, resolution: Resolution, shipment: Shipment) -> None:
    differences = facts.differences(about_host(site), shipment.facts)
    if differences:
        raise FormulaError(
            f"this host differs from {shipment.host}, which has built: {', '.join(differences)}; make them alike."
        )
    if set(resolution.extensions) != set(site.settings.extensions):
        raise FormulaError(
            f"the pillar of this host has other extensions than that of {shipment.host}; make them alike."
        )


def _refuse_unsound(path: str, shipment: Shipment) -> None:
    forbidden = {shipment.layer_path, shipment.release_path} - {path}
    # A layer that stood where the one here does is named by nobody any more.
    found = relocate.problems(path, forbidden)
    if found:
        raise FormulaError(f"what {shipment.host} has sent is no sound release: {found[0]}; look into that host.")


def _unpacked_layer(site: Site, place: str, shipment: Shipment, work: str) -> dict[str, str]:
    """Make a layer of its archive; returns its packages."""
    archive = _fetched(site, shipment, shipment.layer, work)
    with _told(f"{shipment.layer.name} cannot be unpacked"):
        unpacking.layer(archive, place, shipment.layer_path)
        os.unlink(archive)
        virtualenv.home_python(place)
        found = relocate.problems(place, {shipment.layer_path})
        if found:
            raise FormulaError(f"what {shipment.host} has sent is no sound layer: {found[0]}; look into that host.")
        sharing.note(site.paths.shared, place)
    return packages.freeze(place)


def _fetched(site: Site, shipment: Shipment, archive: Archive, work: str) -> str:
    """An archive, here, whole and with the right hash; nothing of it was looked at before."""
    source = f"{_source(site, shipment)}/{archive.name}"
    target = os.path.join(work, archive.name)
    with _told(f"{source} cannot be had"):
        if source.startswith("/"):
            _copy(source, target, archive.size)
        else:
            _download(site, source, target, shipment.host)
            _refuse_size(source, os.path.getsize(target), archive.size)
        if archives.digest(target) != archive.sha256:
            raise FormulaError(
                f"{source} is another file than {shipment.host} has packed (its hash differs); deploy again."
            )
    return target


def _copy(source: str, target: str, size: int) -> None:
    """Copy a file out of a directory that others may write to."""
    fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(fd, "rb") as content, open(target, "xb") as copy:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "it is no file", source)
        # One that is larger may be larger than the disk.
        _refuse_size(source, about.st_size, size)
        shutil.copyfileobj(content, copy, 2**20)


def _refuse_size(source: str, size: int, wanted: int) -> None:
    if size != wanted:
        why = "it was cut short" if size < wanted else "it is another one"
        raise FormulaError(f"{source} has {size} bytes instead of {wanted}: {why}; deploy again.")


def _download(site: Site, source: str, target: str, host: str) -> None:
    # What minions have pushed is in that environment, whichever this minion takes its states from.
    address = f"{source}?saltenv=base" if source.startswith("salt://") else source
    try:
        done, why = site.host.download(address, target), "it is not there"
    except FormulaError as exc:
        done, why = "", sentence(exc).rstrip(".")
    if not done or not os.path.isfile(target):
        raise FormulaError(f"{source} cannot be had: {why}; look whether {host} has put it there, and deploy again.")


def _source(site: Site, shipment: Shipment) -> str:
    return site.settings.build.store or f"salt://{shipment.host}/{_pushed(site)}"


def _pushed(site: Site) -> str:
    return f"{FOLDER}/{site.settings.env}/{site.settings.site}"


def _outbox(site: Site) -> str:
    """The directory that archives are put into, '' where Salt takes them."""
    return site.settings.build.publish or site.settings.build.store


def _archive(site: Site, what: str, packed: packing.Packed) -> Archive:
    name = f"{site.settings.env}.{site.settings.site}.{what}.{packed.sha256[:16]}.tar.gz"
    return Archive(name, packed.size, packed.sha256)


def _layer_archive(layer: layers.Layer, needed: bool) -> tuple[str, packing.Packed]:
    """The archive of a layer, made once: it is renamed when it is whole, and what is known of it is written last."""
    archive, note = f"{layer.path}.tar.gz", f"{layer.path}.json"
    with contextlib.suppress(ValueError, TypeError, OSError):
        known = packing.Packed(**json.loads(files.read(note)))
        if _is(archive, known) if needed else os.path.getsize(archive) == known.size:
            return archive, known
    with _draft(archive) as draft:
        packed = packing.layer(layer.path, draft)
    files.write(note, json.dumps(attrs.asdict(packed)), durable=True)
    return archive, packed


@contextlib.contextmanager
def _draft(path: str) -> Iterator[str]:
    """A name to write a file to, which is renamed when it is whole; what is not leaves its room to others."""
    draft = f"{path}.part"
    try:
        files.try_unlink(draft)
        yield draft
        os.rename(draft, path)
    except BaseException:
        files.try_unlink(draft)
        raise


def _is(path: str, packed: packing.Packed) -> bool:
    """Whether a file is what was packed, also after years on a disk."""
    return os.path.getsize(path) == packed.size and archives.digest(path) == packed.sha256


def _hand_over(site: Site, path: str, archive: Archive) -> None:
    """Put an archive where the other hosts find it."""
    folder = _outbox(site)
    if not folder:
        if not site.host.push(path, f"{_pushed(site)}/{archive.name}"):
            raise FormulaError(
                f"the master does not take {archive.name} ({-(-archive.size // 2**20)} MB); its configuration needs "
                f"file_recv: True and a file_recv_max_size of as many MB, or set ckan:build:store."
            )
        return
    target = os.path.join(folder, archive.name)
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.lstat(target).st_mode) and _is(target, packing.Packed(archive.size, archive.sha256)):
            return
    with _told(f"{target} cannot be written"):
        with _draft(target) as draft, open(path, "rb") as source, open(draft, "xb") as copy:
            shutil.copyfileobj(source, copy, 2**20)
            copy.flush()
            os.fchmod(copy.fileno(), 0o644)
            os.fsync(copy.fileno())


def _forget_old(site: Site, made: Shipment) -> None:
    """Remove from a store what nobody will ask for any more: archives of releases, and of layers that are gone."""
    folder, prefix = _outbox(site), f"{site.settings.env}.{site.settings.site}."
    if not folder:
        return
    kept = {*layers.keys(site.paths.shared)} - {made.key}
    with _told(f"{folder} cannot be read"):
        for name in os.listdir(folder):
            known = NAME.fullmatch(name.removesuffix(".part"))
            if not known or not name.startswith(prefix) or name in (made.layer.name, made.release.name):
                continue
            if known["what"] not in kept or name.endswith(".part"):
                files.try_unlink(os.path.join(folder, name))


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
        where = f": {exc.filename}" if exc.filename else ""
        raise FormulaError(
            f"{what} ({exc.strerror}{where}); {'make room' if full else 'correct that'} and deploy again."
        ) from exc
