"""The settings of what holds the data: databases, the search index, dumps, and how a migration changes them."""

from __future__ import annotations

from attrs import frozen

from ckan_deploy.settings.rules import setting

HOST = r"[0-9A-Za-z_.:-]*"


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
