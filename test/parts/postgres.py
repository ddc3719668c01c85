"""A PostgreSQL cluster of our own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
from pathlib import Path

from parts.ports import free_port
from parts.process import PartError, Service

# What there is of a database besides its rows, by no word of the formula.
_SEEN = """
with d as (select * from pg_database where datname = current_database())
select concat_ws(' ', 'database', pg_encoding_to_char(encoding), datcollate, datctype, datlocprovider, daticulocale,
    datconnlimit, datistemplate, datallowconn, datdba::regrole, spcname, shobj_description(d.oid, 'pg_database'),
    (select string_agg(one::text, ',' order by one::text) from unnest(datacl) one))
  from d join pg_tablespace t on t.oid = dattablespace
union all select concat_ws(' ', 'set', setrole, unnest(setconfig)) from pg_db_role_setting
  where setdatabase = (select oid from d)
union all select concat_ws(' ', 'class', c.oid::regclass, relkind, relowner::regrole,
    (select string_agg(one::text, ',' order by one::text) from unnest(relacl) one))
  from pg_class c where relnamespace = 'public'::regnamespace and relkind <> 'i'
union all select concat_ws(' ', 'column', attrelid::regclass, attname, attacl) from pg_attribute
  where attacl is not null and attrelid > 16384
union all select concat_ws(' ', 'schema', nspname, nspowner::regrole,
    (select string_agg(one::text, ',' order by one::text) from unnest(nspacl) one)) from pg_namespace
  where nspname !~ '^pg_'
union all select concat_ws(' ', 'default', defaclrole::regrole, defaclobjtype, defaclacl) from pg_default_acl
union all select concat_ws(' ', 'function', p.oid::regprocedure, proowner::regrole, proacl) from pg_proc p
  where pronamespace = 'public'::regnamespace and prolang > 14
union all select concat_ws(' ', 'extension', extname, extversion, extowner::regrole) from pg_extension order by 1
"""


def _programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not found:
        raise PartError("PostgreSQL is missing: install the package postgresql")
    return found[-1]


class Postgres(Service):
    """PostgreSQL on a free port of 127.0.0.1, without a unix socket, whose path could get too long.

    sandbox
        Directory of all the parts.
    name
        Name of the service in it.
    locale
        What the cluster is made with; ``C`` is what Debian makes where LANG is not set, without UTF-8.
    """

    # PostgreSQL refuses to run as root.
    user = "postgres"

    def __init__(self, sandbox: str | Path, name: str = "postgres", locale: str = "C.UTF-8") -> None:
        # SIGTERM would wait until all clients have left.
        super().__init__(sandbox, name, stop_signal=signal.SIGINT)
        self.locale = locale
        self.data = self.directory / "data"
        self.port = 0
        self._password_file = self.directory / "password"

    def start(self, timeout: float = 60) -> Postgres:
        """Make the cluster on the first start, and start it. Raises PartError."""
        if os.getuid() == 0:
            shutil.chown(self.directory, self.user)
        if not (self.data / "PG_VERSION").exists():
            self._initdb()
        self.port = self.port or free_port()
        options = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            # Nobody needs this data after a power cut.
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
        }
        command = [_programs() / "postgres", "-D", self.data]
        for key, value in options.items():
            command += ["-c", f"{key}={value}"]
        self.launch(command, self._ready, timeout=timeout, user=self.user)
        return self

    def _initdb(self) -> None:
        self._password_file.touch(mode=0o600)
        self._password_file.write_text(secrets.token_hex(16))
        if os.getuid() == 0:
            shutil.chown(self._password_file, self.user)
        shutil.rmtree(self.data, ignore_errors=True)
        command = [_programs() / "initdb", "-D", self.data, "--username=postgres"]
        command += [
            f"--locale={self.locale}",
            "--auth=scram-sha-256",
            f"--pwfile={self._password_file}",
            "--no-sync",
        ]
        identity = {"user": self.user, "group": self.user, "extra_groups": []} if os.getuid() == 0 else {}
        result = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, **identity)
        if result.returncode:
            hint = f" (can user {self.user} enter {self.directory}?)" if "denied" in result.stderr else ""
            raise PartError(f"initdb failed{hint}: {result.stderr.strip()}")

    def _ready(self) -> bool:
        with contextlib.suppress(PartError):
            return self.sql("postgres", "select 1") == "1"
        return False

    def _psql(self, database: str) -> list[str]:
        return ["psql", "-X", "-q", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-d", database]

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LC_ALL": "C.UTF-8",
            "PGPASSWORD": self._password_file.read_text(),
        }

    def sql(self, database: str, statement: str) -> str:
        """Run a statement as the superuser.

        database
            Name of the database.
        statement
            SQL text.

        Returns the rows, one a line, columns parted by `|`. Raises PartError with PostgreSQL's message.
        """
        command = [*self._psql(database), "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement]
        result = subprocess.run(command, env=self._environment(), capture_output=True, text=True, check=False)
        if result.returncode:
            raise PartError(f"PostgreSQL refused a statement: {result.stderr.strip()}")
        return result.stdout.strip()

    @staticmethod
    def package(name: str) -> str:
        """Return the Debian package of an extension for this version of PostgreSQL, such as of `postgis-3`."""
        return f"postgresql-{_programs().parent.name}-{name}"

    def seen(self, database: str) -> list[str]:
        """Return what a database is besides its rows, a line each: by it two of them are compared.

        database
            Name of the database.
        """
        return self.sql(database, _SEEN).splitlines()

    def hold(self, database: str, statement: str) -> subprocess.Popen:
        """Run a statement as the superuser in a transaction that stays open until the process is killed.

        database
            Name of the database.
        statement
            SQL text, such as one that takes a lock.
        """
        client = subprocess.Popen(
            self._psql(database), env=self._environment(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        client.stdin.write(f"begin;\n{statement};\n\\echo held\n")
        client.stdin.flush()
        assert client.stdout.readline().strip() == "held"
        return client

    def create_database(self, name: str, user: str, password: str) -> None:
        """Make a role, unless there is one, and a database that it owns. Raises PartError.

        name
            Name of the database.
        user
            Name of the role.
        password
            Its password.
        """
        quoted = password.replace("'", "''")
        if not self.sql("postgres", f"select 1 from pg_roles where rolname = '{user}'"):
            self.sql("postgres", f"create role \"{user}\" login password '{quoted}'")
        # As CKAN's manual says: from template0, so that a template changed by someone does not matter, and as UTF-8.
        self.sql("postgres", f'create database "{name}" owner "{user}" template template0 encoding \'UTF8\'')
