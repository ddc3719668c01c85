"""
Secrets for the pillar: encrypted with the keys of the master, so that its gpg renderer can read them.
``salt-run ckan.encrypt`` is what people type.
"""

from __future__ import annotations

import getpass
import os
import re
import subprocess
import sys

FIRST_LINE = "#!yaml|gpg"


def read(prompt: str) -> str:
    """
    Read a secret from standard input, or from the terminal without showing it. Never from an argument: those can be
    seen by every user of the machine.

    prompt
        What is asked for.

    Returns the secret, without the line break at its end. Raises ``ValueError`` when there is none.

    CLI Example: not for the command line; use ``salt-run ckan.encrypt``.
    """
    if sys.stdin is not None and sys.stdin.isatty():
        secret = getpass.getpass(f"{prompt}: ")
        if secret != getpass.getpass("again: "):
            raise ValueError("the two are not the same; type the command again")
    else:
        secret = sys.stdin.read() if sys.stdin else ""
    secret = secret.removesuffix("\n")
    if not secret.strip():
        raise ValueError("there was no secret on standard input; type it, or pipe it in")
    return secret


def block(key: str, secret: str, recipients: list[str] | None = None) -> str:
    """
    Encrypt a secret, and return the lines of pillar to paste.

    key
        The setting, such as ``database:password``.
    secret
        Its value.
    recipients
        Keys of the master's key ring; by default all that can encrypt.

    Returns YAML. Raises ``ValueError`` when there is no key.

    CLI Example: not for the command line; use ``salt-run ckan.encrypt``.
    """
    home = keyring()
    to = recipients or _encrypting_keys(home)
    done = _gpg(home, "--armor", "--trust-model", "always", *_each("--recipient", to), "--encrypt", stdin=secret)
    if done.returncode != 0:
        raise ValueError(f"gpg cannot encrypt for {', '.join(to)}: {_last(done.stderr)}")
    lines = []
    *above, leaf = ["ckan", *key.split(":")]
    for depth, name in enumerate(above):
        lines.append(f"{'  ' * depth}{name}:")
    lines.append(f"{'  ' * len(above)}{leaf}: |")
    return "\n".join([*lines, *(f"{'  ' * (len(above) + 1)}{line}".rstrip() for line in done.stdout.splitlines())])


def keyring() -> str:
    """
    Return the directory of the master's GPG keys, as Salt's renderer finds it.

    CLI Example:

    .. code-block:: bash

        salt-run ckan_secret.keyring
    """
    return __opts__.get("gpg_keydir") or os.path.join(__opts__["config_dir"], "gpgkeys")


def _encrypting_keys(home: str) -> list[str]:
    if not os.path.isdir(home) or not _fingerprints(home, "--list-secret-keys", "sec"):
        raise ValueError(f"there is no key to decrypt with in {home}; make one first (docs/secrets.md)")
    return _fingerprints(home, "--list-keys", "pub")


def _fingerprints(home: str, command: str, kind: str) -> list[str]:
    """The keys that can encrypt and are neither expired nor revoked. The format is gpg's doc/DETAILS."""
    found, usable = [], False
    for line in _gpg(home, "--with-colons", command).stdout.splitlines():
        fields = line.split(":")
        if fields[0] == kind:
            usable = "E" in fields[11] and fields[1] not in ("e", "r", "i", "d")
        elif fields[0] == "fpr" and usable:
            found.append(fields[9])
            usable = False
    return found


def _gpg(home: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess:
    command = ["gpg", "--homedir", home, "--batch", "--no-tty", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)


def _each(option: str, values: list[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


def _last(text: str) -> str:
    lines = [re.sub(r"^gpg: ", "", line.strip()) for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
