"""docs/deploy-flow.md and docs/architecture*.md: each function and file that they name is there."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

import ckan_deploy

REPO = Path(__file__).resolve().parents[2]
PACKAGE = REPO / "_utils/ckan_deploy"
PAGES = ("docs/deploy-flow.md", *(f"docs/{path.name}" for path in sorted((REPO / "docs").glob("architecture*.md"))))
TOP = {module.name for module in pkgutil.iter_modules(ckan_deploy.__path__)}


def quoted(page: str) -> set[str]:
    """What stands between backticks on a page, blocks of code left out."""
    text = re.sub(r"^```.*?^```", "", (REPO / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    return set(re.findall(r"`([^`]+)`", text))


def dotted(names: set[str]) -> set[str]:
    """Names of the package, such as ``deploy.stages.build``."""
    found = {name for name in names if re.fullmatch(r"\w+(\.\w+)+", name) and name.partition(".")[0] in TOP}
    return {name for name in found if not name.endswith(".py")}


def files(names: set[str]) -> set[str]:
    """Paths of source files, such as ``orch/deploy.sls``."""
    return {name for name in names if re.fullmatch(r"\w+(/\w+)+\.(py|sls|jinja)", name)}


def thin(names: set[str]) -> set[str]:
    """Names of Salt's functions, such as ``ckan_release.build``."""
    return {name for name in names if re.fullmatch(r"ckan(_\w+)?\.[a-z]\w*", name) and not name.endswith(".py")}


def imported(name: str) -> Any:
    """What a name of the package stands for. Raises ``ImportError`` or ``AttributeError`` where there is nothing."""
    parts = name.split(".")
    found: Any = ckan_deploy
    for count, part in enumerate(parts, 1):
        if hasattr(found, "__path__"):
            found = importlib.import_module(".".join(["ckan_deploy", *parts[:count]]))
        else:
            found = getattr(found, part)
    return found


def salts_functions() -> set[str]:
    """The public functions of the thin modules, under the names that Salt gives them."""
    found = set()
    for folder in ("_modules", "_states", "_runners"):
        for file in (REPO / folder).glob("*.py"):
            text = file.read_text(encoding="utf-8")
            virtual = re.search(r'^__virtualname__ = "(\w+)"', text, re.M)
            module = virtual[1] if virtual else file.stem
            for node in ast.parse(text).body:
                if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                    found.add(f"{module}.{node.name.rstrip('_')}")
    return found


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_only_what_is_there(page: str) -> None:
    names = quoted(page)
    for name in sorted(dotted(names)):
        try:
            imported(name)
        except (ImportError, AttributeError) as exc:
            pytest.fail(f"{page} names {name}: {exc}")
    assert [name for name in files(names) if not ((REPO / name).is_file() or (PACKAGE / name).is_file())] == []
    assert thin(names) - salts_functions() == set()


def test_the_flow_has_each_stage_down_to_the_package() -> None:
    names = quoted("docs/deploy-flow.md")
    stages = importlib.import_module("ckan_deploy.fleet.stages").STAGES["deploy"]
    assert {function for functions in stages.values() for function in functions} <= names
    assert len(dotted(names)) > 50


@pytest.mark.parametrize("name", ["deploy.stages.nothing", "deploy.nothing", "releases.store.Releases.nothing"])
def test_a_name_that_is_not_there_is_noticed(name: str) -> None:
    with pytest.raises((ImportError, AttributeError)):
        imported(name)
