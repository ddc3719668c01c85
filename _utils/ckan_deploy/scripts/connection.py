"""
The connection to the database of a CKAN, as its ini names it, and what is said where there is none. First of a script.
"""

import configparser
import importlib.util
import os

# Any number will do, as long as all hosts of all environments use the same; it is per database anyway.
ADVISORY_LOCK = 0x434B414E
# What PostgreSQL and its client say, and what that means to who runs the portal.
FULL = "PostgreSQL at {host} has no connection left; end some, or raise its max_connections"
TROUBLES = (
    ("password authentication failed", "PostgreSQL at {host} refuses user {user}; correct database:password"),
    ("no password supplied", "PostgreSQL at {host} asks for a password; set database:password"),
    ("too many clients", FULL),
    ("too many connections", FULL),
    ("remaining connection slots", FULL),
    ("does not exist", "PostgreSQL at {host} has no database {name}; make it, or correct database:name"),
    ("no pg_hba.conf entry", "PostgreSQL at {host} does not let {user} in from this host; see its pg_hba.conf"),
    (
        "not currently accepting connections",
        "the database {name} at {host} takes no connections, as a restore that is interrupted may leave it; type in "
        'psql: alter database "{name}" allow_connections true',
    ),
    ("starting up", "PostgreSQL at {host} is starting; repeat in a moment"),
    ("", "PostgreSQL at {host} does not answer; start it, or correct database:host and database:port"),
)


class Sentence(Exception):
    """What is wrong, said to people: shown as it is."""


def options_of(ini: str) -> dict:
    """The options of CKAN as the ini has them."""
    parser = configparser.ConfigParser({"here": os.path.dirname(os.path.abspath(ini))})
    parser.optionxform = str
    with open(ini, encoding="utf-8") as handle:
        parser.read_file(handle)
    return dict(parser["app:main"])


def plugins_of(options: dict) -> list:
    return options.get("ckan.plugins", "").split()


def connect(address: str):
    """A connection to a database. Raises Sentence."""
    import sqlalchemy

    url = sqlalchemy.engine.make_url(address)
    try:
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool, connect_args={"connect_timeout": 10})
        return engine.connect()
    except sqlalchemy.exc.OperationalError as exc:
        said = str(exc.orig)
        meaning = next(meaning for words, meaning in TROUBLES if words in said)
        where = {"host": f"{url.host}:{url.port or 5432}", "user": url.username, "name": url.database}
        raise Sentence(meaning.format(**where)) from None


class database_lock:
    """Hold PostgreSQL's advisory lock, so that two hosts never migrate one database at once."""

    def __init__(self, options: dict):
        self.options, self.connection = options, None

    def __enter__(self):
        if importlib.util.find_spec("sqlalchemy"):
            from sqlalchemy import text

            self.connection = connect(self.options["sqlalchemy.url"])
            if self.connection.execute(text("show transaction_read_only")).scalar() == "on":
                self.connection.close()
                raise Sentence(
                    "the database takes no changes (transaction_read_only is on): database:host names a replica, or "
                    "it was set so; point it to the primary"
                )
            self.connection.execute(text(f"select pg_advisory_lock({ADVISORY_LOCK})"))
        return self

    def __exit__(self, *exc):
        if self.connection is not None:
            self.connection.close()  # ends the session, and with it the lock


def one_line(exc: BaseException) -> str:
    # Whole: who reads it takes the secrets out first, and shortens it then.
    text = " ".join(str(exc).split())
    if isinstance(exc, Sentence):
        return text
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__
