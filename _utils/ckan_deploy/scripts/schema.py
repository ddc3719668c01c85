"""
The database of a CKAN, seen from inside a release: which revisions the release knows, at which the database is, and the
way from one to the other. A part of the scripts ``probe`` and ``backends``.

Nothing here boots CKAN but the commands of CKAN that are called. Revisions are Alembic's, of CKAN itself (``core``)
and of each plugin that has some: https://docs.ckan.org/en/latest/extensions/best-practices.html (database migrations).
"""

import contextlib
import glob
import importlib.metadata
import importlib.util
import inspect
import os
import subprocess
import sys
import time

# CKAN hands the address of the database to alembic's ConfigParser as it is, where a quoted password (%40) is taken for
# the start of an interpolation: https://alembic.sqlalchemy.org/en/latest/api/config.html (set_main_option).
ALEMBIC = """
try:
    from alembic.config import Config
except ImportError:
    pass
else:
    def set_main_option(self, name, value, real=Config.set_main_option):
        if name == "sqlalchemy.url":
            value = value.replace("%%", "%").replace("%", "%%")
        real(self, name, value)
    Config.set_main_option = set_main_option
"""
# Each connection of a migration waits for a lock, and works on a statement, for so long only: a migration that queues
# behind a long query has all visitors queue behind itself. By SET, since a pooler between may refuse start-up options.
LIMITS = """
import os
from sqlalchemy import event
from sqlalchemy.engine import Engine
@event.listens_for(Engine, "connect")
def limit(connection, record):
    with connection.cursor() as cursor:
        cursor.execute("set lock_timeout = " + str(int(os.environ["CKAN_LOCK_TIMEOUT"])))
        cursor.execute("set statement_timeout = " + str(int(os.environ["CKAN_STATEMENT_TIMEOUT"])))
    connection.commit()
"""
# The command `ckan` of the release: arguments, help and exit status are its own. `db upgrade` of CKAN 2.11 and later
# takes the plugins with it, unless it is told otherwise; here each is told by name. A boot leaves hardly any garbage,
# and to look for it takes a fifth of the time.
COMMAND = """
import gc, sys
gc.set_threshold(100000, 50, 100)
from ckan.cli.cli import ckan
sys.argv[0] = "ckan"
if "--skip-plugins" in sys.argv:
    from ckan.cli.db import upgrade
    if not any(option.name == "skip_plugins" for option in getattr(upgrade, "params", [])):
        sys.argv.remove("--skip-plugins")
sys.exit(ckan())
"""
# Seconds before a migration that did not get its lock is tried again.
PAUSE = 5


def read(ini: str) -> dict:
    """
    Compare the database with what this release knows: ``{"core" or plugin: {"at": revisions, "heads": revisions,
    "pending": revisions from old to new, "unknown": those of "at" that this release does not know}}``.

    Plugins that the ini does not list are left out, whatever the database has of them: nobody looks at it.
    """
    options = options_of(ini)
    places = script_places(plugins_of(options))
    if places is None:
        return {}
    database = revisions_in_database(options)
    found = {}
    for name in ["core", *plugins_of(options)]:
        at = database.get(name, [])
        if name in places:
            found[name] = compare(places[name], at)
        elif at:
            # Its migrations came with a newer version of it.
            found[name] = {"at": at, "heads": [], "pending": [], "unknown": at}
    return found


def compare(place: str, at: list) -> dict:
    """Where one chain of revisions stands, at what its database is at."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(place)
    newest_first = list(scripts.walk_revisions())
    known = {script.revision for script in newest_first}
    unknown = [revision for revision in at if revision not in known]
    applied = set()
    for revision in at:
        if revision in known:
            applied |= {script.revision for script in scripts.iterate_revisions(revision, "base")}
    pending = [script.revision for script in reversed(newest_first) if script.revision not in applied]
    return {
        "at": at, "heads": sorted(scripts.get_heads()), "unknown": unknown, "pending": [] if unknown else pending,
    }  # fmt: skip


def between(ini: str, targets: dict) -> dict:
    """
    The revisions that the database has, and that somebody who knows the given heads only does not:
    ``{name: {"revisions": from old to new, "stuck": those that cannot be undone}}``. Asked of the newer release.
    """
    from alembic.script import ScriptDirectory

    options = options_of(ini)
    places, database = script_places([*plugins_of(options), *targets]), revisions_in_database(options)
    found = {}
    for name, heads in targets.items():
        if name not in (places or {}):
            continue
        scripts = ScriptDirectory(places[name])
        known = {script.revision for script in scripts.walk_revisions()}
        if not known.issuperset([*heads, *database.get(name, [])]):
            continue
        unknown = ancestors(scripts, database.get(name, [])) - ancestors(scripts, heads)
        newer = [script for script in reversed(list(scripts.walk_revisions())) if script.revision in unknown]
        found[name] = {
            "revisions": [script.revision for script in newer],
            "stuck": [script.revision for script in newer if not has_downgrade(script)],
        }
    return found


def ancestors(scripts, revisions: list) -> set:
    """The revisions, and all that came before them."""
    return {script.revision for revision in revisions for script in scripts.iterate_revisions(revision, "base")}


def has_downgrade(script) -> bool:
    """Whether a migration has code to undo it: more than `pass`, a remark, or an error."""
    import ast
    import textwrap

    function = getattr(script.module, "downgrade", None)
    if function is None:
        return False
    body = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0].body
    idle = (ast.Pass, ast.Raise)
    return any(
        not isinstance(line, idle) and not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
        for line in body
    )


def migrate(ini: str, told: dict, result: dict) -> None:
    """Bring the database to the heads of this release, one chain after the other, CKAN itself first."""
    result["before"] = read(ini)
    options, leave = options_of(ini), told.get("leave", [])
    with database_lock(options):
        # Whoever had the lock before may have done it.
        before = read(ini)
        if not before:
            # Not a CKAN whose revisions can be read: its own command does it all.
            if run_ckan(ini, ["db", "upgrade"], told, result, "the migration"):
                set_up(ini, told, result)
            return
        for name in in_order(before):
            if not before[name]["pending"] or name in leave:
                continue
            which = ["--skip-plugins"] if name == "core" else ["-p", name]
            if not run_ckan(ini, ["db", "upgrade", *which], told, result, f"the migration of {name}"):
                break
        if not result["errors"]:
            set_up(ini, told, result)
        result["after"] = read(ini)
    left = {name: state for name, state in result["after"].items() if state["pending"] and name not in leave}
    if left and not result["errors"]:
        result["errors"].append(f"the migration went well, but {', '.join(left)} is not at its newest revision")
    for name, state in left.items():
        if before[name]["pending"]:
            done = [revision for revision in before[name]["pending"] if revision not in state["pending"]]
            at = f"it came to {done[-1]}" if done else f"it is at {', '.join(state['at']) or 'no revision'} as before"
            result["errors"].append(f"{name}: {at}, {state['pending'][0]} is next")


def set_up(ini: str, told: dict, result: dict) -> None:
    """What extensions want done in the database besides their migrations."""
    for words in told.get("commands", []):
        if not run_ckan(ini, words, told, result, f"ckan {' '.join(words)}"):
            return


def downgrade(ini: str, told: dict, result: dict) -> None:
    """Downgrade the database to the given heads, by the scripts of this release: the last chain first."""
    options = options_of(ini)
    with database_lock(options):
        result["before"] = revisions_in_database(options)
        for name in reversed(in_order(told["targets"])):
            version = ",".join(told["targets"][name]) or "base"
            which = [] if name == "core" else ["-p", name]
            if not run_ckan(ini, ["db", "downgrade", *which, "-v", version], told, result, f"the downgrade of {name}"):
                break
        result["after"] = revisions_in_database(options)


def datastore_lacks(ini: str) -> str:
    """What of `ckan datastore set-permissions` is not there, '' for nothing, or where there is no datastore."""
    options = options_of(ini)
    address, reader = options.get("ckan.datastore.write_url"), options.get("ckan.datastore.read_url")
    if not (address and reader and importlib.util.find_spec("sqlalchemy")):
        return ""
    import sqlalchemy

    user = sqlalchemy.engine.make_url(reader).username
    asked = {
        "the view _table_metadata": "select to_regclass('_table_metadata') is not null",
        "the function populate_full_text_trigger": "select to_regproc('populate_full_text_trigger') is not null",
        f"the right of {user} to read": "select has_schema_privilege(:user, 'public', 'usage')",
    }
    try:
        with contextlib.closing(connect(address)) as connection:
            answers = {what: connection.execute(sqlalchemy.text(sql), {"user": user} if ":user" in sql else {}).scalar()
                       for what, sql in asked.items()}  # fmt: skip
    except sqlalchemy.exc.ProgrammingError:
        return f"the user {user}"
    return ", ".join(what for what, there in answers.items() if not there)


def run_ckan(ini: str, arguments: list, told: dict, result: dict, what: str) -> bool:
    """Run a command of CKAN with limits; one that did not get a lock in time is tried again."""
    # In milliseconds; 0 is no limit.
    limits = {
        "CKAN_LOCK_TIMEOUT": str(int(told.get("lock_timeout", 0) * 1000)),
        "CKAN_STATEMENT_TIMEOUT": str(int(told.get("statement_timeout", 0) * 1000)),
    }
    prelude = ALEMBIC + (LIMITS if importlib.util.find_spec("sqlalchemy") else "") + COMMAND
    for attempt in range(1, told.get("attempts", 1) + 1):
        done = subprocess.run(
            [sys.executable, "-c", prelude, "-c", ini, *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, **limits},
        )  # fmt: skip
        if done.returncode == 0:
            return True
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        locked = any("due to lock timeout" in line for line in lines)
        if not locked:
            break
        result["waited"] = attempt
        time.sleep(PAUSE if attempt < told.get("attempts", 1) else 0)
    cause = message_of(lines)
    if locked:
        cause = (
            f"a lock of the database was not to be had within {told['lock_timeout']} s, {attempt} times; find the "
            "query that holds it (pg_stat_activity), or raise ckan:migration:lock_timeout"
        )
    elif "due to statement timeout" in cause:
        cause += "; raise ckan:migration:statement_timeout"
    elif "already exists" in cause:
        cause += "; it was made by hand or by an older command of the extension: remove it, or note its revision"
    result["errors"].append(f"{what} failed: {cause}")
    return False


def output_of(ini: str, arguments: list) -> str:
    """What a command of CKAN prints."""
    done = subprocess.run(
        [sys.executable, "-c", ALEMBIC + COMMAND, "-c", ini, *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        said = message_of([line.strip() for line in done.stderr.splitlines() if line.strip()])
        raise Sentence(f"ckan {' '.join(arguments)} failed: {said}")
    return done.stdout


def message_of(lines: list) -> str:
    """The line of a command's output that says what was wrong: the last one that names an error."""
    # SQLAlchemy adds the statement, its values, and an address of its documentation after the message.
    lines = [line for line in lines if not is_remark(line)]
    marks = ("Error:", "Exception:", "sqlalchemy.exc.", "FAILED")
    named = [line for line in lines if any(mark in line for mark in marks)]
    return (named or lines or ["no message"])[-1]


def is_remark(line: str) -> bool:
    """Whether a line is what CKAN logs while all goes well."""
    return line[:2] == "20" and any(f" {level} " in f"{line} " for level in ("DEBUG", "INFO", "WARNI", "WARNING"))


def in_order(names) -> list:
    """CKAN itself first, then its plugins: they build on its tables."""
    return sorted(names, key=lambda name: (name != "core", name))


def script_places(plugins: list):
    """Where the migrations of CKAN and of plugins are, as ``ckan db`` finds them; None where there is no Alembic."""
    if not importlib.util.find_spec("alembic") or not importlib.util.find_spec("sqlalchemy"):
        return None
    own = {name: place for name, place in plugin_places(plugins).items() if has_ini(place)}
    return {"core": os.path.join(folder_of("ckan"), "migration"), **own}


def plugin_places(plugins: list) -> dict:
    """Where CKAN looks for the migrations of plugins, whether there are any or not."""
    points = importlib.metadata.entry_points()
    # Before Python 3.10 a dictionary.
    points = points.get("ckan.plugins", []) if isinstance(points, dict) else points.select(group="ckan.plugins")
    modules = {point.name: point.value.partition(":")[0] for point in points}
    places = {}
    for plugin in plugins:
        parts = modules.get(plugin, "").split(".")
        package = ".".join(parts[:2]) if parts[0] == "ckanext" else parts[0]
        if package:
            places[plugin] = os.path.join(folder_of(package), "migration", plugin)
    return places


def has_ini(place: str) -> bool:
    return os.path.isfile(os.path.join(place, "alembic.ini"))


def lost_migrations(plugins: list) -> list:
    """A sentence for each plugin whose migrations CKAN does not find, since its package left their ini out."""
    return [
        f"plugin {name} brings migrations that CKAN does not run, since there is no {place}/alembic.ini; add that file "
        "to the package data of its extension"
        for name, place in plugin_places(plugins).items()
        if glob.glob(os.path.join(glob.escape(place), "versions", "*.py")) and not has_ini(place)
    ]


def folder_of(package: str) -> str:
    spec = importlib.util.find_spec(package)
    places = list((spec and spec.submodule_search_locations) or [])
    return places[0] if places else ""


def revisions_in_database(options: dict) -> dict:
    """The revisions in the tables of Alembic: core, and each plugin that ever migrated this database."""
    from sqlalchemy import text

    found = {}
    with contextlib.closing(connect(options["sqlalchemy.url"])) as connection:
        tables = connection.execute(
            text("select tablename from pg_tables where schemaname = current_schema()"
                 " and tablename like '%alembic_version'")
        ).scalars().all()  # fmt: skip
        for table in sorted(tables):
            name = "core" if table == "alembic_version" else table[: -len("_alembic_version")]
            rows = connection.execute(text(f'select version_num from "{table}" order by 1')).scalars().all()
            if rows:
                found[name] = list(rows)
    return found
