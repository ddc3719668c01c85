"""A highstate with a wrong pillar, or on a system that the formula does not know: each problem once, and no frame."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ckan_deploy.deploy import preflight
from ckan_deploy.system import facts
from functional.conftest import REPO, Host


def problems(host: Host) -> list[str]:
    """What the one state of a highstate says that is no more than its problems."""
    done: dict[str, Any] = host.loaders().modules["state.sls"]("ckan").raw
    assert isinstance(done, dict) and len(done) == 1, done
    (state,) = done.values()
    assert state["result"] is False
    return state["comment"].splitlines()


def test_each_problem_of_the_pillar_is_said_once(host: Host) -> None:
    host.pillar.update(keep="many", web={"server": "ngnix"})
    assert problems(host) == [
        "ckan:keep must be a whole number, not the text 'many'",
        "ckan:web:server is 'ngnix'; use nginx or apache or none",
    ]  # fmt: skip


SYSTEMS = {
    "another family": ('ID="rocky"\nNAME="Rocky Linux"\nVERSION_ID="9.4"\nID_LIKE="rhel centos fedora"\n',
                       "the formula runs on Debian and Ubuntu, and this is Rocky Linux 9.4"),
    "an old Debian": ('ID=debian\nNAME="Debian GNU/Linux"\nVERSION_ID="11"\n',
                      "the formula needs Debian 12 or newer, and this is Debian GNU/Linux 11"),
    "an old Ubuntu": ('ID=ubuntu\nNAME="Ubuntu"\nVERSION_ID="20.04"\nID_LIKE=debian\n',
                      "the formula needs Ubuntu 22.04 or newer, and this is Ubuntu 20.04"),
    "nothing": ("", "the formula runs on Debian and Ubuntu, and this is another system"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "sentence"), SYSTEMS.values(), ids=SYSTEMS)
def test_a_system_that_the_formula_does_not_know_is_named_by_the_highstate_and_the_plan(
    host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, sentence: str
) -> None:
    file = tmp_path / "os-release"
    file.write_text(text)
    monkeypatch.setattr(facts, "RELEASE_FILE", str(file))
    assert problems(host) == [f"{sentence}."]
    assert preflight.obstacles(host.site(), "20990101000000Z")[0] == sentence


@pytest.mark.parametrize(
    "text",
    [
        "ID=debian\nVERSION_ID=13\n",
        "ID=debian\nPRETTY_NAME=sid\n",
        "ID=ubuntu\nVERSION_ID=24.04\n",
        "ID=linuxmint\nID_LIKE='ubuntu debian'\nVERSION_ID=21.3\n",
    ],
)
def test_a_newer_system_and_what_is_made_from_one_are_not_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "os-release").write_text(text)
    assert facts.unsupported(str(tmp_path / "os-release")) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "said"),
    [
        (True, "(ImportError: the formula needs Salt 4000 or newer, and this is 300"),
        (False, "the formula's modules are not loaded: type on the master: salt web1 saltutil.sync_all"),
    ],
    ids=["an old Salt", "no modules"],
)
def test_a_highstate_without_modules_says_why(tmp_path: Path, old: bool, said: str) -> None:
    for name in ("modules", "utils", "roots"):
        (tmp_path / name).mkdir()
    (tmp_path / "roots/ckan").symlink_to(REPO / "ckan")
    if old:
        shutil.copytree(REPO / "_modules", tmp_path / "modules", dirs_exist_ok=True)
        init = shutil.copytree(REPO / "_utils/ckan_deploy", tmp_path / "utils/ckan_deploy") / "__init__.py"
        init.write_text(init.read_text().replace("SALT = (3, 10), 3008", "SALT = (3, 10), 4000"))
    config = {
        "id": "web1", "file_client": "local", "root_dir": str(tmp_path / "root"), "pillar_roots": {"base": []},
        "file_roots": {"base": [str(tmp_path / "roots")]}, "module_dirs": [str(tmp_path / "modules")],
        "utils_dirs": [str(tmp_path / "utils")],
    }  # fmt: skip
    (tmp_path / "minion").write_text(json.dumps(config))
    command = ["salt-call", "--local", f"--config-dir={tmp_path}", "--out=json", "--retcode-passthrough", "state.apply"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*command, "ckan"], capture_output=True, text=True, env=env, check=False, cwd=tmp_path)
    (state,) = json.loads(done.stdout)["local"].values()
    assert done.returncode != 0 and state["result"] is False
    assert said in state["comment"] and state["comment"].count("the formula's package") <= 1
