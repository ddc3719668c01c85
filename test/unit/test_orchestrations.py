"""The steps of orch/deploy.sls and orch/rollback.sls, rendered without Salt."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from ckan_deploy.fleet import begin

REPO = Path(__file__).resolve().parents[2]


def steps(kind: str, names: list[str] | None = None, **pillar: Any) -> dict[str, Any]:
    """The steps of an orchestration, where `ckan_fleet.steps` says these names of groups."""
    asked = []

    def runner(function: str, kwarg: dict) -> list[str]:
        asked.append((function, kwarg))
        return names or [""]

    env = jinja2.Environment(loader=jinja2.FileSystemLoader(REPO), extensions=["jinja2.ext.do"])
    env.filters["json"] = json.dumps
    told = {"env": "production", **pillar}
    text = env.get_template(f"orch/{kind}.sls").render(tpldir="orch", pillar=told, salt={"saltutil.runner": runner})
    groups = told.get("groups")
    assert asked == ([("ckan_fleet.steps", {"env": "production", "groups": groups})] if groups else [])
    return yaml.safe_load(text)


def functions(path: str) -> list[str]:
    return [node.name for node in ast.parse((REPO / path).read_text()).body if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize(
    ("kind", "pillar", "names", "found"),
    [
        ("deploy", {}, None,
         ["plan", "build", "check", "migrate", "activate", "verify", "index", "finish", "done", "revert"]),
        ("deploy", {"groups": ["canary", "rest"]}, ["canary", "rest"],
         ["plan", "build canary", "check canary", "migrate canary", "activate canary", "verify canary", "build rest",
          "check rest", "activate rest", "verify rest", "index", "finish", "done", "revert"]),
        ("rollback", {}, None, ["plan", "activate", "verify", "index", "finish", "done", "revert"]),
        ("rollback", {"downgrade": True}, None,
         ["plan", "downgrade", "activate", "verify", "index", "finish", "done", "revert"]),
        ("rollback", {"restore": "20260101000001Z", "groups": 1}, ["web1", "web2"],
         ["plan", "downgrade web1", "activate web1", "verify web1", "activate web2", "verify web2", "index", "finish",
          "done", "revert"]),
        ("deploy", {"dry_run": True}, None, ["plan"]),
    ],
)  # fmt: skip
def test_a_run_is_a_stage_a_step_and_a_revert_where_any_fails(
    kind: str, pillar: dict, names: list[str] | None, found: list[str]
) -> None:
    told = steps(kind, names, **pillar)
    assert list(told) == found
    assert {"failhard": True} in told["plan"]["ckan_fleet.planned"]
    if "revert" in told:
        after = [part for part in told["revert"]["ckan_fleet.reverted"] if "onfail" in part][0]["onfail"]
        assert [step["ckan_fleet"] for step in after] == found[:-2]
        needs = [part["after"] for name in found[1:-1] for parts in told[name].values() for part in parts
                 if "after" in part]  # fmt: skip
        assert needs == found[:-2] and not any("require" in str(step) for step in told.values())


def test_each_step_is_a_state_and_each_state_calls_a_runner_that_there_is() -> None:
    states = {name for kind in ("deploy", "rollback") for step in steps(kind).values() for name in step}
    there = functions("_states/ckan_fleet.py")
    assert states == {f"ckan_fleet.{name}" for name in there if not name.startswith("_")}
    text = (REPO / "_states/ckan_fleet.py").read_text()
    called = {node.value for node in ast.walk(ast.parse(text))
              if isinstance(node, ast.Constant) and str(node.value).startswith("ckan_fleet.")}  # fmt: skip
    runners = {f"ckan_fleet.{name}" for name in functions("_runners/ckan_fleet.py") if not name.startswith("_")}
    assert called | {"ckan_fleet.steps"} == runners


def test_each_name_that_a_pillar_may_say_is_read_and_reaches_the_plan() -> None:
    for kind, known in begin.KNOWN.items():
        given = {name: f"value of {name}" for name in known if name not in ("env", "groups", "dry_run")}
        told = steps(kind, **given)["plan"]["ckan_fleet.planned"]
        said = {name: value for part in told for name, value in part.items()}
        assert set(given.values()) <= set(map(str, said.values()))
        parameters = inspect.signature(begin.plan).parameters
        names = {"from_env": "source", "from_release": "source_release"}
        assert {names.get(name, name) for name in said} - {"failhard"} <= parameters.keys()
