"""Settings of ACME, and what is said where certbot gets no certificate."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import acme, addresses, certificates, virtual_host
from fakes import fake_site
from parts.process import sandbox

EMAIL = {"email": "admin@example.org"}
LETSENCRYPT = "https://acme-v02.api.letsencrypt.org/directory"
LIMIT = (
    "Error creating new order :: too many certificates (5) already issued for this exact set of domains in the last "
    "168 hours: data.example.org, retry after 2026-12-01T00:00:00Z"
)


@pytest.fixture
def root() -> Iterator[Path]:
    """The root of a host, with a short path."""
    path = sandbox("ckan-u-")
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tls": {"acme": {"names": ["data.example.org"]}}}, "ckan:tls:acme:email is missing; set it in"),
        ({"tls": {"acme": {"email": "nobody"}}}, "ckan:tls:acme:email is not valid ('nobody')"),
        (
            {"tls": {"acme": "admin@example.org"}},
            "ckan:tls:acme must be a dictionary such as {email: ",
        ),
        ({"tls": {"acme": {"emial": "a@b.org"}}}, "did you mean ckan:tls:acme:email?"),
        (
            {"tls": {"acme": EMAIL, "certificate": "/srv/c.pem", "key": "/srv/k.pem"}},
            "ckan:tls:certificate and ckan:tls:key are set beside ckan:tls:acme",
        ),
        ({"tls": {"acme": {**EMAIL, "server": "http://ca"}}}, "ckan:tls:acme:server is not valid"),
        (
            {"tls": {"acme": {**EMAIL, "ca_bundle": "ca.pem"}}},
            "ckan:tls:acme:ca_bundle (ca.pem) must be an abs",
        ),
        ({"tls": {"acme": {**EMAIL, "peers": ["web1;"]}}}, "ckan:tls:acme:peers has the item 'web1;'"),
        ({"tls": {"acme": EMAIL}, "aliases": ["*.example.org"]}, "no CA gives a certificate for * over http"),
        ({"tls": {"acme": {**EMAIL, "names": ["x.org"]}}}, "x.org, which is neither ckan:domain nor in ckan:aliases"),
        ({"tls": {"acme": EMAIL}, "domain": "10.0.0.1"}, "10.0.0.1, which is no host name that a CA gives"),
        ({"tls": {"acme": EMAIL}, "web": {"server": "none"}}, "ckan:tls:acme needs nginx or Apache"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(FormulaError) as refused:
        fake_site("/nowhere", **settings)
    assert said in str(refused.value)


def test_names_below_an_alias_with_a_star_may_be_certified(root: Path) -> None:
    site = fake_site(root, aliases=["*.open.example.org"], tls={"acme": {**EMAIL, "names": ["a.open.example.org"]}})
    assert certificates.names(site) == ["a.open.example.org"]
    assert site.settings.tls.certificate == f"{root}/etc/letsencrypt/live/ckan-default/fullchain.pem"


def test_before_the_first_certificate_the_virtual_host_and_the_health_check_go_by_http(root: Path) -> None:
    for server in ("nginx", "apache"):
        site = fake_site(root, tls={"acme": EMAIL}, web={"server": server})
        text = virtual_host.render(site)
        assert "/.well-known/acme-challenge/" in text and "letsencrypt" not in text
        assert addresses.asked(site)[0].scheme == "http"
        # Nothing of it without ACME.
        assert "challenge" not in virtual_host.render(fake_site(root, web={"server": server}))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def answering(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site whose challenges are answered, and programs that a test puts into `bin`."""
    (root / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{root}/bin:/usr/bin:/bin")
    served = root / "etc/ckan/default/acme"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(served)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield fake_site(root, tls={"acme": EMAIL}, web={"listen": f"127.0.0.1:{server.server_port}"})
    server.shutdown()
    server.server_close()


def refused(site: Site) -> str:
    """What is said, in one sentence; no web server is touched."""
    with pytest.raises(FormulaError) as raised:
        acme.obtain(site)
    assert "\n" not in str(raised.value) and str(raised.value).endswith(f"; {acme.GOES_ON}.")
    return str(raised.value)


def test_a_certbot_that_is_not_there_is_named(answering: Site, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{root}/bin")
    assert refused(answering).startswith("certbot is not there, which ckan:tls:acme needs; install it, or run")


# What certbot 2.1 prints for these answers of a CA.
@pytest.mark.parametrize(
    ("printed", "said"),
    [
        (
            f"Requesting a certificate for data.example.org\nAn unexpected error occurred:\n{LIMIT}\nAsk for help or "
            "search for solutions.",
            f"{LETSENCRYPT} gives no certificate for now ({LIMIT}); wait, or set another ckan:tls:acme:server",
        ),
        (
            "Another instance of Certbot is already running.\nAsk for help or search for solutions.",
            f"certbot got no certificate from {LETSENCRYPT} (ckan:tls:acme): Another instance of Certbot is already",
        ),
        ("", "(ckan:tls:acme): exit code 1"),
    ],
)
def test_a_ca_that_refuses_is_quoted_in_one_sentence(answering: Site, root: Path, printed: str, said: str) -> None:
    program = root / "bin/certbot"
    program.write_text(f"#!/bin/sh\ncat <<'END' >&2\n{printed}\nEND\nexit 1\n")
    program.chmod(0o755)
    assert said in refused(answering)
