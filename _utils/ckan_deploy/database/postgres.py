"""
PostgreSQL's own programs, on the database of the settings. They get the password by a file without a name, so that
nothing of it is left when they or we are killed.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence

import attrs

from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.site import Site
from ckan_deploy.settings import mask
from ckan_deploy.settings.data import Database, Datastore
from ckan_deploy.system import processes

SECONDS = 6 * 3600
PSQL = ("psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1")
# A newer pg_restore sets what an older server does not know; it restores all the same.
_HARMLESS = 'unrecognized configuration parameter "transaction_timeout"'


def run(site: Site, command: Sequence[str], about: Database | None = None, stdin: str = "") -> str:
    """
    Run ``psql``, ``pg_dump`` or ``pg_restore`` on a database.

    site
        The site.
    command
        The program and its arguments; never a secret.
    about
        The database, and as whom; by default that of the settings.
    stdin
        What it reads.

    Returns what it prints. Raises ``FormulaError`` with the line that names the error.
    """
    done = _done(site, command, about, stdin)
    if done.retcode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        line = next((line for line in lines if "error:" in line or "ERROR:" in line), lines[-1])
        raise FormulaError(mask.text(line, site.settings))
    return done.stdout


def complaints(site: Site, command: Sequence[str], about: Database | None = None, stdin: str = "") -> list[str]:
    """
    Run a program that goes on after what fails.

    site, command, about, stdin
        As for ``run``.

    Returns the lines that say what failed, each once; a program that fails without a word has one of ours.
    """
    done = _done(site, command, about, stdin)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    found = [line for line in lines if any(word in line for word in ("error:", "ERROR:", "WARNING:"))]
    if done.retcode != 0 and not found:
        found = lines[-1:] or [f"{command[0]} ended with {done.retcode}"]
    return [mask.text(line, site.settings) for line in dict.fromkeys(found) if _HARMLESS not in line]


def admin(site: Site, sql: str, where: Datastore | None = None) -> str:
    """
    Run SQL as who may make databases: ``database:admin_user``, or the site's own user.

    site
        The site.
    sql
        Statements, also psql's own; several are one transaction unless psql's own are among them.
    where
        The datastore, where that is meant, and not the database ``postgres`` of the server of CKAN's own, which every
        server has.

    Returns the rows, columns parted by ``|``. Raises ``FormulaError`` with the line that names the error.
    """
    about = administrator(site)
    if where:
        about = attrs.evolve(about, host=where.host, port=where.port, name=where.name)
    if "\n" not in sql:
        return run(site, [*PSQL, "-c", sql], about)
    # psql takes its own commands from a file only.
    return run(site, [*PSQL, "-f", "-"], about, sql)


def administrator(site: Site, database: str = "postgres") -> Database:
    """
    Return a database of CKAN's server, with who may make databases as its user.

    site
        The site.
    database
        Its name.
    """
    about = attrs.evolve(site.settings.database, name=database)
    return attrs.evolve(about, user=about.admin_user, password=about.admin_password) if about.admin_user else about


def identifier(name: str) -> str:
    """
    Return a name as it stands in a statement.

    name
        Such as that of a database.
    """
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """
    Return a text as it stands in a statement.

    text
        The text.
    """
    return "'" + text.replace("'", "''") + "'"


def _done(site: Site, command: Sequence[str], about: Database | None, stdin: str) -> processes.Done:
    about = about or site.settings.database
    with _password_file(about.password) as file:
        return processes.run(
            command, timeout=SECONDS, stdin=stdin, pass_fds=(file,),
            env={
                "PGHOST": about.host, "PGPORT": str(about.port), "PGUSER": about.user, "PGDATABASE": about.name,
                "PGPASSFILE": f"/dev/fd/{file}", "PGCONNECT_TIMEOUT": "10",
            },
        )  # fmt: skip


@contextlib.contextmanager
def _password_file(password: str) -> Iterator[int]:
    """A file as libpq wants it (https://www.postgresql.org/docs/current/libpq-pgpass.html), open and without a name."""
    escaped = password.replace("\\", "\\\\").replace(":", "\\:")
    # By memfd_create it would be the same, but Salt's own Python is built for systems that do not have it.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryFile("w", encoding="utf-8", dir=memory) as handle:
        handle.write(f"*:*:*:*:{escaped}\n")
        handle.flush()
        yield handle.fileno()
