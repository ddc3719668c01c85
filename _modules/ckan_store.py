"""
The release store: the ``releases`` directory, its manifests, the ``current`` link and the log.

A release is a directory under ``paths["releases"]`` that holds a manifest, ``release.json``. The symlink ``current``
alone says which release is served; the manifest says what happened to a release. Order is by release id, never by
file times. A directory without a readable manifest is not ours: it is never listed, never removed, never a target.

Every function takes ``paths``, the dictionary of that name from ``ckan_settings``. Nothing here knows how a release
is built or served.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from salt.exceptions import CommandExecutionError, SaltInvocationError

log = logging.getLogger(__name__)

__virtualname__ = "ckan_store"

ID_FORMAT = "%Y%m%d%H%M%SZ"
ID_PATTERN = re.compile(r"^[0-9]{14}Z$")
MANIFEST = "release.json"

# What may follow what. A live release fails when a deploy is taken back after its switch.
TRANSITIONS = {
    "building": {"built", "failed"},
    "built": {"checked", "failed"},
    "checked": {"live", "failed"},
    "live": {"retired", "bad", "failed"},
    "retired": {"live", "bad"},
    "bad": {"live"},
    "failed": set(),
}
# The states of a release that has served the site and may do so again.
GOOD = ("live", "retired")


def __virtual__() -> str:
    return __virtualname__


def now() -> str:
    """
    Return the present time as manifests record it: UTC, ISO 8601, whole seconds.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_store.now
    """
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def check_id(release: Any) -> str:
    """
    Return ``release`` when it is a release id.

    release
        The id to look at, text of the form ``YYYYMMDDhhmmssZ``.

    Raises ``SaltInvocationError`` for anything else, so that no path is ever made from an odd id.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_store.check_id 20261125021500Z
    """
    if not isinstance(release, str) or not ID_PATTERN.match(release):
        raise SaltInvocationError(
            f"{release!r} is not a release id; give a UTC stamp such as 20261125021500Z "
            "(ckan_release.list shows the ones there are)."
        )
    return release


def directory(paths: dict, release: str) -> str:
    """
    Return the directory of a release.

    paths
        The ``paths`` of the settings.
    release
        A release id.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_store.directory '{releases: /usr/lib/ckan/releases}' 20261125021500Z
    """
    return os.path.join(paths["releases"], check_id(release))


def create(paths: dict, release: str, **fields: Any) -> dict:
    """
    Make the directory of a new release with a manifest in state ``building``, and return the manifest.

    The manifest is there before anything else, so that a build that is killed leaves a directory known as ours.

    paths
        The ``paths`` of the settings.
    release
        The id of the new release.
    fields
        What else the manifest holds from the start.

    Raises ``CommandExecutionError`` when the release exists already.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_store.create '{releases: /usr/lib/ckan/releases}' 20261125021500Z
    """
    path = directory(paths, release)
    try:
        os.makedirs(paths["releases"], exist_ok=True)
        os.mkdir(path, 0o755)
    except FileExistsError:
        raise CommandExecutionError(
            f"release {release} exists already in {paths['releases']}; wait a second and deploy again."
        ) from None
    manifest = {"id": release, "state": "building", "created": now(), "events": []}
    manifest.update(fields)
    _note(manifest, "building", fields.get("by", ""), "")
    write(paths, manifest)
    return manifest


def write(paths: dict, manifest: dict) -> None:
    """
    Write a manifest so that a reader, or a machine that loses power, sees the old one or the new one.

    paths
        The ``paths`` of the settings.
    manifest
        The whole manifest; ``id`` names the release.

    CLI Example: not for the command line; use ``ckan_release.show`` to read one.
    """
    _write_atomically(
        os.path.join(directory(paths, manifest["id"]), MANIFEST),
        json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n",
    )


def read(paths: dict, release: str) -> dict:
    """
    Return the manifest of a release.

    paths
        The ``paths`` of the settings.
    release
        A release id.

    Raises ``CommandExecutionError`` when there is no such release here.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_store.read '{releases: /usr/lib/ckan/releases}' 20261125021500Z
    """
    manifest = _load(os.path.join(directory(paths, release), MANIFEST))
    if manifest is None or manifest.get("id") != release:
        have = ", ".join(m["id"] for m in all_manifests(paths)) or "none"
        raise CommandExecutionError(f"there is no release {release} on this host; the releases here: {have}.")
    return manifest


def all_manifests(paths: dict) -> list[dict]:
    """
    Return the manifests of all releases, oldest id first.

    paths
        The ``paths`` of the settings.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_store.all_manifests '{releases: /usr/lib/ckan/releases}'
    """
    try:
        names = sorted(name for name in os.listdir(paths["releases"]) if ID_PATTERN.match(name))
    except FileNotFoundError:
        return []
    found = [_load(os.path.join(paths["releases"], name, MANIFEST)) for name in names]
    return [manifest for manifest, name in zip(found, names, strict=True) if manifest and manifest.get("id") == name]


def release_of(paths: dict, path: str) -> str:
    """
    Return the release that a path lies in, ``''`` for none.

    paths
        The settings ``ckan:paths``.
    path
        An absolute path.

    CLI Example: not for the command line.
    """
    releases = paths["releases"]
    return os.path.relpath(path, releases).split("/")[0] if path.startswith(f"{releases}/") else ""


def current(paths: dict) -> str:
    """
    Return the id of the release that ``current`` points to, or ``''`` when it points to none of ours.

    paths
        The ``paths`` of the settings.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_store.current '{current: /usr/lib/ckan/current, releases: /usr/lib/ckan/releases}'
    """
    try:
        target = os.readlink(paths["current"])
    except OSError:
        return ""
    target = os.path.normpath(os.path.join(os.path.dirname(paths["current"]), target))
    name = os.path.basename(target)
    same = os.path.realpath(os.path.dirname(target)) == os.path.realpath(paths["releases"])
    return name if same and ID_PATTERN.match(name) else ""


def point(paths: dict, release: str) -> None:
    """
    Make ``current`` point to a release, in one system call.

    A new link is made beside it and renamed over it, so that a reader never finds the path missing. Salt's
    ``file.symlink`` removes the old link first (saltstack/salt#62768), hence not that.

    paths
        The ``paths`` of the settings.
    release
        The release to point to; its directory must exist.

    Raises ``CommandExecutionError`` when the directory is missing, or ``current`` is not a link.

    CLI Example: not for the command line; use ``ckan_release.activate`` or ``ckan_release.rollback``.
    """
    target = directory(paths, release)
    link = paths["current"]
    if not os.path.isdir(target):
        raise CommandExecutionError(f"{target} is missing, so {link} was left as it is; deploy again.")
    if os.path.lexists(link) and not os.path.islink(link):
        raise CommandExecutionError(
            f"{link} is not a symbolic link, so nothing was switched; move it away and deploy again."
        )
    _rename_over(link, os.path.relpath(target, os.path.dirname(link)), release)


def foreign_link(paths: dict) -> str:
    """
    Return what ``current`` holds when that is none of our releases, such as the release of another tool; else ``''``.

    paths
        The ``paths`` of the settings.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_store.foreign_link '{current: /usr/lib/ckan/current, releases: /usr/lib/ckan/releases}'
    """
    known = {manifest["id"] for manifest in all_manifests(paths)}
    return os.readlink(paths["current"]) if os.path.islink(paths["current"]) and current(paths) not in known else ""


def restore_link(paths: dict, target: str) -> None:
    """
    Let ``current`` hold again what it held before our first release, or remove it.

    paths
        The ``paths`` of the settings.
    target
        What ``foreign_link`` returned.

    CLI Example: not for the command line; ``ckan_release.abort`` uses it.
    """
    if target:
        _rename_over(paths["current"], target, "before")
    else:
        os.unlink(paths["current"])


def note_adopted(paths: dict, release: str, state: str, **fields: Any) -> dict:
    """
    Write the manifest of a release that something else built, and return it.

    paths
        The ``paths`` of the settings.
    release
        Its id; the directory must exist.
    state
        ``live`` or ``retired``.
    fields
        What else the manifest holds.

    CLI Example: not for the command line; use ``ckan_release.adopt``.
    """
    manifest = {"id": release, "state": state, "created": now(), "events": [], **fields}
    _note(manifest, state, fields.get("by", ""), "adopted")
    write(paths, manifest)
    return manifest


def set_state(paths: dict, release: str, state: str, by: str = "", reason: str = "", **fields: Any) -> dict:
    """
    Move a release to another state, note when and by whom, and return its manifest.

    paths
        The ``paths`` of the settings.
    release
        A release id.
    state
        The new state: ``built``, ``checked``, ``live``, ``retired``, ``bad`` or ``failed``.
    by
        Who asked for it.
    reason
        Why, in a line.
    fields
        What else to record in the manifest.

    Raises ``CommandExecutionError`` when the release is not in a state that the new one may follow.

    CLI Example: not for the command line.
    """
    manifest = read(paths, release)
    if manifest["state"] != state:
        if state not in TRANSITIONS.get(manifest["state"], ()):
            raise CommandExecutionError(
                f"release {release} is {manifest['state']}, so it cannot become {state}; "
                "see ckan_release.list, and deploy a new release."
            )
        manifest["state"] = state
        _note(manifest, state, by, reason)
    manifest.update(fields)
    write(paths, manifest)
    return manifest


def remove(paths: dict, release: str) -> None:
    """
    Remove a release that is not current. The manifest goes last, so an interrupted removal can be finished.

    paths
        The ``paths`` of the settings.
    release
        A release id.

    Raises ``CommandExecutionError`` when the release is current or has no manifest.

    CLI Example: not for the command line; use ``ckan_release.prune``.
    """
    if release == current(paths):
        raise CommandExecutionError(f"release {release} is current and was not removed; roll back first.")
    read(paths, release)
    path = Path(directory(paths, release))
    for entry in path.iterdir():
        if entry.name == MANIFEST:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    (path / MANIFEST).unlink()
    path.rmdir()


def rollback_target(manifests: list[dict], current_id: str, to: str = "", force: bool = False) -> str:
    """
    Choose the release that a rollback goes to. Looks at nothing but its arguments.

    manifests
        All manifests of a host.
    current_id
        The release that is current now.
    to
        A release asked for by name; by default the next older one that was live and is not bad.
    force
        Take a named release although it is marked bad.

    Returns the id. Raises ``CommandExecutionError`` when there is none, or the one asked for cannot be one.

    CLI Example: not for the command line; ``ckan_release.rollback`` uses it.
    """
    by_id = {manifest["id"]: manifest for manifest in manifests}
    if to:
        check_id(to)
        if to not in by_id:
            have = ", ".join(sorted(by_id)) or "none"
            raise CommandExecutionError(f"there is no release {to} on this host; the releases here: {have}.")
        if to == current_id:
            raise CommandExecutionError(f"release {to} is current already; name another one.")
        state = by_id[to]["state"]
        if state in GOOD or (state == "bad" and force):
            return to
        if state == "bad":
            why = by_id[to].get("bad_reason") or "no reason given"
            raise CommandExecutionError(
                f"release {to} is marked bad ({why}); name another one, or repeat with force=True."
            )
        raise CommandExecutionError(
            f"release {to} is not complete or never went live (it is {state}); name one that was live."
        )
    older = [i for i, manifest in by_id.items() if i < current_id and manifest["state"] in GOOD]
    if not older:
        raise CommandExecutionError(
            f"there is no release older than {current_id or 'none'} that was live and is not bad, so nothing was "
            "changed; deploy a good release, or name one with to=RELEASE."
        )
    return max(older)


def prunable(manifests: list[dict], current_id: str, keep: int, spare: str = "") -> list[str]:
    """
    Choose the releases that a prune removes. Looks at nothing but its arguments.

    Kept are the ``keep`` newest releases that were live and are not bad, the current one always, and the release
    that a rollback would go to. Releases that failed, were left half-built or are bad never count, and go.

    manifests
        All manifests of a host.
    current_id
        The release that is current.
    keep
        How many good releases to keep.
    spare
        A release to leave alone whatever its state: the candidate of a deploy under way.

    Returns the ids to remove, oldest first.

    CLI Example: not for the command line; ``ckan_release.prune`` uses it.
    """
    good = sorted((m["id"] for m in manifests if m["state"] in GOOD), reverse=True)
    kept = {current_id, spare}
    # The current release may be older than others (after a rollback); it takes one of the places.
    kept.update([i for i in good if i != current_id][: max(keep - 1, 0)])
    kept.update([i for i in good if i < current_id][:1])
    return sorted(m["id"] for m in manifests if m["id"] not in kept)


def append_log(paths: dict, **entry: Any) -> None:
    """
    Add a line to the host's deploy log, ``shared/deploy.log`` (one JSON object a line).

    paths
        The ``paths`` of the settings.
    entry
        What happened: ``stage``, ``release``, ``result``, ``seconds``, ``by``, ``reason``.

    CLI Example: not for the command line; ``ckan_release.history`` reads the log.
    """
    os.makedirs(paths["shared"], exist_ok=True)
    line = json.dumps({"at": now(), **entry}, sort_keys=True, ensure_ascii=False) + "\n"
    # One write call in append mode: lines of two processes do not mix.
    fd = os.open(os.path.join(paths["shared"], "deploy.log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
    try:
        os.write(fd, line.encode("utf-8"))
    finally:
        os.close(fd)


def read_log(paths: dict, limit: int = 50) -> list[dict]:
    """
    Return the newest entries of the host's deploy log, newest first.

    paths
        The ``paths`` of the settings.
    limit
        How many entries at most.

    CLI Example: not for the command line; use ``ckan_release.history``.
    """
    try:
        lines = Path(paths["shared"], "deploy.log").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    entries = []
    for line in reversed(lines):
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
        if len(entries) >= limit:
            break
    return entries


def _note(manifest: dict, state: str, by: str, reason: str) -> None:
    event = {"state": state, "at": now(), "by": by, "reason": reason}
    manifest.setdefault("events", []).append({k: v for k, v in event.items() if v})


def _load(path: str) -> dict | None:
    try:
        with open(path, encoding="utf-8") as handle:
            manifest = json.load(handle)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        log.warning("%s cannot be read (%s); its directory is left alone.", path, exc)
        return None
    return manifest if isinstance(manifest, dict) and "state" in manifest else None


def _rename_over(link: str, target: str, mark: str) -> None:
    temporary = f"{link}.{mark}.tmp"
    if os.path.lexists(temporary):
        os.unlink(temporary)
    os.symlink(target, temporary)
    os.rename(temporary, link)
    _sync_directory(os.path.dirname(link))


def _write_atomically(path: str, text: str) -> None:
    temporary = f"{path}.tmp"
    if os.path.lexists(temporary):
        os.unlink(temporary)  # of a run that was killed
    # Exclusively: while a release is built its directory is the build user's, who could have put a link there.
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with os.fdopen(fd, "w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fchmod(fd, 0o644)
        os.fsync(fd)
    os.rename(temporary, path)
    _sync_directory(os.path.dirname(path))


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
