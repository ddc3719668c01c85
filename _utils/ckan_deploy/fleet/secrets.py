"""
Secrets for the pillar: encrypted with the keys of the master, so that its gpg renderer can read them.
``salt-run ckan.encrypt`` is what people type.
"""

from __future__ import annotations

import fnmatch
import getpass
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from ckan_deploy.errors import FormulaError
from ckan_deploy.fleet import hosts
from ckan_deploy.fleet.master import Master
from ckan_deploy.fleet.names import check_env
from ckan_deploy.settings import mask
from ckan_deploy.system import arguments


def encrypt(master: Master, env: Any, key: Any, recipients: Sequence[str] = ()) -> str:
    """
    Encrypt a secret that is read from standard input, or asked for at the terminal.

    master
        The master.
    env
        The name of the environment.
    key
        The setting, such as ``database:password`` or ``extensions:ckanext-mycity:token``.
    recipients
        Keys of the master's key ring to encrypt for; by default all that can be used.

    Returns the lines of YAML to paste. Raises ``FormulaError`` where that is no secret setting, or there is no secret
    or no key.
    """
    check_env(env)
    key, names = str(key).removeprefix("ckan:"), mask.secret_names()
    if not any(fnmatch.fnmatchcase(key, name) and key.count(":") == name.count(":") for name in names):
        hint = arguments.near(key, names)
        raise FormulaError(f"{key} is not a secret setting{hint}; the secret ones are {', '.join(names)}")
    block = pillar_block(master.keyring, key, read(f"{key} of {env}"), recipients)
    known = hosts.environments(master)
    nobody = "" if env in known else f"# No host belongs to {env} yet{arguments.near(env, known)}\n"
    return f"{nobody}# Into the secrets of {env}: a file of its pillar whose first line is #!yaml|gpg\n{block}"


def read(prompt: str) -> str:
    """
    Read a secret from standard input, or from the terminal without showing it. Never from an argument: those can be
    seen by every user of the machine.

    prompt
        What is asked for.

    Returns the secret, without the line break at its end. Raises ``FormulaError`` when there is none.
    """
    if sys.stdin is not None and sys.stdin.isatty():
        secret = getpass.getpass(f"{prompt}: ")
        if secret != getpass.getpass("again: "):
            raise FormulaError("the two are not the same; type the command again")
    else:
        secret = sys.stdin.read() if sys.stdin else ""
    secret = secret.removesuffix("\n")
    if not secret.strip():
        raise FormulaError("there was no secret on standard input; type it, or pipe it in")
    return secret


def pillar_block(home: str, key: str, secret: str, recipients: Sequence[str] = ()) -> str:
    """
    Encrypt a secret, and return the lines of pillar to paste.

    home
        The directory of the master's GPG keys.
    key
        The setting, such as ``database:password``.
    secret
        Its value.
    recipients
        Keys of that key ring; by default all that can encrypt.

    Returns YAML. Raises ``FormulaError`` when there is no key.
    """
    to = list(recipients) or _encrypting_keys(home)
    done = _gpg(home, "--armor", "--trust-model", "always", *_each("--recipient", to), "--encrypt", stdin=secret)
    if done.returncode != 0 and (expired := _expired(home, to)):
        raise FormulaError(expired)
    if done.returncode != 0:
        raise FormulaError(f"gpg cannot encrypt for {', '.join(to)}: {_last(done.stderr)}")
    lines = []
    *above, leaf = ["ckan", *key.split(":")]
    for depth, name in enumerate(above):
        lines.append(f"{'  ' * depth}{name}:")
    lines.append(f"{'  ' * len(above)}{leaf}: |")
    return "\n".join([*lines, *(f"{'  ' * (len(above) + 1)}{line}".rstrip() for line in done.stdout.splitlines())])


def _encrypting_keys(home: str) -> list[str]:
    if not os.path.isdir(home) or not _keys(home, "--list-secret-keys", "sec"):
        raise FormulaError(f"there is no key to decrypt with in {home}; make one first (docs/secrets.md)")
    found = _fingerprints(home, "--list-keys", "pub")
    if not found:
        raise FormulaError(_expired(home) or f"no key in {home} can encrypt; make one first (docs/secrets.md)")
    return found


def _expired(home: str, wanted: Sequence[str] = ()) -> str:
    """Say which keys have expired, of all or of those that are wanted, and what to type; '' for none."""
    for finger, state, until in _keys(home, "--list-keys", "pub", *wanted):
        if state == "e":
            day = time.strftime("%Y-%m-%d", time.gmtime(int(until))) if until.isdigit() else "some time ago"
            again = f"gpg --homedir {home} --quick-set-expire {finger} 2y"
            return f"the key {finger} has expired ({day}); type: {again}"
    return ""


def _fingerprints(home: str, command: str, kind: str) -> list[str]:
    """The keys that can encrypt and are neither expired nor revoked."""
    return [finger for finger, state, _ in _keys(home, command, kind) if state not in ("e", "r", "i", "d")]


def _keys(home: str, command: str, kind: str, *names: str) -> list[tuple[str, str, str]]:
    """
    Fingerprint, validity and the end of it, of each key that can encrypt or has expired. The format is gpg's
    doc/DETAILS.
    """
    found, about = [], ("", "")
    for line in _gpg(home, "--with-colons", command, *names).stdout.splitlines():
        fields = line.split(":")
        if fields[0] == kind:
            # Of one that has expired gpg does not say what it can do.
            about = (fields[1], fields[6]) if "E" in fields[11] or fields[1] == "e" else ("", "")
        elif fields[0] == "fpr" and about != ("", ""):
            found.append((fields[9], *about))
            about = ("", "")
    return found


def _gpg(home: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = ["gpg", "--homedir", home, "--batch", "--no-tty", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)


def _each(option: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


def _last(text: str) -> str:
    lines = [re.sub(r"^gpg: ", "", line.strip()) for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
