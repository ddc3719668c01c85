"""Entry points are read from the files of a package, without running it; and what cannot be told."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from ckan_deploy.build.entry_points import LIMIT, of_virtualenv, of_wheel
from stub import wheels

POINTS = {
    "plugins": ("[ckan.plugins]\n# the first\none = x:One\n two=x:Two\n", ["one", "two"]),
    "test plugins": ("[ckan.test_plugins]\none = x:One\n", ["one"]),
    "another group": ("[console_scripts]\none = x:One\n", []),
    "none": ("", []),
    "with a mark of its encoding": ("\ufeff[ckan.plugins]\none = x:One\n", ["one"]),
    "too large": ("[ckan.plugins]\n" + "#" * LIMIT, None),
}


@pytest.mark.parametrize(("text", "plugins"), POINTS.values(), ids=POINTS)
def test_what_a_wheel_declares(tmp_path, text, plugins):
    wheel = tmp_path / "x-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("x-1.0.dist-info/entry_points.txt", text)
    assert of_wheel(str(wheel)) == plugins


def test_a_wheel(tmp_path):
    assert of_wheel(str(wheels.make_extension(tmp_path, "delta", "Delta"))) == ["delta"]
    assert of_wheel(str(wheels.make_wheel(tmp_path, "library", "1.0"))) == []
    broken = tmp_path / "broken-1.0-py3-none-any.whl"
    broken.write_bytes(b"PK\3\4 and no more")
    assert of_wheel(str(broken)) is None
    assert of_wheel(str(tmp_path / "gone-1.0-py3-none-any.whl")) is None


def make_virtualenv(path: Path, *, system: bool = False) -> Path:
    packages = path / "lib/python3.11/site-packages"
    packages.mkdir(parents=True)
    (path / "pyvenv.cfg").write_text(f"home = /usr/bin\ninclude-system-site-packages = {str(system).lower()}\n")
    return packages


def make_package(folder: Path, name: str, points: str, info: str = "dist-info") -> None:
    path = folder / f"{name.replace('-', '_')}-1.0.{info}"
    path.mkdir(parents=True)
    (path / ("METADATA" if info == "dist-info" else "PKG-INFO")).write_text(f"Name: {name}\nVersion: 1.0\n")
    (path / "entry_points.txt").write_text(points)


def test_a_virtualenv(tmp_path):
    packages = make_virtualenv(tmp_path)
    make_package(packages, "ckan", "[ckan.plugins]\nactivity = a:A\n\n[ckan.test_plugins]\ntested = t:T\n")
    make_package(packages, "ckanext-x", "[console_scripts]\nrun = x:run\n[ckan.plugins]\none = x:One\n", "egg-info")
    make_package(tmp_path / "checkout", "ckanext-dev", "[ckan.plugins]\ndev = d:Dev\n", "egg-info")
    (packages / "easy-install.pth").write_text(f"import sys\n# a note\n{tmp_path}/checkout\n/gone\n\n")
    assert of_virtualenv(str(tmp_path)) == ["activity", "dev", "one", "tested"]
    assert of_virtualenv(str(tmp_path), without={"ckanext-x"}) == ["activity", "dev", "tested"]


def test_a_virtualenv_that_takes_packages_of_the_system_cannot_be_told(tmp_path):
    make_package(make_virtualenv(tmp_path, system=True), "ckan", "[ckan.plugins]\nactivity = a:A\n")
    assert of_virtualenv(str(tmp_path)) is None
