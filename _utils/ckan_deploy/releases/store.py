"""
The release store: the ``releases`` directory, its manifests, and the link ``current``.

A release is a directory that holds a manifest, ``release.json``. The link ``current`` alone says which release is
served; the manifest says what happened to a release. A directory without a readable manifest is not ours: it is never
listed, never removed, never a target. Nothing here knows how a release is built or served.

A release comes into being, and goes, by one rename: it is made as ``.new-ID`` and removed as ``.removed-ID``. So one
that is killed in between leaves no directory that nobody knows; ``leftovers`` finds what it left.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import stat
from typing import Any

from attrs import frozen

from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.ids import ID_PATTERN, check_id, now
from ckan_deploy.releases.manifest import Manifest, event
from ckan_deploy.system import disk, files

log = logging.getLogger(__name__)

MANIFEST = "release.json"
# What a release is called before it has its manifest, and while it is being removed.
_NEW, _REMOVED = ".new-", ".removed-"
_LEFT = re.compile(rf"\.(new|removed)-{ID_PATTERN.pattern}")
# Drafts of files at the top of a release, by ``files.write``.
_DRAFT = re.compile(r"(release\.json|starter|serve\.sh|[A-Za-z0-9_-]+\.ini)\.tmp")


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

        Directory and manifest come into being together, so that a build that is killed leaves a release known as ours.

        release
            The id of the new release.
        about
            What else the manifest holds from the start.

        Raises ``FormulaError`` when the release exists already.
        """
        path, draft = self.directory(release), os.path.join(self.folder, f"{_NEW}{check_id(release)}")
        if os.path.lexists(path):
            raise FormulaError(f"release {release} exists already in {self.folder}; wait a second and deploy again.")
        os.makedirs(self.folder, exist_ok=True)
        if os.path.lexists(draft):
            shutil.rmtree(draft)  # of a run that was killed
        os.mkdir(draft)
        os.chmod(draft, 0o755)
        try:
            manifest = _first(release, "building", "", about)
            files.write(os.path.join(draft, MANIFEST), _text(manifest), durable=True)
            os.rename(draft, path)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        files.sync_directory(self.folder)
        return manifest

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
        return self.write(_first(release, state, reason, about))

    def write(self, manifest: Manifest) -> Manifest:
        """
        Write a manifest so that a reader, or a machine that loses power, sees the old one or the new one.

        manifest
            The whole manifest; returned as it is.
        """
        files.write(os.path.join(self.directory(manifest.id), MANIFEST), _text(manifest), durable=True)
        return manifest

    def read(self, release: str) -> Manifest:
        """
        Return the manifest of a release.

        release
            A release id.

        Raises ``FormulaError`` when there is no such release here.
        """
        manifest = self.find(check_id(release))
        if manifest is None:
            raise FormulaError(f"there is no release {release} on this host; the releases here: {self.named()}.")
        return manifest

    def manifests(self) -> list[Manifest]:
        """Return the manifests of all releases, oldest id first."""
        try:
            names = sorted(name for name in os.listdir(self.folder) if ID_PATTERN.fullmatch(name))
        except FileNotFoundError:
            return []
        return [manifest for name in names if (manifest := self._known(name))]

    def find(self, release: str) -> Manifest | None:
        """
        Return the manifest of a release, None where there is no such release here.

        release
            A release id, or '' for none.
        """
        return self._known(release) if ID_PATTERN.fullmatch(release) else None

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
        """Return the release that ``current`` points to, '' when it points to none of ours (see ``foreign_link``)."""
        name = self.linked()
        return name if name and self._known(name) else ""

    def linked(self) -> str:
        """Return the id that ``current`` points to, whether or not there is such a release; '' for none."""
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
        if problem := self.link_problem():
            raise FormulaError(f"{problem}; nothing was switched.")
        self._rename_over(os.path.relpath(target, os.path.dirname(self.link)), release)

    def link_problem(self) -> str:
        """Say why ``current`` cannot be made to point to a release, and what to type; '' where it can."""
        if not os.path.lexists(self.link) or os.path.islink(self.link):
            return ""
        what = "directory" if os.path.isdir(self.link) else "file"
        return (
            f"{self.link} is a {what} and not a symbolic link, and what is in it is not the formula's; move it away "
            f"(mv {self.link} {self.link}.before)"
        )

    def foreign_link(self) -> str:
        """Return what ``current`` holds when that is none of our releases, such as one of another tool; else ''."""
        return os.readlink(self.link) if os.path.islink(self.link) and not self.current() else ""

    def foreign(self) -> str:
        """Say that ``current`` is a link to none of our releases, '' where it is not."""
        target = self.foreign_link()
        if not target:
            return ""
        name = self.linked()
        there = os.path.lexists(os.path.join(self.folder, name)) if name else os.path.exists(self.link)
        why = "is not there" if not there else "has no readable manifest" if name else "is no release of the formula's"
        return f"{self.link} points to {target}, which {why}"

    def restore_link(self, target: str) -> None:
        """
        Let ``current`` hold again what it held before our first release, or remove it.

        target
            What ``foreign_link`` returned.
        """
        if target:
            self._rename_over(target, "before")
        elif os.path.lexists(self.link):
            os.unlink(self.link)

    def remove(self, release: str) -> None:
        """
        Remove a release that is not current. It is gone for everybody at once, by a rename; then its files are deleted.

        release
            A release id.

        Raises ``FormulaError`` when the release is current or has no manifest, when something is mounted in it (it
        stays as it is then), or when a file cannot be deleted (the rest is gone, and ``leftovers`` has it).
        """
        if release in (self.current(), self.linked()):
            raise FormulaError(f"release {release} is current and was not removed; roll back first.")
        self.read(release)
        path, away = self.directory(release), os.path.join(self.folder, f"{_REMOVED}{release}")
        _refuse_mounts(path)
        try:
            if os.path.lexists(away):
                _delete(away)  # what an earlier removal left
            os.rename(path, away)
        except OSError as exc:
            raise FormulaError(f"release {release} cannot be removed ({exc.strerror}: {exc.filename})") from exc
        files.sync_directory(self.folder)
        _delete(away)

    def leftovers(self) -> list[str]:
        """Return the paths of what a run that was killed left: beginnings of releases, and rests of removed ones."""
        names = sorted(os.listdir(self.folder)) if os.path.isdir(self.folder) else []
        return [os.path.join(self.folder, name) for name in names if _LEFT.fullmatch(name)]

    def sweep(self) -> list[str]:
        """
        Delete what runs that were killed left: of releases, of the link, and drafts of files in releases. Nobody else
        may be at work here.

        Returns what cannot be deleted, a sentence each.
        """
        left = []
        for path in self.leftovers():
            try:
                _refuse_mounts(path)
                _delete(path)
            except FormulaError as exc:
                left.append(str(exc))
        links = re.compile(rf"{re.escape(os.path.basename(self.link))}\.({ID_PATTERN.pattern}|before)\.tmp")
        drafts = [(os.path.dirname(self.link), links, os.path.islink)]
        drafts += [(self.directory(manifest.id), _DRAFT, os.path.isfile) for manifest in self.manifests()]
        for folder, pattern, kind in drafts:
            for path in files.matching(folder, pattern):
                if kind(path):
                    files.try_unlink(path)
        return left

    def _known(self, name: str) -> Manifest | None:
        """The manifest in a directory, where it is that of a release of this name."""
        manifest = _load(os.path.join(self.folder, name, MANIFEST))
        return manifest if manifest and manifest.id == name else None

    def _rename_over(self, target: str, mark: str) -> None:
        temporary = f"{self.link}.{mark}.tmp"
        if os.path.lexists(temporary):
            os.unlink(temporary)
        os.symlink(target, temporary)
        os.rename(temporary, self.link)
        files.sync_directory(os.path.dirname(self.link))


def _first(release: str, state: str, reason: str, about: dict[str, Any]) -> Manifest:
    manifest = Manifest(id=release, state=state, created=now(), **about)
    return manifest.became(state, events=(event(state, manifest.by, reason),))


def _text(manifest: Manifest) -> str:
    return json.dumps(manifest.to_json(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _refuse_mounts(path: str) -> None:
    """A removal would empty what is mounted in it, and that is not of the release."""
    mounted = disk.mounts_below(path)
    if mounted:
        raise FormulaError(f"{path} was not removed, since {mounted[0]} is mounted in it; type: umount {mounted[0]}")


def _delete(path: str) -> None:
    """Delete a tree as far as that can be done."""
    problems: list[str] = []

    def note(_function: object, file: str, about: tuple[type[BaseException], BaseException, object]) -> None:
        problems.append(f"{getattr(about[1], 'strerror', about[1])}: {file}")

    try:
        shutil.rmtree(path, onerror=note)
    except RecursionError:
        files.remove_tree(path)  # CKAN's user may have nested it deeply
    if os.path.lexists(path):
        why = problems[0] if problems else "somebody writes into it"
        raise FormulaError(
            f"{path} is of a removed release and cannot be deleted ({why}); correct that, the next run deletes it"
        )


def _load(path: str) -> Manifest | None:
    try:
        # Not through a link, and not from what never ends.
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), encoding="utf-8") as handle:
            if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
                raise OSError("no plain file")
            content = json.load(handle)
        return Manifest.of(content) if isinstance(content, dict) and "state" in content else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, FormulaError) as exc:
        log.warning("%s cannot be read (%s); its directory is left alone.", path, exc)
        return None
