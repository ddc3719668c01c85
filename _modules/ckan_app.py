"""
A CKAN inside a virtualenv: the check by one boot, its database and the migrations of that.

Nothing here knows of releases or web servers: functions take the directory of a virtualenv and the settings.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_app"

# One text for the interpreter of the virtualenv.
SCRIPTS = tuple(f"salt://ckan/files/{name}.py" for name in ("schema", "search", "probe"))
MARK = "CKAN-PROBE "
# CKAN's own words. What it logs follows them on the same line, and begins with a date.
INDEXING = re.compile(r"Indexing dataset \d+/\d+?(?=\s|\Z|\d{4}-\d\d-\d\d )")
BOOT_TIMEOUT = 300
READ_TIMEOUT = 60


def __virtual__() -> str:
    return __virtualname__


def check(path: str, settings: dict) -> dict:
    """
    Boot CKAN once in a virtualenv and ask it everything: plugins load, configuration valid, migrations pending,
    ``package_search`` answers.

    path
        The directory of the virtualenv, with its ini.
    settings
        The settings.

    Returns ``{"ckan_version", "plugins", "pending": {"core"|plugin: revision}, "schema": what ``schema`` returns,
    "datasets", "warnings", "seconds"}``. Raises ``CommandExecutionError`` with one line that names the plugin and its
    exception.

    CLI Example: not for the command line; use ``ckan_release.check``.
    """
    return _probe("check", path, settings, BOOT_TIMEOUT)


def heads(path: str = "") -> dict:
    """
    Return the revisions that the database is at, of CKAN itself and of each plugin of a release. Boots no CKAN.

    path
        The directory of a release; by default the current one.

    Returns ``{"core" or plugin: [revisions]}``. Raises ``CommandExecutionError`` with what is wrong with the database.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_app.heads
    """
    settings = __salt__["ckan_settings.get"]()
    return {name: state["at"] for name, state in schema(path or settings["paths"]["current"], settings).items()}


def pending_migrations(path: str = "") -> dict:
    """
    Return the revisions that a release has and the database has not, from old to new. Boots no CKAN.

    path
        The directory of a release; by default the current one.

    Returns ``{"core" or plugin: [revisions]}``, only those with any. Raises ``CommandExecutionError`` with what is
    wrong with the database.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_app.pending_migrations
    """
    settings = __salt__["ckan_settings.get"]()
    found = schema(path or settings["paths"]["current"], settings)
    return {name: state["pending"] for name, state in found.items() if state["pending"]}


def schema(path: str, settings: dict) -> dict:
    """
    Compare the database with what the CKAN in a virtualenv knows of it. Boots no CKAN.

    path
        The directory of the virtualenv, with its ini.
    settings
        The settings.

    Returns ``{"core" or plugin: {"at": [revisions], "heads": [revisions], "pending": [revisions, from old to new],
    "unknown": [those of "at" that this CKAN does not know]}}`` for CKAN itself and the plugins that the ini lists;
    empty where that cannot be told (no Alembic). Raises ``CommandExecutionError`` with what is wrong with the database.

    CLI Example: not for the command line; use ``ckan_app.heads`` or ``ckan_app.pending_migrations``.
    """
    return _probe("read", path, settings, READ_TIMEOUT)["schema"]


def between(path: str, settings: dict, targets: dict) -> dict:
    """
    Name the revisions that the database has, and that one who knows certain heads only has not. Boots no CKAN.

    path
        The directory of a virtualenv that knows them all: of the newer one.
    settings
        The settings.
    targets
        ``{"core" or plugin: [heads]}``.

    Returns ``{"core" or plugin: {"revisions": from old to new, "stuck": those that have no downgrade}}``; one whose
    revisions this CKAN does not know is left out.

    CLI Example: not for the command line; ``ckan_schema`` uses it.
    """
    return _probe("between", path, settings, READ_TIMEOUT, targets)["schema"]


def migrate(path: str, settings: dict, leave: list[str] | None = None, ini: str = "") -> dict:
    """
    Bring the database to the heads of the CKAN in a virtualenv, core and plugins. Waits for another host that does
    the same.

    path
        The directory of the virtualenv, with its ini.
    settings
        The settings.
    leave
        Those that are left as they are.
    ini
        Another ini than the one of the virtualenv: it may name another database.

    Returns ``{"before", "after": as ``schema`` returns it, "seconds"}``. Raises ``CommandExecutionError`` that names
    what failed, and says what the database holds now.

    CLI Example: not for the command line; use ``ckan_release.migrate``.
    """
    limits = settings["migration"]
    told = {**limits, "leave": leave or [], "commands": init_commands(settings)}
    return _probe("migrate", path, settings, limits["timeout"], told, ini)


def index_status(path: str = "") -> dict:
    """
    Say what the search index holds. Boots no CKAN.

    path
        The directory of a release; by default the current one.

    Returns ``{"datasets": in the database, "indexed": in Solr, "rebuild": how far the last rebuild is or ''}``, and
    ``problem`` where Solr does not say.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_app.index_status
    """
    settings = __salt__["ckan_settings.get"]()
    found = _probe("index", path or settings["paths"]["current"], settings, READ_TIMEOUT)
    rows = INDEXING.findall(__salt__["ckan_file.read"](_index_log(settings), "", "replace"))
    told = {name: found[name] for name in ("datasets", "indexed", "problem") if name in found}
    return {**told, "rebuild": rows[-1] if rows else ""}


def rebuild_index(path: str, settings: dict) -> dict:
    """
    Index every dataset anew: without emptying the index before, or in the second core of ``search:second_core``; and
    without what is no dataset any more after.

    path
        The directory of the virtualenv, with its ini.
    settings
        The settings.

    Returns ``{"datasets", "indexed", "seconds"}``, and ``swapped`` where it was made in a second core. Raises
    ``CommandExecutionError`` with what CKAN says; the index has what was indexed until then.

    CLI Example: not for the command line; use ``ckan_index.rebuild``.
    """
    log = _index_log(settings)
    # CKAN's user writes it.
    __salt__["ckan_file.write"](log, "")
    shutil.chown(log, settings["user"])
    told = {"log": log, "second_core": settings["search"]["second_core"]}
    found = _probe("rebuild", path, settings, settings["search"]["timeout"], told)
    return {name: found[name] for name in ("datasets", "indexed", "swapped", "seconds") if name in found}


def _index_log(settings: dict) -> str:
    return os.path.join(settings["paths"]["log"], f"{settings['site']}-search-index.log")


def datastore_sql(path: str, settings: dict) -> str:
    """
    Return the SQL by which the datastore gets its permissions, as CKAN writes it. There is no secret in it.

    path
        The directory of the virtualenv, with its ini.
    settings
        The settings.

    Raises ``CommandExecutionError`` with what CKAN says.

    CLI Example: not for the command line; type ``ckan -c INI datastore set-permissions``.
    """
    told = {"command": ["datastore", "set-permissions"]}
    return _probe("output", path, settings, BOOT_TIMEOUT, told)["output"]


def init_commands(settings: dict) -> list[list[str]]:
    """
    Return the commands by which extensions are set up in the database, as words.

    settings
        The settings.

    CLI Example: not for the command line.
    """
    return [shlex.split(line) for name in settings["extensions"] for line in settings["extensions"][name]["init"]]


def downgrade(path: str, settings: dict, targets: dict) -> dict:
    """
    Take the database back to given heads, by the scripts of the CKAN in a virtualenv.

    path
        The directory of a virtualenv that knows all revisions: of the newer one.
    settings
        The settings.
    targets
        ``{"core" or plugin: [heads]}``; an empty list is before the first revision.

    Returns ``{"before", "after": {"core" or plugin: [revisions]}, "seconds"}``. Raises ``CommandExecutionError`` that
    names what failed, and says what the database holds now.

    CLI Example: not for the command line; use ``ckan_release.rollback`` with ``downgrade=True``.
    """
    limits = settings["migration"]
    return _probe("downgrade", path, settings, limits["timeout"], {**limits, "targets": targets})


def _probe(mode: str, path: str, settings: dict, timeout: int, told: dict | None = None, ini: str = "") -> dict:
    script = "\n".join(__salt__["ckan_file.of_formula"](name) for name in SCRIPTS)
    ini = ini or __salt__["ckan_ini.path"](path, settings)
    command = [os.path.join(path, "bin", "python"), "-", mode, ini, json.dumps(told or {})]
    if os.geteuid() == 0:
        # As the user of the site: what a boot writes (web assets, caches) must be the site's own.
        command = ["runuser", "-u", settings["user"], "--", *command]
    done = __salt__["cmd.run_all"](
        command,
        python_shell=False,
        stdin=script,
        cwd=path,
        env={"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1", "CKAN_INI": ini, "PYTHONDONTWRITEBYTECODE": "1"},
        reset_system_locale=False,
        output_loglevel="quiet",
        ignore_retcode=True,
        timeout=timeout,
    )
    line = next((row for row in reversed(done["stdout"].splitlines()) if row.startswith(MARK)), None)
    if line is None:
        rest = [row.strip() for row in (done["stderr"] or done["stdout"]).splitlines() if row.strip()]
        last = __salt__["ckan_mask.text"](rest[-1], settings) if rest else "no output"
        raise CommandExecutionError(f"CKAN in {path} ended without an answer: {last}")
    result = json.loads(line[len(MARK) :])
    for kind in ("errors", "warnings"):
        result[kind] = [__salt__["ckan_mask.text"](text, settings) for text in result[kind]]
    if not result.pop("ok"):
        message = "; ".join(result["errors"])
        now = result.get("after") or result.get("before")
        message += f"; the database is now at {_heads_text(now)}" if now else ""
        raise CommandExecutionError(message)
    return result


def _heads_text(found: dict) -> str:
    """At which revisions a database is; found as ``schema`` or ``heads`` return it."""
    at = {name: state["at"] if isinstance(state, dict) else state for name, state in found.items()}
    return ", ".join(f"{name} {' and '.join(some)}" for name, some in at.items() if some) or "no revision"
