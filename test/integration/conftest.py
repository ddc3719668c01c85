"""What is behind a CKAN, without a portal and without Salt."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckan_deploy.database import backends
from fakes import fake_site
from functional.conftest import Host, HostLoaders, session_dir, session_loaders  # noqa: F401
from parts.base import build_base
from parts.lone import LonePortal
from parts.postgres import Postgres
from parts.process import kill_all, sandbox
from parts.redis import Redis
from parts.solr import Solr, schema_of

PASSWORD = "p@ss:for/ckan%#"
WRONG = "marked-wrong-password"


class Behind:
    """The services, and the settings by which a host finds them."""

    def __init__(self, place: Path) -> None:
        self.place, self.base = place, build_base()
        self.postgres = Postgres(place).start()
        for name, user in (("ckan_default", "ckan_default"), ("datastore_default", "ckan_default")):
            self.postgres.create_database(name, user, PASSWORD)
        self.postgres.sql("postgres", f"create role datastore_default login password '{PASSWORD}'")
        self.postgres.sql("postgres", "create database ascii template template0 encoding 'SQL_ASCII' locale 'C'")
        self.redis = Redis(place).start()
        self.solr = Solr(place, schema_of(self.base)).start()
        where = {"host": "127.0.0.1", "port": self.postgres.port, "password": PASSWORD}
        self.settings: dict[str, Any] = {
            "paths": {"base": str(self.base)},
            "database": where,
            "datastore": {"name": "datastore_default", "user": "ckan_default", "read_password": PASSWORD, **where},
            "redis_url": self.redis.url,
            "solr_url": self.solr.url,
        }

    def ask(self, **changes: Any) -> backends.Backends:
        settings = {**self.settings, **changes}
        told = backends.ask(fake_site(self.place / "host", **settings))
        assert WRONG not in repr(told) and PASSWORD not in repr(told)
        return told


@pytest.fixture(scope="module")
def lone(
    request: pytest.FixtureRequest, behind: Behind, session_loaders: HostLoaders  # noqa: F811
) -> Iterator[LonePortal]:  # fmt: skip
    """
    A host with a database of its own and nothing in it; `be_at` makes its first release. The fixture's parameter, where
    it has one, is the web server.
    """
    place, server = sandbox("ckan-o-"), getattr(request, "param", "nginx")
    name = request.module.__name__.rpartition(".")[2].removeprefix("test_") + f"_{server}"
    (place / "host").mkdir()
    behind.postgres.create_database(name, name, PASSWORD)
    settings = {
        **behind.settings,
        "site_id": name,
        "database": {**behind.settings["database"], "name": name, "user": name},
        "datastore": {},
    }
    portal = LonePortal(place, Host(place / "host", behind.base, session_loaders), settings, server)
    try:
        yield portal.start()
    finally:
        portal.stop()


@pytest.fixture(scope="session")
def behind() -> Iterator[Behind]:
    place = sandbox("ckan-p-")
    (place / "host").mkdir()
    yield Behind(place)
    kill_all(place)
    shutil.rmtree(place, ignore_errors=True)
