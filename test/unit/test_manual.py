"""The manual: pages of a length that one reads, and a reference that is as the docstrings are."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ckan_deploy.fleet import begin
from tools import functions_docs

REPO = Path(__file__).resolve().parents[2]
PAGES = sorted((REPO / "docs").glob("*.md"))
# Eight minutes.
WORDS = 1600


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_a_page_is_read_in_eight_minutes(page):
    assert len(page.read_text(encoding="utf-8").split()) <= WORDS


def test_the_navigation_has_each_page_once():
    def pages(entries: list) -> list[str]:
        values = [value for entry in entries for value in entry.values()]
        return [page for value in values for page in ([value] if isinstance(value, str) else pages(value))]

    named = pages(yaml.safe_load((REPO / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(named) == sorted(
        [*(page.name for page in PAGES), "readme.md", "security.md", "changelog.md", "contributing.md"]
    )


def test_the_reference_has_each_function_that_people_can_call_once():
    named = [name for page in functions_docs.PAGES.values() for name in page.modules]
    there = [f"{folder}/{path.name}" for folder in ("_modules", "_runners") for path in (REPO / folder).glob("*.py")]
    assert sorted(named) == sorted(there)


@pytest.mark.parametrize("kind", ["deploy", "rollback"])
def test_the_options_of_a_command_are_all_in_the_table(kind):
    text = (REPO / "docs/commands.md").read_text(encoding="utf-8").partition("## Options")[2]
    rows = re.findall(r"^\| (`.*`) \| (both|deploy|rollback) \|", text, re.M)
    named = [name for cell, who in rows if who in ("both", kind) for name in re.findall(r"`(\w+):", cell)]
    assert sorted(set(named)) == sorted(begin.KNOWN[kind])


def test_a_docstring_becomes_markdown():
    docstring = (
        "Do ``this``. See docs/pillar.md.\n\nto, by\n    Where to:\n    there.\nforce\n    Do it.\n\nReturns\nTrue.\n\n"
        "CLI Example:\n\n.. code-block:: bash\n\n    salt web1 ckan_x.y\n    salt web2 ckan_x.y"
    )
    assert functions_docs.markdown(docstring) == (
        "Do `this`. See [pillar.md](pillar.md).\n\n- `to`, `by`: Where to: there.\n- `force`: Do it.\n\nReturns\n"
        "True.\n\n```bash\nsalt web1 ckan_x.y\nsalt web2 ckan_x.y\n```"
    )


def test_a_function_is_shown_under_the_name_that_salt_gives_it_with_its_defaults():
    text = functions_docs.page("functions-release")
    assert "\n## ckan_release.list\n\n`ckan_release.list()`\n" in text
    assert "`ckan_release.show(release='', lock=False, full=False)`" in text
    assert "## ckan_release.build\n" in functions_docs.page("functions-stages")
    assert "`ckan.pending(env, extensions=None, groups=None, allow_down=None, release='', fresh=False, ...)`" in (
        functions_docs.page("functions-master")
    )
    assert "_site" not in text


def test_a_page_that_is_not_current_is_named(tmp_path):
    for name in ("tools", "_modules", "_runners"):
        shutil.copytree(REPO / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "docs").mkdir()
    program = [sys.executable, str(tmp_path / "tools/functions_docs.py")]
    stale = subprocess.run([*program, "--check"], capture_output=True, text=True)
    assert stale.returncode == 1 and "docs/functions-release.md is not current; run make docs" in stale.stderr
    assert subprocess.run(program).returncode == 0
    assert subprocess.run([*program, "--check"]).returncode == 0
    for name in functions_docs.PAGES:
        made = (tmp_path / f"docs/{name}.md").read_text()
        assert made == (REPO / f"docs/{name}.md").read_text(), f"run make docs: docs/{name}.md"
