"""The release store: manifests, order, the link, what a rollback goes to and what a prune removes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

import attrs
import pytest

from ckan_deploy.errors import FormulaError, InvalidArgument
from ckan_deploy.releases import choice
from ckan_deploy.releases.log import Log
from ckan_deploy.releases.manifest import Manifest
from ckan_deploy.releases.store import Releases

R = [f"2026010{day}000000Z" for day in range(1, 10)]


@pytest.fixture
def releases(tmp_path: Path) -> Releases:
    return Releases(str(tmp_path / "releases"), str(tmp_path / "current"))


def made(releases: Releases, release: str, state: str = "building") -> None:
    releases.write(attrs.evolve(releases.create(release), state=state))


def rows(**states: str) -> list[Manifest]:
    return [Manifest(R[int(name[1:])], state) for name, state in states.items()]


def test_an_id_that_could_name_another_path_is_refused(releases):
    for odd in ("../x", "2026", "20260101000000", 20260101000000, "", None):
        with pytest.raises(InvalidArgument, match="not a release id"):
            releases.directory(odd)


def test_a_new_release_is_known_as_ours_from_its_first_moment(releases):
    releases.create(R[1], by="eve")
    assert releases.read(R[1]).state == "building"
    assert releases.read(R[1]).by == "eve"


def test_a_release_is_never_made_twice(releases):
    releases.create(R[1])
    with pytest.raises(FormulaError, match="exists already"):
        releases.create(R[1])


def test_directories_without_a_readable_manifest_are_not_ours(releases):
    made(releases, R[1], "live")
    for name, content in ((R[2], None), (R[3], "{half"), (R[4], '{"id": "another", "state": "live"}'), ("notes", None)):
        path = Path(releases.folder, name)
        path.mkdir()
        if content:
            (path / "release.json").write_text(content)
    assert [m.id for m in releases.manifests()] == [R[1]]
    with pytest.raises(FormulaError, match="no release"):
        releases.remove(R[3])
    assert Path(releases.folder, R[3], "release.json").read_text() == "{half"


def test_order_is_by_id_and_not_by_file_times(releases):
    for index, release in enumerate((R[3], R[1], R[2])):
        made(releases, release)
        os.utime(releases.directory(release), (index, index))
    assert [m.id for m in releases.manifests()] == [R[1], R[2], R[3]]


def test_a_state_that_cannot_follow_is_refused_and_nothing_is_written(releases):
    made(releases, R[1], "failed")
    before = Path(releases.directory(R[1]), "release.json").read_bytes()
    with pytest.raises(FormulaError, match="cannot become live"):
        releases.set_state(R[1], "live")
    assert Path(releases.directory(R[1]), "release.json").read_bytes() == before


def test_each_change_of_state_is_noted_with_who_and_why(releases):
    made(releases, R[1], "live")
    manifest = releases.set_state(R[1], "bad", by="eve", reason="search is broken", bad_reason="search is broken")
    assert manifest.events[-1]["state"] == "bad"
    assert manifest.events[-1]["by"] == "eve"
    assert manifest.events[-1]["reason"] == "search is broken"


def test_current_is_empty_where_the_link_points_to_none_of_ours(releases, tmp_path):
    assert releases.current() == ""
    (tmp_path / "default").mkdir()
    os.symlink(tmp_path / "default", releases.link)
    assert releases.current() == ""
    made(releases, R[1])
    releases.point(R[1])
    assert releases.current() == R[1]


def test_pointing_leaves_a_directory_named_current_alone(releases):
    made(releases, R[1])
    os.mkdir(releases.link)
    with pytest.raises(FormulaError, match="not a symbolic link"):
        releases.point(R[1])
    assert os.path.isdir(releases.link) and not os.path.islink(releases.link)


def test_pointing_to_a_missing_release_changes_nothing(releases):
    made(releases, R[1])
    releases.point(R[1])
    with pytest.raises(FormulaError, match="is missing"):
        releases.point(R[2])
    assert releases.current() == R[1]


def test_a_link_left_by_a_killed_switch_does_not_stop_the_next(releases):
    made(releases, R[1])
    os.symlink("nowhere", f"{releases.link}.{R[1]}.tmp")
    releases.point(R[1])
    assert releases.current() == R[1]


@pytest.mark.slow
def test_a13_a_reader_never_finds_current_missing(releases):
    for release in (R[1], R[2]):
        made(releases, release)
        Path(releases.directory(release), "marker").write_text(release)
    releases.point(R[1])
    stop, reads, missed = threading.Event(), [0], []

    def read() -> None:
        while not stop.is_set():
            try:
                with open(os.path.join(releases.link, "marker")) as handle:
                    assert handle.read() in (R[1], R[2])
                reads[0] += 1
            except OSError as exc:
                missed.append(exc)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for turn in range(200):
        releases.point(R[1 + turn % 2])
    stop.set()
    for reader in readers:
        reader.join()
    assert not missed
    assert reads[0] > 200


def test_rollback_goes_to_the_next_older_release_that_was_live_and_is_not_bad():
    manifests = rows(r1="retired", r2="retired", r3="bad", r4="failed", r5="live")
    assert choice.rollback_target(manifests, R[5]) == R[2]


def test_rollback_can_be_repeated():
    assert choice.rollback_target(rows(r1="retired", r2="live", r3="bad"), R[2]) == R[1]


def test_a16_a_half_built_release_is_never_a_target():
    manifests = rows(r1="retired", r2="building", r3="live")
    assert choice.rollback_target(manifests, R[3]) == R[1]
    with pytest.raises(FormulaError, match="not complete"):
        choice.rollback_target(manifests, R[3], to=R[2])
    with pytest.raises(FormulaError, match="no release older"):
        choice.rollback_target(rows(r2="building", r3="live"), R[3])


@pytest.mark.parametrize("state", ["building", "built", "checked", "failed"])
def test_a_release_that_never_went_live_is_no_target_even_by_name_and_force(state):
    with pytest.raises(FormulaError, match="never went live"):
        choice.rollback_target(rows(r1=state, r2="live"), R[2], to=R[1], force=True)


def test_a_bad_release_is_a_target_only_by_name_and_force():
    manifests = [Manifest(R[1], "bad", bad_reason="lost uploads"), Manifest(R[2], "live")]
    with pytest.raises(FormulaError, match="lost uploads"):
        choice.rollback_target(manifests, R[2], to=R[1])
    assert choice.rollback_target(manifests, R[2], to=R[1], force=True) == R[1]


def test_a_target_that_is_current_or_unknown_is_refused():
    manifests = rows(r1="retired", r2="live")
    with pytest.raises(FormulaError, match="current already"):
        choice.rollback_target(manifests, R[2], to=R[2])
    with pytest.raises(FormulaError, match=f"no release {R[9 - 1]}.*{R[1]}, {R[2]}"):
        choice.rollback_target(manifests, R[2], to=R[8])


def test_a_named_target_may_be_newer_than_the_current_one():
    assert choice.rollback_target(rows(r1="live", r2="retired"), R[1], to=R[2]) == R[2]


def test_a15_failed_releases_never_count():
    manifests = rows(r1="retired", r2="retired", r3="retired", r4="failed", r5="failed", r6="building", r7="built",
                     r8="live")  # fmt: skip
    assert choice.prunable(manifests, R[8], keep=3) == [R[1], R[4], R[5], R[6], R[7]]


def test_prune_keeps_the_current_one_and_what_a_rollback_would_go_to():
    manifests = rows(r1="retired", r2="live", r3="retired", r4="retired", r5="retired")
    assert choice.prunable(manifests, R[2], keep=2) == [R[3], R[4]]
    assert choice.rollback_target([m for m in manifests if m.id in (R[1], R[2], R[5])], R[2]) == R[1]


def test_prune_spares_the_candidate_of_a_deploy_under_way():
    for state in ("building", "built", "checked"):
        assert choice.prunable(rows(r1="live", r2=state), R[1], keep=2) == []
        assert choice.prunable(rows(r1=state, r2="live"), R[2], keep=2) == [R[1]]


def test_prune_spares_what_it_is_told_to_whatever_its_state():
    manifests = rows(r1="retired", r2="failed", r3="retired", r4="retired", r5="live")
    assert choice.prunable(manifests, R[5], keep=2, spare=[R[1], R[2]]) == [R[3]]


def test_the_current_release_is_not_removed(releases):
    made(releases, R[1], "live")
    releases.point(R[1])
    with pytest.raises(FormulaError, match="is current"):
        releases.remove(R[1])
    assert releases.read(R[1]).state == "live"


def test_an_interrupted_removal_can_be_finished(releases, monkeypatch):
    made(releases, R[1], "failed")
    path = Path(releases.directory(R[1]))
    (path / "lib").mkdir()
    (path / "lib" / "big").write_text("x")
    (path / "current").symlink_to(path / "lib")
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        releases.remove(R[1])
    monkeypatch.undo()
    assert releases.manifests() == [] and not path.exists()
    assert releases.sweep() == []
    assert os.listdir(releases.folder) == []


def test_a_release_that_something_else_built_is_noted_as_it_is(releases):
    Path(releases.directory(R[1])).mkdir(parents=True)
    noted = releases.note_new(R[1], "retired", "adopted", by="eve", adopted={"from": "/srv/old", "ini": "/srv/a.ini"})
    assert noted == releases.read(R[1])
    assert (noted.state, noted.by, noted.adopted["from"]) == ("retired", "eve", "/srv/old")
    assert [dict(event, at="") for event in noted.events] == [
        {"state": "retired", "at": "", "by": "eve", "reason": "adopted"}
    ]


def test_a_change_of_fields_alone_is_no_change_of_state(releases):
    made(releases, R[1], "checked")
    before = releases.read(R[1])
    after = releases.set_state(R[1], "checked", "eve", check={"ckan": "2.11"})
    assert after == releases.read(R[1]) == attrs.evolve(before, check={"ckan": "2.11"})


def test_a_release_is_found_by_its_id_or_is_none(releases):
    assert releases.find(R[1]) is None and releases.named() == "none"
    made(releases, R[1])
    made(releases, R[2])
    assert releases.find(R[1]) == releases.read(R[1])
    assert releases.find("") is None and releases.find("../x") is None
    assert releases.named() == f"{R[1]}, {R[2]}"


def test_a_path_is_of_the_release_that_it_lies_in(releases):
    assert releases.release_of(f"{releases.folder}/{R[1]}/run/web.sock") == R[1]
    for other in ("/usr/lib/ckan/default", releases.folder, f"{releases.folder}x/{R[1]}"):
        assert releases.release_of(other) == ""


def test_what_current_held_before_the_first_release_can_be_put_back(releases, tmp_path):
    assert releases.foreign_link() == ""
    os.symlink("default", releases.link)
    assert releases.foreign_link() == "default"
    made(releases, R[1])
    releases.point(R[1])
    assert releases.foreign_link() == ""
    releases.restore_link("default")
    assert os.readlink(releases.link) == "default"
    releases.restore_link("")
    assert not os.path.lexists(releases.link)
    # A directory with the name of a release, but without a manifest, is of another tool.
    (tmp_path / "releases" / R[2]).mkdir()
    os.symlink(f"releases/{R[2]}", releases.link)
    assert releases.foreign_link() == f"releases/{R[2]}"


def test_a_link_to_the_releases_by_another_way_is_current_too(releases, tmp_path):
    made(releases, R[1])
    os.symlink(tmp_path / "releases", tmp_path / "other")
    os.symlink(f"other/{R[1]}", releases.link)
    assert releases.current() == R[1]


def test_a_manifest_is_read_by_all_and_is_never_half_written(releases):
    made(releases, R[1])
    file = Path(releases.directory(R[1]), "release.json")
    assert oct(file.stat().st_mode & 0o777) == "0o644"
    # What a run that was killed left is not in the way, and a link in its place leads nowhere.
    file.with_name("release.json.tmp").symlink_to("/etc/passwd")
    releases.set_state(R[1], "built")
    assert not file.is_symlink() and json.loads(file.read_text())["state"] == "built"
    assert sorted(os.listdir(file.parent)) == ["release.json"]


def test_a_field_of_a_later_version_does_not_hide_a_release(releases):
    made(releases, R[1], "live")
    file = Path(releases.directory(R[1]), "release.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "of_tomorrow": {"a": [1]}}))
    assert releases.read(R[1]).state == "live"
    assert releases.set_state(R[1], "retired").state == "retired"


@pytest.mark.parametrize(
    "content",
    ["", "[]", "7", "null", "{}", '{"id": "x"}', '{"state": "live"}', '{"state": "live", "id": 7}',
     '{"state": "live", "id": "ID", "events": 5}', '{"state": "live", "id": "ID", "base": 5}',
     '{"state": "live", "id": "ID", "base": {"ckan": "2.11", "python": "3.11"}, "extensions": {"../x": {}}}',
     '{"state": "live", "id": "ID", "base": {"ckan": "2.11", "python": "3.11"}, "packages": 7}'],
)  # fmt: skip
def test_an_odd_manifest_is_none_and_its_directory_is_left_alone(releases, content):
    made(releases, R[2])
    Path(releases.directory(R[1])).mkdir()
    file = Path(releases.directory(R[1]), "release.json")
    file.write_text(content.replace("ID", R[1]))
    assert [manifest.id for manifest in releases.manifests()] == [R[2]]
    for refused in (releases.read, releases.remove, lambda release: releases.set_state(release, "failed")):
        with pytest.raises(FormulaError, match=f"no release {R[1]} on this host; the releases here: {R[2]}"):
            refused(R[1])
    assert file.exists()


def test_the_log_is_read_newest_first_and_survives_a_torn_line(tmp_path):
    log = Log(str(tmp_path / "shared"))
    for stage in ("build", "check"):
        log.append(stage=stage, release=R[1])
    with open(tmp_path / "shared/deploy.log", "a") as handle:
        handle.write('{"stage": "verif')
    assert [entry["stage"] for entry in log.read()] == ["check", "build"]
    assert json.loads((tmp_path / "shared/deploy.log").read_text().splitlines()[0])["at"].endswith("Z")


def test_the_log_leaves_out_what_is_empty_and_ends_where_asked(tmp_path):
    log = Log(str(tmp_path))
    assert log.read() == []
    for count in range(4):
        log.append(stage="build", release=R[count], by="", reason="", seconds=0)
    assert [entry["release"] for entry in log.read(2)] == [R[3], R[2]]
    assert sorted(log.read(1)[0]) == ["at", "release", "seconds", "stage"]
    assert oct((tmp_path / "deploy.log").stat().st_mode & 0o777) == "0o640"


# What a kill leaves: never a directory that nobody knows.


class Killed(BaseException):
    """Nothing is cleaned up after it."""


def killed_at(monkeypatch: pytest.MonkeyPatch, count: int, work) -> bool:
    """Run something that is cut off at its n-th call of the file system; returns whether it was."""
    calls, killed = [0], [False]

    def counting(name: str):
        real = getattr(os, name)

        def call(*args, **kwargs):
            if killed[0]:
                raise Killed  # the dead do nothing any more
            calls[0] += 1
            if calls[0] == count:
                killed[0] = True
                raise Killed
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patched:
        for name in ("mkdir", "rename", "unlink", "rmdir", "open", "fsync", "symlink", "chmod", "fchmod"):
            patched.setattr(os, name, counting(name))
        try:
            work()
        except BaseException:
            pass
    return killed[0]


def test_a_release_that_is_killed_in_the_making_leaves_nothing_that_is_nobodys(releases, monkeypatch):
    os.mkdir(releases.folder)
    count, seen = 0, 0
    while True:
        count += 1
        if not killed_at(monkeypatch, count, lambda: releases.create(R[1])):
            break
        if os.path.isdir(releases.directory(R[1])):
            assert [m.id for m in releases.manifests()] == [R[1]]
            releases.remove(R[1])
        seen += 1
        assert releases.sweep() == []
        assert os.listdir(releases.folder) == [], count
    assert seen >= 5 and [m.id for m in releases.manifests()] == [R[1]]


def test_a_removal_that_is_killed_leaves_a_release_or_what_the_sweep_removes(releases, monkeypatch):
    count = 0
    while True:
        count += 1
        made(releases, R[1], "failed")
        Path(releases.directory(R[1]), "lib").mkdir()
        Path(releases.directory(R[1]), "lib/file").write_text("x")
        killed = killed_at(monkeypatch, count, lambda: releases.remove(R[1]))
        if os.path.isdir(releases.directory(R[1])):
            assert Path(releases.directory(R[1]), "lib/file").exists()
            releases.remove(R[1])
        assert releases.sweep() == []
        assert os.listdir(releases.folder) == [], count
        if not killed:
            break
    assert count > 4


def test_the_sweep_leaves_alone_what_is_not_ours(releases, tmp_path):
    made(releases, R[1], "live")
    releases.point(R[1])
    foreign = [tmp_path / "current.tmp", tmp_path / "current.x.tmp", tmp_path / f"other.{R[1]}.tmp",
               tmp_path / f"current.{R[2]}.tmp", Path(releases.folder, ".new-x"), Path(releases.folder, ".removed"),
               Path(releases.folder, f".new-{R[1]}.bak"), Path(releases.folder, "new.tmp"),
               Path(releases.directory(R[1]), "notes.tmp")]  # fmt: skip
    for path in foreign:
        path.write_text("precious")
    ours = [tmp_path / f"current.{R[1]}.tmp", tmp_path / "current.before.tmp"]
    for path in ours:
        path.symlink_to("nowhere")
    drafts = [Path(releases.directory(R[1]), name) for name in ("release.json.tmp", "uwsgi.ini.tmp")]
    for path in drafts:
        path.write_text("half")
    for name in (f".new-{R[2]}", f".removed-{R[3]}"):
        Path(releases.folder, name).mkdir()
        Path(releases.folder, name, "file").write_text("x")
    assert releases.sweep() == []
    assert [path.read_text() for path in foreign] == ["precious"] * len(foreign)
    assert not any(os.path.lexists(path) for path in [*ours, *drafts])
    assert not list(Path(releases.folder).glob(".new-????????????????Z")) and releases.leftovers() == []


def test_what_is_mounted_in_a_release_is_not_emptied(releases, mount):
    made(releases, R[1], "retired")
    inside = mount(Path(releases.directory(R[1]), "a disk"))
    (inside / "precious").write_text("x")
    with pytest.raises(FormulaError, match=r"is mounted in it; type: umount .*a disk"):
        releases.remove(R[1])
    assert (inside / "precious").exists() and [m.id for m in releases.manifests()] == [R[1]]
    subprocess.run(["umount", inside], check=True)
    releases.remove(R[1])
    assert os.listdir(releases.folder) == []


def test_a_file_that_cannot_be_deleted_is_named_and_goes_as_soon_as_it_can(releases, immutable):
    made(releases, R[1], "retired")
    Path(releases.directory(R[1]), "lib").mkdir()
    file = immutable(Path(releases.directory(R[1]), "lib/file"))
    with pytest.raises(FormulaError, match=r"cannot be deleted \(Operation not permitted: .*lib/file\)"):
        releases.remove(R[1])
    assert releases.manifests() == []
    assert len(releases.sweep()) == 1
    immutable.free()
    assert releases.sweep() == [] and os.listdir(releases.folder) == []
    assert not file.exists()


@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
def test_a_manifest_that_is_no_plain_file_is_none_and_keeps_nobody(releases, kind):
    made(releases, R[2])
    made(releases, R[1], "live")
    file = Path(releases.directory(R[1]), "release.json")
    file.rename(file.with_name("copy"))
    {"fifo": lambda: os.mkfifo(file), "link": lambda: file.symlink_to("copy"), "directory": file.mkdir}[kind]()
    assert [m.id for m in releases.manifests()] == [R[2]]


# `current`


@pytest.mark.parametrize("there", [True, False])
def test_h04_a_link_to_a_release_without_a_manifest_is_a_foreign_one(releases, there):
    Path(releases.folder).mkdir()
    if there:
        Path(releases.folder, R[1]).mkdir()
    os.symlink(f"releases/{R[1]}", releases.link)
    assert releases.current() == "" and releases.foreign_link() == f"releases/{R[1]}"
    why = "has no readable manifest" if there else "is not there"
    assert releases.foreign() == f"{releases.link} points to releases/{R[1]}, which {why}"
    made(releases, R[2])
    releases.point(R[2])
    assert (releases.current(), releases.foreign()) == (R[2], "")


def test_the_rollback_from_a_link_that_names_nothing_goes_to_the_newest_that_was_live():
    manifests = rows(r1="retired", r2="retired", r3="bad", r4="checked")
    assert choice.rollback_target(manifests, "") == R[2]


# The log


def test_a_line_of_the_log_that_was_cut_short_does_not_spoil_the_next(tmp_path):
    log = Log(str(tmp_path))
    log.append(stage="build", release=R[1])
    with open(tmp_path / "deploy.log", "a") as handle:
        handle.write('{"stage": "verif')
    log.append(stage="check", release=R[1])
    assert [entry["stage"] for entry in log.read()] == ["check", "build"]


def test_a_log_that_cannot_be_written_is_said_and_stops_nothing(tmp_path, mount):
    disk = mount(tmp_path / "shared")
    (disk / "fill").write_bytes(b"x" * 2**20)
    log = Log(str(disk))
    assert re.search(r"lacks this stage: .*deploy.log cannot be written \(No space left on device\)",
                     log.append(stage="build"))  # fmt: skip
