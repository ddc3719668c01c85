"""What the web server would not take, or would take and then not do: told before its file is touched."""

from __future__ import annotations

import contextlib
import datetime
import errno
import socket

import psutil
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from ckan_deploy.releases.site import Site
from ckan_deploy.serve import addresses, certificates
from ckan_deploy.serve.addresses import Place
from ckan_deploy.system import files

_PROGRAMS = {"nginx": ("nginx",), "apache": ("apache2", "httpd")}


def certificate_problem(site: Site) -> str:
    """
    Say what is wrong with the certificate or its key; ``''`` for nothing, and where there is none.

    site
        The site.
    """
    tls = site.settings.tls
    if not certificates.https(site):
        return ""
    texts = {name: files.read(getattr(tls, name), None, "replace") for name in ("certificate", "key")}
    for name, text in texts.items():
        if text is None:
            return f"ckan:tls:{name}: there is no file {getattr(tls, name)}; put it there, or correct the setting"
    try:
        certificate = x509.load_pem_x509_certificates((texts["certificate"] or "").encode())[0]
    except (ValueError, IndexError):
        return f"ckan:tls:certificate: {tls.certificate} holds no certificate that can be read (PEM); correct it"
    try:
        key = serialization.load_pem_private_key((texts["key"] or "").encode(), None)
    except TypeError:
        return f"ckan:tls:key: {tls.key} has a passphrase, and the web server has nobody to ask; take it off"
    except (ValueError, UnsupportedAlgorithm):
        return f"ckan:tls:key: {tls.key} holds no key that can be read (PEM); correct it"
    wanted = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if certificate.public_key().public_bytes(*wanted) != key.public_key().public_bytes(*wanted):
        return f"ckan:tls:key: {tls.key} is not the key of {tls.certificate}; put the two that belong together there"
    ends = certificate.not_valid_after_utc
    # One of ACME is renewed by the same highstate.
    if ends < datetime.datetime.now(datetime.timezone.utc) and not tls.acme.email:
        return f"ckan:tls:certificate: {tls.certificate} has expired on {ends:%Y-%m-%d}; renew it"
    return ""


def port_problem(site: Site) -> str:
    """
    Say that another program has a port of the web server, or that an address is none of this host; ``''`` for neither.

    site
        The site.
    """
    web, tls = site.settings.web, site.settings.tls
    for setting, values in (("web:listen", web.listen), ("tls:listen", tls.listen if certificates.https(site) else ())):
        for place in addresses.listens(values):
            if problem := _place_problem(place, _PROGRAMS.get(web.server, ())):
                return f"ckan:{setting}: {problem}"
    return ""


def _place_problem(place: Place, own: tuple[str, ...]) -> str:
    holders = _holders(place)
    if any(name in own for name, _ in holders):
        return ""
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                try:
                    probe.bind(address)
                    probe.listen(1)
                except OSError as exc:
                    if exc.errno == errno.EADDRINUSE:
                        who = " or ".join(f"{name} (process {pid})" for name, pid in holders) or "another program"
                        return f"{who} listens on port {place.port}; stop it, or choose another port"
                    if exc.errno == errno.EADDRNOTAVAIL:
                        return f"{place.host} is no address of this host; correct it"
    return ""


def _holders(place: Place) -> list[tuple[str, int]]:
    """Name and process of the programs that listen on a port, where that can be seen."""
    found = {}
    with contextlib.suppress(psutil.Error):
        for listening in psutil.net_connections("tcp"):
            if listening.status == psutil.CONN_LISTEN and listening.pid and listening.laddr[1:] == (place.port,):
                with contextlib.suppress(psutil.Error):
                    found[listening.pid] = psutil.Process(listening.pid).name()
    # Of a program with several processes the first one.
    return sorted({name: pid for pid, name in sorted(found.items(), reverse=True)}.items())
