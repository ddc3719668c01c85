"""Environment variables of a release under a real Apache with mod_wsgi; the release's CKAN is a small application."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from ckan_deploy.build import environment
from daemon.conftest import eventually
from daemon.test_front import RELEASE, WebHost
from functional.conftest import Host, host, session_dir, session_loaders, stub_base  # noqa: F401
from parts.process import kill_all, sandbox

pytestmark = pytest.mark.daemon

ODD = {"ODD": "a 'b' \"c\" 100% ; #d $HOME `e` \\f\ng", "PROXY": "http://proxy.example.org:3128"}
# Tells what reached it.
TELLS = """
import json, os
def make_app(config):
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps({name: os.environ.get(name) for name in ("ODD", "PROXY", "SECRET")}).encode()]
    return app
"""


@pytest.fixture
def apache(host: Host) -> Iterator[WebHost]:  # noqa: F811
    place = sandbox("ckan-d-")
    web_host = WebHost(host, "apache", place)
    yield web_host
    kill_all(place)
    subprocess.run(["rm", "-rf", str(place)], check=True)


def test_variables_of_a_release_reach_ckan_under_mod_wsgi_as_they_are(apache: WebHost):
    release = apache.host.home / "releases" / RELEASE
    (middleware,) = release.glob("**/config/middleware.py")
    middleware.write_text(TELLS)
    changes = {"environment": ODD, "secrets": {**apache.host.pillar["secrets"], "environment": {"SECRET": "marked"}}}
    environment.write(apache.host.site(**changes), str(release))
    file = release / environment.NAME
    assert (file.stat().st_mode & 0o777, file.owner(), file.group()) == (0o640, "root", "www-data")
    apache.part.start()
    apache.install()
    eventually(lambda: apache.ask()[:2], (200, {**ODD, "SECRET": "marked"}))
    assert "marked" not in subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True).stdout
