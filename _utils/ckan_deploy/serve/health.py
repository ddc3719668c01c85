"""What answers visitors on this host: the web server, asked with the site's host name."""

from __future__ import annotations

import errno
import http.client
import socket
import ssl
import time
from collections.abc import Sequence
from typing import Any

from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import addresses, app_server, uwsgi
from ckan_deploy.serve.answers import judge

POLL_SECONDS = 0.2
ATTEMPT_SECONDS = 1.0
# A server that was just told to listen on a port needs a moment to do so.
LISTEN_SECONDS = 3.0
# Nobody is there: the other family of addresses may be served.
NOBODY = (errno.ECONNREFUSED, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.ENETUNREACH, errno.EHOSTUNREACH)


class _Plain(http.client.HTTPConnection):
    """http to the first of some addresses of this machine at which somebody listens."""

    def __init__(self, places: Sequence[addresses.Address], timeout: float) -> None:
        super().__init__(places[0].host, places[0].port, timeout=timeout)
        self._places = places

    def connect(self) -> None:
        self.sock = _reached(self._places, self.timeout)


class _Tls(http.client.HTTPSConnection):
    """The same by https, under the name of the site."""

    def __init__(self, places: Sequence[addresses.Address], timeout: float, name: str) -> None:
        # Whether visitors trust the certificate is not what is asked here: it may be of a CA that this host does not
        # know, or stand in for one that is still to come, and the site answers all the same.
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        super().__init__(places[0].host, places[0].port, timeout=timeout, context=context)
        self._places, self._tls, self._name = places, context, name

    def connect(self) -> None:
        self.sock = self._tls.wrap_socket(_reached(self._places, self.timeout), server_hostname=self._name)


def health(site: Site, release: str, wait: bool = True) -> dict[str, Any]:
    """
    Ask the web server, with the site's host name, and compare the release that answers.

    site
        The site.
    release
        The id of the release that must answer.
    wait
        Ask ``web:health_attempts`` times. Where the server is Apache ask again and again for ``web:boot_timeout``
        seconds, since its processes load a release only when they are asked to serve it.

    Returns ``{"status": 200, "release": ..., "seconds": ...}``. Raises ``FormulaError`` when the status, the text or
    the release is another.
    """
    web = site.settings.web
    if web.server == "none" and not web.health_url:
        return _of_own_server(site, release)
    begun = time.monotonic()
    apache = web.server == "apache"
    attempts = 0
    while True:
        address, problem = _problem(site, release)
        seconds = time.monotonic() - begun
        if not problem:
            return {"status": web.health_status, "release": release, "seconds": round(seconds, 3)}
        attempts += 1
        enough = seconds >= web.boot_timeout if apache else attempts >= web.health_attempts
        if enough or not wait:
            break
        time.sleep(POLL_SECONDS if apache else ATTEMPT_SECONDS)
    times = f" ({attempts} attempts)" if attempts > 1 and not apache else ""
    asked = f"{address}{addresses.path(site)}{web.health_path}"
    failed = FormulaError(f"the web server at {asked} {problem}{times}; see {app_server.log_place(site, release)}")
    raise failed.with_details(uwsgi.said(site, release))


def leave(site: Site, release: str) -> None:
    """
    Ask Apache until none of its processes has a release, or still loads one, that visitors are not sent to any more.
    One that still loads CKAN would find its files gone, and answer 500; one that has loaded it ends when it is asked.
    Nobody new is asked after ``web:boot_timeout`` seconds. The app servers behind nginx are stopped instead.

    site
        The site.
    release
        The id of the release.
    """
    if site.settings.web.server != "apache":
        return
    deadline = time.monotonic() + site.settings.web.boot_timeout
    # One that loads CKAN has nothing of it at first.
    while {release, ""} & {row["release"] for row in app_server.processes(site)} and time.monotonic() < deadline:
        _problem(site, release)
        time.sleep(POLL_SECONDS)


def front_problem(site: Site) -> str:
    """
    Say that no web server listens, or ``''``.

    site
        The site.
    """
    server = site.settings.web.server
    if server == "none" or site.settings.web.health_url:
        return ""
    places = addresses.asked(site)
    deadline = time.monotonic() + LISTEN_SECONDS
    while True:
        why = [_refusal(address) for address in places]
        if not all(why):
            return ""
        if time.monotonic() > deadline:
            where = " or ".join(str(addresses.Place(address.host, address.port)) for address in places)
            return f"{server} does not listen on {where} ({why[0]}); start it, or run state.apply ckan"
        time.sleep(POLL_SECONDS)


def connection(site: Site, seconds: float) -> http.client.HTTPConnection:
    """
    Return a connection to the web server of this host, where somebody listens; not yet open.

    site
        The site.
    seconds
        What connecting and each read may take.
    """
    return _connection(site, addresses.asked(site), seconds)


def _refusal(address: addresses.Address) -> str:
    """Why nobody can be connected to; '' where somebody can."""
    try:
        socket.create_connection((address.host, address.port), timeout=LISTEN_SECONDS).close()
    except OSError as exc:
        return exc.strerror or str(exc)
    return ""


def _of_own_server(site: Site, release: str) -> dict[str, Any]:
    """As ``health``, where the web server is not ours and its address is not known: as far as our app server goes."""
    if site.settings.web.app == "none":
        return {"status": 0, "release": release, "seconds": 0.0}
    answered = app_server.ask(site, site.releases.directory(release))
    return {"status": site.settings.web.health_status, "release": answered, "seconds": 0.0}


def _problem(site: Site, release: str) -> tuple[addresses.Address, str]:
    """What is wrong with the answer, '' for nothing, and where that was."""
    web = site.settings.web
    # A process of Apache loads CKAN while it is asked.
    timeout = web.boot_timeout if web.server == "apache" else web.health_timeout
    first: tuple[addresses.Address, str] | None = None
    for address in addresses.asked(site):
        try:
            problem, answered, _ = judge(site, _connection(site, [address], timeout), addresses.path(site))
        except OSError as exc:
            first = first or (address, f"does not answer ({exc})")
            if exc.errno not in NOBODY:
                break
            continue
        if not problem and answered != release:
            problem = f"is answered by release {answered or 'unknown'} instead of {release}"
        return address, problem
    assert first
    return first


def _connection(site: Site, places: Sequence[addresses.Address], seconds: float) -> http.client.HTTPConnection:
    if places[0].scheme == "https":
        return _Tls(places, seconds, site.settings.domain)
    return _Plain(places, seconds)


def _reached(places: Sequence[addresses.Address], timeout: float | None) -> socket.socket:
    """A connection to the first address at which somebody listens. Raises what the first one of them all did."""
    first: OSError | None = None
    for place in places:
        try:
            return socket.create_connection((place.host, place.port), timeout)
        except OSError as exc:
            first = first or exc
            if exc.errno not in NOBODY:
                break
    assert first
    raise first
