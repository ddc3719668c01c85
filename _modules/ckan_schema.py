"""
Whether a release can live with the database as it is now, and the ways out where it cannot.

A release goes back by a link, the database does not: after a migration the code of before may meet a database that it
does not know. What a release knows is read from its own migrations, where the database is from Alembic's tables; no
record of ours stands between. ``ckan_app`` does the reading.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_schema"

ACCEPTED = "accepted_schema.json"


def __virtual__() -> str:
    return __virtualname__


def compare(settings: dict, target: str, current: str) -> dict:
    """
    Compare the database with what a release knows of it.

    settings
        The settings.
    target
        The directory of the release.
    current
        The directory of the one that is served, which may know what the target does not; ``''`` for none.

    Returns ``{"core" or plugin: {"at": [revisions of the database], "knows": [heads of the target], "revisions": [what
    the target does not know, from old to new], "stuck": [those that cannot be undone], "lacks": [what the target has
    and the database has not]}}``, only of those that differ and were not accepted. ``revisions`` is missing where the
    current release does not know them either.

    CLI Example: not for the command line; use ``ckan_schema.way_back``.
    """
    found = __salt__["ckan_app.schema"](target, settings)
    different = {
        name: {"at": state["at"], "knows": state["heads"], "lacks": state["pending"]}
        for name, state in found.items()
        if (state["unknown"] or state["pending"]) and not accepted(settings, name, state)
    }
    ahead = {name: state["knows"] for name, state in different.items() if not state["lacks"]}
    if ahead and current:
        for name, more in __salt__["ckan_app.between"](current, settings, ahead).items():
            different[name].update(more)
    return different


def way_back(release: str, accept_schema: bool = False, downgrade: bool = False, restore: str = "") -> dict:
    """
    Compare the database with what a release knows of it. Changes nothing; a second without a boot of CKAN.

    release
        The release to go to.
    accept_schema, downgrade, restore
        What the operator allows: see ``ckan_release.rollback``.

    Returns ``{"different": what ``compare`` returns, "downgrade": {"core" or plugin: [heads]}, "restore": a dump or '',
    "maintenance": whether visitors get the page of maintenance meanwhile, "comment"}``. Raises
    ``CommandExecutionError`` with what differs and what is possible, where no option covers it.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_schema.way_back 20261125021500Z
    """
    settings = __salt__["ckan_settings.get"]()
    paths = settings["paths"]
    current_id = __salt__["ckan_store.current"](paths)
    nothing = {"different": {}, "downgrade": {}, "restore": "", "maintenance": False, "comment": ""}
    places = [__salt__["ckan_store.directory"](paths, name) if name else "" for name in (release, current_id)]
    try:
        different = compare(settings, *places)
    except CommandExecutionError as exc:
        if accept_schema:
            return {**nothing, "comment": f"the database was not compared: {exc}"}
        raise CommandExecutionError(f"{exc}; or go without a look at it: accept_schema") from exc
    said = problem(different, release)
    manifests = [__salt__["ckan_store.read"](paths, name) if name else {} for name in (current_id, release)]
    changes = {**nothing, "different": different, "maintenance": closes(settings, *manifests, different)}
    if different and restore:
        held = __salt__["ckan_backup.heads"](restore)
        wrong = [name for name, state in different.items() if held.get(name, []) != state["knows"]]
        if wrong:
            has = "; ".join(f"{name} at {_listed(held.get(name, []))}" for name in wrong)
            raise CommandExecutionError(
                f"the dump {restore} does not fit release {release} either: it has {has}; name another one"
            )
        return {**changes, "restore": restore}
    if downgrade and undoable(different):
        return {**changes, "downgrade": {name: state["knows"] for name, state in different.items()}}
    if said and not accept_schema:
        raise CommandExecutionError(said)
    return {**nothing, "different": different, "comment": said}


def problem(different: dict, release: str) -> str:
    """
    Say why a release cannot live with the database, and what is possible.

    different
        What ``compare`` returned.
    release
        The release.

    Returns a sentence, ``''`` where nothing differs.

    CLI Example: not for the command line; use ``ckan_schema.way_back``.
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
    return f"the database does not fit release {release}: {'; '.join(each)}. Possible: {'; or '.join(ways)}"


def undoable(different: dict) -> bool:
    """
    Say whether the database can be taken back by downgrades.

    different
        What ``compare`` returned.

    CLI Example: not for the command line.
    """
    return bool(different) and all(
        state.get("revisions") and not state["stuck"] and not state["lacks"] for state in different.values()
    )


def unknown(settings: dict, found: dict, served: bool = False) -> dict:
    """
    Sort out what the database has of which a new release knows nothing.

    settings
        The settings.
    found
        What ``ckan_app.schema`` returned for the release.
    served
        Another host serves the release already: the difference is accepted.

    Returns ``{"problem": a sentence or '', "leave": [names whose difference was accepted]}``.

    CLI Example: not for the command line; ``ckan_release.check`` uses it.
    """
    ahead = {name: state for name, state in found.items() if state["unknown"]}
    for name, state in ahead.items() if served else ():
        accept(name, ",".join(state["heads"]), ",".join(state["at"]), "another host serves it")
    leave = [name for name, state in ahead.items() if accepted(settings, name, state)]
    each = [
        f"{name} is at {_listed(state['at'])}, which this release does not know (it knows {_listed(state['heads'])})"
        for name, state in ahead.items()
        if name not in leave
    ]
    hint = "deploy a ref that has it, take the database back first, or if that code gets along with it, type: "
    typed = [
        f"ckan_schema.accept {name} {','.join(state['heads']) or 'none'} {','.join(state['at'])}"
        for name, state in ahead.items()
        if name not in leave
    ]
    return {"problem": f"the database is newer: {'; '.join(each)}; {hint}{'; '.join(typed)}" if each else "",
            "leave": leave}  # fmt: skip


def downgrade(release: str, by: str = "", job: str = "", restore: str = "") -> dict:
    """
    Take the database back to what a release knows: by the scripts of the current one, with a dump of it before, unless
    ``backup:when`` is ``never``; or by a dump that is put in its place.

    release
        The release whose revisions it is taken back to.
    by, job
        Who asked, and the run of the master that this belongs to.
    restore
        The dump.

    Returns ``{"undone": {"core" or plugin: [revisions]}, "backup": {...}, "kept_as": database}``. Raises
    ``CommandExecutionError`` that says what the database holds.

    CLI Example: not for the command line; use ``ckan_release.rollback`` with ``downgrade=True``.
    """
    settings = __salt__["ckan_settings.get"]()
    paths = settings["paths"]
    with __salt__["ckan_stage.running"](settings, "downgrade", release, by, job):
        current_id = __salt__["ckan_store.current"](paths)
        found = way_back(release, downgrade=not restore, restore=restore)
        undone = {name: state.get("revisions", state["at"]) for name, state in found["different"].items()}
        if found["restore"]:
            return {"undone": undone, "kept_as": __salt__["ckan_backup.put_back"](settings, restore)["kept_as"]}
        dumped = __salt__["ckan_backup.before"](settings, current_id, found["different"], True)
        if found["downgrade"]:
            path = __salt__["ckan_store.directory"](paths, current_id)
            __salt__["ckan_app.downgrade"](path, settings, found["downgrade"])
        return {"undone": undone, **({"backup": dumped} if dumped else {})}


def upgrade(release: str, by: str = "", job: str = "", kept_as: str = "") -> dict:
    """
    Bring the database to the heads of a release that was live: after a downgrade or a restore whose rollback failed.

    release
        The release.
    by, job
        Who asked, and the run of the master that this belongs to.
    kept_as
        After a restore: the database of before, which takes its name again.

    Returns ``{"current": id}``. Raises ``CommandExecutionError`` that says what the database holds.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_schema.upgrade 20261125021500Z
    """
    settings = __salt__["ckan_settings.get"]()
    paths = settings["paths"]
    with __salt__["ckan_stage.running"](settings, "upgrade", release, by, job):
        if kept_as:
            __salt__["ckan_backup.take_again"](settings, kept_as)
        __salt__["ckan_app.migrate"](__salt__["ckan_store.directory"](paths, release), settings)
        return {"current": __salt__["ckan_store.current"](paths)}


def closes(settings: dict, old: dict, new: dict, changed: Iterable[str]) -> bool:
    """
    Say whether visitors get the page of maintenance while the database is changed between two releases, as
    ``migration:when`` says. Code of one CKAN version cannot be expected to get along with the database of another: CKAN
    2.11 answers with errors after the migrations of 2.12.

    settings
        The settings.
    old, new
        The manifest of the release that is served, ``{}`` for none, and that of the one to come, newer or older.
    changed
        What changes in the database: ``core`` and names of plugins.

    CLI Example: not for the command line; ``ckan_release.check`` uses it.
    """
    when, names = settings["migration"]["when"], list(changed)
    if when != "auto" or not old or settings["web"]["server"] == "none":
        return bool(names) and when == "maintenance"
    versions = {tuple(manifest.get("base", {}).get("ckan", "").split(".")[:2]) for manifest in (old, new)}
    return "core" in names and len(versions) > 1


def mismatch(release: str) -> str:
    """
    Say in which way the database is another than a release knows; ``''`` where it is not, and for no release.

    release
        The release.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_schema.mismatch 20261125021500Z
    """
    settings = __salt__["ckan_settings.get"]()
    if not release:
        return ""
    try:
        different = compare(settings, __salt__["ckan_store.directory"](settings["paths"], release), "")
    except CommandExecutionError as exc:
        return str(exc)
    return "; ".join(
        f"{name} is at {_listed(state['at'])} in the database, and {release} knows it up to {_listed(state['knows'])}"
        for name, state in different.items()
    )


def give_back(release: str, by: str = "", job: str = "") -> dict:
    """
    Put the dump of before in the place of a database that a release has migrated, for a deploy that failed while the
    portal was closed on all hosts: nobody has written to it since. A database that the release before gets along with
    is left alone.

    release
        The release that migrated it; the dump has its name.
    by, job
        Who asked, and the run of the master that this belongs to.

    Returns ``{"kept_as": the name that the migrated database has now}``, ``''`` where it was left alone. Raises
    ``CommandExecutionError`` with why it could not be given back.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_schema.give_back 20261125021500Z
    """
    settings = __salt__["ckan_settings.get"]()
    paths = settings["paths"]
    with __salt__["ckan_stage.running"](settings, "give back", release, by, job):
        current_id = __salt__["ckan_store.current"](paths)
        before = current_id if current_id != release else __salt__["ckan_store.read"](paths, release)["previous"]
        closed = __salt__["ckan_maintenance.status"]()["on"]
        if not (before and closed and compare(settings, __salt__["ckan_store.directory"](paths, before), "")):
            return {"kept_as": ""}
        return {"kept_as": __salt__["ckan_backup.put_back"](settings, release)["kept_as"]}


def accept(name: str, knows: str, at: str, by: str = "") -> list[dict]:
    """
    Declare that code which knows a plugin's migrations up to certain heads gets along with a database that is at
    others. Remembered on this host for that pair.

    name
        ``core`` or a plugin.
    knows
        The heads that the code knows, with commas between; ``none`` for none.
    at
        The revisions of the database, with commas between.
    by
        Who says so.

    Returns all that was accepted on this host: ``[{"name", "knows", "at", "by", "since"}]``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_schema.accept mycity r1 r3
    """
    settings = __salt__["ckan_settings.get"]()
    knows_list = [] if knows in ("", "none") else sorted(str(knows).split(","))
    pair = {"name": name, "knows": knows_list, "at": sorted(str(at).split(","))}
    known = _accepted(settings)
    if not any(pair.items() <= entry.items() for entry in known):
        known.append({**pair, "by": by, "since": __salt__["ckan_store.now"]()})
        os.makedirs(settings["paths"]["shared"], exist_ok=True)
        __salt__["ckan_file.write"](_file(settings), json.dumps(known, indent=1) + "\n")
    return known


def accepted(settings: dict, name: str, state: dict) -> bool:
    """
    Say whether a difference was accepted before.

    settings
        The settings.
    name
        ``core`` or a plugin.
    state
        What ``ckan_app.schema`` says of it.

    CLI Example: not for the command line.
    """
    pair = {"name": name, "knows": sorted(state["heads"]), "at": sorted(state["at"])}
    return any(pair.items() <= entry.items() for entry in _accepted(settings))


def _listed(revisions: list[str]) -> str:
    return " and ".join(revisions) or "no revision"


def _accepted(settings: dict) -> list[dict]:
    return json.loads(__salt__["ckan_file.read"](_file(settings), "[]") or "[]")


def _file(settings: dict) -> str:
    return os.path.join(settings["paths"]["shared"], ACCEPTED)
