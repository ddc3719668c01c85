"""A web host with the real CKAN, its app server and its web server by https, deployed without Salt's daemons."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parts.apache import Apache
from parts.nginx import host_nginx
from parts.ports import free_port
from parts.process import kill_all
from parts.supervisor import Supervisor
from stub import repos

DOMAIN = "data.example.org"


class LonePortal:
    """A portal on one host, by https on a port of its own, on IPv4 and IPv6.

    place
        Directory of its parts.
    host
        The host as the formula sees it, a `Host` of the functional tests: Salt's loaders and a pillar.
    settings
        What its pillar says beside: the services that it needs, and what else is so.
    server
        Its web server, `nginx` or `apache`.

    `mycity` is the repository of its extension.
    """

    def __init__(self, place: Path, host: Any, settings: Mapping[str, Any], server: str = "nginx") -> None:
        self.place, self.host, self.port, self.url, self.server = place, host, free_port(), "", server
        self.web = host_nginx(place, place / "sites") if server == "nginx" else Apache(place, place / "sites")
        self.supervisor = Supervisor(place, host.root / "etc/supervisor/conf.d")
        self.mycity = repos.make_repo(place / "git", "mycity", "Welcome to My City", backend="uv_build")
        pillar = host.pillar
        pillar.update(
            plugins=["mycity", "text_view"],
            extensions={"ckanext-mycity": {"url": str(self.mycity), "ref": "main"}},
            tls={**_certificate(place), "listen": str(self.port)},
        )
        pillar.update({name: value for name, value in settings.items() if name not in ("paths", "web", "config")})
        pillar["paths"] |= {f"{server}_site": str(place / "sites/ckan.conf"), **settings.get("paths", {})}
        pillar["web"] = {
            "server": server, "listen": str(free_port()), f"{server}_conf": str(self.web.conf),
            "supervisor_conf": str(self.supervisor.conf), **settings.get("web", {}),
        }  # fmt: skip
        pillar["config"] |= {
            # Nobody is asked on the internet.
            "ckan.gravatar_default": "disabled", "ckan.views.default_views": "text_view", **settings.get("config", {}),
        }  # fmt: skip

    def start(self) -> LonePortal:
        """Start its web server and its supervisor, and make what a highstate makes before the first release."""
        self.web.start()
        self.supervisor.start()
        for folder in ("releases", "shared"):
            (self.host.home / folder).mkdir(parents=True, exist_ok=True)
        self.state("ckan_data.present", "data")
        for name in ("wsgi.py", "apache.wsgi"):
            self.state("ckan_front.pointed", str(self.host.root / "etc/ckan/default" / name))
        return self

    def stop(self) -> None:
        """Stop all of it, and remove it."""
        kill_all(self.place)
        shutil.rmtree(self.place, ignore_errors=True)

    def state(self, function: str, name: str) -> None:
        """Apply a state; raises AssertionError with its comment where it fails."""
        done = self.host.loaders().states[function](name=name)
        assert done.result is True, done.comment

    def be_at(self, path: str) -> None:
        """Bring it to a path of its host, '' for the host's own; its first release is made there."""
        self.url = f"https://{DOMAIN}:{self.port}{path}"
        if self.host.current() and self.host.pillar["site_url"] == self.url:
            return
        self.host.pillar["site_url"] = self.url
        self.state("ckan_front.installed", self.server)
        self.host.deploy()

    @property
    def ini(self) -> Path:
        """The ini of what is live."""
        return self.host.home / "current/production.ini"


def _certificate(place: Path) -> dict[str, str]:
    files = {"certificate": str(place / "cert.pem"), "key": str(place / "cert.key")}
    command = ["openssl", "req", "-x509", "-subj", f"/CN={DOMAIN}", "-days", "2", "-nodes", "-newkey", "ec"]
    command += ["-pkeyopt", "ec_paramgen_curve:P-256", "-keyout", files["key"], "-out", files["certificate"]]
    subprocess.run(command, check=True, capture_output=True)
    return files
