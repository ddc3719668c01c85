"""Where the web server of a host listens, where it is asked from this very machine, and what visitors call the site."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

from ckan_deploy.releases.site import Site
from ckan_deploy.serve import certificates

DEFAULT_PORTS = {"http": 80, "https": 443}
LOOPBACK = ("127.0.0.1", "::1")
# Every address, by family.
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class Place(NamedTuple):
    """A value of ``web:listen`` or ``tls:listen``; the host is ``""`` where it is a port alone: IPv4 and IPv6."""

    host: str
    port: int

    @classmethod
    def of(cls, listen: str) -> Place:
        """
        Read one.

        listen
            A port, or address:port.
        """
        host, _, port = listen.rpartition(":")
        return cls(host.strip("[]"), int(port))

    @property
    def everywhere(self) -> bool:
        """Whether it is every address, of one family at least."""
        return not self.host or self.host in _ANY

    def __str__(self) -> str:
        """``host:port``, as servers and people write it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}".lstrip(":")


class Address(NamedTuple):
    """Where the site is asked for on this machine."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        """``scheme://host:port``."""
        return f"{self.scheme}://{Place(self.host, self.port)}"


def listens(values: Iterable[str]) -> list[Place]:
    """
    Return where a server is to listen, each address once. A port alone is every address of IPv4, and of IPv6 where the
    kernel has it.

    values
        The values of a setting.
    """
    found = []
    for place in map(Place.of, values):
        if place.host:
            found.append(place)
        else:
            found += [Place(host, place.port) for host in (_ANY if has_ipv6() else ["0.0.0.0"])]
    return list(dict.fromkeys(found))


def loopback(place: Place) -> str:
    """
    Return the address that this machine asks where a server listens.

    place
        Where it listens.
    """
    return _ANY.get(place.host, place.host)


def has_ipv6() -> bool:
    """Say whether a server can listen on IPv6 on this machine."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def asked(site: Site) -> list[Address]:
    """
    Return where this machine's web server may be asked for the site: any of them will do. By https where there is a
    certificate, since a redirect to it says nothing about the site.

    site
        The site.
    """
    web, tls = site.settings.web, site.settings.tls
    if web.health_url:
        url = urlsplit(web.health_url)
        return [Address(url.scheme, url.hostname or "", url.port or DEFAULT_PORTS[url.scheme])]
    scheme, values = ("https", tls.listen) if certificates.https(site) else ("http", web.listen)
    return [
        Address(scheme, host, place.port)
        for place in map(Place.of, values)
        for host in ([_ANY.get(place.host, place.host)] if place.host else LOOPBACK)
    ]


def own(site: Site) -> list[str]:
    """
    Return the addresses that a request from this very machine may come from: loopback, and those that the web server is
    asked on, since the kernel takes the same one for both ends.

    site
        The site.
    """
    found = list(LOOPBACK)
    for address in asked(site):
        try:
            found.append(str(ipaddress.ip_address(address.host)))
        except ValueError:
            continue  # a name
    return [host for host in dict.fromkeys(found) if host in LOOPBACK or _is_here(host)]


def port(site: Site) -> str:
    """
    Return the port that visitors' browsers name, such as ``:8443``; ``""`` where it is that of the scheme.

    site
        The site.
    """
    url = urlsplit(site.settings.site_url)
    return f":{url.port}" if url.port and url.port != DEFAULT_PORTS[url.scheme] else ""


def path(site: Site) -> str:
    """
    Return the path that the portal is below, such as ``/data``; ``""`` where it has its host name for itself.

    site
        The site.
    """
    return urlsplit(site.settings.site_url).path


def _is_here(host: str) -> bool:
    """Whether an address is one of this machine, and not that of a load balancer before it."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True
