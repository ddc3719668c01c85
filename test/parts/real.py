"""A portal with the real CKAN and its real services, and an extension whose text stands on every page."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from parts.accounts import make_admins
from parts.apache import Apache
from parts.base import CKAN, build_base
from parts.portal import Portal
from parts.postgres import Postgres
from parts.redis import Redis
from parts.solr import Solr, schema_of
from stub import repos

PASSWORD = "p@ss:for/ckan%#"


class RealPortal(Portal):
    """A Portal on PostgreSQL, Redis, Solr and CKAN, with `ckanext-mycity` in its pillar.

    sandbox
        Directory of all the parts.
    hosts
        Ids of the web hosts.
    say
        Called with progress lines.
    server
        The web server of the hosts, `nginx` or `apache`.
    version
        CKAN version of the base.
    """

    # Of the cluster: see Postgres.
    locale = "C.UTF-8"
    # Beside those of CKAN's own schema.
    solr_fields = ""

    def __init__(
        self,
        sandbox: Path,
        hosts: Sequence[str] = ("web1", "web2"),
        say: Callable[[str], None] = lambda _: None,
        server: str = "nginx",
        version: str = CKAN,
    ) -> None:
        self.say, self.server = say, server
        base = build_base(version=version, say=say)
        super().__init__(sandbox, base, hosts, secrets={"production": {"database:password": PASSWORD}})
        self.token = ""
        # What the pillar of all hosts says under `ckan`, once they are started.
        self.settings: dict[str, Any] = {}
        (self.sandbox / "git").mkdir(exist_ok=True)
        self.mycity = repos.make_repo(self.sandbox / "git", "mycity", "Welcome to My City", backend="uv_build")

    def start(self, say: Callable[[str], None] | None = None) -> RealPortal:
        """Start the data services, the web hosts and Salt, and write the pillar."""
        say = say or self.say
        say("starting PostgreSQL, Redis and Solr")
        self.postgres = postgres = Postgres(self.sandbox, locale=self.locale).start()
        postgres.create_database("ckan_default", "ckan_default", PASSWORD)
        redis = Redis(self.sandbox).start()
        self.solr = Solr(self.sandbox, schema_of(self.base), fields=self.solr_fields).start(say=say)
        self.settings = {
            "database": {"host": "127.0.0.1", "port": postgres.port},
            "redis_url": redis.url,
            "solr_url": self.solr.url,
            "extensions": {"ckanext-mycity": {"url": str(self.mycity), "ref": "main"}},
            "plugins": ["mycity"],
            "config": {"ckan.site_title": "Portal of My City"},
        }
        if self.server == "apache":
            # One host is all that is asked for.
            apache = Apache(self.sandbox, self.root(self.hosts[0]) / "etc/apache2/sites-enabled").start()
            self.settings["web"] = {"server": "apache", "apache_conf": str(apache.conf), "processes": 2}
        self.write_pillar(self.settings)
        super().start(say)
        return self

    def add_administrator(self) -> str:
        """Make the administrator, on the first host; returns an API token of theirs."""
        host = self.hosts[0]
        release = self.root(host) / "usr/lib/ckan/current"
        return make_admins(release / f"{self.env}.ini", "demo-password")

    def add_sample_data(self) -> list[str]:
        """Make an organisation and three datasets over the API; returns the titles of the datasets."""
        self.token = self.add_administrator()
        self.api("organization_create", {"name": "city-hall", "title": "City Hall"})
        titles = ["Bus stops", "Street trees", "Air quality"]
        for title in titles:
            name = title.lower().replace(" ", "-")
            self.api("package_create", {"name": name, "title": title, "owner_org": "city-hall", "notes": "A sample."})
        return titles

    def api(self, action: str, data: dict[str, Any]) -> Any:
        """Call an action of CKAN's API through the front door, as the administrator; returns its result."""
        request = urllib.request.Request(
            f"{self.url}/api/3/action/{action}",
            data=json.dumps(data).encode(),
            headers={"Content-Type": "application/json", "Authorization": self.token, "Host": "127.0.0.1"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["result"]

    def ask(self, query: str) -> Any:
        """Ask CKAN's API through the front door, as anybody, such as `package_list`; returns its result."""
        with urllib.request.urlopen(f"{self.url}/api/3/action/{query}", timeout=30) as response:
            return json.load(response)["result"]
