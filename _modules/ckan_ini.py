"""
CKAN's ini of a release: rendered from the settings, written, read back and compared.

The ini is our own minimal one, not the outcome of ``ckan generate config``: that would cost a boot, make random secrets
at each call, and bury the few lines that matter. Every option that CKAN or an extension knows can stand in the pillar,
under ``ckan:config`` or ``ckan:secrets:config``.
"""

from __future__ import annotations

import configparser
import contextlib
import hashlib
import hmac
import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_ini"

SECTION = "app:main"
CHANGED = "(changed)"
WEBASSETS = "%(here)s/run/webassets"

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


def path(directory: str, settings: dict) -> str:
    """
    Return where the ini of a release stands, such as ``.../production.ini``.

    directory
        The directory of the release.
    settings
        The settings.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_ini.path /usr/lib/ckan/current '{env: production}'
    """
    return os.path.join(directory, f"{settings['env']}.ini")


def write(directory: str, settings: dict) -> dict:
    """
    Write the ini of a release: UTF-8, mode 0640, owner root, group that of CKAN.

    directory
        The directory of the release.
    settings
        The settings, with their secrets.

    Returns ``{"configuration": hash, "secret_options": [names]}``. The hash is keyed with the session secret, so it
    tells two configurations apart and nothing else. Raises ``CommandExecutionError`` when the file would not give back
    what the pillar says.

    CLI Example: not for the command line, since the settings hold secrets.
    """
    return put(directory, _text(settings), settings)


def put(directory: str, text: str, settings: dict) -> dict:
    """
    Make a text the ini of a release, with the same mode and owners.

    directory
        The directory of the release.
    text
        The whole ini.
    settings
        The settings, with their secrets.

    Returns what ``write`` returns.

    CLI Example: not for the command line, since the settings hold secrets.
    """
    __salt__["ckan_file.write"](path(directory, settings), text, mode=0o640, group=settings["group"])
    key = settings["secrets"]["session"].encode("utf-8")
    return {
        "configuration": hmac.new(key, text.encode("utf-8"), hashlib.sha256).hexdigest(),
        "secret_options": sorted(settings["secrets"]["config"]),
    }


@contextlib.contextmanager
def lent(directory: str, settings: dict) -> Iterator[str]:
    """
    Have another ini in a release for a while, beside its own: for a rehearsal on a copy of the database.

    directory
        The directory of the release.
    settings
        The settings that it is made from.

    Yields its path.

    CLI Example: not for the command line, since the settings hold secrets.
    """
    place = os.path.join(directory, "rehearsal.ini")
    try:
        __salt__["ckan_file.write"](place, _text(settings), mode=0o640, group=settings["group"])
        yield place
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place)


def own_database(settings: dict) -> bool:
    """
    Say whether CKAN's database is the one of ``ckan:database``, and none that ``ckan:config`` names.

    settings
        The settings.

    CLI Example: not for the command line, since the settings hold secrets.
    """
    return options(settings)["sqlalchemy.url"] == _database_url(settings["database"])


def validate(settings: dict) -> bool:
    """
    Check that an ini can hold what the settings say.

    settings
        The settings.

    Returns True. Raises ``CommandExecutionError`` that names the options which it cannot hold.

    CLI Example: not for the command line; ``ckan_release.plan`` uses it.
    """
    return bool(_text(settings))


def names(old: str, new: str, settings: dict) -> dict:
    """
    Compare the inis of two releases.

    old, new
        Their directories.
    settings
        The settings.

    Returns the names of options, never a value: ``{"added": [...], "removed": [...], "changed": [...]}``.

    CLI Example: not for the command line; use ``ckan_release.diff``.
    """
    return {
        kind: sorted(options)
        for kind, options in _compare(*(_read(path(directory, settings)) for directory in (old, new))).items()
    }


def diff(directory: str, settings: dict, secret_options: list[str] | None = None) -> dict:
    """
    Compare the ini of a release with what the settings would make of it now.

    directory
        The directory of the release; empty for none.
    settings
        The settings.
    secret_options
        The options whose values were secret when the release was made.

    Returns ``{"added": {option: value}, "removed": {option: value}, "changed": {option: "old -> new"}}``; of a secret
    only ``(changed)`` is shown.

    CLI Example: not for the command line; use ``ckan_release.config_diff``.
    """
    before = _read(path(directory, settings)) if directory else {}
    after = _parse(_text(settings))
    hidden = {*(secret_options or []), *settings["secrets"]["config"]}
    masked = [__salt__["ckan_mask.options"](_shown(side), hidden, settings) for side in (before, after)]
    compared = _compare(before, after)
    return {
        "added": {name: masked[1][name] for name in compared["added"]},
        "removed": {name: masked[0][name] for name in compared["removed"]},
        "changed": {
            # Where the difference is in what is masked, the two sides look the same.
            name: CHANGED if masked[0][name] == masked[1][name] else f"{masked[0][name]} -> {masked[1][name]}"
            for name in compared["changed"]
        },
    }


def options(settings: dict) -> dict[str, Any]:
    """
    Return CKAN's options: what follows from the settings, then what the pillar says in ``ckan:config``.

    settings
        The settings.

    Returns ``{option: value}``, secrets included.

    CLI Example: not for the command line, since the settings hold secrets.
    """
    secrets, data = settings["secrets"], settings["paths"]["data"]
    found = {
        "ckan.site_url": settings["site_url"],
        "ckan.site_id": settings["site_id"],
        "sqlalchemy.url": _database_url(settings["database"]),
        "solr_url": settings["solr_url"],
        "ckan.redis.url": settings["redis_url"],
        "ckan.storage_path": os.path.join(data, "storage"),
        # Each release has its own: webassets keeps notes there that two releases would take from one another.
        "ckan.webassets.path": WEBASSETS,
        "ckan.plugins": " ".join(settings["plugins"]),
        "SECRET_KEY": secrets["session"],
        "beaker.session.secret": secrets["session"],
        "beaker.session.data_dir": os.path.join(data, "sessions"),
        "WTF_CSRF_SECRET_KEY": secrets["session"],
        "api_token.jwt.encode.secret": f"string:{secrets['api_token']}",
        "api_token.jwt.decode.secret": f"string:{secrets['api_token']}",
    }
    store = settings["datastore"]
    if store["name"]:
        found["ckan.datastore.write_url"] = _database_url(store)
        found["ckan.datastore.read_url"] = _database_url(
            {**store, "user": store["read_user"], "password": store["read_password"]}
        )
    return {**found, **settings["config"], **secrets["config"]}


def _text(settings: dict) -> str:
    wanted = options(settings)
    # %(here)s, the directory of the ini, is kept where people wrote it on purpose: never in a secret.
    rendered = {
        name: _value(value, here=name in settings["config"] or value == WEBASSETS) for name, value in wanted.items()
    }
    lines = [
        "# Written by the CKAN formula from the pillar; a change here is lost with the next release.",
        "[DEFAULT]",
        "debug = false",
        "",
        f"[{SECTION}]",
        "use = egg:ckan",
        *(f"{name} = {value}".rstrip() for name, value in rendered.items()),
    ]
    text = "\n".join(lines) + "\n" + LOGGING
    found = _parse(text)
    # ConfigParser takes the indentation from the lines of a value; what else it would change is refused.
    meant = {
        name: "\n".join(map(str.strip, value.split("\n"))) if "\n" in value else value
        for name, value in rendered.items()
    }
    lost = [name for name, value in meant.items() if found.get(name) != value]
    if lost:
        raise CommandExecutionError(
            f"an ini file cannot hold the value of {', '.join(sorted(lost))}: a value neither begins nor ends with a "
            "blank, and no line of it but the first begins with '#' or ';'; correct it in the pillar."
        )
    return text


def _value(value: Any, here: bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return " ".join(_value(item, here) for item in value)
    # ConfigParser reads % as the start of an interpolation.
    text = re.sub(r"%(?!\(here\)s)" if here else "%", "%%", str(value))
    # YAML's blocks end with a line break that nobody means.
    return text.removesuffix("\n").replace("\n", "\n    ")


def _database_url(database: dict) -> str:
    user, password = quote(database["user"], safe=""), quote(database["password"], safe="")
    host = f"[{database['host']}]" if ":" in database["host"] else database["host"]
    return f"postgresql://{user}:{password}@{host}:{database['port']}/{quote(database['name'], safe='')}"


def _compare(before: dict, after: dict) -> dict[str, list[str]]:
    return {
        "added": [name for name in after if name not in before],
        "removed": [name for name in before if name not in after],
        "changed": [name for name in after if name in before and before[name] != after[name]],
    }


def _shown(found: dict[str, str]) -> dict[str, str]:
    return {name: value.replace("%%", "%") for name, value in found.items()}


def _parse(text: str) -> dict[str, str]:
    """The options of an ini's text, as they are written: % is not interpolated."""
    parser = configparser.RawConfigParser()
    parser.optionxform = str
    parser.read_string(text)
    return {name: value for name, value in parser[SECTION].items() if name != "use" and name not in parser.defaults()}


def _read(file: str) -> dict[str, str]:
    try:
        with open(file, encoding="utf-8") as handle:
            return _parse(handle.read())
    except (OSError, ValueError, KeyError, configparser.Error) as exc:
        raise CommandExecutionError(f"{file} cannot be read; was it edited by hand?") from exc
