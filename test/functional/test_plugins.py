"""A plugin that is listed must be brought by CKAN or by an extension; where that can be told it is asked at plan."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError

from functional.steps import archive, deployed, extension
from parts.base import uv_path
from stub import repos, wheels


def install(base: Path, *what: object) -> None:
    subprocess.run(
        [uv_path(), "pip", "install", "-q", "--offline", "--no-deps", "-p", base / "bin/python", *what], check=True
    )


def looked_into(host, name: str, file: Path, wrong: str) -> None:
    """The plugin that an archive brings is known, and is proposed for one that is written wrong."""
    host.file_roots = [str(file.parent)]
    host.pillar["extensions"] = {f"ckanext-{name}": archive(file)}
    host.pillar["plugins"] = [name]
    assert host.plan()["extensions"].keys() == {f"ckanext-{name}"}
    host.pillar["plugins"] = [wrong]
    assert f"did you mean {name}?" in refused(host)


def refused(host) -> str:
    with pytest.raises(CommandExecutionError) as failure:
        host.plan()
    return str(failure.value)


def test_a_plugin_that_nothing_brings_is_refused_at_plan_and_no_release_is_made(host, mycity):
    first = deployed(host)
    before = {name: value for name, value in host.tree().items() if not name.startswith("shared")}
    host.pillar["plugins"] = ["mycity", "mycitty"]
    told = (
        "plugin mycitty is in ckan:plugins, but neither CKAN nor an extension brings it (did you mean mycity?); "
        "correct it or add its extension."
    )
    assert refused(host) == told
    with pytest.raises(CommandExecutionError) as failure:
        host.deploy()
    assert "failed at plan" in str(failure.value) and told in str(failure.value)
    assert {name: value for name, value in host.tree().items() if not name.startswith("shared")} == before
    assert (host.current(), host.releases()) == (first, [first])


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
    assert host.plan()["extensions"].keys() == {"ckanext-mycity"}
    host.pillar["plugins"].append("deltas")
    assert "plugin deltas is" in refused(host) and "did you mean delta?" in refused(host)


def test_a_plugin_of_the_base_that_its_extension_lacks_is_refused(host, mycity, own_base, origins):
    point = {"mycity_old": "ckanext.mycity.plugin:Plugin"}
    install(own_base, wheels.make_wheel(origins / "wheels", "ckanext-mycity", "0.1.0", plugins=point))
    host.pillar["plugins"] = ["mycity_old"]
    assert "plugin mycity_old is" in refused(host)
    host.pillar["extensions"] = {}
    assert host.plan()["extensions"] == {}


def test_an_extension_of_the_index_is_looked_into_where_its_wheel_is_at_hand(host, shelf):
    wheels.make_extension(shelf, "delta", "Delta")
    host.pillar["extensions"] = {"ckanext-delta": {"version": "1.0"}}
    host.pillar["plugins"] = ["delta"]
    assert host.plan()["extensions"] == {"ckanext-delta": "1.0"}
    host.pillar["plugins"] = ["delta", "harvest"]
    assert "plugin harvest is" in refused(host)


def test_where_one_extension_cannot_be_looked_into_the_boot_tells(host, mycity, shelf):
    wheels.make_extension(shelf, "delta", "Delta")
    host.pillar["installer"]["find_links"] = f"file://{shelf}"  # to the installer alone it is a folder
    host.pillar["extensions"]["ckanext-delta"] = {"version": "1.0"}
    host.pillar["plugins"] = ["mycity", "delta", "harvest"]
    assert host.plan()["extensions"]["ckanext-delta"] == "1.0"
    with pytest.raises(CommandExecutionError, match="at check: plugin harvest does not start"):
        host.deploy()
    assert host.current() == "" and host.releases() == []
    host.pillar["plugins"] = ["mycity", "delta"]
    assert deployed(host) == host.current()


@pytest.mark.parametrize("at_hand", [True, False])
def test_an_extension_that_another_one_requires_brings_plugins_too(host, origins, shelf, at_hand):
    wheels.make_extension(shelf, "delta", "Delta")
    repo = repos.make_repo(origins, "mycity", "One", requirements=["ckanext-delta"], backend="uv_build")
    host.pillar["extensions"] = {"ckanext-mycity": extension(repo)}
    host.pillar["plugins"] = ["mycity", "delta"]
    host.pillar["installer"]["find_links"] = str(shelf) if at_hand else f"file://{shelf}"
    assert host.plan()["contents"]["packages"]["ckanext-delta"] == "1.0"
    host.pillar["plugins"] = ["mycity", "harvest"]
    if at_hand:
        assert "plugin harvest is" in refused(host)
    else:
        assert host.plan()["contents"]["packages"]["ckanext-delta"] == "1.0"


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
    host.file_roots = [str(origins)]
    inner = extension(mono, subdirectory="parts/ckanext-inner")
    host.pillar["extensions"] = {"ckanext-inner": inner}
    host.pillar["plugins"] = ["inner"]
    assert host.plan()["extensions"].keys() == {"ckanext-inner"}
    inner["patches"] = ["salt://second.patch"]
    assert "plugin inner is" in refused(host)
    host.pillar["plugins"] = ["second"]
    assert host.plan()["extensions"].keys() == {"ckanext-inner"}


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
    assert host.plan()["extensions"].keys() == {"ckanext-alpha"}
    host.pillar["plugins"] = ["alfa"]
    assert "did you mean alpha?" in refused(host)


def test_the_option_itself_wins_over_the_list_and_is_left_to_the_boot(host, mycity):
    host.pillar["plugins"] = ["harvest"]
    host.pillar["config"] = {"ckan.plugins": "mycity"}
    release = deployed(host)
    assert host.show(release)["check"]["plugins"] == ["mycity"]
