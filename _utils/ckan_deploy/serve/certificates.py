"""Whether the site is served by https, and where the web server finds the challenges of an ACME CA."""

from __future__ import annotations

import os
from typing import Any

from ckan_deploy.releases.site import Site

# Under the web root: where a CA asks for a challenge. Its peers ask elsewhere, where nobody is asked in turn.
CHALLENGES = "/.well-known/acme-challenge/"
OF_PEERS = "/.well-known/ckan-acme-challenge/"


def https(site: Site) -> bool:
    """
    Say whether the virtual host serves https: it has a certificate. One that ACME gets may be still to come.

    site
        The site.
    """
    tls = site.settings.tls
    there = os.path.exists(tls.certificate) and os.path.exists(tls.key)
    return there if tls.acme.email else bool(tls.certificate)


def webroot(site: Site) -> str:
    """
    Return the directory of root's that certbot puts challenges into.

    site
        The site.
    """
    return os.path.join(site.paths.config, "acme")


def names(site: Site) -> list[str]:
    """
    Return the names that the certificate of ACME is for.

    site
        The site.
    """
    return list(dict.fromkeys(site.settings.tls.acme.names or (site.settings.domain, *site.settings.aliases)))


def answered(site: Site) -> dict[str, Any]:
    """
    Return what the templates need to answer challenges, empty without ACME.

    site
        The site.
    """
    acme = site.settings.tls.acme
    if not acme.email:
        return {}
    return {"root": webroot(site), "challenges": CHALLENGES, "of_peers": OF_PEERS, "peers": list(acme.peers)}
