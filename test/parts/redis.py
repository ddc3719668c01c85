"""A Redis that keeps nothing on disk."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from parts.ports import free_port
from parts.process import Service


class Redis(Service):
    """Redis on a free port of 127.0.0.1.

    sandbox
        Directory of all the parts.
    name
        Name of the service in it.
    """

    def __init__(self, sandbox: str | Path, name: str = "redis") -> None:
        super().__init__(sandbox, name)
        self.port = 0

    @property
    def url(self) -> str:
        """Address of its first database."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, timeout: float = 30) -> Redis:
        """Start it. Raises PartError."""
        self.port = self.port or free_port()
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--appendonly", "no", "--dir", self.directory]
        self.launch(command, lambda: self.ask("PING") == "+PONG", timeout=timeout)
        return self

    def ask(self, command: str) -> str:
        """Send an inline command and return the first line of the answer, empty when nobody answers."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 2) as line:
            line.sendall(f"{command}\r\n".encode())
            return line.makefile().readline().strip()
        return ""
