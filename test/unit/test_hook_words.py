"""What is told of a hook that fails: its name and its words, and never its arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ckan_deploy.errors import FormulaError
from ckan_deploy.releases import hooks, stage
from ckan_deploy.releases.site import Site
from fakes import FakeHost, least_pillar

RELEASE = "20260101000000Z"


def site_with(root: Path, raises: Any, **hook: Any) -> Site:
    """A site with one hook before build, which fails with what `raises` makes of its arguments."""
    about = {"stage": "build", "when": "before", "function": "balancer.drain", **hook}
    host = FakeHost({"ckan": least_pillar(root, hooks=[about], web__server="none", web__app="none")})

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(raises(*args, **kwargs))

    host.functions["balancer.drain"] = fail
    return Site.of(host)


@pytest.mark.parametrize(
    ("raises", "hook"),
    [
        (lambda url: f"no answer from {url}", {"args": ["https://balancer/?token=aTokenOfMine"]}),
        (
            lambda user, word: f"{user} may not, by {word}",
            {"kwargs": {"user": "aTokenOfMine", "word": "aTokenOfMine"}},
        ),
        (lambda deep: f"refused: {deep['all'][0]}", {"args": [{"all": ["aTokenOfMine"]}]}),
        (lambda cmd: f"Unable to run {cmd.split()}", {"args": ["curl -H 'X-Key: aTokenOfMine77' http://balancer"]}),
        (lambda cmd: f"command failed: {cmd}", {"args": ["curl -H 'X-Key: aTokenOfMine77' http://balancer"]}),
    ],
    ids=["address", "named", "deep", "words", "command"],
)
def test_arguments_of_a_hook_are_in_no_message_and_no_history(tmp_path, raises, hook):
    site = site_with(tmp_path, raises, **hook)
    with pytest.raises(FormulaError) as failure, stage.running(site, "build", RELEASE):
        pass
    assert str(failure.value).startswith("hook before build (balancer.drain) failed: ")
    assert "aTokenOfMine" not in str(failure.value) + json.dumps(site.log.read())


def test_what_a_hook_says_is_told_where_it_is_none_of_its_arguments(tmp_path):
    site = site_with(tmp_path, lambda host: "the server web1 is unknown; name another one", args=["web1"])
    with pytest.raises(FormulaError, match=r"failed: the server \*{10} is unknown; name another one"):
        hooks.run(site, "before", "build", RELEASE)


def test_an_answer_with_an_exit_code_and_no_word_is_told_without_what_was_run(tmp_path):
    site = site_with(tmp_path, lambda: "", args=["x"])
    site.host.functions["balancer.drain"] = lambda *_: {"retcode": 4, "stdout": "", "stderr": "", "cmd": "drain aToken"}  # type: ignore[attr-defined]
    with pytest.raises(FormulaError, match=r"exit code 4: it said nothing; correct it"):
        hooks.run(site, "before", "build", RELEASE)


def test_no_hook_keeps_a_revert_from_being_made(tmp_path):
    site = site_with(tmp_path, lambda: "no balancer", stage="abort", on_failure="stop")
    assert hooks.run(site, "before", "abort", RELEASE)[0]["problem"] == "no balancer"
