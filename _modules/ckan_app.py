"""
A CKAN inside a virtualenv: the check by one boot, and the database migrations.

Nothing here knows of releases or web servers: functions take the directory of a virtualenv and the settings.
"""

from __future__ import annotations

import json
import os

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_app"

PROBE = "salt://ckan/files/probe.py"
MARK = "CKAN-PROBE "
BOOT_TIMEOUT = 300


def __virtual__() -> str:
    return __virtualname__


def check(path: str, settings: dict) -> dict:
    """
    Boot CKAN once in a virtualenv and ask it everything: plugins load, configuration valid, migrations pending,
    ``package_search`` answers.

    path
        The directory of the virtualenv, with its ini.
    settings
        The settings.

    Returns ``{"ckan_version", "plugins", "pending": {"core"|plugin: revision}, "heads", "datasets", "warnings",
    "seconds"}``. Raises ``CommandExecutionError`` with one line that names the plugin and its exception.

    CLI Example: not for the command line; use ``ckan_release.check``.
    """
    return _probe("check", path, settings)


def migrate(path: str, settings: dict) -> dict:
    """
    Bring the database to the heads of the CKAN in a virtualenv, core and plugins. Waits for another host that does
    the same.

    path
        The directory of the virtualenv, with its ini.
    settings
        The settings.

    Returns ``{"heads_before": {...}, "heads": {...}, "seconds": ...}``. Raises ``CommandExecutionError`` that says
    what the database holds now.

    CLI Example: not for the command line; use ``ckan_release.migrate``.
    """
    return _probe("migrate", path, settings)


def _probe(mode: str, path: str, settings: dict) -> dict:
    script = __salt__["ckan_file.of_formula"](PROBE)
    ini = __salt__["ckan_ini.path"](path, settings)
    command = [os.path.join(path, "bin", "python"), "-", mode, ini]
    if os.geteuid() == 0:
        # As the user of the site: what a boot writes (web assets, caches) must be the site's own.
        command = ["runuser", "-u", settings["user"], "--", *command]
    done = __salt__["cmd.run_all"](
        command,
        python_shell=False,
        stdin=script,
        cwd=path,
        env={"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1", "CKAN_INI": ini, "PYTHONDONTWRITEBYTECODE": "1"},
        reset_system_locale=False,
        output_loglevel="quiet",
        ignore_retcode=True,
        timeout=BOOT_TIMEOUT,
    )
    line = next((row for row in reversed(done["stdout"].splitlines()) if row.startswith(MARK)), None)
    if line is None:
        rest = [row.strip() for row in (done["stderr"] or done["stdout"]).splitlines() if row.strip()]
        last = __salt__["ckan_mask.text"](rest[-1], settings) if rest else "no output"
        raise CommandExecutionError(f"CKAN in {path} ended without an answer: {last}")
    result = json.loads(line[len(MARK) :])
    for kind in ("errors", "warnings"):
        result[kind] = [__salt__["ckan_mask.text"](text, settings) for text in result[kind]]
    if not result.pop("ok"):
        message = "; ".join(result["errors"])
        if mode == "migrate":
            message += f"; the database is now at {_heads_text(result.get('heads'))}, the live release runs on it"
        raise CommandExecutionError(message)
    return result


def _heads_text(heads: dict | None) -> str:
    return ", ".join(f"{name} {revision}" for name, revision in sorted((heads or {}).items())) or "no revision"
