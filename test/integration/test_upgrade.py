"""
An upgrade of CKAN as an ordinary release: 2.11 with 200 datasets to 2.12, rehearsed, and back with the dump of before.
"""

from __future__ import annotations

from datetime import datetime

import pytest

from parts.base import CKAN
from parts.process import sandbox
from parts.real import RealPortal
from parts.visitors import Visitors
from stub import repos

pytestmark = [pytest.mark.integration, pytest.mark.long]

OLD = "2.11.6"
DATASETS = 200


@pytest.fixture(scope="module")
def site():
    with RealPortal(sandbox("ckan-i-"), ["web1"], say=print, version=OLD) as portal:
        portal.set_up()
        portal.add_sample_data()
        for number in range(DATASETS - 3):
            dataset = {"name": f"dataset-{number}", "title": f"Dataset {number}", "owner_org": "city-hall"}
            portal.api("package_create", dataset)
        portal.postgres.sql("postgres", "alter role ckan_default createdb")
        yield portal


def assert_all_there(site: RealPortal) -> None:
    """Each dataset is in the database, and found by search."""
    names = site.ask("package_list")
    found = {row["name"] for row in site.ask(f"package_search?q=*:*&rows={2 * DATASETS}")["results"]}
    assert len(names) == DATASETS and found == set(names)
    assert site.ask("package_search?q=title:stops")["results"][0]["name"] == "bus-stops"


def manifest(site: RealPortal) -> dict:
    return site.call("web1", "ckan_release.show")[1]


def upgraded(site: RealPortal) -> dict:
    """The pillar of the upgrade."""
    return {
        **site.settings,
        "base": {"version": CKAN, "packages": ["uwsgi"]},
        "migration": {"rehearse": True},
        # Only CKAN 2.11 knows the one; the other has had another name for long.
        "config": {
            **site.settings["config"],
            "ckan.csrf_protection.ignore_extensions": "true",
            "ckan.route_after_login": "dashboard.datasets",
        },
    }


def assert_closed_and_nothing_worse(visitors: Visitors, what: str) -> None:
    """Visitors got what they asked for or the maintenance page, which came once."""
    assert visitors.failed and {told.split()[1] for told in visitors.failed} == {"503"}
    first, last = (datetime.strptime(visitors.failed[end].split()[0], "%H:%M:%S") for end in (0, -1))
    print(f"{what}: {visitors.told()}, maintenance {(last - first).seconds} s")


def test_an_upgrade_of_ckan_that_fails_gives_back_the_database_of_before(site: RealPortal):
    assert_all_there(site)
    before, heads = site.current("web1"), site.call("web1", "ckan_app.heads")[1]
    repos.commit_broken(site.mycity, "not with this CKAN", "switch")
    site.write_pillar(upgraded(site))
    with Visitors(site.front_port, path="/dataset/dataset-7", threads=2) as visitors:
        done = site.deploy()
    assert done["code"] == 1 and "web1 failed at verify" in done["summary"], done["text"][-3000:]
    assert "the database is as it was before the migration (ckan_default_old_" in done["summary"]
    assert_closed_and_nothing_worse(visitors, "failed upgrade")
    assert site.current("web1") == before and site.call("web1", "ckan_app.heads")[1] == heads
    assert site.call("web1", "ckan_maintenance.status")[1] == {"on": False}
    assert_all_there(site)
    repos.commit_change(site.mycity, "Welcome to My City")


def test_an_upgrade_of_ckan_is_a_release_that_is_rehearsed_and_closes_the_portal_while_it_migrates(site: RealPortal):
    assert manifest(site)["base"]["ckan"] == OLD
    before = site.call("web1", "ckan_app.heads")[1]["core"]
    planned = site.deploy(dry_run=True)["text"]
    assert f"migrations: those of CKAN between {OLD} and {CKAN}" in planned
    assert "visitors get the maintenance page while the database is migrated" in planned
    with Visitors(site.front_port, path="/dataset/dataset-7", threads=2) as visitors:
        done = site.deploy()
    assert done["code"] == 0, done["text"][-3000:]
    assert_closed_and_nothing_worse(visitors, "upgrade")
    assert f"neither CKAN {CKAN} nor a plugin declares: ckan.csrf_protection.ignore_extensions" in done["text"]
    assert "ckan.route_after_login is called ckan.auth.route_after_login now" in done["text"]
    told = manifest(site)
    assert told["base"]["ckan"] == CKAN and told["check"]["ckan_version"] == CKAN
    assert told["check"]["pending"]["core"] == before[0]
    migration = told["migration"]
    print({name: migration[name] for name in ("rehearsal", "backup", "seconds")})
    assert migration["rehearsal"]["seconds"] > 0 and migration["backup"]["size_mb"] > 0
    assert migration["before"]["core"]["at"] == before
    assert site.call("web1", "ckan_app.heads")[1]["core"] == migration["after"]["core"]["at"] != before
    left = "select count(*) from pg_database where datname like '%rehearsal%'"
    assert site.postgres.sql("postgres", left) == "0"
    assert "rebuilt, since ckan" in done["text"], done["text"][-3000:]
    assert_all_there(site)


def test_and_it_goes_back_with_the_dump_of_before(site: RealPortal):
    newer = site.current("web1")
    site.api("package_create", {"name": "after", "title": "After the upgrade", "owner_org": "city-hall"})
    done = site.deploy("rollback")
    assert done["code"] == 1 and "core is at" in done["summary"] and "restore" in done["summary"], done["summary"]
    assert site.current("web1") == newer
    with Visitors(site.front_port, path="/dataset/dataset-7", threads=2) as visitors:
        done = site.deploy("rollback", restore=newer)
    assert done["code"] == 0 and "visitors get the maintenance page meanwhile" in done["text"], done["text"][-3000:]
    assert_closed_and_nothing_worse(visitors, "rollback")
    assert manifest(site)["base"]["ckan"] == OLD
    assert_all_there(site)
    # What came since is not lost.
    sql = "select datname from pg_database where datname like 'ckan_default_old_%' order by datname desc limit 1"
    kept = site.postgres.sql("postgres", sql)
    assert site.postgres.sql(kept, "select count(*) from package where name = 'after'") == "1"
