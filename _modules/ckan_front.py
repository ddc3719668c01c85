"""
The front door: the site's file for nginx or Apache, and what answers through it.

The file is only ever there in a form that the server itself found valid. Nothing here knows how a release is built, or
how its processes are started (``ckan_web``). With ``web:server: none`` all of this is the business of somebody else.
"""

from __future__ import annotations

import contextlib
import difflib
import http.client
import os
import re
import shutil
import socket
import ssl
import time
from urllib.parse import urlsplit

import jinja2
from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_front"

POLL_SECONDS = 0.2
ATTEMPT_SECONDS = 1.0
# What was there before may be in any encoding, and is put back as it was.
UNDECODED = "surrogateescape"
# A server that was just told to listen on a port needs a moment to do so.
LISTEN_SECONDS = 3.0
_NOT_RUNNING = re.compile(r"No such file or directory|No such process|invalid PID number")
# What both servers say around the cause.
_NOISE = re.compile(r"^(Action '.*' failed|The Apache error log may|AH00558|nginx: configuration file .* test)")

_STAMP = re.compile(r"^(nginx: |\d{4}/\S+ \S+ )\[\w+\] (\d+#\d+: )?")


def __virtual__() -> str:
    return __virtualname__


def render(settings: dict | None = None) -> str:
    """
    Return the text of the site's file, for the server of ``web:server``.

    settings
        The settings; by default those of this minion.

    Raises ``CommandExecutionError`` where the server is ``none``, or the formula's file server lacks the template.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_front.render
    """
    settings = settings or __salt__["ckan_settings.get"]()
    server = settings["web"]["server"]
    if server == "none":
        raise CommandExecutionError("ckan:web:server is none, so there is no file of the site.")
    source = f"salt://ckan/files/{server}-site.conf.jinja"
    cached = __salt__["cp.cache_file"](source)
    if not cached:
        raise CommandExecutionError(f"the file server has no {source}; look at the master's file_roots.")
    with open(cached, encoding="utf-8") as handle:
        text = handle.read()
    jinja = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True
    )
    return jinja.from_string(text).render(settings=settings, **_facts(settings))


def changes(settings: dict | None = None) -> dict:
    """
    Say what ``install`` would change.

    settings
        The settings; by default those of this minion.

    Returns ``{path: what differs}``, empty when the file is as it should be.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_front.changes
    """
    settings = settings or __salt__["ckan_settings.get"]()
    path, new = _path(settings), render(settings)
    old = _read(path)
    if old == new:
        return {}
    if old is None:
        return {path: "new file"}
    return {path: "\n".join(difflib.unified_diff(old.splitlines(), new.splitlines(), "old", "new", lineterm=""))}


def install(settings: dict | None = None) -> dict:
    """
    Write the site's file, let the server test its configuration, and reload the server. Nothing is done when the file
    is as it should be.

    settings
        The settings; by default those of this minion.

    Returns ``{"path", "changes": {path: what differs}, "reloaded": bool}``; a server that does not run is not reloaded.
    Raises ``CommandExecutionError`` with the server's own words when it does not take the new file: the old one is
    back then, and the server goes on as before.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_front.install
    """
    settings = settings or __salt__["ckan_settings.get"]()
    path, differs = _path(settings), changes(settings)
    if not differs:
        return {"path": path, "changes": {}, "reloaded": False}
    old = _read(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    __salt__["ckan_file.write"](path, render(settings), errors=UNDECODED)
    try:
        reloaded = reload(settings)
    except CommandExecutionError:
        # Also when it was only the reload that failed: with the new file in place nobody would try it again.
        if old is None:
            os.unlink(path)
        else:
            __salt__["ckan_file.write"](path, old, errors=UNDECODED)
        raise
    return {"path": path, "changes": differs, "reloaded": reloaded}


def reload(settings: dict | None = None) -> bool:
    """
    Let the server test its configuration and then read it anew.

    settings
        The settings; by default those of this minion.

    Returns True, or False where the server does not run: it reads the configuration when it starts. Raises
    ``CommandExecutionError`` with the server's own words when the configuration is not valid; the one that runs stays.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_front.reload
    """
    settings = settings or __salt__["ckan_settings.get"]()
    server = settings["web"]["server"]
    if server == "none":
        return False
    tested = _server(settings, "-t")
    if tested["retcode"] != 0:
        raise CommandExecutionError(
            f"{server} finds its configuration not valid, so it goes on with the one before: {_words(tested)}; "
            "correct the pillar (ckan:web, ckan:tls) or the file that is named"
        )
    if server == "apache" and not _apache_runs(settings):
        return False  # it would start where it should be told to read
    done = _server(settings, *(["-s", "reload"] if server == "nginx" else ["-k", "graceful"]))
    if done["retcode"] != 0:
        if _NOT_RUNNING.search(done["stderr"]):
            return False
        raise CommandExecutionError(f"{server} cannot be reloaded: {_words(done)}; look at its error log")
    return True


def front_problem(settings: dict) -> str:
    """
    Say that nobody answers at the front door, or ``''``.

    settings
        The settings.

    CLI Example: not for the command line; ``ckan_release.plan`` uses it.
    """
    server = settings["web"]["server"]
    if server == "none" or settings["web"]["health_url"]:
        return ""
    _, host, port = _door(settings)
    deadline = time.monotonic() + LISTEN_SECONDS
    while True:
        try:
            socket.create_connection((host, port), timeout=LISTEN_SECONDS).close()
            return ""
        except OSError as exc:
            if time.monotonic() > deadline:
                why = exc.strerror or exc
                return f"{server} does not listen on {host}:{port} ({why}); start it, or run state.apply ckan"
        time.sleep(POLL_SECONDS)


def health(release: str, settings: dict, wait: bool = True) -> dict:
    """
    Ask through the front door, with the site's host name, and compare the release that answers.

    release
        The id of the release that must answer.
    settings
        The settings.
    wait
        Ask ``web:health_attempts`` times. Where the server is Apache ask again and again for ``web:boot_timeout``
        seconds, since its processes load a release only when they are asked to serve it.

    Returns ``{"status": 200, "release": ..., "seconds": ...}``. Raises ``CommandExecutionError`` when the status, the
    text or the release is another.

    CLI Example: not for the command line; use ``ckan_release.verify``.
    """
    web = settings["web"]
    if web["server"] == "none" and not web["health_url"]:
        if web["app"] == "none":
            return {"status": 0, "release": release, "seconds": 0.0}
        # No door that is known: as far as one of our own goes.
        path = __salt__["ckan_store.directory"](settings["paths"], release)
        return {"status": web["health_status"], "release": __salt__["ckan_web.ask"](path, settings), "seconds": 0.0}
    begun = time.monotonic()
    apache = web["server"] == "apache"
    attempts = 0
    while True:
        problem = _problem(release, settings)
        seconds = time.monotonic() - begun
        if not problem:
            return {"status": web["health_status"], "release": release, "seconds": round(seconds, 3)}
        attempts += 1
        enough = seconds >= web["boot_timeout"] if apache else attempts >= web["health_attempts"]
        if enough or not wait:
            break
        time.sleep(POLL_SECONDS if apache else ATTEMPT_SECONDS)
    scheme, host, port = _door(settings)
    times = f" ({attempts} attempts)" if attempts > 1 and not apache else ""
    raise CommandExecutionError(
        f"the front door {scheme}://{host}:{port}{web['health_path']} {problem}{times}; "
        f"see {__salt__['ckan_web.log'](release, settings)}"
    )


class _Tls(http.client.HTTPSConnection):
    """https to an address of this machine, under the name of the site."""

    def __init__(self, host: str, port: int, timeout: float, name: str):
        # Whether visitors trust the certificate is not what is asked here: it may be of a CA that this host does not
        # know, or stand in for one that is still to come, and the site answers all the same.
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        super().__init__(host, port, timeout=timeout, context=context)
        self._tls, self._name = context, name

    def connect(self) -> None:
        plain = socket.create_connection((self.host, self.port), self.timeout)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self._name)


def _problem(release: str, settings: dict) -> str:
    scheme, host, port = _door(settings)
    # A process of Apache loads CKAN while it is asked.
    timeout = settings["web"]["boot_timeout" if settings["web"]["server"] == "apache" else "health_timeout"]
    if scheme == "https":
        connection = _Tls(host, port, timeout, settings["domain"])
    else:
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        problem, answered = __salt__["ckan_web.judge"](connection, settings)
    except OSError as exc:
        return f"does not answer ({exc})"
    if not problem and answered != release:
        return f"is answered by release {answered or 'unknown'} instead of {release}"
    return problem


def _door(settings: dict) -> tuple[str, str, int]:
    """Scheme, host and port where the site is asked for."""
    if settings["web"]["health_url"]:
        url = urlsplit(settings["web"]["health_url"])
        return url.scheme, url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
    group, scheme = ("tls", "https") if settings["tls"]["certificate"] else ("web", "http")
    return scheme, "127.0.0.1", int(settings[group]["listen"].rpartition(":")[2])


def _facts(settings: dict) -> dict:
    """What the templates need besides the settings."""
    url = urlsplit(settings["site_url"])
    port = f":{url.port}" if url.scheme == "https" and url.port else ""
    secure = bool(settings["tls"]["certificate"])
    redirects = secure and settings["tls"]["redirect"]
    plain = _place(settings["web"]["listen"])
    health_path = settings["web"]["health_path"].partition("?")[0]
    return {
        "name": f"ckan_{settings['site'].replace('-', '_')}",
        "names": [settings["domain"], *settings["aliases"]],
        "before": __salt__["ckan_package.address"](settings),
        # Without TLS here a balancer before us may end it: visitors use the scheme of the site's address.
        "scheme": url.scheme,
        "redirect": {**plain, "to": f"https://{settings['domain']}{port}"} if redirects else None,
        "health": health_path,
        "health_pattern": re.escape(health_path),
        "maintenance": __salt__["ckan_maintenance.directory"](settings),
        # Where CKAN says its web assets are elsewhere, that is the site's own business.
        "assets": not {"ckan.webassets.path", "ckan.webassets.url"}
        & {*settings["config"], *settings["secrets"]["config"]},
        "serve": [*([] if redirects else [plain]), *([_place(settings["tls"]["listen"], True)] if secure else [])],
    }


def _place(listen: str, secure: bool = False) -> dict:
    """A port as the templates want it."""
    return {
        "listen": listen,
        "number": int(listen.rpartition(":")[2]),
        "define": f"ckan_listen_{re.sub(r'[^0-9A-Za-z]', '_', listen)}",
        "secure": secure,
    }


def _path(settings: dict) -> str:
    return settings["paths"][f"{settings['web']['server']}_site"]


def _server(settings: dict, *arguments: str) -> dict:
    """Run the program of the server, on the configuration that it runs with."""
    server = settings["web"]["server"]
    conf = settings["web"][f"{server}_conf"]
    program = {"nginx": "nginx", "apache": "apachectl"}[server]
    if not shutil.which(program):
        raise CommandExecutionError(f"{program} is not there; install {server}, or run state.apply ckan")
    own = []
    if conf:
        own = ["-p", os.path.dirname(conf), "-c", conf] if server == "nginx" else ["-f", conf]
    return __salt__["cmd.run_all"](
        [program, *own, *arguments], python_shell=False, output_loglevel="quiet", ignore_retcode=True, timeout=30,
        stdin="",
    )  # fmt: skip


def _apache_runs(settings: dict) -> bool:
    told = re.search(r'^PidFile: "(.+)"', _server(settings, "-t", "-D", "DUMP_RUN_CFG")["stdout"], re.M)
    with contextlib.suppress(OSError, ValueError):
        os.kill(int(_read(told.group(1) if told else "") or ""), 0)
        return True
    return False


def _words(done: dict) -> str:
    """The lines of a server's message that name the cause."""
    lines = [_STAMP.sub("", line.strip()) for line in done["stderr"].splitlines() + done["stdout"].splitlines()]
    telling = [line for line in lines if line and not _NOISE.match(line)]
    # Apache says where in one line, and what in the next.
    return " ".join(telling[-2 if len(telling) > 1 and telling[-2].endswith(":") else -1 :]) or "no message"


def _read(path: str) -> str | None:
    return __salt__["ckan_file.read"](path, None, UNDECODED)
