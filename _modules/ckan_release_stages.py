"""
The stages of a deploy on one host, as further functions of ``ckan_release``: what orchestrations call, a stage at a
time on all hosts. What they do is in the package ``ckan_deploy.deploy``.
"""

from __future__ import annotations

from typing import Any

try:
    import ckan_deploy

    ckan_deploy.fresh(__file__)
    from ckan_deploy.build.shipment import Shipment, check_key
    from ckan_deploy.database import search_index
    from ckan_deploy.deploy import plan as planning
    from ckan_deploy.deploy import rollback as rolling_back
    from ckan_deploy.deploy import stages
    from ckan_deploy.deploy import status as standing
    from ckan_deploy.errors import InvalidArgument
    from ckan_deploy.host import SaltHost, fit_arguments, salt_errors
    from ckan_deploy.releases.ids import check_id, new_id
    from ckan_deploy.releases.manifest import Resolution
    from ckan_deploy.releases.site import Site
    from ckan_deploy.system.arguments import flag, mapping, text
except Exception as exc:  # half a sync, another Python
    PROBLEM = f"the formula's package cannot be imported ({type(exc).__name__}: {exc})"
else:
    PROBLEM = ""

# Salt puts the functions of both files under one name, as it does for apache and deb_apache.
__virtualname__ = "ckan_release"


def __virtual__() -> str | tuple[bool, str]:
    if PROBLEM:
        return False, f"{PROBLEM}; type on the master: salt {__opts__['id']} saltutil.sync_all"
    return __virtualname__


def _site(extensions: dict[str, Any] | None = None, fresh: bool = False) -> Site:
    overrides = {"extensions": extensions} if extensions else None
    return Site.of(SaltHost(__salt__, __opts__, __pillar__, __context__), overrides, fresh)


def _host(name: str) -> str:
    """The id of a minion: it becomes part of the name of a file."""
    name = text("sees", name)
    if "/" in name:
        raise InvalidArgument(f"sees is {name!r}; name a host.")
    return name


def plan(
    release: str = "", extensions: dict[str, Any] | None = None, resolve: bool = True, fresh: bool = True,
    job: str = "", contents: dict[str, Any] | None = None, sees: str = "", renew: bool = False,
) -> dict[str, Any]:  # fmt: skip
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
    contents
        What the release is to hold, where it is what another environment has live: no ref is asked for then.
    sees
        The host whose mark in a shared storage this one is to see.
    renew
        Ask the package index, also where nothing has changed since that was done (``ckan:installer:reuse_hours``).

    Returns ``{"release", "env", "current", "contents", "extensions": {name: what}, "changes": [sentences],
    "own_changes": [sentences], "remarks": [sentences], "own_remarks": [sentences], "differs": [sentences],
    "details": {...}, "host": {...}}``; ``contents`` is the resolution, ``changes`` compares it with the current
    release, ``own_changes`` says what this host's pillar changes, the remarks are no changes, ``differs`` says how
    ``contents`` of another environment go with it, ``details`` is what the report shows of the changes, ``host`` is
    what the fleet must know of this host. Raises ``CommandExecutionError`` with all that is in the way.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.plan
    """
    with salt_errors():
        site = _site(extensions, fresh)
        given = Resolution.of(contents) if contents else None
        return planning.make(site, check_id(release or new_id()), resolve, job, given, _host(sees), renew).to_json()


def build(
    release: str,
    contents: dict[str, Any] | None = None,
    extensions: dict[str, Any] | None = None,
    by: str = "",
    job: str = "",
    shipped: dict[str, Any] | None = None,
) -> dict[str, Any]:
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
    shipped
        What ``pack`` returned on the host that has built it; built here where it is missing.

    Returns the manifest, in state ``built``. Raises ``CommandExecutionError``; the release is then ``failed``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.build 20261125021500Z
    """
    with salt_errors():
        planned = Resolution.of(contents) if contents else None
        packed = Shipment.of(shipped) if shipped else None
        return stages.build(_site(extensions), release, planned, by, job, packed).to_json()


def clone(release: str, contents: dict[str, Any], layer: str, by: str = "", job: str = "") -> dict[str, Any]:
    """
    Begin a release that another host is building: the clone of its layer, which is here already. ``build`` goes on
    with it, and does it all where this was not called or failed.

    release
        The id of the release to make.
    contents
        What ``plan`` decided on the other host.
    layer
        The name of the layer, as that plan says it.
    by, job
        Who asked, and the run of the master that this belongs to.

    Returns ``{"cloned": layer}``.

    CLI Example:

    .. code-block:: bash

        salt web2 ckan_release.clone 20261125021500Z "$contents" layer=0123456789abcdef
    """
    with salt_errors():
        return stages.clone(_site(), release, Resolution.of(contents), check_key(layer), by, job)


def pack(release: str, by: str = "", job: str = "", layer: bool = True) -> dict[str, Any]:
    """
    Pack a release that was built here, for hosts that do not build, and hand it over as ``ckan:build:store`` says.

    release
        The id of a release in state ``built``.
    by, job
        Who asked, and the run of the master that this belongs to.
    layer
        Hand over its layer, too; False where all the others have it.

    Returns ``{"shipped", "contents"}``, which ``build`` takes on the other hosts. Raises ``CommandExecutionError``; the
    release is then ``failed``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.pack 20261125021500Z
    """
    with salt_errors():
        return stages.pack(_site(), release, by, job, layer)


def check(
    release: str, by: str = "", job: str = "", served: bool = False, closes: bool = False, boots: bool = False
) -> dict[str, Any]:  # fmt: skip
    """
    Boot CKAN once inside a built release and record what it says.

    release
        The id of a release in state ``built`` or ``checked``.
    by, job
        Who asked, and the run of the master that this belongs to.
    served
        Another host serves this release already, so it works with the database.
    closes
        Visitors will get the maintenance page for the migration, whatever the settings say.
    boots
        Start the app server of the release meanwhile, for the stage ``start``; not where that has hooks, and not kept
        where a migration is pending.

    Returns ``{"pending", "migrates": whether the stage ``migrate`` has anything to do, "schema", "plugins", "datasets",
    "warnings", "ckan_version", "seconds"}``. Raises ``CommandExecutionError`` with one line that names the plugin and
    its exception; the release is then ``failed``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.check 20261125021500Z
    """
    with salt_errors():
        return stages.check(_site(), release, by, job, served, closes, boots)


def migrate(release: str, by: str = "", job: str = "") -> dict[str, Any]:
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
    with salt_errors():
        return stages.migrate(_site(), release, by, job)


def start(
    release: str, by: str = "", job: str = "", migration: dict[str, Any] | None = None, ahead: bool = False
) -> dict[str, Any]:
    """
    Start the app server of a complete release on its own socket, and wait until it answers. Visitors see nothing of it.

    release
        The id of a release that is ``checked`` or was live.
    by, job
        Who asked, and the run of the master that this belongs to.
    migration
        What the stage migrate told on the host that ran it; stands in the manifest of the release on all.
    ahead
        Only boot a release that was live, while a rollback looks whether it can go there. Not where the stage has
        hooks; nothing is written to the history.

    Returns ``{"started": bool, "seconds": ...}``, with ``ahead`` without the seconds.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.start 20261125021500Z
    """
    with salt_errors():
        if flag("ahead", ahead):
            return rolling_back.boot(_site(), check_id(release), by, job)
        return stages.start(_site(), release, by, job, mapping("migration", migration))


def activate(
    release: str, force: bool = False, by: str = "", reason: str = "", job: str = "", starts: bool = False,
    migration: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """
    Make a complete release current: its app server answers first, then ``current`` is renamed.

    release
        The id of a release that is ``checked`` or was live.
    force
        Take one that is marked bad, too.
    by, reason, job
        Who asked, why, and the run of the master that this belongs to.
    starts, migration
        Go through the stage ``start`` first, and what that takes: one job where nobody waits for other hosts.

    Returns ``{"current": id, "previous": id}``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.activate 20261125021500Z
    """
    with salt_errors():
        migrated = mapping("migration", migration)
        return stages.activate(_site(), release, force, by, reason, job, flag("starts", starts), migrated)


def verify(release: str, by: str = "", job: str = "") -> dict[str, Any]:
    """
    Ask the site through its web server and compare the release that answers.

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
    with salt_errors():
        return stages.verify(_site(), release, by, job)


def finish(
    release: str, prune: bool = True, by: str = "", job: str = "", index: dict[str, Any] | None = None,
    again: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """
    End a deploy: the old app servers finish their requests and stop, services change over to the release, old
    releases are pruned. With ``web:standby`` the app server of the release before stays for so long.

    release
        The id of the live release.
    prune
        Prune as well; False after a rollback.
    by, job
        Who asked, and the run of the master that this belongs to.
    index
        What the search index is made of now, on whichever host that was seen to; stands in the manifest.
    again
        The release has served before, with the database as it is. Where all of it stayed up then, with the same
        services, it has to run, and is not watched for ``stable_seconds`` once more.

    Returns ``{"stopped": [ids], "standby": id, "pruned": [ids], "warnings": [sentences]}``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.finish 20261125021500Z
    """
    with salt_errors():
        return stages.finish(_site(), release, prune, by, job, search_index.checked(mapping("index", index)), again)


def abort(release: str, reason: str = "", by: str = "", job: str = "") -> dict[str, Any]:
    """
    Revert a deploy on this host: the release served before is current again, the candidate is removed.

    Safe to call at any stage, more than once, and where the candidate never was.

    release
        The id of the candidate.
    reason, by, job
        Why, who asked, and the run of the master that this belongs to.

    Returns ``{"current": id, "removed": bool}``, and ``warnings`` where there are any.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.abort 20261125021500Z reason='verify failed on web2'
    """
    with salt_errors():
        return stages.abort(_site(), release, reason, by, job)


def contents(release: str = "") -> dict[str, Any]:
    """
    Return what a release holds, as ``plan`` decided it: another host can build the same from it.

    release
        The id; by default the current one.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.contents
    """
    with salt_errors():
        return standing.contents(_site(), release)


if not PROBLEM:
    fit_arguments(globals())
