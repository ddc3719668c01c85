"""pillar.example: compiled by Salt's own pillar compiler, as a master would for two hosts."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import salt.config
import salt.pillar

from _modules import ckan_settings

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


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[dict, dict]:
    """The settings of a host of production and of one of staging."""
    pillars = [compiled(minion, tmp_path_factory.mktemp("pillar")) for minion in ("prod-web1", "staging-web1")]
    assert [pillar.get("_errors") for pillar in pillars] == [None, None]
    production, staging = (ckan_settings._resolve(pillar["ckan"]) for pillar in pillars)
    return production, staging


def test_each_environment_has_its_own_name_domain_and_services(both):
    production, staging = both
    assert (production["env"], staging["env"]) == ("production", "staging")
    assert (production["domain"], staging["domain"]) == ("data.example.org", "data-staging.example.org")
    for name in ("solr_url", "redis_url", "site_url"):
        assert production[name] != staging[name]
    assert production["database"]["host"] != staging["database"]["host"]


def test_no_secret_is_shared_by_the_environments(both):
    secrets = [{s["database"]["password"], *s["secrets"].values()} for s in both]
    assert [len(found) for found in secrets] == [3, 3]
    assert not secrets[0] & secrets[1]


def test_the_environments_share_extensions_plugins_and_options(both):
    production, staging = both
    assert list(production["extensions"]) == list(staging["extensions"]) == ["ckanext-mycity", "ckanext-harvest"]
    assert production["plugins"] == staging["plugins"]
    assert production["config"] == staging["config"]
    assert production["config"]["ckan.site_title"] == "My City's Data"


def test_an_environment_wins_over_what_is_shared(both):
    production, staging = both
    assert (production["keep"], staging["keep"]) == (5, 2)
    assert production["extensions"]["ckanext-mycity"]["ref"] == "main"
    assert staging["extensions"]["ckanext-mycity"] == {
        **production["extensions"]["ckanext-mycity"], "ref": "develop"
    }  # fmt: skip


def test_a_host_of_no_environment_is_given_nothing(tmp_path):
    assert compiled("db1", tmp_path) == {}


def test_an_environment_s_own_file_is_short():
    for path in (TREE / "ckan").glob("*.sls"):
        lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
        assert path.name == "common.sls" or len(lines) < 20


def test_secrets_are_placeholders_only_and_stand_in_secrets_only():
    for path in TREE.rglob("*.sls"):
        for value in re.findall(r"^\s*(?:password|session|api_token):\s*(.*)$", path.read_text(), re.M):
            in_comment = value == "|"
            assert in_comment or (path.parent.name == "secrets" and value.startswith("'change-me-"))


def test_a_value_that_was_encrypted_without_the_gpg_line_is_refused_by_key(tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(TREE, tree)
    secrets = tree / "ckan/secrets/production.sls"
    block = "|\n      -----BEGIN PGP MESSAGE-----\n\n      aGVsbG8=\n      -----END PGP MESSAGE-----"
    secrets.write_text(secrets.read_text().replace("'change-me-production-session'", block))
    with pytest.raises(ckan_settings.CommandExecutionError) as failure:
        ckan_settings._resolve(compiled("prod-web1", tmp_path, tree)["ckan"])
    assert str(failure.value).startswith("ckan:secrets:session is still encrypted")
    assert "aGVsbG8" not in str(failure.value)
