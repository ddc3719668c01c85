"""README.md: what it tells a newcomer to type is what `make test-hosts` types, all of it, and it parses."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from hosts import readme

REPO = Path(__file__).resolve().parents[2]
TEXT = (REPO / "README.md").read_text(encoding="utf-8")
BLOCKS = readme.blocks()
GITFS = readme.blocks(readme.INSTALL.read_text(encoding="utf-8"))
WALKED = {**BLOCKS, **GITFS}


def used() -> dict[str, list[str]]:
    """The blocks that the walk over real hosts types, and those that it writes, in the order of its code."""
    code = (REPO / "test/hosts/run.py").read_text(encoding="utf-8")
    return {verb: re.findall(rf'self\.{verb}\("([\w-]+)"', code) for verb in ("type", "put")}


def test_the_readme_is_short():
    assert len(TEXT.splitlines()) <= 150


def test_the_walk_over_hosts_takes_each_marked_block_once_and_no_other():
    assert sorted(used()["type"]) == sorted(name for name, block in WALKED.items() if not block.path)
    assert sorted(used()["put"]) == sorted(name for name, block in WALKED.items() if block.path)


def test_with_gitfs_the_master_has_all_that_the_file_of_the_tutorial_gave_it():
    checkout, gitfs = yaml.safe_load(BLOCKS["master"].text), yaml.safe_load(GITFS["gitfs-master"].text)
    assert GITFS["gitfs-master"].path == BLOCKS["master"].path
    roots = checkout.pop("file_roots")["base"]
    assert gitfs.pop("file_roots")["base"] == [place for place in roots if "formula" not in place]
    assert checkout.items() <= gitfs.items() and gitfs["fileserver_backend"] == ["roots", "gitfs"]
    # The same commands bring an update, but for the one that asks git.
    assert GITFS["gitfs-sync"].text.splitlines()[1:] == BLOCKS["sync"].text.splitlines()


def test_the_first_steps_are_typed_in_the_order_of_the_readme():
    steps = [name for name in BLOCKS if not BLOCKS[name].path and name not in ("deploy", "rollback")]
    assert [name for name in used()["type"] if name in steps] == steps
    # Modules before a command of theirs, and a key before what needs one.
    assert steps.index("sync") < steps.index("key") < steps.index("encrypt") < steps.index("validate")


@pytest.mark.parametrize("name", list(BLOCKS))
def test_the_tutorial_has_the_same_lines(name):
    tutorial = (REPO / "docs/get-started.md").read_text(encoding="utf-8").replace("\n$ ", "\n").splitlines()
    assert [line for line in BLOCKS[name].text.splitlines() if line not in tutorial] == []


def test_no_block_of_the_steps_is_left_unmarked():
    own = TEXT.partition("## Use it on your own minions")[2].partition("\n## ")[0]
    assert own.count("```") == 2 * own.count("<!-- hosts: ")
    assert len(BLOCKS) == TEXT.count("<!-- hosts: ")


@pytest.mark.parametrize("name", list(WALKED))
def test_a_block_parses(name):
    path, text = WALKED[name]
    if path:
        assert isinstance(yaml.safe_load(text), dict)
        return
    assert subprocess.run(["sh", "-n", "-c", text], capture_output=True).returncode == 0
    for line in text.splitlines():
        for pillar in (word.removeprefix("pillar=") for word in shlex.split(line) if word.startswith("pillar=")):
            assert yaml.safe_load(pillar)["env"] == "production"


def test_what_the_steps_copy_and_edit_is_there():
    assert "/srv/formulas/ckan-formula/pillar.example/." in BLOCKS["formula"].text
    for name in ("top.sls", "ckan/production.sls", "ckan/common.sls"):
        assert (REPO / "pillar.example" / name).is_file()
    for env in ("production", "staging"):
        assert (REPO / f"pillar.example/ckan/secrets/{env}.sls").read_text().endswith("\nckan: {}\n")


def test_a_file_without_its_path_and_a_name_that_is_there_twice_are_no_blocks():
    for text in (
        "<!-- hosts: a -->\n```yaml\nx: 1\n```\n",
        "<!-- hosts: a -->\n```\ntrue\n```\n<!-- hosts: a -->\n```\ntrue\n```\n",
    ):
        with pytest.raises(ValueError, match="the block a is there twice"):
            readme.blocks(text)
