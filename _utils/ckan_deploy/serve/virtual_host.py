"""
The site's virtual host: its file for nginx or Apache, which that server reads anew when it has changed.

The file is only ever there in a form that the server itself found valid. Nothing here knows how a release is built, or
how its processes are started (``app_server``). With ``web:server: none`` all of this is the business of somebody else.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import shutil
from typing import Any
from urllib.parse import urlsplit

import jinja2

from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import maintenance, official_files
from ckan_deploy.system import files, processes, safely
from ckan_deploy.system.processes import Done

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
    Raises ``FormulaError`` with the server's own words when it does not take the new file: the old one is back then,
    and the server goes on as before.
    """
    differs, path = changes(site), _path(site)
    if not differs:
        return {"path": path, "changes": {}, "reloaded": False}
    old, link = _read(path), os.readlink(path) if os.path.islink(path) else ""
    safely.ensure(os.path.dirname(path))
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


def _facts(site: Site) -> dict[str, Any]:
    """What the templates need besides the settings."""
    settings = site.settings
    url = urlsplit(settings.site_url)
    port = f":{url.port}" if url.scheme == "https" and url.port else ""
    secure = bool(settings.tls.certificate)
    redirects = secure and settings.tls.redirect
    plain = _place(settings.web.listen)
    health_path = settings.web.health_path.partition("?")[0]
    return {
        "name": f"ckan_{settings.site.replace('-', '_')}",
        "names": [settings.domain, *settings.aliases],
        "before": official_files.address(site),
        # Without TLS here a load balancer before us may end it: visitors use the scheme of the site's address.
        "scheme": url.scheme,
        "redirect": {**plain, "to": f"https://{settings.domain}{port}"} if redirects else None,
        "health": health_path,
        "health_pattern": re.escape(health_path),
        "maintenance": maintenance.directory(site),
        # Where CKAN says its web assets are elsewhere, that is the site's own business.
        "assets": not {"ckan.webassets.path", "ckan.webassets.url"} & {*settings.config, *settings.secrets.config},
        "serve": [*([] if redirects else [plain]), *([_place(settings.tls.listen, True)] if secure else [])],
    }


def _place(listen: str, secure: bool = False) -> dict[str, Any]:
    """A port as the templates want it."""
    return {
        "listen": listen,
        "number": int(listen.rpartition(":")[2]),
        "define": f"ckan_listen_{re.sub(r'[^0-9A-Za-z]', '_', listen)}",
        "secure": secure,
    }


def _path(site: Site) -> str:
    return {"nginx": site.paths.nginx_site, "apache": site.paths.apache_site}[site.settings.web.server]


def _run(site: Site, *arguments: str) -> Done:
    """Run the program of the server, on the configuration that it runs with."""
    web = site.settings.web
    if web.server == "nginx":
        program, conf = "nginx", web.nginx_conf
        own = ["-p", os.path.dirname(conf), "-c", conf]
    else:
        program, conf = "apachectl", web.apache_conf
        own = ["-f", conf]
    if not shutil.which(program):
        raise FormulaError(f"{program} is not there; install {web.server}, or run state.apply ckan")
    return processes.run([program, *(own if conf else []), *arguments], timeout=30)


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
