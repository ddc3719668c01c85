"""Services, workers, environment variables and lines of cron, as the pillar names them."""

from __future__ import annotations

import shlex

import pytest

from ckan_deploy.errors import FormulaError
from ckan_deploy.serve import cron
from ckan_deploy.settings import mask
from ckan_deploy.settings.fingerprint import hashes
from ckan_deploy.settings.model import Settings
from ckan_deploy.settings.parts import Service, Worker
from ckan_deploy.settings.resolve import resolve
from fakes import fake_site

PILLAR = {
    "env": "production",
    "site_url": "https://data.example.org",
    "database": {"password": "p"},
    "secrets": {"session": "s", "api_token": "t"},
}


def settings(**more) -> Settings:
    return resolve({**PILLAR, **more})


def refused(**more) -> str:
    with pytest.raises(FormulaError) as info:
        settings(**more)
    return str(info.value)


def test_a_worker_with_nothing_said_takes_the_default_queue():
    assert settings(workers={"default": None}).workers == {
        "default": Worker(queues=("default",), processes=1, timeout=180)
    }
    assert settings().workers == settings(workers=None).workers == {}


def test_an_environment_leaves_out_what_the_shared_part_has():
    got = settings(
        workers={"default": {}, "harvest": {"queues": ["harvest"], "remove": True}},
        cron={"nightly": {"schedule": "@daily", "command": "x", "remove": True}},
    )
    assert (list(got.workers), got.cron) == (["default"], {})


def test_an_environment_switches_on_again_what_the_shared_part_leaves_out():
    got = settings(
        workers={"default": {"remove": False}, "harvest": {"queues": ["harvest"], "remove": False}},
        cron={"nightly": {"schedule": "@daily", "command": "x", "remove": False}},
        extensions={
            "git": {"url": "https://git.example.org/a", "ref": "main", "remove": False},
            "index": {"version": "1.0", "remove": False},
            "archive": {"archive": "salt://a.whl", "hash": "sha256=" + "a" * 64, "remove": False},
        },
    )
    assert (list(got.workers), list(got.cron)) == (["default", "harvest"], ["nightly"])
    assert list(got.extensions) == ["git", "index", "archive"]
    with pytest.raises(FormulaError, match="ckan:workers:default:remove must be True or False"):
        settings(workers={"default": {"remove": "no"}})


def test_f10_a_service_has_a_command_or_queues_and_a_worker_is_its_short_form():
    got = settings(
        services={
            "gather": {"command": "harvester gather-consumer", "once": True, "stop_signal": "INT"},
            "bulk": {"queues": ["bulk"], "processes": 2, "stop_seconds": 9, "remove": False},
            "off": {"command": "x", "remove": True},
        },
        workers={"default": None},
    )  # fmt: skip
    assert got.services == {
        "gather": Service(command="harvester gather-consumer", once=True, stop_signal="INT"),
        "bulk": Service(queues=("bulk",), processes=2, stop_seconds=9),
    }
    assert got.all_services == {**got.services, "default": Service(queues=("default",), stop_seconds=180)}
    assert settings().services == settings(services=None).services == {}


@pytest.mark.parametrize(
    ("about", "why"),
    [
        ({}, "ckan:services:a must have a command or queues, one of them"),
        ({"command": "x", "queues": ["y"]}, "ckan:services:a must have a command or queues, one of them"),
        ({"command": "ckan x"}, "ckan:services:a:command begins with 'ckan', which is put before it"),
        ({"command": "-v x"}, "ckan:services:a:command begins with an option"),
        ({"command": "x 'y"}, "ckan:services:a:command cannot be split into words"),
        ({"command": "x\ny"}, "ckan:services:a:command has control characters or line breaks"),
        ({"command": "x", "stop_signal": "KILL"}, "ckan:services:a:stop_signal is 'KILL'; use TERM or INT"),
        ({"command": "x", "stop_seconds": 0}, "ckan:services:a:stop_seconds is 0; use 1 or more"),
        ({"command": "x", "processes": 2, "once": True}, "ckan:services:a:processes is 2, while once is set"),
        ({"queues": ["x"], "stop_when_idle": True}, "ckan:services:a:stop_when_idle is for a command"),
        ({"command": "x", "restart": True}, "ckan:services:a:restart is not a setting"),
        ({"command": "x", "environment": {"PATH": "/x"}}, "ckan:services:a:environment:PATH is set by the formula"),
    ],
)
def test_what_cannot_be_a_service_is_refused_by_its_key(about, why):
    assert why in refused(services={"a": about})


def test_a_service_and_a_worker_of_one_name_are_refused():
    said = refused(services={"a": {"command": "x"}}, workers={"a": {}})
    assert said == "ckan:services:a and ckan:workers:a have one name; give one of them another"


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("A B", "x", "environment: 'A B' cannot be the name of a variable"),
        ("1A", "x", "environment: '1A' cannot be the name of a variable"),
        ("CKAN_SQLALCHEMY_URL", "x", "environment:CKAN_SQLALCHEMY_URL would win over CKAN's ini"),
        ("LD_PRELOAD", "x", "environment:LD_PRELOAD is set by the formula"),
        ("PYTHONPATH", "x", "environment:PYTHONPATH is set by the formula"),
        ("A", True, "environment:A is no text; put the value in quotes"),
        ("A", 1.5, "environment:A is no text; put the value in quotes"),
        ("A", "marked\x00secret", "environment:A has control characters"),
        ("A", "marked" * 9999, "environment:A is longer than 32768 bytes"),
    ],
)
def test_variables_that_cannot_be_are_refused_by_name_and_never_by_value(name, value, why):
    secrets = {**PILLAR["secrets"], "environment": {name: value}}
    for given in ({"environment": {name: value}}, {"build": {"environment": {name: value}}}, {"secrets": secrets}):
        said = refused(**given)
        assert why in said and "marked" not in said


def test_variables_may_hold_quotes_percent_signs_and_line_breaks_and_whole_numbers():
    odd = {"LDAP_URL": "a 'b' \"c\" 100%\nd\te", "http_proxy": "http://p:3128", "MALLOC_ARENA_MAX": 2, "NONE": None}
    assert settings(environment=odd).environment == {
        "LDAP_URL": odd["LDAP_URL"], "http_proxy": odd["http_proxy"], "MALLOC_ARENA_MAX": "2",
    }  # fmt: skip
    both = refused(environment={"A": "x"}, secrets={**PILLAR["secrets"], "environment": {"A": "y"}})
    assert both == "A stands in ckan:environment and in ckan:secrets:environment; remove one"


def test_secret_variables_are_masked_and_a_change_of_them_is_one_of_the_release():
    dsn, proxy = "https://marked-one@sentry.example.org/1", "http://user:marked-two@proxy.example.org"
    more = {"environment": {"https_proxy": proxy, "API_TOKEN": "marked-three"}}
    secrets = {**PILLAR["secrets"], "environment": {"SENTRY_DSN": dsn}}
    got = settings(**more, secrets=secrets, build=more, services={"a": {"command": "x", **more}})
    assert "marked" not in str(mask.shown(got)) and "marked" not in repr(got.secrets)
    for secret in (dsn, "marked-three"):
        assert mask.text(f"it says {secret} here", got) == f"it says {mask.MASK} here"
    assert "secrets:environment:*" in mask.secret_names()
    other = settings(**more, secrets={**secrets, "environment": {"SENTRY_DSN": "another"}}, build=more)
    before, after = hashes(got), hashes(other)
    assert before["secrets"] == after["secrets"] and before["secrets:environment"] != after["secrets:environment"]
    # A release of before has no note of them.
    assert not {"secrets:environment", "environment", "services"} & hashes(settings()).keys()
    assert {"environment", "services"} <= before.keys()


@pytest.mark.parametrize(
    "schedule",
    [
        "0 3 * * *", "*/5 * * * *", "0,30 8-18/2 1 JAN-mar mon-fri", "0 0 31 12 7", "@hourly", "59 23 * * sun",
        "00 05 * * *", "*/999 * * * *", "0 0 29 2 *", "0 0 30 2 *", "* * * * 5-7", "1-1 * * * *", "@reboot",
    ],
)  # fmt: skip
def test_schedules_that_cron_takes(schedule):
    assert settings(cron={"a": {"schedule": schedule, "command": "b"}}).cron["a"].schedule == schedule


@pytest.mark.parametrize(
    ("schedule", "why"),
    [
        ("60 3 * * *", "'60' for the minute; use 0 to 59"),
        ("0 24 * * *", "'24' for the hour; use 0 to 23"),
        ("0 0 0 * *", "'0' for the day of month; use 1 to 31"),
        ("0 0 * foo *", "'foo' for the month"),
        ("0 0 * * 8", "'8' for the day of week"),
        ("5-1 * * * *", "'5-1' for the minute"),
        ("5/2 * * * *", "'5/2' for the minute"),
        ("*/0 * * * *", "'*/0' for the minute"),
        ("1,,2 * * * *", "'1,,2' for the minute"),
        ("0 3 * *", "must have five fields"),
        ("0 3 * * * root", "must have five fields"),
        ("0 3 *\t* 1", "control characters"),
        ("@never", "must have five fields"),
        ("007 * * * *", "'007' for the minute"),
        ("R * * * *", "'R' for the minute"),
        ("h * * * *", "'h' for the minute"),
        ("*/1000 * * * *", "'*/1000' for the minute"),
        ("* * 0-0 * *", "'0-0' for the day of month"),
        ("* * L * *", "'L' for the day of month"),
        ("* * 1W * *", "'1W' for the day of month"),
        ("* * * jan/2 *", "'jan/2' for the month"),
        ("* * * sun *", "'sun' for the month"),
        ("* * * * sat-sun", "'sat-sun' for the day of week"),
        ("* * * * fri#1", "'fri#1' for the day of week"),
        ("\u0663 * * * *", "'\u0663' for the minute"),
    ],
)
def test_one_wrong_line_would_keep_cron_from_all_of_them_and_is_refused(schedule, why):
    text = refused(cron={"nightly": {"schedule": schedule, "command": "x"}})
    assert why in text and "ckan:cron:nightly:schedule" in text


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"workers": ["default"]}, "ckan:workers must be a dictionary by name"),
        ({"workers": {"A b": {}}}, "ckan:workers: 'A b' cannot be a name"),
        ({"workers": {"a": 3}}, "ckan:workers:a must be a dictionary such as {queues: ...}"),
        (
            {"workers": {"a": {"queue": ["x"]}}},
            "ckan:workers:a:queue is not a setting; did you mean ckan:workers:a:queues?",
        ),
        ({"workers": {"a": {"queues": []}}}, "ckan:workers:a:queues is empty"),
        ({"workers": {"a": {"queues": ["x;rm"]}}}, "ckan:workers:a:queues has the item 'x;rm'"),
        ({"workers": {"a": {"processes": 0}}}, "ckan:workers:a:processes is 0; use 1 or more"),
        ({"cron": {"a": {"command": "x"}}}, "ckan:cron:a:schedule is missing"),
        ({"cron": {"a": {"schedule": "@daily"}}}, "ckan:cron:a must have a command or a shell"),
        ({"cron": {"a": {"schedule": "@daily", "command": "x", "shell": "y"}}}, "a command or a shell, one of them"),
        ({"cron": {"a": {"schedule": "@daily", "command": "ckan x"}}}, "begins with 'ckan', which is put before it"),
        ({"cron": {"a": {"schedule": "@daily", "command": "x 'y"}}}, "cannot be split into words"),
        ({"cron": {"a": {"schedule": "@daily", "shell": "x\ny"}}}, "control characters or line breaks"),
        ({"cron": {"a": {"schedule": "@daily", "shell": "x" * 501}}}, "longer than 500 characters"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(more, why):
    assert why in refused(**more)


def as_cron_reads(line: str) -> str:
    """The command that cron hands to sh, by the rules of Debian's cron: its do_command.c."""
    text, escaped = "", False
    for character in line.split(" ", 6)[6]:
        text += character
        if escaped:
            text = text[:-2] + "%" if character == "%" else text
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == "%":
            return text[:-1]
    return text


@pytest.mark.parametrize("shell", ["date +%F", r"date +\%F", r"printf '%s\\%s' a '\%'", r"echo \\% '%' \ % \\\%"])
def test_a_line_with_percent_signs_is_the_same_behind_cron(shell):
    site = fake_site("/r", cron={"a": {"schedule": "0 3 * * *", "shell": shell}})
    line = cron.pending(site)[-1].text.splitlines()[-1]
    assert shlex.split(as_cron_reads(line))[-1] == shell
