"""
The settings: what the pillar says under ``ckan``, with every default, as one validated dictionary.

This is the only module that reads the pillar, and ``SCHEMA`` is the only place where a default stands. The page
docs/pillar.md is made from it.
"""

from __future__ import annotations

import copy
import difflib
import ipaddress
import os
import re
import shlex
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "ckan_settings"

MASK = "**********"
SOCKET_LIMIT = 107


class Setting(NamedTuple):
    """What is known of one setting."""

    kind: str
    default: Any
    text: str
    required: bool = False
    pattern: str = ""
    choices: tuple = ()
    secret: bool = False
    least: int = 0
    most: int = 0


_LISTEN = r"[0-9A-Za-z_.:\[\]-]+"
# Kinds: str, text (of several lines), int, bool, list (of words), lines (list of text),
# options (free options of CKAN), extensions.
SCHEMA = {
    "env": Setting("str", "", "Name of the environment.", required=True, pattern=r"[a-z][a-z0-9_-]*"),
    "site": Setting("str", "default", "Name of the site on this machine.", pattern=r"[a-z][a-z0-9-]*"),
    "root": Setting("str", "", "Directory put before every default path; empty for `/`.", pattern=r"(/.*[^/])?"),
    "paths:home": Setting("str", "{root}/usr/lib/ckan", "Home of the site (another site: `/usr/lib/ckan/sites/SITE`)."),
    "paths:base": Setting("str", "{home}/default", "The virtualenv that the official install made."),
    "paths:releases": Setting("str", "{home}/releases", "The releases."),
    "paths:current": Setting("str", "{home}/current", "The link to the release that is served."),
    "paths:shared": Setting("str", "{home}/shared", "What outlives a release: mirrors, package cache, log."),
    "paths:config": Setting("str", "{root}/etc/ckan/{site}", "Where wsgi.py and apache.wsgi stand."),
    "paths:data": Setting("str", "{root}/var/lib/ckan/{site}", "Uploads, sessions, web assets of all releases."),
    "paths:log": Setting("str", "{root}/var/log/ckan", "Logs of the app servers."),
    "paths:backups": Setting("str", "{root}/var/backups/ckan/{site}", "Dumps of the database."),
    "paths:nginx_site": Setting("str", "{root}/etc/nginx/conf.d/ckan-{site}.conf", "nginx's file of the site."),
    "paths:apache_site": Setting(
        "str", "{root}/etc/apache2/sites-enabled/ckan-{site}.conf", "Apache's file of the site."
    ),
    "paths:supervisor_programs": Setting("str", "{root}/etc/supervisor/conf.d", "Where supervisor finds its programs."),
    "paths:cron": Setting("str", "{root}/etc/cron.d/ckan-{site}", "The site's lines of cron."),
    "user": Setting("str", "www-data", "Who runs CKAN.", pattern=r"[a-z_][a-z0-9_-]*"),
    "group": Setting("str", "www-data", "The group that may read the ini.", pattern=r"[a-z_][a-z0-9_-]*"),
    "build_user": Setting(
        "str",
        "ckan-build",
        "Who runs the build code of extensions; neither root nor who runs CKAN.",
        pattern=r"[a-z_][a-z0-9_-]*",
    ),
    "base:version": Setting(
        "str",
        "",
        "CKAN version to make the base from, under `shared/bases`; empty to adopt the one at `paths:base`.",
        pattern=r"([0-9][0-9A-Za-z.+!-]*)?",
    ),
    "base:python": Setting("str", "/usr/bin/python3", "Interpreter that the base is made with."),
    "base:packages": Setting("list", [], "Further requirements of a base that is made."),
    "installer:kind": Setting(
        "str", "auto", "The installer; `auto` is uv, and pip where there is no uv.", choices=("auto", "uv", "pip")
    ),
    "installer:uv": Setting("str", "{shared}/tools/bin/uv", "The program uv; by default the highstate installs it."),
    "installer:index_url": Setting("str", "", "Package index, may hold a password; empty for the default."),
    "installer:find_links": Setting("str", "", "Directory or page with wheels."),
    "installer:offline": Setting("bool", False, "Install without any network."),
    "link": Setting("str", "hard", "How a release shares files with the base.", choices=("hard", "copy")),
    "keep": Setting("int", 5, "How many good releases are kept.", least=2),
    "deploy_group": Setting(
        "str",
        "",
        "Group that the host is in where a deploy goes by groups, such as `canary`.",
        pattern=r"([a-z][a-z0-9_-]*)?",
    ),
    "extensions": Setting("extensions", {}, "Extensions by name; see below."),
    "patches": Setting("list", [], "Diffs to CKAN itself, in order.", pattern=r"salt://\S+"),
    "git:host_keys": Setting("lines", [], "Lines of a known_hosts file, for all git servers."),
    "plugins": Setting("list", [], "`ckan.plugins`, in order."),
    "config": Setting("options", {}, "Any option of CKAN; wins over what follows from the settings."),
    "site_url": Setting("str", "", "Address of the site, without a slash at the end.", required=True),
    "site_id": Setting("str", "default", "`ckan.site_id`."),
    "domain": Setting("str", "", "Host name; by default that of `site_url`."),
    "aliases": Setting("list", [], "Further host names; one may begin with `*.`."),
    "database:host": Setting("str", "localhost", "Host of PostgreSQL."),
    "database:port": Setting("int", 5432, "Port of PostgreSQL.", least=1, most=65535),
    "database:name": Setting("str", "ckan_default", "Name of the database."),
    "database:user": Setting("str", "ckan_default", "User of the database."),
    "database:password": Setting("str", "", "Password of that user.", required=True, secret=True),
    "database:admin_user": Setting(
        "str", "", "Who may make databases, for a restore; by default `database:user`, if it may."
    ),
    "database:admin_password": Setting("str", "", "Password of that user.", secret=True),
    "datastore:name": Setting("str", "", "Name of the datastore's database; empty for a portal without a datastore."),
    "datastore:host": Setting("str", "", "Its host; by default `database:host`."),
    "datastore:port": Setting("int", 0, "Its port; by default `database:port`.", least=0),
    "datastore:user": Setting("str", "", "Who writes into it; by default `database:user`, with its password."),
    "datastore:password": Setting("str", "", "Password of that user.", secret=True),
    "datastore:read_user": Setting("str", "datastore_default", "Who only reads it."),
    "datastore:read_password": Setting("str", "", "Password of that user; needed with a datastore.", secret=True),
    "solr_url": Setting("str", "http://127.0.0.1:8983/solr/ckan", "Address of the Solr core."),
    "redis_url": Setting("str", "redis://127.0.0.1:6379/0", "Address of Redis."),
    "secrets:session": Setting("str", "", "Signs sessions and forms.", required=True, secret=True),
    "secrets:api_token": Setting("str", "", "Signs API tokens.", required=True, secret=True),
    "secrets:config": Setting(
        "options", {}, "Options of CKAN with secret values; as `config`, but shown nowhere.", secret=True
    ),
    "web:server": Setting(
        "str",
        "nginx",
        "The front door: nginx, Apache with mod_wsgi, or what you run yourself before `current/run/web.sock`.",
        choices=("nginx", "apache", "none"),
    ),
    "web:app": Setting(
        "str",
        "uwsgi",
        "What runs CKAN: a uWSGI for each release under supervisor, or with `server: none` what you run yourself.",
        choices=("uwsgi", "none"),
    ),
    "web:listen": Setting("str", "80", "Where http is served: a port or address:port.", pattern=_LISTEN),
    "web:extra": Setting("text", "", "Lines put as they are into the site's `server` block or `VirtualHost`."),
    "web:processes": Setting("int", 2, "Processes that run CKAN.", least=1),
    "web:threads": Setting("int", 4, "Threads of each process.", least=1),
    "web:boot_timeout": Setting("int", 90, "Seconds an app server has to answer after its start.", least=1),
    "web:drain_timeout": Setting("int", 20, "Seconds an old app server has to finish its requests.", least=0),
    "web:warm": Setting(
        "list", ["/"], "Pages asked of a new app server before visitors are sent to it.", pattern=r"/\S*"
    ),
    "web:standby": Setting(
        "int",
        0,
        "Seconds that the app server of the release before is kept after a deploy; a rollback within them is a rename.",
        least=0,
    ),
    "web:request_timeout": Setting(
        "int", 0, "Seconds a request may take; the process that is at it is then ended. 0: no limit.", least=0
    ),
    "web:memory_limit_mb": Setting(
        "int", 0, "Memory of a process of uWSGI, after which it is replaced between requests. 0: no limit.", least=0
    ),
    "web:upload_limit_mb": Setting("int", 100, "Largest upload, in MB.", least=1),
    "web:health_path": Setting("str", "/api/3/action/status_show", "What the health check asks for.", pattern=r"/\S*"),
    "web:health_status": Setting("int", 200, "The status it expects.", least=100),
    "web:health_text": Setting("str", "", "Text that the answer must hold."),
    "web:health_attempts": Setting("int", 3, "How often it asks, a second apart, before it fails.", least=1),
    "web:health_timeout": Setting("int", 30, "Seconds an answer may take.", least=1),
    "web:maintenance_page": Setting(
        "str",
        "salt://ckan/files/maintenance.html",
        "The page that visitors get in maintenance: `salt://...`, or a file on the host.",
        pattern=r"(salt:/)?/\S+",
    ),
    "web:maintenance_retry": Setting("int", 300, "Seconds after which they are told to try again.", least=1),
    "web:maintenance_health": Setting(
        "bool", False, "The health path passes in maintenance for all, for a balancer; else for the host itself only."
    ),
    "web:health_url": Setting(
        "str", "", "The front door of this host; by default the port of `tls:listen`, or of `web:listen`."
    ),
    "web:nginx_conf": Setting("str", "", "Main configuration of an nginx of our own; empty for the system's."),
    "web:apache_conf": Setting("str", "", "Main configuration of an Apache of our own; empty for the system's."),
    "web:supervisor_conf": Setting("str", "", "Configuration of a supervisor of our own; empty for the system's."),
    "tls:certificate": Setting("str", "", "File on the host with the certificate and its chain; empty for no https."),
    "tls:key": Setting("str", "", "File on the host with the certificate's key."),
    "tls:listen": Setting("str", "443", "Where https is served: a port or address:port.", pattern=_LISTEN),
    "tls:redirect": Setting("bool", True, "Answer plain http with a redirect (301) to https."),
    "manage:packages": Setting("bool", True, "Highstate installs Debian packages and uv, enables Apache's modules."),
    "manage:services": Setting("bool", True, "Highstate starts nginx and supervisor, or Apache."),
    "manage:user": Setting("bool", True, "Highstate makes user and group."),
    "workers": Setting("workers", {}, "Background workers by name; see below."),
    "cron": Setting("cron", {}, "What is run at set times, by name; see below."),
    "hooks": Setting("hooks", [], "What is done before and after stages, in order: docs/hooks.md."),
    "migration:when": Setting(
        "str",
        "auto",
        "The database is migrated while visitors are served by the release `before`, or while they get the page of "
        "`maintenance` and workers stand still. `auto`: the latter for an upgrade of CKAN.",
        choices=("auto", "before", "maintenance"),
    ),
    "migration:lock_timeout": Setting(
        "int", 10, "Seconds a migration waits for a lock of the database, and visitors behind it. 0: no limit.", least=0
    ),
    "migration:statement_timeout": Setting(
        "int", 0, "Seconds one statement of a migration may take. 0: no limit.", least=0
    ),
    "migration:attempts": Setting("int", 3, "How often a migration that did not get a lock is tried.", least=1),
    "migration:rehearse": Setting(
        "bool", False, "Migrate a copy of the database first, made from the dump; what fails there touches nothing."
    ),
    "migration:timeout": Setting("int", 3600, "Seconds a whole migration may take.", least=1),
    "search:rebuild": Setting(
        "str",
        "auto",
        "Whether a release that indexes datasets in another way rebuilds the search index.",
        choices=("auto", "skip"),
    ),
    "search:second_core": Setting(
        "str",
        "",
        "A second core beside that of `solr_url`, with the same configuration, in which a rebuild is made.",
        pattern=r"([0-9A-Za-z_.-]+)?",
    ),
    "search:timeout": Setting("int", 21600, "Seconds a rebuild of the search index may take.", least=1),
    "backup:when": Setting(
        "str",
        "before_migration",
        "When a deploy dumps the database: at each one, before one that migrates it, or never.",
        choices=("always", "before_migration", "never"),
    ),
    "backup:keep": Setting("int", 3, "How many dumps are kept.", least=1),
    "disk_free_mb": Setting("int", 500, "A deploy is refused with less disk free, in MB.", least=0),
}
EXTENSION = {
    "remove": Setting("bool", False, "Leave the extension out here, though a shared part of the pillar has it."),
    "url": Setting("str", "", "Git: address of the origin (https, ssh, git, or a path)."),
    "ref": Setting("str", "", "Git: branch, tag or commit (also a short one)."),
    "subdirectory": Setting("str", "", "Git: directory in the repository that holds the Python package."),
    "submodules": Setting("bool", True, "Git: check out submodules, too."),
    "upstream": Setting("str", "", "Git: the origin that this one is a fork of, for comparison."),
    "locked": Setting("bool", False, "Git: refuse a tag that was moved since the last release."),
    "deploy_key": Setting("text", "", "Git over ssh: the private key of this origin alone.", secret=True),
    "host_keys": Setting("lines", [], "Git over ssh: lines of a known_hosts file, beside `git:host_keys`."),
    "token": Setting("str", "", "Git over https: token or password.", secret=True),
    "token_user": Setting("str", "oauth2", "Git over https: the user that goes with the token."),
    "version": Setting("str", "", "Package index: a version, or specifiers such as `>=1.4,<2`."),
    "archive": Setting("str", "", "Archive: a wheel or sdist, `https://...` or `salt://...`."),
    "hash": Setting("str", "", "Archive: `sha256=...` of it.", pattern=r"(sha256|sha512)[=:][0-9A-Fa-f]+"),
    "requirements": Setting("str", "auto", "`auto`, `none`, or a file in the repository."),
    "init": Setting(
        "lines",
        [],
        "Commands of CKAN, without `ckan -c INI`, that set the extension up in the database: each release runs them on "
        "one host after its migrations, so they must bear a repetition.",
    ),
    "override": Setting("lines", [], "Requirements that win over all others, CKAN's own included."),
    "patches": Setting("list", [], "Diffs to this extension, in order.", pattern=r"salt://\S+"),
}
HOOK = {
    "stage": Setting(
        "str", "", "The stage.", required=True,
        choices=(
            "build", "check", "migrate", "start", "activate", "verify", "index", "finish", "rollback", "downgrade",
            "abort",
        ),
    ),
    "when": Setting("str", "", "Before the stage, or after it when it went well.", required=True,
                    choices=("before", "after")),
    "function": Setting("str", "", "A function of an execution module.", pattern=r"([a-z_0-9]+\.[a-z_0-9]+)?"),
    "args": Setting("any", [], "Its arguments, a list."),
    "kwargs": Setting("any", {}, "Its named arguments, a dictionary."),
    "state": Setting("str", "", "Instead of a function: an SLS.", pattern=r"[\w.-]*"),
    "on_failure": Setting(
        "str", "warn", "Of a hook after a stage. One before a stage always stops it.", choices=("warn", "stop")
    ),
}  # fmt: skip
WORKER = {
    "remove": Setting("bool", False, "Leave the worker out here, though a shared part of the pillar has it."),
    "queues": Setting("list", ["default"], "Its queues; the first goes first.", pattern=r"[A-Za-z0-9_.:-]+"),
    "processes": Setting("int", 1, "How many of it run on each host.", least=1),
    "timeout": Setting(
        "int", 180, "Seconds that the job under way has to end, when the worker is to take up another release.", least=1
    ),
}
CRON = {
    "remove": Setting("bool", False, "Leave the line out here, though a shared part of the pillar has it."),
    "schedule": Setting("str", "", "When: the five fields of crontab(5), or `@daily` and the like.", required=True),
    "command": Setting("str", "", "What: a command of CKAN, without `ckan -c INI`."),
    "shell": Setting("str", "", "Instead of a command: a line of sh, run in the directory of the release."),
    "once": Setting("bool", False, "On one host of the environment only; the hosts agree by Redis."),
}
# An extension has one origin: which settings each kind needs, and which it may have.
ORIGINS = {
    "git": {
        "needs": ("url", "ref"),
        "may": ("subdirectory", "submodules", "upstream", "locked", "deploy_key", "host_keys", "token", "token_user",
                "requirements", "patches"),
    },
    "index": {"needs": ("version",), "may": ()},
    "archive": {"needs": ("archive", "hash"), "may": ()},
}  # fmt: skip
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# Options of CKAN may have several lines.
_CONTROL_IN_OPTION = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Addresses that may hold a password.
ADDRESSES = ("redis_url", "solr_url", "installer:index_url", "installer:find_links")
_SITE_URL = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_NAME_HINT = "write one such as data.example.org (letters beyond a-z as xn--...)"


def __virtual__() -> str:
    return __virtualname__


def get(overrides: dict | None = None, **kwargs: Any) -> dict:
    """
    Return the settings of this minion, secrets included: for the other modules of the formula, not for people.

    overrides
        What differs from the pillar for one deploy: ``{"extensions": {name: {"ref": ...}}}``.

    Returns the dictionary described in docs/pillar.md. Raises ``CommandExecutionError`` with every problem, a line
    each; ``SaltInvocationError`` when called from the command line, whose answer travels over the event bus.

    CLI Example: use ``ckan_settings.show``:

    .. code-block:: bash

        salt web1 ckan_settings.show
    """
    if any(name.startswith("__pub_") for name in kwargs):
        raise SaltInvocationError("ckan_settings.get would send secrets to the master; type ckan_settings.show.")
    try:
        return _of_pillar(overrides)
    except CommandExecutionError:
        # What the minion remembers may be from before the correction.
        if not refresh():
            raise
        return _of_pillar(overrides)


def _of_pillar(overrides: dict | None) -> dict:
    errors = __pillar__.get("_errors")
    if errors:
        each = "; ".join(dict.fromkeys(map(str, errors)))
        raise CommandExecutionError(f"the pillar failed to render: {each}")
    return _resolve(__pillar__.get("ckan"), overrides)


def refresh() -> bool:
    """
    Take the pillar of this minion anew from the master: it remembers one from when it was last told to, and a refresh
    that fails leaves that one as it is (``saltutil.refresh_pillar`` is true all the same).

    Returns whether there was one to take: ``salt-call`` has rendered it for this very call.

    CLI Example: not for the command line; ``ckan_release.deploy`` begins with it.
    """
    if globals().get("__opts__", {}).get("__cli") != "salt-minion":
        return False
    rendered = __salt__["pillar.items"](unmask=True)
    for name in ("ckan", "ckan_fleet", "_errors"):
        __pillar__.pop(name, None)
        if name in rendered:
            __pillar__[name] = rendered[name]
    return True


def fleet() -> dict:
    """
    Return what the master says of the environment as a whole: see ``pillar.example/ckan/fleet.sls``.

    Returns ``{"known": bool, "lock": {"kind", "by", "since", "reason", "job"} or None, "wanted": {"release",
    "contents", "extensions"} or None}``; ``known`` is False where the pillar does not include that file.

    CLI Example: not for the command line; use ``ckan.lock_status`` of the runners.
    """
    told = __pillar__.get("ckan_fleet")
    told = told if isinstance(told, dict) else {}
    return {"known": bool(told), "lock": told.get("lock"), "wanted": told.get("wanted")}


def show(overrides: dict | None = None) -> dict:
    """
    Return the settings of this minion with secrets masked.

    overrides
        As for ``get``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_settings.show
    """
    settings = get(overrides)
    # First of all: it looks for the secrets of the settings in the values.
    settings["config"] = __salt__["ckan_mask.options"](settings["config"], [], settings)
    for name, setting in SCHEMA.items():
        value = _at(settings, name)
        if setting.secret and value:
            _put(settings, name, dict.fromkeys(value, MASK) if setting.kind == "options" else MASK)
    for extension in settings["extensions"].values():
        for leaf, setting in EXTENSION.items():
            if setting.secret and extension[leaf]:
                extension[leaf] = MASK
    for name in ADDRESSES:
        _put(settings, name, __salt__["ckan_mask.address"](_at(settings, name)))
    return settings


def secret_values(settings: dict) -> list[str]:
    """
    Return the values of the secrets in the settings, for ``ckan_mask``.

    settings
        The settings, with their secrets.

    CLI Example: not for the command line.
    """
    values = []
    for name, setting in SCHEMA.items():
        if setting.secret:
            value = _at(settings, name)
            values += map(str, value.values()) if setting.kind == "options" else [value]
    for extension in settings["extensions"].values():
        values += [extension[leaf] for leaf, setting in EXTENSION.items() if setting.secret]
    for name in ADDRESSES:
        login = _at(settings, name).partition("://")[2].rpartition("@")[0]
        values.append(unquote(login.partition(":")[2]))
    return [value for value in values if value]


def secret_names() -> list[str]:
    """
    Return the names of the settings that are secrets; ``*`` stands for any name.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_settings.secret_names
    """
    names = [f"{name}:*" if setting.kind == "options" else name for name, setting in SCHEMA.items() if setting.secret]
    names += [f"extensions:*:{leaf}" for leaf, setting in EXTENSION.items() if setting.secret]
    return [*names, *ADDRESSES, "config:*"]


def validate(overrides: dict | None = None) -> bool:
    """
    Check the settings of this minion.

    overrides
        As for ``get``.

    Returns True. Raises ``CommandExecutionError`` with every problem, a line each.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_settings.validate
    """
    get(overrides)
    return True


def _resolve(pillar: Any, overrides: dict | None = None) -> dict:
    """Defaults, pillar and overrides as one dictionary; all problems in one error. Knows nothing of Salt."""
    if pillar is None:
        raise CommandExecutionError("the pillar has no key ckan for this minion; see pillar.example and its top.sls.")
    if not isinstance(pillar, dict):
        raise CommandExecutionError("the pillar's key ckan is not a dictionary; see pillar.example.")
    problems: list[str] = []
    pillar = _plain(pillar)
    if overrides is not None:
        _override(pillar, overrides, problems)
    encrypted: list[str] = []
    _look_for_ciphertext("ckan", pillar, encrypted)
    if encrypted:
        # Whatever else could be said of these values is noise, and may quote them.
        raise CommandExecutionError("\n".join(encrypted))
    settings: dict[str, Any] = {}
    _unknown("ckan", pillar, {name.split(":")[0] for name in SCHEMA}, problems)
    for group in sorted({name.split(":")[0] for name in SCHEMA if ":" in name}):
        inside = pillar.get(group)
        if inside is not None and not isinstance(inside, dict):
            # A number here may be a password that was put one level too high.
            problems.append(f"ckan:{group} must be a dictionary, not {_named(inside, secret=True)}")
            inside = None
        inside = inside or {}
        _unknown(f"ckan:{group}", inside, {n.split(":")[1] for n in SCHEMA if n.startswith(f"{group}:")}, problems)
        # A key with nothing behind it is as good as none: its default holds.
        pillar[group] = {leaf: value for leaf, value in inside.items() if value is not None}
    for name, setting in SCHEMA.items():
        group, _, leaf = name.rpartition(":")
        source = pillar[group] if group else pillar
        _put(settings, name, _value(f"ckan:{name}", source.get(leaf), setting, problems))
    if problems:
        raise CommandExecutionError("\n".join(problems))
    _derive(settings, pillar)
    _check_together(settings, problems)
    if problems:
        raise CommandExecutionError("\n".join(problems))
    return settings


def _value(key: str, value: Any, setting: Setting, problems: list[str]) -> Any:
    if setting.kind == "extensions":
        return _extensions(key, value, problems)
    if setting.kind == "hooks":
        return _hooks(key, value, problems)
    if setting.kind == "workers":
        return _named_parts(key, value, WORKER, problems)
    if setting.kind == "cron":
        lines = _named_parts(key, value, CRON, problems)
        for name, line in lines.items():
            _check_cron(f"{key}:{name}", line, problems)
        return lines
    if setting.kind == "any":
        return copy.deepcopy(setting.default if value is None else value)
    if value is None or value == "" and setting.required:
        if setting.required:
            made = ", or let the master make it (docs/secrets.md)" if key.startswith("ckan:secrets:") else ""
            problems.append(f"{key} is missing; set it in the pillar{made}")
        return copy.deepcopy(setting.default)
    if setting.kind == "options":
        return _config(key, value, problems)
    if setting.kind == "lines":
        if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
            problems.append(f"{key} must be a list of text, a line an item")
            return []
        if any(_CONTROL.search(item) for item in value):
            problems.append(f"{key} has an item with control characters or line breaks; write one line an item")
        return value
    if setting.kind == "list":
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            problems.append(f"{key} must be a list of text (put numbers and yes/no words in quotes)")
            return []
        if any(re.search(r"\s", item) or _CONTROL.search(item) for item in value):
            problems.append(f"{key} has an item with blanks or control characters; write one name an item")
        elif setting.pattern and (odd := [item for item in value if not re.fullmatch(setting.pattern, item)]):
            problems.append(f"{key} has the item {odd[0]!r}, which is not valid; correct it")
        if len(set(value)) != len(value):
            problems.append(f"{key} lists {next(i for i in value if value.count(i) > 1)} twice; remove one")
        return value
    wanted = {"str": str, "text": str, "int": int, "bool": bool}[setting.kind]
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        if wanted is str:
            problems.append(f"{key} is {_named(value, setting.secret)}; put the value in quotes in the pillar")
        else:
            kind = {"int": "a whole number", "bool": "True or False"}[setting.kind]
            problems.append(f"{key} must be {kind}, not {_named(value)}")
        return setting.default
    if setting.kind == "text":
        if _CONTROL_IN_OPTION.search(value):
            problems.append(f"{key} has control characters in it; remove them")
    elif wanted is str and _CONTROL.search(value):
        problems.append(f"{key} has control characters or line breaks in it; remove them")
    elif setting.pattern and not re.fullmatch(setting.pattern, value):
        problems.append(f"{key} is not valid ({value!r}); {setting.text[0].lower()}{setting.text[1:]}")
    elif setting.choices and value not in setting.choices:
        problems.append(f"{key} is {value!r}; use {' or '.join(setting.choices)}")
    elif wanted is int and value < setting.least:
        problems.append(f"{key} is {value}; use {setting.least} or more")
    elif setting.most and value > setting.most:
        problems.append(f"{key} is {value}; use {setting.most} or less")
    return value


def _extensions(key: str, value: Any, problems: list[str]) -> dict:
    if value is None:
        return {}
    if not isinstance(value, dict):
        problems.append(f"{key} must be a dictionary of extensions by name")
        return {}
    result = {}
    for name, content in value.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            problems.append(f"{key}: {name!r} is not the name of an extension; use letters, digits, '.', '_' and '-'")
            continue
        if not isinstance(content, dict):
            problems.append(f"{key}:{name} must be a dictionary such as {{url: ..., ref: ...}}")
            continue
        _unknown(f"{key}:{name}", content, set(EXTENSION), problems)
        if content.get("remove") is True:
            continue
        given = {leaf: content.get(leaf) for leaf in EXTENSION}
        got = {
            leaf: copy.deepcopy(s.default) if given[leaf] in (None, "") else _value(
                f"{key}:{name}:{leaf}", given[leaf], s, problems
            )
            for leaf, s in EXTENSION.items()
        }  # fmt: skip
        del got["remove"]
        got["kind"] = _kind_of_origin(f"{key}:{name}", given, problems)
        _check_origin(f"{key}:{name}", got, problems)
        result[name] = got
    # Two spellings of one package (ckanext_a, ckanext-a) would be installed over one another.
    spellings: dict[str, str] = {}
    for name in result:
        other = spellings.setdefault(canonicalize_name(name), name)
        if other != name:
            problems.append(f"{key}:{name} and {key}:{other} are the same package; remove one")
    return result


def _hooks(key: str, value: Any, problems: list[str]) -> list[dict]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        problems.append(f"{key} must be a list of dictionaries with stage, when, and function or state")
        return []
    hooks = []
    for index, given in enumerate(value):
        at = f"{key}:{index}"
        _unknown(at, given, set(HOOK), problems)
        hook = {leaf: _value(f"{at}:{leaf}", given.get(leaf), setting, problems) for leaf, setting in HOOK.items()}
        if bool(hook["function"]) == bool(hook["state"]):
            problems.append(f"{at} must have a function or a state, one of them")
        if not isinstance(hook["args"], list) or not isinstance(hook["kwargs"], dict):
            problems.append(f"{at}: args is a list, and kwargs a dictionary; correct them")
        hooks.append(hook)
    return hooks


def _named_parts(key: str, value: Any, schema: dict[str, Setting], problems: list[str]) -> dict[str, dict]:
    """Workers or lines of cron, by name."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        problems.append(f"{key} must be a dictionary by name")
        return {}
    found = {}
    for name, given in value.items():
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9-]{0,39}", name):
            problems.append(f"{key}: {name!r} cannot be a name; use small letters, digits and '-', 40 at most")
            continue
        given = {} if given is None else given
        if not isinstance(given, dict):
            leaf = next(leaf for leaf in schema if leaf != "remove")
            problems.append(f"{key}:{name} must be a dictionary such as {{{leaf}: ...}}")
            continue
        _unknown(f"{key}:{name}", given, set(schema), problems)
        if given.get("remove") is True:
            continue
        part = {leaf: _value(f"{key}:{name}:{leaf}", given.get(leaf), s, problems) for leaf, s in schema.items()}
        del part["remove"]
        if part.get("queues") == []:
            problems.append(f"{key}:{name}:queues is empty; name a queue, or leave it out for 'default'")
        found[name] = part
    return found


_CRON_WORDS = {
    "month": "jan feb mar apr may jun jul aug sep oct nov dec".split(),
    "day of week": "sun mon tue wed thu fri sat".split(),
}
# Cron reads no line of a file in which one is not right, and tells nobody but the system's log.
_CRON_FIELDS = {"minute": (0, 59), "hour": (0, 23), "day of month": (1, 31), "month": (1, 12), "day of week": (0, 7)}
_CRON_LIMIT = 500


def _check_cron(key: str, line: dict, problems: list[str]) -> None:
    if bool(line["command"]) == bool(line["shell"]):
        problems.append(f"{key} must have a command or a shell, one of them")
    for leaf in ("command", "shell"):
        if len(line[leaf]) > _CRON_LIMIT:
            problems.append(f"{key}:{leaf} is longer than {_CRON_LIMIT} characters; put it into a script")
    try:
        words = shlex.split(line["command"])
        if words and words[0] == "ckan":
            problems.append(f"{key}:command begins with 'ckan', which is put before it; leave it out")
    except ValueError as exc:
        problems.append(f"{key}:command cannot be split into words ({str(exc).lower()}); correct it")
    schedule = line["schedule"]
    if not schedule or re.fullmatch(r"@(reboot|yearly|annually|monthly|weekly|daily|midnight|hourly)", schedule):
        return
    fields = schedule.split()
    if len(fields) != len(_CRON_FIELDS):
        problems.append(f"{key}:schedule ({schedule!r}) must have five fields, or be @daily and the like")
        return
    for text, (name, (least, most)) in zip(fields, _CRON_FIELDS.items(), strict=True):
        if not all(_cron_item(item, least, most, _CRON_WORDS.get(name, [])) for item in text.split(",")):
            problems.append(f"{key}:schedule ({schedule!r}) has {text!r} for the {name}; use {least} to {most}, or *")


def _cron_item(item: str, least: int, most: int, words: list[str]) -> bool:
    """Whether cron takes this for a value, a range or a step."""
    match = re.fullmatch(r"(?:\*|(\w+)(?:-(\w+))?)(?:/([1-9][0-9]{0,2}))?", item, re.ASCII)
    if not match:
        return False
    values = []
    for text in filter(None, match.groups()[:2]):
        if text.lower() in words:
            values.append(words.index(text.lower()) + least)
        elif re.fullmatch(r"[0-9]{1,2}", text):
            values.append(int(text))
        else:
            return False
    # A step goes with a star or a range.
    stepped_alone = match[3] and match[1] and not match[2]
    return not stepped_alone and values == sorted(values) and all(least <= value <= most for value in values)


def _kind_of_origin(key: str, given: dict, problems: list[str]) -> str:
    """The one kind of origin that an extension names."""
    kinds = [kind for kind, parts in ORIGINS.items() if given[parts["needs"][0]] not in (None, "")]
    if len(kinds) > 1:
        firsts = " and ".join(ORIGINS[kind]["needs"][0] for kind in kinds)
        problems.append(f"{key} has {firsts}: name one origin (url and ref, version, or archive and hash)")
        return kinds[0]
    if not kinds and given["ref"] in (None, ""):
        problems.append(f"{key} names no origin; give url and ref, version, or archive and hash")
        return "git"
    kind = kinds[0] if kinds else "git"
    missing = [leaf for leaf in ORIGINS[kind]["needs"] if given[leaf] in (None, "")]
    problems += [f"{key}:{leaf} is missing; set it in the pillar" for leaf in missing]
    known = {*ORIGINS[kind]["needs"], *ORIGINS[kind]["may"], "override", "init"}
    for leaf, value in given.items():
        if value not in (None, "", []) and leaf not in known:
            problems.append(f"{key}:{leaf} means nothing for an extension from {kind}; remove it")
    return kind


def _check_origin(key: str, extension: dict, problems: list[str]) -> None:
    url, ref = extension["url"], extension["ref"]
    for leaf in ("url", "ref", "requirements", "upstream", "subdirectory", "archive"):
        if extension[leaf].startswith("-"):
            problems.append(f"{key}:{leaf} begins with '-', which git would take for an option; correct it")
    for leaf in ("url", "upstream"):
        if re.match(r"^[A-Za-z0-9+.-]+::", extension[leaf]):
            problems.append(f"{key}:{leaf} names a helper program of git; use https, ssh, git or a path")
    if not _CONTROL.search(ref) and re.search(r"\s|\.\.|[~^:?*\[\\]|@\{", ref):
        problems.append(f"{key}:ref ({ref!r}) cannot be the name of a branch, a tag or a commit; correct it")
    for leaf in ("requirements", "subdirectory"):
        if extension[leaf].startswith("/") or ".." in extension[leaf].split("/"):
            problems.append(f"{key}:{leaf} must be a path inside the repository")
    for leaf in ("url", "upstream", "archive"):
        try:
            parts = urlsplit(extension[leaf])
            # Raises where the port is none: what is taken for one may be half of a password.
            _ = parts.port
            # A name alone may be a token over http; over ssh it is the login.
            if parts.password or (parts.username and parts.scheme in ("http", "https")):
                problems.append(f"{key}:{leaf} has a password or a token in it; take it out and set {key}:token")
        except ValueError:
            problems.append(f"{key}:{leaf} cannot be read as an address; correct it")
    if extension["archive"] and not re.match(r"^(https?|salt)://", extension["archive"]):
        problems.append(f"{key}:archive must begin with https://, http:// or salt://")
    if extension["version"] and not _specifier(extension["version"]):
        problems.append(f"{key}:version ({extension['version']!r}) is neither a version nor specifiers; correct it")
    for line in extension["override"]:
        try:
            Requirement(line)
        except InvalidRequirement:
            problems.append(f"{key}:override has the item {line!r}, which is no requirement such as 'name==1.0'")
    if extension["deploy_key"] and "PRIVATE KEY-----" not in extension["deploy_key"]:
        problems.append(f"{key}:deploy_key is not a private key; it begins with -----BEGIN")
    if extension["token"] and not url.startswith("https://") and not url.startswith("http://"):
        problems.append(f"{key}:token is for https, and url is not https; use deploy_key, or correct url")


def _specifier(version: str) -> bool:
    try:
        SpecifierSet(version if version[0] in "<>=!~" else f"=={version}")
    except InvalidSpecifier:
        return False
    return True


def _config(key: str, value: Any, problems: list[str]) -> dict:
    if not isinstance(value, dict):
        problems.append(f"{key} must be a dictionary of CKAN's options")
        return {}
    for option, content in value.items():
        if not isinstance(option, str) or not re.fullmatch(r"[A-Za-z0-9_.-]+", option):
            problems.append(f"{key}: {option!r} cannot be the name of an option; correct it")
        items = content if isinstance(content, list) else [content]
        for item in items:
            if not isinstance(item, (str, int, float)):
                problems.append(f"{key}:{option} must be text, a number, True or False, or a list of them")
            elif isinstance(item, str) and _CONTROL_IN_OPTION.search(item):
                problems.append(f"{key}:{option} has control characters in it; remove them")
    return value


def _derive(settings: dict, pillar: dict) -> None:
    """Fill in the defaults that follow from other settings."""
    paths, root, site = settings["paths"], settings["root"], settings["site"]
    if "home" not in pillar["paths"] and site != "default":
        paths["home"] += f"/sites/{site}"
    if "home" not in pillar["paths"]:
        paths["home"] = paths["home"].format(root=root)
    for name, value in paths.items():
        if name not in pillar["paths"]:
            paths[name] = value.format(root=root, site=site, home=paths["home"])
    if "uv" not in pillar["installer"]:
        settings["installer"]["uv"] = settings["installer"]["uv"].format(shared=paths["shared"])
    database, store = settings["database"], settings["datastore"]
    if not store["user"]:
        store.update(user=database["user"], password=store["password"] or database["password"])
    for name in ("host", "port"):
        store[name] = store[name] or database[name]
    if settings["web"]["server"] == "apache":
        settings["web"]["app"] = "none"  # CKAN runs in its own processes
    for extension in settings["extensions"].values():
        extension["host_keys"] = [*extension["host_keys"], *settings["git"]["host_keys"]]
    if not settings["domain"] and _SITE_URL.fullmatch(settings["site_url"]):
        settings["domain"] = urlsplit(settings["site_url"]).hostname or ""


def _check_together(settings: dict, problems: list[str]) -> None:
    paths = {f"paths:{name}": value for name, value in settings["paths"].items()}
    web, tls = settings["web"], settings["tls"]
    optional = {f"web:{name}": web[name] for name in ("nginx_conf", "apache_conf", "supervisor_conf")}
    optional.update({f"tls:{name}": tls[name] for name in ("certificate", "key")})
    # Empty means the system's own, or none.
    paths.update({name: value for name, value in optional.items() if value})
    for name, value in paths.items():
        if not os.path.isabs(value) or os.path.normpath(value) != value:
            problems.append(f"ckan:{name} ({value}) must be an absolute path without '..' or a slash at the end")
        elif re.search(r"[\s\"'{}$;%,]", value):
            problems.append(f"ckan:{name} ({value}) has blanks or one of \"'{{}}$;%, in it; choose another")
    store = settings["datastore"]
    if store["name"]:
        problems += [
            f"ckan:datastore:{name} is missing; a datastore needs it, set it in the pillar"
            for name in ("password", "read_password")
            if not store[name]
        ]
        if store["name"] == settings["database"]["name"] and store["host"] == settings["database"]["host"]:
            problems.append("ckan:datastore:name is the database of CKAN itself; give the datastore one of its own")
    for option in sorted(settings["config"].keys() & settings["secrets"]["config"].keys()):
        problems.append(f"{option} stands in ckan:config and in ckan:secrets:config; remove one")
    _check_names(settings, problems)
    if web["server"] == "nginx" and web["app"] == "none":
        problems.append("ckan:web:app is none, but nginx asks an app server; use uwsgi, or server: none")
    for name, group in (("web:listen", web), ("tls:listen", tls)):
        if not _port(group["listen"].rpartition(":")[2]):
            problems.append(f"ckan:{name} ({group['listen']}) has no port from 1 to 65535; use one such as '8080'")
    if bool(tls["certificate"]) != bool(tls["key"]):
        there, missing = ("certificate", "key") if tls["certificate"] else ("key", "certificate")
        problems.append(f"ckan:tls:{missing} is missing, while ckan:tls:{there} is set; set both or none")
    if tls["certificate"] and tls["listen"] == web["listen"]:
        problems.append(f"ckan:tls:listen and ckan:web:listen are both {tls['listen']}; give each a port of its own")
    socket = os.path.join(settings["paths"]["releases"], "YYYYMMDDhhmmssZ", "run", "web.sock")
    if web["app"] == "uwsgi" and len(socket.encode()) > SOCKET_LIMIT:
        problems.append(
            f"{socket} is longer than the {SOCKET_LIMIT} bytes a unix socket may have; choose a shorter ckan:paths:home"
        )


def _check_names(settings: dict, problems: list[str]) -> None:
    """The names that visitors type: those of `domain` and `aliases`, and the one in `site_url`."""
    if not _SITE_URL.fullmatch(settings["site_url"]):
        problems.append("ckan:site_url must be http(s)://host or http(s)://host:port and no more; correct it")
        return
    host, port = _SITE_URL.fullmatch(settings["site_url"]).groups()
    if not _host(host.strip("[]")):
        problems.append(f"ckan:site_url has {host} in it, which is not a host name; {_NAME_HINT}")
    elif not _host(settings["domain"]):
        problems.append(f"ckan:domain ({settings['domain']}) is not a host name; {_NAME_HINT}")
    if port and not _port(port[1:]):
        problems.append(f"ckan:site_url has the port {port[1:]}; use one from 1 to 65535")
    for alias in settings["aliases"]:
        if not _host(alias.removeprefix("*.")):
            problems.append(f"ckan:aliases has the item {alias!r}, which is not a host name; {_NAME_HINT}")


def _host(name: str) -> bool:
    """Whether this is a host name as DNS has them, or an address."""
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        return len(name) <= 253 and all(_LABEL.fullmatch(label) for label in name.split("."))


def _port(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9]{1,5}", text)) and 1 <= int(text) <= 65535


def _override(pillar: dict, overrides: dict, problems: list[str]) -> None:
    if not isinstance(overrides, dict):
        problems.append("what one deploy changes must be a dictionary such as {extensions: {ckanext-x: {ref: y}}}")
        return
    for name in overrides:
        if name != "extensions":
            problems.append(f"{name} cannot be given for one deploy, only extensions can; put it in the pillar")
    wanted = overrides.get("extensions")
    if wanted is None:
        return
    if not isinstance(wanted, dict) or not all(isinstance(content, dict) for content in wanted.values()):
        problems.append("extensions must be a dictionary such as {ckanext-mycity: {ref: fix-42}}")
        return
    known = pillar.get("extensions") or {}
    if not isinstance(known, dict):
        return  # refused by its key later on
    pillar["extensions"] = known
    for name, content in _plain(wanted).items():
        if name not in known and "url" not in content:
            near = _near(name, known)
            problems.append(f"extension {name} is not in the pillar{near}; give its url and ref, or correct it")
            continue
        if isinstance(known.get(name, {}), dict):
            mine = known.get(name, {})
            if any(parts["needs"][0] in content for parts in ORIGINS.values()):
                # Another origin for once: what belongs to the one in the pillar goes.
                firsts = {leaf for parts in ORIGINS.values() for leaf in parts["needs"]}
                mine = {leaf: value for leaf, value in mine.items() if leaf not in firsts or leaf in content}
            known[name] = {**mine, **content}


def _unknown(key: str, found: dict, known: set, problems: list[str]) -> None:
    for name in found:
        if name not in known:
            near = difflib.get_close_matches(str(name), sorted(known), n=1, cutoff=0.5)
            hint = f"; did you mean {key}:{near[0]}?" if near else "; see docs/pillar.md"
            problems.append(f"{key}:{name} is not a setting{hint}")


def _near(name: str, known: dict) -> str:
    near = difflib.get_close_matches(str(name), sorted(map(str, known)), n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else ""


def _look_for_ciphertext(key: str, value: Any, problems: list[str]) -> None:
    if isinstance(value, dict):
        for name, content in value.items():
            _look_for_ciphertext(f"{key}:{name}", content, problems)
    elif isinstance(value, list):
        for index, content in enumerate(value):
            _look_for_ciphertext(f"{key}:{index}", content, problems)
    elif isinstance(value, str) and "-----BEGIN PGP" in value:
        problems.append(f"{key} is still encrypted (PGP); check its file's #!yaml|gpg line and the master's key")


def _named(value: Any, secret: bool = False) -> str:
    """What YAML made of a value, for people; never the value of text or of a secret."""
    if secret and isinstance(value, (int, float)):
        return "a number or a yes/no value"
    if isinstance(value, bool):
        return f"the yes/no value {value}"
    if isinstance(value, (int, float)):
        return f"the number {value}"
    return {dict: "a dictionary", list: "a list", str: "text"}.get(type(value), type(value).__name__)


def _plain(value: Any) -> Any:
    """Salt's masked dictionaries and lists as plain ones, so that nothing of ours changes the pillar."""
    if isinstance(value, dict):
        return {key: _plain(content) for key, content in value.items()}
    if isinstance(value, list):
        return [_plain(content) for content in value]
    return value


def _at(settings: dict, name: str) -> Any:
    group, _, leaf = name.rpartition(":")
    return (settings[group] if group else settings)[leaf]


def _put(settings: dict, name: str, value: Any) -> None:
    group, _, leaf = name.rpartition(":")
    (settings.setdefault(group, {}) if group else settings)[leaf] = value
