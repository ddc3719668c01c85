"""A database that is a JSON file: name of the plugin, or `core`, -> number of applied migrations."""

from __future__ import annotations

import json
import os

import ckan
from ckan import plugins
from ckan.common import config


def _path() -> str:
    path = config.get("stub.database")
    if not path and config.get("ckan.storage_path"):
        path = os.path.join(config["ckan.storage_path"], "stub-database.json")
    if not path:
        raise RuntimeError("stub.database is not configured and it must have a value.")
    return path


def _applied() -> dict[str, int]:
    if not os.path.exists(_path()):
        return {}
    with open(_path(), encoding="utf-8") as stream:
        return json.load(stream)


def _available() -> dict[str, int]:
    core = int(config.get("stub.migrations", ckan.STUB_MIGRATIONS))
    return {"core": core} | {
        plugin.name: plugin.stub_migrations for plugin in plugins.loaded() if getattr(plugin, "stub_migrations", 0)
    }


def _get_pending_plugins(core: bool = False) -> dict[str, int]:
    """Unapplied migrations of each plugin; CKAN's own are in it with `core` only."""
    applied = _applied()
    pending = {name: count - applied.get(name, 0) for name, count in _available().items()}
    return {name: count for name, count in pending.items() if count > 0 and (core or name != "core")}


def current_revision(plugin: str) -> str:
    """`base`, `2` or `3 (head)`, as alembic would say it."""
    current = _applied().get(plugin or "core", 0)
    if current == _available().get(plugin or "core", 0):
        return f"{current} (head)"
    return str(current) if current else "base"


def upgrade() -> None:
    """Apply all migrations of CKAN and of the plugins."""
    if config.get("stub.migrate_error"):
        raise RuntimeError(config["stub.migrate_error"])
    applied = _applied()
    for name, count in _available().items():
        applied[name] = max(count, applied.get(name, 0))
    temporary = f"{_path()}.{os.getpid()}"
    os.makedirs(os.path.dirname(_path()), exist_ok=True)
    with open(temporary, "w", encoding="utf-8") as stream:
        json.dump(applied, stream)
    os.replace(temporary, _path())
