"""pillar.example: compiled by Salt's own pillar compiler, as a master would for two hosts."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import attrs
import pytest
import salt.config
import salt.pillar

from _pillar import ckan_secrets
from ckan_deploy.errors import FormulaError
from ckan_deploy.settings.model import Settings
from ckan_deploy.settings.resolve import resolve

REPO = Path(__file__).resolve().parents[2]
TREE = REPO / "pillar.example"


def compiled(minion: str, tmp_path: Path, tree: Path = TREE) -> dict:
    """What Salt makes of the tree for a minion."""
    opts = salt.config.minion_config(None)
    opts.update(
        id=minion, file_client="local", root_dir=str(tmp_path), cachedir=str(tmp_path / "cache"),
        extension_modules=str(tmp_path / "ext"), pillar_roots={"base": [str(tree)]}, file_roots={"base": []},
        pki_dir=str(tmp_path / "pki"), grains={},
    )  # fmt: skip
    return salt.pillar.Pillar(opts, {}, minion, "base").compile_pillar()


def filled(tree: Path) -> Path:
    """A copy of the example with its secrets filled in, not encrypted."""
    shutil.copytree(TREE, tree)
    for env in ("production", "staging"):
        secrets = tree / f"ckan/secrets/{env}.sls"
        plain = f"ckan: {{database: {{password: password-of-{env}}}}}"
        secrets.write_text(secrets.read_text().replace("ckan: {}", plain).replace("#!yaml|gpg\n", ""))
    return tree


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[Settings, Settings]:
    """The settings of a host of production and of one of staging, with the secrets that the master makes."""
    tree, made = filled(tmp_path_factory.mktemp("tree") / "pillar"), tmp_path_factory.mktemp("made")
    pillars = [compiled(minion, tmp_path_factory.mktemp("pillar"), tree) for minion in ("web1", "staging-web1")]
    for pillar in pillars:
        pillar["ckan"].update(ckan_secrets.ext_pillar("web1", pillar, str(made))["ckan"])
    assert [pillar.get("_errors") for pillar in pillars] == [None, None]
    production, staging = (resolve(pillar["ckan"]) for pillar in pillars)
    return production, staging


def test_each_environment_has_its_own_name_domain_and_services(both):
    production, staging = both
    assert (production.env, staging.env) == ("production", "staging")
    assert (production.domain, staging.domain) == ("data.example.org", "data-staging.example.org")
    for name in ("solr_url", "redis_url", "site_url"):
        assert getattr(production, name) != getattr(staging, name)
    assert production.database.host != staging.database.host


def test_no_secret_is_shared_by_the_environments(both):
    secrets = [{s.database.password, s.secrets.session, s.secrets.api_token} for s in both]
    assert [len(found) for found in secrets] == [3, 3]
    assert not secrets[0] & secrets[1]


def test_the_environments_share_extensions_plugins_and_options(both):
    production, staging = both
    assert list(production.extensions) == list(staging.extensions) == ["ckanext-mycity"]
    assert production.plugins == staging.plugins
    assert production.config == staging.config
    assert production.config["ckan.site_title"] == "My City's Data"


def test_an_environment_wins_over_what_is_shared(both):
    production, staging = both
    assert (production.keep, staging.keep) == (5, 2)
    assert production.extensions["ckanext-mycity"].ref == "main"
    assert staging.extensions["ckanext-mycity"] == attrs.evolve(production.extensions["ckanext-mycity"], ref="develop")


def test_a_host_of_no_environment_is_given_nothing(tmp_path):
    assert compiled("db1", tmp_path) == {}


def test_an_environment_s_own_file_is_short():
    for path in (TREE / "ckan").glob("*.sls"):
        lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
        assert path.name == "common.sls" or len(lines) < 20


def test_no_file_holds_a_secret_and_those_of_secrets_say_how_to_make_one():
    for path in TREE.rglob("*.sls"):
        assert re.findall(r"^\s*(?:password|session|api_token):\s*(.*)$", path.read_text(), re.M) == []
        if path.parent.name == "secrets":
            assert path.read_text().startswith("#!yaml|gpg\n")
            assert f"salt-run ckan.encrypt {path.stem} database:password" in path.read_text()


@pytest.mark.parametrize(("minion", "env"), [("web1", "production"), ("staging-web1", "staging")])
def test_it_renders_as_copied_and_the_formula_names_the_secret_that_is_missing(tmp_path, minion, env):
    pillar = compiled(minion, tmp_path)
    assert (pillar.get("_errors"), pillar["ckan"]["env"]) == (None, env)
    pillar["ckan"].update(ckan_secrets.ext_pillar(minion, pillar, str(tmp_path / "made"))["ckan"])
    with pytest.raises(FormulaError, match="ckan:database:password is missing"):
        resolve(pillar["ckan"])


def with_harvest(tree):
    """As an operator would who takes the comment's mark from its lines."""
    common = tree / "ckan/common.sls"
    marks = r"^( +)# ((?:ckanext-harvest:|  url: https://github|  ref: 'v1).*)$"
    text, found = re.subn(marks, r"\1\2", common.read_text(), flags=re.M)
    assert found == 3
    common.write_text(text)


def test_what_the_example_has_of_harvest_in_comments_is_a_pillar(tmp_path):
    tree = filled(tmp_path / "tree")
    common = tree / "ckan/common.sls"
    marks = r"^( +)# (.*harvest.*|(?:services|cron):|  (?:url: https://github|ref: 'v1|gather:|fetch:).*)$"
    common.write_text(re.sub(marks, r"\1\2", common.read_text(), flags=re.M))
    pillar = compiled("web1", tmp_path, tree)
    pillar["ckan"].update(ckan_secrets.ext_pillar("web1", pillar, str(tmp_path / "made"))["ckan"])
    settings = resolve(pillar["ckan"])
    assert list(settings.extensions) == ["ckanext-mycity", "ckanext-harvest"]
    assert list(settings.plugins) == ["mycity", "harvest", "ckan_harvester", "activity"]
    assert (list(settings.services), list(settings.cron)) == (["gather", "fetch"], ["harvest"])
    assert settings.config["ckan.harvest.mq.type"] == "redis"


def test_an_environment_can_leave_out_an_extension(tmp_path):
    tree = filled(tmp_path / "tree")
    with_harvest(tree)
    staging = tree / "ckan/staging.sls"
    staging.write_text(f"{staging.read_text()}    ckanext-harvest: {{remove: true}}\n  plugins: [mycity]\n")
    pillar = compiled("staging-web1", tmp_path, tree)
    pillar["ckan"].update(ckan_secrets.ext_pillar("staging-web1", pillar, str(tmp_path / "made"))["ckan"])
    assert list(resolve(pillar["ckan"]).extensions) == ["ckanext-mycity"]


def test_an_environment_switches_on_again_what_the_common_part_leaves_out(tmp_path):
    tree = filled(tmp_path / "tree")
    with_harvest(tree)
    common, staging = tree / "ckan/common.sls", tree / "ckan/staging.sls"
    text = common.read_text()
    assert "    ckanext-harvest:\n" in text
    common.write_text(text.replace("    ckanext-harvest:\n", "    ckanext-harvest:\n      remove: true\n"))
    staging.write_text(f"{staging.read_text()}    ckanext-harvest: {{remove: false}}\n")
    for minion, has in (("web1", False), ("staging-web1", True)):
        pillar = compiled(minion, tmp_path, tree)
        pillar["ckan"].update(ckan_secrets.ext_pillar(minion, pillar, str(tmp_path / "made"))["ckan"])
        assert ("ckanext-harvest" in resolve(pillar["ckan"]).extensions) is has


def test_an_extension_that_is_named_twice_does_not_render(tmp_path):
    tree = filled(tmp_path / "tree")
    with_harvest(tree)
    common = tree / "ckan/common.sls"
    again = "    ckanext-harvest: {version: '1.6'}\n  # Further"
    common.write_text(common.read_text().replace("  # Further", again))
    assert "ckan.common" in str(compiled("web1", tmp_path, tree)["_errors"])


def test_the_master_makes_what_is_missing_once_and_the_same_for_all_hosts(tmp_path):
    made = tmp_path / "made"
    pillar = {"ckan": {"env": "production"}}
    first = ckan_secrets.ext_pillar("web1", pillar, str(made))["ckan"]["secrets"]
    assert first == ckan_secrets.ext_pillar("web2", pillar, str(made))["ckan"]["secrets"]
    assert len(first["session"]) >= 64 and first["session"] != first["api_token"]
    other = ckan_secrets.ext_pillar("s1", {"ckan": {"env": "staging"}}, str(made))["ckan"]["secrets"]
    assert not set(first.values()) & set(other.values())
    given = {"ckan": {"env": "production", "secrets": {"session": "given"}}}
    assert ckan_secrets.ext_pillar("web1", given, str(made)) == {
        "ckan": {"secrets": {"api_token": first["api_token"]}}
    }  # fmt: skip
    assert sorted(path.name for path in made.iterdir()) == ["production.json", "staging.json"]
    assert {oct(path.stat().st_mode)[-4:] for path in (made, made / "production.json")} == {"0700", "0600"}


@pytest.mark.parametrize("ckan", [None, {}, {"env": "../x"}, {"env": 1}, {"env": "a", "secrets": 7}])
def test_nothing_is_made_for_other_hosts(tmp_path, ckan):
    assert ckan_secrets.ext_pillar("db1", {"ckan": ckan}, str(tmp_path / "made")) == {}
    assert not (tmp_path / "made").exists()
