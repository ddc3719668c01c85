"""Who may write to what: root alone, or others as well."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat


def is_roots(status: os.stat_result) -> bool:
    """
    Say whether only root may write to something; without root, whoever runs this.

    status
        What the system says of it. A right of others by an ACL shows in the mode of the group.
    """
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022


def exposed(path: str, user: str) -> str:
    """
    Return the first directory above a path in which a user may put something else in place of a part of it, or ''.

    path
        The path, which need not exist; ``path/.`` for one that is counted as well.
    user
        The name of the user.
    """
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return ""
    groups = {entry.pw_gid, *(group.gr_gid for group in grp.getgrall() if user in group.gr_mem)}
    for folder in above(path):
        with contextlib.suppress(OSError):
            status = os.stat(folder)
            mode = status.st_mode
            # In a directory such as /tmp nobody renames what is another's.
            free = not mode & stat.S_ISVTX and (mode & 0o002 or (mode & 0o020 and status.st_gid in groups))
            if status.st_uid == entry.pw_uid or free:
                return folder
    return ""


def name(user: int) -> str:
    """
    Return the name of a user, or words for one that has none.

    user
        The number.
    """
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"the user with the number {user}"


def above(path: str) -> list[str]:
    """
    Return the directories above a path, as it is written and as it leads, from the top down.

    path
        The absolute path.
    """
    found = ["/"]
    for place in (path, os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))):
        parts = place.strip("/").split("/")
        found += ["/" + "/".join(parts[:count]) for count in range(1, len(parts))]
    return list(dict.fromkeys(found))


def is_fixed(path: str) -> bool:
    """
    Say whether only root may put something else in place of what is in a directory and root's.

    path
        The directory. In one such as /tmp nobody renames what is another's.
    """
    status = os.stat(path)
    return is_roots(status) or (status.st_uid == 0 and bool(status.st_mode & stat.S_ISVTX))
