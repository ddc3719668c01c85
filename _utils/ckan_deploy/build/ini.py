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
from collections.abc import Collection, Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import attrs

from ckan_deploy.build import declared
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.site import Site
from ckan_deploy.settings import mask
from ckan_deploy.settings.data import Database, Datastore
from ckan_deploy.system import files

SECTION = "app:main"
CHANGED = "(changed)"
WEBASSETS = "%(here)s/run/webassets"
# The largest file, in MB.
UPLOADS = ("ckan.max_resource_size", "ckan.max_image_size")

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


def path(site: Site, directory: str) -> str:
    """
    Return where the ini of a release stands, such as ``.../production.ini``.

    site
        The site.
    directory
        The directory of the release.
    """
    return os.path.join(directory, f"{site.settings.env}.ini")


def assets(directory: str) -> str:
    """
    Return where the web assets of a release stand, unless an option of CKAN says otherwise.

    directory
        The directory of the release.
    """
    return WEBASSETS.replace("%(here)s", directory)


def write(site: Site, directory: str) -> dict[str, Any]:
    """
    Write the ini of a release: UTF-8, mode 0640, owner root, group that of CKAN.

    site
        The site.
    directory
        The directory of the release.

    Returns ``{"configuration": hash, "secret_options": [names]}``. The hash is keyed with the session secret, so it
    tells two configurations apart and nothing else. Raises ``FormulaError`` when the file would not give back
    what the pillar says.
    """
    return put(site, directory, _text(site))


def put(site: Site, directory: str, text: str) -> dict[str, Any]:
    """
    Make a text the ini of a release, with the same mode and owners.

    site
        The site.
    directory
        The directory of the release.
    text
        The whole ini.

    Returns what ``write`` returns.
    """
    files.write(path(site, directory), text, mode=0o640, group=site.settings.group)
    key = site.settings.secrets.session.encode("utf-8")
    return {
        "configuration": hmac.new(key, text.encode("utf-8"), hashlib.sha256).hexdigest(),
        "secret_options": tuple(sorted(site.settings.secrets.config)),
    }


@contextlib.contextmanager
def lent(site: Site, directory: str) -> Iterator[str]:
    """
    Have another ini in a release for a while, beside its own: for a rehearsal on a copy of the database.

    site
        The site.
    directory
        The directory of the release.

    Yields its path.
    """
    place = os.path.join(directory, "rehearsal.ini")
    try:
        files.write(place, _text(site), mode=0o640, group=site.settings.group)
        yield place
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place)


def own_database(site: Site) -> bool:
    """
    Say whether CKAN's database is the one of ``ckan:database``, and none that ``ckan:config`` names.

    site
        The site.
    """
    return bool(options(site)["sqlalchemy.url"] == database_url(site.settings.database))


def validate(site: Site) -> bool:
    """
    Check that an ini can hold what the settings say.

    site
        The site.

    Returns True. Raises ``FormulaError`` that names the options which it cannot hold.
    """
    return bool(_text(site))


def names(site: Site, old: str, new: str) -> dict[str, Any]:
    """
    Compare the inis of two releases.

    site
        The site.
    old, new
        Their directories.

    Returns the names of options, never a value: ``{"added": [...], "removed": [...], "changed": [...]}``.
    """
    return {
        kind: sorted(options)
        for kind, options in _compare(*(_read(path(site, directory)) for directory in (old, new))).items()
    }


def diff(
    site: Site, directory: str, secret_options: Collection[str] = (), defaults: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """
    Compare the ini of a release with what the settings would make of it now.

    site
        The site.
    directory
        The directory of the release; empty for none.
    secret_options
        The options whose values were secret when the release was made.
    defaults
        CKAN's defaults, as ``declared.defaults`` returns them: what stands on one side only, and says what holds
        without it, is counted and not shown.

    Returns ``{"added": {option: value}, "removed": {option: value}, "changed": {option: "old -> new"}}``, and
    ``defaults``, the number of options that are not shown, where there are any; of a secret only ``(changed)`` is
    shown.
    """
    before = _read(path(site, directory)) if directory else {}
    after = _parse(_text(site))
    hidden = {*secret_options, *site.settings.secrets.config}
    masked = [mask.options(_shown(side), hidden, site.settings) for side in (before, after)]
    compared, idle = _compare(before, after), 0
    for kind, side in (("added", after), ("removed", before)):
        telling = [name for name in compared[kind] if not _says_nothing(name, side[name], defaults or {})]
        idle, compared[kind] = idle + len(compared[kind]) - len(telling), telling
    return {
        "added": {name: masked[1][name] for name in compared["added"]},
        "removed": {name: masked[0][name] for name in compared["removed"]},
        "changed": {
            # Where the difference is in what is masked, the two sides look the same.
            name: CHANGED if masked[0][name] == masked[1][name] else f"{masked[0][name]} -> {masked[1][name]}"
            for name in compared["changed"]
        },
        **({"defaults": idle} if idle else {}),
    }


def options(site: Site) -> dict[str, Any]:
    """
    Return CKAN's options: what follows from the settings, then what the pillar says in ``ckan:config``.

    Returns ``{option: value}``, secrets included.

    site
        The site.
    """
    settings, secrets, data = site.settings, site.settings.secrets, site.paths.data
    url = urlsplit(settings.site_url)
    found = {
        "ckan.site_url": f"{url.scheme}://{url.netloc}",
        **(_below(url.path) if url.path else {}),
        "ckan.site_id": settings.site_id,
        "sqlalchemy.url": database_url(site.settings.database),
        "solr_url": settings.solr_url,
        "ckan.redis.url": settings.redis_url,
        "ckan.storage_path": os.path.join(data, "storage"),
        # Each release has its own: webassets keeps notes there that two releases would take from one another.
        "ckan.webassets.path": WEBASSETS,
        "ckan.plugins": " ".join(settings.plugins),
        "SECRET_KEY": secrets.session,
        "beaker.session.secret": secrets.session,
        "beaker.session.data_dir": os.path.join(data, "sessions"),
        "WTF_CSRF_SECRET_KEY": secrets.session,
        "api_token.jwt.encode.secret": f"string:{secrets.api_token}",
        "api_token.jwt.decode.secret": f"string:{secrets.api_token}",
        **dict.fromkeys(UPLOADS, settings.web.upload_limit_mb),
    }
    store = settings.datastore
    if store.name:
        found["ckan.datastore.write_url"] = database_url(store)
        found["ckan.datastore.read_url"] = database_url(
            attrs.evolve(store, user=store.read_user, password=store.read_password)
        )
    return {**found, **site.settings.config, **secrets.config}


def _below(path: str) -> dict[str, str]:
    """What a portal below a path needs: CKAN puts that path before all addresses in its pages but that of the icon."""
    return {"ckan.root_path": f"{path}/{{{{LANG}}}}", "ckan.favicon": f"{path}/base/images/ckan.ico"}


def _text(site: Site) -> str:
    wanted = options(site)
    # %(here)s, the directory of the ini, is kept where people wrote it on purpose: never in a secret.
    rendered = {
        name: _value(value, here=name in site.settings.config or value == WEBASSETS) for name, value in wanted.items()
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
        raise FormulaError(
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


def database_url(database: Database | Datastore) -> str:
    """
    Return the address of a database as CKAN's options have it, with the password.

    database
        The database, and as whom.
    """
    user, password = quote(database.user, safe=""), quote(database.password, safe="")
    host = f"[{database.host}]" if ":" in database.host else database.host
    return f"postgresql://{user}:{password}@{host}:{database.port}/{quote(database.name, safe='')}"


def _compare(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, list[str]]:
    return {
        "added": [name for name in after if name not in before],
        "removed": [name for name in before if name not in after],
        "changed": [name for name in after if name in before and before[name] != after[name]],
    }


def _says_nothing(name: str, value: str, defaults: Mapping[str, Any]) -> bool:
    return name in defaults and declared.says_nothing(value.replace("%%", "%"), defaults[name])


def _shown(found: dict[str, str]) -> dict[str, str]:
    return {name: value.replace("%%", "%") for name, value in found.items()}


def _parse(text: str) -> dict[str, str]:
    """The options of an ini's text, as they are written: % is not interpolated."""
    parser = configparser.RawConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return {name: value for name, value in parser[SECTION].items() if name != "use" and name not in parser.defaults()}


def _read(file: str) -> dict[str, str]:
    try:
        with open(file, encoding="utf-8") as handle:
            return _parse(handle.read())
    except (OSError, ValueError, KeyError, configparser.Error) as exc:
        raise FormulaError(f"{file} cannot be read; was it edited by hand?") from exc
