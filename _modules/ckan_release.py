"""
The life of a release on one host: plan, build, check, migrate, start, activate, verify, finish; rollback and prune.

Each stage is a function that can be called on its own. A deploy over several hosts calls the same functions, a stage
at a time on all hosts (``orch/deploy.sls``); ``deploy`` here runs them all on this host. How things are built, asked,
stored and served is the business of ``ckan_build``, ``ckan_app``, ``ckan_store``, ``ckan_web`` and ``ckan_front``.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

from packaging.utils import canonicalize_name
from salt.exceptions import CommandExecutionError, SaltException

__virtualname__ = "ckan_release"
__func_alias__ = {"list_": "list"}

# Seconds that a deploy which is taken back waits for what is still at work on the host.
ABORT_WAIT = 60


def __virtual__() -> str:
    return __virtualname__


def plan(
    release: str = "", extensions: dict | None = None, resolve: bool = True, fresh: bool = True, job: str = ""
) -> dict:
    """
    Look whether a deploy could start here, and decide what the release will hold. Changes nothing that is served.

    release
        The id of the release to make; by default a stamp of now.
    extensions
        What differs from the pillar for this deploy, such as ``{ckanext-mycity: {ref: fix-42}}``.
    resolve
        Ask the origins and resolve the packages; False where another host has been asked already.
    fresh
        Take the pillar anew from the master; False where it was a moment ago.
    job
        The run of the master that this belongs to.

    Returns ``{"release", "env", "current", "contents", "extensions": {name: what}, "changes": [sentences],
    "own_changes": [sentences], "host": {...}}``; ``contents`` is what ``ckan_build.resolve`` returns, ``changes``
    compares it with the current release, ``own_changes`` says what this host's pillar changes, ``host`` is what
    ``ckan_plan.host`` returns. Raises ``CommandExecutionError`` with all that is in the way.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.plan
    """
    if fresh:
        __salt__["ckan_settings.refresh"]()
    release = __salt__["ckan_store.check_id"](release or new_id())
    return __salt__["ckan_plan.make"](_settings(extensions), release, resolve, job)


def build(
    release: str, contents: dict | None = None, extensions: dict | None = None, by: str = "", job: str = ""
) -> dict:
    """
    Build a release: clone the base, check out and install the extensions, render the ini, write the manifest.

    release
        The id of the release to make.
    contents
        What ``plan`` decided, here or on another host; decided here where it is missing.
    extensions
        What differs from the pillar for this deploy.
    by, job
        Who asked, and the id of the job.

    Returns the manifest, in state ``built``. Raises ``CommandExecutionError``; the release is then ``failed``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.build 20261125021500Z
    """
    settings = _settings(extensions)
    paths = settings["paths"]
    with __salt__["ckan_stage.running"](settings, "build", release, by, job):
        path = __salt__["ckan_store.directory"](paths, release)
        contents = contents or __salt__["ckan_build.resolve"](settings)
        about = {"env": settings["env"], "site": settings["site"], "extensions": contents["extensions"]}
        __salt__["ckan_store.create"](paths, release, by=by, job=job, **about)
        with _marking_failed(paths, release, by):
            filled = __salt__["ckan_build.fill"](path, settings, contents)
            return __salt__["ckan_store.set_state"](paths, release, "built", by, **filled)


def adopt(name: str, release: str = "", ini: str = "", by: str = "") -> dict:
    """
    Make a release of a virtualenv that something else built, without a rebuild: one to go back to.

    A directory under ``releases`` whose name is a release id stays where it is; any other is cloned and left alone.
    Where ``current`` names the directory that stays, the release is live; else it is one that was.

    name
        A directory under ``releases``, or the absolute path of one.
    release
        The id to give, a UTC stamp; by default what the name or else the time of the directory says.
    ini
        CKAN's ini; by default the one in the directory. It is taken as it is.
    by
        Who asked.

    Returns the manifest. Raises ``CommandExecutionError`` that says why it cannot be adopted; nothing was changed then.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.adopt 20190412093000
        salt web1 ckan_release.adopt /usr/lib/ckan/default release=20190101000000Z ini=/etc/ckan/default/ckan.ini
    """
    settings = _settings()
    paths = settings["paths"]
    planned = __salt__["ckan_adopt.examine"](str(name), settings, str(release), ini)
    release = planned["id"]
    path = __salt__["ckan_store.directory"](paths, release)
    with __salt__["ckan_stage.running"](settings, "adopt", release, by):
        about = {"env": settings["env"], "site": settings["site"], "by": by}
        if not planned["in_place"]:
            __salt__["ckan_store.create"](paths, release, **about)
        try:
            filled = __salt__["ckan_adopt.fill"](path, planned, settings)
        except BaseException:
            if not planned["in_place"]:
                __salt__["ckan_store.remove"](paths, release)
            raise
        state = "live" if __salt__["ckan_store.current"](paths) == release else "retired"
        return __salt__["ckan_store.note_adopted"](paths, release, state, **about, **filled)


def check(release: str, by: str = "", job: str = "", served: bool = False) -> dict:
    """
    Boot CKAN once inside a built release and record what it says.

    release
        The id of a release in state ``built`` or ``checked``.
    by, job
        Who asked, and the run of the master that this belongs to.
    served
        Another host serves this release already, so it gets along with the database.

    Returns ``{"pending", "schema", "plugins", "datasets", "warnings", "ckan_version", "seconds"}``. Raises
    ``CommandExecutionError`` with one line that names the plugin and its exception; the release is then ``failed``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.check 20261125021500Z
    """
    settings = _settings()
    paths = settings["paths"]
    with __salt__["ckan_stage.running"](settings, "check", release, by, job) as warned:
        path = __salt__["ckan_store.directory"](paths, release)
        manifest = __salt__["ckan_store.read"](paths, release)
        _expect(manifest, "built", "checked")
        with _marking_failed(paths, release, by):
            how = __salt__["ckan_build.installer"](settings)
            __salt__["ckan_packages.check"](path, how, tolerate=sorted(manifest.get("overridden", {})))
            __salt__["ckan_data.own"](settings, path)
            result = __salt__["ckan_app.check"](path, settings)
            newer = __salt__["ckan_schema.unknown"](settings, result["schema"], served)
            if newer["problem"]:
                raise CommandExecutionError(newer["problem"])
            result["warnings"] += [f"the database is newer in {name}, which was accepted" for name in newer["leave"]]
            if result["pending"]:
                ahead = __salt__["ckan_migration.foresee"](settings, manifest, result)
                result["maintenance"], result["warnings"] = ahead["maintenance"], result["warnings"] + ahead["warnings"]
            __salt__["ckan_store.set_state"](paths, release, "checked", by, check=result)
        warned += result["warnings"]
        return {**result, "warnings": warned}


def migrate(release: str, by: str = "", job: str = "") -> dict:
    """
    Bring the database to the heads of a checked release, if its check found migrations pending; with a dump of it
    before, as ``backup:when`` says.

    release
        The id of a release in state ``checked``.
    by, job
        Who asked, and the run of the master that this belongs to.

    Returns ``{"migrated": bool, "migration": what ``start`` takes}``. Raises ``CommandExecutionError`` that names what
    failed, says what the database holds, and that the live release runs on it.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.migrate 20261125021500Z
    """
    settings = _settings()
    paths = settings["paths"]
    with __salt__["ckan_stage.running"](settings, "migrate", release, by, job) as warned:
        manifest = __salt__["ckan_store.read"](paths, release)
        _expect(manifest, "checked")
        done = __salt__["ckan_migration.run"](settings, release, manifest["check"])
        warned += done["warnings"]
        if done["migration"]:
            __salt__["ckan_store.set_state"](paths, release, "checked", by, migration=done["migration"])
        return {**done, "warnings": warned}


def start(release: str, by: str = "", job: str = "", migration: dict | None = None) -> dict:
    """
    Start the app server of a complete release on its own socket, and wait until it answers. Visitors see nothing of it.

    release
        The id of a release that is ``checked`` or was live.
    by, job
        Who asked, and the run of the master that this belongs to.
    migration
        What the stage migrate told on the host that ran it; stands in the manifest of the release on all.

    Returns ``{"started": bool, "seconds": ...}``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.start 20261125021500Z
    """
    settings = _settings()
    paths = settings["paths"]
    # To start what is served is a repair, whoever has locked deploys out.
    repair = release == __salt__["ckan_store.current"](paths)
    with __salt__["ckan_stage.running"](settings, "start", release, by, job, locked=not repair):
        manifest = __salt__["ckan_store.read"](paths, release)
        _expect(manifest, "checked", "live", "retired", "bad")
        if migration:
            __salt__["ckan_store.set_state"](paths, release, manifest["state"], by, migration=migration)
        return _start(settings, release)


def activate(release: str, force: bool = False, by: str = "", reason: str = "", job: str = "") -> dict:
    """
    Make a complete release current: its app server answers first, then ``current`` is renamed.

    release
        The id of a release that is ``checked`` or was live.
    force
        Take one that is marked bad, too.
    by, reason, job
        Who asked, why, and the run of the master that this belongs to.

    Returns ``{"current": id, "previous": id}``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.activate 20261125021500Z
    """
    settings = _settings()
    paths = settings["paths"]
    with __salt__["ckan_stage.running"](settings, "activate", release, by, job) as warned:
        manifest = __salt__["ckan_store.read"](paths, release)
        _expect(manifest, "checked", "live", "retired", *(["bad"] if force else []))
        if manifest["state"] == "checked":
            # The stages before have looked after the files; between start and rename nothing is walked through again.
            __salt__["ckan_web.start"](__salt__["ckan_store.directory"](paths, release), settings)
        else:
            _start(settings, release)
        return {**_switch(paths, release, "retired", by, reason), "warnings": warned}


def verify(release: str, by: str = "", job: str = "") -> dict:
    """
    Ask the site through its front door and compare the release that answers.

    release
        The id of the release that must answer.
    by, job
        Who asked, and the run of the master that this belongs to.

    Returns ``{"status", "release", "seconds", "reindex": why the search index must be rebuilt, or ''}``. Raises
    ``CommandExecutionError`` when another answers, or none.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.verify 20261125021500Z
    """
    settings = _settings()
    with __salt__["ckan_stage.running"](settings, "verify", release, by, job, locked=False) as warned:
        linked = __salt__["ckan_store.current"](settings["paths"])
        if linked != release:
            raise CommandExecutionError(f"current points to {linked or 'no release'} instead of {release}.")
        manifest = __salt__["ckan_store.read"](settings["paths"], release)
        why, _ = __salt__["ckan_index.differs"](settings, manifest)
        return {**__salt__["ckan_front.health"](release, settings), "reindex": why, "warnings": warned}


def finish(release: str, prune: bool = True, by: str = "", job: str = "", index: dict | None = None) -> dict:
    """
    End a deploy: the old app servers finish their requests and stop, workers take up the release, old releases are
    pruned. With ``web:standby`` the app server of the release before stays for so long.

    release
        The id of the live release.
    prune
        Prune as well; False after a rollback.
    by, job
        Who asked, and the run of the master that this belongs to.
    index
        What the search index is made of now, on whichever host that was seen to; stands in the manifest.

    Returns ``{"stopped": [ids], "standby": id, "pruned": [ids], "warnings": [sentences]}``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.finish 20261125021500Z
    """
    settings = _settings()
    with __salt__["ckan_stage.running"](settings, "finish", release, by, job) as warned:
        path = __salt__["ckan_store.directory"](settings["paths"], release)
        manifest = __salt__["ckan_store.read"](settings["paths"], release)
        if index:
            __salt__["ckan_store.set_state"](settings["paths"], release, manifest["state"], by, index=index)
        previous = manifest.get("previous", "") if prune else ""
        standby = previous if __salt__["ckan_web.keep_standby"](previous, settings) else ""
        stopped = __salt__["ckan_web.stop_others"](path, settings, standby)
        warned += _follow(settings)
        pruned = _prune(settings, settings["keep"]) if prune else []
        return {"stopped": stopped, "standby": standby, "pruned": pruned, "warnings": warned}


def end_standby() -> list[str]:
    """
    Stop the app servers of releases that serve no more; Salt's scheduler calls it when ``web:standby`` is over.

    Returns the ids of the releases whose servers were stopped.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.end_standby
    """
    settings = _settings()
    paths = settings["paths"]
    __salt__["ckan_web.forget_standby"](settings)
    stopped = []
    for manifest in __salt__["ckan_store.all_manifests"](paths):
        path = __salt__["ckan_store.directory"](paths, manifest["id"])
        # One that is checked belongs to a deploy that is under way.
        if manifest["state"] in ("retired", "bad") and manifest["id"] != __salt__["ckan_store.current"](paths):
            if __salt__["ckan_web.stop"](path, settings):
                stopped.append(manifest["id"])
    return stopped


def abort(release: str, reason: str = "", by: str = "", job: str = "") -> dict:
    """
    Take a deploy back on this host: the release served before is current again, the candidate is removed.

    Safe to call at any stage, more than once, and where the candidate never was.

    release
        The id of the candidate.
    reason, by, job
        Why, who asked, and the run of the master that this belongs to.

    Returns ``{"current": id, "removed": bool}``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.abort 20261125021500Z reason='verify failed on web2'
    """
    settings = _settings()
    paths = settings["paths"]
    path = __salt__["ckan_store.directory"](paths, release)
    if release not in [m["id"] for m in __salt__["ckan_store.all_manifests"](paths)]:
        return {"current": __salt__["ckan_store.current"](paths), "removed": False}
    # A minion that was killed may have left its stage behind, at work.
    with __salt__["ckan_stage.running"](settings, "abort", release, by, job, reason, wait=ABORT_WAIT):
        manifest = __salt__["ckan_store.read"](paths, release)
        if __salt__["ckan_store.current"](paths) == release:
            previous = manifest.get("previous", "")
            if previous:
                __salt__["ckan_web.start"](__salt__["ckan_store.directory"](paths, previous), settings)
                _switch(paths, previous, "failed", by, reason)
                # A worker that ended by itself after the switch was started anew from this release.
                _follow(settings, files=False)
            else:
                # A first deploy: there was no link before, or one of somebody else's.
                __salt__["ckan_store.restore_link"](paths, manifest.get("previous_link", ""))
                __salt__["ckan_web.switched"](settings)
        __salt__["ckan_web.stop"](path, settings)
        __salt__["ckan_store.set_state"](paths, release, "failed", by, reason)
        __salt__["ckan_web.forget"](path, settings)
        __salt__["ckan_store.remove"](paths, release)
        return {"current": __salt__["ckan_store.current"](paths), "removed": True}


def rollback_target(to: str = "", force: bool = False) -> str:
    """
    Return the release that ``rollback`` would go to. Changes nothing.

    to
        A release asked for by name.
    force
        Take one that is marked bad, too.

    Raises ``CommandExecutionError`` when there is none.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.rollback_target
    """
    settings = _settings()
    paths = settings["paths"]
    manifests, current_id = __salt__["ckan_store.all_manifests"](paths), __salt__["ckan_store.current"](paths)
    target = __salt__["ckan_store.rollback_target"](manifests, current_id, to, force)
    path = __salt__["ckan_store.directory"](paths, target)
    for part in (os.path.join(path, "bin/python"), __salt__["ckan_ini.path"](path, settings)):
        if not os.path.exists(part):
            raise CommandExecutionError(
                f"release {target} is not whole on this host: {part} is missing; name another one, or deploy."
            )
    return target


def rollback(
    to: str = "", reason: str = "", force: bool = False, by: str = "", finish: bool = True, job: str = "",
    accept_schema: bool = False, downgrade: bool = False, restore: str = "",
) -> dict:  # fmt: skip
    """
    Go back to the next older release that was live and is not bad, or to a named one. The one left is marked bad.

    A database that the release does not know, since it was migrated meanwhile, is refused: see docs/database.md.

    to
        A release by name.
    reason
        Why; stands in the manifest of the release that is left.
    force
        Go to a release that is marked bad, too.
    by, job
        Who asked, and the run of the master that this belongs to.
    finish
        Stop the app server of the release that is left, and its workers. False in a rollback of a fleet, which has
        compared the database before, and does that last.
    accept_schema
        The older code gets along with the database as it is; remembered for this pair.
    downgrade
        Undo the migrations that the release does not know, by the scripts of the one that is left.
    restore
        Put a dump of this host in the place of the database: see ``ckan_backup.restore``.

    Returns ``{"current": id, "left": id}``, and ``warnings`` where there are any. Raises ``CommandExecutionError`` when
    there is no such release, or it does not start or answer; the host then serves what it served before.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.rollback reason='search is broken'
        salt web1 ckan_release.rollback to=20261125021500Z
    """
    settings = _settings()
    target = rollback_target(to, force)
    found: dict[str, Any] = {}
    if finish or accept_schema:
        found = __salt__["ckan_schema.way_back"](target, accept_schema, downgrade, str(restore))
    undone: dict[str, Any] = {}
    taken_back = bool(found.get("downgrade") or found.get("restore"))
    closed = _closed(by) if taken_back and found["maintenance"] else contextlib.nullcontext()
    with __salt__["ckan_lock.held"](settings, "rollback", target, by, job), closed:
        if taken_back:
            undone = __salt__["ckan_schema.downgrade"](target, by, job, found["restore"])
        elif accept_schema:
            for name, state in found["different"].items():
                __salt__["ckan_schema.accept"](name, ",".join(state["knows"]), ",".join(state["at"]), by)
        left = __salt__["ckan_store.current"](settings["paths"])
        try:
            done = _go(settings, target, "bad", by, reason or "rolled back", job, finish, bool(undone.get("kept_as")))
        except CommandExecutionError as exc:
            if undone:
                # The release that serves again must find its database.
                __salt__["ckan_schema.upgrade"](left, by, job, undone.get("kept_as", ""))
            raise CommandExecutionError(str(exc)) from exc
    done["left"] = done.pop("previous")
    return {**done, **({"undone": undone["undone"]} if undone else {})}


def deploy(
    extensions: dict | None = None, release: str = "", by: str = "", job: str = "", fresh: bool = True,
    maintenance: bool = False,
) -> dict:  # fmt: skip
    """
    Run all stages on this host alone. A failure at any stage leaves the host on the release that it served before.

    extensions
        What differs from the pillar for this deploy.
    release
        The id to give; by default a stamp of now.
    by, job
        Who asked, and the id of the job.
    fresh
        Take the pillar anew from the master; False where it was a moment ago.
    maintenance
        Visitors get the page of ``ckan_maintenance`` from the stage migrate to the end of verify.

    Returns ``{"current": id, "previous": id, "changes": [sentences], "seconds": {stage: s}}``, and
    ``warnings`` where there are any. Raises ``CommandExecutionError`` that names the stage.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.deploy
    """
    try:
        if fresh:
            __salt__["ckan_settings.refresh"]()
        with __salt__["ckan_lock.held"](_settings(extensions), "deploy", release, by, job):
            planned = plan(release, extensions, fresh=False)
            about = {"contents": planned["contents"], "extensions": extensions, "by": by, "job": job}
            done = _through_all_stages(planned["release"], planned["current"], about, maintenance)
    except _StageFailed:
        raise
    except SaltException as exc:
        raise CommandExecutionError(f"the deploy failed at plan: {exc} -- nothing was touched.") from exc
    changes = [*planned["changes"], *planned["own_changes"]]
    return {"current": planned["release"], "previous": planned["current"], "changes": changes, **done}


def catch_up(by: str = "", job: str = "") -> dict:
    """
    Bring this host to the release that its environment is on, which it has missed: that very one, built of the same
    commits and packages, or taken from the releases here.

    by, job
        Who asked, and the id of the job.

    Returns ``{"current": id, "previous": id}``, with ``seconds`` and ``warnings`` where there are any. Raises
    ``CommandExecutionError`` when it is not known which one that is, or when it cannot be served here; the host then
    serves what it served before.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.catch_up
    """
    __salt__["ckan_settings.refresh"]()
    wanted = __salt__["ckan_settings.fleet"]()["wanted"]
    if not wanted:
        raise CommandExecutionError(
            "the pillar does not say which release the environment is on; type on the master: salt-run ckan.status ENV"
        )
    settings, release = _settings(wanted.get("extensions")), wanted["release"]
    paths = settings["paths"]
    with __salt__["ckan_lock.held"](settings, "catch_up", release, by, job):
        current_id = __salt__["ckan_store.current"](paths)
        if current_id == release:
            return {"current": release, "previous": release}
        have = {manifest["id"]: manifest for manifest in __salt__["ckan_store.all_manifests"](paths)}.get(release)
        if have and have["state"] == "bad":
            raise CommandExecutionError(
                f"the environment is on {release}, which is marked bad here ({have.get('bad_reason', '')}); take it "
                f"with: ckan_release.activate {release} force=True"
            )
        if have and have["state"] in ("live", "retired"):
            # What is left is newer where the others went back meanwhile.
            left = "bad" if current_id > release else "retired"
            return _go(settings, release, left, by, "the environment is on another one", job)
        if have:
            abort(release, "left unfinished", by, job)
        problems = __salt__["ckan_build.obstacles"](settings, release, any_age=True)
        if problems:
            raise CommandExecutionError("; ".join(problems) + ".")
        about = {
            "contents": wanted["contents"], "extensions": wanted.get("extensions"), "served": True,
            "by": by, "job": job,
        }  # fmt: skip
        done = _through_all_stages(release, current_id, about)
        return {"current": release, "previous": current_id, **done}


def prune(keep: int | None = None) -> list[str]:
    """
    Remove old releases. Kept are the newest good ones, the current one and the one a rollback would go to.

    keep
        How many good releases to keep; by default ``ckan:keep``.

    Returns the ids removed.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.prune keep=3
    """
    settings = _settings()
    return _prune(settings, settings["keep"] if keep is None else keep)


def list_() -> list[dict]:
    """
    Return the releases of this host, newest first, a row each.

    Returns ``[{"release", "state", "current", "created", "by", "extensions": {name: "ref commit" or version}}]``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.list
    """
    paths = _settings()["paths"]
    current_id = __salt__["ckan_store.current"](paths)
    return [
        {
            "release": m["id"],
            "state": m["state"],
            "current": m["id"] == current_id,
            "created": m.get("created", ""),
            "by": m.get("by", ""),
            "extensions": __salt__["ckan_diff.brief"](m.get("extensions", {})),
            **({"reason": m["bad_reason"]} if m.get("bad_reason") else {}),
        }
        for m in reversed(__salt__["ckan_store.all_manifests"](paths))
    ]


def show(release: str = "") -> dict:
    """
    Return the manifest of a release.

    release
        The id; by default the current one.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.show
    """
    paths = _settings()["paths"]
    release = release or __salt__["ckan_store.current"](paths)
    if not release:
        raise CommandExecutionError("no release is current on this host; run state.apply ckan for the first one.")
    return __salt__["ckan_store.read"](paths, release)


def contents(release: str = "") -> dict:
    """
    Return what a release holds, as ``plan`` decided it: another host can build the same from it.

    release
        The id; by default the current one.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.contents
    """
    manifest = show(release)
    pins = manifest.get("extensions", {})
    # A checkout is installed from its commit, whatever version it says that it has.
    checkouts = {canonicalize_name(name) for name, pin in pins.items() if "commit" in pin}
    return {
        "base": {name: manifest["base"][name] for name in ("ckan", "python")},
        "extensions": pins,
        "patches": manifest.get("patches", []),
        "packages": {name: version for name, version in manifest["packages"].items() if name not in checkouts},
        "overridden": manifest.get("overridden", {}),
    }


def diff(old: str = "", new: str = "") -> dict:
    """
    Say what differs between two releases of this host.

    old
        A release; by default the one that a rollback would go to.
    new
        A release; by default the current one.

    Returns ``{"from", "to", "base", "extensions", "packages", "patches", "plugins", "configuration"}``: for each
    extension from git the commits between with their subjects, for packages old and new version, for the
    configuration the names of the options added, removed and changed, never a value.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.diff 20261125021500Z 20261126090000Z
    """
    settings = _settings()
    paths = settings["paths"]
    one, two = show(old or rollback_target()), show(new)
    difference = __salt__["ckan_diff.compare"](one, two, os.path.join(paths["shared"], "mirrors"))
    folders = [__salt__["ckan_store.directory"](paths, m["id"]) for m in (one, two)]
    difference["configuration"] = __salt__["ckan_ini.names"](*folders, settings)
    return {"from": one["id"], "to": two["id"], **difference}


def config_diff(release: str = "") -> dict:
    """
    Say what a deploy would change in the ini: the pillar as it is now, against the ini of a release.

    release
        A release; by default the current one.

    Returns ``{"release", "added": {option: value}, "removed": {option: value}, "changed": {option: "old -> new"}}``;
    of a secret only ``(changed)`` is shown.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.config_diff
    """
    __salt__["ckan_settings.refresh"]()
    settings = _settings()
    manifest = show(release)
    path = __salt__["ckan_store.directory"](settings["paths"], manifest["id"])
    return {"release": manifest["id"], **__salt__["ckan_ini.diff"](path, settings, manifest.get("secret_options", []))}


def history(limit: int = 50) -> list[dict]:
    """
    Return what was done on this host, newest first: stage, release, result, seconds, who, why.

    limit
        How many entries at most.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.history limit=10
    """
    return __salt__["ckan_store.read_log"](_settings()["paths"], limit)


def status(processes: bool = False) -> dict:
    """
    Say where this host stands: the release linked, the ones with an app server, and the one that answers visitors.

    processes
        Ask the processes, too: which release each has loaded. And say how the last stage of a deploy went.

    Returns ``{"env", "current", "state", "running": [ids], "answers": id or a sentence}``, and ``maintenance`` where
    visitors get a page instead; with ``processes`` also ``{"serving": [ids], "workers": {name: id or state}, "last":
    an entry of the history or {}}``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.status
    """
    __salt__["ckan_settings.refresh"]()
    settings = _settings()
    paths = settings["paths"]
    current_id = __salt__["ckan_store.current"](paths)
    answers, closed = "", __salt__["ckan_maintenance.status"]()
    if current_id:
        try:
            answers = __salt__["ckan_front.health"](current_id, settings, wait=False)["release"]
        except CommandExecutionError as exc:
            answers = str(exc)
    more: dict[str, Any] = {"maintenance": closed} if closed["on"] else {}
    if processes:
        more["serving"] = sorted({row["release"] for row in __salt__["ckan_web.status"]()["processes"]})
        more["workers"] = _workers()
        more["last"] = next(iter(__salt__["ckan_store.read_log"](paths, 1)), {})
    return {
        "env": settings["env"],
        "current": current_id,
        "state": __salt__["ckan_store.read"](paths, current_id)["state"] if current_id else "",
        "running": __salt__["ckan_uwsgi.releases"](settings),
        "answers": answers,
        **more,
    }


def _workers() -> dict[str, str]:
    """What each worker has loaded, or what supervisor says of one that does not run."""
    try:
        rows = __salt__["ckan_jobs.status"]()["workers"]
    except CommandExecutionError as exc:
        return {"all": str(exc)}
    return {row["worker"]: row["release"] or row["state"] for row in rows}


def new_id() -> str:
    """
    Return a release id for now: the UTC stamp.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.new_id
    """
    return time.strftime("%Y%m%d%H%M%SZ", time.gmtime())


def _settings(extensions: dict | None = None) -> dict:
    return __salt__["ckan_settings.get"]({"extensions": extensions} if extensions else None)


def _start(settings: dict, release: str) -> dict:
    """What a release needs before visitors are sent to it."""
    # What is asked for now is not stopped by a job that was meant for the deploy before.
    __salt__["ckan_web.forget_standby"](settings)
    path = __salt__["ckan_store.directory"](settings["paths"], release)
    __salt__["ckan_data.own"](settings, path)
    __salt__["ckan_data.publish"](settings)
    return __salt__["ckan_web.start"](path, settings)


def _reindex(release: str, by: str, job: str, force: bool = False) -> tuple[dict, list[str]]:
    """Look after the search index on this host alone; what goes wrong is a warning, since the site is served."""
    try:
        done = __salt__["ckan_index.rebuild"](release, force, by, job)
    except SaltException as exc:
        return {}, [f"the search index was not rebuilt: {exc}"]
    return done["index"], done["warnings"]


def _follow(settings: dict, files: bool = True) -> list[str]:
    """Workers and cron take up the current release; what does not is a warning, since the site is served."""
    try:
        return __salt__["ckan_jobs.follow"](settings, files)["warnings"]
    except (SaltException, OSError) as exc:
        return [str(exc)]


@contextlib.contextmanager
def _closed(by: str):
    """Visitors get the page of maintenance for a while; one that somebody else has turned on stays."""
    closed = __salt__["ckan_maintenance.on"]("rollback", by, stop_workers=True)["changed"]
    try:
        yield
    finally:
        if closed:
            __salt__["ckan_maintenance.off"](by)


class _StageFailed(CommandExecutionError):
    """A stage after the plan failed, and was taken back."""


def _through_all_stages(release: str, previous: str, about: dict, maintenance: bool = False) -> dict:
    """Build a release on this host alone and make it live; what fails is taken back."""
    by, job = about["by"], about["job"]
    stages = {
        "build": lambda: build(release, about["contents"], about["extensions"], by, job),
        "check": lambda: check(release, by, job, about.get("served", False)),
        "migrate": lambda: migrate(release, by, job),
        "start": lambda: start(release, by, job),
        "activate": lambda: activate(release, by=by, job=job),
        "verify": lambda: verify(release, by, job),
    }
    seconds, closed, done = {}, False, {}
    for name, run in stages.items():
        begun = time.monotonic()
        try:
            if name == "migrate" and (maintenance or done.get("maintenance")):
                closed = __salt__["ckan_maintenance.on"]("deploy", by, stop_workers=True)["changed"]
            done = run()
        except SaltException as exc:
            abort(release, f"{name}: {exc}", by, job)
            # Other hosts may be open, so whether a dump loses nothing is for the operator to say.
            problem = __salt__["ckan_schema.mismatch"](previous) if closed else ""
            serves = f"this host serves {previous or 'what it served'} as before"
            if problem:
                serves += (
                    f", behind the page of maintenance: {problem}; put the dump back (ckan_backup.restore {release}), "
                    "then type: ckan_maintenance.off"
                )
            elif closed:
                __salt__["ckan_maintenance.off"](by)
            text = f"the deploy of {release} failed at {name}: {exc} -- {serves}; mend the cause and deploy again."
            raise _StageFailed(text) from exc
        seconds[name] = round(time.monotonic() - begun, 2)
    if closed:
        __salt__["ckan_maintenance.off"](by)
    # A host that catches up comes to an index that others have seen to.
    index, told = _reindex(release, by, job) if not about.get("served") else ({}, [])
    warned = told + finish(release, by=by, job=job, index=index)["warnings"]
    return {"seconds": seconds, **({"warnings": warned} if warned else {})}


def _go(
    settings: dict, release: str, left_state: str, by: str, reason: str, job: str, finishing: bool = True,
    restored: bool = False,
) -> dict:  # fmt: skip
    """Go to a release that was live before; one that does not answer is left again."""
    paths = settings["paths"]
    with __salt__["ckan_stage.running"](settings, "rollback", release, by, job, reason) as warned:
        left = __salt__["ckan_store.current"](paths)
        _start(settings, release)
        _switch(paths, release, left_state, by, reason)
        if finishing:
            try:
                __salt__["ckan_front.health"](release, settings)
            except CommandExecutionError as exc:
                _switch(paths, left, "retired", by, str(exc))
                raise CommandExecutionError(f"{exc}; this host is back on {left}") from exc
            __salt__["ckan_web.stop_others"](__salt__["ckan_store.directory"](paths, release), settings)
            index, told = _reindex(release, by, job, restored)
            warned += told + _follow(settings)
            if index:
                __salt__["ckan_store.set_state"](paths, release, "live", by, index=index)
        return {"current": release, "previous": left, **({"warnings": warned} if warned else {})}


def _switch(paths: dict, release: str, left_state: str, by: str, reason: str) -> dict:
    """Rename ``current``, and write down what that means for the release that comes and the one that is left."""
    previous = __salt__["ckan_store.current"](paths)
    if previous == release:
        return {"current": release, "previous": previous}
    manifest = __salt__["ckan_store.read"](paths, release)
    if manifest["state"] == "checked":
        # Before the rename, so that a deploy that dies here can still be taken back.
        manifest["previous"] = previous
        manifest["previous_link"] = __salt__["ckan_store.foreign_link"](paths)
        __salt__["ckan_store.write"](paths, manifest)
    __salt__["ckan_store.point"](paths, release)
    __salt__["ckan_web.switched"](_settings())
    __salt__["ckan_store.set_state"](paths, release, "live", by, bad_reason="", came_after=previous)
    if previous:
        left = __salt__["ckan_store.read"](paths, previous)
        if left["state"] == "checked":
            # A switch that was cut short between the rename and its note.
            __salt__["ckan_store.set_state"](paths, previous, "live", by)
        fields: dict[str, Any] = {"bad_reason": reason} if left_state == "bad" else {}
        __salt__["ckan_store.set_state"](paths, previous, left_state, by, reason, **fields)
    return {"current": release, "previous": previous}


def _prune(settings: dict, keep: int) -> list[str]:
    paths = settings["paths"]
    manifests, current_id = __salt__["ckan_store.all_manifests"](paths), __salt__["ckan_store.current"](paths)
    if not current_id:
        return []
    gone = __salt__["ckan_store.prunable"](manifests, current_id, keep)
    for release in gone:
        path = __salt__["ckan_store.directory"](paths, release)
        __salt__["ckan_web.stop"](path, settings, drain=False)
        __salt__["ckan_web.forget"](path, settings)
        __salt__["ckan_store.remove"](paths, release)
    if gone:
        __salt__["ckan_data.forget"](settings)
    kept = [pin for m in manifests if m["id"] not in gone for pin in m.get("extensions", {}).values()]
    __salt__["ckan_origin.forget"](kept, paths["shared"])
    return gone


def _expect(manifest: dict, *states: str) -> None:
    if manifest["state"] not in states:
        raise CommandExecutionError(
            f"release {manifest['id']} is {manifest['state']}, not {' or '.join(states)}; see ckan_release.list."
        )


@contextlib.contextmanager
def _marking_failed(paths: dict, release: str, by: str):
    try:
        yield
    except Exception as exc:
        __salt__["ckan_store.set_state"](paths, release, "failed", by, str(exc))
        raise
