"""Apache with mod_wsgi and a configuration of our own: the web server of a sandboxed host."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from parts.ports import answers, free_port
from parts.process import PartError, Service, last_lines

_MODULES = "mpm_event authz_core alias mime headers env rewrite setenvif socache_shmcb ssl http2 filter deflate wsgi"
_MAIN = """\
ServerRoot {directory}
DefaultRuntimeDir {directory}
PidFile {directory}/apache.pid
ErrorLog {directory}/error.log
{user}ServerName localhost
TypesConfig /etc/mime.types
Listen 127.0.0.1:{port}
Timeout 60
GracefulShutdownTimeout 5
# A small server: there are many of them on a machine that tests.
StartServers 1
MinSpareThreads 1
ServerLimit 2
ThreadsPerChild 25
MaxRequestWorkers 50
LogFormat "%h %{{Host}}i %t \\"%r\\" %>s" short
CustomLog {directory}/access.log short
IncludeOptional {sites}/*.conf
"""


class Apache(Service):
    """An Apache whose files are all below the sandbox.

    sandbox
        Directory of all the parts.
    sites
        Directory whose `*.conf` files hold its virtual hosts; made if missing, and may be empty.
    name
        Name of the service in the sandbox.

    Its `conf` is what the setting `web:apache_conf` takes; a port of its own tells when it is ready.
    """

    def __init__(self, sandbox: str | Path, sites: str | Path, name: str = "apache") -> None:
        super().__init__(sandbox, name)
        self.sites = Path(sites)
        self.sites.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.conf = self.directory / "apache.conf"
        self.pid_file = self.directory / "apache.pid"
        loaded = "".join(f"LoadModule {m}_module /usr/lib/apache2/modules/mod_{m}.so\n" for m in _MODULES.split())
        user = "User www-data\nGroup www-data\n" if os.getuid() == 0 else ""
        text = _MAIN.format(directory=self.directory, user=user, port=self.port, sites=self.sites)
        self.conf.write_text(loaded + text, encoding="utf-8")

    def start(self, timeout: float = 30) -> Apache:
        """Start it. Raises PartError with Apache's message."""
        self.pid_file.unlink(missing_ok=True)
        self.launch(["/usr/sbin/apache2", "-f", self.conf, "-DFOREGROUND"], self._ready, timeout=timeout)
        return self

    def _ready(self) -> bool:
        return self.pid_file.exists() and answers(self.port)

    def reload(self) -> None:
        """Check the configuration and have it read again. Raises PartError with Apache's message."""
        for arguments in (["-t"], ["-k", "graceful"]):
            command = ["/usr/sbin/apache2", "-f", str(self.conf), *arguments]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode:
                said = result.stderr.strip() or last_lines(self.directory / "error.log")
                raise PartError(f"Apache refuses {self.conf}: {said}")
