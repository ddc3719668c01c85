"""The parts of the pillar that there may be any number of: extensions, hooks, services, cron jobs, pages. And ACME."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from ckan_deploy.settings.rules import setting

# Of a page that is asked for: what an address may have, without quotes.
PAGE = r"/[0-9A-Za-z_.~!$&()*+,;=:@%/?-]*"
# The name of a queue of jobs.
QUEUE = r"[A-Za-z0-9_.:][A-Za-z0-9_.:-]*"


@frozen
class Extension:
    """An extension: one origin, and how it is installed."""

    remove: bool = setting(False, "Leave the extension out here, though a shared part of the pillar has it.")
    url: str = setting("", "Git: address of the origin (https, ssh, git, or a path).")
    ref: str = setting("", "Git: branch, tag or commit (also a short one).")
    subdirectory: str = setting("", "Git: directory in the repository that holds the Python package.")
    submodules: bool = setting(True, "Git: check out submodules, too.")
    upstream: str = setting("", "Git: the origin that this one is a fork of, for comparison.")
    locked: bool = setting(False, "Git: refuse a tag that was moved since the last release.")
    deploy_key: str = setting("", "Git over ssh: the private key of this origin alone.", kind="text", secret=True)
    host_keys: tuple[str, ...] = setting(
        (), "Git over ssh: lines of a known_hosts file, beside `git:host_keys`.", kind="lines"
    )
    token: str = setting("", "Git over https: token or password.", secret=True)
    token_user: str = setting("oauth2", "Git over https: the user that goes with the token.")
    version: str = setting("", "Package index: a version, or specifiers such as `>=1.4,<2`.")
    archive: str = setting("", "Archive: a wheel or sdist, `https://...` or `salt://...`.")
    hash: str = setting("", "Archive: `sha256=...` of it.", pattern=r"(sha256|sha512)[=:][0-9A-Fa-f]+")
    requirements: str = setting("auto", "`auto`, `none`, or a file in the repository.")
    build: tuple[str, ...] = setting(
        (),
        "Git: lines of sh that the build user runs in the package's directory before it is built, in the sandbox, "
        "such as `npm ci && npm run build`. What they write is in the release. Manifests show them: no secrets here.",
        kind="lines",
    )
    init: tuple[str, ...] = setting(
        (),
        "Commands of CKAN, without `ckan -c INI`, that set the extension up in the database: each release runs them on "
        "one host after its migrations, so they must bear a repetition.",
        kind="lines",
    )
    override: tuple[str, ...] = setting((), "Requirements that win over all others, CKAN's own included.", kind="lines")
    patches: tuple[str, ...] = setting((), "Diffs to this extension, in order.", pattern=r"salt://\S+")

    @property
    def kind(self) -> str:
        """The kind of its origin: ``git``, ``index`` or ``archive``."""
        return "index" if self.version else "archive" if self.archive else "git"


@frozen
class Hook:
    """What is done before or after a stage."""

    stage: str = setting(
        "",
        "The stage.",
        required=True,
        choices=(
            "build",
            "check",
            "migrate",
            "start",
            "activate",
            "verify",
            "index",
            "finish",
            "rollback",
            "downgrade",
            "abort",
        ),
    )
    when: str = setting(
        "", "Before the stage, or after it when it went well.", required=True, choices=("before", "after")
    )
    function: str = setting("", "A function of an execution module.", pattern=r"([a-z_0-9]+\.[a-z_0-9]+)?")
    args: Any = setting([], "Its arguments, a list.", kind="any")
    kwargs: Any = setting({}, "Its named arguments, a dictionary.", kind="any")
    state: str = setting("", "Instead of a function: an SLS.", pattern=r"[\w.-]*")
    on_failure: str = setting(
        "warn", "Of a hook after a stage. One before a stage always stops it.", choices=("warn", "stop")
    )


@frozen
class Service:
    """A long-running command of CKAN or of an extension, beside the app server."""

    remove: bool = setting(False, "Leave the service out here, though a shared part of the pillar has it.")
    command: str = setting("", "What: a command of CKAN, without `ckan -c INI`, such as `harvester gather-consumer`.")
    queues: tuple[str, ...] = setting(
        (), "Instead of a command: the queues of a job worker; the first goes first.", pattern=QUEUE
    )
    processes: int = setting(1, "How many of it run on each host.", least=1)
    stop_signal: str = setting(
        "TERM", "The signal that asks it to end.", choices=("TERM", "INT", "QUIT", "HUP", "USR1", "USR2")
    )
    stop_seconds: int = setting(180, "Seconds it has to end after that signal, before it is killed.", least=1)
    stop_when_idle: bool = setting(
        False,
        "For a command that knows no signals and waits for Redis (BLPOP), such as the consumers of ckanext-harvest: it "
        "finishes what it is at, and ends when it next waits.",
    )
    environment: Mapping[str, str] = setting({}, "Environment variables, beside and before those of `environment`.")
    once: bool = setting(
        False,
        "On exactly one host of the environment; the hosts agree by Redis, and when that host is down another one "
        "takes over.",
    )
    order: int = setting(0, "Start order: those with a lower number run before one with a higher one starts.", most=400)


@frozen
class Worker:
    """A job worker: the short form of a service with `queues`."""

    remove: bool = setting(False, "Leave the worker out here, though a shared part of the pillar has it.")
    queues: tuple[str, ...] = setting(("default",), "Its queues; the first goes first.", pattern=QUEUE)
    processes: int = setting(1, "How many of it run on each host.", least=1)
    timeout: int = setting(
        180, "Seconds that the job under way has to end, when the worker is to change to another release.", least=1
    )

    def as_service(self) -> Service:
        """Return it in the long form."""
        return Service(queues=self.queues, processes=self.processes, stop_seconds=self.timeout)


@frozen
class CronJob:
    """A scheduled command."""

    remove: bool = setting(False, "Leave the cron job out here, though a shared part of the pillar has it.")
    schedule: str = setting("", "When: the five fields of crontab(5), or `@daily` and the like.", required=True)
    command: str = setting("", "What: a command of CKAN, without `ckan -c INI`.")
    shell: str = setting("", "Instead of a command: a line of sh, run in the directory of the release.")
    once: bool = setting(False, "On one host of the environment only; the hosts agree by Redis.")


@frozen
class Page:
    """A page that is asked of a new release; ``status`` is 0 for one that nobody listed, and then means no error."""

    path: str = setting(
        "", "Its path, with a query where it needs one. Messages show it: no secrets here.", required=True, pattern=PAGE
    )
    status: int = setting(200, "The status that it must have.", least=100, most=599)
    text: str = setting("", "Text that the answer must hold.")
    login: str = setting(
        "",
        "Who is logged in when it is asked for: a user of CKAN, with the password in `secrets:smoke`.",
        pattern=r"([A-Za-z0-9_.-]+)?",
    )

    @property
    def label(self) -> str:
        """What it is called in messages."""
        return f"{self.path} (as {self.login})" if self.login else self.path


@frozen
class Acme:
    """A certificate that certbot gets and renews by ACME over http."""

    email: str = setting("", "Address that the CA writes to; it turns ACME on.", pattern=r"([\w.%+-]+@[\w.-]+)?")
    server: str = setting(
        "https://acme-v02.api.letsencrypt.org/directory", "Directory of the CA.", pattern=r"https://[^\s'\"\\]+"
    )
    ca_bundle: str = setting(
        "", "File on the host with the CAs that sign for the https of `server`; empty for the system's."
    )
    names: tuple[str, ...] = setting((), "Names in the certificate; by default `domain` and `aliases`.")
    peers: tuple[str, ...] = setting(
        (),
        "All hosts behind the same names, `host` or `host:port` of their plain http, this one may be among them: a "
        "challenge that reaches another host is answered by the one that asked for it.",
        pattern=r"([0-9A-Za-z_.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?",
    )
