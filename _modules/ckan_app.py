"""
A CKAN inside a virtualenv: its ini, the check by one boot, and the database migrations.

Nothing here knows of releases or web servers: functions take the directory of a virtualenv and the settings.
"""

from __future__ import annotations

import configparser
import hashlib
import hmac
import json
import os
import re
import shutil
from typing import Any
from urllib.parse import quote

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_app"

PROBE = "salt://ckan/files/probe.py"
MARK = "CKAN-PROBE "
BOOT_TIMEOUT = 300

LOGGING = """
[loggers]
keys = root, ckan, ckanext

[handlers]
keys = console

[formatters]
keys = generic

[logger_root]
level = WARNING
handlers = console

[logger_ckan]
qualname = ckan
level = INFO
handlers = console
propagate = 0

[logger_ckanext]
qualname = ckanext
level = INFO
handlers = console
propagate = 0

[handler_console]
class = StreamHandler
args = (sys.stderr,)
level = NOTSET
formatter = generic

[formatter_generic]
format = %(asctime)s %(levelname)-5.5s [%(name)s] %(message)s
"""


def __virtual__() -> str:
    return __virtualname__


def ini_name(settings: dict) -> str:
    """
    Return the file name of the ini of an environment, such as ``production.ini``.

    settings
        The settings.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_app.ini_name '{env: production}'
    """
    return f"{settings['env']}.ini"


def write_ini(path: str, settings: dict) -> dict:
    """
    Write CKAN's ini of an environment into a virtualenv: mode 0640, owner root, group that of CKAN.

    The ini is our own minimal one, not the outcome of ``ckan generate config``: that would cost a boot, make random
    secrets, and bury the few lines that matter.

    path
        The directory of the virtualenv.
    settings
        The settings, with their secrets.

    Returns ``{"path": ..., "hash": ...}``; the hash is keyed with the session secret, so it tells two configurations
    apart and nothing else.

    CLI Example: not for the command line, since the settings hold secrets.
    """
    text = _ini_text(settings)
    target = os.path.join(path, ini_name(settings))
    if os.path.lexists(target):
        os.unlink(target)
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as handle:
        handle.write(text)
    if os.geteuid() == 0:
        shutil.chown(target, "root", settings["group"])
    os.chmod(target, 0o640)
    key = settings["secrets"]["session"].encode("utf-8")
    return {"path": target, "hash": hmac.new(key, text.encode("utf-8"), hashlib.sha256).hexdigest()}


def compare_ini(old: str, new: str, settings: dict) -> dict:
    """
    Compare the inis of two virtualenvs.

    old, new
        Their directories.
    settings
        The settings.

    Returns the names of options, never a value: ``{"added": [...], "removed": [...], "changed": [...]}``.

    CLI Example: not for the command line; use ``ckan_release.diff``.
    """
    before, after = (_read_ini(os.path.join(path, ini_name(settings))) for path in (old, new))
    return {
        "added": sorted(after.keys() - before.keys()),
        "removed": sorted(before.keys() - after.keys()),
        "changed": sorted(name for name in before.keys() & after.keys() if before[name] != after[name]),
    }


def check(path: str, settings: dict) -> dict:
    """
    Boot CKAN once in a virtualenv and ask it everything: plugins load, configuration valid, migrations pending,
    ``package_search`` answers.

    path
        The directory of the virtualenv, with its ini.
    settings
        The settings.

    Returns ``{"ckan_version", "plugins", "pending": {"core"|plugin: revision}, "heads", "datasets", "warnings",
    "seconds"}``. Raises ``CommandExecutionError`` with one line that names the plugin and its exception.

    CLI Example: not for the command line; use ``ckan_release.check``.
    """
    return _probe("check", path, settings)


def migrate(path: str, settings: dict) -> dict:
    """
    Bring the database to the heads of the CKAN in a virtualenv, core and plugins. Waits for another host that does
    the same.

    path
        The directory of the virtualenv, with its ini.
    settings
        The settings.

    Returns ``{"heads_before": {...}, "heads": {...}, "seconds": ...}``. Raises ``CommandExecutionError`` that says
    what the database holds now.

    CLI Example: not for the command line; use ``ckan_release.migrate``.
    """
    return _probe("migrate", path, settings)


def _probe(mode: str, path: str, settings: dict) -> dict:
    script = __salt__["cp.get_file_str"](PROBE)
    if not script:
        raise CommandExecutionError(f"{PROBE} is not in the file server; add the formula to file_roots.")
    ini = os.path.join(path, ini_name(settings))
    command = [os.path.join(path, "bin", "python"), "-", mode, ini]
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
        timeout=BOOT_TIMEOUT,
    )
    line = next((row for row in reversed(done["stdout"].splitlines()) if row.startswith(MARK)), None)
    if line is None:
        rest = [row.strip() for row in (done["stderr"] or done["stdout"]).splitlines() if row.strip()]
        raise CommandExecutionError(f"CKAN in {path} ended without an answer: {rest[-1] if rest else 'no output'}")
    result = json.loads(line[len(MARK) :])
    if not result.pop("ok"):
        message = "; ".join(result["errors"])
        if mode == "migrate":
            message += f"; the database is now at {_heads_text(result.get('heads'))}, the live release runs on it"
        raise CommandExecutionError(message)
    return result


def _read_ini(path: str) -> dict[str, str]:
    parser = configparser.RawConfigParser()
    parser.optionxform = str
    try:
        with open(path, encoding="utf-8") as handle:
            parser.read_file(handle)
        return dict(parser["app:main"])
    except (OSError, configparser.Error, KeyError) as exc:
        raise CommandExecutionError(f"{path} cannot be read; was it edited by hand?") from exc


def _heads_text(heads: dict | None) -> str:
    return ", ".join(f"{name} {revision}" for name, revision in sorted((heads or {}).items())) or "no revision"


def _ini_text(settings: dict) -> str:
    options = _options(settings)
    lines = [
        "# Written by the CKAN formula from the pillar; a change here is lost with the next release.",
        "[DEFAULT]",
        "debug = false",
        "",
        "[app:main]",
        "use = egg:ckan",
        *(f"{name} = {_ini_value(value)}" for name, value in options.items()),
    ]
    return "\n".join(lines) + "\n" + LOGGING


def _options(settings: dict) -> dict[str, Any]:
    """CKAN's options: what follows from the settings, then what the pillar says in ``ckan:config``."""
    secrets = settings["secrets"]
    options = {
        "ckan.site_url": settings["site_url"],
        "ckan.site_id": settings["site_id"],
        "sqlalchemy.url": _database_url(settings["database"]),
        "solr_url": settings["solr_url"],
        "ckan.redis.url": settings["redis_url"],
        "ckan.storage_path": os.path.join(settings["paths"]["data"], "storage"),
        "ckan.webassets.path": os.path.join(settings["paths"]["data"], "webassets"),
        "ckan.plugins": " ".join(settings["plugins"]),
        "SECRET_KEY": secrets["session"],
        "beaker.session.secret": secrets["session"],
        "beaker.session.data_dir": os.path.join(settings["paths"]["data"], "sessions"),
        "WTF_CSRF_SECRET_KEY": secrets["session"],
        "api_token.jwt.encode.secret": f"string:{secrets['api_token']}",
        "api_token.jwt.decode.secret": f"string:{secrets['api_token']}",
    }
    options.update(settings["config"])
    return options


def _database_url(database: dict) -> str:
    user, password = quote(database["user"], safe=""), quote(database["password"], safe="")
    return f"postgresql://{user}:{password}@{database['host']}:{database['port']}/{quote(database['name'], safe='')}"


def _ini_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return " ".join(_ini_value(item) for item in value)
    # ConfigParser reads % as the start of an interpolation; %(here)s is the one that people mean.
    text = re.sub(r"%(?!\(here\)s)", "%%", str(value))
    return text.replace("\n", "\n    ")
