"""Clones of real virtualenvs with real editable installs, through Salt's loader."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import salt.config
import salt.loader
from salt.exceptions import CommandExecutionError

REPO = Path(__file__).resolve().parents[2]

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


@pytest.fixture(scope="module")
def venv(tmp_path_factory):
    cache = tmp_path_factory.mktemp("minion")
    opts = salt.config.minion_config(None)
    opts.update(
        file_client="local",
        module_dirs=[str(REPO / "_modules")],
        cachedir=str(cache),
        extension_modules=str(cache / "extmods"),
    )
    opts["grains"] = salt.loader.grains(opts)
    functions = salt.loader.minion_mods(opts)
    return lambda name, *args, **kwargs: functions[f"ckan_venv.{name}"](*args, **kwargs)


def extension(path: Path, name: str, version: str = "0.1", mark: str = "first", requires=()) -> Path:
    """Write a small CKAN extension."""
    package = path / "ckanext" / name
    package.mkdir(parents=True)
    (path / "setup.py").write_text(SETUP.format(name=name, version=version, requires=list(requires)))
    (package / "__init__.py").write_text(MODULE.format(mark=mark))
    return path


def release(venv, path: Path, mode: str = "compat") -> Path:
    """Make a virtualenv with two extensions installed editable below its src."""
    venv("create", str(path))
    checkouts = [str(extension(path / "src" / f"ckanext-{name}", name)) for name in ("alpha", "beta")]
    venv("install", str(path), editable=checkouts, editable_mode=mode)
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
def test_a01_a_clone_with_editable_installs_needs_its_source_no_more(venv, tmp_path, mode):
    first = release(venv, tmp_path / "R1", mode)
    second = tmp_path / "R2"
    assert naming(first, str(first))
    result = venv("clone", str(first), str(second))
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
    assert venv("verify", str(second), forbidden=[str(first)]) == []
    assert venv("freeze", str(second)) == {"ckanext-alpha": "0.1", "ckanext-beta": "0.1"}


def test_a02_a_source_that_was_moved_is_repaired_in_the_clone(venv, tmp_path):
    old, moved, new = tmp_path / "old/env", tmp_path / "moved", tmp_path / "new"
    release(venv, old)
    old.rename(moved)
    assert (moved / "bin/alpha").read_text().startswith(f"#!{old}/bin/python")
    venv("clone", str(moved), str(new))
    shutil.rmtree(tmp_path / "old")
    assert output(new / "bin/alpha").startswith(f"{new}/src/")
    assert naming(new, str(old)) == [] and naming(new, str(moved)) == []
    assert venv("verify", str(new), forbidden=[str(old), str(moved)]) == []


def test_a02_another_environment_at_the_old_place_is_not_used(venv, tmp_path):
    old, moved, new = tmp_path / "env", tmp_path / "env-moved", tmp_path / "new"
    release(venv, old)
    old.rename(moved)
    venv("create", str(old))
    venv("clone", str(moved), str(new))
    assert output(new / "bin/alpha").startswith(f"{new}/src/")
    assert naming(new, f"{old}/") == []


def test_a_clone_through_a_symlink_names_neither_path(venv, tmp_path):
    first = release(venv, tmp_path / "R1")
    (tmp_path / "current").symlink_to("R1")
    venv("clone", str(tmp_path / "current"), str(tmp_path / "R2"))
    assert naming(tmp_path / "R2", str(first)) == []
    assert naming(tmp_path / "R2", str(tmp_path / "current")) == []


def test_paths_with_spaces_and_very_long_ones_work(venv, tmp_path):
    first = release(venv, tmp_path / "R1")
    spaced, long, back = tmp_path / "R 2", tmp_path / ("x" * 120), tmp_path / "R4"
    venv("clone", str(first), str(spaced))
    venv("clone", str(spaced), str(long))
    venv("clone", str(long), str(back))
    for path in (spaced, long, back):
        assert output(path / "bin/alpha").startswith(f"{path}/src/")
        url = json.loads(next(path.glob("lib/*/site-packages/*alpha*.dist-info/direct_url.json")).read_text())
        assert url["url"].endswith("/src/ckanext-alpha") and " " not in url["url"]
    assert venv("verify", str(back), forbidden=[str(first), str(spaced), str(long)]) == []


def test_installs_into_a_clone_leave_the_source_as_it_was(venv, tmp_path):
    first = release(venv, tmp_path / "R1")
    plain = extension(tmp_path / "plain", "gamma")
    venv("install", str(first), requirements=[str(plain)])
    venv("compile", str(first))
    before = fingerprint(first)
    second = tmp_path / "R2"
    venv("clone", str(first), str(second))
    installed = "lib/python*/site-packages/ckanext/gamma/__init__.py"
    assert os.path.samefile(next(first.glob(installed)), next(second.glob(installed)))
    (plain / "setup.py").write_text(SETUP.format(name="gamma", version="0.2", requires=[]))
    (plain / "ckanext/gamma/__init__.py").write_text(MODULE.format(mark="newer"))
    shutil.rmtree(plain / "build", ignore_errors=True)
    result = venv(
        "install",
        str(second),
        requirements=[str(plain)],
        editable=[str(second / "src/ckanext-alpha"), str(second / "src/ckanext-beta")],
        cache_dir=str(tmp_path / "cache"),
    )
    assert result["changes"]["ckanext-gamma"] == {"old": "0.1", "new": "0.2"}
    venv("compile", str(second))
    assert output(second / "bin/gamma").endswith("newer")
    assert fingerprint(first) == before
    assert output(first / "bin/gamma").endswith("first")
    assert venv("verify", str(second), forbidden=[str(first)]) == []


def test_a_conflict_is_told_in_uvs_words_and_changes_nothing(venv, tmp_path):
    path = tmp_path / "R1"
    venv("create", str(path))
    one = extension(tmp_path / "one", "one", requires=["shared-thing==1.0"])
    two = extension(tmp_path / "two", "two", requires=["shared-thing==2.0"])
    with pytest.raises(CommandExecutionError) as caught:
        venv("install", str(path), editable=[str(one), str(two)])
    message = str(caught.value)
    assert "shared-thing==1.0" in message and "shared-thing==2.0" in message and "ckanext-two" in message
    assert venv("freeze", str(path)) == {}


def test_constraints_and_requirement_files_are_resolved_together(venv, tmp_path):
    path = tmp_path / "R1"
    venv("create", str(path))
    one = extension(tmp_path / "one", "one", version="1.0")
    (tmp_path / "requirements.txt").write_text(f"ckanext-one @ file://{one}\n")
    (tmp_path / "constraints.txt").write_text("ckanext-one==2.0\n")
    arguments = {"requirement_files": [str(tmp_path / "requirements.txt")]}
    with pytest.raises(CommandExecutionError, match="ckanext-one"):
        venv("install", str(path), constraints=str(tmp_path / "constraints.txt"), **arguments)
    assert venv("freeze", str(path)) == {}
    assert venv("install", str(path), **arguments)["changes"] == {"ckanext-one": {"old": "", "new": "1.0"}}


def test_check_names_what_is_missing(venv, tmp_path):
    path = tmp_path / "R1"
    venv("create", str(path))
    assert venv("check", str(path)) is True
    one = extension(tmp_path / "one", "one", requires=["shared-thing==1.0"])
    venv("install", str(path), requirements=[str(one)], no_deps=True)
    with pytest.raises(CommandExecutionError, match="shared-thing"):
        venv("check", str(path))


def test_create_refuses_what_exists_and_leaves_nothing_after_a_failure(venv, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(CommandExecutionError, match="exists"):
        venv("create", str(tmp_path / "there"))
    with pytest.raises(CommandExecutionError, match="could not make"):
        venv("create", str(tmp_path / "new"), python="/no/such/python")
    assert sorted(os.listdir(tmp_path)) == ["there"]
