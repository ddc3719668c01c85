"""CKAN's defaults, as its declarations say, and what of an ini says nothing beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckan_deploy.build import declared, ini
from fakes import fake_site

DECLARATION = """\
version: 1
groups:
  - annotation: Some
    options:
      - {key: ckan.locale_default, default: en}
      - {key: ckan.debug, type: bool}
      - {key: ckan.watch, type: bool, default: true}
      - {key: ckan.limit, type: int, default: 10}
      - {key: ckan.order, type: list, default: [a, b]}
      - {key: ckan.intro, placeholder: Hello}
      - {key: ckan.formats, default_callable: 'ckan.lib:formats'}
      - 7
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    packages = tmp_path / "lib/python3.11/site-packages"
    for place, text in {
        "ckan/config": DECLARATION,
        "ckanext/good": "version: 1\ngroups: [{options: [{key: good.color, default: red}]}]\n",
        "ckanext/bad": "groups: [",
        "ckanext/odd": "- one\n",
    }.items():
        (packages / place).mkdir(parents=True)
        (packages / place / declared.NAME).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("ckan.locale_default", "en", True),
        ("ckan.locale_default", "de", False),
        ("ckan.locale_default", "", False),
        ("ckan.debug", "false", True),
        ("ckan.debug", "True", False),
        ("ckan.watch", "True", True),
        ("ckan.watch", "false", False),
        ("ckan.limit", "10", True),
        ("ckan.limit", "0", False),
        ("ckan.order", "a  b", True),
        ("ckan.order", "b a", False),
        # What a generated ini shows as an example holds.
        ("ckan.intro", "Hello", False),
        ("ckan.intro", "", True),
        ("good.color", "red", True),
    ],
)
def test_what_says_what_ckan_does_without_it_says_nothing(tree, option, value, says):
    assert declared.says_nothing(value, declared.defaults(str(tree))[option]) is says


def test_what_ckan_computes_or_nobody_declares_is_not_known(tree):
    found = declared.defaults(str(tree))
    assert len(found) == 7 and "ckan.formats" not in found


def test_config_diff_counts_what_says_nothing_and_shows_what_changes(tree, tmp_path):
    site = fake_site(
        tmp_path,
        web__server="none",
        web__app="none",
        config={"ckan.limit": 10, "ckan.order": "b a", "ckan.watch": True},
    )
    text = (
        "[app:main]\nckan.locale_default = en\nckan.debug = false\nckan.watch = false\nckan.formats = /x.json\n"
        "good.color = red\ngood.other = 1\n"
    )
    ini.put(site, str(tmp_path), text)
    found = ini.diff(site, str(tmp_path), (), declared.defaults(str(tree)))
    assert found["removed"] == {"ckan.formats": "/x.json", "good.other": "1"}
    assert found["changed"] == {"ckan.watch": "false -> true"}
    assert found["added"]["ckan.order"] == "b a" and "ckan.limit" not in found["added"]
    # Of both sides.
    assert found["defaults"] == 4
