"""Smoke pages against real HTTP servers on the sockets of releases; what an answer holds is up to the test."""

from __future__ import annotations

import http.server
import json
import shutil
import socketserver
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from ckan_deploy.errors import FormulaError
from ckan_deploy.serve import answers, maintenance, smoke, uwsgi, visit
from ckan_deploy.settings import mask
from ckan_deploy.settings.parts import Page
from ckan_deploy.settings.resolve import resolve
from fakes import fake_site, least_pillar

OLD, NEW = "20260101000000Z", "20260102000000Z"
PASSWORD = "marked-password-of-a-visitor"
LOGIN_FORM = (
    '<form action="/search"><input name="q"></form><form action="/user/login?next=x" method="post">'
    '<input type="hidden" name="_csrf_token" value="token&amp;1"><input name="login">'
    '<input type="password" name="password"></form>'
)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the function `pages` of its server says: a status, or a function that does it all."""

    def do_GET(self) -> None:
        # Read in any case: a connection that is closed over unread data is reset.
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.server.asked.append(self.path)
        said = self.server.pages.get(self.path, 200)
        if callable(said):
            said(self)
        else:
            self.say(said)

    do_POST = do_GET

    def say(self, status: int, body: str = "page", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body.encode())

    def address_string(self) -> str:
        return "socket"

    def log_message(self, *args: Any) -> None:
        """Nothing."""


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, place: str, pages: dict[str, Any]) -> None:
        super().__init__(place, Handler)
        self.pages, self.asked = pages, []


Serve = Callable[..., Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Let something listen on the socket of a release, with what pages answer."""
    servers = []

    def run(site, release: str, pages: dict[str, Any] | None = None) -> Server:
        place = Path(answers.socket_of(site.releases.directory(release)))
        place.parent.mkdir()
        servers.append(Server(str(place), pages or {}))
        threading.Thread(target=servers[-1].serve_forever, args=(0.05,), daemon=True).start()
        return servers[-1]

    yield run
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def root() -> Iterator[Path]:
    """Short: the path of a socket has a limit."""
    path = Path(tempfile.mkdtemp(prefix="ckan-u-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def make(root: Path):
    """A site with a live release and a new one that was checked; its web server is none of ours."""

    def run(found: tuple[str, ...] = (), live: bool = True, secrets: dict[str, Any] | None = None, **web: Any):
        (root / "usr/lib/ckan/releases").mkdir(parents=True)
        pillar = least_pillar()
        site = fake_site(root, web={"server": "none", **web}, secrets={**pillar["secrets"], **(secrets or {})})
        for release in (OLD, NEW):
            site.releases.create(release)
            for state in ("built", "checked"):
                site.releases.set_state(release, state)
        site.release(NEW).note(check={"pages": list(found), "examples": ["/dataset/trees"]})
        if live:
            site.releases.set_state(OLD, "live")
            site.releases.point(OLD)
        return site

    return run


def refusal(site) -> str:
    with pytest.raises(FormulaError) as told:
        smoke.before(site, NEW)
    return str(told.value)


def hang(handler: Handler) -> None:
    time.sleep(5)


def test_the_pages_of_ckan_of_plugins_and_those_that_are_listed_are_asked_once_each(make, serve):
    site = make(
        ("/harvest", "/", "/secret\n", "no path", "/dataset/changes_multiple"),
        smoke=["/about"],
        smoke_skip=["/group/"],
        warm=["/warm"],
    )
    serve(site, OLD)
    server = serve(site, NEW)
    assert smoke.before(site, NEW) == {"live": {}, "known": {}}
    assert sorted(server.asked) == sorted(
        ["/about", "/", "/dataset/", "/organization/", "/user/login", "/api/3/action/status_show", "/warm",
         "/dataset/trees", "/harvest"]
    )  # fmt: skip


def test_h14_a_page_that_fails_in_the_new_release_only_stops(make, serve):
    site = make(("/harvest",))
    serve(site, OLD)
    serve(site, NEW, {"/harvest": 500})
    said = refusal(site)
    assert said.startswith(f"pages of {NEW} fail: /harvest answers 500 (the live release answers 200); see "), said
    assert said.endswith("mend the page, or leave it out by ckan:web:smoke_skip"), said


TEMPLATE = """\
2026-11-29 14:14:41,620 ERROR [ckan.config.middleware.flask_app] better_stats/svg/info.svg
Traceback (most recent call last):
  File "site-packages/jinja2/environment.py", line 942, in handle_exception
    raise rewrite_traceback_stack(source=source)
  File "ckanext/stats/templates/card.html", line 21, in top-level template code
    {% include "stats/info.svg" %}
jinja2.exceptions.TemplateNotFound: stats/info.svg
2026-11-29 14:14:41,628 INFO  [ckan.config.middleware.flask_app]  500 /stats render time 1.003 seconds
"""


def test_h14_the_log_tells_the_cause_also_where_the_exception_has_no_name_of_an_error(make, serve):
    site = make(("/stats",))
    serve(site, OLD)
    serve(site, NEW, {"/stats": 500})
    log = Path(uwsgi.log(site, NEW))
    log.parent.mkdir(parents=True)
    log.write_text(TEMPLATE)
    assert "; its log says: jinja2.exceptions.TemplateNotFound: stats/info.svg; see " in refusal(site)
    log.write_text(TEMPLATE + "ValueError: no such page\nended\n")
    assert "; its log says: ValueError: no such page; see " in refusal(site)


def test_h14_a_page_that_is_new_and_broken_stops(make, serve):
    site = make(("/harvest",))
    serve(site, OLD, {"/harvest": 404})
    serve(site, NEW, {"/harvest": 500})
    assert "/harvest answers 500 (the live release answers 404)" in refusal(site)


def test_a_page_that_fails_in_both_releases_is_a_warning(make, serve):
    site = make(("/harvest",))
    serve(site, OLD, {"/harvest": 503})
    serve(site, NEW, {"/harvest": 500})
    noted = smoke.before(site, NEW)
    assert noted["known"] == {"/harvest": {"status": 500, "problem": "answers 500"}}
    # The switch, and the stage after it.
    site.release(NEW).note(finish_due="now", smoke=noted)
    site.releases.set_state(NEW, "live")
    assert smoke.after(site, NEW) == ["/harvest answers 500, as in the release before"]


def test_a_page_that_needs_a_login_or_a_right_is_none_that_fails_unless_it_is_listed(make, serve):
    site = make(("/a", "/b", "/c"), smoke=["/listed", {"path": "/moved", "status": 302}])
    serve(site, OLD)
    serve(site, NEW, {"/a": 302, "/b": 401, "/c": 403, "/moved": 302})
    smoke.before(site, NEW)
    site = fake_site(site.settings.root, web={"server": "none", "smoke": [{"path": "/c"}]})
    said = refusal(site)
    assert "/c answers 403 instead of 200" in said and said.endswith("mend the page, or correct ckan:web:smoke"), said


def test_without_a_live_release_every_page_that_fails_stops_until_it_is_left_out(make, serve):
    site = make(("/broken",), live=False)
    serve(site, NEW, {"/broken": 500})
    assert f"pages of {NEW} fail: /broken answers 500; see " in refusal(site)
    site = fake_site(site.settings.root, web={"server": "none", "smoke_skip": ["/broken"]})
    assert smoke.before(site, NEW) == {"live": {}, "known": {}}


def test_a_live_release_that_is_not_there_excuses_nothing(make, serve):
    site = make(("/broken",))
    serve(site, NEW, {"/broken": 500})
    assert "/broken answers 500" in refusal(site)


def test_a_text_that_is_missing_stops(make, serve):
    site = make(smoke=[{"path": "/about", "text": "Impressum"}])
    serve(site, OLD, {"/about": lambda handler: handler.say(200, "Das Impressum")})
    serve(site, NEW)
    assert "/about answers without the text of web:smoke" in refusal(site)


@pytest.mark.slow
def test_a_page_that_hangs_is_said_with_its_setting_and_holds_up_no_other(make, serve):
    site = make(("/slow", "/well"), smoke_timeout=1)
    serve(site, OLD)
    serve(site, NEW, {"/slow": hang})
    begun = time.monotonic()
    said = refusal(site)
    assert "/slow gives no answer within 1 seconds (ckan:web:smoke_timeout)" in said and "/well" not in said, said
    assert time.monotonic() - begun < 3


@pytest.mark.slow
def test_a_page_that_never_stops_writing_is_ended(make, serve):
    def drip(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(50):
            handler.wfile.write(b"x")
            time.sleep(0.1)

    site = make(("/drip",), smoke_timeout=1)
    serve(site, OLD)
    serve(site, NEW, {"/drip": drip})
    begun = time.monotonic()
    assert "/drip gives no answer within 1 seconds" in refusal(site)
    assert time.monotonic() - begun < 3


@pytest.mark.slow
def test_all_pages_together_have_a_limit(make, serve):
    slow = {f"/slow{number}": hang for number in range(9)}
    site = make(tuple(slow), smoke_total=1)
    serve(site, OLD)
    serve(site, NEW, slow)
    begun = time.monotonic()
    said = refusal(site)
    assert "gives no answer within 1 seconds (ckan:web:smoke_total)" in said, said
    assert "was not asked: all pages together took 1 seconds (ckan:web:smoke_total)" in said, said
    assert time.monotonic() - begun < 4


def test_fast_pages_cost_little(make, serve):
    site = make(tuple(f"/page{number}" for number in range(20)))
    serve(site, OLD)
    serve(site, NEW)
    begun = time.monotonic()
    smoke.before(site, NEW)
    assert time.monotonic() - begun < 1


def test_a_page_behind_a_login_is_asked_with_the_session_that_the_login_form_gives(make, serve):
    forms = []

    def login(handler: Handler) -> None:
        if handler.command == "GET":
            handler.say(200, LOGIN_FORM, Set_Cookie="ckan=before; Path=/; HttpOnly")
        else:
            forms.append((parse_qs(handler.body), handler.headers["Cookie"], handler.headers["Referer"]))
            handler.say(302, Location="/dashboard", Set_Cookie="ckan=in; Secure; Path=/")

    def admin(handler: Handler) -> None:
        handler.say(200 if handler.headers["Cookie"] == "ckan=in" else 403)

    pages = {"/user/login": login, "/user/login?next=x": login, "/ckan-admin/": admin}
    page = {"path": "/ckan-admin/", "login": "visitor"}
    site = make(smoke=[page], secrets={"smoke": {"visitor": PASSWORD}})
    serve(site, OLD, pages)
    serve(site, NEW, pages)
    assert smoke.before(site, NEW) == {"live": {}, "known": {}}
    fields = {"_csrf_token": ["token&1"], "login": ["visitor"], "password": [PASSWORD]}
    assert forms[0] == (fields, "ckan=before", "https://data.example.org/user/login")
    assert len(forms) == 2


def test_a_login_that_is_refused_is_said_without_the_password(make, serve):
    refused = {"/user/login": lambda handler: handler.say(200, LOGIN_FORM)}
    site = make(smoke=[{"path": "/x", "login": "visitor"}], secrets={"smoke": {"visitor": PASSWORD}})
    serve(site, OLD, {**refused, "/user/login?next=x": 302})
    serve(site, NEW, {**refused, "/user/login?next=x": lambda handler: handler.say(200, PASSWORD)})
    said = refusal(site)
    assert "/x (as visitor) cannot be asked: the login is refused with 200" in said and PASSWORD not in said
    # Nor where settings are shown, or a program quotes it.
    assert PASSWORD not in json.dumps(mask.shown(site.settings)) and PASSWORD not in repr(site.settings)
    assert PASSWORD not in mask.text(f"said {PASSWORD}", site.settings)


def test_a_page_without_a_login_form_is_said(make, serve):
    site = make(smoke=[{"path": "/x", "login": "visitor"}], secrets={"smoke": {"visitor": PASSWORD}})
    serve(site, OLD)
    serve(site, NEW, {"/user/login": 404})
    assert "/x (as visitor) cannot be asked: /user/login answers 404 without a login form" in refusal(site)


def test_what_is_no_http_is_said(make, serve):
    site = make(("/odd",))
    serve(site, OLD)
    serve(site, NEW, {"/odd": lambda handler: handler.wfile.write(b"what?\r\n\r\n")})
    assert "/odd gives no answer (BadStatusLine)" in refusal(site)


def test_a_rollback_and_a_repair_are_not_held_up_by_pages(make, serve):
    site = make(("/broken",))
    server = serve(site, OLD, {"/broken": 500})
    assert smoke.after(site, OLD) == []
    site.releases.set_state(OLD, "retired")
    site.releases.set_state(OLD, "live")
    site.release(OLD).note(finish_due="now")
    assert smoke.after(site, OLD) == [] and server.asked == []


def test_pages_are_found_before_a_release_that_was_never_checked(make):
    site = make()
    assert [page.path for page in smoke.pages(site, {})] == list(smoke.DEFAULTS)
    assert all(isinstance(page, Page) and page.status == 0 for page in smoke.pages(site, {}))


def test_nobody_at_a_socket_is_no_answer_of_a_page(make):
    site = make()
    (answer,) = visit.visit(site, [Page("/", status=0)], smoke._socket(site, NEW))
    assert answer.status == visit.NOBODY and answer.problem.startswith("does not answer (")


@pytest.mark.parametrize(
    ("web", "said"),
    [
        ({"smoke": "/about"}, "ckan:web:smoke must be a list of paths, or of dictionaries"),
        ({"smoke": ["about"]}, "ckan:web:smoke:0:path is not valid ('about')"),
        ({"smoke": [{"status": 200}]}, "ckan:web:smoke:0:path is missing"),
        ({"smoke": [{"path": "/", "status": 20}]}, "ckan:web:smoke:0:status is 20; use 100 or more"),
        ({"smoke": [{"path": "/", "stats": 200}]}, "ckan:web:smoke:0:stats is not a setting; did you mean"),
        ({"smoke": ["/", {"path": "/"}]}, "ckan:web:smoke lists / twice"),
        ({"smoke": [{"path": "/", "login": "visitor"}]}, "ckan:secrets:smoke:visitor is missing"),
        ({"smoke": ["/a"], "smoke_skip": ["/a"]}, "/a stands in ckan:web:smoke and in ckan:web:smoke_skip"),
        ({"smoke_timeout": 0}, "ckan:web:smoke_timeout is 0; use 1 or more"),
    ],
)
def test_wrong_settings_are_refused_by_name(web, said):
    with pytest.raises(FormulaError) as told:
        resolve(least_pillar(web=web))
    assert said in str(told.value)


def test_a_path_alone_must_answer_200():
    assert resolve(least_pillar(web={"smoke": ["/about"]})).web.smoke == (Page("/about", status=200),)


@pytest.fixture
def front() -> Iterator[Server]:
    """A web server before the release, at an address of its own."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.pages, server.asked = {}, []
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def address(front: Server) -> str:
    return f"http://127.0.0.1:{front.server_address[1]}"


def switched(site, noted: dict[str, Any]) -> None:
    site.release(NEW).note(finish_due="now", smoke=noted)
    site.releases.set_state(NEW, "live")
    site.releases.point(NEW)


def test_h14_under_apache_the_pages_are_asked_after_the_switch_and_compared_with_those_before(make, front):
    site = make(("/harvest", "/old"), server="apache", health_url=address(front))
    front.pages = {"/old": 500}
    noted = smoke.before(site, NEW)
    assert noted == {"live": {"/old": {"status": 500, "problem": "answers 500"}}, "known": {}}
    switched(site, noted)
    assert smoke.after(site, NEW) == ["/old answers 500, as in the release before"]
    front.pages = {"/old": 500, "/harvest": 500}
    with pytest.raises(FormulaError) as told:
        smoke.after(site, NEW)
    said = str(told.value)
    assert said.startswith(f"pages of {NEW} fail at the web server: /harvest answers 500; see Apache's error log"), said


def test_a_page_that_the_web_server_alone_breaks_is_seen_after_the_switch(make, serve, front):
    site = make(("/large",), health_url=address(front))
    serve(site, NEW)
    noted = smoke.before(site, NEW)
    switched(site, noted)
    front.pages = {"/large": 502}
    with pytest.raises(FormulaError, match="fail at the web server: /large answers 502; see "):
        smoke.after(site, NEW)


@pytest.mark.slow
def test_a_page_that_is_known_to_hang_is_not_asked_of_visitors_server_again(make, serve, front):
    site = make(("/slow",), health_url=address(front), smoke_timeout=1)
    front.pages = {"/slow": hang}
    serve(site, NEW, {"/slow": hang})
    noted = smoke.before(site, NEW)
    switched(site, noted)
    front.asked.clear()
    (said,) = smoke.after(site, NEW)
    assert said == "/slow gives no answer within 1 seconds (ckan:web:smoke_timeout), as in the release before"
    assert "/slow" not in front.asked and "/" in front.asked


def test_in_maintenance_the_pages_are_asked_of_the_releases_themselves(make, serve, front):
    site = make(("/broken",), server="nginx", health_url=address(front))
    switch = Path(maintenance._switch(site))
    switch.parent.mkdir(parents=True)
    switch.write_text("{}")
    assert maintenance.status(site)["on"]
    serve(site, OLD, {"/broken": 500})
    serve(site, NEW, {"/broken": 500})
    noted = smoke.before(site, NEW)
    switched(site, noted)
    assert smoke.after(site, NEW) == ["/broken answers 500, as in the release before"]
    assert front.asked == []
