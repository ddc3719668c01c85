"""A master's GPG key, made for a test, and the secrets of pillar.example encrypted with it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import yaml

FIRST_LINE = "#!yaml|gpg\n"
ARMOR = "-----BEGIN PGP MESSAGE-----"


class KeyRing:
    """The directory of a master's keys.

    path
        Where it is; a short path, since gpg's agent has a socket in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def make(self, name: str = "salt-master") -> KeyRing:
        """Make a key that can encrypt, as docs/secrets.md says; of the kind that GnuPG makes from 2.3 on, and fast."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o700)
        self._gpg("--passphrase", "", "--quick-gen-key", name, "future-default", "default", "never")
        return self

    def encrypt(self, secret: str) -> str:
        """Return a secret as a block of PGP."""
        return self._gpg("--armor", "--trust-model", "always", "--default-recipient-self", "--encrypt", stdin=secret)

    def stop(self) -> None:
        """End gpg's agent."""
        if shutil.which("gpgconf") and self.path.exists():
            subprocess.run(["gpgconf", "--homedir", self.path, "--kill", "all"], capture_output=True, check=False)

    def _gpg(self, *arguments: str, stdin: str = "") -> str:
        command = ["gpg", "--homedir", self.path, "--batch", "--no-tty", "--quiet", *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True).stdout


def write_secrets(file: Path, secrets: Mapping[str, str]) -> None:
    """Write a file of encrypted secrets: what a user makes of pillar.example/ckan/secrets.

    file
        The file; what it holds is kept where `secrets` says nothing of it.
    secrets
        Blocks by name of setting, such as "database:password".
    """
    tree = yaml.safe_load(file.read_text())
    for name, block in secrets.items():
        place = tree["ckan"]
        *above, leaf = name.split(":")
        for part in above:
            place = place.setdefault(part, {})
        place[leaf] = block
    file.write_text(FIRST_LINE + yaml.safe_dump(tree, allow_unicode=True))
