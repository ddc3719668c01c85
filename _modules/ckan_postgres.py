"""
PostgreSQL's own programs, on the database of the settings. They get the password by a file that only root reads.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_postgres"

SECONDS = 6 * 3600
PLACE = ("host", "port", "name")


def __virtual__() -> str:
    return __virtualname__


def run(command: list[str], settings: dict, database: str = "") -> str:
    """
    Run ``psql``, ``pg_dump`` or ``pg_restore`` on the database of the settings.

    command
        The program and its arguments; never a secret.
    settings
        The settings: ``database`` says where, and as whom.
    database
        Another database of the same server.

    Returns what it prints. Raises ``CommandExecutionError`` with the line that names the error.

    CLI Example: not for the command line, since the settings hold secrets.
    """
    about = settings["database"]
    with _password_file(about["password"]) as file:
        done = __salt__["cmd.run_all"](
            command, python_shell=False, ignore_retcode=True, output_loglevel="quiet", timeout=SECONDS,
            env={
                "PGHOST": about["host"], "PGPORT": str(about["port"]), "PGUSER": about["user"],
                "PGDATABASE": database or about["name"], "PGPASSFILE": file, "PGCONNECT_TIMEOUT": "10",
                "LC_ALL": "C.UTF-8",
            },
        )  # fmt: skip
    if done["retcode"] != 0:
        lines = [line for line in done["stderr"].splitlines() if line.strip()] or ["no message"]
        line = next((line for line in lines if "error:" in line or "ERROR:" in line), lines[-1])
        raise CommandExecutionError(f"{__salt__['ckan_mask.text'](line, settings)}; nothing was changed.")
    return done["stdout"]


def admin(sql: str, settings: dict, where: dict | None = None) -> str:
    """
    Run SQL as who may make databases: ``database:admin_user``, or the site's own user.

    sql
        Statements, also psql's own; several are one transaction unless psql's own are among them.
    settings
        The settings.
    where
        ``{"host", "port", "name"}`` where that is not the server of CKAN's own database, or not its database
        ``postgres``, which every server has.

    Returns the rows, columns parted by ``|``. Raises ``CommandExecutionError`` with the line that names the error.

    CLI Example: not for the command line, since the settings hold secrets.
    """
    about = {**settings["database"], **{name: (where or {})[name] for name in where or {} if name in PLACE}}
    login = {"user": about["admin_user"], "password": about["admin_password"]} if about["admin_user"] else {}
    command = ["psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"]
    name = about["name"] if where else "postgres"
    told = {**settings, "database": {**about, **login}}
    if "\n" not in sql:
        return run([*command, "-c", sql], told, name)
    # Salt reads backslashes in what it gives to a program, and psql's own commands begin with one.
    with tempfile.NamedTemporaryFile("w", prefix="ckan-sql-", suffix=".sql", encoding="utf-8") as handle:
        handle.write(sql)
        handle.flush()
        return run([*command, "-f", handle.name], told, name)


@contextlib.contextmanager
def _password_file(password: str) -> Iterator[str]:
    """A file as libpq wants it: https://www.postgresql.org/docs/current/libpq-pgpass.html"""
    escaped = password.replace("\\", "\\\\").replace(":", "\\:")
    with tempfile.NamedTemporaryFile("w", prefix="ckan-pgpass-", encoding="utf-8") as handle:
        handle.write(f"*:*:*:*:{escaped}\n")
        handle.flush()
        yield handle.name
