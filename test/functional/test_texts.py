"""What people ask of a host, as the text that they read: real answers, by the outputter that each function names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import salt.output

from functional.conftest import Host
from functional.steps import deployed
from stub import repos

pytestmark = pytest.mark.slow

REPO = Path(__file__).resolve().parents[2]


def said(host: Host, function: str, *args: Any, **kwargs: Any) -> str:
    """What `salt web1 FUNCTION` prints."""
    asked = host.loaders().modules[function]
    opts = {**host.loaders().opts, "outputter_dirs": [str(REPO / "_output")], "fun": function, "color": False}
    text = salt.output.out_format({"web1": asked(*args, **kwargs)}, asked.__outputter__, opts)
    assert text.startswith("web1:\n") and max(map(len, text.splitlines())) <= 120, text
    return text


def test_people_read_tables(host: Host, mycity: Path) -> None:
    first = deployed(host)
    commit = repos.commit_change(mycity, "Hello two")
    second = deployed(host)
    host.rollback(reason="search is broken")
    listed = said(host, "ckan_release.list")
    assert f"{first}  live " in listed and f"{second} is bad: search is broken" in listed
    shown = said(host, "ckan_release.show", second)
    assert f"main  {commit[:12]}" in shown and "bad: search is broken" in shown and commit not in shown
    assert f"ckanext-mycity  {mycity}\n" in said(host, "ckan_release.show", second, full=True)
    assert f"{commit[:12]} Show 'Hello two'" in said(host, "ckan_release.diff", first, second)
    assert f"rollback  {first}  ok" in said(host, "ckan_release.history")
    assert "no service" in said(host, "ckan_jobs.status") and "no process" in said(host, "ckan_web.status")
    assert "no dump" in said(host, "ckan_backup.list")
    # What changed is in the log of the host, for salt-run ckan.history.
    changed = {(entry["stage"], entry["release"]): entry.get("changed") for entry in host.history()}
    assert changed["build", second] == {"ckanext-mycity": f"main {commit[:12]}"}
    assert list(changed["rollback", first]) == ["ckanext-mycity"] != changed["build", second]
