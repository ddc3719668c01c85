"""
Runs inside a release, by the release's own interpreter, as the user that runs CKAN. Two modes:

    python - check INI      one boot of CKAN that answers all questions of the stage `check`
    python - migrate INI    bring the database to the heads of this release, one host at a time

The last line of standard output is ``CKAN-PROBE`` and one JSON object; plugins may print what they like before it.
Standard library only, besides what the release itself brings.
"""

import configparser
import difflib
import json
import os
import subprocess
import sys
import time
import traceback

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
# The command `ckan` of the release with that correction: arguments, help and exit status are its own.
COMMAND = """
import sys
from ckan.cli.cli import ckan
sys.argv[0] = "ckan"
sys.exit(ckan())
"""
# Any number will do, as long as all hosts of all environments use the same; it is per database anyway.
ADVISORY_LOCK = 0x434B414E


def main(mode: str, ini: str) -> dict:
    started = time.monotonic()
    result = {"ok": False, "errors": [], "warnings": [], "prefix": sys.prefix}
    try:
        {"check": check, "migrate": migrate}[mode](ini, result)
    except Exception as exc:  # the whole point is to report it in a line
        result["errors"].append(one_line(exc))
    result["ok"] = not result["errors"]
    result["seconds"] = round(time.monotonic() - started, 2)
    return result


def check(ini: str, result: dict) -> None:
    from ckan.cli import CKANConfigLoader
    from ckan.config.middleware import make_app

    import ckan

    exec(ALEMBIC, {})
    result["ckan_version"] = ckan.__version__
    config = CKANConfigLoader(ini).get_config()
    try:
        app = make_app(config)
    except BaseException as exc:  # a plugin may call sys.exit
        plugin = guilty_plugin(exc)
        where = f"plugin {plugin}" if plugin else "CKAN"
        result["plugin"] = plugin
        result["errors"].append(f"{where} does not start: {one_line(exc)}")
        return
    result["plugins"] = str(config.get("ckan.plugins", "")).split()
    check_configuration(ini, result)
    build_assets(result)
    check_migrations(config, result)
    check_search(app, result)


def check_configuration(ini: str, result: dict) -> None:
    try:
        from ckan.common import config_declaration
    except ImportError:
        return
    # CKAN's own object: it holds the defaults, too, which the validators want.
    from ckan.common import config as loaded

    check_names(ini, config_declaration, result)
    _, errors = config_declaration.validate(loaded)
    for key, messages in sorted((errors or {}).items()):
        # The message may quote the value, and the value may be a secret: the key is enough.
        result["errors"].append(f"configuration option {key} is not valid ({len(messages)} problem)")


def check_names(ini: str, declaration, result: dict) -> None:
    """Options that neither CKAN nor a plugin declares: an extension may do without declaring, so it is a warning."""
    from ckan.config.declaration.option import Flag

    parser = configparser.RawConfigParser()
    parser.optionxform = str
    with open(ini, encoding="utf-8") as handle:
        parser.read_file(handle)
    # What only older versions read, the formula gives to all.
    given = [
        name for name in parser["app:main"] if not (name in parser.defaults() or name == "use" or "beaker." in name)
    ]
    known = list(declaration.iter_options(exclude=Flag.none()))
    strange = [name for name in given if not any(key == name for key in known)]
    for name in list(strange):
        close = difflib.get_close_matches(name, map(str, known), n=1, cutoff=0.85)
        if close:
            strange.remove(name)
            result["warnings"].append(f"CKAN and its plugins do not know the option {name} (did you mean {close[0]}?)")
    if strange:
        result["warnings"].append(f"options that neither CKAN nor a plugin declares: {', '.join(strange)}")


def build_assets(result: dict) -> None:
    """
    Build CKAN's bundles of styles and scripts now: built by several processes at once, at the first request of each,
    they take one another's notes away, and visitors get errors.
    """
    try:
        from ckan.lib.webassets_tools import env
    except ImportError:
        return
    from webassets.exceptions import BundleError

    built = 0
    for bundle in env:
        try:
            bundle.urls()
            built += 1
        except (BundleError, OSError, ValueError) as exc:
            result["warnings"].append(f"a bundle of web assets cannot be built: {one_line(exc)}")
    result["assets"] = built


def check_migrations(config: dict, result: dict) -> None:
    from ckan.cli.db import current_revision

    pending = {}
    for plugin in ["", *result["plugins"]]:
        state = current_revision(plugin)
        if state and not state.endswith("(head)"):
            pending[plugin or "core"] = state
    result["pending"] = pending
    result["heads"] = heads(config)


def check_search(app, result: dict) -> None:
    from ckan.plugins import toolkit

    if result["pending"].get("core") == "base":
        result["warnings"].append("the database is empty, so package_search was not asked before the migration")
        return
    try:
        with app.test_request_context("/"):
            found = toolkit.get_action("package_search")({"ignore_auth": True}, {"rows": 0})
        result["datasets"] = found["count"]
    except Exception as exc:
        text = f"package_search does not answer: {one_line(exc)}"
        # The old schema may be the reason: the migration comes next, and the start of the site is asked again.
        result["warnings" if result["pending"] else "errors"].append(text)


def migrate(ini: str, result: dict) -> None:
    from ckan.cli import CKANConfigLoader

    config = CKANConfigLoader(ini).get_config()
    result["heads_before"] = heads(config)
    with database_lock(config):
        done = subprocess.run(
            [sys.executable, "-c", ALEMBIC + COMMAND, "-c", ini, "db", "upgrade"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    result["heads"] = heads(config)
    if done.returncode != 0:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        result["errors"].append(f"ckan db upgrade failed: {lines[-1] if lines else 'no message'}")


class database_lock:
    """Hold PostgreSQL's advisory lock, so that two hosts never migrate one database at once."""

    def __init__(self, config: dict):
        self.config, self.connection = config, None

    def __enter__(self):
        connection = connect(self.config)
        if connection is not None:
            from sqlalchemy import text

            self.connection = connection
            connection.execute(text(f"select pg_advisory_lock({ADVISORY_LOCK})"))
        return self

    def __exit__(self, *exc):
        if self.connection is not None:
            self.connection.close()  # ends the session, and with it the lock


def connect(config: dict):
    try:
        import sqlalchemy
    except ImportError:
        return None
    engine = sqlalchemy.create_engine(config["sqlalchemy.url"], poolclass=sqlalchemy.pool.NullPool)
    return engine.connect()


def heads(config: dict) -> dict:
    """The revisions that the database is at: core, and each plugin that ever migrated it."""
    connection = connect(config)
    if connection is None:
        return {}
    from sqlalchemy import text

    try:
        tables = connection.execute(
            text("select tablename from pg_tables where schemaname = current_schema()"
                 " and tablename like '%alembic_version'")
        ).scalars().all()  # fmt: skip
        found = {}
        for table in sorted(tables):
            name = "core" if table == "alembic_version" else table[: -len("_alembic_version")]
            rows = connection.execute(text(f'select version_num from "{table}" order by 1')).scalars().all()
            found[name] = ",".join(rows)
        return found
    finally:
        connection.close()


def guilty_plugin(exc: BaseException) -> str:
    """The plugin that CKAN was busy with when it failed, read from the frames of the traceback."""
    frames = [frame for frame, _ in traceback.walk_tb(exc.__traceback__)]
    for frame, inner in reversed(list(zip(frames, [*frames[1:], None], strict=True))):
        module = frame.f_globals.get("__name__", "")
        # Core calls a plugin, or loads one. A loop's variable lives on after the loop: then core called core.
        calls_plugin = inner is not None and not inner.f_globals.get("__name__", "").startswith("ckan.")
        if not module.startswith("ckan.") or not (calls_plugin or module.startswith("ckan.plugins")):
            continue
        for name in ("plugin_name", "plugin"):
            value = frame.f_locals.get(name)
            if isinstance(value, str):
                return value
            if isinstance(getattr(value, "name", None), str):
                return value.name
    return ""


def one_line(exc: BaseException) -> str:
    # Whole: who reads it takes the secrets out first, and shortens it then.
    text = " ".join(str(exc).split())
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


if __name__ == "__main__":
    outcome = main(sys.argv[1], sys.argv[2])
    sys.stdout.flush()
    # A line of its own, whatever was printed before. (No backslash in this file: Salt unescapes standard input.)
    print()
    print("CKAN-PROBE " + json.dumps(outcome), flush=True)
    # Threads that a plugin started must not keep us.
    os._exit(0)
