"""
Run git for one origin: with the key or token of that origin and no other, without questions, over known transports.

A key is on disk only while git runs, in a directory of root's under ``shared/keys``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import urlsplit

from attrs import evolve, field, frozen

from ckan_deploy.errors import FormulaError
from ckan_deploy.settings.origins import server
from ckan_deploy.settings.parts import Extension
from ckan_deploy.system import files, processes
from ckan_deploy.system.processes import Done

# Seconds that a question to a server may take, and that a transfer may stand still.
ASK_TIMEOUT = 30
TRANSFER_TIMEOUT = 1800
# How the names of directories that hold a key begin.
KEY = "key-"
# Git without what its user has set for himself, such as line endings, filters and templates; with git before
# 2.32, which does not know GIT_CONFIG_GLOBAL, by another home.
PLAIN = {
    "HOME": "/nonexistent", "XDG_CONFIG_HOME": "/nonexistent", "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1", "GIT_ATTR_NOSYSTEM": "1",
}  # fmt: skip
SSH = [
    "ssh", "-oBatchMode=yes", "-oPasswordAuthentication=no", "-oKbdInteractiveAuthentication=no",
    "-oConnectTimeout=15", "-oServerAliveInterval=10", "-oServerAliveCountMax=2",
]  # fmt: skip


@frozen
class Origin:
    """A git repository that an extension comes from, and the credentials that it asks for."""

    url: str
    ref: str = ""
    deploy_key: str = field(default="", repr=False)
    host_keys: tuple[str, ...] = ()
    token: str = field(default="", repr=False)
    token_user: str = ""
    submodules: bool = True
    upstream: str = ""

    @classmethod
    def of(cls, extension: Extension) -> Origin:
        """
        Take it from the settings of an extension.

        extension
            The settings.
        """
        return cls(
            extension.url, extension.ref, extension.deploy_key, extension.host_keys, extension.token,
            extension.token_user, extension.submodules, extension.upstream,
        )  # fmt: skip

    def at(self, url: str, submodules: bool) -> Origin:
        """
        Return the origin that a pin names: with the credentials of this one, but without its token on another server.

        url, submodules
            What the pin says.
        """
        token = self.token if server(url) == server(self.url) else ""
        return evolve(self, url=url, submodules=submodules, token=token)


def run(
    origin: Origin, args: Sequence[str], what: str, keys: str, cwd: str = "/", timeout: int = TRANSFER_TIMEOUT
) -> str:
    """
    Run git with an origin's credentials and return what it prints.

    origin
        The origin.
    args
        Arguments of git; addresses and refs behind ``--``.
    what
        What a failure means, as the beginning of a sentence.
    keys
        The directory in which a key stands while git runs.
    cwd
        Where git runs.
    timeout
        Seconds.

    Raises ``FormulaError``: ``what``, and git's own words without anything secret.
    """
    with _environment(origin, keys) as env:
        done = _git([*_options(origin), *args], env, cwd, timeout)
    if done.retcode == 0:
        return done.stdout
    raise FormulaError(f"{what}: {_reason(done, origin, timeout)}")


def local(args: Sequence[str], what: str, cwd: str = "/") -> str:
    """
    Run git on a repository of this host, the same on every host: no settings of git's hold there, and no origin is
    asked.

    args, what, cwd
        As for ``run``.

    Returns what it prints. Raises ``FormulaError`` as ``run`` does.
    """
    here = Origin("/")
    done = _git([*_options(here), *args], PLAIN, cwd, TRANSFER_TIMEOUT)
    if done.retcode == 0:
        return done.stdout
    raise FormulaError(f"{what}: {_reason(done, here, TRANSFER_TIMEOUT)}")


def test(args: Sequence[str], cwd: str = "/", timeout: int = ASK_TIMEOUT) -> bool:
    """
    Say whether git ends with 0: a question to a repository on this host.

    args
        Arguments of git.
    cwd
        Where git runs.
    timeout
        Seconds; one that takes longer is a no.
    """
    return _git(args, {}, cwd, timeout).retcode == 0


def sweep(keys: str) -> None:
    """
    Remove the keys that killed runs have left.

    keys
        The directory in which a key stands while git runs.
    """
    files.sweep(keys, KEY)


def _git(args: Sequence[str], env: Mapping[str, str], cwd: str, timeout: int) -> Done:
    # "safe.directory" is about repositories whose hooks and configuration git would obey; it is root who runs this, on
    # mirrors that are root's own and on origins given as a path, from which git only reads.
    command = ["git", "-c", "safe.directory=*", "-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0", *args]
    quiet = {"GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "/bin/false", "SSH_ASKPASS": "/bin/false"}
    return processes.run(command, env={**quiet, "GIT_SSH_COMMAND": " ".join(SSH), **env}, cwd=cwd, timeout=timeout)


def _options(origin: Origin) -> list[str]:
    """Options of git: the transports that are allowed, and where the token is asked for."""
    local = origin.url.startswith(("/", "file://"))
    options = ["-c", "protocol.allow=never"]
    for transport in ("https", "http", "ssh", "git", *(["file"] if local else [])):
        options += ["-c", f"protocol.{transport}.allow=always"]
    options += ["-c", "credential.helper=", "-c", "http.lowSpeedLimit=1", "-c", f"http.lowSpeedTime={ASK_TIMEOUT}"]
    if origin.token:
        # Asked for this server only: one that a redirect leads to does not get it.
        parts = urlsplit(origin.url)
        helper = (
            '!f() { test "$1" = get && printf "username=%s\\npassword=%s\\n" "$CKAN_GIT_USER" "$CKAN_GIT_TOKEN"; }; f'
        )
        options += ["-c", f"credential.{parts.scheme}://{parts.netloc}.helper={helper}"]
    return options


@contextlib.contextmanager
def _environment(origin: Origin, keys: str) -> Iterator[dict[str, str]]:
    """Environment for git; the key of the origin is on disk until the end."""
    sweep(keys)
    env: dict[str, str] = {}
    if origin.token:
        env.update(CKAN_GIT_USER=origin.token_user or "oauth2", CKAN_GIT_TOKEN=origin.token)
    if not origin.deploy_key and not origin.host_keys:
        yield env
        return
    with _key_directory(keys) as place:
        yield {**env, "GIT_SSH_COMMAND": " ".join(_ssh(origin, place))}


def _ssh(origin: Origin, place: str) -> list[str]:
    """Write an origin's key and host keys into a directory, and return the command that uses them and no others."""
    command = list(SSH)
    if origin.deploy_key:
        # The gpg renderer strips the last line break, without which ssh refuses a key.
        _write(f"{place}/id", origin.deploy_key.strip().replace("\r\n", "\n") + "\n")
        command += ["-F/dev/null", "-oIdentitiesOnly=yes", "-oIdentityAgent=none", f"-i{place}/id"]
    command += ["-oStrictHostKeyChecking=yes", "-oUpdateHostKeys=no"]
    if origin.host_keys:
        _write(f"{place}/known_hosts", "".join(f"{line.strip()}\n" for line in origin.host_keys))
        command += [f"-oUserKnownHostsFile={place}/known_hosts", "-oGlobalKnownHostsFile=/dev/null"]
    return command


@contextlib.contextmanager
def _key_directory(keys: str) -> Iterator[str]:
    """A directory for a key, which no sweep removes before the end."""
    os.makedirs(keys, mode=0o700, exist_ok=True)
    with files.scratch(keys, KEY) as place:
        yield place


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as handle:
        handle.write(text)


def _reason(done: Done, origin: Origin, timeout: int) -> str:
    """The line of git's or ssh's that says it, and what to do about the best known ones."""
    text = done.stderr if done.stderr.strip() else done.stdout
    for secret in filter(None, (origin.token, *origin.deploy_key.splitlines())):
        text = text.replace(secret, "****")
    text = processes.without_logins(text)
    server = urlsplit(origin.url).hostname or origin.url.partition(":")[0].rpartition("@")[2]
    if "HOST IDENTIFICATION HAS CHANGED" in text or "No matching host key" in text:
        return (
            f"the server {server} shows another host key than the one that is known; find out why before you change it"
        )
    if "Host key verification failed" in text or "host key is known for" in text:
        return f"the host key of {server} is not known; set host_keys (ssh-keyscan {server}, and compare)"
    if "Permission denied (" in text:
        return f"{server} does not accept the key; correct deploy_key"
    if "Timed out" in text or "timed out" in text:
        return f"{server} does not answer (after {timeout} s at most)"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if line.startswith(("fatal:", "error:", "ERROR:", "remote:"))]
    vague = ("fatal: Could not read from remote", "fatal: the remote end hung up")
    return next((line for line in [*named, *lines] if not line.startswith(vague)), "no message")
