"""
Hosts without daemons: Salt's own loaders, with a root directory, a pillar and a small stand-in for CKAN.

What is real here: Salt's loader and state modules, git, uv, virtualenvs. What is not: CKAN (test/stub), and there are
no web servers (`web:server: none`, `web:app: none`); the daemon and integration tests have those.
"""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import salt.config
import salt.loader
from saltfactories.utils.functional import Loaders

from ckan_deploy.build import ahead
from ckan_deploy.releases.site import Site
from fakes import FakeHost
from functional.steps import extension, later_id
from parts.base import uv_path
from stub import repos

REPO = Path(__file__).resolve().parents[2]
SECRETS = {"session": "a-session-secret-of-some-length", "api_token": "an-api-token-secret"}


@pytest.fixture(scope="session")
def session_dir():
    # Short, and open to the user that runs CKAN: pytest's own directories are neither.
    path = Path(tempfile.mkdtemp(prefix="ckan-f-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def stub_base(session_dir: Path) -> Path:
    """A virtualenv with the stand-in for CKAN, as an official install would have left it."""
    base = session_dir / "base"
    for command in (
        [uv_path(), "venv", "-q", "-p", "/usr/bin/python3", str(base)],
        [uv_path(), "pip", "install", "-q", "-p", str(base / "bin/python"), str(REPO / "test/stub/ckan")],
    ):
        subprocess.run(command, check=True, capture_output=True)
    return base


class HostLoaders(Loaders):
    """
    Salt's loaders, made once and given another host and pillar as often as a test asks.

    Making them costs two seconds (they synchronise modules and gather grains), turning them to other options a tenth.
    """

    _gathered: dict[str, Any] = {}

    @property
    def grains(self) -> dict[str, Any]:
        if not self._gathered:
            self._gathered.update(salt.loader.grains(self.opts))
        return dict(self._gathered)

    @property
    def pillar(self) -> dict[str, Any]:
        """What the options say: there are no files of a pillar, and to render none takes Salt as long as a test."""
        self._pillar = copy.deepcopy(self._original_opts["pillar"])
        return self._pillar

    def turn_to(self, opts: dict) -> None:
        if opts != self._original_opts:
            self._original_opts = copy.deepcopy(opts)
            self.reload_all()


@pytest.fixture(scope="session")
def session_loaders(session_dir: Path) -> HostLoaders:
    salt_dir = session_dir / "salt"
    opts = salt.config.minion_config(None)
    opts.update(
        id="web1", root_dir=str(salt_dir), cachedir=str(salt_dir / "cache"), file_client="local",
        file_roots={"base": [str(session_dir / "formula")]}, pillar_roots={"base": []},
        module_dirs=[str(REPO / "_modules")],
        states_dirs=[str(REPO / "_states")], utils_dirs=[str(REPO / "_utils")],
        pki_dir=str(salt_dir / "pki"), sock_dir=str(salt_dir / "s"),
        extension_modules=str(salt_dir / "ext"), log_file=str(salt_dir / "log"), test=False,
        fileserver_ignoresymlinks=False, grains={}, pillar={},
    )  # fmt: skip
    # The file server has the formula's files alone: a walk through the whole checkout takes seconds. Salt's modules
    # come from where they are.
    (session_dir / "formula").mkdir()
    (session_dir / "formula/ckan").symlink_to(REPO / "ckan")
    for name in ("cache", "pki", "s", "ext"):
        (salt_dir / name).mkdir(parents=True, exist_ok=True)
    return HostLoaders(opts)


class Host:
    """A host seen through Salt's loaders; `pillar` is what its pillar says under `ckan`, and may be changed."""

    def __init__(self, root: Path, base: Path, loaders: HostLoaders):
        self.root = root
        self.pillar: dict[str, Any] = {
            "env": "production",
            "root": str(root),
            "build_user": "nobody",
            "paths": {"base": str(base)},
            "site_url": "http://portal.example.org",
            "database": {"password": "database-password"},
            "secrets": dict(SECRETS),
            "web": {"server": "none", "app": "none"},
            "manage": {"packages": False, "services": False, "user": False},
            "installer": {"uv": uv_path()},
            "config": {},
        }
        # Further directories of the file server.
        self.file_roots: list[str] = []
        self._loaders = loaders
        self._opts = copy.deepcopy(loaders.opts)
        root.chmod(0o755)
        # What the highstate makes: CKAN runs as an unprivileged user, and writes here only.
        storage = root / "var/lib/ckan/default/storage"
        storage.mkdir(parents=True)
        shutil.chown(storage, "www-data", "www-data")

    def loaders(self, test: bool = False) -> HostLoaders:
        """Return loaders that see the pillar as it is now."""
        self._loaders.turn_to(
            {
                **self._opts,
                "pillar": {"ckan": self.pillar},
                "test": test,
                "file_roots": {"base": [*self._opts["file_roots"]["base"], *self.file_roots]},
            }
        )
        return self._loaders

    def site(self, **changes: Any) -> Site:
        """The site of this pillar, with changes, as the package sees it; without Salt."""
        return Site.of(FakeHost({"ckan": {**self.pillar, **changes}}, tuple(map(Path, self.file_roots))))

    def deploy(self, **options) -> dict[str, Any]:
        """Deploy as a deploy a second later would: two of a test may fall into one second."""
        return self.loaders().modules["ckan_release.deploy"](**{"release": later_id(self), **options})

    def plan(self, **options) -> dict[str, Any]:
        return self.loaders().modules["ckan_release.plan"](**{"release": later_id(self), **options})

    def __getattr__(self, name: str):
        """`host.rollback()` calls `ckan_release.rollback`."""
        if name.startswith("_"):
            raise AttributeError(name)
        return self.loaders().modules[f"ckan_release.{name}"]

    @property
    def home(self) -> Path:
        return self.root / "usr/lib/ckan"

    def current(self) -> str:
        """The release that is served, '' when there is none."""
        link = self.home / "current"
        return link.resolve().name if link.is_symlink() else ""

    def releases(self) -> list[str]:
        """What is in the directory of the releases, but for what the next one will have as well."""
        path = self.home / "releases"
        return sorted(p.name for p in path.iterdir() if p.name != ahead.NAME) if path.exists() else []

    def tree(self) -> dict[str, Any]:
        """
        All that stands on disk below the home: what a refusal must leave as it was. But for what was seen last of
        shared files: the base has another number of links as soon as a test beside this one makes a release of it. And
        for what the next release would have as well: a build that fails has taken it.
        """
        found = {}
        for folder, folders, files in os.walk(self.home):
            if folder == str(self.home / "shared"):
                folders[:] = [name for name in folders if name != "installed"]
            if folder == str(self.home / "releases"):
                folders[:] = [name for name in folders if name != ahead.NAME]
            for name in folders + files:
                path = Path(folder, name)
                status = path.lstat()
                found[str(path.relative_to(self.home))] = (
                    os.readlink(path) if path.is_symlink() else (status.st_ino, status.st_mtime_ns, status.st_size)
                )
        return found

    def python(self, release: str, code: str) -> str:
        """Run code by a release's interpreter."""
        python = self.home / "releases" / release / "bin/python"
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd="/")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture
def host(stub_base: Path, session_loaders: HostLoaders):
    root = Path(tempfile.mkdtemp(prefix="ckan-h-", dir="/tmp"))
    yield Host(root, stub_base, session_loaders)
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def origins(session_dir: Path) -> Iterator[Path]:
    """Where a test makes its git repositories: all may read there."""
    path = Path(tempfile.mkdtemp(prefix="origins-", dir=session_dir))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def mycity(host: Host, origins: Path) -> Path:
    """A repository of an extension that the host's pillar lists."""
    repo = repos.make_repo(origins, "mycity", "Hello one", backend="uv_build")
    host.pillar["extensions"] = {"ckanext-mycity": extension(repo)}
    host.pillar["plugins"] = ["mycity"]
    return repo


@pytest.fixture
def shelf(host: Host) -> Path:
    """A folder of wheels that the host installs from; pytest's own directories are not open to the build user."""
    folder = host.root / "wheels"
    folder.mkdir()
    host.pillar["installer"]["find_links"] = str(folder)
    return folder


@pytest.fixture
def own_base(host: Host, stub_base: Path) -> Path:
    """A base that belongs to one test."""
    base = host.root / "usr/lib/ckan/default"
    shutil.copytree(stub_base, base, symlinks=True)
    host.pillar["paths"]["base"] = str(base)
    return base
