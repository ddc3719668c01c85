"""
Seventeen extensions of others and one of our own, with the services of harvest, from the first highstate on.

What an operator has to write for them stands in `parts.nine` and `parts.fifteen`.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from parts.fifteen import BROKEN, FifteenPortal
from parts.portal import next_second
from parts.process import sandbox

pytestmark = [pytest.mark.integration, pytest.mark.long]


class Site(FifteenPortal):
    """A FifteenPortal after its first highstate, which is ``first``."""

    first: dict[str, Any]

    def page(self, path: str) -> str:
        """What the system administrator gets."""
        request = urllib.request.Request(f"{self.url}{path}", headers={"Authorization": self.token})
        with urllib.request.urlopen(request, timeout=60) as response:
            assert response.status == 200
            return response.read().decode("utf-8")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site(sandbox("ckan-i-"), say=print) as portal:
        portal.start()
        portal.write_pillar(portal.full)
        begun = time.monotonic()
        portal.first = portal.highstate()
        print(f"the first highstate: {time.monotonic() - begun:.0f} s")
        yield portal


def test_a_first_highstate_with_a_right_pillar_is_live_at_once(site: Site) -> None:
    assert site.first["code"] == 0, site.first["text"][-5000:]
    (live,) = [state for name, state in site.first["hosts"]["web1"].items() if "ckan_release_|" in name]
    assert live["comment"] == f"release {site.current('web1')} is live"
    code, told = site.status()
    assert code == 0, told
    services = told["hosts"]["web1"]["services"]
    assert {row["service"] for row in services if row["state"] == "RUNNING"} >= {"gather", "fetch"}, services
    shown = site.call("web1", "ckan_release.show")[1]
    assert shown["plugins"] == shown["check"]["plugins"] == list(site.plugins)
    assert {name: shown["packages"][f"ckanext-{name}"] for name in site.versions} == dict(site.versions)
    assert len(site.versions) >= 15
    migrated = shown["migration"]["after"]
    assert set(migrated) >= {"core", "activity", "harvest"}
    assert not any(one["pending"] for one in migrated.values())
    asked = shown["check"]["pages"]
    for path in ("/harvest/", "/contact", "/dataset_series/", "/ckan-admin/selfinfo"):
        assert path in asked, asked
    assert site.highstate()["code"] == 0 and len(site.releases("web1")) == 1


def view_of(site: Site, dataset: str, view_type: str, file_format: str) -> str:
    """Make a resource with a view; returns the page of the resource."""
    resource = site.api(
        "resource_create",
        {"package_id": dataset, "url": f"http://127.0.0.1:1/a.{file_format}", "name": view_type, "format": file_format},
    )["id"]
    site.api("resource_view_create", {"resource_id": resource, "title": f"By {view_type}", "view_type": view_type})
    return f"/dataset/{dataset}/resource/{resource}"


def test_the_pages_of_the_extensions_answer(site: Site) -> None:
    assert site.first["code"] == 0, site.first["text"][-5000:]
    site.token = site.token or site.add_administrator()
    site.api("organization_create", {"name": "port", "title": "Port"})
    series = site.api("package_create", {
        "type": "dataset_series", "name": "tides", "title": "Tides", "owner_org": "port", "notes": "All",
    })["id"]  # fmt: skip
    site.api("package_create", {"name": "quays", "title": "Quays", "owner_org": "port", "district": "north"})
    pages = {
        "/": "Welcome to My City",
        "/contact": "ckanext-contact",
        "/harvest": "Harvest",
        "/catalog.jsonld": "http://www.w3.org/ns/dcat#Catalog",
        "/dataset/quays": "The North",
        "/dataset/quays.ttl": "dcat:Dataset",
        "/dataset_series/": "Tides",
        f"/dataset_series/{series}": "Tides",
        "/organization/port": "Quays",
        "/ckan-admin/selfinfo": "selfinfo",
        "/api/3/action/group_tree?type=organization": "port",
        "/api/3/action/scheming_dataset_schema_show?type=dataset": "district",
    }
    for view_type, file_format in {
        "pdf_view": "pdf", "officedocs_view": "xlsx", "unfold_view": "zip", "pygments_view": "sql",
        "geojson_view": "geojson",
    }.items():  # fmt: skip
        pages[view_of(site, "quays", view_type, file_format)] = f"By {view_type}"
    for path, text in pages.items():
        assert text in site.page(path), path
    link = site.api("lmi_generate_otl", {"name": "admin"})["url"]
    assert "/lmi/" in link


def test_the_check_names_three_broken_extensions_among_them_in_one_run(site: Site) -> None:
    before, kept = site.current("web1"), site.releases("web1")
    site.write_pillar(site.with_broken())
    next_second()
    done = site.deploy()
    site.write_pillar(site.full)
    said = " ".join(done["summary"].split())
    assert done["code"] == 1 and "web1 failed at check: " in said, done["text"][-5000:]
    for name, (_, cause) in BROKEN.items():
        assert said.count(f"plugin {name} does not start: {cause}") == 1, said
    assert said.count("does not start") == len(BROKEN), said
    assert (site.current("web1"), site.releases("web1")) == (before, kept)
