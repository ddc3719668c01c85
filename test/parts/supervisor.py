"""A supervisord of our own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from parts.ports import socket_answers
from parts.process import PartError, Service

_CONF = """\
[unix_http_server]
file = {socket}
chmod = 0700

[supervisord]
nodaemon = true
logfile = {directory}/supervisord.log
pidfile = {directory}/supervisord.pid
childlogdir = {directory}
{user}
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl = unix://{socket}

[include]
files = {programs}/*.conf
"""


class Supervisor(Service):
    """supervisord in the foreground, on a unix socket in the sandbox.

    sandbox
        Directory of all the parts.
    programs
        Directory whose `*.conf` files hold its programs; made if missing, and may be empty.
    name
        Name of the service in the sandbox.

    Its `conf` is what the setting `web:supervisor_conf` takes.
    Raises PartError when the sandbox's path is too long.
    """

    def __init__(self, sandbox: str | Path, programs: str | Path, name: str = "supervisor") -> None:
        super().__init__(sandbox, name)
        self.socket = self.directory / "s.sock"
        # The kernel allows 107 bytes, and supervisord binds a name with a pid appended first.
        if len(os.fsencode(self.socket)) > 95:
            raise PartError(f"the path {self.socket} is too long for a unix socket; use a shorter sandbox")
        self.conf = self.directory / "supervisord.conf"
        Path(programs).mkdir(parents=True, exist_ok=True)
        user = "user = root\n" if os.getuid() == 0 else ""
        text = _CONF.format(socket=self.socket, directory=self.directory, user=user, programs=programs)
        self.conf.write_text(text.replace("%", "%%"), encoding="utf-8")

    def start(self, timeout: float = 30) -> Supervisor:
        """Start it. Raises PartError."""
        command = ["supervisord", "-n", "-c", self.conf]
        self.launch(command, lambda: socket_answers(str(self.socket)), timeout=timeout)
        return self

    def ctl(self, *arguments: str) -> str:
        """Run supervisorctl and return what it prints; its exit code tells states, not only errors."""
        command = ["supervisorctl", "-c", str(self.conf), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        return (result.stdout + result.stderr).strip()
