"""What a deploy found amiss stands wherever people look, on the real parts: a datastore without its permissions."""

from __future__ import annotations

import html
import re
import subprocess
import urllib.error
from collections.abc import Iterator

import pytest

from parts.portal import next_second
from parts.process import sandbox
from parts.real import RealPortal

pytestmark = [pytest.mark.integration, pytest.mark.long]

TABLES = "ckan:datastore: ckan_default may not make tables in the database datastore_default, as each upload does; "


class Site(RealPortal):
    """A portal with a datastore that somebody else owns, and an administrator who makes databases and no more."""

    def start(self, say=None):
        super().start(say)
        self.postgres.sql("postgres", "create role datastore_default login password 'read-only-word'")
        self.postgres.sql("postgres", "create role weak login createdb password 'of-the-weak'")
        self.postgres.create_database("datastore_default", "somebody", "of no interest")
        self.settings |= {
            "database": {**self.settings["database"], "admin_user": "weak", "admin_password": "of-the-weak"},
            "datastore": {"name": "datastore_default", "read_password": "read-only-word"},
            "plugins": ["datastore", "mycity"],
        }
        self.write_pillar(self.settings)
        return self

    def told(self, function: str) -> str:
        done = self.fleet.run("salt-run", function, "production")
        assert done.returncode == 0, done.stdout + done.stderr
        return " ".join(done.stdout.split())

    def report(self) -> str:
        (page,) = self.sandbox.rglob("ckan/production/reports/*.html")
        return " ".join(html.unescape(page.read_text()).split())

    def upload(self) -> None:
        table = {"resource": {"package_id": "bus-stops"}, "fields": [{"id": "stop"}], "records": [{"stop": "Harbour"}]}
        self.api("datastore_create", table)


@pytest.fixture
def site() -> Iterator[Site]:
    with Site(sandbox("ckan-i-"), ["web1"], say=print) as portal:
        yield portal.start()


def lines(site: Site, cause: str) -> list[str]:
    """What is said of the datastore, with what to type, once the release of now is live."""
    path = site.root("web1") / "usr/lib/ckan/releases" / site.current("web1")
    return [
        f'{TABLES}type in psql there, as a superuser: grant usage, create on schema public to "ckan_default"',
        f"the datastore lacks the view _table_metadata, the function populate_full_text_trigger{cause}; have a "
        f"superuser of PostgreSQL run the output of: {path}/bin/ckan -c {path}/production.ini datastore "
        "set-permissions; or name one in ckan:database:admin_user",
    ]


def once(where: dict[str, str], said: list[str]) -> None:
    found = {(place, each): " ".join(text.split()).count(each) for place, text in where.items() for each in said}
    assert set(found.values()) == {1}, (found, where)


def typed(site: Site, said: list[str]) -> None:
    """Type what the warnings say, as a superuser."""
    site.postgres.sql("datastore_default", re.search(r"as a superuser: (.*)", said[0])[1])
    command = re.search(r"the output of: (.*? set-permissions)", said[1])[1].split()
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    site.postgres.sql("datastore_default", re.sub(r"^\\connect .*$", "", done.stdout, flags=re.M))


def test_h13_what_the_datastore_lacks_stands_once_wherever_people_look_with_what_to_type(site: Site) -> None:
    done = site.highstate()
    assert done["code"] == 0, done["text"][-3000:]
    (live,) = [state for name, state in done["hosts"]["web1"].items() if "ckan_release_|" in name]
    said = lines(site, ', which weak could not give it (must be member of role "ckan_default")')
    shown = {name: site.told(name) for name in ("ckan.history", "ckan.status")}
    once({"highstate": live["comment"], **shown}, said)
    site.add_sample_data()
    with pytest.raises(urllib.error.HTTPError):
        site.upload()
    site.write_pillar({**site.settings, "database": {**site.settings["database"], "admin_user": ""}})
    next_second()
    done = site.deploy(force=True)
    assert done["code"] == 0, done["text"][-3000:]
    said = lines(site, "")
    shown = {"progress": done["progress"], "last lines": done["summary"], "report": site.report()}
    once({**shown, **{name: site.told(name) for name in ("ckan.history", "ckan.status")}}, said[1:])
    once({**shown, "status": site.told("ckan.status")}, said[:1])
    # And it is the right thing to type.
    typed(site, said)
    site.upload()
    next_second()
    done = site.deploy(force=True)
    assert done["code"] == 0 and "warning" not in done["summary"], done["text"][-3000:]
    assert "datastore" not in site.told("ckan.status")
