"""Environment variables: of the app server, of cron jobs and of builds."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckan_deploy.build import environment
from ckan_deploy.build.sandbox import Sandbox
from ckan_deploy.database import probe
from ckan_deploy.serve import cron, uwsgi
from ckan_deploy.system import processes
from fakes import REPO, fake_site

ODD = {
    "ODD": "a 'b' \"c\" 100% %(here)s ; #d $HOME `e` \\f \\n",
    "LINES": "one\n two\n",
    "EMPTY": "",
    "DSN": "https://marked-secret@sentry.example.org/1",
}
PRINT = "import json, os; print(json.dumps({name: os.environ.get(name) for name in ('ODD', 'LINES', 'EMPTY', 'DSN')}))"


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a path that is short enough for a socket, and open to other users."""
    place = Path(tempfile.mkdtemp(prefix="ckan-e-", dir="/tmp"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


@pytest.fixture
def release(short: Path) -> Path:
    site = fake_site(short, environment={**ODD, "DSN": None}, secrets__environment={"DSN": ODD["DSN"]})
    environment.write(site, str(short))
    assert (short / environment.NAME).stat().st_mode & 0o777 == 0o640
    return short


def shown(said: str) -> dict[str, str]:
    return json.loads(said.splitlines()[-1])


def test_a_shell_python_and_the_commands_of_a_deploy_read_the_same(release, monkeypatch):
    script = f"cd {release}\n{environment.SOURCED}\nexec {sys.executable} -c {shlex.quote(PRINT)}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert shown(done.stdout) == ODD == environment.read(str(release))
    # The probe of check and migrate, as CKAN's user.
    seen = {}
    monkeypatch.setattr(processes, "run", lambda command, env, **more: seen.update(env) or processes.Done(0, "", "x"))
    (release / "bin").mkdir()
    (release / "bin/python").touch()
    with pytest.raises(probe.FormulaError, match="ended without an answer"):
        probe.check(fake_site(release), str(release))
    assert {name: seen[name] for name in ODD} == ODD


def test_a_release_without_variables_has_no_file_and_one_of_before_goes(release):
    environment.write(fake_site(release), str(release))
    assert not (release / environment.NAME).exists() and environment.read(str(release)) == {}
    script = f"cd {release} && {environment.SOURCED} && echo well"
    assert subprocess.run(["sh", "-c", script], capture_output=True, text=True).stdout == "well\n"


def test_an_app_server_has_the_variables(release):
    (release / "current").symlink_to(release)
    site = fake_site(release, paths={"current": str(release / "current")})
    (release / "bin").mkdir()
    (release / "bin/uwsgi").write_text(f"#!/bin/sh\nexec {sys.executable} -c {shlex.quote(PRINT)}\n")
    (release / "bin/uwsgi").chmod(0o755)
    script = uwsgi._script(site, str(release))
    done = subprocess.run(["sh", "-c", script], cwd=release, capture_output=True, text=True)
    assert shown(done.stdout) == ODD, done


def test_a_cron_job_has_the_variables_and_its_line_names_none(release):
    site = fake_site(
        release, cron={"a": {"schedule": "@daily", "shell": "x"}}, secrets__environment={"DSN": ODD["DSN"]}
    )
    assert "marked" not in cron.pending(site)[-1].text
    script = REPO / "_utils/ckan_deploy/scripts/cron.py"
    command = [sys.executable, script, "--site", "default", "--env", "production", "--ini", "x.ini", "a", "--"]
    # In cron's mail, where there is no log of the system.
    hidden = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev && exec "$@"', "sh"]
    (release / "print.py").write_text(PRINT)
    done = subprocess.run([*hidden, *command, sys.executable, "print.py"], cwd=release, capture_output=True, text=True)
    assert shown(done.stdout) == ODD, done


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bubblewrap", "user"])
def test_a_build_has_its_variables_and_no_argument_holds_them(kind, short):
    box = Sandbox.of(fake_site(short, build={"sandbox": kind, "environment": ODD}, build_user="nobody").settings)
    place = short / "place"
    place.mkdir()
    os.chown(place, 65534, 65534)
    look = "sleep 1; ps axww -o args"
    with subprocess.Popen(["sh", "-c", look], stdout=subprocess.PIPE, text=True) as looks:
        command = ["sh", "-c", f"/usr/bin/python3 -c {shlex.quote(PRINT)}; sleep 2"]
        done = box.run(command, writes=str(place), network=True)
        listed, _ = looks.communicate()
    assert shown(done.stdout) == ODD, done
    assert "sleep 2" in listed and "marked-secret" not in listed
    plain = box.run(["/usr/bin/python3", "-c", PRINT], writes=str(place))
    assert set(shown(plain.stdout).values()) == {None}
