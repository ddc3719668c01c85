"""
The stages of a deploy on one host, a function each. A deploy over several hosts calls the same functions, a stage at a
time on all hosts; ``deploy.deploy`` calls them all on this one. ``plan`` is a module of its own.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from typing import Any

from ckan_deploy.build import ahead, assembly, packages, resolution, sharing, shipping
from ckan_deploy.build.shipment import Shipment
from ckan_deploy.build.wheels import Builder
from ckan_deploy.database import migration, search_index
from ckan_deploy.deploy import candidates, checking, preflight, prune, switch
from ckan_deploy.errors import FormulaError, InvalidArgument, sentence
from ckan_deploy.releases import diff, hooks, reserve, stage
from ckan_deploy.releases.ids import check_id
from ckan_deploy.releases.manifest import Manifest, Resolution
from ckan_deploy.releases.release import Release
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import app_server, draining, health, maintenance, shared_files, smoke
from ckan_deploy.system import arguments

# Seconds that a deploy which is reverted waits for what is still at work on the host.
ABORT_WAIT = 60


def build(
    site: Site, release: str, planned: Resolution | None = None, by: str = "", job: str = "",
    shipped: Shipment | None = None,
) -> Manifest:  # fmt: skip
    """
    Build a release: clone the base, check out and install the extensions, render the ini, write the manifest.

    site
        The site.
    release
        The id of the release to make.
    planned
        What it will hold, as the plan decided here or on another host; decided here where it is missing.
    by, job
        Who asked, and the run of the master that this belongs to.
    shipped
        What another host has packed, which has built it; built here where it is missing.

    Returns the manifest, in state ``built``. Raises ``FormulaError``; the release is then ``failed``.
    """
    if shipped and not planned:
        raise InvalidArgument("shipped needs contents: what ckan_release.pack returned beside it.")
    origin = planned.origin if planned else ""
    changed = diff.from_current(site.releases, planned)
    with stage.running(site, "build", release, by, job, origin=origin, changed=changed) as warned:
        path = site.releases.directory(release)
        planned = planned or resolution.resolve(site)
        warned += planned.notes
        if not (shipped and shipping.begun(path)):
            candidates.create(site, release, planned, by, job)
        with candidates.marking_failed(site, release, by):
            filled = shipping.receive(site, path, planned, shipped) if shipped else assembly.fill(site, path, planned)
            return site.releases.set_state(release, "built", by, **filled)


def clone(site: Site, release: str, planned: Resolution, layer: str, by: str = "", job: str = "") -> dict[str, Any]:
    """
    Begin a release that another host is building: the clone of its layer, which is here already. Where that fails
    nothing is left, and ``build`` does it all.

    site, release, planned, by, job
        As for ``build``.
    layer
        The name of the layer.

    Returns ``{"cloned": layer}``. Raises ``FormulaError``.
    """
    with stage.running(site, "clone", release, by, job):
        candidates.create(site, release, planned, by, job)
        try:
            shipping.clone(site, site.releases.directory(release), layer)
        except BaseException:
            site.releases.remove(release)
            raise
        return {"cloned": layer}


def pack(site: Site, release: str, by: str = "", job: str = "", layer: bool = True) -> dict[str, Any]:
    """
    Pack a release that was built here, for hosts that do not build, and hand it over.

    site, release, by, job
        As for ``build``; the release is ``built``.
    layer
        Hand over its layer, too; False where all the others have it.

    Returns ``{"shipped": what their build takes, "contents": what it holds}``. Raises ``FormulaError``; the release is
    then ``failed``.
    """
    with stage.running(site, "pack", release, by, job), candidates.marking_failed(site, release, by):
        made = shipping.pack(site, release, layer)
        holds = site.releases.read(release).resolution
        assert holds
        return {"shipped": made.to_json(), "contents": holds.to_json()}


def check(
    site: Site, release: str, by: str = "", job: str = "", served: bool = False, closes: bool = False,
    boots: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """
    Boot CKAN once inside a built release and record what it says.

    site, release, by, job
        As for ``build``; the release is ``built`` or ``checked``.
    served
        Another host serves this release already, so it gets along with the database.
    closes
        Visitors will get the maintenance page for the migration, whatever the settings say.
    boots
        Start the app server of the release meanwhile, for the stage ``start``; not where that has hooks, and not kept
        where a migration is pending.

    Returns ``{"pending", "migrates": whether the stage ``migrate`` has anything to do, "schema", "plugins", "datasets",
    "warnings", "backends": versions of what is behind CKAN, "undeclared": options that nobody declares,
    "ckan_version", "seconds"}``. Raises ``FormulaError`` with one line that names the plugin and its exception; the
    release is then ``failed``.
    """
    with stage.running(site, "check", release, by, job) as warned:
        candidate = site.release(release)
        path, manifest = candidate.directory, candidate.manifest
        candidate.expect("built", "checked")
        with candidates.marking_failed(site, release, by):
            if not manifest.built_on:  # where it was built they were asked for all
                overridden = manifest.resolution.overridden if manifest.resolution else {}
                packages.check(path, Builder.of(site, path), tolerate=sorted(overridden))
            checking.refuse_lost_patches(site, path, manifest)
            warned += shared_files.own(site, path)["warnings"]
            warned += preflight.remarks(site)
            early = boots and not hooks.there(site, "start")
            with candidates.booted(site, path) if early else contextlib.nullcontext() as server:
                result, remarks = checking.ask(site, path)
                warned += remarks
                checking.compare(site, manifest, result, served, closes)
                result["migrates"] = migration.due(site, result)
                if server and not result["pending"]:
                    server.keep()
            broken = result.pop("broken_plugins", {})
            candidate.become("checked", by, check=result, broken_plugins=broken)
        warned += result["warnings"]
        warned[:] = dict.fromkeys(warned)
        return {**result, "warnings": warned}


def migrate(site: Site, release: str, by: str = "", job: str = "") -> dict[str, Any]:
    """
    Bring the database to the heads of a checked release, if its check found migrations pending; with a dump of it
    before, as ``backup:when`` says.

    site, release, by, job
        As for ``build``; the release is ``checked``.

    Returns ``{"migrated": bool, "migration": what ``start`` takes, "warnings"}``. Raises ``FormulaError`` that names
    what failed, says what the database holds, and that the live release runs on it.
    """
    with stage.running(site, "migrate", release, by, job) as warned:
        candidate = site.release(release)
        candidate.expect("checked")
        done = migration.run(site, release, candidate.manifest.check, maintenance.status(site)["on"])
        warned += done["warnings"]
        if done["migration"]:
            candidate.note(by, migration=done["migration"])
        return {**done, "warnings": warned}


def start(
    site: Site, release: str, by: str = "", job: str = "", migrated: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """
    Start the app server of a complete release on its own socket, and wait until it answers. A new release is asked for
    its pages as well. Visitors see nothing of it.

    site, release, by, job
        As for ``build``; the release is ``checked`` or was live.
    migrated
        What ``migrate`` told on the host that ran it; stands in the manifest of the release on all.

    Returns ``{"started": bool, "seconds": ...}``. Raises ``FormulaError`` when it does not answer, and for a page that
    fails in a new release and not in the live one.
    """
    # To start what is served is a repair, whoever has locked deploys out.
    repair = release == site.releases.current()
    with stage.running(site, "start", release, by, job, locked=not repair):
        wanted = site.release(release)
        wanted.expect("checked", "live", "retired", "bad")
        if migrated:
            wanted.note(by, migration=dict(migrated))
        done = switch.start(site, release)
        if wanted.state == "checked" and not wanted.is_current:
            wanted.note(by, smoke=smoke.before(site, release))
        return done


def activate(
    site: Site, release: str, force: bool = False, by: str = "", reason: str = "", job: str = "", starts: bool = False,
    migrated: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """
    Make a complete release current: its app server answers first, then ``current`` is renamed.

    site, release, by, job
        As for ``build``; the release is ``checked`` or was live.
    force
        Take one that is marked bad, too.
    reason
        Why.
    starts, migrated
        Go through the stage ``start`` first, and what that takes.

    Returns ``{"current": id, "previous": id, "warnings"}``.
    """
    reason = arguments.line("reason", reason)
    if starts:
        start(site, release, by, job, migrated)
    with stage.running(site, "activate", release, by, job) as warned:
        wanted = site.release(release)
        wanted.expect("checked", "live", "retired", *(["bad"] if force else []))
        if wanted.state == "checked":
            # The stages before have looked after the files; between start and rename nothing is walked through again.
            app_server.start(site, wanted.directory)
        else:
            switch.start(site, release)
        return {**switch.switch(site, release, "retired", by, reason), "warnings": warned}


def verify(site: Site, release: str, by: str = "", job: str = "") -> dict[str, Any]:
    """
    Ask the site through its web server and compare the release that answers.

    site, release, by, job
        As for ``build``; the release must answer.

    Returns ``{"status", "release", "seconds", "reindex": why the search index must be rebuilt or '', "warnings"}``.
    Raises ``FormulaError`` when another answers, or none, and in a deploy for a page that fails and did not before.
    """
    with stage.running(site, "verify", release, by, job, locked=False) as warned:
        linked = site.releases.current()
        if linked != release:
            raise FormulaError(f"current points to {linked or 'no release'} instead of {release}.")
        if unsteady := app_server.unsteady(site, release):
            raise FormulaError(f"the app server of {release} {unsteady}; see {app_server.log_place(site, release)}")
        warned += filter(None, [sharing.problem(site)])
        why, _ = search_index.differs(site, site.release(release).manifest)
        answered = health.health(site, release)
        warned += smoke.after(site, release)
        return {**answered, "reindex": why, "warnings": warned}


def finish(
    site: Site, release: str, prunes: bool = True, by: str = "", job: str = "", index: Mapping[str, Any] | None = None,
    again: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """
    End a deploy: the old app servers finish their requests and stop, services change over to the release, old releases
    are pruned. With ``web:standby`` the app server of the release before stays for so long.

    site, release, by, job
        As for ``build``; the release is live.
    prunes
        Prune as well; False after a rollback.
    index
        What the search index is made of now, on whichever host that was seen to; stands in the manifest.
    again
        As for ``switch.settle``.

    Returns ``{"stopped": [ids], "standby": id, "pruned": [ids], "warnings": [sentences]}``; ``draining``, releases
    whose app servers are still at requests, where there are any; and ``down``, sentences, where a service or the app
    server does not stay up: the release serves, but the deploy is not good.
    """
    with stage.running(site, "finish", release, by, job) as warned:
        live = site.release(release)
        if not live.is_current:
            raise FormulaError(
                f"current points to {site.releases.current() or 'no release'} instead of {release}; name that one."
            )
        if live.state == "checked":
            live = live.become("live", by)  # a switch that was cut short between the rename and its note
        if index:
            live.note(by, index=dict(index))
        previous = live.manifest.previous if prunes else ""
        standby = previous if draining.keep_standby(site, previous) else ""
        clones = functools.partial(ahead.make, site, live.manifest) if prunes else None
        done = switch.settle(
            site, release, standby, again, clones, functools.partial(_pruned, site) if prunes else None
        )
        warned += [*done.warnings, *done.down]
        live.note(by, finish_due="", steady=done.steady)
        told = {"stopped": done.stopped, "standby": standby, "pruned": done.pruned, "warnings": warned}
        told.update({name: found for name, found in (("draining", done.draining), ("down", done.down)) if found})
        return told


def abort(site: Site, release: str, reason: str = "", by: str = "", job: str = "") -> dict[str, Any]:
    """
    Revert a deploy on this host: the release served before is current again, the candidate is removed.

    Safe to call at any stage, more than once, and where the candidate never was.

    site, release, by, job
        As for ``build``; the release is the candidate.
    reason
        Why.

    Returns ``{"current": id, "removed": bool}``, and ``warnings`` where there are any.
    """
    if not site.releases.find(check_id(release)):
        return {"current": site.releases.current(), "removed": False}
    # A minion that was killed may have left its stage behind, at work.
    with stage.running(site, "abort", release, by, job, reason, wait=ABORT_WAIT) as warned:
        # The disk may be full: what is written from here on is little, or can be done without.
        reserve.give_up(site)
        candidate = site.release(release)
        candidate.manifest.became("failed")  # one that served before and does no more is no candidate
        back_to = candidate.manifest.previous if candidate.is_current else ""
        # First: what is current is never one that failed, whenever this dies.
        if visited := candidate.is_current:
            warned += _leave(site, candidate.manifest)
        candidates.note_failed(site, release, by, reason)
        draining.stop(site, candidate.directory, drain=visited)
        if visited:
            health.leave(site, release)
        warned += _removed(site, candidate)
        warned += switch.serving(site, back_to, by, reason)
    told = {"current": site.releases.current(), "removed": not site.releases.find(release)}
    return {**told, **({"warnings": warned} if warned else {})}


def _leave(site: Site, manifest: Manifest) -> list[str]:
    """Go back from a candidate that is current to what was served before it; returns warnings."""
    if manifest.previous:
        app_server.start(site, site.releases.directory(manifest.previous))
    switch.back(site, manifest.previous, manifest.previous_link)
    # A service that ended by itself after the switch was started anew from this release.
    return switch.follow(site, files=False)


def _removed(site: Site, candidate: Release) -> list[str]:
    """Remove a candidate; returns warnings: the host serves what it served before."""
    warnings = []
    with contextlib.suppress(FormulaError, OSError):
        # Each file has a link less then, which is nothing to look into.
        sharing.changed(site)
    try:
        candidate.remove()
    except (FormulaError, OSError) as exc:
        warnings.append(sentence(exc))
    return warnings


def _pruned(site: Site) -> tuple[list[str], list[str]]:
    """Old releases that are gone now, and warnings: what keeps one from going is one, since the new one is served."""
    try:
        done = prune.old(site)
    except (FormulaError, OSError) as exc:
        return [], [f"old releases were not pruned: {sentence(exc)}"]
    return done.gone, [*done.spared, *done.problems]
