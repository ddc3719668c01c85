"""
The release store: the ``releases`` directory, its manifests, and the link ``current``.

A release is a directory that holds a manifest, ``release.json``. The link ``current`` alone says which release is
served; the manifest says what happened to a release. A directory without a readable manifest is not ours: it is never
listed, never removed, never a target. Nothing here knows how a release is built or served.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from attrs import frozen

from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.ids import ID_PATTERN, check_id, now
from ckan_deploy.releases.manifest import Manifest, event
from ckan_deploy.system import files

log = logging.getLogger(__name__)

MANIFEST = "release.json"


@frozen
class Releases:
    """
    The releases of a site on this host.

    folder
        The directory ``releases``.
    link
        The path of the link ``current``.
    """

    folder: str
    link: str

    def directory(self, release: str) -> str:
        """
        Return the directory of a release, which need not exist.

        release
            A release id; ``InvalidArgument`` for anything else.
        """
        return os.path.join(self.folder, check_id(release))

    def create(self, release: str, **about: Any) -> Manifest:
        """
        Make the directory of a new release with a manifest in state ``building``, and return the manifest.

        The manifest is there before anything else, so that a build that is killed leaves a directory known as ours.

        release
            The id of the new release.
        about
            What else the manifest holds from the start.

        Raises ``FormulaError`` when the release exists already.
        """
        path = self.directory(release)
        try:
            os.makedirs(self.folder, exist_ok=True)
            os.mkdir(path, 0o755)
        except FileExistsError:
            raise FormulaError(
                f"release {release} exists already in {self.folder}; wait a second and deploy again."
            ) from None
        return self.note_new(release, "building", "", **about)

    def note_new(self, release: str, state: str, reason: str, **about: Any) -> Manifest:
        """
        Write the first manifest of a release whose directory is there, and return it.

        release
            Its id.
        state
            Its state.
        reason
            Why, for the note of that state.
        about
            What else the manifest holds.
        """
        manifest = Manifest(id=release, state=state, created=now(), **about)
        return self.write(manifest.became(state, events=(event(state, manifest.by, reason),)))

    def write(self, manifest: Manifest) -> Manifest:
        """
        Write a manifest so that a reader, or a machine that loses power, sees the old one or the new one.

        manifest
            The whole manifest; returned as it is.
        """
        text = json.dumps(manifest.to_json(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        files.write(os.path.join(self.directory(manifest.id), MANIFEST), text, durable=True)
        return manifest

    def read(self, release: str) -> Manifest:
        """
        Return the manifest of a release.

        release
            A release id.

        Raises ``FormulaError`` when there is no such release here.
        """
        manifest = _load(os.path.join(self.directory(release), MANIFEST))
        if manifest is None or manifest.id != release:
            raise FormulaError(f"there is no release {release} on this host; the releases here: {self.named()}.")
        return manifest

    def manifests(self) -> list[Manifest]:
        """Return the manifests of all releases, oldest id first."""
        try:
            names = sorted(name for name in os.listdir(self.folder) if ID_PATTERN.fullmatch(name))
        except FileNotFoundError:
            return []
        found = [_load(os.path.join(self.folder, name, MANIFEST)) for name in names]
        return [manifest for manifest, name in zip(found, names, strict=True) if manifest and manifest.id == name]

    def find(self, release: str) -> Manifest | None:
        """
        Return the manifest of a release, None where there is no such release here.

        release
            A release id, or '' for none.
        """
        return next((manifest for manifest in self.manifests() if manifest.id == release), None)

    def named(self) -> str:
        """Return the ids of all releases, for a message."""
        return ", ".join(manifest.id for manifest in self.manifests()) or "none"

    def set_state(self, release: str, state: str, by: str = "", reason: str = "", **changes: Any) -> Manifest:
        """
        Move a release to another state, note when and by whom, and return its manifest.

        release, state, by, reason, changes
            The release; the others as for ``Manifest.became``.

        Raises ``FormulaError`` when the release is not in a state that the new one may follow.
        """
        return self.write(self.read(release).became(state, by, reason, **changes))

    def release_of(self, path: str) -> str:
        """
        Return the release that a path lies in, '' for none.

        path
            An absolute path.
        """
        return os.path.relpath(path, self.folder).split("/")[0] if path.startswith(f"{self.folder}/") else ""

    def current(self) -> str:
        """Return the id of the release that ``current`` points to, '' when it points to none of ours."""
        try:
            target = os.readlink(self.link)
        except OSError:
            return ""
        target = os.path.normpath(os.path.join(os.path.dirname(self.link), target))
        name = os.path.basename(target)
        same = os.path.realpath(os.path.dirname(target)) == os.path.realpath(self.folder)
        return name if same and ID_PATTERN.fullmatch(name) else ""

    def point(self, release: str) -> None:
        """
        Make ``current`` point to a release, in one system call.

        A new link is made beside it and renamed over it, so that a reader never finds the path missing. Salt's
        ``file.symlink`` removes the old link first (saltstack/salt#62768), hence not that.

        release
            The release to point to; its directory must exist.

        Raises ``FormulaError`` when the directory is missing, or ``current`` is not a link.
        """
        target = self.directory(release)
        if not os.path.isdir(target):
            raise FormulaError(f"{target} is missing, so {self.link} was left as it is; deploy again.")
        if os.path.lexists(self.link) and not os.path.islink(self.link):
            raise FormulaError(
                f"{self.link} is not a symbolic link, so nothing was switched; move it away and deploy again."
            )
        self._rename_over(os.path.relpath(target, os.path.dirname(self.link)), release)

    def foreign_link(self) -> str:
        """Return what ``current`` holds when that is none of our releases, such as one of another tool; else ''."""
        known = {manifest.id for manifest in self.manifests()}
        return os.readlink(self.link) if os.path.islink(self.link) and self.current() not in known else ""

    def restore_link(self, target: str) -> None:
        """
        Let ``current`` hold again what it held before our first release, or remove it.

        target
            What ``foreign_link`` returned.
        """
        if target:
            self._rename_over(target, "before")
        else:
            os.unlink(self.link)

    def remove(self, release: str) -> None:
        """
        Remove a release that is not current. The manifest goes last, so an interrupted removal can be finished.

        release
            A release id.

        Raises ``FormulaError`` when the release is current or has no manifest.
        """
        if release == self.current():
            raise FormulaError(f"release {release} is current and was not removed; roll back first.")
        self.read(release)
        path = Path(self.directory(release))
        for entry in path.iterdir():
            if entry.name == MANIFEST:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        (path / MANIFEST).unlink()
        path.rmdir()

    def _rename_over(self, target: str, mark: str) -> None:
        temporary = f"{self.link}.{mark}.tmp"
        if os.path.lexists(temporary):
            os.unlink(temporary)
        os.symlink(target, temporary)
        os.rename(temporary, self.link)
        files.sync_directory(os.path.dirname(self.link))


def _load(path: str) -> Manifest | None:
    try:
        with open(path, encoding="utf-8") as handle:
            content = json.load(handle)
        return Manifest.of(content) if isinstance(content, dict) and "state" in content else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, FormulaError) as exc:
        log.warning("%s cannot be read (%s); its directory is left alone.", path, exc)
        return None
