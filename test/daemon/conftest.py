"""Two web hosts with real daemons: Salt, uWSGI, supervisor, nginx. Only CKAN is a small stand-in (test/stub)."""

from __future__ import annotations

import copy
import hashlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from parts.base import CACHE, alone, uv_path
from parts.portal import Portal, next_second
from parts.process import sandbox
from parts.supervisor import Supervisor
from stub import repos

REPO = Path(__file__).resolve().parents[2]
PASSWORD, SESSION = "marked-database-password", "marked-session-secret-of-this-test"


def make_stub_base() -> Path:
    """
    A virtualenv with the stand-in and uWSGI, kept between runs since uWSGI is built from source; one for each text of
    the stand-in, so that two checkouts of the formula can be tested at once.
    """
    stub = REPO / "test/stub/ckan"
    sources = b"".join(path.read_bytes() for path in sorted(stub.rglob("*.py")))
    wanted = hashlib.sha256(sources).hexdigest()
    base = CACHE / f"stub-base-{wanted[:12]}"
    marker = base / "stub"
    with alone(base):
        if marker.exists() and marker.read_text() == wanted:
            return base
        if not ((base / "bin/uwsgi").exists() and list(base.glob("lib/*/site-packages/redis"))):
            subprocess.run([uv_path(), "venv", "-q", "--clear", "-p", "/usr/bin/python3", base], check=True)
            subprocess.run([uv_path(), "pip", "install", "-q", "-p", base / "bin/python", "uwsgi", "redis"], check=True)
        install = [uv_path(), "pip", "install", "-q", "--reinstall-package", "ckan", "-p", base / "bin/python"]
        subprocess.run([*install, stub], check=True)
        marker.write_text(wanted)
    return base


@pytest.fixture(scope="session")
def stub_base() -> Path:
    """What `make_stub_base` returns."""
    return make_stub_base()


class Site(Portal):
    """The portal of the daemon tests: one extension, and settings that a test may change for one host."""

    synced = True

    def __init__(self, base: Path, hosts: Sequence[str] = ("web1", "web2"), **more: Any) -> None:
        secrets = {"database:password": PASSWORD, "secrets:session": SESSION}
        super().__init__(sandbox("ckan-t-"), base, hosts, **{"secrets": {"production": secrets}, **more})
        self.repo = repos.make_repo(self.sandbox, "mycity", "Hello one", backend="uv_build")
        self.settings: dict[str, Any] = {
            "extensions": {"ckanext-mycity": {"url": str(self.repo), "ref": "main"}},
            "plugins": ["mycity"],
            "web": {"boot_timeout": 15, "drain_timeout": 5},
            "workers": {"default": {"remove": True}},
            "stable_seconds": 1,
            # The stand-in's database is a file: one for both hosts, as a real one would be.
            "config": {"stub.database": str(self.sandbox / "database/stub.json")},
        }
        database = self.sandbox / "database"
        database.mkdir()
        subprocess.run(["chown", "www-data", database], check=True)
        self.write_pillar(self.settings)

    def write_host(self, host: str, **changes: Any) -> None:
        """Give one host other settings than the rest."""
        before = self.overlay(host).read_text()
        settings = copy.deepcopy(self.settings)
        for key, value in changes.items():
            settings[key] = {**settings.get(key, {}), **value} if isinstance(value, dict) else value
        self.write_pillar(settings)
        changed = self.overlay(host).read_text()
        self.write_pillar(self.settings)
        assert changed != before
        self.overlay(host).write_text(changed)

    def served(self) -> list[str]:
        """What each host's own front door says."""
        return [self.get("/", host)[1].split('mycity-marker">')[-1].split("<")[0] for host in self.hosts]

    def linked(self) -> list[str]:
        return [self.current(host) for host in self.hosts]

    def supervisor(self, host: str = "web1") -> Supervisor:
        """The supervisor of a host, whoever started it."""
        return Supervisor(self.sandbox, self.root(host) / "etc/supervisor/conf.d", name=f"super-{host}")

    def disk(self) -> dict[str, Any]:
        """What must not change when something is refused: links, releases and their manifests, app servers."""
        found: dict[str, Any] = {}
        for host in self.hosts:
            home = self.root(host) / "usr/lib/ckan"
            found[host] = {
                "current": os.readlink(home / "current") if (home / "current").is_symlink() else "",
                "releases": {p.parent.name: p.read_text() for p in home.glob("releases/*/release.json")},
                "names": self.releases(host),
                "programs": sorted(p.name for p in (self.root(host) / "etc/supervisor/conf.d").glob("*.conf")),
            }
        return found

    def good_deploy(self, text: str) -> str:
        """Deploy a new commit and return the release."""
        next_second()
        repos.commit_change(self.repo, text)
        done = self.deploy()
        assert done["code"] == 0, done["text"]
        return self.current("web1")


def later(*values: Any) -> Any:
    """Values of a parametrized test that are tried by `make test-long` only: others of the same test are enough."""
    return pytest.param(*values, marks=pytest.mark.long)


def eventually(say: Callable[[], Any], wanted: Any, seconds: float = 15) -> None:
    """Ask again and again until the answer is the one that is wanted."""
    deadline = time.monotonic() + seconds
    while (said := say()) != wanted and time.monotonic() < deadline:
        time.sleep(0.2)
    assert said == wanted


@pytest.fixture(scope="session")
def first_site(stub_base: Path) -> Iterator[Site]:
    """Hosts after their first highstate."""
    with Site(stub_base) as site:
        site.set_up()
        yield site


@pytest.fixture
def site(first_site: Site) -> Iterator[Site]:
    """Hosts after their first highstate, with the pillar as it was when the test is over, on one good release."""
    yield first_site
    first_site.write_pillar(first_site.settings)
    repos.commit_change(first_site.repo, f"after a test {first_site.linked()}")
