"""nginx with a configuration of our own: the front door, and the one of a sandboxed web host."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from parts.ports import answers
from parts.process import PartError, Service, last_lines

_MAIN = """\
{user}daemon off;
worker_processes 2;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 1024; }}
http {{
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    access_log {directory}/access.log;
    server_names_hash_bucket_size 128;
    client_body_temp_path {directory}/temp-body;
    proxy_temp_path {directory}/temp-proxy;
    fastcgi_temp_path {directory}/temp-fastcgi;
    uwsgi_temp_path {directory}/temp-uwsgi;
    scgi_temp_path {directory}/temp-scgi;
{http}
}}
"""


class Nginx(Service):
    """An nginx whose files are all below the sandbox.

    sandbox
        Directory of all the parts.
    http
        What stands inside the `http` block: servers, upstreams, includes.
    port
        A port of 127.0.0.1 that it listens on when it is ready; 0 if it may have no server yet.
    name
        Name of the service in the sandbox.
    """

    def __init__(self, sandbox: str | Path, http: str, port: int = 0, name: str = "nginx") -> None:
        super().__init__(sandbox, name)
        self.port = port
        self.http = http
        self.conf = self.directory / "nginx.conf"
        self.pid_file = self.directory / "nginx.pid"
        self._write()

    @property
    def url(self) -> str:
        """Address of the port that it was given."""
        return f"http://127.0.0.1:{self.port}"

    def _write(self) -> None:
        user = "user www-data;\n" if os.getuid() == 0 else ""
        text = _MAIN.format(user=user, directory=self.directory, http=self.http)
        self.conf.write_text(text, encoding="utf-8")

    def start(self, timeout: float = 30) -> Nginx:
        """Start it. Raises PartError with nginx's message."""
        self._write()
        self.pid_file.unlink(missing_ok=True)
        self.launch(["nginx", "-c", self.conf], self._ready, timeout=timeout)
        return self

    def _ready(self) -> bool:
        written = self.pid_file.exists() and self.pid_file.read_text().strip()
        return bool(written) and (not self.port or answers(self.port))

    def reload(self) -> None:
        """Check the configuration and have it read again. Raises PartError with nginx's message."""
        self._write()
        for arguments in (["-t"], ["-s", "reload"]):
            command = ["nginx", "-c", str(self.conf), *arguments]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode:
                said = result.stderr.strip() or last_lines(self.directory / "error.log")
                raise PartError(f"nginx refuses {self.conf}: {said}")


def host_nginx(sandbox: str | Path, sites: str | Path, name: str = "nginx") -> Nginx:
    """Return the nginx of a sandboxed web host.

    sandbox
        Directory of all the parts.
    sites
        Directory whose `*.conf` files hold its servers; made if missing, and may be empty. As on Debian, all files of a
        directory `sites-enabled` beside it are read, too.
    name
        Name of the service in the sandbox.

    Returns an Nginx, not yet started; its `conf` is what the setting `web:nginx_conf` takes.
    """
    Path(sites).mkdir(parents=True, exist_ok=True)
    return Nginx(sandbox, f"    include {sites}/*.conf;\n    include {Path(sites).parent}/sites-enabled/*;", name=name)
