"""A plugin that is listed must be brought by CKAN or by an extension: what a deploy makes of one that is not."""

from __future__ import annotations

import pytest
from salt.exceptions import CommandExecutionError

from functional.steps import deployed
from stub import wheels

pytestmark = pytest.mark.slow


def refused(host) -> str:
    with pytest.raises(CommandExecutionError) as failure:
        host.plan()
    return str(failure.value)


def test_a_plugin_that_nothing_brings_is_refused_at_plan_and_no_release_is_made(host, mycity):
    first = deployed(host)
    before = {name: value for name, value in host.tree().items() if not name.startswith("shared")}
    host.pillar["plugins"] = ["mycity", "mycitty"]
    told = (
        "plugin mycitty is in ckan:plugins, but neither CKAN nor an extension brings it (did you mean mycity?); "
        "correct it or add its extension."
    )
    assert refused(host) == told
    with pytest.raises(CommandExecutionError) as failure:
        host.deploy()
    assert "failed at plan" in str(failure.value) and told in str(failure.value)
    assert {name: value for name, value in host.tree().items() if not name.startswith("shared")} == before
    assert (host.current(), host.releases()) == (first, [first])


def test_where_one_extension_cannot_be_looked_into_the_boot_tells(host, mycity, shelf):
    wheels.make_extension(shelf, "delta", "Delta")
    host.pillar["installer"]["find_links"] = f"file://{shelf}"  # to the installer alone it is a folder
    host.pillar["extensions"]["ckanext-delta"] = {"version": "1.0"}
    host.pillar["plugins"] = ["mycity", "delta", "harvest"]
    assert host.plan()["extensions"]["ckanext-delta"] == "1.0"
    with pytest.raises(CommandExecutionError, match="at check: plugin harvest does not start"):
        host.deploy()
    assert host.current() == "" and host.releases() == []
    host.pillar["plugins"] = ["mycity", "delta"]
    assert deployed(host) == host.current()


def test_the_option_itself_wins_over_the_list_and_is_left_to_the_boot(host, mycity):
    host.pillar["plugins"] = ["harvest"]
    host.pillar["config"] = {"ckan.plugins": "mycity"}
    release = deployed(host)
    assert host.show(release)["check"]["plugins"] == ["mycity"]
