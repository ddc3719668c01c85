"""Debian packages that the parts come from."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from parts.process import PartError, run

# The last lines are what CKAN's requirements and uWSGI need to be installed and built.
PACKAGES = [
    *("postgresql", "redis-server", "nginx", "supervisor", "git", "strace", "openssh-server", "gnupg", "bubblewrap"),
    *("apache2", "libapache2-mod-wsgi-py3", "haproxy", "socat", "cron", "faketime", "certbot"),
    *("libpq5", "libpq-dev", "libmagic1", "build-essential", "python3-dev", "python3-venv"),
]
# Only where there is no such program yet: a machine may have its own.
PROGRAMS = {"java": "default-jdk-headless", "mvn": "maven", "go": "golang-go"}

_POLICY = Path("/usr/sbin/policy-rc.d")
_LOG = Path("/var/log/ckan-formula-packages.log")


def missing(packages: Iterable[str]) -> list[str]:
    """Return those of the packages that are not installed. Raises PartError where there is no dpkg."""
    if not shutil.which("dpkg-query"):
        raise PartError("this is no Debian system: install the services yourself")
    installed = set()
    names = list(packages)
    if names:
        command = ["dpkg-query", "-W", "-f", "${binary:Package} ${db:Status-Status}\n", *names]
        # It fails for names that it never heard of, and lists the others all the same.
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        for line in result.stdout.splitlines():
            name, _, status = line.partition(" ")
            if status == "installed":
                installed.add(name.partition(":")[0])
    return [name for name in names if name not in installed]


def needed() -> list[str]:
    """Return the packages of all parts that are not installed. Raises PartError where there is no dpkg."""
    programs = [package for program, package in PROGRAMS.items() if not shutil.which(program)]
    return missing([*PACKAGES, *programs])


def ensure_programs(programs: Mapping[str, str]) -> list[str]:
    """Install the Debian packages of programs that this machine does not have; returns what was installed.

    programs
        Package by program.
    """
    return ensure_packages([package for program, package in programs.items() if not shutil.which(program)])


@contextlib.contextmanager
def _no_services_started() -> Iterator[None]:
    """Debian starts a service when its package is installed, unless this policy says no."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink(missing_ok=True)


def ensure_packages(packages: Iterable[str] | None = None, say: Callable[[str], None] | None = None) -> list[str]:
    """Install the Debian packages that are missing, without starting their services.

    packages
        Names; by default all that the parts need.
    say
        Called with progress lines.

    Returns the names of those that were installed. Raises PartError when we are not root or apt-get fails.
    """
    wanted = needed() if packages is None else missing(packages)
    if not wanted:
        return []
    if os.getuid():
        raise PartError(f"missing Debian packages: run `apt-get install {' '.join(wanted)}` as root")
    apt = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"]
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    run([*apt, "update"], "Reading the list of Debian packages", _LOG, say=say, env=environment)
    with _no_services_started():
        command = [*apt, "install", "-y", "--no-install-recommends", *wanted]
        run(command, f"Installing {' '.join(wanted)}", _LOG, say=say, env=environment)
    return wanted


if __name__ == "__main__":
    ensure_packages(say=print)
