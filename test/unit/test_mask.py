"""Secrets kept out of what people read."""

from __future__ import annotations

import attrs
import pytest

from ckan_deploy.settings import mask
from ckan_deploy.settings.model import Settings
from ckan_deploy.settings.parts import Hook
from ckan_deploy.settings.resolve import resolve
from ckan_deploy.system import processes

PASSWORD = "p@ss:for/ckan%#"


@pytest.fixture
def settings() -> Settings:
    return resolve(
        {
            "env": "production",
            "site_url": "https://data.example.org",
            "database": {"password": PASSWORD},
            "secrets": {
                "session": 'ses"si\\on',
                "api_token": "token-secret",
                "config": {"smtp.password": "mail secret"},
            },
            "redis_url": "redis://:red%20is@redis.example.org/0",
            "solr_url": "http://solr.example.org/solr/ckan?auth=so%2Flr",
            "config": {"ckanext.x.key": "in-config", "ckan.site_title": "Open data"},
            "extensions": {
                "ckanext-a": {"url": "https://git.example.org/a.git", "ref": "main", "token": "git-token"},
            },
        }
    )


@pytest.mark.parametrize(
    "said",
    [
        f"wrong: {PASSWORD}",
        "cannot open 'postgresql://ckan_default:p%40ss%3Afor%2Fckan%25%23@db/ckan'",
        "in the ini: p%%40ss%%3Afor%%2Fckan%%25%%23",
        "as Python shows it: " + repr('ses"si\\on'),
        "sent: mail+secret, mail%20secret, mail\n   secret",
        "redis says no to red is",
        "option in-config is bad",
        "git-token was sent",
        "solr says no to so/lr",
        "fatal: unable to access 'https://h.example.org/a.git?private_token=unknown@/': 404",
        "an address nobody knows: ftp://me:unknown@example.org/",
    ],
)
def test_no_spelling_of_a_secret_is_left_in_a_message(settings: Settings, said: str) -> None:
    shown = mask.text(said, settings)
    assert mask.MASK in shown
    left = ("p@ss", "p%40", "p%%40", "ses", "mail", "red is", "in-config", "git-token", "unknown@", "for/ckan", "so/lr")
    assert [piece for piece in left if piece in shown] == []


def test_a_message_without_secrets_stays_as_it_is_but_one_line(settings: Settings) -> None:
    assert mask.text("KeyError:\n  no Open data", settings) == "KeyError: no Open data"


def test_a_long_message_is_cut_after_its_secrets_are_masked(settings: Settings) -> None:
    shown = mask.text("x" * 294 + PASSWORD, settings)
    assert shown == "x" * 294 + "***..."


def test_short_secrets_would_be_found_everywhere(settings: Settings) -> None:
    changed = attrs.evolve(settings, database=attrs.evolve(settings.database, password="abc"))
    assert mask.text("abcdef", changed) == "abcdef"


def test_of_a_hook_the_names_of_its_arguments_are_shown(settings: Settings) -> None:
    hook = Hook("verify", "after", "x.y", ["-H", "Key: a"], {"cwd": "/"})
    shown = mask.shown(attrs.evolve(settings, hooks=(hook,)))["hooks"][0]
    assert (shown["function"], shown["args"], shown["kwargs"]) == ("x.y", [mask.MASK] * 2, {"cwd": mask.MASK})


def test_a_token_in_a_query_is_masked_wherever_an_address_is_shown(settings: Settings) -> None:
    address = "https://h.example.org/x?a=b&private_token=hunter2#c"
    assert mask.address(address) == f"https://h.example.org/x?a=b&private_token={mask.MASK}#c"
    assert processes.without_logins(f"cannot get '{address}'") == f"cannot get '{address.replace('hunter2', '****')}'"
    assert mask.shown(settings)["solr_url"] == f"http://solr.example.org/solr/ckan?auth={mask.MASK}"
    assert "hunter2" not in processes.tail(processes.Done(1, "", f"error: {address} is not there"))
