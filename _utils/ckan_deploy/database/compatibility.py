"""
Whether a release can live with the database as it is now, and the ways out where it cannot.

A release goes back by a link, the database does not: after a migration the code of before may meet a database that it
does not know. What a release knows is read from its own migrations, where the database is from Alembic's tables; no
record of ours stands between. ``probe`` does the reading.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from ckan_deploy.database import backup, names, probe
from ckan_deploy.database import restore as restoring
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.ids import now
from ckan_deploy.releases.manifest import Manifest
from ckan_deploy.releases.site import Site
from ckan_deploy.system import arguments, files

ACCEPTED = "accepted_schema.json"


class _Difference(TypedDict):
    at: list[str]
    knows: list[str]
    lacks: list[str]


class Difference(_Difference, total=False):
    """
    In what the database is another than a release knows, of CKAN itself or of a plugin: the revisions it is at, the
    heads that the release knows, what that has and the database ``lacks``; and from old to new the ``revisions`` that
    the release does not know, with those that are ``stuck``, since they cannot be undone. These two are missing where
    the current release does not know them either.
    """

    revisions: list[str]
    stuck: list[str]


def compare(site: Site, target: str, current: str) -> dict[str, Difference]:
    """
    Compare the database with what a release knows of it.

    site
        The site.
    target
        The directory of the release.
    current
        The directory of the one that is served, which may know what the target does not; ``''`` for none.

    Returns the difference by ``core`` and plugins, only of those that differ and were not accepted. Raises
    ``FormulaError`` with what is wrong with the database.
    """
    found = probe.schema(site, target)
    different: dict[str, Difference] = {
        name: {"at": state["at"], "knows": state["heads"], "lacks": state["pending"]}
        for name, state in found.items()
        if (state["unknown"] or state["pending"]) and not accepted(site, name, state)
    }
    ahead = {name: state["knows"] for name, state in different.items() if not state["lacks"]}
    if ahead and current:
        for name, more in probe.between(site, current, ahead).items():
            different[name]["revisions"], different[name]["stuck"] = more["revisions"], more["stuck"]
    return different


def way_back(
    site: Site, release: str, accept_schema: bool = False, downgrade: bool = False, restore: str = ""
) -> dict[str, Any]:
    """
    Compare the database with what a release knows of it. Changes nothing; a second without a boot of CKAN.

    site
        The site.
    release
        The release to go to.
    accept_schema, downgrade, restore
        What the operator allows: the older code gets along with the database, migrations are undone, the dump of that
        name is put in the place of the database.

    Returns ``{"different": what ``compare`` returns, "downgrade": {"core" or plugin: [heads]}, "restore": a dump or '',
    "maintenance": whether visitors get the maintenance page meanwhile, "comment"}``. Raises ``InvalidArgument`` for
    what is no release or no name of a dump, ``FormulaError`` with what differs and what is possible, where no option
    covers it.
    """
    target = site.releases.directory(release)
    restore = names.dump(restore) if restore else ""
    current_id = site.releases.current()
    nothing = {"different": {}, "downgrade": {}, "restore": "", "maintenance": False, "comment": ""}
    try:
        different = compare(site, target, site.releases.directory(current_id) if current_id else "")
    except FormulaError as exc:
        if accept_schema:
            return {**nothing, "comment": f"the database was not compared: {exc}"}
        raise FormulaError(f"{exc}; or go without a look at it: accept_schema") from exc
    said = problem(different, release)
    old, new = (version_of(site.releases.read(name)) if name else "" for name in (current_id, release))
    changes = {**nothing, "different": different, "maintenance": closes(site, old, new, different)}
    if different and restore:
        _refuse_misfit(site, different, restore, release)
        if hindered := restoring.obstacle(site):
            raise FormulaError(f"the dump {restore} cannot be restored: {hindered}")
        return {**changes, "restore": restore}
    if downgrade and undoable(different):
        return {**changes, "downgrade": {name: state["knows"] for name, state in different.items()}}
    if said and not accept_schema:
        raise FormulaError(said)
    return {**nothing, "different": different, "comment": said}


def problem(different: Mapping[str, Difference], release: str) -> str:
    """
    Say why a release cannot live with the database, and what is possible.

    different
        What ``compare`` returned.
    release
        The release.

    Returns a sentence, ``''`` where nothing differs.
    """
    if not different:
        return ""
    each = []
    for name, state in different.items():
        at, knows = _listed(state["at"]), _listed(state["knows"])
        if state["lacks"]:
            each.append(f"{name} is at {at}, before {', '.join(state['lacks'])} of that release")
        else:
            newer = f"; newer are {', '.join(state['revisions'])}" if state.get("revisions") else ""
            each.append(f"{name} is at {at}, and that release knows it up to {knows}{newer}")
    ways = "; or ".join(_ways_out(different))
    return f"the database does not fit release {release}: {'; '.join(each)}. Possible: {ways}"


def undoable(different: Mapping[str, Difference]) -> bool:
    """
    Say whether the database can be brought back by downgrades.

    different
        What ``compare`` returned.
    """
    return bool(different) and all(
        state.get("revisions") and not state["stuck"] and not state["lacks"] for state in different.values()
    )


def unknown(site: Site, found: Mapping[str, probe.State], served: bool = False) -> dict[str, Any]:
    """
    Sort out what the database has of which a new release knows nothing.

    site
        The site.
    found
        What ``probe.schema`` returned for the release.
    served
        Another host serves the release already: the difference is accepted.

    Returns ``{"problem": a sentence or '', "leave": [names whose difference was accepted]}``.
    """
    ahead = {name: state for name, state in found.items() if state["unknown"]}
    for name, state in ahead.items() if served else ():
        _remember(site, name, state["heads"], state["at"], "another host serves it")
    leave = [name for name, state in ahead.items() if accepted(site, name, state)]
    refused = {name: state for name, state in ahead.items() if name not in leave}
    each = [
        f"{name} is at {_listed(state['at'])}, which this release does not know (it knows {_listed(state['heads'])})"
        for name, state in refused.items()
    ]
    hint = "deploy a ref that has it, take the database back first, or if that code gets along with it, type: "
    typed = [
        f"ckan_schema.accept {name} {','.join(state['heads']) or 'none'} {','.join(state['at'])}"
        for name, state in refused.items()
    ]
    return {"problem": f"the database is newer: {'; '.join(each)}; {hint}{'; '.join(typed)}" if each else "",
            "leave": leave}  # fmt: skip


def closes(site: Site, old: str, new: str, changed: Iterable[str]) -> bool:
    """
    Say whether visitors get the maintenance page while the database is changed between two releases, as
    ``migration:when`` says. Code of one CKAN version cannot be expected to get along with the database of another: CKAN
    2.11 answers with errors after the migrations of 2.12.

    site
        The site.
    old, new
        The CKAN version of the release that is served, ``''`` for none, and of the one to come, newer or older.
    changed
        What changes in the database: ``core`` and names of plugins.
    """
    when, some = site.settings.migration.when, list(changed)
    if when != "auto" or not old or site.settings.web.server == "none":
        return bool(some) and when == "maintenance"
    return "core" in some and len({tuple(version.split(".")[:2]) for version in (old, new)}) > 1


def version_of(manifest: Manifest) -> str:
    """
    Return the CKAN version of a release, ``''`` where its manifest does not say.

    manifest
        The manifest of the release.
    """
    return manifest.resolution.base.ckan if manifest.resolution else ""


def mismatch(site: Site, release: str) -> str:
    """
    Say in which way the database is another than a release knows; ``''`` where it is not, and for no release.

    site
        The site.
    release
        The release.

    Raises ``InvalidArgument`` for what is no release.
    """
    if not release:
        return ""
    target = site.releases.directory(release)
    try:
        different = compare(site, target, "")
    except FormulaError as exc:
        return str(exc)
    return "; ".join(
        f"{name} is at {_listed(state['at'])} in the database, and {release} knows it up to {_listed(state['knows'])}"
        for name, state in different.items()
    )


def accept(site: Site, name: str, knows: str, at: str, by: str = "") -> list[dict[str, Any]]:
    """
    Declare that code which knows a plugin's migrations up to certain heads gets along with a database that is at
    others. Remembered on this host for that pair.

    site
        The site.
    name
        ``core`` or a plugin.
    knows
        The heads that the code knows, with commas between; ``none`` for none.
    at
        The revisions of the database, with commas between; ``none`` for none.
    by
        Who says so.

    Returns all that was accepted on this host: ``[{"name", "knows", "at", "by", "since"}]``. Raises ``InvalidArgument``
    for what is no plain name.
    """
    name, by = names.plain(name, "a plugin"), arguments.text("by", by)
    return _remember(site, name, _revisions(knows), _revisions(at), by)


def accepted(site: Site, name: str, state: probe.State) -> bool:
    """
    Say whether a difference was accepted before.

    site
        The site.
    name
        ``core`` or a plugin.
    state
        What ``probe.schema`` says of it.
    """
    pair = {"name": name, "knows": sorted(state["heads"]), "at": sorted(state["at"])}
    return any(pair.items() <= entry.items() for entry in _accepted(site))


def _ways_out(different: Mapping[str, Difference]) -> list[str]:
    ways = ["accept_schema, if you know that its code gets along with this database"]
    if not any(state["lacks"] for state in different.values()):
        ways.append("restore with the name of a dump of before (ckan_backup.list), which loses what came after it")
    stuck = [f"{revision} of {name}" for name, state in different.items() for revision in state.get("stuck", [])]
    if undoable(different):
        undone = [f"{name} {', '.join(reversed(state['revisions']))}" for name, state in different.items()]
        ways.insert(0, f"downgrade, which undoes {'; '.join(undone)}, and the data in it")
    elif stuck:
        ways.append(f"no downgrade, since {', '.join(stuck)} cannot be undone")
    elif all(state["lacks"] for state in different.values()):
        ways.insert(0, "a deploy, which migrates")
    return ways


def _refuse_misfit(site: Site, different: Mapping[str, Difference], dump: str, release: str) -> None:
    """Raise where the database of a dump is not at what a release knows."""
    held = backup.heads(site, dump)
    wrong = [name for name, state in different.items() if held.get(name, []) != state["knows"]]
    if wrong:
        has = "; ".join(f"{name} at {_listed(held.get(name, []))}" for name in wrong)
        raise FormulaError(f"the dump {dump} does not fit release {release} either: it has {has}; name another one")


def _listed(revisions: Sequence[str]) -> str:
    return " and ".join(revisions) or "no revision"


def _revisions(typed: Any) -> list[str]:
    text = str(typed)
    return [] if text in ("", "none") else [names.plain(each, "a revision") for each in text.split(",")]


def _remember(site: Site, name: str, knows: Sequence[str], at: Sequence[str], by: str) -> list[dict[str, Any]]:
    pair = {"name": name, "knows": sorted(knows), "at": sorted(at)}
    known = _accepted(site)
    if not any(pair.items() <= entry.items() for entry in known):
        known.append({**pair, "by": by, "since": now()})
        os.makedirs(site.paths.shared, exist_ok=True)
        files.write(_file(site), json.dumps(known, indent=1) + "\n")
    return known


def _accepted(site: Site) -> list[dict[str, Any]]:
    known: list[dict[str, Any]] = json.loads(files.read(_file(site), "[]") or "[]")
    return known


def _file(site: Site) -> str:
    return os.path.join(site.paths.shared, ACCEPTED)
