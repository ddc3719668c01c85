"""
What outlives a release: uploads and sessions, which belong to the user that runs CKAN, all the way down; and the web
assets of all releases, which the web server serves.
"""

from __future__ import annotations

import contextlib
import glob
import grp
import os
import pwd
import shutil
import stat
import time
from typing import Any

from ckan_deploy.build import ini
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.site import Site


def places(site: Site) -> list[str]:
    """
    Return the directories: of the settings, and where options of CKAN say otherwise.

    site
        The site.
    """
    options = ini.options(site)
    names = ("ckan.storage_path", "ckan.webassets.path", "beaker.session.data_dir")
    # The assets of a release are in the release.
    return sorted({str(options[name]) for name in names if os.path.isabs(str(options[name]))})


def own(site: Site, path: str = "") -> dict[str, Any]:
    """
    Make the directories, and give what root left in them to the user that runs CKAN.

    Commands that somebody ran as root leave directories that CKAN then cannot write to. Links are not followed: what
    they point to is left as it is, and so is a file of root's that has a second name elsewhere.

    site
        The site.
    path
        The directory of a release, to do the same for what CKAN writes there.

    Returns ``{"given": how many entries, "seconds": ...}``. Raises ``FormulaError`` that names what cannot be given.
    """
    begun = time.monotonic()
    if os.geteuid() != 0:
        return {"given": 0, "seconds": 0.0}
    try:
        user, group = pwd.getpwnam(site.settings.user).pw_uid, grp.getgrnam(site.settings.group).gr_gid
    except KeyError as exc:
        raise FormulaError(f"there is no such user or group ({exc}); run state.apply ckan first") from exc
    given = 0
    for place in [*places(site), *([os.path.join(path, "run")] if path else [])]:
        try:
            os.makedirs(place, mode=0o755, exist_ok=True)
            # The directory itself may be a link, to another disk: that is the operator's. Nothing below it is followed.
            given += _give(os.path.realpath(place), user, group)
        except OSError as exc:
            raise FormulaError(
                f"{exc.filename or place} cannot be given to {site.settings.user} ({exc.strerror}); correct its owner"
            ) from exc
    return {"given": given, "seconds": round(time.monotonic() - begun, 2)}


def publish(site: Site) -> list[str]:
    """
    Copy the web assets of all releases to where the web server serves them from, under ``paths:data``.

    CKAN builds its bundles of styles and scripts into the release; their names hold a hash of what is in them. So a
    page of the old release finds its own after the switch, and one of the new release on a host before its switch.

    site
        The site.

    Returns the names that are new there.
    """
    there, new = _assets_root(site), []
    for name, source in sorted(_assets(site).items()):
        target = os.path.join(there, name)
        if not os.path.lexists(target):
            os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
            with contextlib.suppress(OSError):  # built or removed at this very moment, or no plain file
                _copy(source, target)
                new.append(name)
    return new


def forget(site: Site) -> list[str]:
    """
    Remove published web assets that no release has any more.

    site
        The site.

    Returns their names.
    """
    there, known, gone = _assets_root(site), _assets(site), []
    for folder, _, files in os.walk(there):
        for file in files:
            name = os.path.relpath(os.path.join(folder, file), there)
            if name not in known:
                os.unlink(os.path.join(folder, file))
                gone.append(name)
    return gone


def _assets_root(site: Site) -> str:
    return os.path.join(site.paths.data, "webassets")


def _assets(site: Site) -> dict[str, str]:
    """The web assets of all releases: the name below their directory, and a file that holds it."""
    found = {}
    for top in glob.glob(os.path.join(glob.escape(site.paths.releases), "*", "run", "webassets")):
        for folder, folders, files in os.walk(top):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for file in files:
                found[os.path.relpath(os.path.join(folder, file), top)] = os.path.join(folder, file)
    return found


def _copy(source: str, target: str) -> None:
    """Copy a plain file of CKAN's user: a link in its place could lead to what that user may not read."""
    with open(os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as handle:
        if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
            raise OSError(f"{source} is no plain file")
        with open(f"{target}.tmp", "wb") as copy:
            shutil.copyfileobj(handle, copy)
    os.chmod(f"{target}.tmp", 0o644)
    os.rename(f"{target}.tmp", target)


def _give(top: str, user: int, group: int) -> int:
    given = 0
    # By descriptor: a name that is made a link meanwhile cannot lead elsewhere.
    for path, folders, files, folder in os.fwalk(top, follow_symlinks=False):
        for name in [".", *folders, *files]:
            try:
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                elsewhere = status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode)
                if status.st_uid == 0 and user != 0 and not elsewhere:
                    os.chown(name, user, group, dir_fd=folder, follow_symlinks=False)
                    given += 1
            except FileNotFoundError:
                continue  # the site that runs removes files, too
            except OSError as exc:
                exc.filename = os.path.normpath(os.path.join(path, name))
                raise
    return given
