"""A HAProxy of our own: a balancer before the hosts, that can be told by its socket."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from parts.ports import answers, free_port
from parts.process import Service

_CONF = """\
global
    stats socket ipv4@127.0.0.1:{admin} level admin
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend portal
    bind 127.0.0.1:{port}
    default_backend ckan
backend ckan
{servers}"""


class HAProxy(Service):
    """HAProxy in the foreground, with one backend `ckan`.

    sandbox
        Directory of all the parts.
    servers
        Name and port of each server of the backend.

    `port` is where visitors ask, `admin` where its socket listens.
    """

    def __init__(self, sandbox: str | Path, servers: Mapping[str, int]) -> None:
        super().__init__(sandbox, "haproxy")
        self.port, self.admin = free_port(), free_port()
        lines = "".join(f"    server {name} 127.0.0.1:{port} check\n" for name, port in servers.items())
        self.conf = self.directory / "haproxy.cfg"
        self.conf.write_text(_CONF.format(admin=self.admin, port=self.port, servers=lines), encoding="utf-8")

    def start(self, timeout: float = 30) -> HAProxy:
        """Start it. Raises PartError."""
        self.launch(["haproxy", "-f", self.conf, "-db"], lambda: answers(self.port), timeout=timeout)
        return self

    def states(self) -> dict[str, str]:
        """Return what it says of each server: UP, DRAIN, MAINT, DOWN."""
        command = ["socat", "stdio", f"tcp:127.0.0.1:{self.admin}"]
        said = subprocess.run(command, input="show stat\n", capture_output=True, text=True, check=True).stdout
        rows = [line.split(",") for line in said.splitlines() if line.startswith("ckan,")]
        return {row[1]: row[17] for row in rows if row[1] != "BACKEND"}
