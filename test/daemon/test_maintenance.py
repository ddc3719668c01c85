"""Maintenance: what visitors get, who passes, and that a deploy lets visitors in again whatever happens."""

from __future__ import annotations

import json
import threading

import pytest

from ckan_deploy.errors import FormulaError
from ckan_deploy.serve import health, maintenance
from daemon.conftest import Site
from daemon.test_front import WebHost, eventually, stopped_web_host, web_host  # noqa: F401
from functional.conftest import host, session_dir, session_loaders  # noqa: F401
from parts.portal import next_second
from stub import repos

pytestmark = pytest.mark.daemon

HEALTH = "/api/3/action/status_show"


def test_visitors_get_a_page_the_api_gets_json_and_the_health_check_passes(web_host: WebHost):  # noqa: F811
    web_host.install()
    eventually(lambda: web_host.ask()[0], 200)
    modules = web_host.host.loaders().modules
    assert modules["ckan_maintenance.status"]() == {"on": False}
    told = modules["ckan_maintenance.on"](reason="the database moves", by="eve")
    assert (told["on"], told["changed"], told["reason"]) == (True, True, "the database moves")
    assert modules["ckan_maintenance.on"]()["changed"] is False
    assert modules["ckan_maintenance.status"]()["by"] == "eve"
    # No reload was needed.
    for options in ({}, {"path": "/dataset/x"}, {"size": 10}):
        status, page, headers = web_host.ask(**options)
        assert (status, "We will be back soon" in page, headers["Retry-After"]) == (503, True, "300"), options
        assert headers["Content-Type"].startswith("text/html") and headers["Cache-Control"] == "no-store"
    for path in ("/api/3/action/package_search?q=x", "/api"):
        status, answer, headers = web_host.ask(path)
        assert (status, answer["success"], headers["Content-Type"]) == (503, False, "application/json"), path
        assert answer["error"]["__type"] == "Service Unavailable" and headers["Retry-After"] == "300"
    assert web_host.ask(HEALTH)[0] == 200
    assert web_host.ask(HEALTH, source="127.0.0.2")[0] == 503
    health.health(web_host.site(), "20260101000000Z")
    for path in ("/ckan-maintenance/page.html", "/ckan-maintenance/on", "/ckan-maintenance/"):
        assert "the database moves" not in str(web_host.ask(path)[1])
    assert modules["ckan_maintenance.off"]() == {"on": False, "changed": True}
    assert modules["ckan_maintenance.off"]() == {"on": False, "changed": False}
    assert web_host.ask()[0] == 200
    stages = [entry["stage"] for entry in web_host.site().log.read()]
    assert stages[:2] == ["maintenance off", "maintenance on"]


def test_a_page_of_your_own_and_a_balancer_that_may_ask(web_host: WebHost, tmp_path):  # noqa: F811
    page = tmp_path / "closed.html"
    page.write_text("<h1>Geschlossen – bis später</h1>", encoding="utf-8")
    web_host.host.pillar["web"] |= {
        "maintenance_page": str(page), "maintenance_retry": 60, "maintenance_health": True,
    }  # fmt: skip
    web_host.install()
    eventually(lambda: web_host.ask()[0], 200)
    maintenance.on(web_host.site())
    status, text, headers = web_host.ask()
    assert (status, text, headers["Retry-After"]) == (503, "<h1>Geschlossen – bis später</h1>", "60")
    assert web_host.ask(HEALTH, source="127.0.0.2")[0] == 200
    maintenance.off(web_host.site())


def test_a_page_that_is_not_there_is_refused_and_visitors_stay_in(web_host: WebHost):  # noqa: F811
    web_host.host.pillar["web"]["maintenance_page"] = "/no/such/page.html"
    web_host.install()
    eventually(lambda: web_host.ask()[0], 200)
    with pytest.raises(FormulaError, match="there is no page /no/such/page.html"):
        maintenance.on(web_host.site())
    assert web_host.ask()[0] == 200


class Watch:
    """What a visitor and the health check of a host get, again and again."""

    def __init__(self, site: Site) -> None:
        self.site, self.seen, self._over = site, [], threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._over.wait(0.05):
            self.seen.append((self.site.get("/", "web2")[0], self.site.get(HEALTH, "web2")[0]))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def statuses(watch: Watch) -> list[int]:
    """What visitors got, without repetitions."""
    found = [front for front, _ in watch.seen]
    return [status for index, status in enumerate(found) if index == 0 or found[index - 1] != status]


def test_a_deploy_in_maintenance_lets_visitors_in_again_when_it_is_over_or_failed(site):
    next_second()
    repos.commit_change(site.repo, "Hello maintained", migrations=1)
    with Watch(site) as watch:
        done = site.deploy(maintenance=True)
    assert done["code"] == 0, done["text"]
    assert statuses(watch) == [200, 503, 200]
    assert {health for _, health in watch.seen} == {200}
    assert site.served() == ["Hello maintained"] * 2
    # One that fails after visitors get the page.
    next_second()
    repos.commit_change(site.repo, "Hello never")
    site.write_host("web2", web={**site.settings["web"], "health_url": "http://127.0.0.1:1"})
    with Watch(site) as watch:
        done = site.deploy(maintenance=True)
    assert done["code"] == 1 and "web2 failed at verify" in done["text"], done["text"]
    assert statuses(watch) == [200, 503, 200]
    assert [site.get("/", name)[0] for name in site.hosts] == [200, 200]
    site.write_pillar(site.settings)


def test_maintenance_of_all_hosts_by_one_command_outlives_a_deploy(site):
    done = site.fleet.run("salt-run", "ckan.maintenance", "production", "on", "reason=a move", "--out=json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [site.get("/", name)[0] for name in site.hosts] == [503, 503]
    next_second()
    repos.commit_change(site.repo, "Hello behind the curtain")
    done = site.deploy(maintenance=True)
    assert done["code"] == 0, done["text"]
    assert [site.get("/", name)[0] for name in site.hosts] == [503, 503]
    told = site.fleet.run("salt-run", "ckan.status", "production", "--out=json")
    rows = json.loads(told.stdout[told.stdout.index("{") :])["hosts"]
    assert told.returncode == 0 and {row["maintenance"]["reason"] for row in rows.values()} == {"a move"}
    done = site.fleet.run("salt-run", "ckan.maintenance", "production", "off")
    assert done.returncode == 0
    assert site.served() == ["Hello behind the curtain"] * 2
    done = site.fleet.run("salt-run", "ckan.maintenance", "production", "perhaps")
    assert done.returncode == 1 and "'perhaps' is neither on nor off" in done.stdout
