"""docs/pillar.schema.json: what a host accepts is valid by it, and what it refuses by a single setting is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import yaml
from jsonschema import Draft202012Validator
from unit.test_pillar import compiled, filled

from _pillar import ckan_secrets
from ckan_deploy.errors import FormulaError
from ckan_deploy.settings import mask
from ckan_deploy.settings.model import Settings
from ckan_deploy.settings.plain import as_dict
from ckan_deploy.settings.resolve import resolve
from ckan_deploy.settings.rules import groups, rules
from fakes import least_pillar

REPO = Path(__file__).resolve().parents[2]
GIT = {"url": "https://git.example.org/a.git", "ref": "main"}
HOOK = {"stage": "build", "when": "before", "function": "cmd.run", "args": ["true"], "kwargs": {"cwd": "/"}}
PGP = "-----BEGIN PGP MESSAGE-----\n\nhQEMA5x\n-----END PGP MESSAGE-----\n"


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    read = json.loads((REPO / "docs/pillar.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(read)
    return Draft202012Validator(read)


def problems(schema: Draft202012Validator, ckan: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in schema.iter_errors({"ckan": ckan, "other": 1})]


def test_the_example_is_valid_for_each_environment(schema, tmp_path):
    tree = filled(tmp_path / "pillar")
    for minion in ("web1", "staging-web1"):
        pillar = compiled(minion, tmp_path / minion, tree)
        pillar["ckan"].update(ckan_secrets.ext_pillar(minion, pillar, str(tmp_path / "made"))["ckan"])
        assert problems(schema, pillar["ckan"]) == []
        # What a host makes of it could stand in a pillar, too.
        made = as_dict(resolve(pillar["ckan"]))
        for extension in made["extensions"].values():
            del extension["kind"]
            for other in ("version", "archive", "hash"):
                del extension[other]
        assert problems(schema, made) == []


def test_each_setting_is_in_it_with_its_text(schema):
    ckan = schema.schema["properties"]["ckan"]["properties"]
    assert ckan.keys() == {field.name for field in attrs.fields(Settings)}
    for name, cls in groups(Settings).items():
        assert ckan[name]["description"] == cls.__doc__ and ckan[name]["additionalProperties"] is False
        assert {leaf: rule.text for leaf, rule in rules(cls).items()} == {
            leaf: told["description"] for leaf, told in ckan[name]["properties"].items()
        }
    assert ckan["keep"] == {
        "description": rules(Settings)["keep"].text, "type": ["integer", "null"], "minimum": 2, "default": 5
    }  # fmt: skip
    assert ckan["database"]["required"] == ["password"]
    # A default that follows from other settings is told in words only.
    assert "default" not in ckan["paths"]["properties"]["home"] and "default" not in ckan["domain"]


def test_secrets_are_marked_and_may_be_encrypted_still(schema):
    ckan = schema.schema["properties"]["ckan"]["properties"]
    extension = schema.schema["$defs"]["extension"]["properties"]
    for name in mask.secret_names():
        group, _, leaf = name.removesuffix(":*").rpartition(":")
        if group == "extensions:*":
            assert extension[leaf]["writeOnly"] is True
        elif name not in (*mask.ADDRESSES, "config:*"):
            assert ckan[group]["properties"][leaf]["writeOnly"] is True
    given = least_pillar(
        database__password=PGP, datastore__password=PGP, secrets__session=PGP, secrets__config={"a.key": PGP},
        extensions={"a": {**GIT, "token": PGP}, "b": {**GIT, "deploy_key": PGP}},
    )  # fmt: skip
    assert problems(schema, given) == []


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"keep": None, "web": None, "extensions": None, "hooks": None, "config": None, "plugins": None},
        {"config": {"a": "x\ny", "b": 1, "c": 1.5, "d": True, "e": ["x", 1]}}, {"web__extra": "location / {\n}\n"},
        {"extensions": {"a": GIT, "b": {"version": "1.2", "url": None}, "c": {**GIT, "remove": False},
                        "d": {"archive": "salt://d.whl", "hash": "sha256:0f", "override": ["x == 1"]},
                        "e": {"remove": True}}},
        {"hooks": [HOOK, {"stage": "finish", "when": "after", "state": "a.b", "on_failure": "stop", "args": None}]},
        {"workers": {"default": None, "bulk": {"queues": ["a", "b"], "processes": 2}, "off": {"remove": True}}},
        {"cron": {"a": {"schedule": "@daily", "command": "x"}, "b": {"schedule": "*/5 * * * *", "shell": "y"},
                  "c": {"remove": True}}},
        {"git__host_keys": ["git.example.org ssh-ed25519 AAAA"], "base__version": "2.11.1", "installer__kind": "uv"},
        {"database__port": 65535, "datastore": {"name": "d", "password": "p", "read_password": "r", "port": 0}},
    ],
)  # fmt: skip
def test_what_a_host_accepts_is_valid(schema, changes):
    given = least_pillar("/srv/x", **changes)
    resolve(given)
    assert problems(schema, given) == []


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("plugin: [a]", "$.ckan"), ("web: {listn: '80'}", "$.ckan.web"), ("keep: '5'", "$.ckan.keep"),
        ("keep: 1", "$.ckan.keep"), ("keep: true", "$.ckan.keep"), ("keep: 2.5", "$.ckan.keep"),
        ("web: {listen: 80}", "$.ckan.web.listen"), ("web: {server: lighttpd}", "$.ckan.web.server"),
        ("web: nginx", "$.ckan.web"), ("base: {version: 2.10}", "$.ckan.base.version"), ("env: a/b", "$.ckan.env"),
        ("env: ''", "$.ckan.env"), ("env:", "$.ckan.env"), ("site: \"a\\nb\"", "$.ckan.site"),
        ("root: /x/", "$.ckan.root"), ("site_url: ''", "$.ckan.site_url"),
        ("database: {password: 1}", "$.ckan.database.password"),
        ("database: {password: ''}", "$.ckan.database.password"), ("database: {}", "$.ckan.database"),
        ("database:", "$.ckan.database"), ("database: {password: x, port: 65536}", "$.ckan.database.port"),
        ("database: {password: x, host: \"a\\tb\"}", "$.ckan.database.host"), ("plugins: a b", "$.ckan.plugins"),
        ("plugins: [a b]", "$.ckan.plugins[0]"), ("plugins: [a, on]", "$.ckan.plugins[1]"),
        ("plugins: [a, a]", "$.ckan.plugins"), ("plugins: ['']", "$.ckan.plugins[0]"),
        ("patches: [/srv/a.patch]", "$.ckan.patches[0]"), ("git: {host_keys: [' ']}", "$.ckan.git.host_keys[0]"),
        ("config: [a]", "$.ckan.config"), ("config: {a b: c}", "$.ckan.config"), ("config: {a: }", "$.ckan.config.a"),
        ("config: {a: {b: c}}", "$.ckan.config.a"), ("config: {a: \"\\e\"}", "$.ckan.config.a"),
        ("secrets: {session: s, api_token: t, config: {a: [[]]}}", "$.ckan.secrets.config.a[0]"),
        ("extensions: [a]", "$.ckan.extensions"), ("extensions: {../a: {version: '1'}}", "$.ckan.extensions"),
        ("extensions: {a: }", "$.ckan.extensions.a"), ("extensions: {a: {}}", "$.ckan.extensions.a"),
        ("extensions: {a: {url: /a}}", "$.ckan.extensions.a"),
        ("extensions: {a: {version: 1.2}}", "$.ckan.extensions.a.version"),
        ("extensions: {a: {url: /a, ref: x, version: '1'}}", "$.ckan.extensions.a"),
        ("extensions: {a: {url: /a, reff: x}}", "$.ckan.extensions.a"),
        ("extensions: {a: {archive: 'salt://a', hash: md5=0}}", "$.ckan.extensions.a.hash"),
        ("hooks: {a: b}", "$.ckan.hooks"), ("hooks: [a]", "$.ckan.hooks[0]"),
        ("hooks: [{stage: build, when: before}]", "$.ckan.hooks[0]"),
        ("hooks: [{stage: build, when: before, function: a.b, state: c}]", "$.ckan.hooks[0]"),
        ("hooks: [{stage: none, when: before, state: c}]", "$.ckan.hooks[0].stage"),
        ("hooks: [{stage: build, when: before, function: ab}]", "$.ckan.hooks[0].function"),
        ("hooks: [{stage: build, when: before, state: c, args: {}}]", "$.ckan.hooks[0].args"),
        ("workers: {A b: {}}", "$.ckan.workers"), ("workers: {a: 3}", "$.ckan.workers.a"),
        ("workers: {a: {processes: 0}}", "$.ckan.workers.a.processes"),
        ("workers: {a: {queues: [x;rm]}}", "$.ckan.workers.a.queues[0]"),
        ("cron: {a: }", "$.ckan.cron.a"), ("cron: {a: {command: x}}", "$.ckan.cron.a"),
        ("cron: {a: {schedule: '@daily'}}", "$.ckan.cron.a"),
        ("cron: {a: {schedule: '@daily', command: x, shell: y}}", "$.ckan.cron.a"),
    ],
)  # fmt: skip
def test_what_a_host_refuses_by_a_setting_is_not_valid_at_that_place(schema, text, place):
    given = {**least_pillar(), **yaml.safe_load(text)}
    with pytest.raises(FormulaError):
        resolve(given)
    assert place in [problem.partition(": ")[0] for problem in problems(schema, given)]


@pytest.mark.parametrize("ckan", [None, [], "x", {}])
def test_a_pillar_that_says_nothing_is_not_valid(schema, ckan):
    assert problems(schema, ckan)
    assert list(schema.iter_errors({}))
