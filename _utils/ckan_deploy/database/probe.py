"""
A CKAN inside a virtualenv: the check by one boot, its database and the migrations of that.

Nothing here knows of releases or web servers: functions take the site and the directory of a virtualenv.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import attrs

from ckan_deploy import scripts
from ckan_deploy.build import environment, ini, plugins
from ckan_deploy.database.script import Script
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.site import Site
from ckan_deploy.settings import mask
from ckan_deploy.system import files

SCRIPT = Script(scripts.PROBE, "CKAN-PROBE ")
# CKAN's own words. What it logs follows them on the same line, and begins with a date.
INDEXING = re.compile(r"Indexing dataset \d+/\d+?(?=\s|\Z|\d{4}-\d\d-\d\d )")
BOOT_TIMEOUT = 300
READ_TIMEOUT = 60

# Heads by ``core`` and plugins: what a database is to be brought to.
Targets = Mapping[str, Sequence[str]]


class State(TypedDict):
    """
    Where the database is, of CKAN itself or of a plugin: the revisions it is at, the heads that the CKAN which was
    asked has, those that are pending (from old to new), and those of ``at`` that this CKAN does not know.
    """

    at: list[str]
    heads: list[str]
    pending: list[str]
    unknown: list[str]


class Newer(TypedDict):
    """Revisions, from old to new, and those of them that have no downgrade."""

    revisions: list[str]
    stuck: list[str]


def check(site: Site, path: str) -> dict[str, Any]:
    """
    Boot CKAN once in a virtualenv and ask it everything: plugins load, configuration valid, migrations pending,
    ``package_search`` answers, the commands of the settings are there.

    site
        The site.
    path
        The directory of the virtualenv, with its ini.

    Returns ``{"ckan_version", "plugins", "pending": {"core"|plugin: revision}, "schema": what ``schema`` returns,
    "datasets", "warnings", "seconds", "broken_plugins": those that nobody enables and that cannot be imported,
    ``{plugin: reason}``}``. Raises ``FormulaError`` with one line that names the plugin and its exception.
    """
    told = {"commands": commands(site), "assets": _assets_to_share(site, path)}
    return _probe(site, "check", path, BOOT_TIMEOUT, told)


def heads(site: Site, path: str) -> dict[str, list[str]]:
    """
    Return the revisions that the database is at, of CKAN itself and of each plugin of a release. Boots no CKAN.

    site, path
        As for ``check``.

    Returns ``{"core" or plugin: [revisions]}``. Raises ``FormulaError`` with what is wrong with the database.
    """
    return {name: state["at"] for name, state in schema(site, path).items()}


def pending_migrations(site: Site, path: str) -> dict[str, list[str]]:
    """
    Return the revisions that a release has and the database has not, from old to new. Boots no CKAN.

    site, path
        As for ``check``.

    Returns ``{"core" or plugin: [revisions]}``, only those with any. Raises ``FormulaError`` with what is wrong with
    the database.
    """
    return {name: state["pending"] for name, state in schema(site, path).items() if state["pending"]}


def schema(site: Site, path: str) -> dict[str, State]:
    """
    Compare the database with what the CKAN in a virtualenv knows of it. Boots no CKAN.

    site, path
        As for ``check``.

    Returns the state of CKAN itself (``core``) and of the plugins that the ini lists; empty where that cannot be told
    (no Alembic). Raises ``FormulaError`` with what is wrong with the database.
    """
    found: dict[str, State] = _probe(site, "read", path, READ_TIMEOUT)["schema"]
    return found


def between(site: Site, path: str, targets: Targets) -> dict[str, Newer]:
    """
    Name the revisions that the database has, and that one who knows certain heads only has not. Boots no CKAN.

    site
        The site.
    path
        The directory of a virtualenv that knows them all: of the newer one.
    targets
        The heads.

    Returns them by ``core`` and plugins; one whose revisions this CKAN does not know is left out. Raises
    ``FormulaError`` with what is wrong with the database.
    """
    found: dict[str, Newer] = _probe(site, "between", path, READ_TIMEOUT, dict(targets))["schema"]
    return found


def migrate(site: Site, path: str, leave: Sequence[str] = (), ini: str = "") -> dict[str, Any]:
    """
    Bring the database to the heads of the CKAN in a virtualenv, core and plugins. Waits for another host that does
    the same.

    site, path
        As for ``check``.
    leave
        Those that are left as they are.
    ini
        Another ini than the one of the virtualenv: it may name another database.

    Returns ``{"before", "after": as ``schema`` returns it, "seconds"}``. Raises ``FormulaError`` that names what
    failed, and says what the database holds now.
    """
    limits = site.settings.migration
    told = {**attrs.asdict(limits), "leave": list(leave), "commands": init_commands(site)}
    return _probe(site, "migrate", path, limits.timeout, told, ini)


def downgrade(site: Site, path: str, targets: Targets) -> dict[str, Any]:
    """
    Take the database back to given heads, by the scripts of the CKAN in a virtualenv.

    site
        The site.
    path
        The directory of a virtualenv that knows all revisions: of the newer one.
    targets
        The heads; an empty list is before the first revision.

    Returns ``{"before", "after": {"core" or plugin: [revisions]}, "seconds"}``. Raises ``FormulaError`` that names what
    failed, and says what the database holds now.
    """
    limits = site.settings.migration
    told = {**attrs.asdict(limits), "targets": {name: list(some) for name, some in targets.items()}}
    return _probe(site, "downgrade", path, limits.timeout, told)


def index_status(site: Site, path: str) -> dict[str, Any]:
    """
    Say what the search index holds. Boots no CKAN.

    site, path
        As for ``check``.

    Returns ``{"datasets": in the database, "indexed": in Solr, "rebuild": how far the last rebuild is or ''}``, and
    ``problem`` where Solr does not say. Raises ``FormulaError`` with what is wrong with the database.
    """
    found = _probe(site, "index", path, READ_TIMEOUT)
    rows = INDEXING.findall(files.end_of(_index_log(site)))
    told: dict[str, Any] = {name: found[name] for name in ("datasets", "indexed", "problem") if name in found}
    return {**told, "rebuild": rows[-1] if rows else ""}


def rebuild_index(site: Site, path: str) -> dict[str, Any]:
    """
    Index every dataset anew: without emptying the index before, or in the second core of ``search:second_core``; and
    without what is no dataset any more after.

    site, path
        As for ``check``.

    Returns ``{"datasets", "indexed", "seconds"}``, and ``swapped`` where it was made in a second core. Raises
    ``FormulaError`` with what CKAN says; the index has what was indexed until then.
    """
    log, search = _index_log(site), site.settings.search
    # CKAN's user writes it.
    files.write(log, "", owner=site.settings.user)
    told = {"log": log, "second_core": search.second_core}
    found = _probe(site, "rebuild", path, search.timeout, told)
    return {name: found[name] for name in ("datasets", "indexed", "swapped", "seconds") if name in found}


def datastore_sql(site: Site, path: str) -> str:
    """
    Return the SQL by which the datastore gets its permissions, as CKAN writes it. There is no secret in it.

    site, path
        As for ``check``.

    Raises ``FormulaError`` with what CKAN says.
    """
    told = {"command": ["datastore", "set-permissions"]}
    return str(_probe(site, "output", path, BOOT_TIMEOUT, told)["output"])


def init_commands(site: Site) -> list[list[str]]:
    """
    Return the commands by which extensions are set up in the database, as words.

    site
        The site.
    """
    return [shlex.split(line) for extension in site.settings.extensions.values() for line in extension.init]


def commands(site: Site) -> dict[str, list[str]]:
    """
    Return the commands of CKAN that the settings name, as words, by their settings.

    site
        The site.
    """
    settings = site.settings
    found = {f"ckan:services:{name}:command": one.command for name, one in settings.services.items()}
    found.update({f"ckan:cron:{name}:command": job.command for name, job in settings.cron.items()})
    for name, extension in settings.extensions.items():
        found.update({f"ckan:extensions:{name}:init:{index}": line for index, line in enumerate(extension.init)})
    return {name: shlex.split(line) for name, line in found.items() if line}


def _assets_to_share(site: Site, path: str) -> str:
    """The web assets that those of a release may be one file with: those of the current release; '' for none."""
    current = site.releases.current()
    if not current or site.releases.directory(current) == path or site.settings.link == "copy":
        return ""
    return ini.assets(site.releases.directory(current))


def _index_log(site: Site) -> str:
    return os.path.join(site.paths.log, f"{site.settings.site}-search-index.log")


def _probe(
    site: Site, mode: str, path: str, timeout: float, told: Mapping[str, Any] | None = None, other_ini: str = ""
) -> dict[str, Any]:
    python = os.path.join(path, "bin", "python")
    if not os.path.exists(python):
        raise FormulaError(f"there is no CKAN in {path}: {python} is missing.")
    config = other_ini or ini.path(site, path)
    # As the user of the site: what a boot writes (web assets, caches) must be the site's own.
    arguments = ["-", mode, config, json.dumps(told or {})]
    variables = {**environment.read(path), "CKAN_INI": config}
    answer, last = SCRIPT.run(site, python, arguments, path, timeout, env=variables)
    if answer is None:
        raise FormulaError(f"CKAN in {path} ended without an answer: {last}")
    answer["errors"] = [plugins.advised(text, path, _plugin_of(text), site.settings) for text in answer["errors"]]
    return _answer(site, answer)


def _plugin_of(error: str) -> str:
    match = re.match(r"plugin (\S+) does not start: ", error)
    return match[1] if match else ""


def _answer(site: Site, result: dict[str, Any]) -> dict[str, Any]:
    """What the probe said, without secrets. Raises ``FormulaError`` where it says that something is wrong."""
    for kind in ("errors", "warnings"):
        result[kind] = [mask.text(text, site.settings) for text in result[kind]]
    if "broken_plugins" in result:
        found = result["broken_plugins"].items()
        result["broken_plugins"] = {name: mask.text(text, site.settings) for name, text in found}
    if "problem" in result:
        result["problem"] = mask.text(result["problem"], site.settings)
    if not result.pop("ok"):
        message = "; ".join(result["errors"])
        now = result.get("after") or result.get("before")
        message += f"; the database is now at {_heads_text(now)}" if now else ""
        raise FormulaError(message).with_details(mask.lines(result.get("traceback", ""), site.settings))
    return result


def _heads_text(found: Mapping[str, Any]) -> str:
    """At which revisions a database is; found as ``schema`` or ``heads`` return it."""
    at = {name: state["at"] if isinstance(state, dict) else state for name, state in found.items()}
    return ", ".join(f"{name} {' and '.join(some)}" for name, some in at.items() if some) or "no revision"
