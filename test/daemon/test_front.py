"""
A host's web server, by asking it: a real nginx and a real Apache with the site's virtual host, over http and https.

Most of it needs no Salt daemons: a host seen through Salt's loaders, and behind its web server an application that
tells what reached it. The last tests are a web host under a master, with Apache before the small stand-in for CKAN.
"""

from __future__ import annotations

import datetime
import http.client
import json
import os
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from ckan_deploy.deploy.status import status as host_status
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.site import Site as HostSite
from ckan_deploy.serve import health, maintenance, virtual_host
from daemon.conftest import Site
from functional.conftest import Host, host, session_dir, session_loaders  # noqa: F401
from parts import nginx
from parts.apache import Apache
from parts.nginx import host_nginx
from parts.portal import next_second
from parts.ports import free_port
from parts.process import kill_all, sandbox
from parts.visitors import Visitors
from stub import repos

pytestmark = pytest.mark.daemon

DOMAIN, RELEASE = "portal.example.org", "20260101000000Z"
# A release whose CKAN is this application: it tells what reached it.
ECHO = """
import json, time
def make_app(config):
    def app(environ, start_response):
        environ["wsgi.input"].read()
        kind, _, size = environ["PATH_INFO"][1:].partition("/")
        time.sleep(2.5 if kind == "slow" else 0)
        more = [("X-Large", "x" * int(size))] if kind == "header" else []
        environ["RAW"] = environ["PATH_INFO"] + "?" + environ.get("QUERY_STRING", "")
        names = ("HTTP_X_FORWARDED_PROTO", "HTTP_X_FORWARDED_FOR", "HTTP_HOST", "HTTP_AUTHORIZATION", "wsgi.url_scheme")
        told = {name: environ.get(name, "") for name in ("RAW", *names)}
        start_response("200 OK", [("Content-Type", "application/json"), *more])
        return [json.dumps(told).encode()]
    return app
"""


class Backend(BaseHTTPRequestHandler):
    """What listens on the socket of a release, in place of uWSGI."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        told = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in self.headers.items()}
        body = json.dumps({**told, "RAW": self.path}).encode()
        kind, _, size = self.path[1:].partition("/")
        time.sleep(2.5 if kind == "slow" else 0)
        self.send_response(200)
        if kind == "header":
            self.send_header("X-Large", "x" * int(size))
        self.send_header("X-CKAN-Release", RELEASE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def address_string(self) -> str:
        return "nginx"

    def log_message(self, *_: Any) -> None:
        pass


class WebHost:
    """A host, its web server, and a release behind it that echoes."""

    def __init__(self, host: Host, server: str, place: Path) -> None:  # noqa: F811
        self.host, self.server, self.place = host, server, place
        self.port, self.tls_port = free_port(), free_port()
        self.file = host.root / f"sites/ckan-{server}.conf"
        part = host_nginx(place, self.file.parent) if server == "nginx" else Apache(place, self.file.parent)
        self.part = part
        host.pillar["paths"] = {**host.pillar["paths"], f"{server}_site": str(self.file)}
        host.pillar["web"] = {
            "server": server, "listen": f"127.0.0.1:{self.port}", f"{server}_conf": str(part.conf), "processes": 1,
            "boot_timeout": 10,
        }  # fmt: skip
        host.pillar["aliases"] = ["www.example.org", "*.open.example.org"]
        self._make_release()

    def _make_release(self) -> None:
        release = self.host.home / "releases" / RELEASE
        (release / "run").mkdir(parents=True)
        packages = release / "lib/python3.11/site-packages/ckan"
        (packages / "config").mkdir(parents=True)
        (packages / "cli.py").write_text("class CKANConfigLoader:\n    __init__ = get_config = lambda *_: None\n")
        (packages / "config/middleware.py").write_text(ECHO)
        (release / "release.json").write_text(json.dumps({"id": RELEASE, "state": "live"}))
        (self.host.home / "current").symlink_to(f"releases/{RELEASE}")
        pointer = self.host.root / "etc/ckan/default/apache.wsgi"
        done = self.host.loaders().states["ckan_front.pointed"](name=str(pointer))
        assert done.result, done.comment

    def with_tls(self, **more: Any) -> None:
        name = self.place / "cert"
        self.host.pillar["tls"] = {
            "certificate": f"{name}.pem", "key": f"{name}.key", "listen": f"127.0.0.1:{self.tls_port}", **more,
        }  # fmt: skip
        subject = [
            "-subj",
            f"/CN={DOMAIN}",
            "-days",
            "2",
            "-nodes",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
        ]
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem"]
        subprocess.run(["openssl", "req", "-x509", *subject, *files], check=True, capture_output=True)

    def with_own_limit(self) -> None:
        """The server ends what takes longer than a second, unless the site says otherwise."""
        if isinstance(self.part, Apache):
            text = self.part.conf.read_text()
            self.part.conf.write_text(text.replace("Timeout 60", "Timeout 1"))
        else:
            self.part.http = f"    proxy_read_timeout 1s;\n{self.part.http}"

    def with_extra(self, lines: str) -> None:
        self.host.pillar["web"] = {**self.host.pillar["web"], "extra": lines}

    def state(self, test: bool = False) -> dict[str, Any]:
        done = self.host.loaders(test=test).states["ckan_front.installed"](name=self.server)
        return {"result": done.result, "comment": done.comment, "changes": done.changes}

    def site(self) -> HostSite:
        """The site of the pillar as it is now, as the package sees it; without Salt."""
        return self.host.site()

    def install(self) -> dict[str, Any]:
        done = self.state()
        assert done["result"] is True, done["comment"]
        return done

    def ask(
        self,
        path: str = "/",
        name: str = DOMAIN,
        secure: bool = False,
        source: str = "127.0.0.1",
        size: int = 0,
        at: str = "",
        port: int = 0,
        **headers: str,
    ) -> tuple[int, Any, dict[str, str]]:
        """Ask once; returns status, body and headers. A status of 0 means that nobody answered."""
        port = port or (self.tls_port if secure else self.port)
        context = ssl._create_unverified_context()
        made = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        options = {"context": context} if secure else {}
        # From the address that the kernel takes, where another address is asked.
        bound = {} if at else {"source_address": (source, 0)}
        connection = made(at or "127.0.0.1", port, timeout=10, **bound, **options)
        try:
            method, body = ("POST", b"x" * size) if size else ("GET", None)
            connection.request(method, path, body=body, headers={"Host": name, **headers})
            answer = connection.getresponse()
            text = answer.read().decode()
            told = json.loads(text) if text.startswith("{") else text
            return answer.status, told, dict(answer.getheaders())
        except OSError:
            return 0, "", {}
        finally:
            connection.close()


def eventually(say: Callable[[], Any], wanted: Any) -> None:
    """A reload is under way when the command that asked for it is over; for a moment old and new workers take turns."""
    deadline = time.monotonic() + 10
    in_a_row = 0
    while in_a_row < 5 and time.monotonic() < deadline:
        said = say()
        in_a_row = in_a_row + 1 if said == wanted else 0
        time.sleep(0.02)
    assert said == wanted and in_a_row == 5


@pytest.fixture(params=["nginx", "apache"])
def stopped_web_host(request: pytest.FixtureRequest, host: Host) -> Iterator[WebHost]:  # noqa: F811
    """A host whose web server is not started yet."""
    place = sandbox("ckan-d-")
    web_host = WebHost(host, request.param, place)
    backend = None
    if request.param == "nginx":
        path = str(host.home / "releases" / RELEASE / "run/web.sock")
        backend = socketserver.ThreadingUnixStreamServer(path, Backend)
        os.chmod(path, 0o666)
        threading.Thread(target=backend.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield web_host
    finally:
        kill_all(place)
        if backend:
            backend.shutdown()
            backend.server_close()
        subprocess.run(["rm", "-rf", str(place)], check=True)


@pytest.fixture
def web_host(stopped_web_host: WebHost) -> WebHost:
    """A host whose web server runs, with another site that is the default one."""
    listen = f"127.0.0.1:{stopped_web_host.port}"
    default = {
        "nginx": f"server {{ listen {listen} default_server; return 410; }}\n",
        "apache": f"<VirtualHost {listen}>\nServerName other\nRedirect 410 /\n</VirtualHost>\n",
    }[stopped_web_host.server]
    (stopped_web_host.file.parent / "000-default.conf").write_text(default)
    stopped_web_host.part.start()
    return stopped_web_host


def test_domain_and_aliases_answer_and_other_names_do_not_get_the_site(web_host):
    web_host.install()
    eventually(lambda: web_host.ask()[0], 200)
    for name in (DOMAIN, DOMAIN.upper(), "www.example.org", "a.open.example.org"):
        status, told, _ = web_host.ask(name=name)
        assert (status, told["HTTP_HOST"].lower()) == (200, name.lower())
        # The port of the site's address is the one that its scheme has anyway.
        assert web_host.ask(name=f"{name}:{web_host.port}")[1]["HTTP_HOST"].lower() == name.lower()
    for name in ("open.example.org", "example.org", "127.0.0.1"):
        status, told, _ = web_host.ask(name=name)
        assert (status, "HTTP_HOST" in told) == (410, False)


def test_the_state_predicts_writes_and_then_changes_nothing(web_host):
    foreseen = web_host.state(test=True)
    assert (foreseen["result"], foreseen["changes"]) == (None, {str(web_host.file): "new file"})
    assert not web_host.file.exists()
    done = web_host.install()
    assert done["changes"] == {str(web_host.file): "new file"} and "the server was reloaded" in done["comment"]
    for again in (web_host.state(), web_host.state(test=True)):
        assert (again["result"], again["changes"]) == (True, {})
    web_host.host.pillar["aliases"] = []
    assert "www.example.org" in web_host.state(test=True)["changes"][str(web_host.file)]
    assert "www.example.org" not in virtual_host.render(web_host.site())


def test_an_upload_above_the_limit_is_refused_and_one_below_is_not(web_host):
    web_host.host.pillar["web"]["upload_limit_mb"] = 1
    web_host.install()
    eventually(lambda: web_host.ask()[0], 200)
    # A form is a little more than the file in it.
    assert web_host.ask(size=1024 * 1024 + 5000)[0] == 200
    assert web_host.ask(size=2 * 1024 * 1024 + 1)[0] == 413


def test_an_upload_that_ckan_may_take_by_its_own_option_is_not_refused_before(web_host):
    web_host.host.pillar["web"]["upload_limit_mb"] = 1
    web_host.host.pillar["config"] = {"ckan.max_resource_size": 3, "ckan.max_image_size": "no number"}
    web_host.install()
    eventually(lambda: web_host.ask()[0], 200)
    assert (web_host.ask(size=3 * 1024 * 1024)[0], web_host.ask(size=4 * 1024 * 1024 + 1)[0]) == (200, 413)


def test_f09_a_request_takes_as_long_as_it_takes_where_there_is_no_limit(stopped_web_host):
    web_host = stopped_web_host
    web_host.with_own_limit()
    web_host.part.start()
    web_host.install()
    eventually(lambda: web_host.ask()[0], 200)
    assert web_host.ask("/slow")[0] == 200


def test_a_request_that_takes_longer_than_the_limit_is_ended_by_the_web_server_a_little_later(web_host):
    web_host.host.pillar["web"]["request_timeout"] = 7
    text = virtual_host.render(web_host.site())
    for line in {
        "nginx": ["proxy_read_timeout 12s;", "proxy_send_timeout 12s;"],
        "apache": ["request-timeout=7 ", " socket-timeout=12 ", "response-socket-timeout=12 "],
    }[web_host.server]:
        assert line in text
    web_host.install()
    eventually(lambda: web_host.ask()[0], 200)


@pytest.mark.parametrize("secure", [False, True])
def test_f16_large_headers_of_a_login_extension_pass(web_host, secure):
    if secure:
        web_host.with_tls(redirect=False)
    web_host.install()
    eventually(lambda: web_host.ask(secure=secure)[0], 200)
    for size in (3900, 6000, 12000, 31000):
        status, _, headers = web_host.ask(f"/header/{size}", secure=secure)
        assert (status, len(headers.get("X-Large", ""))) == (200, size)
        # Apache takes what the first site of an address takes, and that is another one here.
        if size < 8000 or secure or web_host.server == "nginx":
            assert web_host.ask(secure=secure, Cookie=f"a={'b' * size}")[0] == 200, size


def test_plain_http_is_sent_to_https_with_path_and_query(web_host):
    web_host.with_tls()
    web_host.host.pillar["site_url"] = f"https://{DOMAIN}"
    web_host.install()
    eventually(lambda: (web_host.ask()[0], web_host.ask(secure=True)[0]), (301, 200))
    for name in (DOMAIN, "www.example.org"):
        status, _, headers = web_host.ask("/dataset/a%20b?q=x%26y&page=2", name)
        assert (status, headers["Location"]) == (301, f"https://{DOMAIN}/dataset/a%20b?q=x%26y&page=2")
    assert web_host.ask("/x", secure=True)[1]["HTTP_X_FORWARDED_PROTO"] == "https"
    # The health check goes the same way as visitors who followed: it is no use to learn that there is a redirect.
    assert health.health(web_host.site(), RELEASE)["release"] == RELEASE
    assert host_status(web_host.site())["answers"] == RELEASE


def test_a_redirect_names_the_port_of_the_site_s_address(web_host):
    web_host.with_tls()
    web_host.host.pillar["site_url"] = f"https://{DOMAIN}:8443"
    web_host.install()
    eventually(lambda: web_host.ask("/x")[2].get("Location"), f"https://{DOMAIN}:8443/x")


def test_f08_ckan_is_told_the_port_of_the_site_s_address(web_host):
    """Also by a load balancer before us that leaves it out, or names its own."""
    web_host.with_tls(redirect=False)
    web_host.host.pillar["site_url"] = f"https://{DOMAIN}:8443"
    web_host.install()
    eventually(lambda: (web_host.ask()[0], web_host.ask(secure=True)[0]), (200, 200))
    for name in (DOMAIN, "www.example.org"):
        for port in (":8443", ":8080", ""):
            for secure in (True, False):
                assert web_host.ask(name=f"{name}{port}", secure=secure)[1]["HTTP_HOST"] == f"{name}:8443"
    assert health.health(web_host.site(), RELEASE)["release"] == RELEASE


def test_f18_a_portal_below_a_path_leaves_the_rest_of_its_host_to_others(web_host):
    web_host.host.pillar["site_url"] = f"http://{DOMAIN}/open/data"
    rest = {"nginx": "location / { return 418; }", "apache": "RedirectMatch 410 ^/(?!open/data/)"}[web_host.server]
    web_host.with_extra(rest)
    assets = web_host.host.root / "var/lib/ckan/default/webassets"
    assets.mkdir(parents=True)
    (assets / "a.css").write_text("body {}")
    web_host.install()
    eventually(lambda: web_host.ask("/open/data/")[0], 200)
    # CKAN gets it as the visitor wrote it; Apache takes away the quoting, and lets no quoted slash pass.
    path, seen = {"nginx": ("a%20b%2Fc", "a%20b%2Fc"), "apache": ("a%20b", "a b")}[web_host.server]
    assert web_host.ask(f"/open/data/dataset/{path}?q=x%26y")[1]["RAW"] == f"/dataset/{seen}?q=x%26y"
    assert web_host.ask("/open/data")[2]["Location"] == f"http://{DOMAIN}/open/data/"
    assert web_host.ask("/open/data/webassets/a.css")[1] == "body {}"
    assert web_host.ask("/open/data/webassets/b.css?c")[1]["RAW"] == "/webassets/b.css?c"
    other = {"nginx": 418, "apache": 410}[web_host.server]
    assert [web_host.ask(path)[0] for path in ("/", "/open/dataset", "/api/3")] == [other] * 3
    assert health.health(web_host.site(), RELEASE)["release"] == RELEASE
    maintenance.on(web_host.site())
    assert web_host.ask("/")[0] == other
    status, page, _ = web_host.ask("/open/data/dataset")
    assert (status, "We will be back soon" in page) == (503, True)
    assert web_host.ask("/open/data/api/3/action/x")[1]["success"] is False
    assert health.health(web_host.site(), RELEASE)["release"] == RELEASE
    maintenance.off(web_host.site())


def own_address() -> str:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return probe.getsockname()[0]


def test_f26_a_port_is_ipv4_and_ipv6_and_there_may_be_several(web_host):
    """The default, `80`, is a port, too."""
    one, two, three, here = free_port(), free_port(), free_port(), own_address()
    web_host.host.pillar["web"]["listen"] = [str(one), f"127.0.0.1:{two}", f"{here}:{two}", f"[::1]:{three}"]
    web_host.install()
    served = [("127.0.0.1", one), ("::1", one), ("127.0.0.1", two), (here, two), ("::1", three)]
    for at, port in served:
        eventually(lambda at=at, port=port: web_host.ask(at=at, port=port)[0], 200)
        # The health check can come by any of them, and is told the release.
        assert web_host.ask(at=at, port=port)[2]["X-CKAN-Release"] == RELEASE, at
    assert web_host.ask(at="127.0.0.1", port=three)[0] == 0
    assert not web_host.state()["changes"]


@pytest.mark.parametrize("where", ["::1", "127.0.0.1", "of this machine"])
def test_f26_the_health_check_asks_where_the_server_listens(web_host, where):
    at, port = own_address() if where.startswith("of") else where, free_port()
    web_host.host.pillar["web"]["listen"] = f"[{at}]:{port}" if ":" in at else f"{at}:{port}"
    assert f"does not listen on {web_host.host.pillar['web']['listen']} " in health.front_problem(web_host.site())
    web_host.install()
    eventually(lambda: web_host.ask(at=at, port=port)[0], 200)
    assert health.front_problem(web_host.site()) == ""
    assert health.health(web_host.site(), RELEASE)["release"] == RELEASE
    maintenance.on(web_host.site())
    assert web_host.ask(at=at, port=port)[0] == 503
    assert health.health(web_host.site(), RELEASE)["release"] == RELEASE
    maintenance.off(web_host.site())


def test_f26_https_and_its_redirect_answer_on_both_families(web_host):
    web_host.with_tls()
    web_host.host.pillar["tls"]["listen"], web_host.host.pillar["web"]["listen"] = str(free_port()), str(free_port())
    web_host.install()
    ports = {secure: int(web_host.host.pillar["tls" if secure else "web"]["listen"]) for secure in (True, False)}
    for at in ("127.0.0.1", "::1"):
        for secure, status in ((True, 200), (False, 301)):
            asked = {"at": at, "port": ports[secure], "secure": secure}
            eventually(lambda asked=asked: web_host.ask(**asked)[0], status)


def test_without_the_redirect_both_ports_serve_the_site(web_host):
    web_host.with_tls(redirect=False)
    web_host.install()
    eventually(lambda: (web_host.ask()[0], web_host.ask(secure=True)[0]), (200, 200))
    told = [web_host.ask(secure=secure)[1]["HTTP_X_FORWARDED_PROTO"] for secure in (True, False)]
    assert told == ["https", "http"]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_scheme_of_visitors_is_that_of_the_site_s_address_where_others_end_tls(web_host, scheme):
    web_host.host.pillar["site_url"] = f"{scheme}://{DOMAIN}"
    web_host.install()
    eventually(lambda: web_host.ask()[0], 200)
    told = web_host.ask(**{"X-Forwarded-Proto": "gopher"})[1]
    assert told["HTTP_X_FORWARDED_PROTO"] == scheme
    # uWSGI makes it from the header, mod_wsgi has it from us.
    assert told.get("wsgi.url_scheme", scheme) == scheme


def test_credentials_reach_ckan_and_the_release_is_told_to_this_machine_only(web_host):
    web_host.install()
    eventually(lambda: web_host.ask()[0], 200)
    _, told, headers = web_host.ask(Authorization="token-of-a-user")
    assert told["HTTP_AUTHORIZATION"] == "token-of-a-user"
    assert headers["X-CKAN-Release"] == RELEASE
    status, _, headers = web_host.ask(source="127.0.0.2")
    assert (status, headers.get("X-CKAN-Release", "")) == (200, "")


def test_extra_lines_take_effect_and_wrong_ones_leave_everything_as_it_was(web_host):
    good = {"nginx": 'add_header X-Extra "{x}";', "apache": 'Header set X-Extra "{x}"'}[web_host.server]
    web_host.with_extra(f"# two lines\n{good}\n")
    web_host.install()
    eventually(lambda: web_host.ask("/nothing")[2].get("X-Extra"), "{x}")
    before = web_host.file.read_text()
    web_host.with_extra(f"{good}\nno_such_directive on;\n")
    for test, result in ((True, None), (False, False)):
        done = web_host.state(test=test)
        assert done["result"] is result
    words = {"nginx": 'directive "no_such_directive', "apache": "Invalid command 'no_such_directive'"}[web_host.server]
    assert words in done["comment"] and str(web_host.file) in done["comment"]
    assert f"{web_host.server} finds its configuration not valid" in done["comment"] and done["changes"] == {}
    assert web_host.file.read_text() == before
    assert sorted(path.name for path in web_host.file.parent.iterdir()) == ["000-default.conf", web_host.file.name]
    assert web_host.ask()[2].get("X-Extra") == "{x}"


def test_a_first_file_that_is_wrong_is_not_left_there(web_host):
    web_host.with_extra("no_such_directive on\n")
    assert web_host.state()["result"] is False
    assert not web_host.file.exists()


def test_a_certificate_that_is_not_there_is_said_in_the_server_s_words(web_host):
    web_host.with_tls()
    (web_host.place / "cert.pem").unlink()
    done = web_host.state()
    assert done["result"] is False and str(web_host.place / "cert.pem") in done["comment"], done["comment"]


def make_expired(name: Path) -> None:
    """Write a certificate of a key that was good for a day of 2020."""
    key = serialization.load_pem_private_key(Path(f"{name}.key").read_bytes(), None)
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, DOMAIN)])
    made = x509.CertificateBuilder(who, who, key.public_key(), 7)
    made = made.not_valid_before(datetime.datetime(2020, 1, 1)).not_valid_after(datetime.datetime(2020, 1, 2))
    text = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    Path(f"{name}.pem").write_bytes(text)


def test_a_certificate_that_is_of_no_use_is_refused_by_its_setting_and_nothing_is_touched(web_host):
    web_host.install()
    eventually(lambda: web_host.ask()[0], 200)
    before, name = web_host.file.read_text(), web_host.place / "cert"
    web_host.with_tls()
    key = Path(f"{name}.key").read_text()
    other = subprocess.run(
        ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
        capture_output=True,
        check=True,
    ).stdout
    locked = subprocess.run(
        ["openssl", "ec", "-in", f"{name}.key", "-aes128", "-passout", "pass:x"], capture_output=True, check=True
    ).stdout
    for text, sentence in (
        (other, f"ckan:tls:key: {name}.key is not the key of {name}.pem; "),
        (locked, f"ckan:tls:key: {name}.key has a passphrase, "),
        (b"nothing", f"ckan:tls:key: {name}.key holds no key that can be read"),
    ):
        Path(f"{name}.key").write_bytes(text)
        done = web_host.state()
        assert done["result"] is False and done["comment"].startswith(sentence), done["comment"]
    Path(f"{name}.key").write_text(key)
    make_expired(name)
    done = web_host.state()
    assert done["result"] is False
    assert done["comment"].startswith(f"ckan:tls:certificate: {name}.pem has expired on 20"), done["comment"]
    with pytest.raises(FormulaError, match="has expired on 2020-01-02; renew it"):
        virtual_host.reload(web_host.site())
    assert web_host.file.read_text() == before and web_host.ask()[0] == 200


def test_a_port_that_another_program_has_is_refused_by_its_setting_and_nothing_is_touched(web_host):
    web_host.install()
    eventually(lambda: web_host.ask()[0], 200)
    before, listen = web_host.file.read_text(), web_host.host.pillar["web"]["listen"]
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for wanted in (str(port), f"127.0.0.1:{port}"):
            web_host.host.pillar["web"]["listen"] = [listen, wanted]
            done = web_host.state()
            assert done["result"] is False
            assert done["comment"].startswith("ckan:web:listen: ") and f"(process {os.getpid()})" in done["comment"]
            assert done["comment"].endswith(f" listens on port {port}; stop it, or choose another port")
    web_host.host.pillar["web"]["listen"] = f"192.0.2.77:{free_port()}"
    assert web_host.state()["comment"] == "ckan:web:listen: 192.0.2.77 is no address of this host; correct it"
    assert web_host.file.read_text() == before and web_host.ask()[0] == 200


def test_f27_long_names_and_paths_are_taken(stopped_web_host, monkeypatch):
    """With an nginx.conf that has Debian's sizes, and one that says its own."""
    web_host, long = stopped_web_host, "budget-and-spending-of-all-departments." + "x" * 30 + ".example.org"
    own = "    server_names_hash_bucket_size 128;\n"
    monkeypatch.setattr(nginx, "_MAIN", nginx._MAIN.replace(own, ""))
    web_host.host.pillar["aliases"] = [long, f"*.{long}"]
    web_host.host.pillar["site"] = "default"
    path = "/dataset/annual-budget-of-the-city-by-department-and-year-2026"
    web_host.host.pillar["web"]["health_path"] = path
    web_host.part.start()
    web_host.install()
    for name in (long, f"a.{long}"):
        eventually(lambda name=name: web_host.ask(path, name=name)[0], 200)
    assert health.health(web_host.site(), RELEASE)["release"] == RELEASE
    # Our own line is not taken for somebody else's.
    assert not web_host.state()["changes"]
    if web_host.server == "nginx":
        assert "\nserver_names_hash_bucket_size 128;" in web_host.file.read_text()
        web_host.part.http += f"\n{own}"
        web_host.part._write()
        assert "server_names_hash_bucket_size" not in virtual_host.render(web_host.site())
        web_host.install()
        web_host.part.conf.write_text(web_host.part.conf.read_text().replace("bucket_size 128", "bucket_size 64"))
        with pytest.raises(FormulaError, match=r"a name of 8\d letters, .* 64 in .*nginx.conf; write 128 there"):
            virtual_host.render(web_host.site())


def test_https_is_of_mozilla_s_intermediate_profile_with_http_2_and_hsts_where_it_is_set(web_host):
    web_host.with_tls(redirect=False)
    web_host.install()
    eventually(lambda: (web_host.ask()[0], web_host.ask(secure=True)[0]), (200, 200))
    assert "Strict-Transport-Security" not in web_host.ask(secure=True)[2]
    web_host.host.pillar["tls"]["hsts"] = 63072000
    web_host.install()
    header = "Strict-Transport-Security"
    eventually(lambda: web_host.ask(secure=True)[2].get(header), "max-age=63072000")
    assert header not in web_host.ask()[2]
    maintenance.on(web_host.site())
    assert web_host.ask("/x", secure=True)[2][header] == "max-age=63072000"
    maintenance.off(web_host.site())

    def spoken(**versions: ssl.TLSVersion) -> tuple[str | None, str | None]:
        context = ssl._create_unverified_context()
        context.set_alpn_protocols(["h2", "http/1.1"])
        context.set_ciphers("ALL:@SECLEVEL=0")
        for name, version in versions.items():
            setattr(context, name, version)
        with socket.create_connection(("127.0.0.1", web_host.tls_port)) as plain:
            with context.wrap_socket(plain, server_hostname=DOMAIN) as secure:
                return secure.version(), secure.selected_alpn_protocol()

    assert spoken() == ("TLSv1.3", "h2")
    assert spoken(maximum_version=ssl.TLSVersion.TLSv1_2) == ("TLSv1.2", "h2")
    with pytest.raises(OSError):
        spoken(minimum_version=ssl.TLSVersion.TLSv1, maximum_version=ssl.TLSVersion.TLSv1_1)


def test_the_access_log_has_the_release_that_answered_visitors_too(web_host):
    web_host.install()
    eventually(lambda: web_host.ask("/seen")[0], 200)
    assert web_host.ask("/visited?x=1", source="127.0.0.2")[0] == 200
    log = web_host.host.root / f"var/log/{web_host.site().paths.access_log.split('/')[-2]}/ckan-default-access.log"

    def lines() -> list[str]:
        return [line.split()[-1] for line in log.read_text().splitlines() if '"GET /visited?x=1 ' in line]

    eventually(lines, [RELEASE])


def test_assets_are_compressed_and_kept_by_browsers(web_host):
    assets = web_host.host.root / "var/lib/ckan/default/webassets/base"
    assets.mkdir(parents=True)
    (assets / "1f_main.css").write_text("body { color: red }\n" * 200)
    (assets / "1f_main.js").write_text("var a = 1;\n" * 200)
    web_host.install()
    eventually(lambda: web_host.ask()[0], 200)
    for name in ("1f_main.css", "1f_main.js"):
        packed = requests.get(
            f"http://127.0.0.1:{web_host.port}/webassets/base/{name}", headers={"Host": DOMAIN}, timeout=10
        )
        assert (packed.headers["Content-Encoding"], packed.headers["Vary"]) == ("gzip", "Accept-Encoding"), name
        assert "max-age=31536000" in packed.headers["Cache-Control"] and len(packed.content) > 2000


def test_a_server_that_is_down_reads_the_file_when_it_starts(stopped_web_host):
    web_host = stopped_web_host
    web_host.host.pillar["web"]["boot_timeout"] = 1
    problem = health.front_problem(web_host.site())
    assert problem.startswith(
        f"{web_host.server} does not listen on 127.0.0.1:{web_host.port} (Connection refused); start it"
    )
    done = web_host.install()
    assert "reads it when it starts" in done["comment"]
    with pytest.raises(FormulaError, match="does not answer .*Connection refused"):
        health.health(web_host.site(), RELEASE)
    web_host.part.start()
    assert health.front_problem(web_host.site()) == ""
    eventually(lambda: web_host.ask()[0], 200)


def test_health_names_the_release_that_answers_instead(web_host):
    web_host.install()
    eventually(lambda: web_host.ask()[0], 200)
    web_host.host.pillar["web"]["boot_timeout"] = 1
    with pytest.raises(FormulaError, match=f"is answered by release {RELEASE} instead of 20260101000001Z"):
        health.health(web_host.site(), "20260101000001Z")


def test_a_large_upload_limit_is_taken(web_host):
    web_host.host.pillar["web"]["upload_limit_mb"] = 50000
    web_host.install()
    eventually(lambda: web_host.ask(size=10)[0], 200)


def test_a_process_of_mod_wsgi_never_imports_from_two_releases(host):  # noqa: F811
    """A boot that failed is tried again in the same process, and by then `current` may name another release."""
    pointer = host.root / "etc/ckan/default/apache.wsgi"
    done = host.loaders().states["ckan_front.pointed"](name=str(pointer))
    assert done.result, done.comment
    tried = (
        "import os, runpy, signal\n"
        "signal.signal(signal.SIGINT, lambda *_: print('told to end'))\n"
        "for target in ('releases/1', 'releases/2'):\n"
        f"    link = {str(host.home / 'current')!r}\n"
        "    os.path.islink(link) and os.unlink(link)\n"
        "    os.symlink(target, link)\n"
        f"    try:\n        runpy.run_path({str(pointer)!r})\n    except Exception as exc:\n        print(repr(exc))\n"
    )
    host.home.mkdir(parents=True, exist_ok=True)
    said = subprocess.run(["/usr/bin/python3", "-c", tried], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[0].startswith("ModuleNotFoundError")
    assert said.splitlines()[1] == "told to end" and "this process belongs to " in said.splitlines()[2]


class ApacheSite(Site):
    """One web host with Apache before the stand-in for CKAN."""

    def __init__(self, base: Path) -> None:
        super().__init__(base, hosts=["web1"])
        self.apache = Apache(self.sandbox, self.root("web1") / "etc/apache2/sites-enabled")
        own = {"server": "apache", "apache_conf": str(self.apache.conf), "processes": 2}
        self.settings["web"] = {**self.settings["web"], **own}
        self.write_pillar(self.settings)


def test_a14_apache_serves_each_release_after_highstate_deploy_and_rollback(stub_base):
    site = ApacheSite(stub_base)
    try:
        site.apache.start()
        site.start()
        done = site.highstate()
        assert done["code"] == 0, done["text"]
        first = site.current("web1")
        assert (site.served(), site.get("/", "web1")[2]) == (["Hello one"], first)
        assert not [s for s in site.highstate()["hosts"]["web1"].values() if s["changes"] or s["result"] is not True]
        code, told = site.call("web1", "ckan_web.status")
        assert code == 0 and len(told["processes"]) == 2, told
        with Visitors(site.front_port) as visitors:
            second = site.good_deploy("Hello two")
            assert (site.served(), site.get("/", "web1")[2]) == (["Hello two"], second)
            done = site.deploy("rollback")
            assert done["code"] == 0, done["text"]
            assert (site.served(), site.get("/", "web1")[2]) == (["Hello one"], first)
        assert (visitors.failed, visitors.asked > 50) == ([], True)
        # One that answers at the check, and not as it should through the front door: the one before is back.
        site.write_host("web1", web={**site.settings["web"], "health_text": "no such text", "boot_timeout": 2})
        next_second()
        repos.commit_change(site.repo, "Hello three")
        done = site.deploy()
        assert done["code"] == 1 and "web1 failed at verify: " in done["text"], done["text"]
        assert (site.linked(), site.served()) == ([first], ["Hello one"])
    finally:
        site.destroy()
