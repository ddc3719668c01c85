"""Several pages of one server, asked side by side, with a login or without; each has its time, and all have theirs."""

from __future__ import annotations

import concurrent.futures
import contextlib
import html.parser
import http.client
import http.cookies
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple
from urllib.parse import urlencode, urljoin, urlsplit

from ckan_deploy.releases.site import Site
from ckan_deploy.serve import addresses, answers
from ckan_deploy.settings.parts import Page

# Makes a connection that is not yet open; what it is told is the seconds that connecting and each read may take.
Connect = Callable[[float], http.client.HTTPConnection]

# The status of a server that is not there at all; 0 is that of one which gives no answer.
NOBODY = -1
# At once: fewer than one app server answers by default, of which visitors have the live one.
THREADS = 4
CHUNK = 2**16
# Of a page in which no text is looked for, the beginning is enough.
FIRST_BYTES = 2**20
LOGIN_PAGE = "/user/login"


class Answer(NamedTuple):
    """The status of an answer, and what is wrong with it, '' for nothing."""

    status: int
    problem: str


class _Response(NamedTuple):
    status: int
    body: str
    headers: http.client.HTTPMessage


class _NoAnswer(Exception):
    """Nothing came; ``status`` is that of ``Answer``."""

    def __init__(self, problem: str, status: int = 0) -> None:
        super().__init__(problem)
        self.status = status


def visit(site: Site, pages: Iterable[Page], connect: Connect, below: str = "") -> list[Answer]:
    """
    Ask a server for pages.

    site
        The site.
    pages
        The pages.
    connect
        Makes a connection to the server.
    below
        The path that the server has the portal below; an app server has none.

    Returns the answers, in the order of the pages.
    """
    pages = list(pages)
    visitor = _Visitor(site, connect, below)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        names = sorted({page.login for page in pages if page.login})
        visitor.sessions = dict(zip(names, pool.map(visitor.log_in, names), strict=True))
        return list(pool.map(visitor.answer, pages))


class _Visitor:
    """Who asks one server. ``sessions`` are cookies by login, or what went wrong with it."""

    def __init__(self, site: Site, connect: Connect, below: str) -> None:
        web = site.settings.web
        self.site, self.connect, self.below = site, connect, below
        self.sessions: Mapping[str, dict[str, str] | Answer] = {}
        # A process of Apache loads CKAN while it is asked.
        waits = web.boot_timeout if web.server == "apache" else 0
        self.seconds = max(web.smoke_timeout, waits)
        self.total = web.smoke_total + waits
        self.deadline = time.monotonic() + self.total

    def answer(self, page: Page) -> Answer:
        """Ask for one page, and judge what comes."""
        session = self.sessions.get(page.login, {})
        if isinstance(session, Answer):
            return session
        try:
            got = self._ask("GET", page.path, session, most=answers.MOST_BYTES if page.text else FIRST_BYTES)
        except _NoAnswer as exc:
            return Answer(exc.status, str(exc))
        if page.status and got.status != page.status:
            return Answer(got.status, f"answers {got.status} instead of {page.status}")
        if not page.status and got.status >= 500:
            return Answer(got.status, f"answers {got.status}")
        if page.text and page.text not in got.body:
            return Answer(got.status, "answers without the text of web:smoke")
        return Answer(got.status, "")

    def log_in(self, name: str) -> dict[str, str] | Answer:
        """Log in as the form of CKAN's login page does."""
        try:
            shown = self._ask("GET", LOGIN_PAGE, {})
            form = _Form(shown.body)
            if form.action is None:
                return Answer(
                    shown.status, f"cannot be asked: {LOGIN_PAGE} answers {shown.status} without a login form"
                )
            cookies = _cookies(shown.headers)
            fields = {**form.hidden, "login": name, "password": str(self.site.settings.secrets.smoke[name])}
            target = urlsplit(urljoin(LOGIN_PAGE, form.action))
            # CKAN names the path of the site; what is asked here is without it.
            path = target.path.removeprefix(addresses.path(self.site))
            path = f"{path}?{target.query}" if target.query else path
            done = self._ask("POST", path, cookies, urlencode(fields))
        except _NoAnswer as exc:
            return Answer(exc.status, f"cannot be asked: the login {exc}")
        if done.status not in (302, 303):
            return Answer(done.status, f"cannot be asked: the login is refused with {done.status}")
        return {**cookies, **_cookies(done.headers)}

    def _ask(
        self, method: str, path: str, cookies: Mapping[str, str], body: str | None = None, most: int = FIRST_BYTES
    ) -> _Response:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise _NoAnswer(f"was not asked: all pages together took {self.total} seconds (ckan:web:smoke_total)")
        seconds = min(self.seconds, left)
        headers = self._headers(path, cookies, body)
        over = threading.Event()
        try:
            connection = self.connect(seconds)
            connection.connect()
        except (OSError, http.client.HTTPException) as exc:
            raise _NoAnswer(f"does not answer ({exc})", NOBODY) from exc
        with _cut_after(connection, seconds, over):
            try:
                connection.request(method, self.below + path, body, headers)
                response = connection.getresponse()
                text = _read(response, most)
                if not over.is_set():
                    return _Response(response.status, text.decode("utf-8", "replace"), response.headers)
            except (OSError, http.client.HTTPException, ValueError) as exc:
                if not over.is_set() and not isinstance(exc, TimeoutError):
                    raise _NoAnswer(f"gives no answer ({type(exc).__name__})") from exc
        setting = "smoke_total" if seconds < self.seconds else "smoke_timeout"
        raise _NoAnswer(f"gives no answer within {seconds:.0f} seconds (ckan:web:{setting})")

    def _headers(self, path: str, cookies: Mapping[str, str], body: str | None) -> dict[str, str]:
        headers = {**answers.headers(self.site), "Connection": "close"}
        # As browsers do: CKAN compares it with where a form comes from.
        headers["Host"] += addresses.port(self.site)
        if cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
        if body is not None:
            # As a browser does, which CKAN looks at where the site is https.
            scheme = urlsplit(self.site.settings.site_url).scheme
            headers["Referer"] = f"{scheme}://{headers['Host']}{LOGIN_PAGE}"
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        return headers


@contextlib.contextmanager
def _cut_after(connection: http.client.HTTPConnection, seconds: float, over: threading.Event) -> Iterator[None]:
    """End a connection when its time is over, however busily the other side writes; ``over`` tells of it."""
    channel = connection.sock

    def cut() -> None:
        over.set()
        with contextlib.suppress(OSError):
            # Not by the method of TLS, which would take its object away from who reads.
            socket.socket.shutdown(channel, socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        connection.close()


def _read(response: http.client.HTTPResponse, most: int) -> bytes:
    parts, size = [], 0
    while size < most and (part := response.read(min(CHUNK, most - size))):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _cookies(headers: http.client.HTTPMessage) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in headers.get_all("Set-Cookie", []):
        with contextlib.suppress(http.cookies.CookieError):
            found.update({name: morsel.coded_value for name, morsel in http.cookies.SimpleCookie(line).items()})
    return found


class _Form(html.parser.HTMLParser):
    """The form of a page that asks for a password: where it is sent, None for no such form, and its hidden fields."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.action: str | None = None
        self.hidden: dict[str, str] = {}
        self._action, self._hidden, self._inside = "", dict[str, str](), False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        about = {name: value or "" for name, value in attrs}
        if tag == "form":
            self._action, self._hidden, self._inside = about.get("action", ""), {}, True
        elif tag == "input" and self._inside:
            if about.get("type") == "hidden" and "name" in about:
                self._hidden[about["name"]] = about.get("value", "")
            if about.get("name") == "password":
                # Its other fields may follow: the same dictionary gets them.
                self.action, self.hidden = self._action, self._hidden

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._inside = False
