"""
Shared files become again what was installed: from another copy on this host, or by an install of their package.

What is there is never written to. A new file is made beside it and renamed, so that the current release, and whatever
runs from it, keeps what it has.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from typing import Any

from attrs import Factory, define, evolve, frozen

from ckan_deploy.build import editable, relocate, sharing, virtualenv
from ckan_deploy.build import installer as installers
from ckan_deploy.build.sharing import Changed, Installed
from ckan_deploy.build.uv_and_pip import Installer
from ckan_deploy.errors import FormulaError, sentence
from ckan_deploy.releases.site import Site
from ckan_deploy.system import files, places


@frozen
class _File:
    """A shared file that has changed: what is known of it, and the trees and the releases that have it."""

    item: Changed
    trees: list[str]
    releases: list[str]

    @property
    def path(self) -> str:
        """Its path in each of them."""
        return self.item.path


@files.usual_modes()
def repair(site: Site) -> dict[str, Any]:
    """
    Bring shared files back to what was installed, in the base, in layers and in all releases but the current one.

    site
        The site.

    Returns ``{"repaired": [paths], "kept": id}``; the latter is the current release where it keeps a change, else ''.
    Raises ``FormulaError``, when all the rest is done, for what cannot be brought back.
    """
    found, current = _files(site), site.releases.current()
    problems: list[str] = []
    compiled: dict[str, set[str]] = {}
    with places.temporary(site.paths.shared, "repair") as work:
        copies = _Copies(site, work)
        for file in found:
            spared = [site.releases.directory(release) for release in file.releases if release != current]
            try:
                _bring_back(file, [*file.trees, *spared], copies)
            except (FormulaError, OSError) as exc:
                problems.append(f"{file.path} cannot be brought back ({sentence(exc).rstrip('.')})")
                continue
            for place in (*file.trees, *spared):
                compiled.setdefault(place, set()).add(_module_folder(file.path))
    for place, folders in compiled.items():
        python = sharing.ready(place).get("python") or virtualenv.home_python(place)
        virtualenv.compile_with(python, place, sorted(folders), skip="")
    left = {item.path for item in sharing.changed(site)}
    done = sorted({file.path for file in found} - left)
    if problems:
        said = f"brought back: {', '.join(done)}; " if done else ""
        raise FormulaError(
            f"{said}{'; '.join(problems)}; install it again by hand, or keep it with: ckan_release.repair accept=True"
        )
    return {"repaired": done, "kept": current if any(current in file.releases for file in found) else ""}


def accept(site: Site) -> list[str]:
    """
    Take shared files as they are now for what was installed.

    site
        The site.

    Returns the paths of those that had changed.
    """
    found = sharing.changed(site)
    for tree in {item.tree for item in found}:
        sharing.note(site.paths.shared, tree)
    return sorted({item.path for item in found})


def _files(site: Site) -> list[_File]:
    found: dict[tuple[str, object], _File] = {}
    for item in sharing.changed(site):
        key = (item.path, item.inode or item.tree)
        if key in found:
            found[key].trees.append(item.tree)
        else:
            # Asked before anything is replaced.
            found[key] = _File(item, [item.tree], sharing.releases_with(site, item))
    return list(found.values())


def _bring_back(file: _File, where: list[str], copies: _Copies) -> None:
    targets = [os.path.join(place, file.path) for place in where]
    if "/__pycache__/" in file.path:
        # It is compiled from its module.
        for target in targets:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(target)
        return
    _put(copies.of(file.item), targets, file.item)


def _module_folder(path: str) -> str:
    folder = os.path.dirname(path)
    return os.path.dirname(folder) if os.path.basename(folder) == "__pycache__" else folder


def _put(source: str, targets: list[str], item: Changed) -> None:
    """Put a copy of a file in the place of others, which share it then."""
    first = ""
    for target in targets:
        draft = f"{target}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)  # of a run that was killed
        try:
            os.link(first or source, draft) if first else _copy(source, draft, item)
        except OSError:
            _copy(source, draft, item)
        os.rename(draft, target)
        first = first or target


def _copy(source: str, draft: str, item: Changed) -> None:
    with open(source, "rb") as handle, open(draft, "xb") as copy:
        shutil.copyfileobj(handle, copy)
        about = os.fstat(handle.fileno())
    os.chmod(draft, about.st_mode & relocate.FAIR)
    # Its bytecode has the time that it was installed at.
    os.utime(draft, ns=(about.st_atime_ns, item.was[2]))


@define
class _Copies:
    """Finds files as they were installed; ``work`` is a directory of ours, ``made`` the packages installed
    there, ``made_again`` the checkouts, by where they are.
    """

    site: Site
    work: str
    made: dict[tuple[str, str], list[str]] = Factory(dict)
    made_again: dict[str, str] = Factory(dict)

    def of(self, item: Changed) -> str:
        """Return the path of a copy of a file. Raises ``FormulaError`` where there is none."""
        have = [*sharing.trees(self.site), *map(self.site.releases.directory, self._releases())]
        for place in have:
            path = os.path.join(place, item.path)
            if _is_it(path, item):
                return path
        if sharing.ready(item.tree):
            return self._again(item)
        if not item.package:
            raise FormulaError("no package says what it was")
        for place in self._installed(item.tree, item.package):
            path = os.path.join(place, item.path)
            if _is_it(path, item):
                return path
        raise FormulaError(f"{item.package.name} {item.package.version} as it can be installed now has another one")

    def _again(self, item: Changed) -> str:
        """A file of a checkout, made again from what the checkout was made from."""
        if item.tree not in self.made_again:
            place = os.path.join(self.work, f"again-{len(self.made_again)}")
            editable.again(item.tree, place)
            self.made_again[item.tree] = place
        path = os.path.join(self.made_again[item.tree], item.path)
        if os.path.isfile(path) and not os.path.islink(path) and os.path.getsize(path) == item.was[1]:
            return path
        raise FormulaError("its checkout as it can be made now has another one")

    def _releases(self) -> list[str]:
        return [manifest.id for manifest in self.site.releases.manifests()]

    def _installed(self, tree: str, package: Installed) -> list[str]:
        """The virtualenvs that have a package anew: from the cache, which may have the change, and without it."""
        key = (package.name, package.version)
        if key not in self.made:
            made = []
            usual = Installer.of(self.site.settings)
            for number, installer in enumerate((usual, self._without_cache(usual))):
                place = os.path.join(self.work, f"{package.name}-{package.version}-{number}")
                with contextlib.suppress(FormulaError):
                    virtualenv.create(place, python=virtualenv.home_python(tree))
                    installers.install(place, [_requirement(tree, package)], installer, no_deps=True)
                    made.append(place)
            self.made[key] = made
        return self.made[key]

    def _without_cache(self, usual: Installer) -> Installer:
        shared = os.path.join(self.work, "shared")
        os.makedirs(shared, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.symlink(usual.wheels, os.path.join(shared, "wheels"))
        return evolve(usual, shared=shared)


def _is_it(path: str, item: Changed) -> bool:
    """Whether a file is as it was installed."""
    try:
        about = os.lstat(path)
    except OSError:
        return False
    if not stat.S_ISREG(about.st_mode) or about.st_ino == item.inode:
        return False
    if item.package:
        return sharing.digest(path) == item.package.digest
    return item.was[1:3] == [about.st_size, about.st_mtime_ns]


def _requirement(tree: str, package: Installed) -> str:
    """What to ask an installer for: the very wheel that a package was installed from, where it is known and there."""
    for folder in virtualenv.site_packages(tree):
        info = os.path.join(folder, f"{package.name}-{package.version}.dist-info", "direct_url.json")
        with contextlib.suppress(ValueError, AttributeError):
            url = str(json.loads(files.read(info, "{}")).get("url", ""))
            if url.startswith("file:///") and url.endswith(".whl") and os.path.isfile(url.removeprefix("file://")):
                return f"{package.name} @ {url}"
    return f"{package.name}=={package.version}"
