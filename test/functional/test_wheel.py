"""The formula as a Salt extension: the wheel of `make dist`, installed into a fresh virtualenv with Salt alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from parts.base import uv_path
from tools import dist

pytestmark = pytest.mark.slow
REPO = Path(__file__).resolve().parents[2]
ENV = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
# What Salt's loaders find, and which package it is that they import.
LOOK = """
import json, sys
import salt.config, salt.loader
opts = salt.config.minion_config(sys.argv[1] + "/minion")
master = salt.config.master_config(None)
master.update(root_dir=opts["root_dir"], cachedir=opts["cachedir"], extension_modules=opts["extension_modules"])
utils = salt.loader.utils(opts)
found = {
    "modules": salt.loader.minion_mods(opts, utils=utils), "runners": salt.loader.runner(master, utils=utils),
    "pillar": salt.loader.pillars(opts, {}), "outputters": salt.loader.outputters(opts),
    "grains": salt.loader.grain_funcs(opts),
}
found["states"] = salt.loader.states(opts, found["modules"], utils, None)
told = {kind: sorted({name.split(".")[0] for name in all if name.startswith("ckan")}) for kind, all in found.items()}
import ckan_deploy
print(json.dumps({"found": told, "package": ckan_deploy.__file__}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtualenv with the wheel and what it requires, and nothing of this checkout."""
    place = tmp_path_factory.mktemp("wheel")
    wheel = dist.wheel(place)
    assert wheel.name == f"ckan_formula-{dist.version()}-py3-none-any.whl"
    for command in (["venv", "-q", "-p", "/usr/bin/python3", place / "v"],
                    ["pip", "install", "-q", "-p", place / "v/bin/python", wheel]):  # fmt: skip
        subprocess.run([uv_path(), *map(str, command)], check=True, capture_output=True, cwd=place, env=ENV)
    return place / "v"


@pytest.fixture
def minion(tmp_path: Path) -> Path:
    """The configuration of a minion without a master, and without anything synced."""
    config = {"id": "web1", "file_client": "local", "root_dir": str(tmp_path), "extension_modules": f"{tmp_path}/ext"}
    (tmp_path / "minion").write_text(json.dumps(config))
    return tmp_path


def call(installed: Path, minion: Path, *words: str) -> subprocess.CompletedProcess:
    command = [installed / "bin/salt-call", "--local", f"--config-dir={minion}", "--out=json", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=minion, env=ENV)


def look(installed: Path, minion: Path) -> dict[str, Any]:
    command = [installed / "bin/python", "-W", "ignore", "-c", LOOK, minion]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=minion, env=ENV)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def names(folder: str) -> set[str]:
    return {path.stem for path in (REPO / folder).glob("ckan*.py")}


def test_salt_finds_all_of_it_where_only_the_wheel_is_installed(installed: Path, minion: Path) -> None:
    done = call(installed, minion, "sys.list_functions", "ckan_release")
    assert done.returncode == 0, done.stderr
    assert {"ckan_release.deploy", "ckan_release.build", "ckan_release.rollback"} <= set(
        json.loads(done.stdout)["local"]
    )
    told = look(installed, minion)
    assert told["package"].startswith(f"{installed}/lib/") and "/site-packages/ckan_deploy/" in told["package"]
    # The functions of the stages are shown as those of ckan_release.
    assert set(told["found"]["modules"]) == names("_modules") - {"ckan_release_stages"}
    assert set(told["found"]["runners"]) == names("_runners") and set(told["found"]["states"]) == names("_states")
    assert told["found"]["pillar"] == ["ckan_secrets"] and told["found"]["outputters"] == ["ckan"]
    assert told["found"]["grains"] == ["ckan_formula"]


@pytest.mark.parametrize("version", ["", "9.9.9"], ids=["the same version", "another version"])
def test_a_synced_copy_beside_it_is_refused_unless_it_is_of_the_same_version(
    installed: Path, minion: Path, version: str
) -> None:
    shutil.copytree(REPO / "_modules", minion / "ext/modules")
    package = shutil.copytree(REPO / "_utils/ckan_deploy", minion / "ext/utils/ckan_deploy")
    has = dist.version()
    if version:
        init = package / "__init__.py"
        init.write_text(init.read_text().replace(f'VERSION = "{has}"', f'VERSION = "{version}"'))
    done = call(installed, minion, "ckan_settings.secret_names")
    if not version:
        assert done.returncode == 0 and "database:password" in json.loads(done.stdout)["local"], done.stderr
        return
    assert done.returncode != 0
    assert f"version {has} of the formula is installed in {installed}" in done.stderr
    assert f"another one ({version}) was synced; remove one: pip uninstall ckan-formula" in done.stderr


def test_the_archive_has_what_a_master_needs_below_one_directory(tmp_path: Path) -> None:
    made = dist.archive(tmp_path)
    assert made.name == f"ckan-formula-{dist.version()}.tar.gz"
    with tarfile.open(made) as packed:
        files = {member.name.partition("/")[2] for member in packed if member.isfile()}
        assert {member.name.partition("/")[0] for member in packed} == {made.name.removesuffix(".tar.gz")}
    needed = ("FORMULA", "LICENSE", "README.md", "ckan/init.sls", "orch/deploy.sls", "_utils/ckan_deploy/__init__.py",
              "_runners/ckan.py", "_output/ckan.py", "_grains/ckan_formula.py", "pillar.example/top.sls")  # fmt: skip
    assert files >= set(needed)
    assert [name for name in files if name.startswith(("test/", ".", "tools/"))] == []
