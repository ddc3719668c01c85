"""The events of a deploy, and the example of a reactor that posts them."""

from __future__ import annotations

import http.server
import json
import threading
from pathlib import Path

import pytest
import salt.config
import salt.utils.event

from daemon.conftest import eventually
from parts.portal import next_second
from stub import repos

pytestmark = pytest.mark.daemon
REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def chat():
    """A webhook; returns its address and what was posted to it."""
    posted: list[tuple[str, dict]] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            length = int(self.headers["Content-Length"])
            posted.append((self.headers["Content-Type"], json.loads(self.rfile.read(length))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", posted
    server.shutdown()


def test_each_stage_is_an_event_and_the_example_of_a_reactor_posts_the_end(site, chat):
    address, posted = chat
    example = (REPO / "docs/examples/reactor.sls").read_text()
    assert "https://chat.example.org/hooks/ckan" in example
    reactor = site.sandbox / "reactor.sls"
    reactor.write_text(example.replace("https://chat.example.org/hooks/ckan", address))
    site.fleet.stop_master()
    site.fleet.start_master(reactor=[{f"ckan/*/*/{end}": [str(reactor)]} for end in ("done", "revert")])
    site.fleet.wait_for_minions()
    next_second()
    repos.commit_change(site.repo, "Hello events", migrations=1)
    opts = salt.config.client_config(str(site.fleet.config / "master"))
    with salt.utils.event.get_event("master", sock_dir=opts["sock_dir"], opts=opts, listen=True) as bus:
        done = site.deploy()
        assert done["code"] == 0, done["text"]
        seen = []
        while event := bus.get_event(wait=2, tag="ckan/", full=True, auto_reconnect=True):
            seen.append((event["tag"], event["data"]))
    release = site.current("web1")
    assert {tag.rpartition("/")[0] for tag, _ in seen} == {"ckan/deploy/production"}
    stages = [data["stage"] for _, data in seen if data["result"] == "started"]
    assert stages == ["build", "check", "migrate", "activate", "verify", "finish"]
    for _, data in seen:
        assert (data["env"], data["kind"], data["release"], data["by"]) == ("production", "deploy", release, "root")
        assert data["hosts"] == ["web1", "web2"] and data["job"]
    hosts = {data["host"] for tag, data in seen if tag.endswith("/activate") and data["result"] == "ok"}
    assert hosts == {"web1", "web2"}
    assert (seen[-1][1]["stage"], seen[-1][1]["result"]) == ("done", "ok")
    eventually(lambda: len(posted), 1)
    assert posted[0][0] == "application/json"
    assert posted[0][1]["text"].startswith(f"Done: deploy to production by root: {release} is live in production")
    repos.commit_broken(site.repo, 'say "no"')
    next_second()
    assert site.deploy()["code"] == 1
    eventually(lambda: len(posted), 2)
    assert "FAILED: deploy to production by root" in posted[1][1]["text"] and 'say "no"' in posted[1][1]["text"]
