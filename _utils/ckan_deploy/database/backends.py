"""What CKAN needs behind it: database, datastore, Redis, Solr. Asked before a release is made, without a boot."""

from __future__ import annotations

import json
import os
import pwd
from typing import Any

from attrs import frozen

from ckan_deploy import scripts
from ckan_deploy.build import base, ini
from ckan_deploy.database import postgres
from ckan_deploy.database.script import Script
from ckan_deploy.errors import FormulaError, sentence
from ckan_deploy.releases.site import Site
from ckan_deploy.settings import mask

SCRIPT = Script(scripts.BACKENDS, "CKAN-BACKENDS ")
TIMEOUT = 30
# Where an option comes from, unless ``ckan:config`` has it.
SETTINGS = {
    "sqlalchemy.url": "ckan:database",
    "ckan.datastore.write_url": "ckan:datastore",
    "ckan.datastore.read_url": "ckan:datastore",
    "ckan.redis.url": "ckan:redis_url",
    "solr_url": "ckan:solr_url",
    "administrator": "ckan:database:admin_user",
}


@frozen
class Backends:
    """
    What they said: ``problems`` keep a release from working, ``remarks`` may do so later, both sentences; ``versions``
    by name.
    """

    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    versions: dict[str, str] = {}


def ask(site: Site, path: str = "") -> Backends:
    """
    Ask all of them, side by side, with the libraries of CKAN and as its user.

    site
        The site.
    path
        The directory of the virtualenv whose libraries are used; by default that of the current release, or the base.

    Returns what they said, with the setting that each sentence is about, and no secret. Nothing is asked where there is
    no CKAN yet whose libraries could be used, or no user: the stage ``check`` asks then.
    """
    pythons = [os.path.join(place, "bin", "python") for place in ([path] if path else _places(site))]
    python = next((path for path in pythons if os.access(path, os.X_OK)), "")
    if not python or not _user_is_there(site):
        return Backends()
    options = {name: str(value) for name, value in ini.options(site).items() if name in SETTINGS or "solr" in name}
    options.update(_administrator(site))
    call = f"report(json.loads({json.dumps(options)!r}))"
    try:
        told, last = SCRIPT.run(site, python, ["-I", "-B", "-"], "/", TIMEOUT, call)
    except FormulaError as exc:
        # What else is in the way is to be said, too.
        return Backends((f"database, Redis and Solr could not be asked: {sentence(exc)}",))
    try:
        told = told or {}
        return Backends(_sentences(site, told["problems"]), _sentences(site, told["remarks"]), dict(told["versions"]))
    except (ValueError, TypeError, KeyError):
        return Backends((f"{python} could not ask database, Redis and Solr: {last}",))


def _administrator(site: Site) -> dict[str, str]:
    """
    Who gives the datastore its permissions, makes the database of a restore and the copy for a rehearsal: asked where
    one is named, or where that will be needed for sure.
    """
    settings = site.settings
    restores = settings.migration.when == "maintenance" and settings.backup.when != "never"
    if not (settings.database.admin_user or restores or settings.migration.rehearse):
        return {}
    needs = "a restore after a migration that failed" if restores else "a rehearsal of migrations"
    told = {"administrator": ini.database_url(postgres.administrator(site))}
    return {**told, "needs": needs} if restores or settings.migration.rehearse else told


def _places(site: Site) -> list[str]:
    """Virtualenvs with CKAN's libraries, the one that serves first."""
    current = site.releases.current()
    return [*([site.releases.directory(current)] if current else []), base.path(site)]


def _user_is_there(site: Site) -> bool:
    try:
        return bool(pwd.getpwnam(site.settings.user))
    except KeyError:
        return os.geteuid() != 0


def _sentences(site: Site, told: list[Any]) -> tuple[str, ...]:
    return tuple(f"{_setting(site, str(option))}: {mask.text(str(said), site.settings)}" for option, said in told)


def _setting(site: Site, option: str) -> str:
    if option in site.settings.secrets.config:
        return f"ckan:secrets:config:{option}"
    return f"ckan:config:{option}" if option in site.settings.config else SETTINGS[option]
