"""The answers of a host as tables and short texts, by Salt's own outputter loader."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import salt.config
import salt.output

from ckan_deploy.deploy import texts
from ckan_deploy.system import tables

REPO = Path(__file__).resolve().parents[2]
FIRST, SECOND = "20260101000001Z", "20260101000002Z"
COMMIT, SHA256 = "a1" * 20, "b2" * 32
EVIL = "\x1b[2Jgone\x07\n\u202eback"
LIST = [
    {"release": SECOND, "state": "live", "current": True, "created": "2026-01-01T00:00:02Z", "by": "ann",
     "extensions": {"ckanext-mycity": f"main {COMMIT[:12]}", "ckanext-scheming": "3.0.0"}},
    {"release": FIRST, "state": "bad", "current": False, "created": "2026-01-01T00:00:01Z", "by": "bob",
     "extensions": {}, "reason": f"search is broken {'and more ' * 30}"},
]  # fmt: skip
SHOW = {
    "id": SECOND, "state": "live", "created": "2026-01-01T00:00:02Z", "by": "ann", "current": True, "disk_mb": 12,
    "base": {"ckan": "2.12.0", "python": "3.11", "path": "/usr/lib/ckan/default"}, "plugins": ["mycity", "activity"],
    "build_seconds": {"clone": 1.0, "install": 2.5}, "built_on": "web1", "configuration": SHA256,
    "packages": {"babel": "2.1", "ckanext-mycity": "1.0"}, "patches": [], "lock": "2 packages: /x/pylock.toml",
    "overridden": {"setuptools": {"by": "ckan:override", "base": "80", "got": "79"}},
    "extensions": {
        "ckanext-mycity": {"kind": "git", "url": "https://git.example.org/mycity.git", "ref": "main", "commit": COMMIT,
                           "subject": "Mend the search", "patches": [{"patch": "salt://x.diff", "sha256": SHA256}]},
        "ckanext-old": {"kind": "index", "asked": "==1.0", "version": "1.0"},
    },
    "migration": {"host": "web1", "seconds": 2.5,
                  "before": {"core": {"at": ["a"], "pending": 0}, "mycity": {"at": ["r1"], "pending": 1}},
                  "after": {"core": {"at": ["a"]}, "mycity": {"at": ["r2"]}}, "backup": {"file": "/x/1.dump"}},
    "events": [{"state": "live", "at": "2026-01-01T00:00:03Z", "by": "ann"}],
}  # fmt: skip
DIFF = {
    "from": FIRST, "to": SECOND, "base": {}, "overrides": {"setuptools": {}},
    "extensions": {"ckanext-mycity": {"change": "changed", "old": "main b", "new": "main a", "dropped": [],
                                      "commits": [{"commit": COMMIT, "subject": EVIL}]}},
    "packages": {f"library{n:02}": {"old": "1", "new": ""} for n in range(25)},
    "patches": {"added": ["salt://x.diff"], "removed": [], "changed": []},
    "plugins": {"added": [], "removed": ["activity"]}, "configuration": {"added": ["ckan.x"]},
}  # fmt: skip
JOBS = {
    "current": SECOND, "workers": [], "cron": ["*/15 * * * * www-data run"],
    "services": [
        {"service": "gather", "kind": "service", "state": "RUNNING", "pid": 7, "release": SECOND, "restarts": 3,
         "memory_mb": 118.2, "age_seconds": 7300, "problem": "was started again 3 times within the last hour"},
        {"service": "default", "kind": "worker", "state": "FATAL", "pid": 0, "release": "", "restarts": 0},
    ],
}  # fmt: skip
WEB = {"current": SECOND, "processes": [{"pid": 7, "release": FIRST, "memory_mb": 96.4, "age_seconds": 59}]}
DUMPS = [{"name": FIRST, "file": f"/usr/lib/ckan/shared/backups/{FIRST}.dump", "size_mb": 3.2}]
HISTORY = [
    {"at": "2026-01-01T00:00:03Z", "stage": "check", "release": SECOND, "result": "failed", "seconds": 1.25,
     "by": "ann", "reason": f"plugin mycity cannot be imported: {'because ' * 30}"},
    {"at": "2026-01-01T00:00:02Z", "stage": "maintenance on", "result": "ok"},
]  # fmt: skip
ANSWERS = {
    "ckan_release.list": LIST, "ckan_release.show": SHOW, "ckan_release.diff": DIFF, "ckan_release.history": HISTORY,
    "ckan_jobs.status": JOBS, "ckan_web.status": WEB, "ckan_backup.list": DUMPS,
}  # fmt: skip


def options(function: str, **more: Any) -> dict[str, Any]:
    return {**salt.config.master_config(None), "outputter_dirs": [str(REPO / "_output")], "fun": function,
            "color": False, **more}  # fmt: skip


def shown(function: str, answer: Any, **more: Any) -> str:
    """What `salt web1 FUNCTION` prints."""
    text = salt.output.out_format({"web1": answer}, "ckan", options(function, **more))
    assert isinstance(text, str)
    return text


def outputters() -> dict[str, str]:
    """The functions whose module names an outputter, such as `ckan_release.list`."""
    found = {}
    for path in (REPO / "_modules").glob("*.py"):
        names = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(path.read_text()).body
                 if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
                 and node.targets[0].id in ("__outputter__", "__func_alias__")}  # fmt: skip
        for name, outputter in names.get("__outputter__", {}).items():
            found[f"{path.stem}.{names.get('__func_alias__', {}).get(name, name)}"] = outputter
    return found


def test_each_function_that_has_a_text_names_the_outputter() -> None:
    assert outputters() == dict.fromkeys(ANSWERS, "ckan") == dict.fromkeys(texts.TEXTS, "ckan")


@pytest.mark.parametrize("function", ANSWERS)
def test_an_answer_is_a_text_that_fits_120_columns_and_data_for_a_program(function: str) -> None:
    text = shown(function, ANSWERS[function])
    assert text.startswith("web1:\n    ") and "----------" not in text
    assert max(map(len, text.splitlines())) <= 120
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", text)
    told = salt.output.out_format({"web1": ANSWERS[function]}, "ckan", options(function, output="json"))
    assert json.loads(told) == {"web1": ANSWERS[function]}


def test_a_list_of_releases_says_state_commit_and_why_one_is_bad() -> None:
    lines = shown("ckan_release.list", LIST).splitlines()
    assert lines[1].split() == ["release", "state", "created", "by", "extensions"]
    assert lines[2].split()[:3] == ["*", SECOND, "live"] and f"ckanext-mycity main {COMMIT[:12]}" in lines[2]
    assert lines[3].split()[:2] == [FIRST, "bad"]
    assert lines[4].startswith(f"    {FIRST} is bad: search is broken and more") and len(lines) > 5
    assert shown("ckan_release.list", []) == "web1:\n    no release yet; type: state.apply ckan"


def test_a_release_is_shown_with_what_a_person_asks_and_hashes_with_full() -> None:
    text = shown("ckan_release.show", SHOW)
    for said in ("live, current", "CKAN 2.12.0 on Python 3.11", "in 3.5 s, on web1, 12 MB", "mycity, activity",
                 f"main  {COMMIT[:12]} ", "Mend the search", "setuptools 79 in place of 80 (ckan:override)",
                 "mycity to r2, on web1, in 2.5 s, dump of before: /x/1.dump",
                 "2 (full=True lists them)", "ckanext-mycity: salt://x.diff"):  # fmt: skip
        assert said in text, text
    assert SHA256 not in text and COMMIT not in text and "babel" not in text
    full = shown("ckan_release.show", {**SHOW, "full": True})
    assert full.count(SHA256) == 2 and "babel" in full and "2 packages: /x/pylock.toml" in full
    assert "2026-01-01T00:00:03Z  live" in full and COMMIT in full.replace("\n", "").replace(" ", "")
    assert shown("ckan_release.show", {**SHOW, "lock": "version = 1\n[x]\x1b"}).endswith("    version = 1\n    [x]?")


def test_a_release_that_was_never_built_is_shown() -> None:
    text = shown("ckan_release.show", {"id": FIRST, "state": "failed", "created": "x", "current": False})
    assert "failed" in text and "no extension" in text


def test_a_difference_lists_commits_and_counts_what_is_long() -> None:
    text = shown("ckan_release.diff", DIFF)
    assert f"      {COMMIT[:12]} ?[2Jgone? ?back\n" in text
    assert "and 5 more packages; --out json has them all" in text and "plugins removed: activity" in text
    assert "overridden: setuptools not any more" in text and "options added: ckan.x" in text
    same = {"from": FIRST, "to": SECOND, "base": {}, "extensions": {}, "packages": {}, "patches": {"added": []}}
    assert shown("ckan_release.diff", same).endswith("nothing differs")


def test_a_history_has_causes_below_the_table() -> None:
    lines = shown("ckan_release.history", HISTORY).splitlines()
    assert lines[2].split() == ["2026-01-01T00:00:03Z", "check", SECOND, "failed", "1.2", "ann", "[1]"]
    assert lines[4].startswith("    [1] plugin mycity cannot be imported: because")


def test_services_and_processes_say_what_is_wrong() -> None:
    text = shown("ckan_jobs.status", JOBS)
    assert re.search(rf"gather +service +RUNNING +{SECOND} +7 +2 h +3 +118.2 MB\n", text)
    assert "gather was started again 3 times" in text and "cron: */15" in text and "FATAL" in text
    assert re.search(rf"{FIRST} +7 +59 s +96.4 MB", shown("ckan_web.status", WEB))
    assert "no process of CKAN" in shown("ckan_web.status", {"current": "", "processes": []})
    assert "no dump on this host" in shown("ckan_backup.list", [])


def test_what_failed_or_has_another_form_is_shown_as_ever() -> None:
    assert shown("ckan_release.list", "ERROR: the settings\x1b[2J are wrong").splitlines() == [
        "web1:", "    ERROR: the settings?[2J are wrong"
    ]  # fmt: skip
    assert "new:" in shown("ckan_release.list", {"new": "form"}) and "x:" in shown("test.arg", {"x": 1})
    # Where somebody types it, too.
    assert "x:" in shown("test.arg", {"x": 1}, output="ckan")


def test_colours_are_for_a_terminal_without_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in shown("ckan_release.list", LIST, color=True)
    assert "\x1b[" not in shown("ckan_release.list", LIST)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in shown("ckan_release.list", LIST, color=True)


def test_a_wide_table_is_narrowed_where_it_is_widest() -> None:
    lines = tables.table([["a", "b", "c"], [FIRST, "word " * 60, "x"]]).splitlines()
    assert max(map(len, lines)) <= tables.WIDTH and lines[1].startswith(f"{FIRST}  word")
    assert lines[1].endswith("  x") and lines[2].startswith(" " * (len(FIRST) + 2) + "word")


def test_what_may_be_copied_stays_in_one_piece() -> None:
    path = "/usr/lib/ckan/" + "x" * 130
    assert path in tables.paragraph(f"see {path} and more of it").splitlines()[1]
