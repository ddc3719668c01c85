"""Certificates by ACME: a real certbot, a CA for tests (pebble), nginx and Apache; no Salt daemons."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckan_deploy.serve import acme, certificates
from daemon.test_front import DOMAIN, WebHost, eventually
from functional.conftest import Host, host, session_dir, session_loaders  # noqa: F401
from parts.pebble import Pebble
from parts.ports import free_port
from parts.process import kill_all, sandbox

pytestmark = pytest.mark.daemon
NAMES = [DOMAIN, "www.example.org"]


class Certified(WebHost):
    """A host with ACME behind its own web server."""

    def __init__(self, host: Host, server: str, place: Path, ca: Pebble, peers: list[str]) -> None:  # noqa: F811
        super().__init__(host, server, place)
        host.pillar["aliases"] = NAMES[1:]
        host.pillar["tls"] = {"listen": f"127.0.0.1:{self.tls_port}", "acme": {
            "email": "admin@example.org", "server": ca.directory_url, "ca_bundle": str(ca.bundle), "peers": peers,
        }}  # fmt: skip
        self.ca = ca
        self.letsencrypt = host.root / "etc/letsencrypt"

    def set(self, **changes: Any) -> None:
        self.host.pillar["tls"] = {**self.host.pillar["tls"], "acme": {**self.host.pillar["tls"]["acme"], **changes}}

    def certified(self, test: bool = False) -> dict[str, Any]:
        done = self.host.loaders(test=test).states["ckan_front.certified"](name="certificate")
        return {"result": done.result, "comment": done.comment, "changes": done.changes}

    def start(self) -> None:
        config, states = self.host.root / "etc/ckan/default", self.host.loaders().states
        config.mkdir(parents=True, exist_ok=True)
        for done in (
            states["file.managed"](
                name=str(config / "acme.wsgi"), template="jinja", source="salt://ckan/files/acme.wsgi.jinja"
            ),
            states["ckan_front.pointed"](name=str(config / "apache.wsgi")),
        ):
            assert done.result, done.comment
        self.install()
        self.part.start()

    def serial(self) -> str:
        """Which certificate visitors get, '' for none. They trust the CA, and ask for each of the names."""
        context = ssl.create_default_context(cadata=self.ca.root())
        # pebble's intermediate comes with the certificate.
        found = set()
        for name in NAMES:
            try:
                with socket.create_connection(("127.0.0.1", self.tls_port), timeout=5) as plain:
                    with context.wrap_socket(plain, server_hostname=name) as secure:
                        found.add(dict(secure.getpeercert() or {})["serialNumber"])
            except OSError:
                return ""
        return str(found.pop())

    def certbot(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run certbot as its timer does, but for its directories."""
        own = ["--config-dir", str(self.letsencrypt), "--work-dir", str(self.host.root / "var/lib/letsencrypt")]
        own += ["--logs-dir", str(self.host.root / "var/log/letsencrypt")]
        env = {**os.environ, "REQUESTS_CA_BUNDLE": str(self.ca.bundle)}
        return subprocess.run(
            ["certbot", *arguments, *own, "--no-random-sleep-on-renew"],
            env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def ca_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def ca(ca_port: int) -> Iterator[Pebble]:
    """A CA that asks for challenges on one port of this machine."""
    place = sandbox("ckan-d-")
    made = Pebble(place, ca_port).start()
    yield made
    made.close()
    kill_all(place)
    shutil.rmtree(place)


@pytest.fixture(params=["nginx", "apache"])
def certified(request, host: Host, ca: Pebble, ca_port: int) -> Iterator[Certified]:  # noqa: F811
    place = sandbox("ckan-d-")
    made = Certified(host, request.param, place, ca, [])
    made.port = ca_port
    made.host.pillar["web"]["listen"] = f"127.0.0.1:{ca_port}"
    try:
        yield made
    finally:
        ca.names.missing = set()
        kill_all(place)
        shutil.rmtree(place)


def test_the_first_certificate_is_got_by_plain_http_and_then_https_is_served(certified: Certified) -> None:
    certified.start()
    assert not certificates.https(certified.site())
    foreseen = certified.certified(test=True)
    assert foreseen["result"] is None and "there is none" in foreseen["comment"]
    assert not certified.letsencrypt.exists()
    done = certified.certified()
    assert done["result"] is True, done["comment"]
    eventually(lambda: (certified.ask()[0], bool(certified.serial())), (301, True))
    key = certified.letsencrypt / "live/ckan-default/privkey.pem"
    assert key.resolve().stat().st_mode & 0o077 == 0
    for again in (certified.certified(), certified.certified(test=True), certified.state()):
        assert (again["result"], again["changes"]) == (True, {}), again
    status, _, headers = certified.ask("/dataset/a%20b?q=x%26y&page=2")
    assert (status, headers["Location"]) == (301, f"https://{DOMAIN}/dataset/a%20b?q=x%26y&page=2")
    # Nothing but a challenge passes by the redirect, and no challenge is left.
    assert certified.ask(certificates.CHALLENGES + "x")[0] == 404
    assert not any((certified.host.root / "etc/ckan/default/acme").rglob("formula-*"))


def test_a_renewal_through_redirect_and_maintenance_is_served_by_the_hook_alone(certified: Certified) -> None:
    certified.start()
    assert certified.certified()["result"] is True
    eventually(lambda: bool(certified.serial()), True)
    first = certified.serial()
    switch = certified.host.root / "etc/ckan/default/maintenance/on"
    switch.parent.mkdir(parents=True)
    switch.write_text("{}")
    done = certified.certbot("renew", "--force-renewal")
    assert done.returncode == 0, done.stdout + done.stderr
    eventually(lambda: certified.serial() not in ("", first), True)
    assert not acme.due(certified.site())


@pytest.mark.parametrize("certified", ["nginx"], indirect=True)
def test_what_differs_from_the_settings_is_got_anew_and_told(certified: Certified) -> None:
    certified.start()
    assert certified.certified()["result"] is True
    site = certified.site()
    assert acme.due(site) == ""
    certified.host.pillar["aliases"] = [*NAMES[1:], "new.example.org"]
    certified.install()
    foreseen = certified.certified(test=True)
    assert "it is for portal.example.org, www.example.org, not for new.example.org" in foreseen["comment"]
    done = certified.certified()
    assert done["result"] is True, done["comment"]
    assert acme.due(certified.site()) == ""
    conf = certified.letsencrypt / "renewal/ckan-default.conf"
    conf.write_text(conf.read_text().replace(certified.ca.directory_url, "https://other.example.org/dir"))
    assert acme.due(certified.site()) == f"it is not renewed from {certified.ca.directory_url}"


@pytest.mark.parametrize("certified", ["nginx"], indirect=True)
def test_a_name_that_does_not_lead_here_is_one_sentence_and_the_certificate_stays(certified: Certified) -> None:
    certified.start()
    assert certified.certified()["result"] is True
    eventually(lambda: bool(certified.serial()), True)
    before, text = certified.serial(), certified.file.read_text()
    certified.host.pillar["aliases"] = [*NAMES[1:], "gone.example.org"]
    certified.install()
    certified.ca.names.missing = {"gone.example.org"}
    done = certified.certified()
    assert done["result"] is False and "\n" not in done["comment"]
    assert done["comment"].startswith("the CA could not confirm gone.example.org (")
    assert "ckan:domain and ckan:aliases" in done["comment"] and acme.GOES_ON in done["comment"]
    assert certified.serial() == before
    assert certified.file.read_text().replace(" gone.example.org", "") == text


@pytest.mark.parametrize("certified", ["nginx"], indirect=True)
def test_a_ca_that_cannot_be_asked_names_its_setting(certified: Certified) -> None:
    certified.start()
    text = certified.file.read_text()
    certified.set(server=f"https://localhost:{free_port()}/dir")
    done = certified.certified()
    assert done["result"] is False and "\n" not in done["comment"]
    assert "cannot be asked" in done["comment"] and "correct ckan:tls:acme:server or" in done["comment"]
    certified.set(server=certified.ca.directory_url, ca_bundle="")
    done = certified.certified()
    assert done["result"] is False and "ckan:tls:acme:ca_bundle" in done["comment"]
    certified.set(ca_bundle="/nowhere.pem")
    assert "there is no file /nowhere.pem (ckan:tls:acme:ca_bundle)" in certified.certified()["comment"]
    # The portal goes on by plain http, as before.
    assert certified.file.read_text() == text


def test_another_virtual_host_that_takes_the_challenge_is_told_before_the_ca_is_asked(certified: Certified) -> None:
    certified.start()
    certified.set(names=NAMES)
    certified.host.pillar["aliases"] = [*NAMES[1:], "elsewhere.example.org"]
    certified.set(names=["elsewhere.example.org"])
    # The virtual host that runs does not know the name yet; the web server has another site that is the default one.
    other = {
        "nginx": f"server {{ listen {certified.host.pillar['web']['listen']} default_server; return 410; }}\n",
        "apache": f"<VirtualHost {certified.host.pillar['web']['listen']}>\nServerName other\nRedirect 410 /\n"
        "</VirtualHost>\n",
    }[certified.server]
    (certified.file.parent / "000-default.conf").write_text(other)
    certified.part.reload()
    eventually(lambda: certified.ask(name="elsewhere.example.org")[0], 410)
    done = certified.certified()
    assert done["result"] is False and "\n" not in done["comment"]
    assert "does not answer challenges for elsewhere.example.org" in done["comment"]
    assert "it answers 410" in done["comment"] and not certified.letsencrypt.exists()


@pytest.mark.parametrize("server", ["nginx", "apache"])
def test_a_challenge_that_reaches_another_host_is_answered(
    server: str, session_loaders: Any, ca: Pebble, ca_port: int  # noqa: F811
) -> None:  # fmt: skip
    # The CA reaches web1 only, as through a load balancer, and web2 gets a certificate. A third host is down.
    places = [sandbox("ckan-d-") for _ in range(2)]
    ports = [ca_port, free_port()]
    peers = [f"127.0.0.1:{port}" for port in (free_port(), *ports)]
    web1, web2 = (
        Certified(Host(sandbox("ckan-h-"), Path("/nowhere"), session_loaders), server, place, ca, peers)
        for place in places
    )
    try:
        for one, port in zip((web1, web2), ports, strict=True):
            one.port = port
            one.host.pillar["web"]["listen"] = f"127.0.0.1:{port}"
            one.start()
        for one in (web2, web1):
            done = one.certified()
            assert done["result"] is True, done["comment"]
            eventually(lambda one=one: bool(one.serial()), True)
        # With https and a redirect on both, once more; each has its own.
        assert web2.certbot("renew", "--force-renewal").returncode == 0
        assert web1.serial() != web2.serial()
        # One that nobody has goes round once, and ends.
        # The peers take turns, so each is the last one.
        assert {web1.ask(certificates.CHALLENGES + "nobody-has-it")[0] for _ in peers} == {404}
    finally:
        for one, place in zip((web1, web2), places, strict=True):
            kill_all(place)
            shutil.rmtree(place)
            shutil.rmtree(one.host.root)
