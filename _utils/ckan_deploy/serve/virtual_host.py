"""
The site's virtual host: its file for nginx or Apache, which that server reads anew when it has changed.

The file is only ever there in a form that the server itself found valid. Nothing here knows how a release is built, or
how its processes are started (``app_server``). With ``web:server: none`` all of this is the business of somebody else.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import jinja2

from ckan_deploy.build.ini import UPLOADS
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import addresses, certificates, fitness, maintenance, official_files
from ckan_deploy.serve.uwsgi import LATER_SECONDS, NO_LIMIT
from ckan_deploy.system import files, processes, safely
from ckan_deploy.system.processes import Done

# Debian's ports.conf of Apache has these.
PORTS_CONF = (80, 443)
# Debian's nginx takes names of 46 bytes in its hashes, and ours get a word at the end.
MOST_VARIABLE = 32
# Mozilla's intermediate profile, version 5.7, without those that need parameters of one's own (DHE).
SUITES = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
)
# What gets much smaller.
COMPRESSED = (
    "text/css text/plain text/csv text/javascript application/javascript application/json application/xml "
    "application/rdf+xml application/ld+json image/svg+xml"
)
# Cookies and policies of a login extension; the answer's, and the cookies that come back.
HEADER_KB = 32
# What was there before may be in any encoding, and is put back as it was.
UNDECODED = "surrogateescape"
_NOT_RUNNING = re.compile(r"No such file or directory|No such process|invalid PID number")
# What both servers say around the cause.
_NOISE = re.compile(r"^(Action '.*' failed|The Apache error log may|AH00558|nginx: configuration file .* test)")

_STAMP = re.compile(r"^(nginx: |\d{4}/\S+ \S+ )\[\w+\] (\d+#\d+: )?")


def render(site: Site) -> str:
    """
    Return the text of the virtual host, for the server of ``web:server``. There is no secret in it.

    site
        The site.

    Raises ``FormulaError`` where the server is ``none``, or the formula's file server lacks the template.
    """
    server = site.settings.web.server
    if server == "none":
        raise FormulaError("ckan:web:server is none, so there is no file of the site.")
    source = f"salt://ckan/files/{server}-site.conf.jinja"
    cached = site.host.file(source)
    if not cached:
        raise FormulaError(f"the file server has no {source}; look at the master's file_roots.")
    jinja = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True
    )
    return jinja.from_string(files.read(cached)).render(settings=site.settings, **_facts(site))


def changes(site: Site) -> dict[str, str]:
    """
    Say what ``install`` would change.

    site
        The site.

    Returns ``{path: what differs}``, empty when the file is as it should be. Raises ``FormulaError`` as ``render``.
    """
    new, path = render(site), _path(site)
    old = _read(path)
    if old == new:
        return {}
    if old is None:
        return {path: "new file"}
    return {path: "\n".join(difflib.unified_diff(old.splitlines(), new.splitlines(), "old", "new", lineterm=""))}


def install(site: Site) -> dict[str, Any]:
    """
    Write the virtual host, let the server test its configuration, and reload the server. Nothing is done when the file
    is as it should be.

    site
        The site.

    Returns ``{"path", "changes": {path: what differs}, "reloaded": bool}``; a server that does not run is not reloaded.
    Raises ``FormulaError`` for a certificate or a port that the server cannot use, before anything is written; and with
    the server's own words when it does not take the new file: the old one is back then, and the server goes on as
    before.
    """
    differs, path = changes(site), _path(site)
    if not differs:
        return {"path": path, "changes": {}, "reloaded": False}
    _refuse(fitness.certificate_problem(site) or fitness.port_problem(site))
    old, link = _read(path), os.readlink(path) if os.path.islink(path) else ""
    for file in (path, site.paths.access_log):
        safely.ensure(os.path.dirname(file))
    files.write(path, render(site), errors=UNDECODED)
    try:
        reloaded = reload(site)
    except FormulaError:
        # Also when it was only the reload that failed: with the new file in place nobody would try it again.
        if link:
            official_files.put_link(link, path)
        elif old is None:
            os.unlink(path)
        else:
            files.write(path, old, errors=UNDECODED)
        raise
    return {"path": path, "changes": differs, "reloaded": reloaded}


def reload(site: Site) -> bool:
    """
    Let the server test its configuration and then read it anew.

    site
        The site.

    Returns True, or False where the server does not run: it reads the configuration when it starts. Raises
    ``FormulaError`` with the server's own words when the configuration is not valid; the one that runs stays.
    """
    server = site.settings.web.server
    if server == "none":
        return False
    _refuse(fitness.certificate_problem(site))
    tested = _run(site, "-t")
    if tested.retcode != 0:
        raise FormulaError(
            f"{server} finds its configuration not valid, so it goes on with the one before: {_words(tested)}; "
            "correct the pillar (ckan:web, ckan:tls) or the file that is named"
        )
    if server == "apache" and not _apache_runs(site):
        return False  # it would start where it should be told to read
    done = _run(site, *(["-s", "reload"] if server == "nginx" else ["-k", "graceful"]))
    if done.retcode != 0:
        if _NOT_RUNNING.search(done.stderr):
            return False
        raise FormulaError(f"{server} cannot be reloaded: {_words(done)}; look at its error log")
    return True


def reload_commands(site: Site) -> tuple[list[str], list[str]]:
    """
    Return the commands that test the server's configuration, and that let the server read it.

    site
        The site; ``web:server`` is one of the formula's.
    """
    program, own = _program(site)
    told = ["-s", "reload"] if site.settings.web.server == "nginx" else ["-k", "graceful"]
    return [program, *own, "-t"], [program, *own, *told]


def _refuse(problem: str) -> None:
    if problem:
        raise FormulaError(problem)


def _facts(site: Site) -> dict[str, Any]:
    """What the templates need besides the settings."""
    settings = site.settings
    url = urlsplit(settings.site_url)
    port = addresses.port(site)
    secure, nginx = certificates.https(site), settings.web.server == "nginx"
    redirects = secure and settings.tls.redirect
    plain = _group(settings.web.listen)
    own = addresses.own(site)
    path = addresses.path(site)
    health_path = path + settings.web.health_path.partition("?")[0]
    name = f"ckan_{settings.site.replace('-', '_')}"
    return {
        "name": name,
        # Of nginx's variables, which have a limit to their length.
        "var": name if len(name) <= MOST_VARIABLE else f"ckan_{hashlib.sha256(name.encode()).hexdigest()[:12]}",
        "hash": _hash_size(site) if nginx else 0,
        # Said in another way since 1.25.1.
        "http2": "directive" if nginx and secure and _version(site) >= (1, 25, 1) else "listen",
        "path": path,
        "path_pattern": re.escape(path),
        "names": [settings.domain, *settings.aliases],
        "before": official_files.address(site),
        # Without TLS here a load balancer before us may end it: visitors use the scheme of the site's address.
        "scheme": url.scheme,
        # What a browser names in the address of a form; a load balancer, or we, may listen elsewhere.
        "port": port,
        "wait": settings.web.request_timeout + LATER_SECONDS if settings.web.request_timeout else NO_LIMIT,
        # A form is more than the file in it; what is too large for CKAN alone is told by CKAN.
        "body_mb": _largest_upload(site) + 1,
        "header_kb": HEADER_KB,
        "suites": SUITES,
        "compressed": COMPRESSED,
        "own": own,
        "own_pattern": "|".join(map(re.escape, own)),
        "redirect": {**plain, "to": f"https://{settings.domain}{port}"} if redirects else None,
        "secure": secure,
        "acme": certificates.answered(site),
        "health_pattern": re.escape(health_path),
        "maintenance": maintenance.directory(site),
        # Where CKAN says its web assets are elsewhere, that is the site's own business.
        "assets": not {"ckan.webassets.path", "ckan.webassets.url"} & {*settings.config, *settings.secrets.config},
        "serve": [*([] if redirects else [plain]), *([_group(settings.tls.listen, True)] if secure else [])],
    }


def _group(values: Iterable[str], secure: bool = False) -> dict[str, Any]:
    """Where one scheme is served, as the templates want it."""
    places = list(dict.fromkeys(map(addresses.Place.of, values)))
    wide = {place.port for place in places if place.everywhere}
    return {
        "secure": secure,
        "nginx": [str(place).removeprefix("0.0.0.0:") for place in addresses.listens(values)],
        # A port alone is both families for Apache, and each port that it listens on is named once.
        "apache": [
            {"listen": str(place), "define": f"ckan_listen_{re.sub(r'[^0-9A-Za-z]', '_', str(place))}"}
            for place in places
            if place.port not in PORTS_CONF and (place.everywhere or place.port not in wide)
        ],
        "hosts": list(dict.fromkeys(f"*:{place.port}" if place.everywhere else str(place) for place in places)),
    }


def _hash_size(site: Site) -> int:
    """What nginx needs for the longest name, where that is more than it takes by default; 0 where others say it."""
    longest = max(map(len, (site.settings.domain, *site.settings.aliases)))
    # A pointer, the length in two bytes, the name, and a pointer behind the last one.
    wanted = next(size for size in (64, 128, 256, 512) if longest + 2 <= size - 16)
    if wanted == 64:
        return 0
    told = _said(site, "-T")
    if '"server_names_hash_bucket_size" directive is duplicate' in told:
        return 0  # ours and somebody else's
    said = re.split(r"^# configuration file (.+):$", told, flags=re.M)
    for file, text in zip(said[1::2], said[2::2], strict=True):
        there = re.search(r"^\s*server_names_hash_bucket_size\s+(\d+)", text, re.M)
        if there and file != _path(site) and int(there[1]) < wanted:
            raise FormulaError(
                f"ckan:domain or ckan:aliases has a name of {longest} letters, which is too long for "
                f"server_names_hash_bucket_size {there[1]} in {file}; write {wanted} there"
            )
        if there and file != _path(site):
            return 0
    return wanted


def _version(site: Site) -> tuple[int, ...]:
    told = re.search(r"nginx/([0-9.]+)", _said(site, "-v"))
    return tuple(map(int, told[1].split("."))) if told else ()


def _said(site: Site, question: str) -> str:
    """What nginx tells of itself; '' where it is still to be installed."""
    if not shutil.which("nginx"):
        return ""
    done = _run(site, question)
    return done.stdout + done.stderr


def _largest_upload(site: Site) -> int:
    """In MB: of our setting and of CKAN's own, where the pillar has them."""
    config = {**site.settings.config, **site.settings.secrets.config}
    given = [str(config.get(name, "")) for name in UPLOADS]
    return max(site.settings.web.upload_limit_mb, *(int(value) if value.isdecimal() else 0 for value in given))


def _path(site: Site) -> str:
    return {"nginx": site.paths.nginx_site, "apache": site.paths.apache_site}[site.settings.web.server]


def _run(site: Site, *arguments: str) -> Done:
    """Run the program of the server, on the configuration that it runs with."""
    program, own = _program(site)
    if not shutil.which(program):
        raise FormulaError(f"{program} is not there; install {site.settings.web.server}, or run state.apply ckan")
    return processes.run([program, *own, *arguments], timeout=30)


def _program(site: Site) -> tuple[str, list[str]]:
    """The program of the server, and what names the configuration that it runs with."""
    web = site.settings.web
    if web.server == "nginx":
        return "nginx", ["-p", os.path.dirname(web.nginx_conf), "-c", web.nginx_conf] if web.nginx_conf else []
    return "apachectl", ["-f", web.apache_conf] if web.apache_conf else []


def _apache_runs(site: Site) -> bool:
    told = re.search(r'^PidFile: "(.+)"', _run(site, "-t", "-D", "DUMP_RUN_CFG").stdout, re.M)
    with contextlib.suppress(OSError, ValueError):
        os.kill(int(_read(told.group(1) if told else "") or ""), 0)
        return True
    return False


def _words(done: Done) -> str:
    """The lines of a server's message that name the cause."""
    lines = [_STAMP.sub("", line.strip()) for line in done.stderr.splitlines() + done.stdout.splitlines()]
    telling = [line for line in lines if line and not _NOISE.match(line)]
    # Apache says where in one line, and what in the next.
    return " ".join(telling[-2 if len(telling) > 1 and telling[-2].endswith(":") else -1 :]) or "no message"


def _read(path: str) -> str | None:
    return files.read(path, None, UNDECODED)
