"""What a minion has in memory for its jobs, and who has it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ckan_deploy

REPO = Path(__file__).resolve().parents[2]
LOAD = """
import gc, json, os, sys
import salt.loader

grains = salt.loader.grain_funcs(json.loads(sys.argv[1]))
version = grains["ckan_formula.versions"]()
loaded = "ckan_deploy.deploy.deploy" in sys.modules

from ckan_deploy import host

def job(name: str = "") -> int:
    return gc.get_freeze_count()

module = {"__name__": "x.jobs", "job": job}
job.__module__ = "x.jobs"
host.fit_arguments(module)
reads, writes = os.pipe()
if os.fork() == 0:
    os.write(writes, str(module["job"]()).encode())
    os._exit(0)
os.wait()
print(json.dumps([version, loaded, module["job"](), int(os.read(reads, 20))]))
"""


@pytest.mark.parametrize(("program", "loads"), [("salt-minion", True), ("salt-run", False), ("salt-call", False)])
def test_a_minion_alone_loads_what_its_jobs_need(tmp_path: Path, program: str, loads: bool) -> None:
    """It takes a tenth of a second, and each command on the master loads grains, too."""
    opts = {
        "__cli": program, "id": "web1", "cachedir": str(tmp_path), "extension_modules": str(tmp_path), "grains": {},
        "grains_dirs": [str(REPO / "_grains")], "optimization_order": [0],
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps(opts)], capture_output=True, text=True, cwd="/",
        env={**os.environ, "PYTHONPATH": str(REPO / "_utils")},
    )  # fmt: skip
    version, loaded, in_the_minion, in_a_job = json.loads(done.stdout or done.stderr)
    assert version == {"ckan_formula": {"version": ckan_deploy.VERSION}} and loaded is loads
    # No search for garbage looks at what a job has from the minion; in the minion itself all is looked at.
    assert in_the_minion == 0 and in_a_job > 10000
