"""Whether a release can live with the database: the sentences, what was accepted, what closes the portal."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckan_deploy.database import compatibility, probe
from ckan_deploy.errors import FormulaError, InvalidArgument
from ckan_deploy.releases.manifest import Base, Manifest, Resolution
from ckan_deploy.releases.site import Site
from fakes import fake_site

OLD, NEW = "20260101000000Z", "20260102000000Z"
AHEAD = {"mycity": {"at": ["r3"], "knows": ["r1"], "lacks": [], "revisions": ["r2", "r3"], "stuck": []}}
STUCK = {"mycity": {**AHEAD["mycity"], "stuck": ["r3"]}}
STRANGE = {"mycity": {"at": ["zz"], "knows": ["r1"], "lacks": []}}
BEHIND = {"mycity": {"at": [], "knows": ["r1"], "lacks": ["r1"]}}


@pytest.fixture
def root() -> Iterator[Path]:
    # pytest's own directories are too long for a socket.
    path = Path(tempfile.mkdtemp(prefix="ckan-u-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize(
    ("different", "undoable", "said"),
    [
        ({}, False, ""),
        (AHEAD, True, "mycity is at r3, and that release knows it up to r1; newer are r2, r3. Possible: downgrade, "
                      "which undoes mycity r3, r2, and the data in it; or accept_schema, if you know that its code "
                      "gets along with this database; or restore with the name of a dump"),
        (STUCK, False, "which loses what came after it; or no downgrade, since r3 of mycity cannot be undone"),
        (STRANGE, False, "mycity is at zz, and that release knows it up to r1. Possible: accept_schema"),
        (BEHIND, False, "mycity is at no revision, before r1 of that release. Possible: a deploy, which migrates; or "
                        "accept_schema"),
        ({**AHEAD, "core": BEHIND["mycity"]}, False, "core is at no revision, before r1 of that release. Possible: "
                                                     "accept_schema, if"),
    ],
)  # fmt: skip
def test_what_differs_is_said_with_what_is_possible(different: dict[str, Any], undoable: bool, said: str):
    told = compatibility.problem(different, OLD)
    assert said in told and bool(told) == bool(different)
    assert compatibility.undoable(different) == undoable


@pytest.mark.parametrize(
    ("when", "server", "old", "new", "changed", "closes"),
    [
        ("auto", "nginx", "2.11.4", "2.12.0", ["core"], True),
        ("auto", "nginx", "2.12.0", "2.11.4", ["core", "mycity"], True),
        ("auto", "nginx", "2.11.4", "2.12.0", ["mycity"], False),
        ("auto", "nginx", "2.11.3", "2.11.4", ["core"], False),
        ("auto", "nginx", "", "2.12.0", ["core"], False),
        ("auto", "none", "2.11.4", "2.12.0", ["core"], False),
        ("before", "nginx", "2.11.4", "2.12.0", ["core"], False),
        ("maintenance", "nginx", "2.11.4", "2.11.4", ["mycity"], True),
        ("maintenance", "nginx", "", "2.11.4", ["core"], True),
        ("maintenance", "nginx", "2.11.4", "2.11.4", [], False),
    ],
)
def test_the_portal_closes_for_an_upgrade_of_ckan(
    when: str, server: str, old: str, new: str, changed: list[str], closes: bool
):
    site = fake_site("", migration__when=when, web__server=server)
    assert compatibility.closes(site, old, new, changed) is closes


def test_a_difference_is_accepted_once_and_for_that_pair(root: Path):
    site = fake_site(root)
    state: probe.State = {"at": ["r3", "r2"], "heads": [], "pending": [], "unknown": ["r3"]}
    told = compatibility.unknown(site, {"mycity": state})
    assert told["leave"] == [] and "type: ckan_schema.accept mycity none r3,r2" in told["problem"]
    assert compatibility.accept(site, "mycity", "none", "r2,r3", "ann") == compatibility.accept(
        site, "mycity", "", "r3,r2"
    )
    assert compatibility.unknown(site, {"mycity": state}) == {"problem": "", "leave": ["mycity"]}
    assert not compatibility.accepted(site, "mycity", {**state, "at": ["r4"]})
    # As a rollback notes it where the database has nothing of that plugin.
    compatibility.accept(site, "other", "r1", "")
    assert compatibility.accepted(site, "other", {"at": [], "heads": ["r1"], "pending": ["r1"], "unknown": []})
    known = json.loads((root / "usr/lib/ckan/shared/accepted_schema.json").read_text())
    assert [(entry["name"], entry["by"]) for entry in known] == [("mycity", "ann"), ("other", "")]


def test_what_another_host_serves_is_accepted_whatever_its_revisions_are_called(root: Path):
    state: probe.State = {"at": ["add trees"], "heads": ["r1"], "pending": [], "unknown": ["add trees"]}
    told = compatibility.unknown(fake_site(root), {"mycity": state}, served=True)
    assert told == {"problem": "", "leave": ["mycity"]}


@pytest.mark.parametrize(
    "words",
    [
        ("../mycity", "r1", "r2"), ("mycity", "r1,", "r2"), ("mycity", "r1", "r2;drop"), ("", "r1", "r2"),
        ("mycity", "r1", "r2\n"), ("mycity", "r1", ["r2"]), ("my city", "r1", "r2"), ("mycity", "r" * 101, "r2"),
        ("mycity", "r1", "r2", ["ann"]),
    ],
)  # fmt: skip
def test_only_plain_names_are_accepted(root: Path, words: tuple[Any, ...]):
    with pytest.raises(InvalidArgument):
        compatibility.accept(fake_site(root), *words)
    assert not list(root.rglob("*.json"))


def released(site: Site, release: str, ckan: str) -> None:
    Path(site.releases.directory(release)).mkdir(parents=True)
    site.releases.write(Manifest(release, "live", resolution=Resolution(Base(ckan, "3.11"), {})))


@pytest.fixture
def site(root: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A newer release is current, whose migrations the older one does not know."""
    site = fake_site(root)
    released(site, OLD, "2.11.4")
    released(site, NEW, "2.12.0")
    site.releases.point(NEW)
    states = {"core": {"at": ["c2"], "heads": ["c1"], "pending": [], "unknown": ["c2"]}}
    newer = {"core": {"revisions": ["c2"], "stuck": []}}
    monkeypatch.setattr(probe, "schema", lambda site, path: states if path.endswith(OLD) else {})
    monkeypatch.setattr(probe, "between", lambda site, path, targets: newer)
    return site


def test_a_way_back_is_refused_until_an_option_covers_it(site: Site):
    with pytest.raises(FormulaError, match="does not fit release 20260101000000Z.*downgrade, which undoes core c2"):
        compatibility.way_back(site, OLD)
    told = compatibility.way_back(site, OLD, downgrade=True)
    assert (told["downgrade"], told["maintenance"], told["comment"]) == ({"core": ["c1"]}, True, "")
    told = compatibility.way_back(site, OLD, accept_schema=True)
    assert (told["downgrade"], told["maintenance"]) == ({}, False) and told["different"]["core"]["at"] == ["c2"]
    assert compatibility.way_back(site, NEW)["different"] == {}
    assert compatibility.mismatch(site, OLD) == f"core is at c2 in the database, and {OLD} knows it up to c1"
    assert compatibility.mismatch(site, NEW) == compatibility.mismatch(site, "") == ""


def test_a_dump_must_fit_the_release_that_it_is_restored_for(site: Site, monkeypatch: pytest.MonkeyPatch):
    held = {"core": ["c0"]}
    monkeypatch.setattr(compatibility.backup, "heads", lambda site, name: held)
    with pytest.raises(FormulaError, match=f"the dump {NEW} does not fit release {OLD} either: it has core at c0"):
        compatibility.way_back(site, OLD, restore=NEW)
    held["core"] = ["c1"]
    # And it must be possible to restore one.
    monkeypatch.setattr(compatibility.restoring, "obstacle", lambda site: "metabase is connected to it")
    with pytest.raises(FormulaError, match=f"the dump {NEW} cannot be restored: metabase is connected"):
        compatibility.way_back(site, OLD, restore=NEW)
    monkeypatch.setattr(compatibility.restoring, "obstacle", lambda site: "")
    assert compatibility.way_back(site, OLD, restore=NEW)["restore"] == NEW


def test_a_database_that_does_not_answer_is_passed_by_only_where_that_is_asked_for(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    def down(*_: Any) -> Any:
        raise FormulaError("PostgreSQL does not answer")

    monkeypatch.setattr(probe, "schema", down)
    with pytest.raises(FormulaError, match="does not answer; or go without a look at it: accept_schema"):
        compatibility.way_back(site, OLD)
    told = compatibility.way_back(site, OLD, accept_schema=True)
    assert told["comment"] == "the database was not compared: PostgreSQL does not answer"
    assert compatibility.mismatch(site, OLD) == "PostgreSQL does not answer"
    # What is no release is no trouble of the database.
    for odd in ("../x", "/", 1):
        for ask in (compatibility.mismatch, compatibility.way_back):
            with pytest.raises(InvalidArgument):
                ask(site, odd)
