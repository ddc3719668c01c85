"""
What a deploy would do on this host, and what stands in its way. Changes nothing that is served.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import shutil
import time

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_plan"

# Settings that take effect without a deploy, or say only how one is made.
NOT_OF_A_RELEASE = (
    "keep", "deploy_group", "disk_free_mb", "manage", "hooks", "installer", "build_user", "link", "git", "aliases",
    "domain", "tls",
)  # fmt: skip
# Settings whose changes are told by what they bring: commits, packages, patches, options of the ini.
TOLD = (
    "extensions", "patches", "base", "config", "plugins", "database", "datastore", "secrets", "site_url", "site_id",
    "solr_url", "redis_url",
)  # fmt: skip


def __virtual__() -> str:
    return __virtualname__


def make(settings: dict, release: str, resolve: bool, job: str = "") -> dict:
    """
    Look whether a deploy could start here, and decide what the release will hold.

    settings
        The settings.
    release
        The id of the release to make.
    resolve
        Ask the origins and resolve the packages; False where another host has been asked already.
    job
        The run of the master that this belongs to.

    Returns what ``ckan_release.plan`` returns. Raises ``CommandExecutionError`` with all that is in the way.

    CLI Example: not for the command line; use ``ckan_release.plan``.
    """
    paths = settings["paths"]
    problems = [__salt__["ckan_lock.busy"](settings), *__salt__["ckan_build.obstacles"](settings, release)]
    if any(problems):
        raise CommandExecutionError("; ".join(filter(None, problems)) + ".")
    current_id = __salt__["ckan_store.current"](paths)
    __salt__["ckan_ini.validate"](settings)
    before = __salt__["ckan_store.read"](paths, current_id) if current_id else {}
    planned = {
        "release": release, "env": settings["env"], "current": current_id, "contents": {}, "extensions": {},
        "changes": [], "own_changes": _own_changes(settings, before), "host": host(settings, release, job),
    }  # fmt: skip
    if resolve:
        contents = __salt__["ckan_build.resolve"](settings)
        _follow_tags(contents["extensions"], before.get("extensions", {}), settings["extensions"])
        mirrors = os.path.join(paths["shared"], "mirrors")
        difference = __salt__["ckan_diff.compare"](before, contents, mirrors)
        planned["contents"] = contents
        planned["extensions"] = __salt__["ckan_diff.brief"](contents["extensions"])
        migrations = __salt__["ckan_diff.migrations"](before, contents, mirrors)
        if migrations and __salt__["ckan_schema.closes"](settings, before, contents, ["core"]):
            migrations.append("visitors get the page of maintenance while the database is migrated")
        planned["changes"] = [*__salt__["ckan_diff.sentences"](difference, contents), *migrations]
    return planned


def ready() -> dict:
    """
    Take the pillar anew for the jobs to come, and say which modules and what time this host has: a run begins with it.

    Returns ``{"modules": hash, "time": seconds since 1970}``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_plan.ready
    """
    # True also when the pillar does not render: the settings look at the outcome.
    __salt__["saltutil.refresh_pillar"](wait=True)
    return {"modules": __salt__["ckan_version.modules"](), "time": time.time()}


def host(settings: dict, release: str, job: str = "") -> dict:
    """
    Say what a fleet must know of this host before it begins.

    settings
        The settings.
    release
        The id of the release that a deploy would make.
    job
        The run of the master that asks.

    Returns ``{"place": what tells the directory of releases from that of another host, "sees_lock": bool, "disk":
    {"free_mb", "needed_mb" or None}, "prunes": [ids]}``.

    CLI Example: not for the command line; use ``ckan_release.plan``.
    """
    paths = settings["paths"]
    manifests, current_id = __salt__["ckan_store.all_manifests"](paths), __salt__["ckan_store.current"](paths)
    before = next((m for m in manifests if m["id"] == current_id), {})
    after = [*manifests, {"id": release, "state": "live"}]
    lock = __salt__["ckan_settings.fleet"]()["lock"]
    return {
        "place": _place(paths["releases"]),
        "sees_lock": bool(lock and lock["job"] == job),
        "disk": {"free_mb": free_mb(paths["releases"]), "needed_mb": before.get("disk_mb")},
        "prunes": __salt__["ckan_store.prunable"](after, release, settings["keep"]),
    }


def missed(settings: dict) -> dict:
    """
    Say whether this host has missed what its environment is on.

    settings
        The settings.

    Returns ``{"release": the one of the environment, "bad": reason}`` where ``current`` names another one, else ``{}``;
    ``bad`` only where that release was rolled back here on purpose.

    CLI Example: not for the command line; a highstate uses it.
    """
    paths, wanted = settings["paths"], __salt__["ckan_settings.fleet"]()["wanted"]
    if not wanted or wanted["release"] == __salt__["ckan_store.current"](paths):
        return {}
    manifests = __salt__["ckan_store.all_manifests"](paths)
    bad = [m.get("bad_reason", "") for m in manifests if m["id"] == wanted["release"] and m["state"] == "bad"]
    return {"release": wanted["release"], **({"bad": bad[0]} if bad else {})}


def free_mb(path: str) -> int:
    """
    Return how much disk is free where a directory is, or is going to be, in MB.

    path
        The directory.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_plan.free_mb /usr/lib/ckan/releases
    """
    return shutil.disk_usage(_existing(path)).free // 2**20


def used_mb(path: str) -> int:
    """
    Return the disk that a release has for itself, in MB: what it shares with others by hard links is not counted.

    path
        The directory of the release.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_plan.used_mb /usr/lib/ckan/releases/20261125021500Z
    """
    blocks = 0
    for folder, _, files in os.walk(path):
        blocks += os.lstat(folder).st_blocks
        statuses = (os.lstat(os.path.join(folder, name)) for name in files)
        blocks += sum(status.st_blocks for status in statuses if status.st_nlink == 1)
    return round(blocks * 512 / 2**20)


def hashes(settings: dict) -> dict[str, str]:
    """
    Return a hash of each part of the settings that a release is made of, to tell later which have changed.

    Keyed with the session secret: nobody can try out what a secret may be.

    settings
        The settings, with their secrets.

    CLI Example: not for the command line, since the settings hold secrets.
    """
    key = settings["secrets"]["session"].encode("utf-8")
    return {
        name: hmac.new(key, json.dumps(value, sort_keys=True).encode("utf-8"), hashlib.sha256).hexdigest()[:16]
        for name, value in settings.items()
        if name not in NOT_OF_A_RELEASE
    }


def _own_changes(settings: dict, before: dict) -> list[str]:
    """What changes by this host's pillar: names of options and of settings, never a value."""
    if not before:
        return ["the first release of this host"]
    path = __salt__["ckan_store.directory"](settings["paths"], before["id"])
    try:
        difference = __salt__["ckan_ini.diff"](path, settings, before.get("secret_options", []))
        said = [f"configuration: {', '.join(options)} {kind}" for kind, options in difference.items() if options]
    except CommandExecutionError as exc:
        said = [f"configuration: not compared, {exc}"]  # the new ini does not need the old one
    was, is_ = before.get("settings"), hashes(settings)
    if not was or was.get("env") != is_["env"]:
        why = "the release of before has no note of them" if not was else "the session secret is another one"
        return [*said, f"settings: not compared, {why}"]
    changed = [name for name in sorted(was.keys() | is_.keys()) if name not in TOLD and was.get(name) != is_.get(name)]
    return [*said, *([f"settings: {', '.join(changed)} changed"] if changed else [])]


def _follow_tags(pins: dict, before: dict, extensions: dict) -> None:
    """Note the tags that stand for another commit than in the release before; refuse those of a locked extension."""
    moved = []
    for name, pin in pins.items():
        was = before.get(name, {})
        if pin.get("ref_kind") != "tag" or (was.get("url"), was.get("ref")) != (pin["url"], pin["ref"]):
            continue
        if was["commit"] != pin["commit"]:
            pin["moved_from"] = was["commit"]
            if extensions[name]["locked"]:
                moved.append(f"tag {pin['ref']} of {name} moved from {was['commit'][:12]} to {pin['commit'][:12]}")
    if moved:
        raise CommandExecutionError(
            f"{'; '.join(moved)}, and the extension is locked; find out why, then take a new tag or locked: false."
        )


def _place(path: str) -> str:
    """A directory by the machine and the file system that it is on, whatever it is called there."""
    existing = _existing(path)
    status = os.stat(existing)
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as handle:
        boot = handle.read().strip()
    return f"{boot} {status.st_dev} {status.st_ino} {os.path.relpath(path, existing)}"


def _existing(path: str) -> str:
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path
