"""Clones of real virtualenvs with real editable installs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from attrs import evolve

from ckan_deploy.build.locking import Wish, lock
from ckan_deploy.build.packages import Wanted, check, freeze, install, install_locked
from ckan_deploy.build.sandbox import Sandbox
from ckan_deploy.build.uv_and_pip import Installer
from ckan_deploy.build.virtualenv import clone, compile_, create, verify
from ckan_deploy.build.wheels import Builder
from ckan_deploy.errors import FormulaError
from fakes import FakeHost
from parts.base import uv_path
from stub import wheels

pytestmark = pytest.mark.slow

SETUP = """\
from setuptools import find_namespace_packages, setup
setup(name="ckanext-{name}", version="{version}", packages=find_namespace_packages(include=["ckanext.*"]),
      install_requires={requires}, entry_points={{"console_scripts": ["{name}=ckanext.{name}:main"]}})
"""
MODULE = """\
MARK = "{mark}"
def main():
    print(__file__, MARK)
"""
IMPORTS = "import ckanext.alpha, ckanext.beta; print(ckanext.alpha.__file__, ckanext.beta.__file__)"


def editable(path: Path, checkouts: list, mode: str = "compat") -> None:
    """Install checkouts as people do by hand."""
    options = ["--config-setting", f"editable_mode={mode}"] if mode else []
    command = [uv_path(), "pip", "install", "-q", "-p", path / "bin/python", *options]
    subprocess.run([*command, *(word for item in checkouts for word in ("-e", item))], check=True)


def extension(path: Path, name: str, version: str = "0.1", mark: str = "first", requires=()) -> Path:
    """Write a small CKAN extension."""
    package = path / "ckanext" / name
    package.mkdir(parents=True)
    (path / "setup.py").write_text(SETUP.format(name=name, version=version, requires=list(requires)))
    (package / "__init__.py").write_text(MODULE.format(mark=mark))
    return path


def release(path: Path, mode: str = "compat") -> Path:
    """Make a virtualenv with two extensions installed editable below its src."""
    create(str(path))
    checkouts = [str(extension(path / "src" / f"ckanext-{name}", name)) for name in ("alpha", "beta")]
    editable(path, checkouts, mode)
    return path


def output(*command) -> str:
    return subprocess.check_output([str(item) for item in command], text=True, cwd="/").strip()


def naming(path: Path, text: str) -> list[str]:
    """List the files of a virtualenv that hold a text, bytecode aside (Python puts its path right on loading)."""
    done = subprocess.run(
        ["grep", "-rlF", "--exclude=*.pyc", text, str(path)], capture_output=True, text=True, check=False
    )
    return done.stdout.split("\n")[:-1]


def fingerprint(path: Path) -> dict[str, str]:
    """Return each file's hash, mode and time."""
    found = {}
    for name in sorted(path.rglob("*")):
        if name.is_file() and not name.is_symlink():
            state = name.stat()
            digest = hashlib.sha256(name.read_bytes()).hexdigest()
            found[str(name.relative_to(path))] = f"{digest} {state.st_mode} {state.st_mtime_ns}"
    return found


@pytest.mark.parametrize("mode", ["compat", "", "strict"])
def test_a01_a_clone_with_editable_installs_needs_its_source_no_more(tmp_path, mode):
    first = release(tmp_path / "R1", mode)
    second = tmp_path / "R2"
    assert naming(first, str(first))
    result = clone(str(first), str(second))
    assert result["rewritten"] > 0
    alpha = second / "src/ckanext-alpha/ckanext/alpha/__init__.py"
    alpha.write_text(MODULE.format(mark="second"))
    assert "first" in output(first / "bin/alpha")
    assert naming(second, str(first)) == []
    expected = output(second / "bin/python", "-c", IMPORTS).split()
    first.rename(tmp_path / "away")
    assert output(second / "bin/python", "-c", IMPORTS).split() == expected
    assert all(name.startswith(f"{second}/") for name in expected)
    assert output(second / "bin/alpha").startswith(f"{second}/")
    if mode != "strict":
        assert output(second / "bin/alpha").endswith("second")
    assert verify(str(second), forbidden=[str(first)]) == []
    assert freeze(str(second)) == {"ckanext-alpha": "0.1", "ckanext-beta": "0.1"}


def test_a02_a_source_that_was_moved_is_repaired_in_the_clone(tmp_path):
    old, moved, new = tmp_path / "old/env", tmp_path / "moved", tmp_path / "new"
    release(old)
    old.rename(moved)
    assert (moved / "bin/alpha").read_text().startswith(f"#!{old}/bin/python")
    clone(str(moved), str(new))
    shutil.rmtree(tmp_path / "old")
    assert output(new / "bin/alpha").startswith(f"{new}/src/")
    assert naming(new, str(old)) == [] and naming(new, str(moved)) == []
    assert verify(str(new), forbidden=[str(old), str(moved)]) == []


def test_a02_another_environment_at_the_old_place_is_not_used(tmp_path):
    old, moved, new = tmp_path / "env", tmp_path / "env-moved", tmp_path / "new"
    release(old)
    old.rename(moved)
    create(str(old))
    clone(str(moved), str(new))
    assert output(new / "bin/alpha").startswith(f"{new}/src/")
    assert naming(new, f"{old}/") == []


def test_a_clone_through_a_symlink_names_neither_path(tmp_path):
    first = release(tmp_path / "R1")
    (tmp_path / "current").symlink_to("R1")
    clone(str(tmp_path / "current"), str(tmp_path / "R2"))
    assert naming(tmp_path / "R2", str(first)) == []
    assert naming(tmp_path / "R2", str(tmp_path / "current")) == []


def test_paths_with_spaces_and_very_long_ones_work(tmp_path):
    first = release(tmp_path / "R1")
    spaced, long, back = tmp_path / "R 2", tmp_path / ("x" * 120), tmp_path / "R4"
    clone(str(first), str(spaced))
    clone(str(spaced), str(long))
    clone(str(long), str(back))
    for path in (spaced, long, back):
        assert output(path / "bin/alpha").startswith(f"{path}/src/")
        url = json.loads(next(path.glob("lib/*/site-packages/*alpha*.dist-info/direct_url.json")).read_text())
        assert url["url"].endswith("/src/ckanext-alpha") and " " not in url["url"]
    assert verify(str(back), forbidden=[str(first), str(spaced), str(long)]) == []


def builder(tmp_path: Path, path: Path) -> Builder:
    """What installs into a virtualenv, and builds wheels for it, with a folder of its own to keep them in."""
    sandbox = Sandbox(user="nobody")
    return Builder(
        FakeHost({}), Installer(kind="uv", uv=uv_path(), shared=str(tmp_path / "shared")), sandbox, str(path)
    )


def built(maker: Builder, source: Path, name: str, **more) -> Wanted:
    return Wanted(name, f"{name} @ file://{maker.of_checkout(str(source), '')}", **more)


def test_installs_into_a_clone_leave_the_source_as_it_was(tmp_path):
    first, second = release(tmp_path / "R1"), tmp_path / "R2"
    maker = builder(tmp_path, first)
    plain = extension(tmp_path / "plain", "gamma")
    install(str(first), [built(maker, plain, "ckanext-gamma")], maker)
    compile_(str(first))
    before = fingerprint(first)
    clone(str(first), str(second))
    installed = "lib/python*/site-packages/ckanext/gamma/__init__.py"
    assert os.path.samefile(next(first.glob(installed)), next(second.glob(installed)))
    newer = extension(tmp_path / "newer", "gamma", "0.2", "newer")
    wanted = [built(maker, newer, "ckanext-gamma")]
    install_locked(str(second), wanted, "", {}, maker)
    assert (freeze(str(first))["ckanext-gamma"], freeze(str(second))["ckanext-gamma"]) == ("0.1", "0.2")
    compile_(str(second))
    assert output(second / "bin/gamma").endswith("newer")
    assert fingerprint(first) == before
    assert output(first / "bin/gamma").endswith("first")
    assert verify(str(second), forbidden=[str(first)]) == []


def test_a_conflict_of_two_extensions_names_both_and_changes_nothing(tmp_path):
    path = tmp_path / "R1"
    create(str(path))
    maker = builder(tmp_path, path)
    one = extension(tmp_path / "one", "one", requires=["shared-thing==1.0"])
    two = extension(tmp_path / "two", "two")
    (two / "requirements.txt").write_text("shared-thing==2.0\n")
    wanted = [
        built(maker, one, "ckanext-one", checkout=str(one)),
        built(maker, two, "ckanext-two", checkout=str(two), files=(str(two / "requirements.txt"),)),
    ]
    with pytest.raises(FormulaError) as caught:
        lock(str(path), Wish(wanted), {}, maker)
    message = str(caught.value)
    assert "shared-thing==1.0" in message and "shared-thing==2.0" in message
    assert "who asks: shared-thing: ckanext-one ==1.0 (its package), ckanext-two ==2.0 (requirements.txt)" in message
    assert freeze(str(path)) == {}


def test_check_names_what_is_missing(tmp_path):
    path = tmp_path / "R1"
    create(str(path))
    maker = builder(tmp_path, path)
    assert check(str(path), maker) is True
    one = extension(tmp_path / "one", "one", requires=["shared-thing==1.0"])
    install_locked(str(path), [built(maker, one, "ckanext-one")], "", {}, maker)
    with pytest.raises(FormulaError, match="shared-thing"):
        check(str(path), maker)
    assert check(str(path), maker, tolerate=["shared_thing"]) is True


def test_what_has_no_wheel_is_built_from_its_sdist(tmp_path):
    """Also where another package requires it; the newest that fits is taken, and nothing of it is run outside."""
    path, shelf = tmp_path / "R1", tmp_path / "shelf"
    create(str(path))
    maker = builder(tmp_path, path)
    shelf.mkdir()
    for version in ("1.0", "1.5", "2.0"):
        folder = extension(tmp_path / f"slow_thing-{version}", "slow", version)
        (folder / "setup.py").write_text(
            f"import os\nassert os.geteuid() == 65534\nfrom setuptools import setup\n"
            f"setup(name='slow-thing', version='{version}', packages=['ckanext.slow'])\n"
        )
        subprocess.run(["tar", "czf", shelf / f"slow_thing-{version}.tar.gz", "-C", tmp_path, folder.name], check=True)
    wheels.make_wheel(shelf, "asks-for-it", "1.0", requires=["slow-thing<2"])
    maker = evolve(maker, installer=evolve(maker.installer, find_links=str(shelf)))
    locked = lock(str(path), Wish([Wanted("asks-for-it", "asks-for-it")]), {}, maker)
    assert locked.packages == {"asks-for-it": "1.0", "slow-thing": "1.5"}
    install_locked(str(path), [Wanted("asks-for-it", "asks-for-it")], locked.lock, locked.packages, maker)
    assert freeze(str(path)) == locked.packages


def test_create_refuses_what_exists_and_leaves_nothing_after_a_failure(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(FormulaError, match="exists"):
        create(str(tmp_path / "there"))
    with pytest.raises(FormulaError, match="no program /no/such/python"):
        create(str(tmp_path / "new"), python="/no/such/python")
    assert sorted(os.listdir(tmp_path)) == ["there"]
