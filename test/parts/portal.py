"""A whole portal in a sandbox: the data services, a master, web hosts with a root of their own, and a front door."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from parts.base import uv_path
from parts.fleet import REPO, Fleet
from parts.keyring import write_secrets
from parts.nginx import Nginx, host_nginx
from parts.ports import free_port
from parts.process import kill_all, stop_all
from parts.supervisor import Supervisor


class Portal:
    """Web hosts under one master, behind one front nginx.

    sandbox
        Directory of all the parts.
    base
        The virtualenv that releases are clones of.
    hosts
        Ids of the minions; each is a web host.
    env
        Name of the environment that is meant where none is named.
    secrets
        What is encrypted in the pillar: {environment: {setting: secret}}.
    trace
        Log everything, and record every program that is started.
    options
        Further configuration of master and minions, as for ``Fleet``.

    The pillar is pillar.example as it stands, with secrets of our own; what is so in the sandbox alone (paths, ports)
    is laid over it. `synced` is as for ``Fleet``.
    """

    synced = False

    def __init__(
        self,
        sandbox: Path,
        base: Path,
        hosts: Sequence[str] = ("web1", "web2"),
        env: str = "production",
        secrets: Mapping[str, Mapping[str, str]] | None = None,
        trace: bool = False,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.sandbox, self.base, self.hosts, self.env = Path(sandbox), Path(base), list(hosts), env
        self.ports = {host: free_port() for host in self.hosts}
        self.front_port = free_port()
        self.url = f"http://127.0.0.1:{self.front_port}"
        self.fleet = Fleet(self.sandbox, self.hosts, trace, options)
        self.fleet.synced = self.synced
        # Where the site is asked; None for what the pillar says.
        self.address: str | None = self.url
        self._copy_pillar(secrets or {})

    def root(self, host: str) -> Path:
        """Return the root directory of a host."""
        return self.sandbox / host

    def _copy_pillar(self, secrets: Mapping[str, Mapping[str, str]]) -> None:
        shutil.copytree(REPO / "pillar.example", self.fleet.pillar_roots, dirs_exist_ok=True)
        keyring = self.fleet.keyring.make()
        for env in {self.env, *secrets}:
            # A secret that nobody asks for is still none that stands in the example.
            wanted = {"database:password": f"database-password-of-{env}", **secrets.get(env, {})}
            file = self.fleet.pillar_roots / f"ckan/secrets/{env}.sls"
            write_secrets(file, {name: keyring.encrypt(secret) for name, secret in wanted.items()})
        (self.fleet.file_roots / "top.sls").write_text(
            yaml.safe_dump({"base": {"ckan:env:*": [{"match": "pillar"}, "ckan"]}}), encoding="utf-8"
        )

    def write_pillar(self, settings: Mapping[str, Any]) -> None:
        """Lay settings over the pillar: what all hosts share is given, what differs from host to host is known here."""
        for host in self.hosts:
            root = self.root(host)
            own = {
                "root": str(root),
                # Any unprivileged user that is not CKAN's will do; the highstate makes one where it may.
                "build_user": "nobody",
                "paths": {"base": str(self.base)},
                "installer": {"uv": uv_path()},
                "manage": {"packages": False, "services": False, "user": False},
                # Each has a root of its own, and nobody uploads.
                "storage": {"kind": "elsewhere"},
                "web": {
                    "listen": f"127.0.0.1:{self.ports[host]}",
                    "processes": 1,
                    "nginx_conf": str(self.sandbox / f"nginx-{host}/nginx.conf"),
                    "supervisor_conf": str(self.sandbox / f"super-{host}/supervisord.conf"),
                },
                **({"site_url": self.address} if self.address else {}),
            }
            text = yaml.safe_dump({"ckan": _merged(own, settings)}, allow_unicode=True)
            self.overlay(host).write_text(text, encoding="utf-8")

    def overlay(self, host: str) -> Path:
        """Return the file that is laid over the pillar of a host."""
        return self.fleet.overlay / f"{host}.yaml"

    def start(self, say: Callable[[str], None] = lambda _: None) -> Portal:
        """Start the web servers of all hosts, the front door, the master and the minions."""
        say("starting nginx and supervisor of each host, and the front nginx")
        for host in self.hosts:
            root = self.root(host)
            root.mkdir(parents=True, exist_ok=True)
            host_nginx(self.sandbox, root / "etc/nginx/conf.d", name=f"nginx-{host}").start()
            Supervisor(self.sandbox, root / "etc/supervisor/conf.d", name=f"super-{host}").start()
        servers = "".join(f" server 127.0.0.1:{self.ports[host]};" for host in self.hosts)
        Nginx(
            self.sandbox,
            f"    upstream hosts {{{servers} }}\n"
            f"    server {{ listen 127.0.0.1:{self.front_port};"
            " location / { proxy_pass http://hosts; proxy_set_header Host $host; } }",
            port=self.front_port,
            name="nginx-front",
        ).start()
        say("starting the Salt master and the minions " + ", ".join(self.hosts))
        self.fleet.start()
        return self

    def stop(self) -> None:
        """Stop everything in the sandbox."""
        self.fleet.keyring.stop()
        stop_all(self.sandbox)

    def destroy(self) -> None:
        """Stop everything, and remove the sandbox."""
        self.fleet.keyring.stop()
        kill_all(self.sandbox)
        shutil.rmtree(self.sandbox, ignore_errors=True)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy()

    def set_up(self) -> None:
        """Start everything, and bring all hosts to their first release; raises AssertionError where that fails."""
        self.start()
        done = self.highstate()
        assert done["code"] == 0, done["text"]

    def highstate(self, *arguments: str, env: str = "") -> dict[str, Any]:
        """Run a highstate on all hosts of an environment.

        Returns {"code": exit code, "hosts": {host: {state id: result}}}.
        """
        # Not with --static: that makes salt exit 0 although a state failed.
        done = self.fleet.run("salt", "-I", f"ckan:env:{env or self.env}", "state.highstate", "--out=json",
                              "--timeout=60", *arguments)  # fmt: skip
        hosts: dict[str, Any] = {}
        for document in re.split(r"(?<=^\})\n", done.stdout, flags=re.M):
            hosts.update(_json(document) or {})
        return {"code": done.returncode, "hosts": hosts, "text": done.stdout + done.stderr}

    def highstate_of(self, host: str, *arguments: str) -> dict[str, Any]:
        """Run a highstate on one host; returns its results by the ids of the states."""
        done = self.fleet.run("salt", host, "state.highstate", "--out=json", "--timeout=60", *arguments)
        told = _json(done.stdout)
        assert isinstance(told, dict) and isinstance(told.get(host), dict), done.stdout + done.stderr
        return {state["__id__"]: state for state in told[host].values()}

    def deploy(self, kind: str = "deploy", **pillar: Any) -> dict[str, Any]:
        """Run the orchestration of a deploy or a rollback.

        Returns {"code": exit code, "text": what the operator sees, "progress": the lines while it goes on, "summary":
        what stands last}.
        """
        return self.end(self.begin(kind, **pillar))

    def begin(self, kind: str = "deploy", **pillar: Any) -> subprocess.Popen:
        """Start the orchestration of a deploy or a rollback, and do not wait for it."""
        told = json.dumps({"env": self.env, **pillar})
        command = self.fleet.command("salt-run", "state.orch", f"orch.{kind}", f"pillar={told}")
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=self.fleet.environment(),
        )  # fmt: skip

    @staticmethod
    def end(run: subprocess.Popen) -> dict[str, Any]:
        """Wait for what `begin` started; returns what `deploy` does."""
        out, err = run.communicate(timeout=600)
        progress, _, summary = err.strip().rpartition("\n\n")
        return {"code": run.returncode, "text": out + err, "progress": progress, "summary": summary}

    def status(self) -> tuple[int, dict[str, Any]]:
        """Return the exit code and the answer of `ckan.status`."""
        done = self.fleet.run("salt-run", "ckan.status", self.env, "--out=json")
        return done.returncode, _json(done.stdout)

    def stage_under_way(self, host: str) -> str:
        """Return what a host is at, as the file of its lock says; '' for nothing."""
        file = self.root(host) / "usr/lib/ckan/shared/lock"
        with open(file, encoding="utf-8") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return handle.read()
        return ""

    def call(self, host: str, function: str, *arguments: str) -> tuple[int, Any]:
        """Call a function on a host, with arguments as they are typed; returns the exit code and the answer."""
        return self.fleet.call(host, function, *arguments)

    def current(self, host: str) -> str:
        """Return the release that `current` of a host points to, '' when there is none."""
        link = self.root(host) / "usr/lib/ckan/current"
        return link.resolve().name if link.is_symlink() else ""

    def releases(self, host: str) -> list[str]:
        """Return the names under `releases` of a host, but for what the next one will have as well."""
        path = self.root(host) / "usr/lib/ckan/releases"
        return sorted(entry.name for entry in path.iterdir() if entry.name != ".ahead") if path.exists() else []

    def get(self, path: str = "/", host: str = "", name: str = "127.0.0.1") -> tuple[int, str, str]:
        """Ask the front door, or one host's, by a host name; returns status, body, and the release that answered."""
        address = f"http://127.0.0.1:{self.ports[host]}" if host else self.url
        request = urllib.request.Request(address + path, headers={"Host": name})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read().decode("utf-8"), response.headers.get("X-CKAN-Release", "")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode("utf-8", "replace"), error.headers.get("X-CKAN-Release", "")


def next_second() -> None:
    """Wait until the clock shows another second, so that the next release gets an id of its own."""
    time.sleep(1.01 - time.time() % 1)


def _merged(one: Mapping, two: Mapping) -> dict:
    out = dict(one)
    for key, value in two.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = _merged(out[key], value) if both else value
    return out


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        # Warnings may stand before it.
        match = re.search(r"^\{.*^\}", text, re.S | re.M)
        return json.loads(match.group(0)) if match else {}
