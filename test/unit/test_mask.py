"""Secrets kept out of what people read."""

from __future__ import annotations

import attrs
import pytest

from ckan_deploy.settings import mask
from ckan_deploy.settings.model import Settings
from ckan_deploy.settings.parts import Hook
from ckan_deploy.settings.resolve import resolve

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
        "an address nobody knows: ftp://me:unknown@example.org/",
    ],
)
def test_no_spelling_of_a_secret_is_left_in_a_message(settings: Settings, said: str) -> None:
    shown = mask.text(said, settings)
    assert mask.MASK in shown
    left = ("p@ss", "p%40", "p%%40", "ses", "mail", "red is", "in-config", "git-token", "unknown@", "for/ckan")
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
