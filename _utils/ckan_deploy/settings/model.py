"""
The settings of a host: what the pillar says under ``ckan``, with every default.

docs/pillar.md and pillar.schema.json are made from these classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from ckan_deploy.settings.data import Backup, Database, Datastore, Migration, Search
from ckan_deploy.settings.parts import PAGE, Acme, CronJob, Extension, Hook, Page, Service, Worker
from ckan_deploy.settings.rules import setting

LISTEN = r"[0-9A-Za-z_.:\[\]-]+"
# Of a page that stands in the files of nginx and Apache, too.
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
    access_log: str = setting("{root}/var/log/{server}/ckan-{site}-access.log", "Log of requests, with the release.")
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
    reuse_hours: int = setting(
        24,
        "Hours for which a plan takes the versions of the one before, where nothing has changed of what they follow "
        "from: commits, requirements, base, installer, indexes. `fresh: true` of a deploy asks the index anew. 0: each "
        "plan does.",
        least=0,
    )


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
    environment: Mapping[str, str] = setting(
        {},
        "Environment variables of build code (wheels, `build` lines), such as a proxy. That code reads them: nothing "
        "secret here.",
    )


@frozen
class Secrets:
    """Secrets."""

    session: str = setting("", "Signs sessions and forms.", required=True, secret=True)
    api_token: str = setting("", "Signs API tokens.", required=True, secret=True)
    config: Mapping[str, Any] = setting(
        {}, "Options of CKAN with secret values; as `config`, but shown nowhere.", secret=True
    )
    smoke: Mapping[str, Any] = setting({}, "Passwords of the users that `web:smoke` names, by user.", secret=True)
    environment: Mapping[str, str] = setting(
        {}, "Environment variables with secret values; as `environment`, but shown nowhere.", secret=True
    )


@frozen
class Web:
    """The web server, the app servers and the health check."""

    server: str = setting(
        "nginx",
        "The web server: nginx, Apache with mod_wsgi, or what you run yourself in front of `current/run/web.sock`.",
        choices=("nginx", "apache", "none"),
    )
    group: str = setting(
        "",
        "The group that may ask the app server on its socket. By default that of nginx, by the line `user` of its "
        "configuration; with `server: none` everybody may, unless this is set.",
        pattern=r"([a-z_][a-z0-9_-]*)?",
    )
    app: str = setting(
        "uwsgi",
        "What runs CKAN: a uWSGI for each release under supervisor, or with `server: none` what you run yourself.",
        choices=("uwsgi", "none"),
    )
    listen: tuple[str, ...] = setting(
        ("80",),
        "Where http is served: ports, which are every address of IPv4 and IPv6, or address:port.",
        pattern=LISTEN,
        one=True,
    )
    extra: str = setting("", "Lines put as they are into the site's `server` block or `VirtualHost`.", kind="text")
    processes: int = setting(2, "Processes that run CKAN.", least=1)
    threads: int = setting(4, "Threads of each process.", least=1)
    boot_timeout: int = setting(90, "Seconds an app server has to answer after its start.", least=1)
    drain_timeout: int = setting(
        20, "Seconds an old app server has to take the requests in line, and again to finish those that it is at."
    )
    wait_for_drain: bool = setting(
        False,
        "A deploy or a rollback ends when the old app server has. Else it waits for 3 s at most, once the requests in "
        "line have been taken.",
    )
    warm: tuple[str, ...] = setting(
        ("/",), "Pages asked of a new app server before visitors are sent to it.", pattern=PAGE
    )
    smoke: tuple[Page, ...] = setting(
        (),
        "Pages that a release must answer before visitors are sent to it, and through the web server after; beside "
        "those that every CKAN and its plugins have, which must not end in an error (5xx). See below.",
        kind="pages",
    )
    smoke_skip: tuple[str, ...] = setting(
        (), "Pages of CKAN and of plugins that are not asked for, since their errors are accepted.", pattern=PAGE
    )
    smoke_timeout: int = setting(15, "Seconds that the answer of one such page may take.", least=1)
    smoke_total: int = setting(60, "Seconds that all of them together may take.", least=1)
    standby: int = setting(
        0,
        "Seconds the app server of the previous release is kept after a deploy; a rollback within them is a rename.",
    )
    request_timeout: int = setting(
        0,
        "Seconds a request may take; the process that is at it is then ended. 0: no limit, in the web server neither.",
    )
    memory_limit_mb: int = setting(
        0, "Memory of a process of uWSGI, after which it is replaced between requests. 0: no limit."
    )
    upload_limit_mb: int = setting(
        100,
        "Largest file of an upload, in MB: for the web server, and as `ckan.max_resource_size` and "
        "`ckan.max_image_size`, unless `config` has these. The web server takes the largest of the three.",
        least=1,
    )
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
        "salt://ckan/files/maintenance.html.jinja",
        "The maintenance page: by default one made of the next settings and of the title of the site; one of your own "
        "(`salt://...` or a file on the host) is taken as it is.",
        pattern=r"(salt:/)?/\S+",
    )
    maintenance_message: Mapping[str, Any] = setting(
        {}, "What that page says in place of its own sentence, by language, such as `{en: ..., de: ...}`."
    )
    maintenance_languages: tuple[str, ...] = setting(
        (),
        "The languages it is in, by CKAN's names, the main one first; by default those of `ckan.locale_default`, "
        "`ckan.locales_offered` and `maintenance_message`.",
    )
    maintenance_logo: str = setting(
        "",
        "An image on it (PNG, JPEG, GIF, WebP or SVG, at most 200 KB), `salt://...` or a file on the host.",
        pattern=r"((salt:/)?/\S+)?",
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
    """https; the certificate is put on the host by others, or got and renewed by ACME."""

    certificate: str = setting("", "File on the host with the certificate and its chain; empty for no https.")
    key: str = setting("", "File on the host with the certificate's key.")
    acme: Acme = setting(Acme(), "Instead of these two: how certbot gets the certificate; see below.")
    listen: tuple[str, ...] = setting(("443",), "Where https is served, as `web:listen`.", pattern=LISTEN, one=True)
    redirect: bool = setting(True, "Answer plain http with a redirect (301) to https.")
    hsts: int = setting(
        0, "Seconds for which browsers are told to ask by https only (HSTS), such as 63072000. 0: they are not told."
    )


@frozen
class Storage:
    """Uploads: what is below `ckan.storage_path`."""

    kind: str = setting(
        "local",
        "Where uploads are: in a directory of each host (`local`), in one of all hosts such as NFS (`shared`), "
        "or not on the hosts (`elsewhere`), such as with an extension for S3.",
        choices=("local", "shared", "elsewhere"),
    )


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
    config_known: tuple[str, ...] = setting(
        (),
        "Options in `config` that are right though neither CKAN nor a plugin declares them: names, or patterns such as "
        "`scheming.*`. The check does not warn of them.",
        pattern=r"\S+",
    )
    site_url: str = setting(
        "",
        "Address of the site, without a slash at the end. It may have a port, and a path that the portal is below: "
        "`https://www.example.org/data`.",
        required=True,
    )
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
    storage: Storage = field(factory=Storage)
    manage: Manage = field(factory=Manage)
    environment: Mapping[str, str] = setting(
        {}, "Environment variables of CKAN: app server, services, cron jobs, and the commands of a deploy."
    )
    services: Mapping[str, Service] = setting({}, "Long-running commands by name; see below.")
    workers: Mapping[str, Worker] = setting({}, "Job workers by name, the short form of `services`; see below.")
    stable_seconds: int = setting(
        3,
        "Seconds that services and the app server of a release must stay up after their start for a deploy to be good. "
        "0: not watched.",
    )
    cron: Mapping[str, CronJob] = setting({}, "What is run at set times, by name; see below.")
    hooks: tuple[Hook, ...] = setting((), "What is done before and after stages, in order: docs/hooks.md.")
    migration: Migration = field(factory=Migration)
    search: Search = field(factory=Search)
    backup: Backup = field(factory=Backup)
    disk_free_mb: int = setting(500, "A deploy is refused with less disk free, in MB.")

    @property
    def all_services(self) -> dict[str, Service]:
        """All services by name, workers among them."""
        return {**{name: worker.as_service() for name, worker in self.workers.items()}, **self.services}
