"""
The life of a release on one host: plan, build, check, migrate, start, activate, verify, finish; rollback and prune.

Each stage is a function that can be called on its own. A deploy over several hosts calls the same functions, a stage
at a time on all hosts (``orch/deploy.sls``); ``deploy`` here runs them all on this host. How things are built, asked,
stored and served is the business of ``ckan_build``, ``ckan_app``, ``ckan_store`` and ``ckan_web``.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

from salt.exceptions import CommandExecutionError, SaltException

__virtualname__ = "ckan_release"
__func_alias__ = {"list_": "list"}


def __virtual__() -> str:
    return __virtualname__


def plan(release: str = "", extensions: dict | None = None, resolve: bool = True) -> dict:
    """
    Look whether a deploy could start here, and resolve the refs of the extensions to commits. Changes nothing.

    release
        The id of the release to make; by default a stamp of now.
    extensions
        What differs from the pillar for this deploy, such as ``{ckanext-mycity: {ref: fix-42}}``.
    resolve
        Ask the origins for the commits; False where another host has been asked already.

    Returns ``{"release", "env", "current", "commits": {extension: commit}}``. Raises
    ``CommandExecutionError`` with all that is in the way.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.plan
    """
    settings = _settings(extensions)
    paths = settings["paths"]
    release = __salt__["ckan_store.check_id"](release or new_id())
    problems = __salt__["ckan_build.obstacles"](settings, release)
    if problems:
        raise CommandExecutionError("; ".join(problems) + ".")
    commits = __salt__["ckan_build.resolve"](settings) if resolve else {}
    return {
        "release": release,
        "env": settings["env"],
        "current": __salt__["ckan_store.current"](paths),
        "commits": commits,
    }


def build(
    release: str, commits: dict | None = None, extensions: dict | None = None, by: str = "", job: str = ""
) -> dict:
    """
    Build a release: clone the base, check out and install the extensions, render the ini, write the manifest.

    release
        The id of the release to make.
    commits
        The commit of each extension, as ``plan`` gave it; refs are resolved here where it is missing.
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
    with _stage(settings, "build", release, by):
        path = __salt__["ckan_store.directory"](paths, release)
        __salt__["ckan_store.create"](paths, release, env=settings["env"], site=settings["site"], by=by, job=job)
        with _marking_failed(paths, release, by):
            contents = __salt__["ckan_build.fill"](path, settings, commits)
            return __salt__["ckan_store.set_state"](paths, release, "built", by, **contents)


def check(release: str, by: str = "") -> dict:
    """
    Boot CKAN once inside a built release and record what it says.

    release
        The id of a release in state ``built`` or ``checked``.
    by
        Who asked.

    Returns ``{"pending", "heads", "plugins", "datasets", "warnings", "ckan_version", "seconds"}``. Raises
    ``CommandExecutionError`` with one line that names the plugin and its exception; the release is then ``failed``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.check 20261125021500Z
    """
    settings = _settings()
    paths = settings["paths"]
    with _stage(settings, "check", release, by):
        path = __salt__["ckan_store.directory"](paths, release)
        _expect(__salt__["ckan_store.read"](paths, release), "built", "checked")
        with _marking_failed(paths, release, by):
            __salt__["ckan_venv.check"](path, uv=settings["installer"]["uv"])
            result = __salt__["ckan_app.check"](path, settings)
            __salt__["ckan_store.set_state"](paths, release, "checked", by, check=result)
            return result


def migrate(release: str, by: str = "") -> dict:
    """
    Bring the database to the heads of a checked release, if its check found migrations pending.

    release
        The id of a release in state ``checked``.
    by
        Who asked.

    Returns ``{"migrated": bool, "heads": {...}}``. Raises ``CommandExecutionError`` that says what the database holds.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.migrate 20261125021500Z
    """
    settings = _settings()
    paths = settings["paths"]
    with _stage(settings, "migrate", release, by):
        manifest = __salt__["ckan_store.read"](paths, release)
        _expect(manifest, "checked")
        if not manifest["check"].get("pending"):
            return {"migrated": False, "heads": manifest["check"].get("heads", {})}
        result = __salt__["ckan_app.migrate"](__salt__["ckan_store.directory"](paths, release), settings)
        __salt__["ckan_store.set_state"](paths, release, "checked", by, migration=result)
        return {"migrated": True, "heads": result["heads"]}


def start(release: str, by: str = "") -> dict:
    """
    Start the app server of a complete release on its own socket, and wait until it answers. Visitors see nothing of it.

    release
        The id of a release that is ``checked`` or was live.
    by
        Who asked.

    Returns ``{"started": bool, "seconds": ...}``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.start 20261125021500Z
    """
    settings = _settings()
    paths = settings["paths"]
    with _stage(settings, "start", release, by):
        _expect(__salt__["ckan_store.read"](paths, release), "checked", "live", "retired", "bad")
        return __salt__["ckan_web.start"](__salt__["ckan_store.directory"](paths, release), settings)


def activate(release: str, force: bool = False, by: str = "", reason: str = "") -> dict:
    """
    Make a complete release current: its app server answers first, then ``current`` is renamed.

    release
        The id of a release that is ``checked`` or was live.
    force
        Take one that is marked bad, too.
    by, reason
        Who asked, and why.

    Returns ``{"current": id, "previous": id}``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.activate 20261125021500Z
    """
    settings = _settings()
    paths = settings["paths"]
    with _stage(settings, "activate", release, by):
        manifest = __salt__["ckan_store.read"](paths, release)
        _expect(manifest, "checked", "live", "retired", *(["bad"] if force else []))
        __salt__["ckan_web.start"](__salt__["ckan_store.directory"](paths, release), settings)
        return _switch(paths, release, "retired", by, reason)


def verify(release: str, by: str = "") -> dict:
    """
    Ask the site through its front door and compare the release that answers.

    release
        The id of the release that must answer.
    by
        Who asked.

    Returns ``{"status", "release", "seconds"}``. Raises ``CommandExecutionError`` when another answers, or none.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.verify 20261125021500Z
    """
    settings = _settings()
    with _stage(settings, "verify", release, by):
        linked = __salt__["ckan_store.current"](settings["paths"])
        if linked != release:
            raise CommandExecutionError(f"current points to {linked or 'no release'} instead of {release}.")
        return __salt__["ckan_web.health"](release, settings)


def finish(release: str, prune: bool = True, by: str = "") -> dict:
    """
    End a deploy: the old app servers finish their requests and stop, old releases are pruned.

    release
        The id of the live release.
    prune
        Prune as well; False after a rollback.
    by
        Who asked.

    Returns ``{"stopped": [ids], "pruned": [ids]}``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.finish 20261125021500Z
    """
    settings = _settings()
    with _stage(settings, "finish", release, by):
        path = __salt__["ckan_store.directory"](settings["paths"], release)
        stopped = __salt__["ckan_web.stop_others"](path, settings)
        return {"stopped": stopped, "pruned": _prune(settings, settings["keep"]) if prune else []}


def abort(release: str, reason: str = "", by: str = "") -> dict:
    """
    Take a deploy back on this host: the release served before is current again, the candidate is removed.

    Safe to call at any stage, more than once, and where the candidate never was.

    release
        The id of the candidate.
    reason, by
        Why, and who asked.

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
    with _stage(settings, "abort", release, by, reason):
        manifest = __salt__["ckan_store.read"](paths, release)
        if __salt__["ckan_store.current"](paths) == release:
            previous = manifest.get("previous", "")
            if previous:
                __salt__["ckan_web.start"](__salt__["ckan_store.directory"](paths, previous), settings)
                _switch(paths, previous, "failed", by, reason)
            else:
                os.unlink(paths["current"])  # a first deploy: there was none before
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
    paths = _settings()["paths"]
    manifests, current_id = __salt__["ckan_store.all_manifests"](paths), __salt__["ckan_store.current"](paths)
    return __salt__["ckan_store.rollback_target"](manifests, current_id, to, force)


def rollback(to: str = "", reason: str = "", force: bool = False, by: str = "", finish: bool = True) -> dict:
    """
    Go back to the next older release that was live and is not bad, or to a named one. The one left is marked bad.

    to
        A release by name.
    reason
        Why; stands in the manifest of the release that is left.
    force
        Go to a release that is marked bad, too.
    by
        Who asked.
    finish
        Stop the app server of the release that is left. False in a rollback of a fleet, which does that last.

    Returns ``{"current": id, "left": id}``. Raises ``CommandExecutionError`` when there is no such release, or it does
    not start or answer; the host then serves what it served before.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.rollback reason='search is broken'
        salt web1 ckan_release.rollback to=20261125021500Z
    """
    settings = _settings()
    paths = settings["paths"]
    target = rollback_target(to, force)
    with _stage(settings, "rollback", target, by, reason):
        left = __salt__["ckan_store.current"](paths)
        __salt__["ckan_web.start"](__salt__["ckan_store.directory"](paths, target), settings)
        _switch(paths, target, "bad", by, reason or "rolled back")
        if finish:
            try:
                __salt__["ckan_web.health"](target, settings)
            except CommandExecutionError as exc:
                _switch(paths, left, "retired", by, str(exc))
                raise CommandExecutionError(f"{exc}; this host is back on {left}") from exc
            __salt__["ckan_web.stop_others"](__salt__["ckan_store.directory"](paths, target), settings)
        return {"current": target, "left": left}


def deploy(extensions: dict | None = None, release: str = "", by: str = "", job: str = "") -> dict:
    """
    Run all stages on this host alone. A failure at any stage leaves the host on the release that it served before.

    extensions
        What differs from the pillar for this deploy.
    release
        The id to give; by default a stamp of now.
    by, job
        Who asked, and the id of the job.

    Returns ``{"current": id, "previous": id, "commits": {...}, "seconds": {stage: s}}``. Raises
    ``CommandExecutionError`` that names the stage.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.deploy
    """
    seconds = {}
    planned = plan(release, extensions)
    release = planned["release"]
    stages = {
        "build": lambda: build(release, planned["commits"], extensions, by, job),
        "check": lambda: check(release, by),
        "migrate": lambda: migrate(release, by),
        "start": lambda: start(release, by),
        "activate": lambda: activate(release, by=by),
        "verify": lambda: verify(release, by),
    }
    for name, run in stages.items():
        begun = time.monotonic()
        try:
            run()
        except SaltException as exc:
            abort(release, f"{name}: {exc}", by)
            raise CommandExecutionError(
                f"the deploy of {release} failed at {name}: {exc} -- this host serves "
                f"{planned['current'] or 'what it served'} as before; mend the cause and deploy again."
            ) from exc
        seconds[name] = round(time.monotonic() - begun, 2)
    finish(release, by=by)
    return {"current": release, "previous": planned["current"], "commits": planned["commits"], "seconds": seconds}


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

    Returns ``[{"release", "state", "current", "created", "by", "commits": {extension: "ref commit"}}]``.

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
            "commits": {name: f"{e['ref']} {e['commit'][:12]}" for name, e in m.get("extensions", {}).items()},
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


def status() -> dict:
    """
    Say where this host stands: the release linked, the ones with an app server, and the one that answers visitors.

    Returns ``{"env", "current", "state", "running": [ids], "answers": id or a sentence}``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.status
    """
    settings = _settings()
    paths = settings["paths"]
    current_id = __salt__["ckan_store.current"](paths)
    answers = ""
    if current_id:
        try:
            answers = __salt__["ckan_web.health"](current_id, settings)["release"]
        except CommandExecutionError as exc:
            answers = str(exc)
    return {
        "env": settings["env"],
        "current": current_id,
        "state": __salt__["ckan_store.read"](paths, current_id)["state"] if current_id else "",
        "running": __salt__["ckan_web.running"](settings),
        "answers": answers,
    }


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


def _switch(paths: dict, release: str, left_state: str, by: str, reason: str) -> dict:
    """Rename ``current``, and write down what that means for the release that comes and the one that is left."""
    previous = __salt__["ckan_store.current"](paths)
    if previous == release:
        return {"current": release, "previous": previous}
    manifest = __salt__["ckan_store.read"](paths, release)
    if manifest["state"] == "checked":
        # Before the rename, so that a deploy that dies here can still be taken back.
        manifest["previous"] = previous
        __salt__["ckan_store.write"](paths, manifest)
    __salt__["ckan_store.point"](paths, release)
    __salt__["ckan_store.set_state"](paths, release, "live", by, bad_reason="")
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


@contextlib.contextmanager
def _stage(settings: dict, name: str, release: str, by: str, reason: str = ""):
    """Time a stage, write it to the host's log, and turn what the system says into a sentence."""
    begun = time.monotonic()
    entry = {"stage": name, "release": release, "env": settings["env"], "by": by, "reason": reason}
    try:
        yield
    except (SaltException, OSError) as exc:
        entry.update(result="failed", reason=str(exc))
        if isinstance(exc, SaltException):
            raise
        raise CommandExecutionError(f"{exc.strerror or exc}: {exc.filename or 'unknown file'}") from exc
    else:
        entry["result"] = "ok"
    finally:
        entry["seconds"] = round(time.monotonic() - begun, 3)
        __salt__["ckan_store.append_log"](settings["paths"], **{k: v for k, v in entry.items() if v != ""})
