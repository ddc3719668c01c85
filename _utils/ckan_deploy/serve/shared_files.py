"""
What outlives a release: uploads and sessions, which belong to the user that runs CKAN, all the way down; and the web
assets of all releases, which the web server serves.

That user may be whoever broke into the portal. So ``paths:data`` is root's, what is below is CKAN's, and root goes
there by ``safely`` alone.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
import time
from collections.abc import Iterator
from typing import Any

from ckan_deploy.build import ini
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.ids import ID_PATTERN
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import web_group
from ckan_deploy.system import ownership, safely

# CKAN may live well with what it can only read, such as an archive, or NFS that takes root for nobody.
FIXED = {
    errno.EROFS: "cannot be written to, and stays root's",
    errno.EPERM: "lets root change no owners, and stays root's",
    errno.EACCES: "does not let root in, and stays as it is",
}


def places(site: Site) -> list[str]:
    """
    Return the directories of CKAN's: of the settings, and where options of CKAN say otherwise.

    site
        The site.
    """
    options = ini.options(site)
    names = ("ckan.storage_path", "ckan.webassets.path", "beaker.session.data_dir")
    # The assets of a release are in the release.
    found = {os.path.normpath(str(options[name])) for name in names if os.path.isabs(str(options[name]))}
    return sorted({site.home, *found})


def pending(site: Site) -> dict[str, str]:
    """
    Say what ``prepare`` would do.

    site
        The site.

    Returns ``{path: what}``.
    """
    found = {place: "made" for place in [*places(site), _assets_root(site)] if not os.path.isdir(place)}
    if os.geteuid() == 0 and not _is_ckans(site):
        with (
            _told(f"{site.paths.data} cannot be looked at"),
            contextlib.suppress(FileNotFoundError),
            safely.directory(site.paths.data) as folder,
        ):
            if not ownership.is_roots(os.fstat(folder)):
                found[site.paths.data] = "made root's"
    return found


def prepare(site: Site) -> dict[str, str]:
    """
    Make the directories: ``paths:data`` and the published web assets are root's, the others of the user that runs CKAN.

    site
        The site.

    Returns ``{path: what was done}``. Raises ``FormulaError`` that names a link which that user may have put there,
    and what to type.
    """
    data, owner, done = site.paths.data, _owner(site), pending(site)
    if os.geteuid() == 0 and not _is_ckans(site):
        names = {os.path.relpath(place, data).split("/")[0] for place in [*places(site), _assets_root(site)]}
        with _told(f"{data} cannot be made root's"):
            safely.take(data, sorted(names - {".."}))
    for place in places(site):
        with _told(f"{place} cannot be given to {site.settings.user}"), _unless_shut(place, {}):
            with safely.directory(place, make=True, owner=owner) as folder:
                if owner[0] and os.fstat(folder).st_uid == 0:
                    _hand_over(folder, owner)  # `own` tells of one that stays
    with _told(f"{_assets_root(site)} cannot be made"), safely.directory(data, make=True) as folder:
        if os.geteuid() == 0 and _is_others(folder, "webassets"):
            # Copies, which are made again.
            safely.remove(folder, "webassets")
            done[_assets_root(site)] = "made root's"
        with safely.directory(_assets_root(site), make=True):
            return done


def own(site: Site, path: str = "") -> dict[str, Any]:
    """
    Make the directories, and give what root left in them to the user that runs CKAN.

    Commands that somebody ran as root leave directories that CKAN then cannot write to. Links are not followed: what
    they point to is left as it is, and so is a file of root's that has a second name elsewhere.

    site
        The site.
    path
        The directory of a release, to do the same for what CKAN writes there.

    Returns ``{"given": how many entries, "seconds", "warnings": [sentences]}``; what is on a disk that cannot be
    written to, or lets nobody change owners, is a warning. Raises ``FormulaError`` that names what cannot be given.
    """
    if os.geteuid() != 0:
        return {"given": 0, "seconds": 0.0, "warnings": []}
    begun, owner = time.monotonic(), _owner(site)
    given, fixed = 0, dict[str, str]()
    prepare(site)
    for place in [*places(site), *([os.path.join(path, "run")] if path else [])]:
        with _told(f"{place} cannot be given to {site.settings.user}"), _unless_shut(place, fixed):
            # The directory itself may be a link, to another disk: that is the operator's. Nothing below it is followed.
            with safely.directory(place, make=True, owner=owner) as top:
                given += _give(place, top, owner, fixed)
    warnings = [f"{name} is on a disk that {why}" for name, why in list(fixed.items())[:3]]
    return {"given": given, "seconds": round(time.monotonic() - begun, 2), "warnings": warnings}


def publish(site: Site) -> list[str]:
    """
    Copy the web assets of all releases to where the web server serves them from, under ``paths:data``.

    CKAN builds its bundles of styles and scripts into the release; their names hold a hash of what is in them. So a
    page of the old release finds its own after the switch, and one of the new release on a host before its switch.

    site
        The site.

    Returns the names that are new there. Raises ``FormulaError`` where that directory is a link which somebody else
    than root may have put there.
    """
    user, new, target = _owner(site)[0], list[str](), _assets_root(site)
    with _told(f"{target} cannot be written to"), safely.directory(target, make=True) as there:
        for name, folder, file in _assets(site):
            with contextlib.suppress(OSError):  # built or removed at this very moment, or no plain file
                if _publish(there, name, folder, file, user):
                    new.append(name)
    return sorted(new)


def forget(site: Site) -> list[str]:
    """
    Remove published web assets that no release has any more.

    site
        The site.

    Returns their names. Raises ``FormulaError``, when all the rest is done, for what cannot be removed.
    """
    known, gone, problems = {name for name, _, _ in _assets(site)}, [], []
    root = _assets_root(site)
    with (
        _told(f"{root} cannot be gone through"),
        contextlib.suppress(FileNotFoundError),
        safely.directory(root) as there,
    ):
        for folder, descriptor, entries in safely.walk(there):
            for entry in entries:
                name = os.path.join(folder, entry.name)
                if name not in known and not entry.is_dir(follow_symlinks=False):
                    try:
                        safely.remove(descriptor, entry.name)
                        gone.append(name)
                    except OSError as exc:  # the others go all the same
                        problems.append(f"{root}/{name} cannot be removed ({exc.strerror})")
    if problems:
        raise FormulaError("; ".join(problems))
    return gone


def own_run(site: Site, path: str) -> None:
    """
    Make the directory ``run`` of a release, for its socket and what else CKAN writes: it belongs to CKAN's user, and
    the group of the web server may enter it. What is made there, such as the socket, is of that group.

    site
        The site.
    path
        The directory of the release.

    Raises ``FormulaError`` when it cannot be made.
    """
    place, owner = os.path.join(path, "run"), _owner(site)
    with _told(f"{place} cannot be given to {site.settings.user}"):
        with safely.directory(place, make=True, owner=owner) as folder:
            if os.geteuid() == 0 and os.fstat(folder).st_uid == 0:
                os.fchown(folder, *owner)
            if os.geteuid() == 0 and (group := web_group.number(site)) is not None:
                os.fchown(folder, -1, group)
                os.fchmod(folder, 0o2750)


def clear_log(site: Site, path: str) -> None:
    """
    Take away what is no file of root's in place of a log: supervisor, which is root, writes there.

    site
        The site.
    path
        The log.

    Raises ``FormulaError`` when the directory of logs cannot be made.
    """
    name = os.path.basename(path)
    with _told(f"{site.paths.log} cannot be made"), safely.directory(site.paths.log, make=True) as folder:
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            plain = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
            # A directory leads nowhere: supervisor says that it cannot write there.
            if not (plain and ownership.is_roots(status)) and not stat.S_ISDIR(status.st_mode):
                safely.remove(folder, name)


def exposed(site: Site) -> list[str]:
    """
    Say which directories of root's the user that runs CKAN, or that of builds, may write to, or put others in place of.

    site
        The site.

    Returns a list of sentences, empty when all is well.
    """
    if os.geteuid() != 0:
        return []
    paths, found = site.paths, {}
    roots = (paths.releases, paths.shared, paths.config, paths.log, paths.backups, paths.supervisor_programs)
    files = {"nginx": (paths.nginx_site,), "apache": (paths.apache_site,)}.get(site.settings.web.server, ())
    # `paths:data` itself may be CKAN's still; it becomes root's when the files are looked after.
    for place in (*(f"{path}/." for path in roots), paths.data, paths.current, paths.cron, *files):
        for user in dict.fromkeys((site.settings.user, site.settings.build_user)):
            above = "" if user == "root" else ownership.exposed(place, user)
            if above:
                found[above] = (
                    f"{user} may write to {above}, where root works; look for what does not belong there, and type: "
                    f"chown root: {above} && chmod 755 {above}"
                )
    return list(found.values())


def _assets_root(site: Site) -> str:
    return os.path.join(site.paths.data, "webassets")


def _is_ckans(site: Site) -> bool:
    """Whether an option makes ``paths:data`` itself, or what it is in, a directory of CKAN's."""
    return any(f"{site.paths.data}/".startswith(f"{place}/") for place in places(site))


def _is_others(folder: int, name: str) -> bool:
    """Whether a name in a directory stands for something else than a directory of root's, or a link of root's."""
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    link = stat.S_ISLNK(status.st_mode) and ownership.is_roots(os.fstat(folder))
    return status.st_uid != 0 or not (stat.S_ISDIR(status.st_mode) or link)


def _owner(site: Site) -> tuple[int, int]:
    """The numbers of the user that runs CKAN and of its group; without root those of whoever runs this."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    try:
        return pwd.getpwnam(site.settings.user).pw_uid, grp.getgrnam(site.settings.group).gr_gid
    except KeyError as exc:
        raise FormulaError(f"there is no such user or group ({exc}); run state.apply ckan first") from exc


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Make a sentence of what the system says; of a file that it names, about that file."""
    try:
        yield
    except OSError as exc:
        place, _, rest = what.partition(" cannot ")
        raise FormulaError(
            f"{exc.filename or place} cannot {rest} ({exc.strerror}); correct its owner, or make room"
        ) from exc


@contextlib.contextmanager
def _unless_shut(place: str, fixed: dict[str, str]) -> Iterator[None]:
    """Note a place of CKAN's that is there and does not let root in: root is nobody on that disk."""
    try:
        yield
    except PermissionError as exc:
        if exc.errno != errno.EACCES or not os.path.isdir(place):
            raise
        fixed[place] = FIXED[exc.errno]


def _hand_over(folder: int, owner: tuple[int, int]) -> str:
    """Give a directory to its owner; returns why it stays root's, '' where it does not."""
    try:
        os.fchown(folder, *owner)
    except OSError as exc:
        if exc.errno not in FIXED:
            raise
        return FIXED[exc.errno]
    return ""


def _give(place: str, top: int, owner: tuple[int, int], fixed: dict[str, str]) -> int:
    """Give what is root's from a directory down to its owner; ``fixed`` gets what cannot be changed, and why."""
    given = 0
    if owner[0] == 0:
        return 0
    if os.fstat(top).st_uid == 0:
        if why := _hand_over(top, owner):
            fixed[place] = why
        else:
            given += 1

    def shut(name: str) -> None:
        fixed[os.path.join(place, name)] = FIXED[errno.EACCES]

    for folder, descriptor, entries in safely.walk(top, shut=shut):
        for entry in entries:
            try:
                if entry.stat(follow_symlinks=False).st_uid == 0:
                    given += safely.give(descriptor, entry.name, *owner)
            except FileNotFoundError:
                continue  # the site that runs removes files, too
            except OSError as exc:
                exc.filename = os.path.join(place, folder, entry.name)
                if exc.errno not in FIXED:
                    raise
                fixed[exc.filename] = FIXED[exc.errno]
    return given


def _releases(site: Site) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return sorted(name for name in os.listdir(site.paths.releases) if ID_PATTERN.fullmatch(name))
    return []


def _assets(site: Site) -> Iterator[tuple[str, int, str]]:
    """
    The web assets of all releases: the name below their directory, the descriptor of the directory that the file is in,
    and its name there. Where CKAN's user has put a link, CKAN itself serves what is not published.
    """
    for release in _releases(site):
        place = ini.assets(os.path.join(site.paths.releases, release))
        with contextlib.suppress(FormulaError, OSError), safely.directory(place) as top:
            for folder, descriptor, entries in safely.walk(top):
                entries[:] = [entry for entry in entries if not entry.name.startswith(".")]
                for entry in entries:
                    if not entry.is_dir(follow_symlinks=False):
                        yield os.path.join(folder, entry.name), descriptor, entry.name


def _publish(there: int, name: str, folder: int, file: str, user: int) -> bool:
    """Copy a web asset of a release, unless that was done; returns whether it is new."""
    with contextlib.ExitStack() as stack:
        for part in name.split("/")[:-1]:
            there = safely.make(there, part)
            stack.callback(os.close, there)
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISREG(os.stat(file, dir_fd=there, follow_symlinks=False).st_mode):
                return False
        with safely.plain(folder, file) as source:
            status = os.fstat(source.fileno())
            # A second name of what CKAN's user may not read is not published.
            if status.st_uid == user or (status.st_uid == 0 and status.st_nlink == 1):
                safely.copy(source, there, file)
                return True
    return False
