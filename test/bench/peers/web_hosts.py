"""The web hosts of the tools beside Salt: the official install, uWSGI and a job worker under supervisor, nginx."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from parts.git_server import make_key
from parts.nginx import Nginx, host_nginx
from parts.ports import answers, free_port
from parts.process import Service
from parts.supervisor import Supervisor

USER = "www-data"
# As the formula has it for a portal of the parts; times of supervisor as it has them, too.
_UWSGI = """\
[uwsgi]
http-socket = {root}/run/web.sock
chmod-socket = 666
vacuum = true
virtualenv = {home}/current
wsgi-file = {etc}/wsgi.py
need-app = true
master = true
die-on-term = true
lazy-apps = true
enable-threads = true
processes = 1
threads = 4
buffer-size = 65535
disable-logging = true
"""
_PROGRAMS = """\
[group:portal]
programs = ckan,worker

[program:ckan]
command = {home}/current/bin/uwsgi --ini {etc}/ckan-uwsgi.ini
user = www-data
environment = LANG="C.UTF-8",LC_ALL="C.UTF-8",HOME="{root}/var/lib/ckan"
startsecs = 2
stopwaitsecs = 35
stdout_logfile = {root}/ckan.log
redirect_stderr = true

[program:worker]
command = {home}/current/bin/ckan -c {home}/current/production.ini jobs worker
user = www-data
environment = LANG="C.UTF-8",LC_ALL="C.UTF-8",HOME="{root}/var/lib/ckan"
startsecs = 1
stopwaitsecs = 35
stdout_logfile = {root}/worker.log
redirect_stderr = true
"""
_SITE = """\
server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://unix:{root}/run/web.sock; proxy_set_header Host $host; }}
}}
"""
# What stands at /etc/ckan/default before the first release, and what each deploy writes there.
POINTER = """\
import os

from ckan.cli import CKANConfigLoader
from ckan.config.middleware import make_app

os.environ["CKAN_INI"] = "{ini}"
application = make_app(CKANConfigLoader("{ini}").get_config())
"""


class WebHost:
    """One host with a root directory of its own.

    place
        Directory of the contestant.
    number
        1 for the first; its address is 127.0.0.1, of the next one 127.0.0.2, and so on.
    """

    def __init__(self, place: Path, number: int) -> None:
        self.place, self.name, self.address = place, f"h{number}", f"127.0.0.{number}"
        self.root = place / self.name
        self.home, self.etc = self.root / "usr/lib/ckan", self.root / "etc/ckan/default"
        self.storage = self.root / "var/lib/ckan"
        self.port = free_port()

    @property
    def ini(self) -> str:
        """The configuration that `current` has."""
        return f"{self.home}/current/production.ini"

    def prepare(self) -> None:
        """Make directories and configurations; the official install is put to `default` afterwards."""
        for path in (self.home / "releases", self.etc, self.root / "run", self.storage):
            path.mkdir(parents=True)
        for path in (self.root / "run", self.storage):
            shutil.chown(path, USER, USER)
        words = {"root": self.root, "home": self.home, "etc": self.etc, "port": self.port}
        (self.etc / "ckan-uwsgi.ini").write_text(_UWSGI.format(**words), encoding="utf-8")
        self.supervisor = Supervisor(self.place, self.root / "etc/supervisor/conf.d", name=f"super-{self.name}")
        (self.root / "etc/supervisor/conf.d/portal.conf").write_text(_PROGRAMS.format(**words), encoding="utf-8")
        self.nginx = host_nginx(self.place, self.root / "etc/nginx/conf.d", name=f"nginx-{self.name}")
        (self.root / "etc/nginx/conf.d/portal.conf").write_text(_SITE.format(**words), encoding="utf-8")
        for name in ("wsgi.py", "apache.wsgi"):
            (self.etc / name).write_text(POINTER.format(ini=self.ini), encoding="utf-8")

    def start(self, ini: str) -> None:
        """Serve the official install, without extensions.

        ini
            Its configuration.
        """
        (self.home / "default/production.ini").write_text(ini, encoding="utf-8")
        (self.home / "current").symlink_to("default")
        self.nginx.start()
        self.supervisor.start()

    def ckan(self, *arguments: str) -> None:
        """Run a command of the CKAN that is current, as its user."""
        command = ["runuser", "-u", USER, "--", self.home / "current/bin/ckan", "-c", self.ini, *arguments]
        subprocess.run(command, check=True, cwd="/", capture_output=True)


def front_nginx(place: Path, ports: list[int]) -> Nginx:
    """Return the load balancer before the hosts, not yet started; the same as a Portal has."""
    port = free_port()
    servers = "".join(f" server 127.0.0.1:{host};" for host in ports)
    return Nginx(
        place,
        f"    upstream hosts {{{servers} }}\n    server {{ listen 127.0.0.1:{port};"
        " location / { proxy_pass http://hosts; proxy_set_header Host $host; } }",
        port=port,
        name="nginx-front",
    )


class Ssh(Service):
    """An sshd for the deploys, on one port of all the hosts' addresses, with one key that may log in as this user.

    place
        Directory of the contestant.
    addresses
        Where it listens.
    """

    def __init__(self, place: Path, addresses: list[str]) -> None:
        super().__init__(place, "sshd")
        self.port = free_port()
        host_key, self.key = make_key(self.directory, "host"), make_key(self.directory, "key")
        public = self.key.with_suffix(".pub").read_text(encoding="utf-8")
        (self.directory / "authorized_keys").write_text(public, encoding="utf-8")
        lines = [f"ListenAddress {address}" for address in addresses]
        config = {
            "Port": self.port, "HostKey": host_key, "PidFile": "none", "StrictModes": "no", "UsePAM": "no",
            "AuthorizedKeysFile": self.directory / "authorized_keys", "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no", "PermitRootLogin": "yes", "UseDNS": "no", "MaxStartups": "100",
            "MaxSessions": "100", "Subsystem": "sftp internal-sftp",
        }  # fmt: skip
        lines += [f"{name} {value}" for name, value in config.items()]
        (self.directory / "sshd_config").write_text("\n".join(lines) + "\n", encoding="utf-8")
        kind, text, *_ = host_key.with_suffix(".pub").read_text(encoding="utf-8").split()
        self.known_hosts = self.directory / "known_hosts"
        known = "".join(f"[{address}]:{self.port} {kind} {text}\n" for address in addresses)
        self.known_hosts.write_text(known, encoding="utf-8")

    def start(self) -> Ssh:
        """Start it. Raises PartError."""
        Path("/run/sshd").mkdir(exist_ok=True)
        command = ["/usr/sbin/sshd", "-D", "-e", "-f", self.directory / "sshd_config"]
        self.launch(command, lambda: answers(self.port), env={"PATH": f"{os.defpath}:/usr/sbin:/usr/bin:/sbin:/bin"})
        return self
