"""
How an answer over HTTP is judged, whoever gave it: the app server on its own socket, or the web server before it.
"""

from __future__ import annotations

import http.client
import os
import socket
import struct
from typing import NamedTuple

from ckan_deploy.releases.site import Site
from ckan_deploy.system.unix_http import UnixConnection

HEADER = "X-CKAN-Release"
# What the kernel says of who listens on a socket: process, user, group.
_PEER = struct.Struct("3i")
PEER_SECONDS = 5
# No page is larger, and an answer without end does not fill the memory of root's process.
MOST_BYTES = 16 * 2**20


class Answer(NamedTuple):
    """
    What is wrong with an answer, and the release that gave it, each '' when there is none; and its status, 0 where
    nobody speaks HTTP.
    """

    problem: str
    release: str
    status: int = 0


def headers(site: Site) -> dict[str, str]:
    """
    Return the headers that our own requests have.

    site
        The site.
    """
    return {"Host": site.settings.domain, "User-Agent": "ckan-formula"}


def judge(site: Site, connection: http.client.HTTPConnection, below: str = "") -> Answer:
    """
    Ask over a connection what the health check asks, and judge the answer.

    site
        The site.
    connection
        A connection that is not yet open.
    below
        The path that visitors have the portal below.

    Returns ``Answer``. Raises ``OSError`` when nobody answers.
    """
    web = site.settings.web
    try:
        connection.request("GET", below + web.health_path, headers=headers(site))
        response = connection.getresponse()
        body = response.read(MOST_BYTES)
    except http.client.HTTPException as exc:
        return Answer(f"does not speak HTTP ({type(exc).__name__})", "")
    finally:
        connection.close()
    answered = response.getheader(HEADER, "")
    if response.status != web.health_status:
        return Answer(f"answers {response.status} instead of {web.health_status}", answered, response.status)
    if web.health_text and web.health_text not in body.decode("utf-8", "replace"):
        return Answer("answers without the expected text (web:health_text)", answered, response.status)
    return Answer("", answered, response.status)


def socket_of(path: str) -> str:
    """
    Return the socket that the app server of a release listens on.

    path
        The directory of the release.
    """
    return os.path.join(path, "run", "web.sock")


def pid(path: str) -> int:
    """
    Return the process that listens on the socket of a release, uWSGI's master; 0 where none does.

    path
        The directory of the release.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PEER_SECONDS)
        try:
            connection.connect(socket_of(path))
            told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        except OSError:
            return 0
    return int(_PEER.unpack(told)[0])


def at_socket(site: Site, path: str) -> Answer:
    """
    Ask a release on its own socket, and judge the answer: that of another release is wrong, too.

    site
        The site.
    path
        The directory of the release.
    """
    place, release = socket_of(path), os.path.basename(path)
    if not os.path.exists(place):
        return Answer("is not listening", "")
    try:
        answer = judge(site, UnixConnection(place, site.settings.web.boot_timeout))
    except OSError as exc:
        return Answer(f"does not answer ({exc})", "")
    if answer.problem or answer.release == release:
        return answer
    return answer._replace(problem=f"is answered by release {answer.release or 'unknown'}")


def socket_problem(site: Site, path: str) -> str:
    """
    Say what is wrong with the answer of a release's own socket; '' when all is well.

    site, path
        As for ``at_socket``.
    """
    return at_socket(site, path).problem
