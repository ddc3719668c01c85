"""A Salt master and its minions in a sandbox, each minion with a root directory of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import salt.client
import yaml

from parts.keyring import KeyRing
from parts.ports import answers, free_port
from parts.process import PartError, Service

REPO = Path(__file__).resolve().parents[2]
# What a user's file_roots hold of the formula.
FORMULA = ("ckan", "_grains", "_modules", "_pillar", "_states", "_runners", "_output", "_utils", "orch")


def salt_program(name: str) -> str:
    """Return the path of one of Salt's programs, beside this interpreter or in PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise PartError(f"{name} is missing: install the project's requirements")
    return found


class Fleet:
    """One master and some minions, with the formula in their file server.

    sandbox
        Directory of all the parts.
    minions
        Their ids.
    trace
        Log everything, and record every program that a minion starts (`programs`).
    options
        Further configuration: {"master" or minion id: {option: value}}.

    `file_roots` and `pillar_roots` are directories that may be written to; `pillar_roots/top.sls` is the caller's. What
    `overlay/MINION.yaml` says wins over the pillar of a minion. `synced`: master and minions have the formula's modules
    before they start, as after the sync of an earlier day, and a highstate does not synchronize them again, which takes
    it two seconds of CPU a host.
    """

    synced = False

    def __init__(
        self, sandbox: Path, minions: Sequence[str], trace: bool = False,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        self.sandbox, self.trace, self.options = Path(sandbox), trace, options or {}
        self.minions = list(minions)
        self.keyring = KeyRing(self.sandbox / "salt/k")
        self.secrets = self.sandbox / "salt/ckan-secrets"
        self.overlay = self.sandbox / "overlay"
        self.file_roots = self.sandbox / "srv/salt"
        self.pillar_roots = self.sandbox / "srv/pillar"
        self.config = self.sandbox / "salt/master"
        self.services: dict[str, Service] = {}
        self._client: Any = None
        for path in (self.file_roots, self.pillar_roots, self.overlay):
            path.mkdir(parents=True, exist_ok=True)
        self.publish_formula()

    def publish_formula(self) -> None:
        """Copy the formula, as it stands in this checkout, into the file server."""
        for name in FORMULA:
            shutil.copytree(
                REPO / name, self.file_roots / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
            )

    def start(self) -> Fleet:
        """Start master and minions, and wait until every minion answers with the formula's modules."""
        publish, ret = self.publish_port, self.ret_port = free_port(), free_port()
        self._write(
            self.config / "master",
            {
                "interface": "127.0.0.1", "publish_port": publish, "ret_port": ret, "auto_accept": True,
                "root_dir": str(self.sandbox / "salt/m"), "sock_dir": str(self.sandbox / "salt/ms"),
                "file_roots": {"base": [str(self.file_roots)]}, "pillar_roots": {"base": [str(self.pillar_roots)]},
                "fileserver_update_niceness": 0, "worker_threads": 3, "log_level": "warning",
                # Each salt-run looks for the master's own grains otherwise, twice.
                "grains_cache": True,
                **self._logging(), "gpg_keydir": str(self.keyring.path),
                "ext_pillar": [
                    {"cmd_yaml": f"cat {self.overlay}/%s.yaml"}, {"ckan_secrets": str(self.secrets)},
                ],
                **self.options.get("master", {}),
            },
        )  # fmt: skip
        if self.synced:
            self._lay_out_modules(self.sandbox / "salt/m/var/cache/salt/master")
        self.start_master()
        for index, minion in enumerate(self.minions):
            self._write(
                self.minion_config(minion) / "minion",
                {
                    "id": minion, "master": "127.0.0.1", "publish_port": publish, "master_port": ret,
                    "root_dir": str(self.sandbox / f"salt/{minion}"), "sock_dir": str(self.sandbox / f"salt/s{index}"),
                    "log_level": "warning", "acceptance_wait_time": 2, "random_reauth_delay": 1,
                    "grains_cache": False, "enable_fqdns_grains": False,
                    "autoload_dynamic_modules": not self.synced,
                    **self._logging(), **self.options.get(minion, {}),
                },
            )  # fmt: skip
            if self.synced:
                self._lay_out_modules(self.sandbox / f"salt/{minion}/var/cache/salt/minion")
            self.start_minion(minion)
        self.wait_for_minions()
        if not self.synced:
            self.sync()
        return self

    def _lay_out_modules(self, cache: Path) -> None:
        """
        Put the modules of the file server where a sync puts them (test_sync.py compares the two), with the bytecode of
        this checkout: each part of the tests begins with it, and a sync of two hosts takes six seconds of CPU.
        """
        for name in [name for name in FORMULA if name.startswith("_")]:
            place = cache / "extmods" / name.removeprefix("_")
            # The second is what it has fetched.
            for copy in (place, cache / "files/base" / name):
                shutil.copytree(self.file_roots / name, copy, dirs_exist_ok=True)
            for compiled in (REPO / name).rglob("__pycache__/*.pyc"):
                beside = place / compiled.parent.parent.relative_to(REPO / name)
                if beside.is_dir():
                    (beside / "__pycache__").mkdir(exist_ok=True)
                    shutil.copy2(compiled, beside / "__pycache__")

    def start_master(self, **changes: object) -> None:
        """Start the master, after a change of its configuration if any; does not wait for the minions."""
        file = self.config / "master"
        self._write(file, {**yaml.safe_load(file.read_text()), **changes})
        service = self.services["master"] = Service(self.sandbox, "salt-master")
        service.launch(
            [salt_program("salt-master"), "-c", self.config],
            lambda: answers(self.ret_port) and answers(self.publish_port),
            timeout=90,
        )

    def stop_master(self) -> None:
        """Stop the master; the minions look for it until it is there again."""
        self.services["master"].stop()

    def start_minion(self, minion: str, ahead_seconds: int = 0) -> None:
        """Start one minion, with a clock that is ahead if need be; does not wait until the master sees it."""
        service = self.services[minion] = Service(self.sandbox, f"salt-minion-{minion}")
        command = [salt_program("salt-minion"), "-c", self.minion_config(minion)]
        env = {}
        if ahead_seconds:
            # Not the program faketime, which would stand between us and the minion.
            library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
            env = {"LD_PRELOAD": str(library), "FAKETIME": f"+{ahead_seconds}s"}
        if self.trace:
            recorder = [
                "strace",
                "-f",
                "--seccomp-bpf",
                "-qq",
                "-e",
                "trace=execve",
                "-e",
                "signal=none",
                "-s",
                "100000",
            ]
            command = [*recorder, "-o", self.programs(minion), *command]
        service.launch(command, lambda: True, env=env)

    def programs(self, minion: str) -> Path:
        """Return the file with the arguments of every program that a minion started."""
        return self.sandbox / f"programs-{minion}"

    def _logging(self) -> dict[str, str]:
        return {"log_level_logfile": "trace"} if self.trace else {}

    def stop_minion(self, minion: str) -> None:
        """Stop one minion."""
        self.services[minion].stop()

    def sync(self) -> None:
        """
        What the README asks a user to type once: the modules, on minions and master. Only the kinds that there are, and
        side by side; test/hosts types it as it is.
        """
        with subprocess.Popen(
            self.command("salt-run", "saltutil.sync_all"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, env=self.environment(),
        ) as run:  # fmt: skip
            kinds = [f"saltutil.sync_{kind}" for kind in ("utils", "modules", "states", "output", "grains")]
            arguments = [[f"refresh={kind == kinds[-1]}"] for kind in kinds]
            told = self.client.cmd("*", kinds, arguments, timeout=120)
            said = run.communicate()[0]
        if run.returncode:
            raise PartError(f"salt-run saltutil.sync_all failed:\n{said}")
        for minion in self.minions:
            answer = told.get(minion)
            if not isinstance(answer, dict) or not all(isinstance(answer.get(kind), list) for kind in kinds):
                raise PartError(f"the modules of {minion} are not synchronized: {answer}")

    def minion_config(self, minion: str) -> Path:
        """Return the configuration directory of a minion."""
        return self.sandbox / "salt" / f"config-{minion}"

    def run(self, program: str, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess:
        """Run one of Salt's programs on the master, as an operator would; output and exit code as they come."""
        return subprocess.run(
            self.command(program, *arguments), capture_output=True, text=True, timeout=timeout, env=self.environment(),
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip

    @property
    def client(self) -> Any:
        """Salt's Python client, which spares the start of a program."""
        if self._client is None:
            self._client = salt.client.LocalClient(c_path=str(self.config / "master"))
        return self._client

    def ask(self, minion: str, function: str, *arguments: Any, **named: Any) -> Any:
        """Call a function on a minion by Salt's Python client, which spares the start of a program; returns the answer.

        Raises PartError with the minion's words when it fails.
        """
        told = self.client.cmd(minion, function, arguments, kwarg=named, timeout=120, full_return=True).get(minion)
        if not told or told.get("retcode"):
            raise PartError(f"{function} on {minion} failed: {told['ret'] if told else 'no answer'}")
        return told["ret"]

    def call(self, minion: str, function: str, *arguments: str) -> tuple[int, Any]:
        """Do what `salt MINION FUNCTION ARGUMENTS` does; returns the code of the minion and its answer."""
        # A client of its own, since calls run side by side. A busy machine may be slow to say that a long job still
        # runs: it is asked later, and less often.
        client = salt.client.LocalClient(c_path=str(self.config / "master"))
        told = client.cmd(minion, function, arguments, timeout=60, full_return=True).get(minion)
        return (told["retcode"], told["ret"]) if told else (1, "no answer")

    def command(self, program: str, *arguments: str) -> list[str]:
        """Return the whole command line of one of Salt's programs."""
        return [salt_program(program), "-c", str(self.config), *arguments]

    @staticmethod
    def environment() -> dict[str, str]:
        """Return the environment that Salt's programs run in: an operator's, not that of whoever runs the tests."""
        ours = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
        return {**{name: value for name, value in os.environ.items() if name not in ours}, "LC_ALL": "C.UTF-8"}

    def wait_for_minions(self) -> None:
        """Wait until every minion answers the master."""
        for _ in range(20):
            # One that is older than the master hears nothing of it.
            self._client = None
            told = self.client.cmd("*", "test.ping", timeout=5)
            if all(told.get(minion) is True for minion in self.minions):
                return
        raise PartError(f"not all of {', '.join(self.minions)} answer the master: {told}")

    @staticmethod
    def _write(path: Path, content: dict) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
