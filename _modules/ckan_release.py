"""
Releases on one host, as people use them: deploy, rollback, prune, adopt; list, show, diff, history, status.

The stages of a deploy are in ``ckan_release_stages``. What the functions do is in ``ckan_deploy.deploy``.
"""

from __future__ import annotations

from typing import Any

try:
    import ckan_deploy

    ckan_deploy.fresh(__file__)
    from ckan_deploy.deploy import adopt as adoption
    from ckan_deploy.deploy import deploy as deploying
    from ckan_deploy.deploy import prune as pruning
    from ckan_deploy.deploy import repair as repairing
    from ckan_deploy.deploy import rollback as rolling_back
    from ckan_deploy.deploy import status as standing
    from ckan_deploy.deploy import switch
    from ckan_deploy.host import SaltHost, fit_arguments, salt_errors
    from ckan_deploy.releases.site import Site
    from ckan_deploy.system.arguments import flag, whole
except Exception as exc:  # half a sync, another Python
    PROBLEM = f"the formula's package cannot be imported ({type(exc).__name__}: {exc})"
else:
    PROBLEM = ""

__func_alias__ = {"list_": "list"}
# For people; --out json gives the data.
__outputter__ = {"list_": "ckan", "show": "ckan", "diff": "ckan", "history": "ckan"}


def __virtual__() -> bool | tuple[bool, str]:
    return (False, f"{PROBLEM}; type on the master: salt {__opts__['id']} saltutil.sync_all") if PROBLEM else True


def _host() -> SaltHost:
    return SaltHost(__salt__, __opts__, __pillar__, __context__)


def _site(extensions: dict[str, Any] | None = None, fresh: bool = False) -> Site:
    return Site.of(_host(), {"extensions": extensions} if extensions else None, fresh)


def _judged(done: dict[str, Any], finished: bool = True) -> dict[str, Any]:
    """Exit with 1 where a service or the app server does not stay up, and tell what was done all the same."""
    if finished and switch.down(_site()):
        __context__["retcode"] = 1
    return done


def adopt(name: str, release: str = "", ini: str = "", by: str = "") -> dict[str, Any]:
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
    with salt_errors():
        return adoption.adopt(_site(), str(name), str(release), ini, by).to_json()


def end_standby(release: str = "") -> list[str]:
    """
    Stop the app servers of releases that serve no more; Salt's scheduler calls it when ``web:standby`` is over.

    release
        Only that of this one; by default of all.

    Returns the ids of the releases whose servers were stopped.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.end_standby
    """
    with salt_errors():
        return pruning.end_standby(_site(), release)


def rollback_target(to: str = "", force: bool = False, about: bool = False) -> str | dict[str, str]:
    """
    Return the release that ``rollback`` would go to. Changes nothing.

    to
        A release asked for by name.
    force
        Take one that is marked bad, too.
    about
        Return ``{"current": id, "target": id}``, and no error where the host is on ``to`` already.

    Raises ``CommandExecutionError`` when there is none.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.rollback_target
    """
    with salt_errors():
        site = _site()
        current = site.releases.current() if about else ""
        target = current if to and to == current else rolling_back.rollback_target(site, to, force)
        return {"current": current, "target": target} if about else target


def rollback(
    to: str = "", reason: str = "", force: bool = False, by: str = "", finish: bool = True, job: str = "",
    accept_schema: bool = False, downgrade: bool = False, restore: str = "", starts: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """
    Go back to the next older release that was live and is not bad, or to a named one. The one left is marked bad,
    unless it is older than the named one.

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
        The older code works with the database as it is; remembered for this pair.
    downgrade
        Undo the migrations that the release does not know, by the scripts of the one that is left.
    restore
        Put a dump of this host in the place of the database: see ``ckan_backup.restore``.
    starts
        Go through the stage ``start`` first, as ``activate`` does; for a release that is named.

    Returns ``{"current": id, "left": id}``, and ``warnings`` where there are any. Raises ``CommandExecutionError`` when
    there is no such release, or it does not start or answer; the host then serves what it served before.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.rollback reason='search is broken'
        salt web1 ckan_release.rollback to=20261125021500Z
    """
    with salt_errors():
        site, dump = _site(), str(restore)
        done = rolling_back.rollback(site, to, reason, force, by, finish, job, accept_schema, downgrade, dump, starts)
        return _judged(done, finish)


def deploy(
    extensions: dict[str, Any] | None = None, release: str = "", by: str = "", job: str = "", fresh: bool = True,
    maintenance: bool = False, renew: bool = False,
) -> dict[str, Any]:  # fmt: skip
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
        Visitors get the maintenance page from the stage migrate to the end of verify.
    renew
        Ask the package index, also where nothing has changed since that was done.

    Returns ``{"current": id, "previous": id, "changes": [sentences], "seconds": {stage: s}}``, and
    ``warnings`` where there are any. Raises ``CommandExecutionError`` that names the stage. The exit code is 1, too,
    where a service or the app server of the new release does not stay up; a warning says so.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.deploy
    """
    with salt_errors():
        return _judged(deploying.deploy(lambda: _site(extensions, fresh), release, by, job, maintenance, renew))


def catch_up(by: str = "", job: str = "") -> dict[str, Any]:
    """
    Bring this host to the release that its environment is on, which it has missed: the same one, built of the same
    commits and packages, or taken from the releases here.

    by, job
        Who asked, and the id of the job.

    Returns ``{"current": id, "previous": id}``, with ``seconds`` and ``warnings`` where there are any. Raises
    ``CommandExecutionError`` where it is not known which one that is, or it cannot be served; the one before is then.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.catch_up
    """
    with salt_errors():
        return _judged(deploying.catch_up(lambda overrides: Site.of(_host(), overrides, fresh=not overrides), by, job))


def prune(keep: int | None = None, job: str = "") -> list[str]:
    """
    Remove old releases, when nobody else is at work on this host. Kept are the newest good ones, the current one, the
    one a rollback would go to, the one that the environment is on, and those that a process still runs from.

    keep
        How many good releases to keep, 2 or more; by default ``ckan:keep``.
    job
        The run of the master that this belongs to.

    Returns the ids removed. Raises ``CommandExecutionError`` where somebody else is at work, and, when all the rest is
    done, for what cannot be removed.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.prune keep=3
    """
    with salt_errors():
        return pruning.prune(_site(), keep, job)


def repair(accept: bool = False, by: str = "") -> dict[str, Any]:
    """
    Bring files that releases share back to what was installed, where somebody has changed one: in the base, in layers
    and in all releases but the current one. That keeps what it has, until it goes.

    accept
        Keep the changes instead, for later releases as well.
    by
        Who asked.

    Returns ``{"repaired": [paths], "accepted": [paths], "kept": id}``; the last one is the current release where it
    keeps a change, else ''. Raises ``CommandExecutionError`` where somebody else is at work, and, when all the rest is
    done, for what cannot be brought back.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.repair
    """
    with salt_errors():
        return repairing.repaired(_site(), flag("accept", accept), by)


def list_() -> list[dict[str, Any]]:
    """
    Return the releases of this host, newest first, a row each.

    Returns ``[{"release", "state", "current", "created", "by", "extensions": {name: "ref commit" or version}}]``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.list
    """
    with salt_errors():
        return standing.list_releases(_site())


def show(release: str = "", lock: bool = False, full: bool = False) -> dict[str, Any]:
    """
    Return the manifest of a release.

    release
        The id; by default the current one.
    lock
        Return the whole text of the lock file, too; by default how many packages it lists, and where it stands.
    full
        Show hashes, packages and events, too. With ``--out json`` all of the manifest is there in any case.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.show
        salt web1 ckan_release.show 20261125021500Z full=True
    """
    with salt_errors():
        return standing.shown(_site(), release, lock, full)


def diff(old: str = "", new: str = "") -> dict[str, Any]:
    """
    Say what differs between two releases of this host.

    old
        A release; by default the one that a rollback would go to.
    new
        A release; by default the current one.

    Returns ``{"from", "to", "base", "extensions", "packages", "patches", "overrides", "plugins",
    "configuration"}``: for each extension from git the commits between (author, subject, page), for packages the old
    and new version, for the configuration the names of the options added, removed and changed, never a value.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.diff 20261125021500Z 20261126090000Z
    """
    with salt_errors():
        return standing.difference(_site(), old, new)


def config_diff(release: str = "") -> dict[str, Any]:
    """
    Say what a deploy would change in the ini: the pillar as it is now, against the ini of a release.

    release
        A release; by default the current one.

    Returns ``{"release", "added": {option: value}, "removed": {option: value}, "changed": {option: "old -> new"}}``,
    and ``defaults``, the number of options that are not shown since they say what CKAN does without them; of a secret
    only ``(changed)`` is shown.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.config_diff
    """
    with salt_errors():
        return standing.config_diff(_site(fresh=True), release)


def history(limit: int = 50) -> list[dict[str, Any]]:
    """
    Return what was done on this host, newest first: stage, release, result, seconds, who, why, and how drains ended.

    limit
        How many entries at most.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.history limit=10
    """
    with salt_errors():
        return standing.history(_site(), whole("limit", limit))


def status(processes: bool = False) -> dict[str, Any]:
    """
    Say where this host stands: the release linked, the ones with an app server, and the one that answers visitors.

    processes
        Ask the processes, too: which release each has loaded. And say how the last stage of a deploy went.

    Returns ``{"env", "current", "state", "running": [ids], "answers": id or a sentence}``; ``maintenance`` where
    visitors get a page instead; ``link`` where ``current`` names none of our releases, what it is and what to type;
    ``unfinished`` where a deploy died before its end, what is missing; ``changed`` where files that releases share are
    not as they were installed. With ``processes`` also ``{"serving": [ids],
    "drained": {id: what came of the requests of an app server that was told to stop for the current release},
    "workers": {name: id or state}, "last": an entry of the history or {}}``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.status
    """
    with salt_errors():
        return standing.status(_site(fresh=True), processes)


if not PROBLEM:
    fit_arguments(globals())
