"""What a machine is: what programs that were compiled on one need of another."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

from ckan_deploy.system import files, processes, safely

RELEASE_FILE = "/etc/os-release"
# The oldest version of each system that the formula runs on. What is made from one, such as Mint, counts its own way.
OLDEST = {"debian": (12, "12"), "ubuntu": (22, "22.04")}
_PYTHON = "import sys; print('%d.%d' % sys.version_info[:2])"


def of(python: str, release_file: str = RELEASE_FILE) -> dict[str, str]:
    """
    Say what this machine is.

    python
        The interpreter that virtualenvs are made with.
    release_file
        Where the system says what it is: https://www.freedesktop.org/software/systemd/man/os-release.html

    Returns ``{"system": "debian 12", "architecture": "x86_64", "libc": "glibc 2.36", "Python": "3.11"}``; what cannot
    be told is empty.
    """
    about = _about(release_file)
    return {
        "system": f"{about.get('ID', '')} {about.get('VERSION_ID', '')}".strip(),
        "architecture": platform.machine(),
        "libc": " ".join(platform.libc_ver()).strip(),
        "Python": _version(python),
    }


def unsupported(release_file: str = "") -> str:
    """
    Say why the formula does not run on this system, '' where it does.

    release_file
        As for ``of``; by default ``RELEASE_FILE``.
    """
    about = _about(release_file or RELEASE_FILE)
    name, version = about.get("ID", ""), about.get("VERSION_ID", "")
    system = f"this is {about.get('NAME') or name or 'another system'} {version}".strip()
    if not {"debian", "ubuntu"} & {name, *about.get("ID_LIKE", "").split()}:
        return f"the formula runs on Debian and Ubuntu, and {system}"
    oldest, called = OLDEST.get(name, (0, ""))
    major = version.partition(".")[0]
    if major.isdigit() and int(major) < oldest:
        return f"the formula needs {name.capitalize()} {called} or newer, and {system}"
    return ""


def differences(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """
    Say in what two machines differ.

    one, other
        What ``of`` returned.

    Returns such as ``system debian 12 instead of debian 13``.
    """
    return [
        f"{name} {one.get(name) or 'unknown'} instead of {other.get(name) or 'unknown'}"
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name)
    ]


def _about(release_file: str) -> dict[str, str]:
    lines = [line.partition("=") for line in files.read(release_file).splitlines()]
    return {name: value.strip("\"'") for name, _, value in lines}


def _version(python: str) -> str:
    """The version of an interpreter, '' where it does not run, or others may put another in its place."""
    if not os.access(python, os.X_OK) or safely.replaceable(python):
        return ""
    done = processes.run([python, "-I", "-S", "-c", _PYTHON])
    return done.stdout.strip() if done.retcode == 0 else ""
