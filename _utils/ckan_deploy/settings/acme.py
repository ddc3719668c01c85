"""What follows from the settings of ACME, and what does not go together with them."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any


def files(settings: dict[str, Any]) -> dict[str, str]:
    """
    Return where certbot keeps the certificate and its key.

    settings
        All settings, by group and name.
    """
    place = f"{settings['root']}/etc/letsencrypt/live/ckan-{settings['site']}"
    return {"certificate": f"{place}/fullchain.pem", "key": f"{place}/privkey.pem"}


def check(settings: dict[str, Any], problems: list[str], is_host: Callable[[str], bool]) -> None:
    """
    Look for settings that do not go together with ACME.

    settings
        All settings, by group and name.
    problems
        Gets a sentence for each thing that is wrong.
    is_host
        Says whether something is a host name.
    """
    tls, acme, key = settings["tls"], settings["tls"]["acme"], "ckan:tls:acme"
    if not acme["email"]:
        return
    if {name: tls[name] for name in ("certificate", "key")} != files(settings):
        problems.append(f"ckan:tls:certificate and ckan:tls:key are set beside {key}, which makes both; remove one")
    if settings["web"]["server"] == "none":
        problems.append(f"{key} needs nginx or Apache to answer the CA, but ckan:web:server is none; remove one")
    served = [settings["domain"], *settings["aliases"]]
    for name in acme["names"] or served:
        where = f"{key}:names" if acme["names"] else "ckan:domain or ckan:aliases"
        if name.startswith("*."):
            problems.append(
                f"{where} has {name}: no CA gives a certificate for * over http; list in {key}:names what it is for"
            )
        elif not is_host(name) or _is_address(name):
            problems.append(f"{where} has {name}, which is no host name that a CA gives a certificate for; correct it")
        elif not any(name == one or one == f"*.{name.partition('.')[2]}" for one in served):
            problems.append(f"{where} has {name}, which is neither ckan:domain nor in ckan:aliases; add it there")


def _is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False
