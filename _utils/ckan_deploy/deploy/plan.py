"""
What a deploy would do on this host, and what stands in its way. Changes nothing that is served.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

from ckan_deploy.build import ini, layers, promotion, resolution, shipping
from ckan_deploy.database import backends, compatibility
from ckan_deploy.deploy import preflight
from ckan_deploy.deploy.unfinished import unfinished
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases import choice, diff, lock
from ckan_deploy.releases.manifest import Manifest, Resolution
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import storage
from ckan_deploy.settings.fingerprint import hashes
from ckan_deploy.settings.parts import Extension
from ckan_deploy.sources.pins import Pin
from ckan_deploy.system import beside, disk

# Settings whose changes are told by what they bring: commits, packages, patches, options of the ini.
TOLD = (
    "extensions", "patches", "base", "config", "plugins", "database", "datastore", "secrets", "site_url", "site_id",
    "solr_url", "redis_url",
)  # fmt: skip


@frozen
class Plan:
    """
    What a deploy would do. ``changes`` compares the resolution with the current release, ``own_changes`` says what this
    host's pillar changes, ``host`` is what the fleet must know of this host, ``differs`` how a promoted resolution goes
    with the pillar here. ``remarks`` and ``own_remarks`` are to be known besides: they are true of the current release,
    too, and are no reason to deploy. ``details`` is what the report of the run shows of the changes.
    """

    release: str
    env: str
    current: str
    own_changes: list[str]
    host: dict[str, Any]
    resolution: Resolution | None = None
    changes: list[str] = []
    differs: list[str] = []
    remarks: list[str] = []
    own_remarks: list[str] = []
    details: dict[str, Any] = {}

    def to_json(self) -> dict[str, Any]:
        """Return it as the answer of ``ckan_release.plan``."""
        return {
            "release": self.release, "env": self.env, "current": self.current, "host": self.host,
            "contents": self.resolution.to_json() if self.resolution else {},
            "extensions": diff.brief(self.resolution.extensions) if self.resolution else {},
            "changes": self.changes, "own_changes": self.own_changes, "differs": self.differs,
            "remarks": self.remarks, "own_remarks": self.own_remarks,
            "notes": list(self.resolution.notes) if self.resolution else [],
            "details": self.details,
        }  # fmt: skip


def make(
    site: Site, release: str, resolve: bool = True, job: str = "", given: Resolution | None = None, sees: str = "",
    renew: bool = False,
) -> Plan:  # fmt: skip
    """
    Look whether a deploy could start here, and decide what the release will hold.

    site
        The site.
    release
        The id of the release to make.
    resolve
        Ask the origins and resolve the packages; False where another host has been asked already.
    job
        The run of the master that this belongs to.
    given
        What the release is to hold, where another environment has it: no ref is asked for then.
    sees
        The host whose mark in a shared storage this one is to see.
    renew
        Ask the package index, also where nothing has changed since that was done.

    Raises ``FormulaError`` with all that is in the way.
    """
    with beside.running(functools.partial(_behind, site)) as asking:
        # With build:ship the one that resolves builds for all.
        obstacles = preflight.obstacles(site, release, builds=resolve or not site.settings.build.ship)
        if problems := list(filter(None, [lock.busy(site), *obstacles])):
            raise _refusal([*problems, *asking.result().problems])
        ini.validate(site)
        if given:
            promotion.refuse_differences(site, given)
        try:
            new = _resolution(site, given, renew) if resolve else None
        except FormulaError as exc:
            if problems := list(asking.result().problems):
                raise _refusal([*problems, str(exc).rstrip(".")]) from exc
            raise
        behind = asking.result()
        if behind.problems:
            raise _refusal(behind.problems)
    current = site.releases.current()
    before = site.releases.read(current) if current else None
    about = {
        **_about_host(site, release, before, job),
        "backends": behind.versions,
        "storage": storage.seen(site, release, sees),
    }
    remarks = [*preflight.remarks(site), *behind.remarks]
    own, options = _own_changes(site, before)
    planned = Plan(
        release, site.settings.env, current, own, about, own_remarks=remarks, details={"configuration": options}
    )
    return _with_contents(site, planned, before, new, given) if new else planned


def _with_contents(
    site: Site, planned: Plan, before: Manifest | None, new: Resolution, given: Resolution | None
) -> Plan:  # fmt: skip
    """A plan with what the release will hold, compared with the release before."""
    old = before.resolution if before else _of_environment(site)
    new = evolve(new, extensions=_follow_tags(new.extensions, old, site.settings.extensions))
    mirrors = os.path.join(site.paths.shared, "mirrors")
    migrations = diff.migrations(old, new, mirrors)
    if migrations and compatibility.closes(site, old.base.ckan if old else "", new.base.ckan, ["core"]):
        migrations.append("visitors get the maintenance page while the database is migrated")
    compared = diff.compare(old, new, mirrors)
    ships = site.settings.build.ship
    return evolve(
        planned,
        resolution=new,
        host={**planned.host, **({"layer": layers.name(site, new)} if ships else {})},
        changes=[*diff.sentences(compared, new), *migrations],
        differs=promotion.other_origins(site, given) if given else [],
        remarks=[*diff.remarks(new), *_known_bad(site, old, new, mirrors)],
        details={**planned.details, **diff.brief_details(compared)},
    )


def _known_bad(site: Site, old: Resolution | None, new: Resolution, mirrors: str) -> list[str]:
    """
    Say that a release which was marked bad held the same, with the same settings, or else which commits it had that
    come back: its cause may still be there.
    """
    settings = hashes(site.settings)
    said: dict[str, str] = {}
    for manifest in reversed(site.releases.manifests()):
        held = manifest.resolution
        if manifest.state != "bad" or not held:
            continue
        bad = f"{manifest.id}, which was marked bad{f' ({manifest.bad_reason})' if manifest.bad_reason else ''}"
        same = manifest.settings == settings and not diff.changed(held, new)
        if same and not diff.sentences(diff.compare(held, new, mirrors), new):
            return [f"{bad}, held the same; correct the cause, or it is live again"]
        for name, pin in new.extensions.items():
            if pin.commit and pin.commit == _commit(held, name) != _commit(old, name):
                said.setdefault(name, f"{name} at {pin.commit[:12]} was in {bad}; deploy it if the cause is elsewhere")
    return list(said.values())


def _commit(resolution: Resolution | None, name: str) -> str:
    pin = resolution.extensions.get(name) if resolution else None
    return pin.commit if pin else ""


def _behind(site: Site) -> backends.Backends:
    # A host that serves nothing has no business with them, and may not reach them.
    return backends.Backends() if site.settings.build.only else backends.ask(site)


def _refusal(problems: Sequence[str]) -> FormulaError:
    return FormulaError("; ".join(problems) + ".")


def _resolution(site: Site, given: Resolution | None, renew: bool) -> Resolution:
    return promotion.adopt(site, given) if given else resolution.resolve(site, renew)


def missed(site: Site) -> tuple[str, str | None]:
    """
    Say whether this host has missed what its environment is on.

    site
        The site.

    Returns the release of the environment where ``current`` names another one, else ''; and why that release is marked
    bad here, None where it is not.
    """
    wanted = site.environment.wanted
    if not wanted or wanted.release == site.releases.current():
        return "", None
    have = site.releases.find(wanted.release)
    return wanted.release, have.bad_reason if have and have.state == "bad" else None


def _of_environment(site: Site) -> Resolution | None:
    """What the environment is on, for a host that builds for it and serves nothing itself."""
    wanted = site.environment.wanted if site.settings.build.only else None
    return Resolution.of(wanted.contents) if wanted else None


def _about_host(site: Site, release: str, before: Manifest | None, job: str) -> dict[str, Any]:
    """What a fleet must know of this host before it begins."""
    after = [*site.releases.manifests(), Manifest(id=release, state="live")]
    seen, ships = site.environment.lock, site.settings.build.ship
    return {
        "place": disk.place(site.paths.releases),
        "sees_lock": bool(seen and seen.job == job),
        "disk": {"free_mb": disk.free_mb(site.paths.releases), "needed_mb": before.disk_mb if before else None},
        # The one that the environment is on now is not wanted any more then.
        "prunes": choice.prunable(after, release, site.settings.keep),
        "plugins": list(site.settings.plugins),
        **({"facts": shipping.about_host(site), "layers": layers.keys(site.paths.shared)} if ships else {}),
    }


def _own_changes(site: Site, before: Manifest | None) -> tuple[list[str], dict[str, list[str]]]:
    """
    What changes by this host's pillar: names of options and of settings, never a value. And what is to be mended. And
    the options added, removed and changed.
    """
    options: dict[str, list[str]] = {}
    if not before:
        foreign = site.releases.foreign()
        return ["the first release of this host"] + ([f"{foreign}: that link is replaced"] if foreign else []), options
    missing = unfinished(site)
    mended = [f"{missing}: that is done with this deploy"] if missing else []
    try:
        difference = ini.diff(site, site.releases.directory(before.id), before.secret_options)
        options = {kind: sorted(names) for kind, names in difference.items() if names}
        said = [f"configuration: {', '.join(difference[kind])} {kind}" for kind in options]
    except FormulaError as exc:
        said = [f"configuration: not compared, {exc}"]  # the new ini does not need the old one
    was, is_ = before.settings, hashes(site.settings)
    if not was or was.get("env") != is_["env"]:
        why = "the release of before has no note of them" if not was else "the session secret is another one"
        return [*mended, *said, f"settings: not compared, {why}"], options
    changed = [name for name in sorted(was.keys() | is_.keys()) if name not in TOLD and was.get(name) != is_.get(name)]
    return [*mended, *said, *([f"settings: {', '.join(changed)} changed"] if changed else [])], options


def _follow_tags(
    pins: Mapping[str, Pin], old: Resolution | None, extensions: Mapping[str, Extension]
) -> dict[str, Pin]:
    """Note the tags that stand for another commit than in the release before; refuse those of a locked extension."""
    followed, moved = dict(pins), []
    for name, pin in pins.items():
        was = old.extensions.get(name) if old else None
        if not was or pin.ref_kind != "tag" or (was.url, was.ref) != (pin.url, pin.ref) or was.commit == pin.commit:
            continue
        followed[name] = pin.with_(moved_from=was.commit)
        if extensions[name].locked:
            moved.append(f"tag {pin.ref} of {name} moved from {was.commit[:12]} to {pin.commit[:12]}")
    if moved:
        raise FormulaError(
            f"{'; '.join(moved)}, and the extension is locked; find out why, then take a new tag or locked: false."
        )
    return followed
