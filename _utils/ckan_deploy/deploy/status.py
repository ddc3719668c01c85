"""Where a host stands, and what its releases are: what people ask."""

from __future__ import annotations

import os
from typing import Any

from ckan_deploy.build import base, declared, ini, sharing
from ckan_deploy.deploy.rollback import rollback_target
from ckan_deploy.deploy.unfinished import unfinished
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases import diff
from ckan_deploy.releases.manifest import Manifest
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import app_server, draining, drains, health, maintenance, services, uwsgi
from ckan_deploy.sources import pylock

# Entries of the log in which the stages of the current release are looked for.
RECENT = 200
# The stages in which other app servers are stopped.
ENDS = ("finish", "rollback")


def list_releases(site: Site) -> list[dict[str, Any]]:
    """
    Return the releases of this host, newest first, a row each.

    site
        The site.

    Returns ``[{"release", "state", "current", "created", "by", "extensions": {name: "ref commit" or version}}]``.
    """
    current = site.releases.current()
    return [
        {
            "release": manifest.id,
            "state": manifest.state,
            "current": manifest.id == current,
            "created": manifest.created,
            "by": manifest.by,
            "extensions": diff.brief(manifest.resolution.extensions) if manifest.resolution else {},
            **({"reason": manifest.bad_reason} if manifest.bad_reason else {}),
        }
        for manifest in reversed(site.releases.manifests())
    ]


def shown(site: Site, release: str = "", lock: bool = False, full: bool = False) -> dict[str, Any]:
    """
    Return the manifest of a release, for people.

    site, release
        As for ``manifest_of``.
    lock
        Whether the text of the lock file stands in it, or what it comes to in a line.
    full
        Whether it is to be shown with hashes, packages and events.

    Returns the manifest, with ``current``, and ``full`` where that is so.
    """
    manifest = manifest_of(site, release)
    found = {
        **manifest.to_json(),
        "current": manifest.id == site.releases.current(),
        **({"full": True} if full else {}),
    }
    if manifest.resolution and manifest.resolution.lock and not lock:
        file = os.path.join(site.releases.directory(manifest.id), pylock.NAME)
        found["lock"] = f"{len(pylock.loads(manifest.resolution.lock))} packages: {file}"
    return found


def manifest_of(site: Site, release: str = "") -> Manifest:
    """
    Return the manifest of a release.

    site
        The site.
    release
        The id; by default the current one.

    Raises ``FormulaError`` where there is no such release, or none is current.
    """
    release = release or site.releases.current()
    if not release:
        raise FormulaError("no release is current on this host; run state.apply ckan for the first one.")
    return site.releases.read(release)


def contents(site: Site, release: str = "") -> dict[str, Any]:
    """
    Return what a release holds, as the plan decided it: another host can build the same from it.

    site, release
        As for ``manifest_of``.
    """
    resolution = manifest_of(site, release).resolution
    if not resolution:
        raise FormulaError(f"release {release} was never built; name one that was.")
    return resolution.to_build().to_json()


def difference(site: Site, old: str = "", new: str = "") -> dict[str, Any]:
    """
    Say what differs between two releases of this host.

    site
        The site.
    old
        A release; by default the one that a rollback would go to.
    new
        A release; by default the current one.

    Returns what ``diff.compare`` returns, with ``from``, ``to`` and ``configuration``: the names of the options added,
    removed and changed, never a value.
    """
    one, two = manifest_of(site, old or rollback_target(site)), manifest_of(site, new)
    if not one.resolution or not two.resolution:
        raise FormulaError(f"release {(two if one.resolution else one).id} was never built; name one that was.")
    mirrors = os.path.join(site.paths.shared, "mirrors")
    found = diff.compare(one.resolution, two.resolution, mirrors, (one.plugins, two.plugins))
    folders = [site.releases.directory(manifest.id) for manifest in (one, two)]
    return {"from": one.id, "to": two.id, **found, "configuration": ini.names(site, *folders)}


def config_diff(site: Site, release: str = "") -> dict[str, Any]:
    """
    Say what a deploy would change in the ini: the pillar as it is now, against the ini of a release.

    site, release
        As for ``manifest_of``.

    Returns ``{"release", "added": {option: value}, "removed": {option: value}, "changed": {option: "old -> new"}}``,
    and ``defaults``, the number of options that are not shown since they say what CKAN does without them; of a secret
    only ``(changed)`` is shown.
    """
    manifest = manifest_of(site, release)
    folder, found = site.releases.directory(manifest.id), base.find(site)
    # What holds without an option is said by the CKAN that the next release gets.
    defaults = {**declared.defaults(folder), **(declared.defaults(found.path) if found else {})}
    return {"release": manifest.id, **ini.diff(site, folder, manifest.secret_options, defaults)}


def status(site: Site, processes: bool = False) -> dict[str, Any]:
    """
    Say where this host stands: the release linked, the ones with an app server, and the one that answers visitors.

    site
        The site.
    processes
        Ask the processes, too: which release each has loaded. And say how the last stage of a deploy went.

    Returns ``{"env", "current", "state", "running": [ids], "answers": id or a sentence}``; ``maintenance`` where
    visitors get a page instead; ``link`` where ``current`` names none of our releases, what it is or how the last
    deploy failed, and what to type; ``unfinished`` where a deploy died before its end, what is missing; ``changed``
    where files that releases share are not as they were installed. With ``processes`` also ``{"serving": [ids],
    "draining": those of them whose app server was told to stop and still finishes requests, where there are any,
    "drained": {id: what came of those that were told to stop for the current release}, where there are any, "services":
    [rows, as ``services.status`` returns them], "workers": {name: id or state} of the job workers, "last": an entry of
    the history or {}}``, and ``warnings``: what the stages of the current release found, where there is any.
    """
    current, answers, closed = site.releases.current(), "", maintenance.status(site)
    if current:
        try:
            answers = health.health(site, current, wait=False)["release"]
            unsteady = app_server.unsteady(site, current)
            answers = f"{current}, whose app server {unsteady}" if unsteady else answers
        except FormulaError as exc:
            answers = str(exc)
    link, missing = _link(site), unfinished(site)
    more: dict[str, Any] = {"maintenance": closed} if closed["on"] else {}
    more.update({"link": link} if link else {})
    more.update({"unfinished": f"{missing}; type: ckan_release.finish {current}"} if missing else {})
    changed = sharing.problem(site)
    more.update({"changed": changed} if changed else {})
    if processes:
        more["serving"] = sorted({row["release"] for row in app_server.processes(site)})
        at_it = draining.under_way(site) if site.settings.web.app == "uwsgi" else []
        more.update({"draining": at_it} if at_it else {})
        drained = drains.outcomes(site, current) if current and site.settings.web.app == "uwsgi" else {}
        more.update({"drained": drained} if drained else {})
        more.update(_services(site))
        more["last"] = next(iter(site.log.read(1)), {})
        warned = _warnings(site, current)
        more.update({"warnings": warned} if warned else {})
    return {
        "env": site.settings.env,
        "current": current,
        "state": site.releases.read(current).state if current else "",
        "running": uwsgi.releases(site),
        "answers": answers,
        **more,
    }


def history(site: Site, limit: int) -> list[dict[str, Any]]:
    """
    Return what was done on this host, newest first, with what came of the app servers that were told to stop then.

    site
        The site.
    limit
        How many entries at most.
    """
    entries = site.log.read(limit)
    for release in {entry.get("release", "") for entry in entries} - {""}:
        drained = drains.outcomes(site, release)
        # The newest: for one that serves a second time others were stopped anew.
        last = next((entry for entry in entries if entry.get("release") == release and entry["stage"] in ENDS), None)
        if drained and last:
            last["drained"] = drained
    return entries


def _warnings(site: Site, release: str) -> list[str]:
    """What the stages of a release found: of each stage the last time that it ran."""
    newest: dict[str, list[str]] = {}
    for entry in site.log.read(RECENT) if release else []:
        if entry.get("release") == release and entry.get("result") == "ok":
            newest.setdefault(entry["stage"], entry.get("warnings", []))
    return list(dict.fromkeys(warning for stage in reversed(newest) for warning in newest[stage]))


def _link(site: Site) -> str:
    """What ``current`` is where it names none of our releases, and what to type."""
    if problem := site.releases.link_problem():
        return f"{problem}, then deploy"
    if not (foreign := site.releases.foreign()):
        return "" if site.releases.current() else _first_failed(site)
    if adopted := _adopted(site):
        host = f"salt {site.host.id}"
        todo = f"{host} state.apply ckan.web; {host} ckan_release.activate {adopted}"
        return f"{foreign} but adopted as {adopted}; type: {todo}"
    try:
        back = f", or go back to {rollback_target(site)} with: ckan_release.rollback"
    except FormulaError:
        back = ""
    return f"{foreign}; deploy{back}"


def _first_failed(site: Site) -> str:
    """How the last deploy to a host without a release failed; '' where none did."""
    failed = next((entry for entry in site.log.read(RECENT) if entry.get("result") == "failed"), None)
    if not failed:
        return ""
    reason = failed.get("reason", "").rstrip(".")
    return f"the deploy of {failed['release']} failed at {failed['stage']}: {reason}; correct that, and deploy again"


def _adopted(site: Site) -> str:
    """The release that was adopted of what ``current`` names, '' where there is none."""
    named = os.path.realpath(site.paths.current)
    of = {os.path.realpath(manifest.adopted.get("from", "")): manifest.id for manifest in site.releases.manifests()}
    return of.get(named, "")


def _services(site: Site) -> dict[str, Any]:
    """
    What each service has loaded; and of the job workers alone that, or what is wrong with one that does not run, or
    ended and was started again.
    """
    try:
        rows = services.status(site)["services"]
    except FormulaError as exc:
        return {"services": [], "workers": {"all": str(exc)}}
    found: dict[str, str] = {}
    for row in rows:
        # Of several processes the one that is not as it should be.
        if row["kind"] == "worker" and found.get(row["service"], site.releases.current()) == site.releases.current():
            found[row["service"]] = row.get("problem") or row["release"] or row["state"]
    return {"services": rows, "workers": found}
