"""
Which programs root runs when a release is made: none that others may put in the place of one, and no module of the
packages that it installs.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckan_deploy.build import addresses, base, uv_and_pip, virtualenv
from ckan_deploy.build.packages import Wanted, freeze, install
from ckan_deploy.build.requirements import Asked
from ckan_deploy.build.sandbox import Sandbox
from ckan_deploy.build.uv_and_pip import Installer
from ckan_deploy.build.wheels import Builder
from ckan_deploy.errors import FormulaError
from ckan_deploy.system import facts
from fakes import FakeHost, fake_site
from parts.process import sandbox
from stub import repos, wheels

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to lose")

PYTHON = os.path.realpath("/usr/bin/python3")
SHORT = os.path.basename(PYTHON)
NOBODY = pwd.getpwnam("nobody").pw_uid


@pytest.fixture
def place() -> Iterator[Path]:
    path = sandbox("ckan-p-")
    yield path
    shutil.rmtree(path)


def noting(marker: Path) -> str:
    """Code that notes as whom it runs, also before Python can open files."""
    return (
        "import posix\n"
        f"posix.write(posix.open({str(marker)!r}, posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND, 0o644), "
        "f'{posix.geteuid()} {__name__} '.encode())\n"
    )


def theirs(place: Path, marker: Path) -> Path:
    """A directory of another user's with a link to the system's Python, and a library of that user's."""
    top = place / "theirs"
    library = top / "lib" / SHORT
    (top / "bin").mkdir(parents=True)
    (library / "encodings").mkdir(parents=True)
    usual = Path(f"/usr/lib/{SHORT}")
    for folder in (".", "encodings"):
        for entry in (usual / folder).iterdir():
            if entry.name not in ("encodings", "__pycache__"):
                (library / folder / entry.name).symlink_to(entry)
    codecs = library / "encodings/__init__.py"
    codecs.unlink()
    codecs.write_text((usual / "encodings/__init__.py").read_text() + noting(marker))
    (top / "bin" / SHORT).symlink_to(PYTHON)
    (top / "pyvenv.cfg").write_text(f"home = {top}/bin\n")
    for path in (top, *top.rglob("*")):
        os.lchown(path, NOBODY, -1)
    return top


@pytest.mark.parametrize("where", ["a directory of theirs", "a link of theirs", "a link of root's", "tmp"])
def test_root_runs_no_python_from_where_others_may_put_one(place, where):
    marker, path = place / "ran", place / "venv"
    home = theirs(place, marker) / "bin"
    if where == "a link of theirs":
        (home.parent / "usual").symlink_to("/usr/bin")
        home = home.parent / "usual"
    elif where == "a link of root's":
        (place / "mine").mkdir()
        (place / "mine" / SHORT).symlink_to(home / SHORT)
        home = place / "mine"
    elif where == "tmp":
        (place / "tmp").mkdir()
        (place / "tmp").chmod(0o1777)
        (place / "tmp" / SHORT).symlink_to(PYTHON)
        home = place / "tmp"
    (path / "src").mkdir(parents=True)
    (path / "pyvenv.cfg").write_text(f"home = {home}\nversion = {SHORT.removeprefix('python')}.1\n")
    (path / "src/a.py").write_text("A = 1\n")
    with contextlib.suppress(FormulaError):
        virtualenv.compile_(str(path), ["src"])
    assert not marker.exists(), marker.read_text()
    with pytest.raises(FormulaError, match="is made with .*, and others than root may"):
        virtualenv.compile_(str(path), ["src"])


@pytest.mark.slow
def test_pip_sees_what_a_virtualenv_has_and_runs_none_of_it(place):
    marker, path = place / "ran", place / "venv"
    virtualenv.create(str(path))
    (packages,) = map(Path, virtualenv.site_packages(str(path)))
    installer = Installer(kind="pip", shared=str(place / "shared"), find_links=str(place / "shelf"), offline=True)
    builder = Builder(FakeHost({}), installer, Sandbox(user="nobody"), str(path))
    wheels.make_wheel(place / "shelf", "needed", "1.0")
    install(str(path), [Wanted("needed", "needed")], builder)
    for name in ("pip", "json", "encodings", "email"):
        (packages / name).mkdir()
        (packages / name / "__init__.py").write_text(noting(marker))
        (packages / name / "__main__.py").write_text(noting(marker))
    # Looked for by pip itself, or at each start of Python.
    for name in ("_manylinux", "sitecustomize", "usercustomize", "keyring", "brotli"):
        (packages / f"{name}.py").write_text(noting(marker))
    wheels.make_wheel(place / "shelf", "wants", "1.0", requires=["needed>=1"])
    install(str(path), [Wanted("wants", "wants")], builder)
    assert not marker.exists(), marker.read_text()
    assert {name: freeze(str(path))[name] for name in ("needed", "wants")} == {"needed": "1.0", "wants": "1.0"}


@pytest.mark.parametrize("name", ["python3", "uv"])
def test_root_runs_no_program_of_the_settings_that_others_may_put_another_in_place_of(place, name):
    """Who may write to such a directory is seen before the first call of it."""
    marker, folder = place / "ran", place / "tools"
    folder.mkdir()
    program = folder / name
    program.write_text(f"#!/bin/sh\nid -u >> {marker}\necho 3.11\n")
    program.chmod(0o755)
    shutil.chown(folder, "nobody")
    if name == "uv":
        installer = Installer(kind="uv", uv=str(program), shared=str(place / "shared"))
        with pytest.raises(FormulaError, match=f"nobody but root .*{folder}.*ckan:installer:uv"):
            uv_and_pip.run([str(program), "--version"], installer, {})
    else:
        site = fake_site(place, base={"version": "2.11.4", "python": str(program)})
        with pytest.raises(FormulaError, match=f"nobody but root .*{folder}.*ckan:base:python"):
            base.path(site)
        assert facts.of(str(program))["Python"] == ""
    assert not marker.exists()


@pytest.mark.parametrize("closed", ["the repository", "what is above it", "the one that git takes as well", "a link"])
def test_a_requirement_does_not_have_root_read_a_repository_that_not_all_may_read(place, closed):
    """As /etc with etckeeper's /etc/.git: all may read the one, and root alone the other."""
    top = place / "closed"
    repo = top / "etc"
    repo.mkdir(parents=True)
    (repo / "setup.py").write_text("A = 'a secret of root'\n")
    repos.git(repo, "init", "-q", "-b", "main")
    repos.git(repo, "add", "-A")
    repos.git(repo, "commit", "-qm", "secret")
    shared, named = place / "shared", repo
    if closed == "the repository":
        (repo / ".git").chmod(0o700)
    elif closed == "what is above it":
        top.chmod(0o700)
    elif closed == "the one that git takes as well":
        (repo / ".git").rename(top / "etc.git")
        (top / "etc.git").chmod(0o700)
    else:
        top.chmod(0o700)
        named = place / "link"
        named.symlink_to(repo)
    builder = Builder(FakeHost({}), Installer(shared=str(shared)), Sandbox(user="nobody"), str(place))
    asked = Asked("ckanext-evil", "requirements.txt", "x", "x", address=f"git+file://{named}@main")
    with pytest.raises(FormulaError, match="ckanext-evil asks for .*(not to be read by all|not all may go into)"):
        addresses.bring(asked, builder)
    assert not (shared / "mirrors").exists()
