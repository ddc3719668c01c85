"""
What outlives a release: uploads, web assets, sessions. They belong to the user that runs CKAN, all the way down.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import time

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_data"


def __virtual__() -> str:
    return __virtualname__


def places(settings: dict) -> list[str]:
    """
    Return the directories: of the settings, and where options of CKAN say otherwise.

    settings
        The settings.

    CLI Example: not for the command line.
    """
    options = __salt__["ckan_ini.options"](settings)
    names = ("ckan.storage_path", "ckan.webassets.path", "beaker.session.data_dir")
    return sorted({str(options[name]) for name in names if os.path.isabs(str(options[name]))})


def own(settings: dict) -> dict:
    """
    Make the directories, and give what root left in them to the user that runs CKAN.

    Commands that somebody ran as root leave directories that CKAN then cannot write to. Links are not followed: what
    they point to is left as it is, and so is a file of root's that has a second name elsewhere.

    settings
        The settings.

    Returns ``{"given": how many entries, "seconds": ...}``. Raises ``CommandExecutionError`` that names what cannot be
    given.

    CLI Example: not for the command line; ``ckan_release.start`` uses it.
    """
    begun = time.monotonic()
    if os.geteuid() != 0:
        return {"given": 0, "seconds": 0.0}
    try:
        user, group = pwd.getpwnam(settings["user"]).pw_uid, grp.getgrnam(settings["group"]).gr_gid
    except KeyError as exc:
        raise CommandExecutionError(f"there is no such user or group ({exc}); run state.apply ckan first") from exc
    given = 0
    for place in places(settings):
        try:
            os.makedirs(place, mode=0o755, exist_ok=True)
            # The directory itself may be a link, to another disk: that is the operator's. Nothing below it is followed.
            given += _give(os.path.realpath(place), user, group)
        except OSError as exc:
            raise CommandExecutionError(
                f"{exc.filename or place} cannot be given to {settings['user']} ({exc.strerror}); correct its owner"
            ) from exc
    return {"given": given, "seconds": round(time.monotonic() - begun, 2)}


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
