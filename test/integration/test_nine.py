"""
Nine extensions on the real CKAN: eight of others from git repositories made of their sdists, and one of our own.

What an operator has to write for them stands in `parts.nine`.
"""

from __future__ import annotations

import copy
import json
import time

import pytest

from parts.nine import PATCHES, PLUGINS, VERSIONS, XLOADER_NEEDS, NinePortal, commit_to
from parts.process import sandbox

pytestmark = [pytest.mark.integration, pytest.mark.long]

EXTENT = {"type": "Polygon", "coordinates": [[[9.5, 53.3], [10.4, 53.3], [10.4, 53.8], [9.5, 53.8], [9.5, 53.3]]]}
AROUND_IT, ELSEWHERE = "9,53,11,54", "-10,40,-9,41"
HARBOUR = {
    "name": "harbour",
    "title": "Harbour",
    "owner_org": "city-hall",
    "district": "north",
    "motto": {"en": "Ahoy", "de": "Moin"},
    "spatial": json.dumps(EXTENT),
    "resources": [{"url": "http://127.0.0.1/quay.geojson", "name": "Quay", "format": "GeoJSON"}],
}


@pytest.fixture(scope="module")
def site():
    with NinePortal(sandbox("ckan-i-"), say=print) as portal:
        portal.fleet.synced = True
        portal.set_up()
        portal.add_sample_data()
        yield portal


def shown(site: NinePortal, *arguments: str) -> dict:
    return site.call("web1", "ckan_release.show", *arguments)[1]


def without(site: NinePortal, name: str, what: str) -> dict:
    """The pillar of all nine, but for one line of one of them."""
    pillar = copy.deepcopy(site.nine)
    del pillar["extensions"][f"ckanext-{name}"][what]
    return pillar


def test_what_an_operator_must_write_is_told_by_the_plan_and_the_check(site: NinePortal):
    before = site.current("web1")
    site.write_pillar(without(site, "xloader", "override"))
    done = site.deploy(dry_run=True)
    assert done["code"] == 1
    for line in XLOADER_NEEDS:
        assert f"for {line} (its package), CKAN's own is" in done["text"], done["text"][-3000:]
    assert "plan: ckanext-xloader asks for " in done["text"]
    assert "set ckan:extensions:ckanext-xloader:override" in done["text"]
    site.write_pillar(without(site, "fluent", "patches"))
    done = site.deploy()
    assert done["code"] == 1 and "failed at check: plugin fluent does not start" in done["summary"], done["text"][
        -3000:
    ]
    assert "No module named 'pylons' (ckanext/fluent/validators.py, line 5)" in done["summary"]
    assert site.current("web1") == before


def test_nine_extensions_are_deployed_with_their_plugins(site: NinePortal):
    site.write_pillar(site.nine)
    done = site.deploy()
    assert done["code"] == 0, done["text"][-3000:]
    told = shown(site)
    assert told["plugins"] == PLUGINS and told["check"]["plugins"] == PLUGINS
    assert {name: pin["ref"] for name, pin in told["extensions"].items()} == {
        "ckanext-mycity": "main", **{f"ckanext-{name}": f"v{version}" for name, version in VERSIONS.items()}
    }  # fmt: skip
    assert {name: told["packages"][f"ckanext-{name}"] for name in VERSIONS} == VERSIONS
    assert sorted(told["overridden"]) == ["certifi", "idna", "urllib3"]
    for name in PATCHES:
        assert [patch["result"] for patch in told["extensions"][f"ckanext-{name}"]["patches"]] == ["applied"]
    assert set(told["migration"]["after"]) == {"core", "activity", "harvest"}
    assert all(not one["pending"] for one in told["migration"]["after"].values())


def test_the_lock_names_what_the_nine_require_with_hashes(site: NinePortal):
    text = shown(site, "lock=True")["lock"]
    for name in ("shapely", "owslib", "rdflib", "tabulator", "ckantoolkit", "certifi"):
        assert f'name = "{name}"' in text
    assert "sha256" in text and 'name = "ckanext-' not in text


def test_a_dataset_by_a_schema_of_ours_is_found_by_a_spatial_query(site: NinePortal):
    made = site.api("package_create", HARBOUR)
    assert made["district"] == "north" and made["motto"] == HARBOUR["motto"]
    # The soft commit of the Solr of the tests.
    found, deadline = [], time.monotonic() + 15
    while not found and time.monotonic() < deadline:
        query = {"extras": {"ext_bbox": AROUND_IT}}
        found = [row["name"] for row in site.api("package_search", query)["results"]]
    assert found == ["harbour"]
    assert site.api("package_search", {"extras": {"ext_bbox": ELSEWHERE}})["count"] == 0
    assert "Harbour" in site.get(f"/dataset/?ext_bbox={AROUND_IT}")[1]
    assert "Harbour" not in site.get(f"/dataset/?ext_bbox={ELSEWHERE}")[1]


def test_the_pages_of_the_plugins_answer(site: NinePortal):
    resource = site.api("package_show", {"id": "harbour"})["resources"][0]["id"]
    wanted = {"resource_id": resource, "title": "Map", "view_type": "geojson_view"}
    view = site.api("resource_view_create", wanted)["id"]
    source = {"name": "another", "title": "Another", "url": "http://127.0.0.1:1/", "source_type": "ckan"}
    site.api("harvest_source_create", {**source, "owner_org": "city-hall"})
    pages = {
        "/": "Welcome to My City",
        "/dataset/harbour": ("The North", "Ahoy", "application/ld+json"),
        f"/dataset/harbour/resource/{resource}": "Map",
        f"/dataset/harbour/resource/{resource}/view/{view}": "geojson",
        "/dataset/harbour.ttl": "dcat:Dataset",
        "/catalog.jsonld": "http://www.w3.org/ns/dcat#Catalog",
        "/harvest": "Another",
        "/organization/": "City Hall",
        "/organization/city-hall": "Harbour",
        "/api/3/action/scheming_dataset_schema_show?type=dataset": "district",
        "/api/3/action/group_tree?type=organization": "city-hall",
    }
    for path, texts in pages.items():
        status, page, _ = site.get(path)
        assert status == 200, path
        for text in [texts] if isinstance(texts, str) else texts:
            assert text in page, path


def test_nothing_new_is_said_and_one_commit_builds_one_extension(site: NinePortal):
    done = site.deploy()
    assert done["code"] == 0 and "Nothing to deploy to production" in done["summary"], done["text"][-3000:]
    sources = site.root("web1") / "usr/lib/ckan/shared/sources"
    before = {path: path.stat().st_mtime_ns for path in sources.rglob("*.whl")}
    layer = shown(site)["layer"]
    commit_to(site.repos["hierarchy"], "One more line")
    pillar = copy.deepcopy(site.nine)
    pillar["extensions"]["ckanext-hierarchy"]["ref"] = "main"
    site.write_pillar(pillar)
    done = site.deploy()
    assert done["code"] == 0, done["text"][-3000:]
    made = {path for path in sources.rglob("*.whl") if path.stat().st_mtime_ns != before.get(path)}
    # The wheel of the one commit, and the thin one that releases install.
    assert {path.name for path in made} == {"ckanext_hierarchy-1.2.0-py3-none-any.whl"}
    assert shown(site)["layer"] == layer
