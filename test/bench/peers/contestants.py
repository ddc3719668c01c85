"""Who is compared: what each starts once, and the commands of a deploy and of a rollback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from parts import base
from parts.portal import Portal
from parts.postgres import Postgres
from parts.process import PartError, kill_all, last_lines, run
from parts.redis import Redis
from parts.solr import Solr, schema_of
from parts.system import ensure_packages
from peers import origins
from peers.measure import Group
from peers.web_hosts import POINTER, USER, Ssh, WebHost, front_nginx

RECIPES = Path(__file__).resolve().parent / "recipes"
ANSIBLE = "ansible-core==2.19.14"
PASSWORD = "word-of-the-database"
KEEP, STANDBY_SECONDS = 5, 600


class Services:
    """What all contestants share: PostgreSQL with a database for each, Redis, Solr, the official install, the origins.

    place
        Directory of all.
    say
        Called with progress lines.
    """

    def __init__(self, place: Path, say: Callable[[str], None]) -> None:
        self.place, self.say = place / "services", say
        self.base, self.wheels = base.build_base(say=say), origins.wheelhouse()
        self.origins = origins.Origins(place / "git")

    def start(self) -> None:
        """Start them."""
        self.say("starting PostgreSQL, Redis and Solr")
        self.postgres = Postgres(self.place).start()
        self.redis = Redis(self.place).start()
        self.solr = Solr(self.place, schema_of(self.base)).start(say=self.say)
        self.templates = origins.ini_template(self.base, self.place / "draft.ini")

    def database(self, name: str) -> None:
        """Make the database of a contestant, with a user of the same name."""
        self.postgres.create_database(name, name, PASSWORD)

    def stop(self) -> None:
        """Stop them."""
        kill_all(self.place)


class Contestant:
    """One way to deploy, on hosts of its own.

    services
        What is shared.
    place
        Directory of its own, with a short path.
    hosts
        How many hosts.
    """

    name = ""

    def __init__(self, services: Services, place: Path, hosts: int) -> None:
        self.services, self.place, self.hosts = services, place, hosts
        place.mkdir(mode=0o755)
        self.group = Group(place.name, place)
        self.ports: list[int] = []
        self.front_port = 0

    @staticmethod
    def install(say: Callable[[str], None]) -> None:
        """Install the tool. Raises PartError where it cannot be had."""

    def set_up(self) -> None:
        """Start all that runs between deploys."""
        raise NotImplementedError

    def run(self, what: str) -> None:
        """Run a `deploy` or a `rollback` to its end. Raises PartError when it fails."""
        raise NotImplementedError

    def restore(self) -> None:
        """Undo what a turn has changed of the settings."""

    def disk(self) -> tuple[list[Path], Path]:
        """Return all that takes disk for releases on the first host, and the newest release among it."""
        raise NotImplementedError

    def tear_down(self) -> None:
        """End all of its processes, and remove its directory."""
        kill_all(self.place)
        self.group.end()
        shutil.rmtree(self.place, ignore_errors=True)


class Formula(Contestant):
    """This formula: `salt-run state.orch` with a real master and minions."""

    name = "this formula"

    def set_up(self) -> None:
        services, hosts = self.services, [f"web{number}" for number in range(1, self.hosts + 1)]
        services.database("formula")
        secrets = {"production": {"database:password": PASSWORD}}
        self.portal = Portal(self.place, services.base, hosts, secrets=secrets)
        self.settings: dict[str, Any] = {
            "database": {
                "host": "127.0.0.1", "port": services.postgres.port, "name": "formula", "user": "formula",
            },
            "redis_url": f"redis://127.0.0.1:{services.redis.port}/0",
            "solr_url": services.solr.url,
            "extensions": {
                "ckanext-mycity": {"remove": True},
                **{repo.name: {"url": str(repo), "ref": "main"} for repo in services.origins.repos.values()},
            },
            "plugins": list(services.origins.repos),
            "config": {"ckan.site_title": "Portal of My City"},
            "installer": {"find_links": str(services.wheels), "offline": True},
            "keep": KEEP,
        }  # fmt: skip
        self.standby(0)
        with self.group.entered():
            self.portal.start(services.say)
            done = self.portal.highstate()
        if done["code"]:
            raise PartError(f"the highstate failed:\n{done['text'][-4000:]}")
        self.ports, self.front_port = list(self.portal.ports.values()), self.portal.front_port

    def standby(self, seconds: int) -> None:
        """Write the pillar, with the setting `web:standby`."""
        self.portal.write_pillar({**self.settings, "web": {"standby": seconds}})

    def run(self, what: str) -> None:
        with self.group.entered():
            begun = self.portal.begin(what)
        done = self.portal.end(begun)
        if done["code"]:
            raise PartError(f"{self.name}: {what} failed:\n{done['text'][-4000:]}")

    def disk(self) -> tuple[list[Path], Path]:
        host = self.portal.hosts[0]
        home = self.portal.root(host) / "usr/lib/ckan"
        return [self.services.base, home / "shared", home / "releases"], (home / "current").resolve()

    def tear_down(self) -> None:
        if hasattr(self, "portal"):
            self.portal.fleet.keyring.stop()
        super().tear_down()


class Standby(Contestant):
    """The same formula and portal, with the app server of the release before kept for a while.

    formula
        The contestant whose portal it is.
    """

    name = "this formula, within web:standby"

    def __init__(self, formula: Formula) -> None:
        self.formula, self.services, self.hosts, self.group = formula, formula.services, formula.hosts, formula.group

    def set_up(self) -> None:
        self.ports, self.front_port = self.formula.ports, self.formula.front_port

    def run(self, what: str) -> None:
        self.formula.standby(STANDBY_SECONDS)
        self.formula.run(what)

    def restore(self) -> None:
        self.formula.standby(0)
        # What was kept would be work for the next deploy.
        for host in self.formula.portal.hosts:
            self.formula.portal.fleet.ask(host, "ckan_release.end_standby")

    def disk(self) -> tuple[list[Path], Path]:
        return self.formula.disk()

    def tear_down(self) -> None:
        """The formula's own does it."""


class Peer(Contestant):
    """A tool that reaches hosts by ssh."""

    # Of Redis.
    database = 1

    def set_up(self) -> None:
        services, own = self.services, self.place.name
        services.database(own)
        self.machines = [WebHost(self.place, number) for number in range(1, self.hosts + 1)]
        self.ports = [machine.port for machine in self.machines]
        front = front_nginx(self.place, self.ports)
        self.front_port = front.port
        self.words = {
            "secret": "a-secret-of-the-portal-that-is-long-enough",
            "database_url": f"postgresql://{own}:{PASSWORD}@127.0.0.1:{services.postgres.port}/{own}",
            "redis_url": f"redis://127.0.0.1:{services.redis.port}/{self.database}",
            "solr_url": services.solr.url,
            "site_url": f"http://127.0.0.1:{front.port}",
            "plugins": " ".join(services.origins.repos),
            "site_title": "Portal of My City",
        }
        self.ssh = Ssh(self.place, [machine.address for machine in self.machines])
        templates = self._templates()
        with self.group.entered():
            for machine in self.machines:
                machine.prepare()
                origins.default_virtualenv(services.base, machine.home / "default", services.wheels)
                machine.start(
                    _plain(templates["ini.j2"], {**self.words, "storage_path": machine.storage, "plugins": ""})
                )
                if machine is self.machines[0]:
                    machine.ckan("db", "init")
            front.start()
            self.ssh.start()
        shutil.copytree(RECIPES, self.place / "recipes")
        self.configure()

    def _templates(self) -> dict[str, str]:
        folder = self.place / "templates"
        folder.mkdir()
        pointers = {
            "pointer.j2": POINTER.format(ini="{{ home }}/current/production.ini"),
            "pointer.erb": POINTER.format(ini="<%= home %>/current/production.ini"),
        }
        made = {**self.services.templates, **pointers}
        for name, text in made.items():
            (folder / name).write_text(text, encoding="utf-8")
        return made

    def shared_words(self) -> dict[str, Any]:
        """What both tools are told of the portal."""
        wheels = ["--no-index", "--find-links", str(self.services.wheels)]
        return {
            "templates": str(self.place / "templates"),
            "web_user": USER,
            "keep": KEEP,
            "extensions": [
                {"name": repo.name, "url": str(repo), "ref": "main"} for repo in self.services.origins.repos.values()
            ],
            "pip_install": ["install", "--quiet", "--disable-pip-version-check", *wheels],
        }

    @staticmethod
    def paths_of(machine: WebHost) -> dict[str, str]:
        """What both tools are told of a host."""
        return {
            "home": str(machine.home), "etc": str(machine.etc), "supervisor": str(machine.supervisor.conf),
            "storage": str(machine.storage),
        }  # fmt: skip

    def configure(self) -> None:
        """Write the configuration of the tool."""
        raise NotImplementedError

    def command(self, what: str) -> list[str]:
        """Return the command of a deploy or a rollback."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """Return the variables of the command, on top of the usual ones."""
        return {}

    def run(self, what: str) -> None:
        log = self.place / f"{what}.log"
        usual = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8",
            "HOME": os.path.expanduser("~"),
        }  # fmt: skip
        with log.open("wb") as output, self.group.entered():
            begun = subprocess.Popen(
                self.command(what), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                cwd=self.place / "recipes", env={**usual, **self.environment()},
            )  # fmt: skip
        if begun.wait(timeout=600):
            raise PartError(f"{self.name}: {what} failed:\n{last_lines(log, 60)}")

    def disk(self) -> tuple[list[Path], Path]:
        home = self.machines[0].home
        return [home / "default", home / "releases"], (home / "current").resolve()


class Ansible(Peer):
    """A playbook after the original's description, by ansible-core; one host without ssh."""

    name = "Ansible playbook"

    @staticmethod
    def install(say: Callable[[str], None]) -> None:
        ansible(say)

    def configure(self) -> None:
        hosts = {}
        for machine in self.machines:
            reached = {"ansible_connection": "local"} if self.hosts == 1 else {"ansible_host": machine.address}
            hosts[machine.name] = {**reached, **self.paths_of(machine), "storage_path": str(machine.storage)}
        common = {
            **self.words, **self.shared_words(), "ansible_user": "root", "ansible_port": self.ssh.port,
            "ansible_ssh_private_key_file": str(self.ssh.key), "ansible_python_interpreter": "/usr/bin/python3",
        }  # fmt: skip
        inventory = {"web": {"hosts": hosts, "vars": common}}
        (self.place / "inventory.yml").write_text(yaml.safe_dump(inventory), encoding="utf-8")
        known = f"-o UserKnownHostsFile={self.ssh.known_hosts} -o ControlMaster=auto -o ControlPersist=60s"
        (self.place / "ansible.cfg").write_text(
            f"[defaults]\ninventory = {self.place}/inventory.yml\nlocal_tmp = {self.place}/tmp\nforks = 10\n"
            f"remote_tmp = {self.place}/tmp\n[ssh_connection]\npipelining = True\nssh_args = -F none {known}\n"
            f"control_path_dir = {self.place}/cp\n",
            encoding="utf-8",
        )

    def command(self, what: str) -> list[str]:
        return [str(ansible() / "ansible-playbook"), f"{what}.yml"]

    def environment(self) -> Mapping[str, str]:
        return {"ANSIBLE_CONFIG": str(self.place / "ansible.cfg")}


class Capistrano(Peer):
    """Tasks of Capistrano, from Debian's package, over ssh."""

    name = "Capistrano"
    database = 2

    @staticmethod
    def install(say: Callable[[str], None]) -> None:
        ensure_packages(["capistrano"], say)

    def configure(self) -> None:
        told = {
            **self.shared_words(), "words": self.words, "port": self.ssh.port, "key": str(self.ssh.key),
            "known_hosts": str(self.ssh.known_hosts),
            "hosts": [{"address": machine.address, **self.paths_of(machine)} for machine in self.machines],
        }  # fmt: skip
        (self.place / "portal.json").write_text(json.dumps(told), encoding="utf-8")

    def command(self, what: str) -> list[str]:
        task = {"deploy": "deploy", "rollback": "deploy:rollback"}[what]
        return ["cap", "production", task]

    def environment(self) -> Mapping[str, str]:
        return {"PORTAL": str(self.place / "portal.json")}


def ansible(say: Callable[[str], None] | None = None) -> Path:
    """Return the directory of Ansible's programs, in a virtualenv of its own that is made once."""
    place = base.CACHE / "ansible"
    marker = place / "complete"
    with base.alone(place):
        if not (marker.exists() and marker.read_text(encoding="utf-8") == ANSIBLE):
            shutil.rmtree(place, ignore_errors=True)
            uv, log = base.uv_path(), place.with_name("ansible.log")
            run([uv, "venv", "--quiet", "--python", "/usr/bin/python3", place], "Making a virtualenv", log)
            install = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", place / "bin/python"]
            run([*install, ANSIBLE], f"Installing {ANSIBLE}", log, say=say)
            marker.write_text(ANSIBLE, encoding="utf-8")
    return place / "bin"


def _plain(template: str, words: Mapping[str, Any]) -> str:
    for name, value in words.items():
        template = template.replace(f"{{{{ {name} }}}}", str(value))
    return template
