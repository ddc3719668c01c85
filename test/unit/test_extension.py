"""The same tree as a Salt extension: a wheel that Salt's loader finds by its entry point."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ckan_deploy
from parts.base import uv_path

pytestmark = pytest.mark.slow

REPO = Path(__file__).resolve().parents[2]
LOAD = """
import json, sys
import salt.config, salt.loader, salt.output
opts = salt.config.minion_config(None)
opts.update(file_client="local", root_dir=sys.argv[1], cachedir=sys.argv[1], extension_modules=sys.argv[1] + "/ext")
opts["grains"] = {}
functions = salt.loader.minion_mods(opts)
states = salt.loader.states(opts, functions, salt.loader.utils(opts), None)
runners = salt.loader.runner(opts)
names = {kind: sorted(name for name in found if name.startswith("ckan")) for kind, found in
         (("modules", functions), ("states", states), ("runners", runners))}
opts.update(fun="ckan_release.list", color=False)
names["shown"] = salt.output.out_format({"web1": []}, "ckan", opts)
names["version"] = functions["ckan_version.modules"]()
print("FOUND " + json.dumps(names))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    # A copy: a build leaves its traces beside what it is made from.
    subprocess.run(["git", "clone", "-q", REPO, place / "source"], check=True)
    for name in ("pyproject.toml", "_utils", "_modules", "_states", "_runners", "_pillar", "_grains", "_output"):
        subprocess.run(["cp", "-rT", REPO / name, place / "source" / name], check=True)
    subprocess.run([uv_path(), "build", "-q", "--wheel", "-o", place, place / "source"], check=True)
    return next(place.glob("*.whl"))


def test_the_wheel_holds_every_module_of_the_tree(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, package in (
        ("_modules", "modules"),
        ("_states", "states"),
        ("_runners", "runners"),
        ("_pillar", "pillar"),
        ("_grains", "grains"),
        ("_output", "output"),
    ):
        for path in (REPO / folder).glob("*.py"):
            assert f"ckan_deploy/{package}/{path.name}" in names
    for path in (REPO / "_utils").rglob("*.py"):
        assert str(path.relative_to(REPO / "_utils")) in names


def test_salt_loads_it_from_where_pip_put_it(wheel: Path, tmp_path: Path):
    target = tmp_path / "installed"
    subprocess.run([uv_path(), "pip", "install", "-q", "--no-deps", "--target", target, wheel], check=True)
    env = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path / "salt"], capture_output=True, text=True, env=env, cwd="/", timeout=120
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("FOUND ")), None)
    assert line, done.stderr
    found = json.loads(line.removeprefix("FOUND "))
    assert "ckan_release.deploy" in found["modules"] and "ckan_release.build" in found["modules"]
    assert "ckan_release.live" in found["states"] and "ckan.status" in found["runners"]
    assert found["shown"] == "web1:\n    no release yet; type: state.apply ckan"
    # The same as a minion that got it by a sync.
    synced = subprocess.run(
        [sys.executable, "-c", "from ckan_deploy.system import version; import sys;"
         "print(version.of_folders(sys.argv[1] + '/_modules', sys.argv[1] + '/_utils/ckan_deploy'))", REPO],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPO / "_utils")}, check=True,
    )  # fmt: skip
    assert found["version"] == synced.stdout.strip()


def test_there_is_one_version():
    formula = re.search(r"^version: (.*)$", (REPO / "FORMULA").read_text(), re.MULTILINE)
    assert formula and formula[1] == ckan_deploy.VERSION
