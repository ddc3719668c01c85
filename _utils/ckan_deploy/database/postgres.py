"""
PostgreSQL's own programs, on the database of the settings. They get the password by a file that only root reads.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence

import attrs

from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.site import Site
from ckan_deploy.settings import mask
from ckan_deploy.settings.model import Database, Datastore
from ckan_deploy.system import processes

SECONDS = 6 * 3600


def run(site: Site, command: Sequence[str], about: Database | None = None) -> str:
    """
    Run ``psql``, ``pg_dump`` or ``pg_restore`` on a database.

    site
        The site.
    command
        The program and its arguments; never a secret.
    about
        The database, and as whom; by default that of the settings.

    Returns what it prints. Raises ``FormulaError`` with the line that names the error.
    """
    return _run(site, command, about or site.settings.database, "")


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
    about = attrs.evolve(site.settings.database, name="postgres")
    if where:
        about = attrs.evolve(about, host=where.host, port=where.port, name=where.name)
    if about.admin_user:
        about = attrs.evolve(about, user=about.admin_user, password=about.admin_password)
    command = ["psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"]
    if "\n" not in sql:
        return run(site, [*command, "-c", sql], about)
    # psql takes its own commands from a file only.
    return _run(site, [*command, "-f", "-"], about, sql)


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


def _run(site: Site, command: Sequence[str], about: Database, stdin: str) -> str:
    with _password_file(about.password) as file:
        done = processes.run(
            command, timeout=SECONDS, stdin=stdin,
            env={
                "PGHOST": about.host, "PGPORT": str(about.port), "PGUSER": about.user, "PGDATABASE": about.name,
                "PGPASSFILE": file, "PGCONNECT_TIMEOUT": "10",
            },
        )  # fmt: skip
    if done.retcode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        line = next((line for line in lines if "error:" in line or "ERROR:" in line), lines[-1])
        raise FormulaError(f"{mask.text(line, site.settings)}; nothing was changed.")
    return done.stdout


@contextlib.contextmanager
def _password_file(password: str) -> Iterator[str]:
    """A file as libpq wants it: https://www.postgresql.org/docs/current/libpq-pgpass.html"""
    escaped = password.replace("\\", "\\\\").replace(":", "\\:")
    with tempfile.NamedTemporaryFile("w", prefix="ckan-pgpass-", encoding="utf-8") as handle:
        handle.write(f"*:*:*:*:{escaped}\n")
        handle.flush()
        yield handle.name
