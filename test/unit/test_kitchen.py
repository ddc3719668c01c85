"""kitchen.yml: its structure, the paths that it names, and what the pillar of each suite makes of a machine."""

from __future__ import annotations

import http.server
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from pathlib import Path
from xml.dom import minidom

import pytest
import yaml
from unit.test_pillar import compiled

from ckan_deploy import scripts
from ckan_deploy.settings.resolve import resolve
from hosts import kitchen as kitchen_hosts

REPO = Path(__file__).resolve().parents[2]
ERB = re.compile(r"<%=\s*\[File\.read\('([^']+)'\)\]\.pack\('m0'\)\s*%>")


@pytest.fixture(scope="module")
def kitchen() -> dict:
    return yaml.safe_load(ERB.sub(lambda match: f"TEXT-OF {match.group(1)}", (REPO / "kitchen.yml").read_text()))


def merged(kitchen: dict, suite: str) -> dict:
    """The provisioner's settings of a suite, merged as Test Kitchen does: dictionaries by key."""
    (own,) = [found for found in kitchen["suites"] if found["name"] == suite]
    out = dict(kitchen["provisioner"])
    for key, value in own["provisioner"].items():
        out[key] = {**out[key], **value} if isinstance(value, dict) else value
    return out


def placed(provisioner: dict, root: Path) -> Path:
    """The pillar as kitchen-salt lays it out: directories first, then single files over them."""
    for directory in provisioner["pillars_from_directories"]:
        shutil.copytree(REPO / directory, root, dirs_exist_ok=True)
    for name, source in provisioner["pillars_from_files"].items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPO / source, root / name)
    return root


def test_there_is_a_suite_for_each_web_server_that_the_formula_sets_up(kitchen):
    assert [suite["name"] for suite in kitchen["suites"]] == ["nginx", "apache"]
    assert kitchen["provisioner"]["name"] == "salt_solo"
    assert kitchen["provisioner"]["formula"] == "ckan"
    # kitchen-salt does not take both, and asks for Chef unless told otherwise.
    assert "is_file_root" not in kitchen["provisioner"] and kitchen["provisioner"]["require_chef"] is False
    assert kitchen["provisioner"]["pillars"] == {}  # without it kitchen-salt ends before it comes to the files
    assert kitchen["provisioner"]["state_top"] == {"base": {"*": ["ckan"]}}
    assert [platform["name"] for platform in kitchen["platforms"]] == ["debian-12"]


def test_every_path_that_is_named_is_there(kitchen):
    named = [*kitchen["provisioner"]["pillars_from_directories"]]
    for suite in kitchen["suites"]:
        named += merged(kitchen, suite["name"])["pillars_from_files"].values()
        command = suite["verifier"]["command"]
        script = re.search(r"TEXT-OF (\S+)", command).group(1)
        named.append(script)
        assert command.endswith(f"| base64 -d | sudo sh -s {suite['name']}")
    services = kitchen["provisioner"]["data_path"]
    # kitchen-salt puts what is in it into its own directory on the machine.
    script = kitchen["provisioner"]["pre_salt_command"].removeprefix("sudo sh /tmp/kitchen/data/")
    named += [services, f"{services}/{script}", f"{services}/solr.py"]
    assert len(named) >= 11
    assert [name for name in named if not (REPO / name).exists()] == []
    assert (REPO / kitchen["provisioner"]["formula"] / "init.sls").exists()


@pytest.mark.parametrize("suite", ["nginx", "apache"])
def test_the_pillar_of_a_suite_renders_without_a_key_and_is_valid(kitchen, tmp_path, suite):
    provisioner = merged(kitchen, suite)
    tree = placed(provisioner, tmp_path / "pillar")
    pillar = compiled(provisioner["salt_minion_id"], tmp_path / "salt", tree)
    assert "_errors" not in pillar and "BEGIN PGP" not in str(pillar)
    settings = resolve(pillar["ckan"])
    assert settings.web.server == suite
    assert (settings.env, settings.domain) == ("production", "data.example.org")
    assert settings.config["ckan.site_title"] == "My City's Data"
    # Nothing of it is asked of another machine.
    assert (settings.database.host, settings.extensions, settings.plugins) == ("localhost", {}, ())
    assert all("127.0.0.1" in address for address in (settings.redis_url, settings.solr_url))


def test_the_services_of_the_machine_are_where_the_pillar_says(kitchen):
    services = REPO / kitchen["provisioner"]["data_path"]
    for shell in ("sh", "dash"):
        assert subprocess.run([shell, "-n", services / "services.sh"], capture_output=True, text=True).stderr == ""
    stand_in = runpy.run_path(str(services / "solr.py"))
    for suite in ("nginx", "apache"):
        pillar = yaml.safe_load((REPO / f"test/kitchen/pillar/{suite}.sls").read_text())["ckan"]
        path = urllib.parse.urlsplit(pillar["solr_url"]).path
        assert {f"{path}/select", f"{path}/update"} <= stand_in["ANSWERS"].keys()


def test_the_stand_in_for_solr_answers_what_a_plan_asks(kitchen):
    core = runpy.run_path(str(REPO / kitchen["provisioner"]["data_path"] / "solr.py"))["Core"]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), core) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = {"solr_url": f"http://127.0.0.1:{server.server_port}/solr/ckan"}
        names = {"__name__": "backends"}
        exec(compile(scripts.text(scripts.BACKENDS), "backends", "exec"), names)
        found = {"problems": [], "remarks": [], "versions": {}}
        names["solr_core"](options, "solr_url", found)
        assert found == {"problems": [], "remarks": [], "versions": {"Solr": "0 (a stand-in)"}}
        # CKAN boots only where the schema has a name like this, in XML.
        with urllib.request.urlopen(f"{options['solr_url']}/schema?wt=schema.xml", timeout=10) as answer:
            assert re.fullmatch(r"ckan-2\.\d+", minidom.parse(answer).documentElement.getAttribute("name"))
        with pytest.raises(names["Sentence"], match="there is no core"):
            names["solr_core"]({"solr_url": options["solr_url"] + "s"}, "solr_url", found)
        server.shutdown()


def test_without_docker_the_same_suites_go_by_ssh(kitchen):
    text = (REPO / "test/kitchen/proxy.yml").read_text()
    other = yaml.safe_load(re.sub(r"<%=.*?%>", "x", text))
    assert other["driver"]["name"] == "proxy" and not {"suites", "provisioner", "verifier"} & other.keys()
    assert other["transport"]["name"] == kitchen["transport"]["name"] == "ssh"
    assert kitchen_hosts.suites() == [suite["name"] for suite in kitchen["suites"]]


def test_without_the_program_it_is_said_what_to_install(tmp_path):
    env = {**os.environ, "KITCHEN": "no-such-kitchen"}
    command = [sys.executable, REPO / "test/hosts/kitchen.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "there is no program no-such-kitchen; install Test Kitchen and kitchen-salt: docs/development.md\n"
    )


def test_the_verifier_is_a_shell_script_that_asserts(kitchen):
    script = REPO / "test/kitchen/verify.sh"
    assert kitchen["verifier"] == {"name": "shell", "remote_exec": True}
    # kitchen-salt gives the id to its own command alone.
    assert f"--id={kitchen['provisioner']['salt_minion_id']}" in script.read_text()
    for shell in ("sh", "dash"):
        assert subprocess.run([shell, "-n", script], capture_output=True, text=True).stderr == ""
    assert len(re.findall(r"^\s*ok \"", script.read_text(), re.M)) > 20


@pytest.mark.slow
def test_the_verifier_fails_on_a_machine_without_a_portal():
    script = (REPO / "test/kitchen/verify.sh").read_text().replace("home=/usr/lib/ckan", "home=/no/such/home")
    done = subprocess.run(["sh", "-s", "nginx"], input=script, capture_output=True, text=True, cwd="/")
    assert done.returncode == 1
    assert "NOT SO  current is a link" in done.stdout and "not as expected" in done.stdout
