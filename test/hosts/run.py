"""
Three whole Debian hosts: systemd in containers, with a network of their own; a master on the first. `make test-hosts`.

What README.md tells a newcomer to type, read from there: the formula on the master, a key, the pillar, highstate,
deploy, rollback. And what nobody hopes to see: a host that loses its power in the middle of a deploy, its return, a
reboot. Then the same formula by gitfs, as docs/install.md says, and an update of it. The exit code tells whether all
was as it should be. CKAN is the small stand-in; nginx, supervisor, uWSGI, users and services are the host's own, under
systemd.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import yaml

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from daemon.conftest import make_stub_base  # noqa: E402
from hosts import readme  # noqa: E402
from parts.base import CACHE, alone, uv_path  # noqa: E402
from parts.fleet import FORMULA  # noqa: E402
from parts.process import run, sandbox  # noqa: E402
from parts.system import ensure_packages  # noqa: E402
from stub import repos  # noqa: E402

REPO = Path(__file__).resolve().parents[2]
VENV = Path(sys.prefix)
HOSTS = {"web1": "10.77.0.1", "web2": "10.77.0.2", "web3": "10.77.0.3"}
DOMAIN = "data.example.org"
PACKAGES = (
    "systemd,systemd-sysv,dbus,iproute2,procps,python3,python3-venv,git,gnupg,nginx-light,supervisor,openssh-client,"
    "bubblewrap,libmagic1,libpq5,libxml2,libpython3.11,ca-certificates"
)
BEGUN = time.monotonic()
WRONG: list[str] = []


def title(text: str) -> None:
    print(f"\n[{time.monotonic() - BEGUN:5.0f} s] {text}", flush=True)


def expect(claim: str, true: bool, more: str = "") -> None:
    """Print a claim with its outcome, and more of it where it is not so."""
    print(f"            {'ok ' if true else 'NOT SO'} {claim}", flush=True)
    if not true:
        WRONG.append(claim)
        print(more, flush=True)


def debian(name: str = "debian-bookworm", packages: str = PACKAGES) -> Path:
    """The tree that the hosts are copies of, made once."""
    tree = CACHE / name
    with alone(tree):
        marker = tree / "complete"
        if not marker.exists() or marker.read_text() != packages:
            shutil.rmtree(tree, ignore_errors=True)
            command = ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", tree]
            run(command, "Installing Debian into a directory", CACHE / f"{name}.log", timeout=1800)
            marker.write_text(packages)
    return tree


class Host:
    """A Debian host in a container."""

    def __init__(self, name: str, place: Path, tree: Path, shared: dict[Path, str]) -> None:
        self.name, self.root, self.shared, self.log = name, place / name, shared, place / f"{name}.log"
        subprocess.run(["cp", "-a", "--reflink=auto", tree, self.root], check=True)
        self.write("etc/hostname", f"{name}\n")
        self.write("etc/hosts", "127.0.0.1 localhost\n" + "".join(f"{ip} {host}\n" for host, ip in HOSTS.items()))
        network = f"[Match]\nName=host0\n[Network]\nAddress={HOSTS[name]}/24\n"
        self.write("etc/systemd/network/10-host0.network", network)
        self.enable("systemd-networkd", "/lib/systemd/system")
        minion = {"id": name, "master": HOSTS["web1"], "acceptance_wait_time": 2, "enable_fqdns_grains": False}
        self.write("etc/salt/minion", yaml.safe_dump(minion))
        self.service("salt-minion")
        # As the package leaves it: a site of its own on port 80.
        (self.root / "etc/nginx/sites-enabled/default").unlink(missing_ok=True)

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def service(self, name: str) -> None:
        """A unit of one of Salt's programs, as its package has it."""
        self.write(
            f"etc/systemd/system/{name}.service",
            f"[Unit]\nAfter=network-online.target\n[Service]\nType=notify\nNotifyAccess=all\nExecStart={VENV}/bin/{name}\n"
            "Environment=LC_ALL=C.UTF-8\nRestart=no\n[Install]\nWantedBy=multi-user.target\n",
        )
        self.enable(name, "/etc/systemd/system")

    def enable(self, name: str, folder: str) -> None:
        link = self.root / f"etc/systemd/system/multi-user.target.wants/{name}.service"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"{folder}/{name}.service")

    def boot(self) -> None:
        """Start the host; does not wait until it is up."""
        binds = [f"--{how}={path}" for path, how in self.shared.items()]
        command = [
            "systemd-nspawn", "-q", "-b", "-D", self.root, "-M", f"ckan-{self.name}", "--register=no", "--keep-unit",
            "--network-bridge=ckan0", "--resolv-conf=off", "--timezone=off", "--link-journal=no", *binds,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def leader(self) -> int:
        """The host's own process 1, as this machine sees it."""
        return psutil.Process(self.process.pid).children()[0].pid

    def run(self, *command: str, check: bool = False, stdin: str = "") -> subprocess.CompletedProcess:
        """Run a command on the host, as its root would at a terminal."""
        command = self.entering(*command)
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=900, check=check)

    def entering(self, *command: str) -> list[str]:
        where = ["nsenter", "-t", str(self.leader()), "-m", "-u", "-i", "-n", "-p", "--"]
        path = f"{VENV}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return [*where, "env", "-i", f"PATH={path}", "LC_ALL=C.UTF-8", "HOME=/root", *command]

    def power_off(self) -> None:
        """End the host at once, with all that is at work on it."""
        os.kill(self.leader(), signal.SIGKILL)
        self.process.wait(30)

    def current(self) -> str:
        link = self.root / "usr/lib/ckan/current"
        return Path(os.readlink(link)).name if link.is_symlink() else ""

    def at_work(self) -> str:
        """What it is at, as the lock of the host says."""
        file = self.root / "usr/lib/ckan/shared/lock"
        if file.exists():
            with file.open(encoding="utf-8") as handle:
                try:
                    fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return handle.read()
        return ""

    def page(self) -> str:
        """The front page, through the host's nginx from outside."""
        request = urllib.request.Request(f"http://{HOSTS[self.name]}/", headers={"Host": DOMAIN})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.read().decode()
        except (OSError, urllib.error.URLError) as exc:
            return str(exc)


def eventually(say, seconds: float = 120) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if say():
            return True
        time.sleep(1)
    return False


class Walk:
    """The steps, on hosts that are up."""

    def __init__(self, place: Path) -> None:
        self.place, base = place, make_stub_base()
        self.repo = repos.make_repo(place / "git", "mycity", "Hello one", backend="uv_build")
        database = place / "database"
        database.mkdir()
        shutil.chown(database, "www-data", "www-data")
        shared = {path: "bind-ro" for path in (VENV, CACHE / "bin", base, place / "git")}
        shared[database] = "bind"
        tree = debian()
        self.hosts = {name: Host(name, place, tree, shared) for name in HOSTS}
        self.master = self.hosts["web1"]
        self.blocks = {**readme.blocks(), **readme.blocks(readme.INSTALL.read_text(encoding="utf-8"))}
        self.set_up_master()
        # What is so on these hosts alone. It lies over the example's pillar, and is edited as a user would edit that.
        self.settings = {
            "site_url": f"http://{DOMAIN}",
            "paths": {"base": str(base)},
            "link": "copy",  # the base is on another file system
            "installer": {"uv": uv_path(), "offline": True},
            "manage": {"packages": False},  # there is no network to install from
            "extensions": {"ckanext-mycity": {"url": str(self.repo)}},
            "plugins": ["mycity"],
            "workers": {"default": {"remove": True}},
            "web": {"processes": 1, "drain_timeout": 5},
            "config": {"stub.database": str(database / "stub.json")},
        }

    def set_up_master(self) -> None:
        """A master that has been installed, and the address that the README clones the formula from."""
        self.master.write("etc/salt/master", yaml.safe_dump({"auto_accept": True, "timeout": 30}))
        self.master.service("salt-master")
        self.formula = formula = self.place / "git/ckan-formula.git"
        for name in (*FORMULA, "pillar.example"):
            shutil.copytree(REPO / name, formula / name, ignore=shutil.ignore_patterns("__pycache__"))
        repos.git(formula, "init", "--quiet", "--initial-branch=main")
        repos.git(formula, "add", "--all")
        repos.git(formula, "commit", "--quiet", "--message=The formula")
        origin = f'[url "{formula.parent}/"]\n\tinsteadOf = https://git.example.org/\n'
        self.master.write("root/.gitconfig", origin)

    def type(self, name: str, stdin: str = "") -> subprocess.CompletedProcess:
        """Type a block of the manual on the master; expects that no command of it fails."""
        block = self.blocks[name]
        title(f"typed, {name}:\n{textwrap.indent(block.text.rstrip(), ' ' * 12)}")
        done = self.master.run("sh", "-e", "-c", block.text, stdin=stdin)
        expect("no command of it fails", done.returncode == 0, (done.stdout + done.stderr)[-6000:])
        return done

    def put(self, name: str) -> None:
        """Write a block of the manual into the file that it names."""
        block = self.blocks[name]
        title(f"written, {name}: {block.path}")
        self.master.write(block.path.lstrip("/"), block.text)

    def write_pillar(self, **more) -> None:
        """Lay the settings over those of the example."""
        top = "base:\n  'web*':\n    - ckan.production\n    - own\n"
        self.master.write("srv/pillar/top.sls", top)
        self.master.write("srv/pillar/own.sls", yaml.safe_dump({"ckan": {**self.settings, **more}}))

    def serves(self, text: str) -> bool:
        return all(f">{text}<" in host.page() for host in self.hosts.values())

    def one_release(self) -> str:
        found = {host.current() for host in self.hosts.values()}
        return found.pop() if len(found) == 1 else ""

    def answering(self) -> bool:
        done = self.master.run("salt", "*", "test.ping", "--out=txt", "--timeout=5")
        return all(f"{name}: True" in done.stdout for name in HOSTS)

    def boot(self) -> None:
        title("three hosts boot, and their minions find the master on web1")
        for host in self.hosts.values():
            host.boot()
        time.sleep(5)
        expect("all minions answer", eventually(self.answering, 180), self.master.log.read_text()[-2000:])

    def first_steps(self) -> None:
        self.type("formula")
        self.put("master")
        self.type("restart")
        expect("all minions answer again", eventually(self.answering, 120))
        self.type("sync")
        self.type("key")
        block = self.type("encrypt", stdin="of-the-database\n").stdout
        expect("it prints lines to paste", "-----BEGIN PGP MESSAGE-----" in block, block)
        secrets = self.master.root / "srv/pillar/ckan/secrets/production.sls"
        secrets.write_text(secrets.read_text().replace("ckan: {}\n", block))
        self.write_pillar()
        self.type("validate")

    def highstate(self) -> None:
        self.put("top")
        self.type("highstate")
        expect("all serve one first release", bool(self.one_release()) and self.serves("Hello one"))
        active = self.hosts["web2"].run("systemctl", "is-active", "nginx", "supervisor").stdout.split()
        expect("nginx and supervisor run under systemd", active == ["active", "active"], str(active))

    def good(self, text: str) -> None:
        title(f"orch.deploy of {text!r}")
        repos.commit_change(self.repo, text)
        before = self.one_release()
        done = self.type("deploy")
        print(done.stderr, done.stdout)
        expect("Salt lists the steps on a line each", 0 < len(done.stdout.splitlines()) <= 20, done.stdout)
        expect("all serve the new release", self.one_release() > before and self.serves(text))

    def deploy_two(self) -> None:
        self.good("Hello two")

    def deploy_three(self) -> None:
        self.good("Hello three")

    def power_loss(self) -> None:
        title("web3 loses its power in the middle of a deploy")
        before, web3 = self.one_release(), self.hosts["web3"]
        hook = {"stage": "check", "when": "before", "function": "cmd.run", "args": ["sleep 15"]}
        self.write_pillar(hooks=[hook])
        repos.commit_change(self.repo, "Hello never")
        told = 'pillar={"env": "production"}'
        command = self.master.entering("salt-run", "state.orch", "orch.deploy", told)
        deploy = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        expect("web3 is at the stage check", eventually(lambda: '"check"' in web3.at_work()))
        web3.power_off()
        _, told = deploy.communicate(timeout=300)
        print(told)
        expect("the deploy fails and names web3", deploy.returncode == 1 and "web3 failed at check" in told, told)
        expect("it says what to type", "when it is up, type: salt web3 ckan_release.abort" in told)
        expect("all hosts are on the release of before", self.one_release() == before)
        self.write_pillar()
        title("web3 is up again")
        web3.boot()
        time.sleep(5)
        expect("its minion answers", eventually(self.answering))
        expect("it serves what it served", eventually(lambda: self.serves("Hello two"), 30), web3.page())
        done = self.master.run("salt", "web3", "state.highstate", "--state-output=changes")
        expect("its highstate succeeds", done.returncode == 0, (done.stdout + done.stderr)[-4000:])
        done = self.master.run("salt-run", "ckan.status", "production")
        print(done.stdout)
        expect("ckan.status finds nothing wrong", done.returncode == 0, done.stderr)

    def rollback(self) -> None:
        title("orch.rollback")
        print(self.type("rollback").stderr)
        expect("all serve the release of before", bool(self.one_release()) and self.serves("Hello two"))

    def reboot(self) -> None:
        title("web2 reboots")
        release, web2 = self.one_release(), self.hosts["web2"]
        web2.run("systemctl", "reboot")
        # A container that reboots ends, and leaves it to its unit to start it again: that is us.
        web2.process.wait(60)
        web2.boot()
        expect("it serves the same release again", eventually(lambda: self.serves("Hello two"), 90), web2.page())
        expect("and no other", self.one_release() == release)
        expect("its minion answers", eventually(self.answering))
        done = self.master.run("salt-run", "ckan.history", "production")
        print(done.stdout)
        expect("the history has the rollback", done.returncode == 0 and "search is broken" in done.stdout)

    def by_gitfs(self) -> None:
        self.put("gitfs-master")
        title("the master reads the formula from git alone")
        shutil.rmtree(self.master.root / "srv/formulas")
        # What a minion has of the checkout must not be what it goes on with.
        for host in self.hosts.values():
            shutil.rmtree(host.root / "var/cache/salt/minion/extmods")
            host.run("systemctl", "restart", "salt-minion")
        before = self.one_release()
        self.master.run("systemctl", "restart", "salt-master", check=True)
        expect("all minions answer again", eventually(self.answering, 120))
        self.type("gitfs-sync")
        done = self.master.run("salt", "-I", "ckan:env:production", "state.highstate", "--state-output=changes")
        expect("a highstate succeeds", done.returncode == 0, (done.stdout + done.stderr)[-4000:])
        expect("and builds nothing", self.one_release() == before)

    def update(self) -> None:
        title("an update of the formula is pushed: hosts without it are refused, then synced")
        package = self.formula / "_utils/ckan_deploy/errors.py"
        package.write_text(package.read_text() + "\n# a new version\n")
        repos.git(self.formula, "commit", "--quiet", "--all", "--message=A new version")
        done = self.master.run("salt-run", "state.orch", "orch.deploy", 'pillar={"env": "production"}')
        expect("it says what to type", done.returncode == 1 and "saltutil.sync_all" in done.stderr, done.stderr)
        for command in self.blocks["gitfs-sync"].text.splitlines():
            done = self.master.run("sh", "-c", command)
            expect(f"{command} succeeds", done.returncode == 0, done.stdout + done.stderr)
        self.good("Hello four")

    def stop(self) -> None:
        for host in self.hosts.values():
            if getattr(host, "process", None) and host.process.poll() is None:
                host.power_off()


def network() -> None:
    """A bridge in a network of our own, and the control groups as systemd wants them."""
    subprocess.run(["mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"], check=True)
    bridge = ("link add ckan0 type bridge", "addr add 10.77.0.254/24 dev ckan0", "link set ckan0 up")
    for command in ("link set lo up", *bridge):
        subprocess.run(["ip", *command.split()], check=True)


def main() -> int:
    """Run the walk in a network and a mount table of its own; returns the exit code."""
    if sys.argv[1:] != ["inside"]:
        ensure_packages(["debootstrap", "systemd-container"], say=print)
        debian()
        make_stub_base()
        return subprocess.run(["unshare", "-m", "-n", "--", sys.executable, __file__, "inside"], check=False).returncode
    network()
    place = sandbox("ckan-hosts-")
    place.chmod(0o755)
    walk = None
    try:
        walk = Walk(place)
        for step in (walk.boot, walk.first_steps, walk.highstate, walk.deploy_two, walk.power_loss, walk.deploy_three,
                     walk.rollback, walk.reboot, walk.by_gitfs, walk.update):  # fmt: skip
            step()
            if WRONG:
                break
    finally:
        if walk:
            walk.stop()
        if not WRONG:
            shutil.rmtree(place, ignore_errors=True)
    title("all as it should be" if not WRONG else f"NOT as it should be: {'; '.join(WRONG)}; see {place}")
    return 1 if WRONG else 0


if __name__ == "__main__":
    sys.exit(main())
