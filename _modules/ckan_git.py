"""
Run git for one origin: with the key or token of that origin and no other, without questions, over known transports.

An *origin* is what the settings say of an extension: ``url``, and perhaps ``deploy_key``, ``host_keys``, ``token``,
``token_user``. A key is on disk only while git runs, in a directory of root's under ``shared/keys``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from urllib.parse import urlsplit

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_git"

# Seconds that a question to a server may take, and that a transfer may stand still.
ASK_TIMEOUT = 30
TRANSFER_TIMEOUT = 1800
SSH = [
    "ssh", "-oBatchMode=yes", "-oPasswordAuthentication=no", "-oKbdInteractiveAuthentication=no",
    "-oConnectTimeout=15", "-oServerAliveInterval=10", "-oServerAliveCountMax=2",
]  # fmt: skip


def __virtual__() -> str:
    return __virtualname__


def run(origin: dict, args: list[str], what: str, keys: str, cwd: str = "/", timeout: int = TRANSFER_TIMEOUT) -> str:
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

    Raises ``CommandExecutionError``: ``what``, and git's own words without anything secret.

    CLI Example: not for the command line, since an origin may hold a key.
    """
    with _environment(origin, keys) as (options, env):
        done = _git([*options, *args], env, cwd, timeout)
    if done["retcode"] == 0:
        return done["stdout"]
    raise CommandExecutionError(f"{what}: {_reason(done, origin, timeout)}")


def test(args: list[str], cwd: str = "/") -> bool:
    """
    Say whether git ends with 0: a question to a repository on this host.

    args
        Arguments of git.
    cwd
        Where git runs.

    CLI Example: not for the command line.
    """
    return _git(args, {}, cwd, ASK_TIMEOUT)["retcode"] == 0


def _git(args: list[str], env: dict[str, str], cwd: str, timeout: int) -> dict:
    # "safe.directory" is about repositories whose hooks and configuration git would obey; it is root who runs this, on
    # mirrors that are root's own and on origins given as a path, from which git only reads.
    command = ["git", "-c", "safe.directory=*", "-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0", *args]
    return __salt__["cmd.run_all"](
        command,
        python_shell=False,
        cwd=cwd,
        env={
            "LC_ALL": "C.UTF-8",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "/bin/false",
            "SSH_ASKPASS": "/bin/false",
            "GIT_SSH_COMMAND": " ".join(SSH),
            **env,
        },
        reset_system_locale=False,
        # Quiet: Salt would log the environment, and with it a token, when the command fails.
        output_loglevel="quiet",
        ignore_retcode=True,
        timeout=timeout,
        stdin="",
    )


@contextlib.contextmanager
def _environment(origin: dict, keys: str) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Options and environment for git; the key of the origin is there until the end."""
    _sweep(keys)
    local = origin["url"].startswith(("/", "file://"))
    options = ["-c", "protocol.allow=never"]
    for transport in ("https", "http", "ssh", "git", *(["file"] if local else [])):
        options += ["-c", f"protocol.{transport}.allow=always"]
    options += ["-c", "credential.helper=", "-c", "http.lowSpeedLimit=1", "-c", f"http.lowSpeedTime={ASK_TIMEOUT}"]
    env: dict[str, str] = {}
    if origin.get("token"):
        # Asked for this server only: one that a redirect leads to does not get it.
        parts = urlsplit(origin["url"])
        helper = (
            '!f() { test "$1" = get && printf "username=%s\\npassword=%s\\n" "$CKAN_GIT_USER" "$CKAN_GIT_TOKEN"; }; f'
        )
        options += ["-c", f"credential.{parts.scheme}://{parts.netloc}.helper={helper}"]
        env.update(CKAN_GIT_USER=origin.get("token_user") or "oauth2", CKAN_GIT_TOKEN=origin["token"])
    if not origin.get("deploy_key") and not origin.get("host_keys"):
        yield options, env
        return
    os.makedirs(keys, mode=0o700, exist_ok=True)
    with _alone(keys):
        # Place and lock come into being together, or another one's sweep would take the place for a killed run's.
        place = tempfile.mkdtemp(prefix="key-", dir=keys)  # 0700
        lock = open(f"{place}/lock", "w", encoding="utf-8")
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with lock:
            command = list(SSH)
            if origin.get("deploy_key"):
                # The gpg renderer strips the last line break, without which ssh refuses a key.
                _write(f"{place}/id", origin["deploy_key"].strip().replace("\r\n", "\n") + "\n")
                command += ["-F/dev/null", "-oIdentitiesOnly=yes", "-oIdentityAgent=none", f"-i{place}/id"]
            command += ["-oStrictHostKeyChecking=yes", "-oUpdateHostKeys=no"]
            if origin.get("host_keys"):
                _write(f"{place}/known_hosts", "".join(f"{line.strip()}\n" for line in origin["host_keys"]))
                command += [f"-oUserKnownHostsFile={place}/known_hosts", "-oGlobalKnownHostsFile=/dev/null"]
            env["GIT_SSH_COMMAND"] = " ".join(command)
            yield options, env
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _sweep(keys: str) -> None:
    """Remove the keys that a killed run left: nobody holds the lock beside them any more."""
    if not os.path.isdir(keys):
        return
    with _alone(keys):
        for name in os.listdir(keys):
            place = os.path.join(keys, name)
            if not name.startswith("key-"):
                continue
            try:
                with open(f"{place}/lock", encoding="utf-8") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # at work
            except FileNotFoundError:
                pass  # killed before it had a lock, or half removed
            shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def _alone(keys: str) -> Iterator[None]:
    with open(f"{keys}/.lock", "w", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as handle:
        handle.write(text)


def _reason(done: dict, origin: dict, timeout: int) -> str:
    """The line of git's or ssh's that says it, and what to do about the best known ones."""
    text = done["stderr"] if done["stderr"].strip() else done["stdout"]
    for secret in (origin.get("token"), *(origin.get("deploy_key") or "").splitlines()):
        text = text.replace(secret, "****") if secret else text
    text = re.sub(r"://[^/@\s]+@", "://", text)
    server = urlsplit(origin["url"]).hostname or origin["url"].partition(":")[0].rpartition("@")[2]
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
