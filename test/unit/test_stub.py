"""The stand-in CKAN and the extension repositories that the fast tests are built on."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from parts.base import uv_path
from stub import repos

STUB = Path(repos.__file__).parent / "ckan"
UV = uv_path()

ASK = """
import json, sys
from ckan.cli import CKANConfigLoader
from ckan.config.middleware import make_app
app = make_app(CKANConfigLoader(sys.argv[1]).get_config())
answers = {}
for path in sys.argv[2:]:
    said = []
    body = b"".join(app({"PATH_INFO": path, "REQUEST_METHOD": "GET"}, lambda *args: said.append(args)))
    answers[path] = [said[0][0], body.decode()]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def venv(tmp_path_factory) -> Path:
    """A virtualenv with the stand-in and one editable extension, made without a package index."""
    root = tmp_path_factory.mktemp("stub")
    source = root / "stub"
    shutil.copytree(STUB, source)
    repos.make_repo(root, "mycity", "Hello <city>", backend="uv_build", migrations=2)
    subprocess.run([UV, "venv", "--quiet", root / "venv"], check=True)
    subprocess.run(
        [UV, "pip", "install", "--quiet", "--offline", "--no-index", "--python", root / "venv/bin/python"]
        + [source, "--editable", root / "ckanext-mycity"],
        check=True,
    )
    return root / "venv"


def write_ini(path: Path, **options: str) -> Path:
    """Write an ini file; `__` in a name stands for a dot."""
    lines = {"ckan.site_url": "http://test.example", "stub.database": "%(here)s/db.json"}
    lines.update({name.replace("__", "."): value for name, value in options.items()})
    path.write_text("[app:main]\n" + "".join(f"{name} = {value}\n" for name, value in lines.items()))
    return path


def run(venv: Path, *command: object) -> subprocess.CompletedProcess:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)


def ask(venv: Path, ini: Path, *paths: str) -> dict:
    result = run(venv, venv / "bin/python", "-c", ASK, ini, *paths)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_the_pages_of_the_stand_in(venv, tmp_path):
    ini = write_ini(tmp_path / "ckan.ini", ckan__plugins="mycity", ckan__site_title="Our town")
    answers = ask(venv, ini, "/", "/api/3/action/status_show", "/api/3/action/package_search", "/nothing")
    assert '<span class="mycity-marker">Hello &lt;city&gt;</span>' in answers["/"][1]
    assert "<title>Our town</title>" in answers["/"][1]
    status = json.loads(answers["/api/3/action/status_show"][1])
    assert status["success"] is True
    assert status["result"]["ckan_version"] == "2.12.0"
    assert json.loads(answers["/api/3/action/package_search"][1])["result"]["count"] == 0
    assert answers["/nothing"][0] == "404 Not Found"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ckan__plugins": "mycity unknown"}, "PluginNotFoundException: unknown"),
        ({"stub__boot_error": "no boot today"}, "RuntimeError: no boot today"),
        ({"ckan__site_url": ""}, "ckan.site_url is not configured"),
        ({"ckan__max_resource_size": "big"}, "ckan.max_resource_size: "),
    ],
)
def test_a_boot_that_fails_raises_what_ckan_raises(venv, tmp_path, options, message):
    result = run(venv, venv / "bin/python", "-c", ASK, write_ini(tmp_path / "ckan.ini", **options))
    assert result.returncode == 1
    assert message in result.stderr


@pytest.mark.slow
def test_boot_is_fast_unless_asked_to_be_slow(venv, tmp_path):
    def seconds(**options: str) -> float:
        ini = write_ini(tmp_path / "ckan.ini", **options)
        start = time.monotonic()
        ask(venv, ini, "/")
        return time.monotonic() - start

    # Compared, since machines differ: a boot on its own, and one that is told to take a second more.
    assert min(seconds() for _ in range(5)) + 0.7 < seconds(stub__boot_seconds="1")


def test_migrations_are_counted_and_applied(venv, tmp_path):
    ckan = venv / "bin/ckan"
    ini = write_ini(tmp_path / "ckan.ini", ckan__plugins="mycity")
    pending = run(venv, ckan, "-c", ini, "db", "pending-migrations")
    assert pending.stdout.splitlines() == [
        "3 unapplied migrations for core",
        "2 unapplied migrations for mycity",
        "Upgrading DB: SUCCESS",
    ]
    assert run(venv, ckan, "-c", ini, "db", "init").returncode == 0
    assert json.loads((tmp_path / "db.json").read_text()) == {"core": 3, "mycity": 2}
    assert run(venv, ckan, "-c", ini, "db", "pending-migrations").stdout == "Upgrading DB: SUCCESS\n"

    write_ini(ini, stub__migrations="4", stub__migrate_error="disk full")
    failed = run(venv, ckan, "-c", ini, "db", "upgrade")
    assert failed.returncode == 1
    assert "RuntimeError: disk full" in failed.stderr
    assert json.loads((tmp_path / "db.json").read_text())["core"] == 3


def test_the_other_commands_of_the_stand_in(venv, tmp_path):
    ini = write_ini(tmp_path / "ckan.ini", stub__search_error="no Solr")
    assert run(venv, venv / "bin/ckan", "--version").stdout == "ckan, version 2.12.0\n"
    assert "no Solr" in run(venv, venv / "bin/ckan", "-c", ini, "search-index", "check").stderr
    write_ini(ini)
    assert run(venv, venv / "bin/ckan", "-c", ini, "search-index", "check").returncode == 0


@pytest.mark.parametrize("where", ["boot", "import"])
def test_an_extension_changes_breaks_and_mends(venv, tmp_path, where):
    repo = venv.parent / "ckanext-mycity"
    ini = write_ini(tmp_path / "ckan.ini", ckan__plugins="mycity")
    changed = repos.commit_change(repo, "Second text")
    assert "Second text" in ask(venv, ini, "/")["/"][1]
    broken = repos.commit_broken(repo, "fell over", where=where)
    result = run(venv, venv / "bin/python", "-c", ASK, ini)
    assert "RuntimeError: fell over" in result.stderr
    mended = repos.commit_change(repo, "Third text", migrations=2)
    assert "Third text" in ask(venv, ini, "/")["/"][1]
    assert repos.tag(repo, "v1", changed) == changed
    assert len({changed, broken, mended}) == 3


def test_a_repository_has_what_was_asked_for(tmp_path):
    repo = repos.make_repo(tmp_path, "other", "Text", version="2.0", requirements=["idna>=3"])
    assert (repo / "requirements.txt").read_text() == "idna>=3\n"
    assert "setuptools" in (repo / "pyproject.toml").read_text()
    repos.branch(repo, "fix-42")
    fix = repos.commit_change(repo, "Fixed")
    repos.branch(repo, "main")
    assert repos.git(repo, "rev-parse", "fix-42") == fix
    assert repos.git(repo, "rev-parse", "main") != fix
    assert repos.git(repo, "status", "--porcelain") == ""
