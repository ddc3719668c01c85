"""
What differs between two releases, or between a release and what the next one would hold. Looks at manifests, and at the
mirrors of git for the commits in between.
"""

from __future__ import annotations

__virtualname__ = "ckan_diff"

# A list in a plan is for people: what is longer is counted.
SHOWN = 10
# Where CKAN looks for the migrations of a plugin.
MIGRATIONS = "*/migration/*/versions/*.py"


def __virtual__() -> str:
    return __virtualname__


def compare(old: dict, new: dict, mirrors: str) -> dict:
    """
    Compare two manifests, or a manifest and the contents that ``ckan_build.resolve`` decided.

    old, new
        The two; an empty dictionary stands for nothing.
    mirrors
        The directory of the mirrors of git origins.

    Returns ``{"base": {"old", "new"} or {}, "extensions": {name: {"change", "old", "new", "commits", "dropped"}},
    "packages": {name: {"old", "new"}}, "patches": {"added": [...], "removed": [...], "changed": [...]},
    "plugins": {"added": [...], "removed": [...]}}``. What is the same is left out.

    CLI Example: not for the command line; use ``ckan_release.diff``.
    """
    bases = [f"CKAN {side['base']['ckan']} on Python {_short(side['base'])}" if side else "" for side in (old, new)]
    patches = [_patches(side) for side in (old, new)]
    plugins = [side.get("plugins", []) for side in (old, new)]
    return {
        "base": {} if bases[0] == bases[1] else {"old": bases[0], "new": bases[1]},
        "extensions": _extensions(old.get("extensions", {}), new.get("extensions", {}), mirrors),
        "packages": _versions(_packages(old), _packages(new)),
        "patches": {
            "added": sorted(patches[1].keys() - patches[0].keys()),
            "removed": sorted(patches[0].keys() - patches[1].keys()),
            "changed": sorted(n for n in patches[0].keys() & patches[1].keys() if patches[0][n] != patches[1][n]),
        },
        "plugins": {
            "added": [name for name in plugins[1] if name not in plugins[0]],
            "removed": [name for name in plugins[0] if name not in plugins[1] and "plugins" in new],
        },
    }


def sentences(difference: dict, contents: dict) -> list[str]:
    """
    Put a difference into words, and what an operator should know of the contents.

    difference
        What ``compare`` returned.
    contents
        What ``ckan_build.resolve`` decided.

    Returns a list of sentences without full stop.

    CLI Example: not for the command line; ``ckan_release.plan`` uses it.
    """
    said = []
    if difference["base"].get("old"):
        said.append(f"base: {difference['base']['old']} becomes {difference['base']['new']}")
    for name, change in difference["extensions"].items():
        subjects = [f"{len(change['commits'])} commits"] if len(change.get("commits", [])) > SHOWN else [
            commit["subject"] for commit in change.get("commits", [])
        ]  # fmt: skip
        more = f" ({'; '.join(subjects)})" if subjects else ""
        less = f", {len(change['dropped'])} commits of before are not in it" if change.get("dropped") else ""
        said.append(
            f"{name} {change['change']}: {' -> '.join(filter(None, (change['old'], change['new'])))}{more}{less}"
        )
    for name, pin in contents["extensions"].items():
        if pin.get("moved_from"):
            said.append(f"tag {pin['ref']} of {name} moved from {pin['moved_from'][:12]} to {pin['commit'][:12]}")
        behind = pin.get("upstream", {}).get("behind")
        if behind:
            said.append(f"{name} is {behind} commits behind its upstream")
        said += [
            f"{patch['patch']} is in {name} already and is skipped"
            for patch in pin.get("patches", [])
            if patch.get("result") == "already applied"
        ]
    for name, how in contents["overridden"].items():
        said.append(f"{how['by']} overrides {name}: {how['got']} in place of {how['base'] or 'none'}")
    packages = [_package(name, change) for name, change in difference["packages"].items()]
    if difference["base"] and not difference["base"]["old"]:
        packages = []  # a first release: all of them are new
    if packages:
        more = f" and {len(packages) - SHOWN} more" if len(packages) > SHOWN else ""
        said.append(f"packages: {', '.join(packages[:SHOWN])}{more}")
    for kind, names in difference["patches"].items():
        said += [f"patch {name} {kind}" for name in names]
    return said


def migrations(old: dict, new: dict, mirrors: str) -> list[str]:
    """
    Say which changes may bring migrations of the database, as far as that can be told before the check.

    old
        The manifest of the release before; an empty dictionary for none.
    new
        What ``ckan_build.resolve`` decided.
    mirrors
        The directory of the mirrors of git origins.

    Returns a list of sentences without full stop.

    CLI Example: not for the command line; ``ckan_release.plan`` uses it.
    """
    said = []
    if old and old["base"]["ckan"] != new["base"]["ckan"]:
        said.append(f"migrations: those of CKAN between {old['base']['ckan']} and {new['base']['ckan']}")
    for name, pin in sorted(new["extensions"].items()):
        was = old.get("extensions", {}).get(name, {})
        if "commit" in pin and was.get("commit") != pin["commit"]:
            before = was.get("commit", "") if was.get("url") == pin["url"] else ""
            files = __salt__["ckan_source.added"](pin["url"], before, pin["commit"], mirrors, MIGRATIONS)
            if files:
                names = sorted(file.rpartition("/")[2] for file in files)
                said.append(f"migrations: {', '.join(names)} of {name}")
    return said


def brief(pins: dict) -> dict[str, str]:
    """
    Say in a few words what each extension of a release is.

    pins
        The ``extensions`` of a manifest or of contents.

    Returns ``{extension: "main 0123456789ab" or "1.6.1"}``.

    CLI Example: not for the command line; ``ckan_release.list`` uses it.
    """
    return {name: _what(pin) for name, pin in sorted(pins.items())}


def _what(pin: dict) -> str:
    if pin.get("kind", "git") == "git":
        return pin["commit"][:12] if pin["ref"] == pin["commit"] else f"{pin['ref']} {pin['commit'][:12]}"
    if pin["kind"] == "archive":
        return f"{pin.get('version', '')} ({pin['archive'].rpartition('/')[2]})".strip()
    return pin.get("version") or pin["asked"]


def _extensions(old: dict, new: dict, mirrors: str) -> dict:
    found = {}
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        change = {"old": _what(before) if before else "", "new": _what(after) if after else ""}
        if not before or not after:
            found[name] = {"change": "added" if after else "removed", **change}
        elif _identity(before) != _identity(after):
            found[name] = {"change": "changed", **change}
            if before.get("url") == after.get("url") and "commit" in before and "commit" in after:
                between = __salt__["ckan_source.log"](after["url"], before["commit"], after["commit"], mirrors)
                if between["known"]:
                    found[name].update(commits=between["ahead"], dropped=between["behind"])
            elif before.get("url") != after.get("url"):
                found[name].update(old_origin=_origin(before), new_origin=_origin(after))
    return found


def _identity(pin: dict) -> tuple:
    """What makes an extension another one: not the name of the ref, but what it stands for."""
    hashes = tuple(patch["sha256"] for patch in pin.get("patches", []))
    return pin.get("url"), pin.get("commit"), pin.get("version"), pin.get("archive"), pin.get("hash"), hashes


def _origin(pin: dict) -> str:
    return pin.get("url") or pin.get("archive") or "the package index"


def _packages(side: dict) -> dict[str, str]:
    """The packages, but for those of checkouts: their commits say more than their versions."""
    pins = side.get("extensions", {})
    checkouts = {name.replace("_", "-").replace(".", "-").lower() for name in pins if "commit" in pins[name]}
    return {name: version for name, version in side.get("packages", {}).items() if name not in checkouts}


def _versions(old: dict, new: dict) -> dict:
    names = sorted(old.keys() | new.keys())
    both = {name: {"old": old.get(name, ""), "new": new.get(name, "")} for name in names}
    return {name: change for name, change in both.items() if change["old"] != change["new"]}


def _patches(side: dict) -> dict[str, str]:
    """All patches of a release by a name that tells what they are for."""
    found = {patch["patch"]: patch["sha256"] for patch in side.get("patches", [])}
    for name, pin in side.get("extensions", {}).items():
        found.update({f"{patch['patch']} ({name})": patch["sha256"] for patch in pin.get("patches", [])})
    return found


def _package(name: str, change: dict) -> str:
    return f"{name} {' -> '.join(filter(None, (change['old'], change['new'] or 'none')))}"


def _short(base: dict) -> str:
    return ".".join(base["python"].split(".")[:2])
