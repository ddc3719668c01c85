"""Entry points are read from the files of a package, without running it: of each format, and what cannot be told."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from ckan_deploy.build.entry_points import LIMIT, of_archive, of_checkout, of_virtualenv
from stub import wheels

SETUPTOOLS = '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
HATCH = '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
POETRY = '[build-system]\nrequires = ["poetry-core"]\nbuild-backend = "poetry.core.masonry.api"\n'
POINTS = '[project]\nname = "x"\nversion = "1"\n[project.entry-points."ckan.plugins"]\none = "ckanext.x:One"\n'
CFG = "[options.entry_points]\nckan.plugins =\n    # the first\n    one = ckanext.x:One\n    two=ckanext.x:Two\n"
SHIM = "from setuptools import setup\nsetup(message_extractors={'ckanext': [('**.py', 'python', None)]})\n"

TOLD = {
    "project": ({"pyproject.toml": POINTS}, ["one"]),
    "project, another backend": ({"pyproject.toml": HATCH + POINTS}, ["one"]),
    "project, the setup.py of another backend": ({"pyproject.toml": HATCH + POINTS, "setup.py": "1/0"}, ["one"]),
    "project and a shim": ({"pyproject.toml": SETUPTOOLS + POINTS, "setup.py": SHIM}, ["one"]),
    "project, dynamic": (
        {"pyproject.toml": '[project]\nname = "x"\ndynamic = ["version", "entry-points"]\n', "setup.cfg": CFG},
        ["one", "two"],
    ),
    "project, dynamic version": (
        {"pyproject.toml": HATCH + POINTS.replace('version = "1"', 'dynamic = ["version"]')},
        ["one"],
    ),
    "test plugins": ({"pyproject.toml": POINTS.replace("ckan.plugins", "ckan.test_plugins")}, ["one"]),
    "another group": ({"pyproject.toml": POINTS.replace("ckan.plugins", "console_scripts")}, []),
    "poetry": (
        {"pyproject.toml": POETRY + '[tool.poetry]\nname = "x"\n[tool.poetry.plugins."ckan.plugins"]\none = "x:One"\n'},
        ["one"],
    ),
    "setup.cfg": ({"setup.cfg": CFG, "setup.py": SHIM}, ["one", "two"]),
    "setup.cfg of pbr": ({"setup.cfg": CFG.replace("options.", ""), "setup.py": SHIM}, ["one", "two"]),
    "setup.cfg and a pyproject for tools": (
        {"setup.cfg": CFG, "pyproject.toml": SETUPTOOLS + "[tool.black]\nline-length = 79\n"},
        ["one", "two"],
    ),
    "setup.py, dictionary of lists": (
        {"setup.py": "import setuptools\nsetuptools.setup(entry_points={'ckan.plugins': ['one = x:O', 'two=x:T']})"},
        ["one", "two"],
    ),
    "setup.py, dictionary of texts": (
        {"setup.py": "from setuptools import setup\nsetup(entry_points={'ckan.plugins': 'one = x:One'})"},
        ["one"],
    ),
    "setup.py, text": (
        {
            "setup.py": "from setuptools import setup, find_packages\nsetup(name='x', packages=find_packages(),\n"
            "entry_points='''\n    [ckan.plugins]\n    one = x:One\n    # a note\n    two=x:Two\n"
            "    [babel.extractors]\n    ckan = ckan.lib.extract:extract_ckan\n''')"
        },
        ["one", "two"],
    ),
    "setup.py without any": ({"setup.py": "from setuptools import setup\nsetup(name='x')\n"}, []),
    "setup.py with a mark of its encoding": ({"setup.py": "\ufefffrom setuptools import setup\nsetup(name='x')\n"}, []),
    "setup.py says more than setup.cfg": (
        {"setup.cfg": CFG, "setup.py": "setup(entry_points={'ckan.plugins': ['three = x:Three']})"},
        ["one", "three", "two"],
    ),
}
NOT_TOLD = {
    "nothing": {},
    "a variable": {"setup.py": "from setuptools import setup\npoints = {}\nsetup(entry_points=points)\n"},
    "a value": {"setup.py": "setup(entry_points={'ckan.plugins': config.points})"},
    "a computed line": {"setup.py": "setup(entry_points={'ckan.plugins': [f'{name} = x:One']})"},
    "arguments": {"setup.py": "setup(name='x', **arguments)"},
    "no call": {"setup.py": "import build\nbuild.run()\n"},
    "Python 2": {"setup.py": "print 'x'\nsetup(name='x')\n"},
    "another type": {"setup.py": "setup(entry_points=['one = x:One'])"},
    "zero byte": {"setup.py": "setup(name='x')\0"},
    "nested without end": {"setup.py": "(" * 100_000},
    "too large": {"setup.py": "setup()\n" + "#" * LIMIT},
    "a file named in setup.cfg": {"setup.cfg": "[options]\nentry_points = file: points.txt\n", "setup.py": SHIM},
    "a broken setup.cfg": {"setup.cfg": "one\ntwo\n", "setup.py": SHIM},
    "a broken pyproject": {"pyproject.toml": "[project\n"},
    "a strange pyproject": {"pyproject.toml": "project = 1\n"},
    "strange entry points": {"pyproject.toml": "[project]\nentry-points = 1\n"},
    "a file named in pyproject": {
        "pyproject.toml": '[project]\nname = "x"\ndynamic = ["entry-points"]\n'
        '[tool.setuptools.dynamic]\nentry-points = {file = "points.txt"}\n'
    },
    "dynamic, another backend": {"pyproject.toml": f'{HATCH}[project]\nname = "x"\ndynamic = ["entry-points"]\n'},
    "a backend with ways of its own": {"pyproject.toml": HATCH.replace("hatchling.build", "flit_core.buildapi")},
}


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def make_tar(path: Path, files: dict[str, str], prefix: str = "ckanext-x-1.0/") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


def make_zip(path: Path, files: dict[str, str], prefix: str = "ckanext-x-1.0/") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(prefix + name, text)
    return path


@pytest.mark.parametrize(("files", "plugins"), TOLD.values(), ids=TOLD)
def test_what_a_checkout_and_an_sdist_declare(tmp_path, files, plugins):
    assert of_checkout(str(write(tmp_path, files))) == plugins
    assert of_archive(str(make_tar(tmp_path / "x-1.0.tar.gz", files))) == plugins
    assert of_archive(str(make_tar(tmp_path / "x-1.0.tgz", files, "./x/"))) == plugins
    assert of_archive(str(make_zip(tmp_path / "x-1.0.zip", files))) == plugins


@pytest.mark.parametrize("files", NOT_TOLD.values(), ids=NOT_TOLD)
def test_what_cannot_be_told(tmp_path, files):
    assert of_checkout(str(write(tmp_path, files))) is None
    assert of_archive(str(make_tar(tmp_path / "x-1.0.tar.gz", files))) is None
    assert of_archive(str(make_zip(tmp_path / "x-1.0.zip", files))) is None


def test_a_project_file_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_text(POINTS)
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout/pyproject.toml").symlink_to("../elsewhere")
    assert of_checkout(str(tmp_path / "checkout")) is None


def test_reading_runs_no_code(tmp_path):
    write(tmp_path, {"setup.py": f"open({str(tmp_path / 'ran')!r}, 'w')\nsetup(entry_points={{}})\n"})
    assert of_checkout(str(tmp_path)) == []
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("folder", ["", "src/"])
def test_an_sdist_of_setuptools_tells_what_its_setup_py_computed(tmp_path, folder):
    files = {**NOT_TOLD["a variable"], f"{folder}ckanext_x.egg-info/entry_points.txt": "[ckan.plugins]\none = x:One\n"}
    # In a plain snapshot of a repository it may be out of date.
    assert of_archive(str(make_tar(tmp_path / "x-1.0.tar.gz", files))) is None
    assert of_archive(str(make_tar(tmp_path / "x-1.1.tar.gz", {**files, "PKG-INFO": "Name: x\n"}))) == ["one"]


def test_a_wheel(tmp_path):
    assert of_archive(str(wheels.make_extension(tmp_path, "delta", "Delta"))) == ["delta"]
    assert of_archive(str(wheels.make_wheel(tmp_path, "library", "1.0"))) == []
    broken = tmp_path / "broken-1.0-py3-none-any.whl"
    broken.write_bytes(b"PK\3\4 and no more")
    assert of_archive(str(broken)) is None
    assert of_archive(str(tmp_path / "gone-1.0-py3-none-any.whl")) is None


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
