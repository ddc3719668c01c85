"""Settings that follow from other settings, and settings that do not go together."""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Any
from urllib.parse import urlsplit

from ckan_deploy.settings import acme, languages, places
from ckan_deploy.settings.origins import has_secret, requirement_problems

# What a unix socket's path may have at most, in bytes.
SOCKET_LIMIT = 107
_SITE_URL = re.compile(
    r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?((?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*)"
)
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_NAME_HINT = "write one such as data.example.org (letters beyond a-z as xn--...)"


def derive(settings: dict[str, Any], pillar: dict[str, Any]) -> None:
    """
    Fill in the defaults that follow from other settings.

    settings
        All settings, by group and name.
    pillar
        What the pillar itself says.
    """
    paths, root, site = settings["paths"], settings["root"], settings["site"]
    if "home" not in pillar["paths"] and site != "default":
        paths["home"] += f"/sites/{site}"
    if "home" not in pillar["paths"]:
        paths["home"] = paths["home"].format(root=root)
    server = "apache2" if settings["web"]["server"] == "apache" else "nginx"
    for name, value in paths.items():
        if name != "home" and name not in pillar["paths"]:
            paths[name] = value.format(root=root, site=site, home=paths["home"], server=server)
    if "uv" not in pillar["installer"]:
        settings["installer"]["uv"] = settings["installer"]["uv"].format(shared=paths["shared"])
    database, store = settings["database"], settings["datastore"]
    if not store["user"]:
        store.update(user=database["user"], password=store["password"] or database["password"])
    for name in ("host", "port"):
        store[name] = store[name] or database[name]
    if settings["tls"]["acme"]["email"] and not (settings["tls"]["certificate"] or settings["tls"]["key"]):
        settings["tls"].update(acme.files(settings))
    if settings["web"]["server"] == "apache":
        settings["web"]["app"] = "none"  # CKAN runs in its own processes
    for extension in settings["extensions"].values():
        extension["host_keys"] = [*extension["host_keys"], *settings["git"]["host_keys"]]
    if not settings["domain"] and _SITE_URL.fullmatch(settings["site_url"]):
        settings["domain"] = urlsplit(settings["site_url"]).hostname or ""


def check_together(settings: dict[str, Any], problems: list[str]) -> None:
    """
    Look for settings that do not go together.

    settings
        All settings, by group and name.
    problems
        Gets a sentence for each thing that is wrong.
    """
    places.check_paths(settings, problems)
    places.check_users(settings, problems)
    _check_datastore(settings, problems)
    for option in sorted(settings["config"].keys() & settings["secrets"]["config"].keys()):
        problems.append(f"{option} stands in ckan:config and in ckan:secrets:config; remove one")
    for name in sorted(settings["environment"].keys() & settings["secrets"]["environment"].keys()):
        problems.append(f"{name} stands in ckan:environment and in ckan:secrets:environment; remove one")
    for name in sorted(settings["services"].keys() & settings["workers"].keys()):
        problems.append(f"ckan:services:{name} and ckan:workers:{name} have one name; give one of them another")
    if any(map(has_secret, settings["base"]["packages"])):
        problems.append("ckan:base:packages has an item with a password or a token in its address; take it out")
    for name in ("packages", "override"):
        problems += requirement_problems(f"ckan:{name}", settings[name])
    _check_indexes(settings["installer"], problems)
    _check_shipping(settings["build"], problems)
    _check_names(settings, problems)
    _check_web(settings, problems)
    languages.check(settings["web"], problems)
    _check_smoke(settings["web"], settings["secrets"]["smoke"], problems)
    acme.check(settings, problems, _host)


def _check_indexes(installer: dict[str, Any], problems: list[str]) -> None:
    if any(not re.match(r"https?://", url) or re.search(r"\s", url) for url in installer["index_urls"]):
        problems.append("ckan:installer:index_urls has an item that is no address with https:// or http://; correct it")
    if installer["index_urls"] and installer["kind"] == "pip":
        problems.append(
            "ckan:installer:index_urls is for uv: pip has no order among several indexes; use uv, or index_url alone"
        )


def _check_shipping(build: dict[str, Any], problems: list[str]) -> None:
    address = "://" in build["store"]
    if address and has_secret(build["store"]):
        problems.append("ckan:build:store has a password or a token in its address; hosts fetch from it without one")
    if address and not build["publish"]:
        problems.append(
            "ckan:build:publish is missing, while ckan:build:store is an address; name the directory of the builder "
            "whose files are found there"
        )
    if build["publish"] and not address:
        problems.append("ckan:build:publish is for a ckan:build:store that is an address; take it out")
    paths = {"store": "" if address else build["store"], "publish": build["publish"]}
    problems += filter(None, (places.path_problem(f"ckan:build:{name}", path) for name, path in paths.items() if path))
    if build["only"] and not (build["ship"] and build["host"]):
        problems.append(
            "ckan:build:only is set, so this host builds for others; set ckan:build:ship and build:host, too"
        )


def _check_datastore(settings: dict[str, Any], problems: list[str]) -> None:
    store = settings["datastore"]
    if store["name"]:
        problems += [
            f"ckan:datastore:{name} is missing; a datastore needs it, set it in the pillar"
            for name in ("password", "read_password")
            if not store[name]
        ]
        if store["name"] == settings["database"]["name"] and store["host"] == settings["database"]["host"]:
            problems.append("ckan:datastore:name is the database of CKAN itself; give the datastore one of its own")


def _check_web(settings: dict[str, Any], problems: list[str]) -> None:
    web, tls = settings["web"], settings["tls"]
    if web["server"] == "nginx" and web["app"] == "none":
        problems.append("ckan:web:app is none, but nginx asks an app server; use uwsgi, or server: none")
    for name, group in (("web:listen", web), ("tls:listen", tls)):
        problems += [
            f"ckan:{name} ({listen}) has no port from 1 to 65535; use one such as '8080'"
            for listen in group["listen"]
            if not _port(listen.rpartition(":")[2])
        ]
        if not group["listen"]:
            problems.append(f"ckan:{name} is an empty list; name a port such as '8080', or leave it out")
    if bool(tls["certificate"]) != bool(tls["key"]):
        there, missing = ("certificate", "key") if tls["certificate"] else ("key", "certificate")
        problems.append(f"ckan:tls:{missing} is missing, while ckan:tls:{there} is set; set both or none")
    both = [listen for listen in web["listen"] if listen in tls["listen"]]
    if tls["certificate"] and both:
        problems.append(f"ckan:tls:listen and ckan:web:listen are both {both[0]}; give each a port of its own")
    socket = os.path.join(settings["paths"]["releases"], "YYYYMMDDhhmmssZ", "run", "web.sock")
    if web["app"] == "uwsgi" and len(socket.encode()) > SOCKET_LIMIT:
        problems.append(
            f"{socket} is longer than the {SOCKET_LIMIT} bytes a unix socket may have; choose a shorter ckan:paths:home"
        )


def _check_smoke(web: dict[str, Any], passwords: dict[str, Any], problems: list[str]) -> None:
    logins = {page["login"] for page in web["smoke"] if page["login"]}
    for login in sorted(logins):
        if login not in passwords:
            problems.append(f"ckan:secrets:smoke:{login} is missing, whom ckan:web:smoke logs in; set it in the pillar")
        elif not isinstance(passwords[login], str) or not passwords[login]:
            problems.append(f"ckan:secrets:smoke:{login} must be a password; put it in quotes in the pillar")
    for path in sorted({page["path"] for page in web["smoke"]} & {*web["smoke_skip"]}):
        problems.append(f"{path} stands in ckan:web:smoke and in ckan:web:smoke_skip; remove one")


def _check_names(settings: dict[str, Any], problems: list[str]) -> None:
    """The names that visitors type: those of `domain` and `aliases`, and the one in `site_url`."""
    match = _SITE_URL.fullmatch(settings["site_url"])
    if not match:
        problems.append(
            "ckan:site_url must be http(s)://host, with :port or a /path where it has one, and no more; correct it"
        )
        return
    host, port, path = match.groups()
    if not _host(host.strip("[]")):
        problems.append(f"ckan:site_url has {host} in it, which is not a host name; {_NAME_HINT}")
    elif not _host(settings["domain"]):
        problems.append(f"ckan:domain ({settings['domain']}) is not a host name; {_NAME_HINT}")
    if port and not _port(port[1:]):
        problems.append(f"ckan:site_url has the port {port[1:]}; use one from 1 to 65535")
    if path and any("ckan.root_path" in options for options in (settings["config"], settings["secrets"]["config"])):
        problems.append(f"ckan.root_path follows from ckan:site_url, which has {path}; take it out of ckan:config")
    for alias in settings["aliases"]:
        if not _host(alias.removeprefix("*.")):
            problems.append(f"ckan:aliases has the item {alias!r}, which is not a host name; {_NAME_HINT}")


def _host(name: str) -> bool:
    """Whether this is a host name as DNS has them, or an address."""
    try:
        # The zone of an address (fe80::1%eth0) may hold anything, and no visitor's request has one.
        return "%" not in str(ipaddress.ip_address(name))
    except ValueError:
        return len(name) <= 253 and all(_LABEL.fullmatch(label) for label in name.split("."))


def _port(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9]{1,5}", text)) and 1 <= int(text) <= 65535
