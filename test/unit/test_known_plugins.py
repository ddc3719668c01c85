"""A plugin that is listed must be brought by CKAN or by an extension; where that can be told it is asked at plan."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from ckan_deploy.build.resolution import resolve
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.manifest import Resolution
from ckan_deploy.releases.site import Site
from fakes import REPO, FakeHost, least_pillar
from functional.steps import archive, extension
from parts.base import uv_path
from stub import repos, wheels


class Host:
    """A host with a base; `pillar` is what its pillar says under `ckan`."""

    def __init__(self, root: Path, base: Path) -> None:
        self.root = root
        self.pillar: dict[str, Any] = least_pillar(root, build_user="nobody", paths__base=str(base))
        self.pillar.update(web={"server": "none", "app": "none"}, installer={"uv": uv_path()})
        # Further directories of the file server.
        self.file_roots: list[Path] = []


def planned(host: Host) -> Resolution:
    """What a deploy would build now."""
    return resolve(Site.of(FakeHost({"ckan": host.pillar}, tuple(host.file_roots))))


def versions(resolution: Resolution) -> dict[str, str]:
    return {name: pin.version for name, pin in resolution.extensions.items()}


def refused(host: Host) -> str:
    with pytest.raises(FormulaError) as failure:
        planned(host)
    return str(failure.value)


def install(base: Path, *what: object) -> None:
    subprocess.run(
        [uv_path(), "pip", "install", "-q", "--offline", "--no-deps", "-p", base / "bin/python", *what], check=True
    )


def looked_into(host, name: str, file: Path, wrong: str) -> None:
    """The plugin that an archive brings is known, and is proposed for one that is written wrong."""
    host.file_roots = [file.parent]
    host.pillar["extensions"] = {f"ckanext-{name}": archive(file)}
    host.pillar["plugins"] = [name]
    assert planned(host).extensions.keys() == {f"ckanext-{name}"}
    host.pillar["plugins"] = [wrong]
    assert f"did you mean {name}?" in refused(host)


@pytest.fixture(scope="module")
def stub_base():
    """A virtualenv with the stand-in for CKAN, as an official install would have left it."""
    # The build user reads it; pytest's own directories are closed.
    path = Path(tempfile.mkdtemp(prefix="ckan-k-", dir="/tmp"))
    path.chmod(0o755)
    base = path / "base"
    for command in (
        [uv_path(), "venv", "-q", "-p", "/usr/bin/python3", str(base)],
        [uv_path(), "pip", "install", "-q", "-p", str(base / "bin/python"), str(REPO / "test/stub/ckan")],
    ):
        subprocess.run(command, check=True, capture_output=True)
    yield base
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def host(stub_base):
    root = Path(tempfile.mkdtemp(prefix="ckan-k-", dir="/tmp"))
    root.chmod(0o755)
    yield Host(root, stub_base)
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def origins(tmp_path) -> Path:
    path = tmp_path / "origins"
    path.mkdir()
    return path


@pytest.fixture
def mycity(host, origins) -> Path:
    """A repository of an extension that the host's pillar lists."""
    repo = repos.make_repo(origins, "mycity", "Hello one", backend="uv_build")
    host.pillar["extensions"] = {"ckanext-mycity": extension(repo)}
    host.pillar["plugins"] = ["mycity"]
    return repo


@pytest.fixture
def shelf(host) -> Path:
    """A folder of wheels that the host installs from."""
    folder = host.root / "wheels"
    folder.mkdir()
    host.pillar["installer"]["find_links"] = str(folder)
    return folder


@pytest.fixture
def own_base(host, stub_base) -> Path:
    """A base that belongs to one test."""
    base = host.root / "usr/lib/ckan/default"
    shutil.copytree(stub_base, base, symlinks=True)
    host.pillar["paths"]["base"] = str(base)
    return base


def test_all_the_unknown_plugins_stand_in_one_message_a_hint_only_where_one_is_close(host, mycity):
    host.pillar["plugins"] = ["harvest", "mycity", "my_city"]
    assert refused(host) == (
        "plugins harvest, my_city (did you mean mycity?) are in ckan:plugins, but neither CKAN nor an extension brings "
        "them; correct them or add their extensions."
    )


def test_a_plugin_without_any_extension_is_refused(host):
    host.pillar["plugins"] = ["harvest"]
    assert "plugin harvest is in ckan:plugins" in refused(host)


def test_what_the_base_brings_counts(host, mycity, own_base, origins):
    """From a wheel, from a checkout, and from one that the old setup.py develop installed."""
    wheel = wheels.make_extension(origins / "wheels", "delta", "Delta")
    install(own_base, wheel, "--editable", repos.make_repo(origins, "gamma", "Gamma", backend="uv_build"))
    old = repos.make_repo(origins, "old", "Old")
    info = old / "ckanext_old.egg-info"
    info.mkdir()
    (info / "PKG-INFO").write_text("Metadata-Version: 1.0\nName: ckanext-old\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[ckan.plugins]\nold = ckanext.old.plugin:Plugin\n")
    packages = next(own_base.glob("lib/python3*/site-packages"))
    (packages / "ckanext-old.egg-link").write_text(f"{old}\n.\n")
    (packages / "easy-install.pth").write_text(f"{old}\n")
    host.pillar["plugins"] = ["mycity", "delta", "gamma", "old"]
    assert planned(host).extensions.keys() == {"ckanext-mycity"}
    host.pillar["plugins"].append("deltas")
    assert "plugin deltas is" in refused(host) and "did you mean delta?" in refused(host)


def test_a_plugin_of_the_base_that_its_extension_lacks_is_refused(host, mycity, own_base, origins):
    point = {"mycity_old": "ckanext.mycity.plugin:Plugin"}
    install(own_base, wheels.make_wheel(origins / "wheels", "ckanext-mycity", "0.1.0", plugins=point))
    host.pillar["plugins"] = ["mycity_old"]
    assert "plugin mycity_old is" in refused(host)
    host.pillar["extensions"] = {}
    assert planned(host).extensions == {}


def test_an_extension_of_the_index_is_looked_into_where_its_wheel_is_at_hand(host, shelf):
    wheels.make_extension(shelf, "delta", "Delta")
    host.pillar["extensions"] = {"ckanext-delta": {"version": "1.0"}}
    host.pillar["plugins"] = ["delta"]
    assert versions(planned(host)) == {"ckanext-delta": "1.0"}
    host.pillar["plugins"] = ["delta", "harvest"]
    assert "plugin harvest is" in refused(host)


@pytest.mark.parametrize("at_hand", [True, False])
def test_an_extension_that_another_one_requires_brings_plugins_too(host, origins, shelf, at_hand):
    wheels.make_extension(shelf, "delta", "Delta")
    repo = repos.make_repo(origins, "mycity", "One", requirements=["ckanext-delta"], backend="uv_build")
    host.pillar["extensions"] = {"ckanext-mycity": extension(repo)}
    host.pillar["plugins"] = ["mycity", "delta"]
    host.pillar["installer"]["find_links"] = str(shelf) if at_hand else f"file://{shelf}"
    assert planned(host).packages["ckanext-delta"] == "1.0"
    host.pillar["plugins"] = ["mycity", "harvest"]
    if at_hand:
        assert "plugin harvest is" in refused(host)
    else:
        assert planned(host).packages["ckanext-delta"] == "1.0"


def test_an_archive_is_looked_into(host, origins):
    wheel = wheels.make_extension(origins / "archives", "epsilon", "Epsilon")
    looked_into(host, "epsilon", wheel, wrong="epsilo")


def test_an_sdist_is_looked_into(host, origins):
    repo = repos.make_repo(origins, "zeta", "Zeta", backend="uv_build")
    sdist = origins / "archives/ckanext_zeta-0.1.0.tar.gz"
    sdist.parent.mkdir()
    repos.git(repo, "archive", "--prefix", "ckanext_zeta-0.1.0/", "--output", str(sdist), "HEAD")
    looked_into(host, "zeta", sdist, wrong="zetta")


def test_the_packages_of_a_subdirectory_and_a_patch_are_looked_into(host, origins):
    mono = origins / "mono"
    repo = repos.make_repo(mono / "parts", "inner", "Inner", backend="uv_build")
    shutil.rmtree(repo / ".git")
    repos.git(mono, "init", "-q", "--initial-branch", "main")
    repos.git(mono, "add", "-A")
    repos.git(mono, "commit", "-qm", "all in one")
    project = repo / "pyproject.toml"
    project.write_text(project.read_text().replace("inner = ", "second = ", 1))
    (origins / "second.patch").write_text(repos.git(mono, "diff") + "\n")
    host.file_roots = [origins]
    inner = extension(mono, subdirectory="parts/ckanext-inner")
    host.pillar["extensions"] = {"ckanext-inner": inner}
    host.pillar["plugins"] = ["inner"]
    assert planned(host).extensions.keys() == {"ckanext-inner"}
    inner["patches"] = ["salt://second.patch"]
    assert "plugin inner is" in refused(host)
    host.pillar["plugins"] = ["second"]
    assert planned(host).extensions.keys() == {"ckanext-inner"}


@pytest.mark.slow
def test_an_extension_with_setup_cfg_is_looked_into(host, origins):
    repo = repos.make_repo(origins, "alpha", "Alpha")
    (repo / "pyproject.toml").unlink()
    (repo / "setup.py").write_text("from setuptools import setup\nsetup(message_extractors={'ckanext': []})\n")
    (repo / "setup.cfg").write_text(
        "[metadata]\nname = ckanext-alpha\nversion = 0.1\n\n[options]\npackages = find:\n\n"
        "[options.entry_points]\nckan.plugins =\n    alpha = ckanext.alpha.plugin:Plugin\n"
    )
    repos.git(repo, "add", "-A")
    repos.git(repo, "commit", "-qm", "setup.cfg")
    host.pillar["extensions"] = {"ckanext-alpha": extension(repo)}
    host.pillar["plugins"] = ["alpha"]
    assert planned(host).extensions.keys() == {"ckanext-alpha"}
    host.pillar["plugins"] = ["alfa"]
    assert "did you mean alpha?" in refused(host)
