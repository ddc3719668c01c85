"""
Test Kitchen without Docker: `make test-kitchen`. For each suite of kitchen.yml a fresh Debian boots in a container,
with systemd and ssh, and Test Kitchen converges and verifies it by its driver `proxy`.

The containers use the network of this machine, since a highstate installs packages. `KITCHEN` names the program, by
default `kitchen`. docs/development.md says what to install.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import yaml

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from hosts.run import VENV, debian, eventually  # noqa: E402
from parts.process import sandbox  # noqa: E402
from parts.system import ensure_packages  # noqa: E402

REPO = Path(__file__).resolve().parents[2]
# Salt comes from this checkout's virtualenv. The rest is the highstate's business, or that of test/kitchen/services.
PACKAGES = "systemd,systemd-sysv,dbus,openssh-server,sudo,python3,python3-venv,ca-certificates,curl,procps"
PORT = 2222
# ssh, the web server, PostgreSQL, Redis, Solr: what the containers listen on.
PORTS = (PORT, 80, 5432, 6379, 8983)
KITCHEN = os.environ.get("KITCHEN", "kitchen")


def suites() -> list[str]:
    """Return the names of the suites."""
    lines = [line for line in (REPO / "kitchen.yml").read_text(encoding="utf-8").splitlines() if "<%=" not in line]
    return [suite["name"] for suite in yaml.safe_load("\n".join(lines))["suites"]]


def busy() -> list[int]:
    """Return which of the ports another program listens on."""
    found = []
    for port in PORTS:
        with socket.socket() as asking:
            found += [port] if asking.connect_ex(("127.0.0.1", port)) == 0 else []
    return found


def in_the_way() -> str:
    """Say what is missing, '' for nothing."""
    if not shutil.which(KITCHEN):
        return f"there is no program {KITCHEN}; install Test Kitchen and kitchen-salt: docs/development.md"
    if ports := busy():
        return f"another program listens on {', '.join(map(str, ports))}, which the containers need; stop it"
    return ""


class Container:
    """A Debian with systemd and ssh."""

    def __init__(self, name: str, place: Path, tree: Path) -> None:
        self.root, self.key, self.log = place / name, place / f"{name}.key", place / f"{name}.log"
        subprocess.run(["cp", "-a", "--reflink=auto", tree, self.root], check=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True)
        self.write("etc/hostname", f"{name}\n")
        self.write("etc/hosts", f"127.0.0.1 localhost {name}\n")
        self.write("etc/ssh/sshd_config.d/kitchen.conf", f"Port {PORT}\nListenAddress 127.0.0.1\n")
        self.write("root/.ssh/authorized_keys", self.key.with_suffix(".key.pub").read_text())
        # Packages come from where this machine has them, with the certificates that it trusts.
        for path in ("etc/apt/apt.conf.d", "etc/ssl/certs/ca-certificates.crt", "etc/pip.conf"):
            self.copy(path)
        (self.root / "usr/local/bin/salt-call").symlink_to(VENV / "bin/salt-call")
        command = [
            "systemd-nspawn", "-q", "-b", "-D", self.root, "-M", f"ckan-kitchen-{name}", "--register=no", "--keep-unit",
            "--resolv-conf=copy-host", "--timezone=off", "--link-journal=no", f"--bind-ro={VENV}",
            # As a host has it: bubblewrap gives each build a network of its own.
            "--capability=CAP_NET_ADMIN",
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(mode=0o700 if ".ssh" in path else 0o755, parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def copy(self, path: str) -> None:
        source, target = Path("/", path), self.root / path
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        elif source.exists():
            shutil.copyfile(source, target)

    def up(self) -> bool:
        return PORT in busy()

    def stop(self) -> None:
        for child in psutil.Process(self.process.pid).children():
            os.kill(child.pid, signal.SIGKILL)
        self.process.wait(30)


def test(suite: str, container: Container, place: Path) -> bool:
    """Converge and verify a suite; returns whether all went well."""
    env = {
        **os.environ, "KITCHEN_LOCAL_YAML": str(REPO / "test/kitchen/proxy.yml"), "KITCHEN_HOST": "127.0.0.1",
        "KITCHEN_PORT": str(PORT), "KITCHEN_SSH_KEY": str(container.key), "KITCHEN_LOG": "info",
    }  # fmt: skip
    # Its notes and logs go where the container is, and not into the checkout.
    done = subprocess.run([KITCHEN, "test", f"{suite}-debian-12", "--log-overwrite"], cwd=REPO, env=env, check=False)
    shutil.rmtree(REPO / ".kitchen", ignore_errors=True)
    return done.returncode == 0


def main() -> int:
    """Test all suites; returns the exit code."""
    if problem := in_the_way():
        print(problem, file=sys.stderr)
        return 1
    if sys.argv[1:2] != ["inside"]:
        ensure_packages(["debootstrap", "systemd-container", "openssh-client"], say=print)
        debian("debian-bookworm-plain", PACKAGES)
        again = [sys.executable, __file__, "inside", *sys.argv[1:]]
        return subprocess.run(["unshare", "-m", "--", *again], check=False).returncode
    subprocess.run(["mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"], check=True)
    place, tree = sandbox("ckan-kitchen-"), debian("debian-bookworm-plain", PACKAGES)
    failed = []
    for suite in sys.argv[2:] or suites():
        begun, container = time.monotonic(), Container(suite, place, tree)
        try:
            good = eventually(container.up, 60) and test(suite, container, place)
        finally:
            container.stop()
        failed += [] if good else [suite]
        print(f"{suite}: {'ok' if good else 'FAILED'} in {time.monotonic() - begun:.0f} s", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}; the containers are in {place}", file=sys.stderr)
        return 1
    shutil.rmtree(place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
