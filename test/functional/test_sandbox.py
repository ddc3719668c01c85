"""Build code that means harm: what it may do in its sandbox, and what a release takes of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from salt.exceptions import CommandExecutionError

from ckan_deploy.build.sandbox import Sandbox
from functional.steps import archive, deployed, extension
from stub import repos, wheels

pytestmark = pytest.mark.slow

# A setup.py that tries everything, and tells in a module of its package what it could do.
HOSTILE = """\
import json, os, pathlib, socket, subprocess, sys, time
from setuptools import setup

told = {{}}
def attempt(name, do):
    try:
        told[name] = str(do())
    except BaseException as exc:
        told[name] = f"no: {{exc}}"

def setuid():
    path = os.path.abspath("ckanext/evil/shell")
    open(path, "w").write("#!/bin/sh\\n")
    os.chmod(path, 0o4755)
    os.chmod("ckanext/evil", 0o777)

def linger():
    # As a daemon: in a session of its own, with another parent.
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            open(os.devnull)
            for number in range(3): os.dup2(os.open(os.devnull, os.O_RDWR), number)
            for _ in range(600):
                try: os.symlink("/etc", {root!r} + "/planted")
                except OSError: time.sleep(0.1)
        os._exit(0)

def reach():
    with socket.create_connection(("127.0.0.1", {port}), timeout=2):
        return "reached"

attempt("setuid", setuid)
attempt("linger", linger)
attempt("reach", reach)
attempt("write", lambda: open({root!r} + "/written", "w").write("x"))
attempt("sources", lambda: os.listdir({shared!r}))
attempt("ini", lambda: open({ini!r}).read())
attempt("shadow", lambda: open("/etc/shadow").read())
attempt("root", lambda: os.listdir("/root"))
attempt("processes", lambda: [int(p) for p in os.listdir("/proc") if p.isdigit()])
attempt("environment", lambda: sorted(os.environ))
attempt("id", lambda: (os.geteuid(), os.getgroups()))
attempt("memory", lambda: len(bytearray(3 * 2**30)))
attempt("fsmonitor", lambda: open(".git/config", "a").write("[core]\\n\\tfsmonitor = touch {root}/monitored\\n"))
attempt("manifest", lambda: os.mkfifo("release.json"))
pathlib.Path("ckanext/evil/told.py").write_text("TOLD = " + repr(json.dumps(told)))
setup(name="ckanext-evil", version="1.0", packages=["ckanext.evil"], package_data={{"": ["*"]}},
      entry_points={{"ckan.plugins": ["evil = ckanext.evil.plugin:Plugin"]}})
"""
# Runs at each start of a Python that has it, and writes down who that is.
TELLS_WHO = "import os; open({log!r}, 'a').write(f'{{os.geteuid()}} {{os.getpid()}}\\n')\n"


def hostile(origins: Path, host, port: int = 1) -> Path:
    """An extension with that setup.py."""
    repo = repos.make_repo(origins, "evil", "Evil")
    (repo / "pyproject.toml").write_text('[build-system]\nrequires = ["setuptools"]\n')
    words = {
        "root": str(host.root), "shared": str(host.home / "shared/mirrors"), "ini": "/nonexistent", "port": port,
    }  # fmt: skip
    current = host.current()
    if current:
        words["ini"] = str(host.home / "releases" / current / "production.ini")
    (repo / "setup.py").write_text(HOSTILE.format(**words))
    repos.git(repo, "add", "-A")
    repos.git(repo, "commit", "-qm", "mean harm")
    return repo


def modes(release: Path) -> list[str]:
    """What of a release others may write to, or who owns it besides root; what CKAN writes to is its own."""
    found = []
    for folder, folders, files in os.walk(release):
        folders[:] = [name for name in folders if (folder, name) != (str(release), "run")]
        for name in [".", *folders, *files]:
            status = os.lstat(os.path.join(folder, name))
            wrong = status.st_uid != 0 or (not stat.S_ISLNK(status.st_mode) and status.st_mode & 0o7022)
            kind = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode)
            if wrong or not kind:
                found.append(f"{os.path.join(folder, name)} {status.st_uid} {oct(status.st_mode)}")
    return found


def test_build_code_sees_and_leaves_nothing(host, origins, monkeypatch):
    """Setuid file, loose modes, a process that stays, links, FIFO, git's configuration, secrets, network, memory."""
    with __import__("socket").create_server(("127.0.0.1", 0)) as server:
        deployed(host)
        monkeypatch.setenv("SECRET_OF_THE_MINION", "of-the-minion")
        host.pillar["build"] = {"memory_mb": 1024}
        repo = hostile(origins, host, server.getsockname()[1])
        host.pillar["extensions"] = {"ckanext-evil": extension(repo)}
        host.pillar["plugins"] = ["evil"]
        release = deployed(host)
    told = json.loads(host.python(release, "from ckanext.evil.told import TOLD; print(TOLD)"))
    for name in ("reach", "write", "sources", "ini", "shadow", "root", "memory"):
        assert told[name].startswith("no: "), (name, told[name])
    assert told["setuid"] == "None"
    seen = set(json.loads(told["environment"].replace("'", '"')))
    assert {"PATH", "HOME"} <= seen <= {"PATH", "HOME", "LANG", "LC_ALL", "PWD", "SHLVL", "_", "PLAT"}
    assert max(json.loads(told["processes"])) < 100
    assert told["id"].startswith(f"({shutil._get_uid('nobody')}, ")
    path = host.home / "releases" / release
    assert modes(path) == []
    assert (path / "run").owner() == "www-data"
    for command in (["touch", path / "src/ckanext-evil/x"], ["cat", path / "production.ini"]):
        assert subprocess.run(["runuser", "-u", "nobody", "--", *command], check=False).returncode != 0
    subprocess.run(["git", "-C", path / "src/ckanext-evil", "status"], check=True, capture_output=True)
    time.sleep(0.3)  # what lingers plants its link each tenth of a second
    for name in ("planted", "written", "monitored"):
        assert not os.path.lexists(host.root / name)
    left = [p.pid for p in psutil.process_iter(["uids", "cmdline"]) if "setup.py" in " ".join(p.info["cmdline"] or [])]
    assert left == []
    shared = host.home / "shared"
    assert [p for p in shared.rglob("*") if p.owner() == "nobody"] == []


def test_root_runs_nothing_of_a_release(host, origins, own_base, shelf):
    """Neither of the base nor of a package that an extension requires: each start of Python tells who it is."""
    log = host.root / "who"
    log.touch()
    log.chmod(0o666)
    tells = TELLS_WHO.format(log=str(log))
    next(own_base.glob("lib/python3*/site-packages")).joinpath("base_tells.pth").write_text(tells)
    wheels.make_wheel(shelf, "tells", "1.0", {"tells.py": "", "tells.pth": tells})
    repo = repos.make_repo(origins, "alpha", "Alpha", requirements=["tells"], backend="uv_build")
    host.pillar["extensions"] = {"ckanext-alpha": extension(repo)}
    host.pillar["plugins"] = ["alpha"]
    first = deployed(host)
    deployed(host)
    host.rollback()
    assert host.current() == first
    users = {line.split()[0] for line in log.read_text().splitlines()}
    assert users and "0" not in users


@pytest.mark.parametrize("member", ["release.json", "run/web.sock", "production.ini", "bin/python", "pyvenv.cfg"])
def test_a_package_does_not_bring_what_is_the_formulas_own(host, origins, member):
    name = re.sub(r"\W", "", member)  # Salt keeps what it has fetched, by name
    wheel = wheels.make_wheel(origins / "archives", name, "1.0", {f"{name}-1.0.data/data/{member}": "mine"})
    host.file_roots = [str(origins / "archives")]
    host.pillar["extensions"] = {name: archive(wheel)}
    with pytest.raises(CommandExecutionError, match="failed at build: .*"):
        host.deploy()
    assert host.releases() == []


TRICKS = {
    "a link": "os.symlink('/etc/shadow', '{name}')",
    "a fifo": "os.mkfifo('{name}')",
    "a directory": "os.mkdir('{name}')",
    "no archive": "open('{name}', 'w').write('x')",
    "a way out": "z = zipfile.ZipFile('{name}', 'w'); z.writestr('../../../../tmp/out-of-it', 'x'); z.close()",
    "two": "open('{name}', 'w'); open('b-1.0-py3-none-any.whl', 'w')",
    "none": "None",
}


@pytest.mark.parametrize("trick", TRICKS)
def test_what_is_no_wheel_is_not_taken(host, origins, trick):
    repo = repos.make_repo(origins, "evil", "Evil")
    (repo / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "trick"\nbackend-path = ["."]\n'
    )
    do = TRICKS[trick].format(name="ckanext_evil-1.0-py3-none-any.whl")
    head = "import os, zipfile\n\n\ndef build_wheel(folder, settings=None, metadata=None):\n    os.chdir(folder)\n"
    (repo / "trick.py").write_text(f"{head}    {do}\n")
    repos.git(repo, "add", "-A")
    repos.git(repo, "commit", "-qm", trick)
    host.pillar["extensions"] = {"ckanext-evil": extension(repo)}
    begun = time.monotonic()
    with pytest.raises(
        CommandExecutionError, match="failed at plan: ckanext-evil: .*(wheel|whl|archive|link|cannot be)"
    ):
        host.deploy()
    assert time.monotonic() - begun < 60 and not os.path.exists("/tmp/out-of-it")
    assert host.releases() == []


def test_a_requirements_file_reads_and_sends_nothing_of_the_host(host, origins):
    """Its installer is root's: includes stay in the checkout, and no variable of the environment is filled in."""
    for line, why in (
        ("-r ../../../../../../../../../../etc/shadow", "outside of the checkout"),
        ("-c/etc/shadow", "outside of the checkout"),
        ("leak @ https://127.0.0.1:1/${UV_DEFAULT_INDEX}/leak-1.0-py3-none-any.whl", "names a variable"),
    ):
        repo = repos.make_repo(origins / re.sub(r"\W", "", line), "alpha", "A", requirements=[line], backend="uv_build")
        host.pillar["extensions"] = {"ckanext-alpha": extension(repo)}
        with pytest.raises(CommandExecutionError, match=why):
            host.deploy()
    assert host.releases() == []


def test_compiled_and_generated_files_of_a_build_are_in_the_release(host, origins):
    """And a package below src, a script, and a template that the packaging forgets."""
    repo = repos.make_repo(origins, "alpha", "Alpha")
    shutil.move(repo / "ckanext", repo / "src/ckanext")
    (repo / "pyproject.toml").write_text('[build-system]\nrequires = ["setuptools"]\n')
    (repo / "src/ckanext/alpha/speed.c").write_text(
        '#include <Python.h>\nstatic struct PyModuleDef m = {PyModuleDef_HEAD_INIT, "speed", 0, -1, 0};\n'
        "PyMODINIT_FUNC PyInit_speed(void) { return PyModule_Create(&m); }\n"
    )
    (repo / "setup.py").write_text(
        "from setuptools import Extension, find_namespace_packages, setup\n"
        "open('src/ckanext/alpha/made.py', 'w').write('MADE = 1')\n"
        "setup(name='ckanext-alpha', version='2.5', package_dir={'': 'src'},\n"
        "      packages=find_namespace_packages('src'),\n"
        "      ext_modules=[Extension('ckanext.alpha.speed', ['src/ckanext/alpha/speed.c'])],\n"
        "      entry_points={'ckan.plugins': ['alpha = ckanext.alpha.plugin:Plugin'],\n"
        "                    'console_scripts': ['alpha-tool = ckanext.alpha.made:tool']})\n"
    )
    repos.git(repo, "add", "-A")
    repos.git(repo, "commit", "-qm", "all kinds of files")
    host.pillar["extensions"] = {"ckanext-alpha": extension(repo)}
    host.pillar["plugins"] = ["alpha"]
    release = deployed(host)
    place = host.home / "releases" / release
    code = "from ckanext.alpha import made, plugin, speed; print(made.__file__, speed.__file__, made.MADE)"
    if not shutil.which("gcc") or not list(Path("/usr/include").glob("python3*/Python.h")):
        pytest.fail("a C compiler and the headers of Python are missing; test/parts/system.py installs them")
    made, speed, value = host.python(release, code).split()
    assert made == f"{place}/src/ckanext-alpha/src/ckanext/alpha/made.py" and value == "1"
    assert os.path.dirname(speed) == os.path.dirname(made)
    assert (place / "src/ckanext-alpha/src/ckanext/alpha/templates/header.html").exists()
    head = (place / "bin/alpha-tool").read_text().splitlines()[0]
    assert head == f"#!{place}/bin/python"
    assert host.show()["packages"]["ckanext-alpha"] == "2.5"


def test_where_no_namespaces_can_be_had_it_is_said(host, origins, mycity, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(CommandExecutionError, match="bubblewrap is not installed.*ckan:build:sandbox"):
        host.deploy()
    monkeypatch.undo()
    host.pillar["build"] = {"sandbox": "user"}
    assert any("without a sandbox" in line for line in host.plan()["own_remarks"])
    release = deployed(host)
    assert modes(host.home / "releases" / release) == []


def test_a_base_is_not_begun_where_no_namespaces_can_be_had(host, tmp_path, monkeypatch):
    # As the kernel refuses it in a container without CAP_NET_ADMIN.
    refusing = tmp_path / "bin/bwrap"
    refusing.parent.mkdir()
    refusing.write_text("#!/bin/sh\necho 'bwrap: loopback: Failed RTM_NEWADDR: No child processes' >&2\nexit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{refusing.parent}:{os.environ['PATH']}")
    host.pillar["base"] = {"version": "2.12.0"}
    done = host.loaders().states.ckan_base.present(name="base")
    assert done.result is False
    assert "cannot make namespaces here (bwrap: loopback: Failed RTM_NEWADDR" in done.comment
    assert "a container needs CAP_SYS_ADMIN and CAP_NET_ADMIN; or set ckan:build:sandbox to user" in done.comment
    assert not (host.home / "shared/bases").exists()


def test_a_sandbox_costs_little():
    """At most 60 ms more than the same as another user."""
    cost = {}
    for kind in ("user", "bubblewrap"):
        sandbox, times = Sandbox(kind=kind, user="nobody"), []
        for _ in range(10):
            begun = time.monotonic()
            assert sandbox.run(["true"]).retcode == 0
            times.append(time.monotonic() - begun)
        cost[kind] = min(times)
    assert cost["bubblewrap"] - cost["user"] < 0.06, cost
