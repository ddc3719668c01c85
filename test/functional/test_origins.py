"""What a release is built from: origins of every kind, one resolution, patches, the build user."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError

from functional.steps import archive, deployed, extension
from parts.base import uv_path
from stub import repos, wheels

pytestmark = pytest.mark.slow

REPO = Path(__file__).resolve().parents[2]

IMPORT_ALL = (
    "from importlib.metadata import entry_points\n"
    "for point in sorted(entry_points(group='ckan.plugins'), key=lambda p: p.name):\n"
    "    print(point.name, point.load().__module__, __import__('sys').modules[point.load().__module__].__file__)\n"
)


def digest(tree: Path) -> dict[str, tuple]:
    """Content, inode and mode of every file below a directory, bytecode aside."""
    found = {}
    for folder, _, files in os.walk(tree):
        for name in files:
            path = Path(folder, name)
            if path.is_symlink() or "__pycache__" in folder:
                continue
            status = path.stat()
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path)] = (content, status.st_ino, status.st_mode, status.st_uid)
    return found


def package(base: Path) -> Path:
    """The site-packages of a virtualenv."""
    return next(base.glob("lib/python3*/site-packages"))


def test_extensions_of_every_origin_make_one_release(host, origins, shelf):
    """Branch, tag, short commit, fork, subdirectory, submodule, package index, wheel and sdist."""
    alpha = repos.make_repo(origins, "alpha", "Alpha", backend="uv_build")
    beta = repos.make_repo(origins, "beta", "Beta", backend="uv_build")
    beta_commit = repos.tag(beta, "v1")
    gamma = repos.make_repo(origins, "gamma", "Gamma", backend="uv_build")
    gamma_commit = repos.git(gamma, "rev-parse", "HEAD")
    repos.commit_change(gamma, "Gamma later")
    fork = origins / "fork"
    subprocess.run(["git", "clone", "-q", alpha, fork], check=True)
    (fork / "more.txt").write_text("x")
    repos.git(fork, "add", "-A")
    repos.git(fork, "commit", "-qm", "our own")
    repos.commit_change(alpha, "Alpha later")
    wheels.make_extension(shelf, "delta", "Delta", "1.0")
    wheels.make_extension(shelf, "delta", "Delta", "1.1")
    wheel = wheels.make_extension(origins / "archives", "epsilon", "Epsilon")
    host.file_roots = [str(origins / "archives")]
    host.pillar["extensions"] = {
        "ckanext-alpha": extension(fork, upstream=str(alpha)),
        "ckanext-beta": extension(beta, "v1"),
        "ckanext-gamma": extension(gamma, gamma_commit[:9]),
        "ckanext-delta": {"version": ">=1,<1.1"},
        "ckanext-epsilon": archive(wheel),
    }
    host.pillar["plugins"] = ["alpha", "beta", "gamma", "delta", "epsilon"]
    release = deployed(host)
    shown = host.show()["extensions"]
    assert (shown["ckanext-beta"]["ref_kind"], shown["ckanext-beta"]["commit"]) == ("tag", beta_commit)
    assert (shown["ckanext-gamma"]["ref_kind"], shown["ckanext-gamma"]["commit"]) == ("commit", gamma_commit)
    assert (shown["ckanext-alpha"]["upstream"]["ahead"], shown["ckanext-alpha"]["upstream"]["behind"]) == (1, 1)
    assert (shown["ckanext-delta"]["kind"], shown["ckanext-delta"]["version"]) == ("index", "1.0")
    assert (shown["ckanext-epsilon"]["kind"], shown["ckanext-epsilon"]["version"]) == ("archive", "1.0")
    lines = host.python(release, IMPORT_ALL).splitlines()
    home = str(host.home / "releases" / release)
    assert [line.split()[0] for line in lines] == ["alpha", "beta", "delta", "epsilon", "gamma"]
    assert all(line.split()[2].startswith(home) for line in lines)
    assert host.list()[0]["extensions"]["ckanext-gamma"] == f"{gamma_commit[:9]} {gamma_commit[:12]}"


def test_a_package_in_a_subdirectory_and_a_submodule_come_along(host, origins):
    part = repos.make_repo(origins, "part", "Part", backend="uv_build")
    mono = origins / "mono"
    mono.mkdir()
    repos.git(mono, "init", "-q", "--initial-branch", "main")
    inner = repos.make_repo(mono / "extensions", "inner", "Inner", backend="uv_build")
    shutil.rmtree(inner / ".git")
    subprocess.run(
        ["git", "-C", mono, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", part, "lib/part"],
        check=True,
    )
    repos.git(mono, "add", "-A")
    repos.git(mono, "commit", "-qm", "all in one")
    host.pillar["extensions"] = {"ckanext-inner": extension(mono)}
    with pytest.raises(CommandExecutionError, match="no Python package in its top directory .*set subdirectory"):
        host.deploy()
    assert host.releases() == []
    host.pillar["extensions"]["ckanext-inner"]["subdirectory"] = "extensions/ckanext-inner"
    host.pillar["plugins"] = ["inner"]
    release = deployed(host)
    place = host.home / "releases" / release / "src/ckanext-inner"
    assert (place / "lib/part/pyproject.toml").exists()
    where = host.python(release, "import ckanext.inner.plugin as p; print(p.__file__)")
    assert where == str(place / "extensions/ckanext-inner/ckanext/inner/plugin.py")


def old_style(origins: Path, name: str, setuptools: str = "setuptools<80") -> Path:
    """An extension as they were written for years: setup.py, and a namespace that pkg_resources declares."""
    repo = repos.make_repo(origins, name, f"{name} is old")
    (repo / "pyproject.toml").write_text(
        f'[build-system]\nrequires = ["{setuptools}"]\nbuild-backend = "setuptools.build_meta"\n'
    )
    (repo / "ckanext/__init__.py").write_text("__import__('pkg_resources').declare_namespace(__name__)\n")
    (repo / "setup.py").write_text(
        "from setuptools import find_packages, setup\n"
        f"setup(name='ckanext-{name}', version='0.1', packages=find_packages(), namespace_packages=['ckanext'],\n"
        f"      entry_points={{'ckan.plugins': ['{name} = ckanext.{name}.plugin:Plugin']}})\n"
    )
    repos.git(repo, "add", "-A")
    repos.git(repo, "commit", "-qm", "the old way")
    return repo


@pytest.mark.parametrize("first", ["ckanext-alpha", "ckanext-beta"])
def test_a03_a_wheel_and_an_old_namespace_package_import_in_one_process(host, origins, shelf, first):
    wheels.make_extension(shelf, "alpha", "Alpha")
    both = {"ckanext-alpha": {"version": "1.0"}, "ckanext-beta": extension(old_style(origins, "beta"))}
    host.pillar["extensions"] = {first: both.pop(first), **both}
    host.pillar["plugins"] = ["alpha", "beta"]
    release = deployed(host)
    lines = host.python(release, IMPORT_ALL).splitlines()
    assert [line.split()[0] for line in lines] == ["alpha", "beta"]


def test_an_extension_that_cannot_be_imported_is_named_and_stops_the_build(host, origins):
    repo = repos.make_repo(origins, "alpha", "Alpha", backend="uv_build")
    project = repo / "pyproject.toml"
    project.write_text(project.read_text().replace("ckanext.alpha.plugin:Plugin", "ckanext.alpha.plugins:Plugin"))
    repos.git(repo, "commit", "-qam", "a module that is not there")
    host.pillar["extensions"] = {"ckanext-alpha": extension(repo)}
    host.pillar["plugins"] = ["alpha"]
    with pytest.raises(CommandExecutionError, match="failed at build: .*ckanext-alpha"):
        host.deploy()
    assert host.releases() == []


OPTIONAL = """
[project.entry-points."ckan.plugins"]
alpha = "ckanext.alpha.plugin:Plugin"
alpha_extra = "ckanext.alpha.extra.plugin:Plugin"
alpha_exit = "ckanext.alpha.exit.plugin:Plugin"
"""


def optional(origins, imports: str):
    """An extension with plugins beside its first one: one imports what is missing, one ends whoever imports it."""
    repo = repos.make_repo(origins, "alpha", "Alpha", backend="uv_build")
    project = repo / "pyproject.toml"
    points = '[project.entry-points."ckan.plugins"]\nalpha = "ckanext.alpha.plugin:Plugin"\n'
    assert points in project.read_text()
    project.write_text(project.read_text().replace(points, OPTIONAL))
    for name, text in (("extra", f"import {imports}\n"), ("exit", "import os\nos._exit(3)\n")):
        (repo / f"ckanext/alpha/{name}").mkdir()
        (repo / f"ckanext/alpha/{name}/__init__.py").write_text(text)
        (repo / f"ckanext/alpha/{name}/plugin.py").write_text("from ckanext.alpha.plugin import Plugin\n")
    repos.git(repo, "add", "-A")
    repos.git(repo, "commit", "-qm", "plugins that few enable")
    return repo


def test_h15_a_plugin_that_nobody_enables_need_not_import_and_is_noted(host, origins):
    host.pillar["extensions"] = {"ckanext-alpha": extension(optional(origins, "a_module_that_is_missing"))}
    host.pillar["plugins"] = ["alpha"]
    release = deployed(host)
    noted = host.show(release)["broken_plugins"]
    assert "No module named 'a_module_that_is_missing'" in noted["alpha_extra"]
    assert noted["alpha_extra"].startswith("ckanext-alpha: ") and "alpha" not in noted
    assert "ends the process" in noted["alpha_exit"]
    # The same commit again, with the plugin enabled: by the list, and by CKAN's own option.
    for change in ({"plugins": ["alpha", "alpha_extra"]}, {"config": {"ckan.plugins": "alpha alpha_extra"}}):
        before = dict(host.pillar)
        host.pillar.update(change)
        with pytest.raises(CommandExecutionError, match="at build: .*ckanext-alpha: plugin alpha_extra: .*missing"):
            host.deploy()
        assert host.current() == release
        host.pillar.clear()
        host.pillar.update(before)
    host.pillar["plugins"] = ["alpha", "alpha_exit"]
    with pytest.raises(CommandExecutionError, match="failed at build"):
        host.deploy()


def test_h15_a_release_that_holds_the_same_is_not_asked_again_which_plugins_import(host, origins):
    repo = optional(origins, "a_module_that_is_missing")
    host.pillar["extensions"] = {"ckanext-alpha": extension(repo)}
    host.pillar["plugins"] = ["alpha"]
    first = host.show(deployed(host))
    assert "imports" in first["build_seconds"] and first["broken_plugins"]
    host.pillar["config"] = {"ckan.site_title": "Nothing new but the ini"}
    second = host.show(deployed(host))
    assert "imports" not in second["build_seconds"] and second["broken_plugins"] == first["broken_plugins"]
    (repo / "ckanext/alpha/extra/__init__.py").write_text("")
    repos.git(repo, "commit", "-qam", "a plugin that imports")
    third = host.show(deployed(host))
    assert "imports" in third["build_seconds"] and "alpha_extra" not in third["broken_plugins"]


def test_a_build_looks_at_the_plugins_that_are_enabled_and_the_check_at_the_others(host, origins):
    repo = optional(origins, "a_module_that_is_missing")
    text = "import os, time\nos.kill(os.getpid(), 14)\ntime.sleep(60)\n"
    (repo / "ckanext/alpha/exit/__init__.py").write_text(text)
    secret = "raise ValueError('postgresql://ckan:a-word-of-ours@localhost/ckan')\n"
    (repo / "ckanext/alpha/extra/__init__.py").write_text(secret)
    repos.git(repo, "commit", "-qam", "one that takes its time, and one that tells an address")
    host.pillar["extensions"] = {"ckanext-alpha": extension(repo)}
    host.pillar["plugins"] = ["alpha"]
    planned = host.plan()
    release = planned["release"]
    host.build(release, contents=planned["contents"])
    assert not host.show(release).get("broken_plugins")
    said = host.check(release)
    noted = host.show(release)["broken_plugins"]
    assert "broken_plugins" not in said
    assert noted["alpha_exit"] == "ckanext-alpha: ckanext.alpha.exit.plugin: is not imported within 30 s"
    assert "ValueError" in noted["alpha_extra"] and "a-word-of-ours" not in noted["alpha_extra"]


@pytest.mark.parametrize("where", ["package", "module"])
def test_h15_an_enabled_plugin_that_lacks_pkg_resources_is_told_what_brings_it(host, origins, shelf, where):
    for version in ("79.0", "90.0"):
        brings = {"pkg_resources/__init__.py": ""} if version == "79.0" else {"nothing.py": ""}
        wheels.make_wheel(shelf, "setuptools", version, brings)
    host.pillar["installer"]["offline"] = True
    repo = optional(origins, "pkg_resources")
    if where == "module":
        (repo / "ckanext/alpha/extra/__init__.py").write_text("")
        plugin = repo / "ckanext/alpha/extra/plugin.py"
        plugin.write_text(f"import pkg_resources\n{plugin.read_text()}")
        repos.git(repo, "commit", "-qam", "in the module itself")
    host.pillar["extensions"] = {"ckanext-alpha": extension(repo)}
    host.pillar["plugins"] = ["alpha", "alpha_extra"]
    with pytest.raises(CommandExecutionError) as failure:
        host.deploy()
    stage = "build" if where == "package" else "check"
    advice = "set ckan:extensions:ckanext-alpha:override: ['setuptools<81']"
    assert f"failed at {stage}: " in str(failure.value) and advice in str(failure.value)
    host.pillar["extensions"]["ckanext-alpha"]["override"] = ["setuptools<81"]
    release = deployed(host)
    assert host.show(release)["packages"]["setuptools"] == "79.0"
    assert host.plan()["changes"] == []


@pytest.mark.parametrize("first", ["ckanext-alpha", "ckanext-omega"])
def test_a04_a_requirement_against_cores_pins_stops_and_names_library_versions_and_extension(
    host, origins, shelf, own_base, first
):
    for version in ("1.0", "2.0"):
        wheels.make_wheel(shelf, "sharedlib", version)
    install = [uv_path(), "pip", "install", "-q", "--offline", "--find-links", shelf, "-p", own_base / "bin/python"]
    subprocess.run([*install, "sharedlib==2.0"], check=True)
    repo = repos.make_repo(origins, "alpha", "Alpha", requirements=["sharedlib==1.0"], backend="uv_build")
    other = repos.make_repo(origins, "omega", "Omega", requirements=["sharedlib"], backend="uv_build")
    both = {"ckanext-alpha": extension(repo), "ckanext-omega": extension(other)}
    host.pillar["extensions"] = {first: both.pop(first), **both}
    with pytest.raises(CommandExecutionError) as failure:
        host.deploy()
    for word in ("ckanext-alpha", "sharedlib", "1.0", "2.0", "override"):
        assert word in str(failure.value)
    assert host.releases() == []
    host.pillar["extensions"]["ckanext-alpha"]["override"] = ["sharedlib==1.0"]
    planned = host.plan()
    assert any("ckanext-alpha overrides sharedlib: 1.0 in place of 2.0" in line for line in planned["changes"])
    release = deployed(host)
    assert host.python(release, "import sharedlib; print(sharedlib.VERSION)") == "1.0"
    assert host.show()["overridden"]["sharedlib"]["by"] == "ckanext-alpha"
    assert package(own_base).joinpath("sharedlib.py").read_text() == "VERSION = '2.0'\n"


def test_a05_a_moved_tag_is_followed_said_and_recorded_and_refused_where_locked(host, origins):
    repo = repos.make_repo(origins, "alpha", "one", backend="uv_build")
    first = repos.tag(repo, "v1")
    host.pillar["extensions"] = {"ckanext-alpha": extension(repo, "v1")}
    host.pillar["plugins"] = ["alpha"]
    before = deployed(host)
    repos.commit_change(repo, "two")
    second = repos.tag(repo, "v1")
    host.pillar["extensions"]["ckanext-alpha"]["locked"] = True
    with pytest.raises(
        CommandExecutionError, match=f"tag v1 of ckanext-alpha moved from {first[:12]} to {second[:12]}"
    ):
        host.deploy()
    assert (host.current(), host.releases()) == (before, [before])
    host.pillar["extensions"]["ckanext-alpha"]["locked"] = False
    assert any(f"moved from {first[:12]}" in line for line in host.plan()["changes"])
    after = deployed(host)
    assert host.show()["extensions"]["ckanext-alpha"]["commit"] == repos.git(repo, "rev-parse", "v1^{commit}") == second
    assert host.show()["extensions"]["ckanext-alpha"]["moved_from"] == first
    code = "import ckanext.alpha.plugin as p; print(p.TEXT)"
    assert (host.python(before, code), host.python(after, code)) == ("one", "two")


def replace(file: Path, text: str) -> None:
    """As an installer does; releases share the file that is there."""
    file.unlink()
    file.write_text(text)


def test_a08_patches_of_core_follow_upstream(host, origins, own_base, stub_base):
    """Version 2 has what patch 01 does, not what 02 does; version 3 rewrote the line that 02 touches."""
    patches = origins / "patches"
    (patches / "ckan").mkdir(parents=True)
    host.file_roots = [str(origins)]
    for number, (name, old, new) in {
        "01": ("one.py", "ONE = 1", "ONE = 11"), "02": ("two.py", "TWO = 2", "TWO = 22"),
    }.items():  # fmt: skip
        diff = f"--- a/ckan/{name}\n+++ b/ckan/{name}\n@@ -1 +1 @@\n-{old}\n+{new}\n"
        (patches / f"{number}.patch").write_text(diff)
    core = package(own_base) / "ckan"
    (core / "one.py").write_text("ONE = 1\n")
    (core / "two.py").write_text("TWO = 2\n")
    host.pillar["patches"] = ["salt://patches/01.patch", "salt://patches/02.patch"]
    before = digest(own_base)
    ask = "from ckan import one, two; print(one.ONE, two.TWO)"
    first = deployed(host)
    second = deployed(host)
    assert (host.python(first, ask), host.python(second, ask)) == ("11 22", "11 22")
    assert digest(own_base) == before
    assert [patch["result"] for patch in host.show()["patches"]] == ["applied", "applied"]
    replace(core / "one.py", "ONE = 11\n")
    third = deployed(host)
    assert host.python(third, ask) == "11 22"
    assert [patch["result"] for patch in host.show()["patches"]] == ["already applied", "applied"]
    replace(core / "two.py", "TWO = 'two'\n")
    kept = digest(host.home / "releases")
    with pytest.raises(CommandExecutionError) as failure:
        deployed(host)
    for word in ("at build", "02.patch", "ckan/two.py", "hunk 1"):
        assert word in str(failure.value)
    assert host.current() == third
    assert digest(host.home / "releases") == kept
    assert not [*host.home.rglob("*.rej"), *host.home.rglob("*.orig")]


def test_a_patch_of_an_extension_is_in_the_release_and_a_changed_one_is_another_build(host, origins):
    repo = repos.make_repo(origins, "alpha", "one", backend="uv_build")
    patch = origins / "alpha.patch"
    host.file_roots = [str(origins)]
    host.pillar["extensions"] = {"ckanext-alpha": extension(repo, patches=["salt://alpha.patch"])}
    host.pillar["plugins"] = ["alpha"]
    found = []
    for text in ("patched", "patched again"):
        plugin = repo / "ckanext/alpha/plugin.py"
        clean = plugin.read_text()
        plugin.write_text(clean.replace("TEXT = 'one'", f"TEXT = {text!r}"))
        patch.write_text(repos.git(repo, "diff") + "\n")
        plugin.write_text(clean)
        release = deployed(host)
        found.append(host.python(release, "import ckanext.alpha.plugin as p; print(p.TEXT)"))
    assert found == ["patched", "patched again"]
    assert host.diff()["patches"]["changed"] == ["salt://alpha.patch (ckanext-alpha)"]


def other_ckan(folder: Path, version: str) -> Path:
    """The stand-in for CKAN once more, as another version."""
    shutil.copytree(REPO / "test/stub/ckan", folder, ignore=shutil.ignore_patterns("__pycache__"))
    project = folder / "pyproject.toml"
    project.write_text(project.read_text().replace('version = "2.12.0"', f'version = "{version}"'))
    (folder / "ckan/one.py").write_text("ONE = 1\n")
    return folder


@pytest.mark.parametrize("way", ["an override", "CKAN as an extension", "a package with a file of CKAN"])
def test_h02_a_patch_of_core_is_in_what_is_imported_or_stops_before_the_switch(host, origins, shelf, own_base, way):
    """It is applied when the packages of the index are there; a checkout of CKAN itself hides it."""
    (package(own_base) / "ckan/one.py").write_text("ONE = 1\n")
    diff = "--- a/ckan/one.py\n+++ b/ckan/one.py\n@@ -1 +1 @@\n-ONE = 1\n+ONE = 11\n"
    (origins / "core.patch").write_text(diff)
    host.file_roots = [str(origins)]
    host.pillar["patches"] = ["salt://core.patch"]
    before = deployed(host)
    assert host.python(before, "from ckan import one; print(one.ONE)") == "11"
    if way == "an override":
        subprocess.run(
            [uv_path(), "build", "-q", "--wheel", "-o", shelf, other_ckan(origins / "ckan", "2.12.1")], check=True
        )
        repo = repos.make_repo(origins, "alpha", "one", requirements=["ckan>=2.12.1"], backend="uv_build")
        host.pillar["extensions"] = {"ckanext-alpha": extension(repo, override=["ckan==2.12.1"])}
    elif way == "CKAN as an extension":
        repo = other_ckan(origins / "ckan", "2.12.0")
        repos.git(repo, "init", "-q", "--initial-branch", "main")
        repos.git(repo, "add", "--all")
        repos.git(repo, "commit", "-qm", "ours")
        host.pillar["extensions"] = {"ckan": extension(repo)}
    else:
        wheels.make_wheel(shelf, "ckanext-rude", "1.0", {"ckanext/rude/__init__.py": "", "ckan/one.py": "ONE = 1\n"})
        host.pillar["extensions"] = {"ckanext-rude": {"version": "1.0"}}
    if way != "CKAN as an extension":
        patched = deployed(host)
        assert host.python(patched, "from ckan import one; print(one.ONE)") == "11"
        assert [patch["result"] for patch in host.show()["patches"]] == ["applied"]
        return
    why = "list the patch under ckan:extensions:ckan:patches"
    with pytest.raises(CommandExecutionError) as failure:
        host.deploy()
    for word in ("failed at check", "salt://core.patch was applied, but ckan/one.py is not as it left it", why):
        assert word in str(failure.value)
    assert (host.current(), host.releases()) == (before, [before])


def test_h02_a_patch_of_an_extension_that_another_package_hides_stops_before_the_switch(host, origins, shelf):
    repo = repos.make_repo(origins, "alpha", "one", backend="uv_build")
    plugin = (repo / "ckanext/alpha/plugin.py").read_text()
    (repo / "ckanext/alpha/plugin.py").write_text(plugin.replace("TEXT = 'one'", "TEXT = 'ours'"))
    (origins / "a.patch").write_text(repos.git(repo, "diff") + "\n")
    repos.git(repo, "checkout", "-q", ".")
    host.file_roots = [str(origins)]
    host.pillar["extensions"] = {"ckanext-alpha": extension(repo, patches=["salt://a.patch"])}
    host.pillar["plugins"] = ["alpha"]
    before = deployed(host)
    assert host.python(before, "import ckanext.alpha.plugin as p; print(p.TEXT)") == "ours"
    wheels.make_wheel(
        shelf, "ckanext-rude", "1.0", {"ckanext/alpha/__init__.py": "", "ckanext/alpha/plugin.py": plugin}
    )
    host.pillar["extensions"]["ckanext-rude"] = {"version": "1.0"}
    with pytest.raises(CommandExecutionError) as failure:
        host.deploy()
    assert "salt://a.patch was applied, but ckanext/alpha/plugin.py is not as it left it" in str(failure.value)
    assert "something else brings the module of ckanext-alpha" in str(failure.value)
    assert (host.current(), host.releases()) == (before, [before])


@pytest.mark.parametrize("value", ["2.10", "0012345", "1234567", "off"])
def test_a12_a_ref_without_quotes_is_refused_and_nothing_is_made(host, origins, value):
    import yaml

    repo = repos.make_repo(origins, "alpha", "one", backend="uv_build")
    for tag in ("2.1", "2.10"):
        repos.tag(repo, tag)
    host.pillar["extensions"] = {"ckanext-alpha": extension(repo, yaml.safe_load(value))}
    before = host.tree()
    with pytest.raises(CommandExecutionError, match="ckan:extensions:ckanext-alpha:ref is .*quotes"):
        host.deploy()
    assert host.tree() == before
    host.pillar["extensions"] = {"ckanext-alpha": {"version": yaml.safe_load(value)}}
    with pytest.raises(CommandExecutionError, match="ckan:extensions:ckanext-alpha:version is .*quotes"):
        host.deploy()
    assert host.tree() == before


def test_diff_names_commits_packages_and_options_and_no_value(host, origins, shelf):
    repo = repos.make_repo(origins, "alpha", "one", requirements=["cityhall-lib"], backend="uv_build")
    wheels.make_wheel(shelf, "cityhall-lib", "1.0")
    host.pillar["extensions"] = {"ckanext-alpha": extension(repo)}
    first = deployed(host)
    repos.commit_change(repo, "two")
    repos.commit_change(repo, "three")
    (repo / "requirements.txt").write_text("cityhall-lib>=2\n")
    repos.git(repo, "commit", "-qam", "Ask for a newer library")
    wheels.make_wheel(shelf, "cityhall-lib", "2.0")
    host.pillar["plugins"] = ["alpha"]
    host.pillar["config"] = {"ckan.site_title": "My City"}
    host.pillar["database"]["password"] = "another-password"
    planned = host.plan()["changes"]
    assert any("Show 'two'" in line and "Ask for a newer library" in line for line in planned)
    assert "packages: cityhall-lib 1.0 -> 2.0" in planned
    second = deployed(host)
    found = host.diff(first, second)
    change = found["extensions"]["ckanext-alpha"]
    assert [c["subject"] for c in change["commits"]] == ["Ask for a newer library", "Show 'three'", "Show 'two'"]
    assert found["packages"] == {"cityhall-lib": {"old": "1.0", "new": "2.0"}}
    assert found["configuration"] == {
        "added": ["ckan.site_title"], "removed": [], "changed": ["ckan.plugins", "sqlalchemy.url"],
    }  # fmt: skip
    assert found["plugins"] == {"added": ["alpha"], "removed": []}
    assert "another-password" not in repr(found) and "My City" not in repr(found)
    assert host.diff()["from"] == first


def test_a_second_release_with_the_same_contents_builds_nothing(host, origins):
    repo = old_style(origins, "alpha", "setuptools")
    setup = repo / "setup.py"
    setup.write_text(
        "import uuid\nopen('ckanext/alpha/build.py', 'w').write(f'BUILD = {str(uuid.uuid4())!r}')\n"
        + setup.read_text().replace(
            "packages=find_packages(), namespace_packages=['ckanext']", "packages=['ckanext.alpha']"
        )
    )
    (repo / "ckanext/__init__.py").unlink()
    repos.git(repo, "add", "-A")
    repos.git(repo, "commit", "-qm", "each build is another one")
    host.pillar["extensions"] = {"ckanext-alpha": extension(repo)}
    first, second = deployed(host), deployed(host)
    builds = [host.python(release, "import ckanext.alpha.build as b; print(b.BUILD)") for release in (first, second)]
    assert len(builds[0]) == 36 and builds[0] == builds[1]
    ask = "import ckanext.alpha.plugin as p; print(p.__file__)"
    for release in (first, second):
        assert host.python(release, ask).startswith(f"{host.home}/releases/{release}/src/ckanext-alpha/")
        forbidden = str(host.home / "shared/sources")
        names = subprocess.run(["grep", "-rlI", forbidden, host.home / "releases" / release], capture_output=True)
        assert names.stdout == b""


def test_a_setup_that_fails_shows_its_last_lines(host, origins):
    repo = old_style(origins, "alpha", "setuptools")
    (repo / "setup.py").write_text("import sys\nsys.exit('the moon is in the wrong phase')\n")
    repos.git(repo, "commit", "-qam", "fail")
    host.pillar["extensions"] = {"ckanext-alpha": extension(repo)}
    before = host.current()
    with pytest.raises(CommandExecutionError, match="the moon is in the wrong phase") as failure:
        host.deploy()
    assert "Traceback" not in str(failure.value) and len(str(failure.value)) < 2000
    assert (host.current(), host.releases()) == (before, [])


def test_an_archive_that_leads_outside_or_has_another_hash_is_refused(host, origins, tmp_path):
    evil = origins / "ckanext-evil-1.0.tar.gz"
    payload = tmp_path / "payload"
    payload.write_text("x")
    with tarfile.open(evil, "w:gz") as archive:
        archive.add(payload, "../../../../tmp/evil")
    host.file_roots = [str(origins)]
    good = hashlib.sha256(evil.read_bytes()).hexdigest()
    for checksum, message in ((good, "ckanext-evil.*/tmp/evil"), ("0" * 64, "ckanext-evil")):
        host.pillar["extensions"] = {"ckanext-evil": {"archive": f"salt://{evil.name}", "hash": f"sha256={checksum}"}}
        with pytest.raises(CommandExecutionError, match=message):
            host.deploy()
        assert host.releases() == []
    assert not os.path.exists("/tmp/evil")


def test_checkouts_that_no_release_needs_go_with_the_prune(host, origins):
    repo = repos.make_repo(origins, "alpha", "one", backend="uv_build")
    host.pillar["keep"] = 2
    host.pillar["extensions"] = {"ckanext-alpha": extension(repo)}
    for text in ("two", "three", "four"):
        repos.commit_change(repo, text)
        deployed(host)
    commits = repos.git(repo, "log", "--format=%H", "-n", "2").split()
    sources = [p.name for p in (host.home / "shared/sources").glob("*/*") if p.name != ".lock"]
    assert sorted(sources) == sorted([*commits, *(f"{commit}.wheels" for commit in commits)])


@contextlib.contextmanager
def small_disk(path: Path, size: str):
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_disk_that_fills_up_is_one_sentence_and_leaves_nothing(host, origins):
    repo = repos.make_repo(origins, "alpha", "one", backend="uv_build")
    (repo / "ckanext/alpha/big.bin").write_bytes(os.urandom(3 * 2**20))
    repos.git(repo, "add", "-A")
    repos.git(repo, "commit", "-qm", "a big file")
    host.pillar["extensions"] = {"ckanext-alpha": extension(repo)}
    host.pillar["disk_free_mb"] = 0
    host.pillar["link"] = "copy"
    with small_disk(host.home, "6m"):
        with pytest.raises(CommandExecutionError) as failure:
            host.deploy()
        assert "space" in str(failure.value) or "full" in str(failure.value)
        assert "Traceback" not in str(failure.value)
        assert host.releases() == []


def test_pip_takes_the_place_of_uv_and_has_no_override(host, origins, shelf, own_base):
    subprocess.run([own_base / "bin/python", "-m", "ensurepip"], check=True, capture_output=True)
    host.pillar["installer"]["kind"] = "pip"
    for version in ("1.0", "2.0"):
        wheels.make_wheel(shelf, "cityhall-lib", version)
    repo = repos.make_repo(origins, "alpha", "Alpha", requirements=["cityhall-lib<2"])
    host.pillar["extensions"] = {"ckanext-alpha": extension(repo, override=["cityhall-lib==2.0"])}
    host.pillar["plugins"] = ["alpha"]
    with pytest.raises(CommandExecutionError, match="pip cannot override"):
        host.deploy()
    assert host.releases() == []
    host.pillar["extensions"]["ckanext-alpha"]["override"] = []
    release = deployed(host)
    assert host.show()["packages"]["cityhall-lib"] == "1.0"
    where = host.python(release, "import ckanext.alpha.plugin as p; print(p.__file__)")
    assert where.startswith(f"{host.home}/releases/{release}/src/ckanext-alpha/")


def test_the_password_of_an_index_is_in_no_argument_and_no_message(host, origins):
    host.pillar["installer"]["index_url"] = "http://robot:an-index-password@127.0.0.1:1/simple"
    wheel = wheels.make_wheel(origins / "archives", "ckanext-secretive", "1.0", requires=["cityhall-lib"])
    host.file_roots = [str(origins / "archives")]
    host.pillar["extensions"] = {"ckanext-secretive": archive(wheel)}
    wrapper = host.root / "uv"
    real = host.pillar["installer"]["uv"]
    wrapper.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {host.root}/arguments\nUV_HTTP_RETRIES=0 exec {real} "$@"\n')
    wrapper.chmod(0o755)
    log = host.root / "arguments"
    log.touch()
    log.chmod(0o666)
    host.pillar["installer"]["uv"] = str(wrapper)
    with pytest.raises(CommandExecutionError, match="packages cannot be resolved") as failure:
        host.deploy()
    assert "an-index-password" not in str(failure.value)
    assert "pip install" in log.read_text() and "an-index-password" not in log.read_text()
    assert host.releases() == []
