"""The release store: manifests, order, the link, what a rollback goes to and what a prune removes."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

from _modules import ckan_store as store

R = [f"2026010{day}000000Z" for day in range(1, 10)]


@pytest.fixture
def paths(tmp_path: Path) -> dict:
    return {
        "releases": str(tmp_path / "releases"),
        "current": str(tmp_path / "current"),
        "shared": str(tmp_path / "shared"),
    }


def made(paths: dict, release: str, state: str = "building") -> None:
    manifest = store.create(paths, release)
    manifest["state"] = state
    store.write(paths, manifest)


def rows(**states: str) -> list[dict]:
    return [{"id": R[int(name[1:])], "state": state} for name, state in states.items()]


def test_an_id_that_could_name_another_path_is_refused(paths):
    for odd in ("../x", "2026", "20260101000000", 20260101000000, "", None):
        with pytest.raises(SaltInvocationError, match="not a release id"):
            store.directory(paths, odd)


def test_a_new_release_is_known_as_ours_from_its_first_moment(paths):
    store.create(paths, R[1], by="eve")
    assert store.read(paths, R[1])["state"] == "building"
    assert store.read(paths, R[1])["by"] == "eve"


def test_a_release_is_never_made_twice(paths):
    store.create(paths, R[1])
    with pytest.raises(CommandExecutionError, match="exists already"):
        store.create(paths, R[1])


def test_directories_without_a_readable_manifest_are_not_ours(paths):
    made(paths, R[1], "live")
    for name, content in ((R[2], None), (R[3], "{half"), (R[4], '{"id": "another", "state": "live"}'), ("notes", None)):
        path = Path(paths["releases"], name)
        path.mkdir()
        if content:
            (path / "release.json").write_text(content)
    assert [m["id"] for m in store.all_manifests(paths)] == [R[1]]
    with pytest.raises(CommandExecutionError, match="no release"):
        store.remove(paths, R[3])
    assert Path(paths["releases"], R[3], "release.json").read_text() == "{half"


def test_order_is_by_id_and_not_by_file_times(paths):
    for index, release in enumerate((R[3], R[1], R[2])):
        made(paths, release)
        os.utime(store.directory(paths, release), (index, index))
    assert [m["id"] for m in store.all_manifests(paths)] == [R[1], R[2], R[3]]


def test_a_state_that_cannot_follow_is_refused_and_nothing_is_written(paths):
    made(paths, R[1], "failed")
    before = Path(store.directory(paths, R[1]), "release.json").read_bytes()
    with pytest.raises(CommandExecutionError, match="cannot become live"):
        store.set_state(paths, R[1], "live")
    assert Path(store.directory(paths, R[1]), "release.json").read_bytes() == before


def test_each_change_of_state_is_noted_with_who_and_why(paths):
    made(paths, R[1], "live")
    manifest = store.set_state(paths, R[1], "bad", by="eve", reason="search is broken", bad_reason="search is broken")
    assert manifest["events"][-1]["state"] == "bad"
    assert manifest["events"][-1]["by"] == "eve"
    assert manifest["events"][-1]["reason"] == "search is broken"


def test_current_is_empty_where_the_link_points_to_none_of_ours(paths, tmp_path):
    assert store.current(paths) == ""
    (tmp_path / "default").mkdir()
    os.symlink(tmp_path / "default", paths["current"])
    assert store.current(paths) == ""
    made(paths, R[1])
    store.point(paths, R[1])
    assert store.current(paths) == R[1]


def test_pointing_leaves_a_directory_named_current_alone(paths):
    made(paths, R[1])
    os.mkdir(paths["current"])
    with pytest.raises(CommandExecutionError, match="not a symbolic link"):
        store.point(paths, R[1])
    assert os.path.isdir(paths["current"]) and not os.path.islink(paths["current"])


def test_pointing_to_a_missing_release_changes_nothing(paths):
    made(paths, R[1])
    store.point(paths, R[1])
    with pytest.raises(CommandExecutionError, match="is missing"):
        store.point(paths, R[2])
    assert store.current(paths) == R[1]


def test_a_link_left_by_a_killed_switch_does_not_stop_the_next(paths):
    made(paths, R[1])
    os.symlink("nowhere", f"{paths['current']}.{R[1]}.tmp")
    store.point(paths, R[1])
    assert store.current(paths) == R[1]


def test_a13_a_reader_never_finds_current_missing(paths):
    for release in (R[1], R[2]):
        made(paths, release)
        Path(store.directory(paths, release), "marker").write_text(release)
    store.point(paths, R[1])
    stop, reads, missed = threading.Event(), [0], []

    def read() -> None:
        while not stop.is_set():
            try:
                with open(os.path.join(paths["current"], "marker")) as handle:
                    assert handle.read() in (R[1], R[2])
                reads[0] += 1
            except OSError as exc:
                missed.append(exc)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for turn in range(200):
        store.point(paths, R[1 + turn % 2])
    stop.set()
    for reader in readers:
        reader.join()
    assert not missed
    assert reads[0] > 200


def test_rollback_goes_to_the_next_older_release_that_was_live_and_is_not_bad():
    manifests = rows(r1="retired", r2="retired", r3="bad", r4="failed", r5="live")
    assert store.rollback_target(manifests, R[5]) == R[2]


def test_rollback_can_be_repeated():
    assert store.rollback_target(rows(r1="retired", r2="live", r3="bad"), R[2]) == R[1]


def test_a16_a_half_built_release_is_never_a_target():
    manifests = rows(r1="retired", r2="building", r3="live")
    assert store.rollback_target(manifests, R[3]) == R[1]
    with pytest.raises(CommandExecutionError, match="not complete"):
        store.rollback_target(manifests, R[3], to=R[2])
    with pytest.raises(CommandExecutionError, match="no release older"):
        store.rollback_target(rows(r2="building", r3="live"), R[3])


@pytest.mark.parametrize("state", ["building", "built", "checked", "failed"])
def test_a_release_that_never_went_live_is_no_target_even_by_name_and_force(state):
    with pytest.raises(CommandExecutionError, match="never went live"):
        store.rollback_target(rows(r1=state, r2="live"), R[2], to=R[1], force=True)


def test_a_bad_release_is_a_target_only_by_name_and_force():
    manifests = [{"id": R[1], "state": "bad", "bad_reason": "lost uploads"}, {"id": R[2], "state": "live"}]
    with pytest.raises(CommandExecutionError, match="lost uploads"):
        store.rollback_target(manifests, R[2], to=R[1])
    assert store.rollback_target(manifests, R[2], to=R[1], force=True) == R[1]


def test_a_target_that_is_current_or_unknown_is_refused():
    manifests = rows(r1="retired", r2="live")
    with pytest.raises(CommandExecutionError, match="current already"):
        store.rollback_target(manifests, R[2], to=R[2])
    with pytest.raises(CommandExecutionError, match=f"no release {R[9 - 1]}.*{R[1]}, {R[2]}"):
        store.rollback_target(manifests, R[2], to=R[8])


def test_a_named_target_may_be_newer_than_the_current_one():
    assert store.rollback_target(rows(r1="live", r2="retired"), R[1], to=R[2]) == R[2]


def test_a15_failed_releases_never_count():
    manifests = rows(r1="retired", r2="retired", r3="retired", r4="failed", r5="failed", r6="building", r7="built",
                     r8="live")  # fmt: skip
    assert store.prunable(manifests, R[8], keep=3) == [R[1], R[4], R[5], R[6], R[7]]


def test_prune_keeps_the_current_one_and_what_a_rollback_would_go_to():
    manifests = rows(r1="retired", r2="live", r3="retired", r4="retired", r5="retired")
    assert store.prunable(manifests, R[2], keep=2) == [R[3], R[4]]
    assert store.rollback_target([m for m in manifests if m["id"] in (R[1], R[2], R[5])], R[2]) == R[1]


def test_prune_spares_the_candidate_of_a_deploy_under_way():
    assert store.prunable(rows(r1="live", r2="building"), R[1], keep=2, spare=R[2]) == []


def test_the_current_release_is_not_removed(paths):
    made(paths, R[1], "live")
    store.point(paths, R[1])
    with pytest.raises(CommandExecutionError, match="is current"):
        store.remove(paths, R[1])
    assert store.read(paths, R[1])["state"] == "live"


def test_an_interrupted_removal_can_be_finished(paths, monkeypatch):
    made(paths, R[1], "failed")
    path = Path(store.directory(paths, R[1]))
    (path / "lib").mkdir()
    (path / "lib" / "big").write_text("x")
    (path / "current").symlink_to(path / "lib")
    monkeypatch.setattr(store.shutil, "rmtree", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError):
        store.remove(paths, R[1])
    monkeypatch.undo()
    assert [m["id"] for m in store.all_manifests(paths)] == [R[1]]
    store.remove(paths, R[1])
    assert not path.exists()


def test_the_log_is_read_newest_first_and_survives_a_torn_line(paths):
    for stage in ("build", "check"):
        store.append_log(paths, stage=stage, release=R[1])
    with open(os.path.join(paths["shared"], "deploy.log"), "a") as handle:
        handle.write('{"stage": "verif')
    assert [entry["stage"] for entry in store.read_log(paths)] == ["check", "build"]
    assert json.loads(Path(paths["shared"], "deploy.log").read_text().splitlines()[0])["at"].endswith("Z")
