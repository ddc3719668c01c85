"""
The settings of a host: what the pillar says under ``ckan``, with every default.

docs/pillar.md and pillar.schema.json are made from these classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from ckan_deploy.settings.parts import CronJob, Extension, Hook, Worker
from ckan_deploy.settings.rules import setting

LISTEN = r"[0-9A-Za-z_.:\[\]-]+"
HOST = r"[0-9A-Za-z_.:-]*"
# Of a page that is asked for: what an address may have, without quotes.
PAGE = r"/[0-9A-Za-z_.~!$&()*+,;=:@%/?-]*"
# Of one that stands in the files of nginx and Apache, too.
PLAIN_PAGE = r"/[0-9A-Za-z_.~!&()*+,=:@/?-]*"


@frozen
class Paths:
    """Paths; `{root}`, `{home}` and `{site}` stand for what these settings are."""

    home: str = setting("{root}/usr/lib/ckan", "Home of the site (another site: `/usr/lib/ckan/sites/SITE`).")
    base: str = setting("{home}/default", "The virtualenv that the official install made.")
    releases: str = setting("{home}/releases", "The releases.")
    current: str = setting("{home}/current", "The link to the release that is served.")
    shared: str = setting("{home}/shared", "What outlives a release: mirrors, package cache, log.")
    config: str = setting("{root}/etc/ckan/{site}", "Where wsgi.py and apache.wsgi stand.")
    data: str = setting("{root}/var/lib/ckan/{site}", "Uploads, sessions, web assets of all releases.")
    log: str = setting("{root}/var/log/ckan", "Logs of the app servers.")
    backups: str = setting("{root}/var/backups/ckan/{site}", "Dumps of the database.")
    nginx_site: str = setting("{root}/etc/nginx/conf.d/ckan-{site}.conf", "nginx's virtual host of the site.")
    apache_site: str = setting(
        "{root}/etc/apache2/sites-enabled/ckan-{site}.conf", "Apache's virtual host of the site."
    )
    supervisor_programs: str = setting("{root}/etc/supervisor/conf.d", "Where supervisor finds its programs.")
    cron: str = setting("{root}/etc/cron.d/ckan-{site}", "The site's cron jobs.")


@frozen
class Base:
    """The base virtualenv that releases are cloned from."""

    version: str = setting(
        "",
        "CKAN version to make the base from, under `shared/bases`; empty to adopt the one at `paths:base`.",
        pattern=r"([0-9][0-9A-Za-z.+!-]*)?",
    )
    python: str = setting("/usr/bin/python3", "Interpreter that the base is made with.")
    packages: tuple[str, ...] = setting((), "Further requirements of a base that is made.")


@frozen
class Git:
    """Git servers."""

    host_keys: tuple[str, ...] = setting((), "Lines of a known_hosts file, for all git servers.", kind="lines")


@frozen
class Installer:
    """How packages are installed."""

    kind: str = setting(
        "auto", "The installer; `auto` is uv, and pip where there is no uv.", choices=("auto", "uv", "pip")
    )
    uv: str = setting("{shared}/tools/bin/uv", "The program uv; by default the highstate installs it.")
    index_url: str = setting("", "Package index, may hold a password; empty for the default.")
    index_urls: tuple[str, ...] = setting(
        (),
        "Further package indexes, asked before `index_url` and in this order (uv only); the first that has a package "
        "is taken for it. May hold passwords.",
        kind="lines",
    )
    find_links: str = setting("", "Directory or page with wheels.")
    offline: bool = setting(False, "Install without any network.")


@frozen
class Build:
    """How code of others is run when a release is built: SECURITY.md."""

    sandbox: str = setting(
        "bubblewrap",
        "What keeps build code apart: `bubblewrap` (namespaces of its own), or `user` (no more than the build user) "
        "where no namespaces can be had; a plan says so then.",
        choices=("bubblewrap", "user"),
    )
    network: bool = setting(
        False, "Whether build code reaches the network. Packages that it requires are there anyway."
    )
    memory_mb: int = setting(4096, "Memory that a process of a build may take, in MB.", least=64)
    processes: int = setting(512, "How many processes the build user may have.", least=16)
    timeout: int = setting(1800, "Seconds that one build may take.", least=1)
    ship: bool = setting(
        False,
        "One host builds for all of the environment, the others get what it has built: [shipping.md](shipping.md).",
    )
    host: str = setting(
        "",
        "Minion id of the host that builds; by default the first of those that a deploy goes to.",
        pattern=r"[0-9A-Za-z_.@:-]*",
    )
    only: bool = setting(False, "This host builds for the others and serves nothing; it is then `build:host`.")
    store: str = setting(
        "",
        "Where archives are handed over: a directory that all hosts mount, or an address that they are fetched from; "
        "by default Salt's own file transfer.",
        pattern=r"((https?:/)?/\S*[^\s/])?",
    )
    publish: str = setting("", "With an address as `store`: the directory on the builder whose files are found there.")


@frozen
class Database:
    """PostgreSQL."""

    host: str = setting("localhost", "Host of PostgreSQL.", pattern=HOST)
    port: int = setting(5432, "Port of PostgreSQL.", least=1, most=65535)
    name: str = setting("ckan_default", "Name of the database.")
    user: str = setting("ckan_default", "User of the database.")
    password: str = setting("", "Password of that user.", required=True, secret=True)
    admin_user: str = setting(
        "",
        "Who may make databases, for a restore; a superuser where the database has what only one may make, such as "
        "PostGIS. By default `database:user`, if it may.",
    )
    admin_password: str = setting("", "Password of that user.", secret=True)


@frozen
class Datastore:
    """The database of the datastore."""

    name: str = setting("", "Name of the datastore's database; empty for a portal without a datastore.")
    host: str = setting("", "Its host; by default `database:host`.", pattern=HOST)
    port: int = setting(0, "Its port; by default `database:port`.")
    user: str = setting("", "Who writes into it; by default `database:user`, with its password.")
    password: str = setting("", "Password of that user.", secret=True)
    read_user: str = setting("datastore_default", "Who only reads it.")
    read_password: str = setting("", "Password of that user; needed with a datastore.", secret=True)


@frozen
class Migration:
    """How the database is migrated: [database.md](database.md)."""

    when: str = setting(
        "auto",
        "Whether the database is migrated while the previous release serves visitors (`before`), or in maintenance "
        "mode, with services and cron jobs paused (`maintenance`). `auto`: the latter for an upgrade of CKAN.",
        choices=("auto", "before", "maintenance"),
    )
    lock_timeout: int = setting(
        10, "Seconds a migration waits for a lock of the database, and visitors behind it. 0: no limit."
    )
    statement_timeout: int = setting(0, "Seconds one statement of a migration may take. 0: no limit.")
    attempts: int = setting(3, "How often a migration that did not get a lock is tried.", least=1)
    rehearse: bool = setting(
        False, "Migrate a copy of the database first, made from the dump; what fails there touches nothing."
    )
    timeout: int = setting(3600, "Seconds a whole migration may take.", least=1)


@frozen
class Search:
    """The search index: [database.md](database.md)."""

    rebuild: str = setting(
        "auto",
        "Whether a release that indexes datasets in another way rebuilds the search index.",
        choices=("auto", "skip"),
    )
    second_core: str = setting(
        "",
        "A second core beside that of `solr_url`, with the same configuration, in which a rebuild is made.",
        pattern=r"([0-9A-Za-z_.-]+)?",
    )
    timeout: int = setting(21600, "Seconds a rebuild of the search index may take.", least=1)


@frozen
class Backup:
    """Dumps of the database: [database.md](database.md)."""

    when: str = setting(
        "before_migration",
        "When a deploy dumps the database: at each one, before one that migrates it, or never.",
        choices=("always", "before_migration", "never"),
    )
    keep: int = setting(3, "How many dumps are kept.", least=1)


@frozen
class Secrets:
    """Secrets."""

    session: str = setting("", "Signs sessions and forms.", required=True, secret=True)
    api_token: str = setting("", "Signs API tokens.", required=True, secret=True)
    config: Mapping[str, Any] = setting(
        {}, "Options of CKAN with secret values; as `config`, but shown nowhere.", secret=True
    )


@frozen
class Web:
    """The web server, the app servers and the health check."""

    server: str = setting(
        "nginx",
        "The web server: nginx, Apache with mod_wsgi, or what you run yourself in front of `current/run/web.sock`.",
        choices=("nginx", "apache", "none"),
    )
    app: str = setting(
        "uwsgi",
        "What runs CKAN: a uWSGI for each release under supervisor, or with `server: none` what you run yourself.",
        choices=("uwsgi", "none"),
    )
    listen: str = setting("80", "Where http is served: a port or address:port.", pattern=LISTEN)
    extra: str = setting("", "Lines put as they are into the site's `server` block or `VirtualHost`.", kind="text")
    processes: int = setting(2, "Processes that run CKAN.", least=1)
    threads: int = setting(4, "Threads of each process.", least=1)
    boot_timeout: int = setting(90, "Seconds an app server has to answer after its start.", least=1)
    drain_timeout: int = setting(20, "Seconds an old app server has to finish its requests.")
    warm: tuple[str, ...] = setting(
        ("/",), "Pages asked of a new app server before visitors are sent to it.", pattern=PAGE
    )
    standby: int = setting(
        0,
        "Seconds the app server of the previous release is kept after a deploy; a rollback within them is a rename.",
    )
    request_timeout: int = setting(
        0, "Seconds a request may take; the process that is at it is then ended. 0: no limit."
    )
    memory_limit_mb: int = setting(
        0, "Memory of a process of uWSGI, after which it is replaced between requests. 0: no limit."
    )
    upload_limit_mb: int = setting(100, "Largest upload, in MB.", least=1)
    health_path: str = setting(
        "/api/3/action/status_show",
        "What the health check asks for: a path without quotes, blanks and characters that web servers read otherwise.",
        pattern=PLAIN_PAGE,
    )
    health_status: int = setting(200, "The status it expects.", least=100)
    health_text: str = setting("", "Text that the answer must hold.")
    health_attempts: int = setting(3, "How often it asks, a second apart, before it fails.", least=1)
    health_timeout: int = setting(30, "Seconds an answer may take.", least=1)
    maintenance_page: str = setting(
        "salt://ckan/files/maintenance.html",
        "The maintenance page: `salt://...`, or a file on the host.",
        pattern=r"(salt:/)?/\S+",
    )
    maintenance_retry: int = setting(300, "Seconds after which visitors who get it are told to try again.", least=1)
    maintenance_health: bool = setting(
        False, "In maintenance mode the health path answers all, such as a load balancer; else the host itself only."
    )
    health_url: str = setting(
        "",
        "Address of this host's web server, `http(s)://host:port`; by default the port of `tls:listen`, or of "
        "`web:listen`.",
        pattern=r"(https?://[0-9A-Za-z_.:\[\]-]+/?)?",
    )
    nginx_conf: str = setting("", "Main configuration of an nginx of our own; empty for the system's.")
    apache_conf: str = setting("", "Main configuration of an Apache of our own; empty for the system's.")
    supervisor_conf: str = setting("", "Configuration of a supervisor of our own; empty for the system's.")


@frozen
class Tls:
    """https; the certificate is put on the host by others."""

    certificate: str = setting("", "File on the host with the certificate and its chain; empty for no https.")
    key: str = setting("", "File on the host with the certificate's key.")
    listen: str = setting("443", "Where https is served: a port or address:port.", pattern=LISTEN)
    redirect: bool = setting(True, "Answer plain http with a redirect (301) to https.")


@frozen
class Manage:
    """What the highstate may touch of the system."""

    packages: bool = setting(True, "Highstate installs Debian packages and uv, enables Apache's modules.")
    services: bool = setting(True, "Highstate starts nginx and supervisor, or Apache.")
    user: bool = setting(True, "Highstate makes user and group.")


@frozen
class Settings:
    """Settings outside any group."""

    env: str = setting("", "Name of the environment.", required=True, pattern=r"[a-z][a-z0-9_-]*")
    site: str = setting("default", "Name of the site on this machine.", pattern=r"[a-z][a-z0-9-]*")
    root: str = setting("", "Directory put before every default path; empty for `/`.", pattern=r"(/.*[^/])?")
    paths: Paths = field(factory=Paths)
    user: str = setting("www-data", "Who runs CKAN.", pattern=r"[a-z_][a-z0-9_-]*")
    group: str = setting("www-data", "The group that may read the ini.", pattern=r"[a-z_][a-z0-9_-]*")
    build_user: str = setting(
        "ckan-build",
        "Who runs the build code of extensions; neither root nor who runs CKAN.",
        pattern=r"[a-z_][a-z0-9_-]*",
    )
    base: Base = field(factory=Base)
    installer: Installer = field(factory=Installer)
    build: Build = field(factory=Build)
    link: str = setting(
        "auto",
        "How releases share files: by reflinks where the file system has them and else by hard links (`auto`), by hard "
        "links (`hard`), or not at all (`copy`).",
        choices=("auto", "hard", "copy"),
    )
    keep: int = setting(5, "How many good releases are kept.", least=2)
    deploy_group: str = setting(
        "", "Group that the host is in where a deploy goes by groups, such as `canary`.", pattern=r"([a-z][a-z0-9_-]*)?"
    )
    extensions: Mapping[str, Extension] = setting({}, "Extensions by name; see below.")
    packages: tuple[str, ...] = setting(
        (),
        "Further requirements of a release, such as `sentry-sdk>=2`; resolved with those of the extensions.",
        kind="lines",
    )
    override: tuple[str, ...] = setting(
        (), "Requirements that are installed and win over all others, CKAN's own included.", kind="lines"
    )
    patches: tuple[str, ...] = setting((), "Diffs to CKAN itself, in order.", pattern=r"salt://\S+")
    git: Git = field(factory=Git)
    plugins: tuple[str, ...] = setting((), "`ckan.plugins`, in order.")
    config: Mapping[str, Any] = setting({}, "Any option of CKAN; wins over what follows from the settings.")
    site_url: str = setting("", "Address of the site, without a slash at the end.", required=True)
    site_id: str = setting("default", "`ckan.site_id`.")
    domain: str = setting("", "Host name; by default that of `site_url`.")
    aliases: tuple[str, ...] = setting((), "Further host names; one may begin with `*.`.")
    database: Database = field(factory=Database)
    datastore: Datastore = field(factory=Datastore)
    solr_url: str = setting("http://127.0.0.1:8983/solr/ckan", "Address of the Solr core.")
    redis_url: str = setting("redis://127.0.0.1:6379/0", "Address of Redis.")
    secrets: Secrets = field(factory=Secrets)
    web: Web = field(factory=Web)
    tls: Tls = field(factory=Tls)
    manage: Manage = field(factory=Manage)
    workers: Mapping[str, Worker] = setting({}, "Background workers by name; see below.")
    stable_seconds: int = setting(
        5,
        "Seconds that workers and the app server of a release must stay up after their start for a deploy to be good. "
        "0: not watched.",
    )
    cron: Mapping[str, CronJob] = setting({}, "What is run at set times, by name; see below.")
    hooks: tuple[Hook, ...] = setting((), "What is done before and after stages, in order: docs/hooks.md.")
    migration: Migration = field(factory=Migration)
    search: Search = field(factory=Search)
    backup: Backup = field(factory=Backup)
    disk_free_mb: int = setting(500, "A deploy is refused with less disk free, in MB.")
