"""
What differs between two releases, or between a release and what the next one would hold. Looks at manifests, and at the
mirrors of git for the commits in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packaging.utils import canonicalize_name

from ckan_deploy.releases.manifest import Base, Resolution
from ckan_deploy.releases.store import Releases
from ckan_deploy.sources import links, repositories
from ckan_deploy.sources.pins import Pin

# A list in a plan is for people: what is longer is counted.
SHOWN = 10
# So many commits of an extension go to the master for the report.
COMMITS = 50
# Where CKAN looks for the migrations of a plugin.
MIGRATIONS = "*/migration/*/versions/*.py"


def compare(
    old: Resolution | None, new: Resolution, mirrors: str,
    plugins: tuple[tuple[str, ...] | None, tuple[str, ...] | None] = (None, None),
) -> dict[str, Any]:  # fmt: skip
    """
    Compare what two releases hold.

    old, new
        The two; None for no release before.
    mirrors
        The directory of the mirrors of git origins.
    plugins
        The plugins of the two; None where they are not known yet.

    Returns ``{"base": {"old", "new"} or {}, "extensions": {name: {"change", "old", "new", "commits", "dropped",
    "why"}}, "packages": {name: {"old", "new"}}, "patches": {"added": [...], "removed": [...], "changed": [...]},
    "overrides": {name: {"by", "base", "got"} or {}}, "plugins": {"added": [...], "removed": [...]}}``. What is the same
    is left out.
    """
    bases = [f"CKAN {side.base.ckan} on Python {_short(side.base)}" if side else "" for side in (old, new)]
    patches = [_patches(side) if side else {} for side in (old, new)]
    before, after = plugins[0] or (), plugins[1] or ()
    return {
        "base": {} if bases[0] == bases[1] else {"old": bases[0], "new": bases[1]},
        "extensions": _extensions(old.extensions if old else {}, new.extensions, mirrors),
        "packages": _versions(_packages(old) if old else {}, _packages(new)),
        "patches": {
            "added": sorted(patches[1].keys() - patches[0].keys()),
            "removed": sorted(patches[0].keys() - patches[1].keys()),
            "changed": sorted(n for n in patches[0].keys() & patches[1].keys() if patches[0][n] != patches[1][n]),
        },
        "overrides": _overrides(old.overridden if old else {}, new.overridden),
        "plugins": {
            "added": [name for name in after if name not in before],
            "removed": [name for name in before if name not in after and plugins[1] is not None],
        },
    }


def sentences(difference: Mapping[str, Any], new: Resolution) -> list[str]:
    """
    Put a difference into words.

    difference
        What ``compare`` returned.
    new
        What the new release holds.

    Returns a list of sentences without full stop.
    """
    said = []
    if difference["base"].get("old"):
        said.append(f"base: {difference['base']['old']} becomes {difference['base']['new']}")
    said += [_extension_changed(name, change) for name, change in difference["extensions"].items()]
    for name, pin in new.extensions.items():
        if pin.moved_from:
            said.append(f"tag {pin.ref} of {name} moved from {pin.moved_from[:12]} to {pin.commit[:12]}")
    said += [_overridden(name, how) for name, how in difference["overrides"].items()]
    packages = [_package(name, change) for name, change in difference["packages"].items()]
    if difference["base"] and not difference["base"]["old"]:
        packages = []  # a first release: all of them are new
    if packages:
        more = f" and {len(packages) - SHOWN} more" if len(packages) > SHOWN else ""
        said.append(f"packages: {', '.join(packages[:SHOWN])}{more}")
    for kind, names in difference["patches"].items():
        said += [f"patch {name} {kind}" for name in names]
    return said


def brief_details(difference: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return what a report shows of a difference: of long lists of commits the newest, and how many there are.

    difference
        What ``compare`` returned.

    Returns ``{"extensions": {name: {"change", "old", "new", "commits": [...], "count"}}, "packages": {name: {"old",
    "new"}}}``; of a first release no packages, since all are new.
    """
    extensions = {
        name: {**change, "commits": change.get("commits", [])[:COMMITS], "count": len(change.get("commits", []))}
        for name, change in difference["extensions"].items()
    }
    first = bool(difference["base"]) and not difference["base"]["old"]
    return {"extensions": extensions, "packages": {} if first else dict(difference["packages"])}


def remarks(new: Resolution) -> list[str]:
    """
    Say what an operator should know of what a release would hold, whether or not that is a change.

    new
        What it would hold.

    Returns a list of sentences without full stop.
    """
    return [remark for name, pin in new.extensions.items() for remark in _remarks(name, pin)]


def migrations(old: Resolution | None, new: Resolution, mirrors: str) -> list[str]:
    """
    Say which changes may bring migrations of the database, as far as that can be told before the check.

    old
        What the release before holds; None for none.
    new
        What the new one will hold.
    mirrors
        The directory of the mirrors of git origins.

    Returns a list of sentences without full stop.
    """
    said = []
    if old and old.base.ckan != new.base.ckan:
        said.append(f"migrations: those of CKAN between {old.base.ckan} and {new.base.ckan}")
    for name, pin in sorted(new.extensions.items()):
        was = old.extensions.get(name) if old else None
        if pin.commit and not (was and was.commit == pin.commit):
            before = was.commit if was and was.url == pin.url else ""
            files = repositories.added(pin.url, before, pin.commit, mirrors, MIGRATIONS)
            if files:
                names = sorted(file.rpartition("/")[2] for file in files)
                said.append(f"migrations: {', '.join(names)} of {name}")
    return said


def brief(pins: Mapping[str, Pin]) -> dict[str, str]:
    """
    Say in a few words what each extension of a release is.

    pins
        The extensions.

    Returns ``{extension: "main 0123456789ab" or "1.6.1"}``.
    """
    return {name: _what(pin) for name, pin in sorted(pins.items())}


def from_current(releases: Releases, new: Resolution | None) -> dict[str, str]:
    """
    Say what ``changed`` says, of a release and the one that is current on this host.

    releases
        The releases on this host.
    new
        What the release holds; None where that is not known.
    """
    now = releases.find(releases.current() or "none")
    return changed(now.resolution if now else None, new)


def changed(old: Resolution | None, new: Resolution | None) -> dict[str, str]:
    """
    Say in a few words which extensions of a release are others than those of another one, and which CKAN.

    old, new
        What the two hold; None where that is not known.

    Returns ``{extension or "ckan": "main 0123456789ab" or "1.6.1" or "removed"}``.
    """
    if not new:
        return {}
    before, after = old.extensions if old else {}, new.extensions
    said = {"ckan": new.base.ckan} if old and old.base.ckan != new.base.ckan else {}
    names = sorted(before.keys() | after.keys())
    return said | {
        name: _what(after[name]) if name in after else "removed"
        for name in names
        if name not in before or name not in after or _identity(before[name]) != _identity(after[name])
    }


def _what(pin: Pin) -> str:
    if pin.kind == "git":
        return pin.commit[:12] if pin.ref == pin.commit else f"{pin.ref} {pin.commit[:12]}"
    if pin.kind == "archive":
        return f"{pin.version} ({pin.archive.rpartition('/')[2]})".strip()
    return pin.version or pin.asked


def _extension_changed(name: str, change: Mapping[str, Any]) -> str:
    commits = change.get("commits", [])
    subjects = [f"{len(commits)} commits"] if len(commits) > SHOWN else [commit["subject"] for commit in commits]
    more = f" ({'; '.join(subjects)})" if subjects else ""
    less = f", {len(change['dropped'])} commits of before are not in it" if change.get("dropped") else ""
    why = "".join(f", {reason}" for reason in change.get("why", []))
    return f"{name} {change['change']}: {' -> '.join(filter(None, (change['old'], change['new'])))}{more}{less}{why}"


def _remarks(name: str, pin: Pin) -> list[str]:
    """What an operator should know of an extension besides."""
    said = []
    behind = (pin.upstream or {}).get("behind")
    if behind:
        said.append(f"{name} is {behind} commits behind its upstream")
    said += [
        f"{patch.patch} is in {name} already and is skipped"
        for patch in pin.patches
        if patch.result == "already applied"
    ]
    return said


def _extensions(old: Mapping[str, Pin], new: Mapping[str, Pin], mirrors: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        change = {"old": _what(before) if before else "", "new": _what(after) if after else ""}
        if not before or not after:
            found[name] = {"change": "added" if after else "removed", **change}
        elif _identity(before) != _identity(after):
            found[name] = {
                "change": "changed",
                **change,
                **_between(before, after, mirrors),
                **_otherwise(before, after),
            }
    return found


def _between(before: Pin, after: Pin, mirrors: str) -> dict[str, Any]:
    """The commits between two pins of one origin; else the two origins."""
    if before.url != after.url:
        return {"old_origin": _origin(before), "new_origin": _origin(after)}
    if before.commit and after.commit:
        between = repositories.log(after.url, before.commit, after.commit, mirrors)
        if between.known:
            return {"commits": _linked(after, between.ahead), "dropped": _linked(after, between.behind)}
    return {}


def _linked(pin: Pin, commits: list[dict[str, str]]) -> list[dict[str, str]]:
    """Commits, each with the page that shows it where the origin's address tells that."""
    pages = [(commit, links.commit_page(pin.url, commit["commit"])) for commit in commits]
    return [{**commit, **({"page": page} if page else {})} for commit, page in pages]


def _otherwise(before: Pin, after: Pin) -> dict[str, list[str]]:
    """What else than its commit makes it another build."""
    why = ["its tags have changed, and so may its version"] if before.tags != after.tags and after.commit else []
    why += ["other build commands"] if before.build != after.build else []
    return {"why": why} if why else {}


def _identity(pin: Pin) -> tuple[Any, ...]:
    """What makes an extension another one: not the name of the ref, but what it stands for."""
    hashes = tuple(patch.sha256 for patch in pin.patches)
    return pin.url, pin.commit, pin.version, pin.archive, pin.hash, hashes, pin.tags, pin.build


def _origin(pin: Pin) -> str:
    return pin.url or pin.archive or "the package index"


def _packages(side: Resolution) -> Mapping[str, str]:
    """The packages, but for those of checkouts: their commits say more than their versions."""
    checkouts = {canonicalize_name(name) for name, pin in side.extensions.items() if pin.commit}
    return {name: version for name, version in side.packages.items() if name not in checkouts}


def _versions(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, dict[str, str]]:
    names = sorted(old.keys() | new.keys())
    both = {name: {"old": old.get(name, ""), "new": new.get(name, "")} for name in names}
    return {name: change for name, change in both.items() if change["old"] != change["new"]}


def _overrides(old: Mapping[str, Mapping[str, str]], new: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """The libraries that are overridden in another way than before; nothing is said of one that is so no more."""
    return {
        name: dict(new.get(name, {}))
        for name in sorted(old.keys() | new.keys())
        if dict(old.get(name, {})) != dict(new.get(name, {}))
    }


def _overridden(name: str, how: Mapping[str, str]) -> str:
    if not how:
        return f"{name} is not overridden any more"
    return f"{how['by']} overrides {name}: {how['got']} in place of {how['base'] or 'none'}"


def _patches(side: Resolution) -> dict[str, str]:
    """All patches of a release by a name that tells what they are for."""
    found = {patch.patch: patch.sha256 for patch in side.patches}
    for name, pin in side.extensions.items():
        found.update({f"{patch.patch} ({name})": patch.sha256 for patch in pin.patches})
    return found


def _package(name: str, change: Mapping[str, str]) -> str:
    return f"{name} {' -> '.join(filter(None, (change['old'], change['new'] or 'none')))}"


def _short(base: Base) -> str:
    return ".".join(base.python.split(".")[:2])
