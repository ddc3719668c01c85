"""`make release`: what is in the way of a version is refused before anything is changed; then files, commit and tag."""

from __future__ import annotations

import datetime
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import release

REPO = Path(__file__).resolve().parents[2]
CHANGELOG = (
    "# Changelog\n\n## Unreleased\n\nThe internals moved.\n\n- A deploy is faster.\n\n## 0.1.0\n\n- The first one.\n"
)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A checkout with what has the version in it."""
    for name in (release.PACKAGE, release.FORMULA):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        text = (REPO / name).read_text()
        (tmp_path / name).write_text(release.PLACES[name].sub(r"\g<1>0.2.0\g<3>", text))
    (tmp_path / release.CHANGELOG).write_text(CHANGELOG)
    release.git(tmp_path, "init", "--quiet", "--initial-branch=main")
    for name, value in (("name", "Ann"), ("email", "ann@example.org")):
        release.git(tmp_path, "config", f"user.{name}", value)
    commit(tmp_path)
    return tmp_path


def commit(repo: Path) -> None:
    release.git(repo, "add", "--all")
    release.git(repo, "commit", "--quiet", "--message=x")


def state(repo: Path) -> list[str]:
    return [release.git(repo, *command) for command in (("log", "--format=%H"), ("tag",), ("status", "--short"))]


def test_a_version_is_in_each_file_in_a_commit_and_a_tag(repo: Path) -> None:
    release.make(repo, "1.0.0", lambda: datetime.date(2026, 12, 1))
    assert 'VERSION = "1.0.0"\n' in (repo / release.PACKAGE).read_text()
    assert "\nversion: 1.0.0\n" in (repo / release.FORMULA).read_text()
    heading = "## Unreleased\n\n## 1.0.0 (2026-12-01)\n\nThe internals moved."
    assert (repo / release.CHANGELOG).read_text() == CHANGELOG.replace("## Unreleased\n\nThe internals moved.", heading)
    assert release.git(repo, "log", "-1", "--format=%s").strip() == "Version 1.0.0"
    assert release.git(repo, "cat-file", "-t", "v1.0.0").strip() == "tag"
    assert release.git(repo, "rev-parse", "v1.0.0^{}") == release.git(repo, "rev-parse", "HEAD")
    assert release.git(repo, "status", "--short") == ""
    # Nothing has happened since.
    assert release.problems(repo, "1.0.1") == [
        'CHANGELOG.md has no line below "Unreleased"; write down what a user notices'
    ]


def dirty(repo: Path) -> None:
    (repo / "FORMULA").write_text((repo / "FORMULA").read_text() + "x: y\n")


def untracked(repo: Path) -> None:
    (repo / "new.py").write_text("")


def tagged(repo: Path) -> None:
    release.git(repo, "tag", "v1.0.0")


def differing(repo: Path) -> None:
    file = repo / "FORMULA"
    file.write_text(file.read_text().replace("version: 0.2.0", "version: 0.3.0"))
    commit(repo)


def without_changes(repo: Path) -> None:
    (repo / "CHANGELOG.md").write_text(CHANGELOG.replace("- A deploy is faster.\n", ""))
    commit(repo)


def without_heading(repo: Path) -> None:
    (repo / "CHANGELOG.md").write_text(CHANGELOG.replace("## Unreleased\n", ""))
    commit(repo)


def nothing(repo: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "version", "said"),
    [
        (dirty, "1.0.0", "there are changes that are not committed: FORMULA; commit them"),
        (untracked, "1.0.0", "there are changes that are not committed: new.py; commit them"),
        (tagged, "1.0.0", "the tag v1.0.0 is there; take a greater version"),
        (differing, "1.0.0", "the versions differ: _utils/ckan_deploy/__init__.py has 0.2.0, FORMULA has 0.3.0"),
        (without_changes, "1.0.0", 'CHANGELOG.md has no line below "Unreleased"'),
        (without_heading, "1.0.0", 'CHANGELOG.md has no line below "Unreleased"'),
        (nothing, "0.2.0", "0.2.0 is not greater than 0.2.0, the version so far"),
        (nothing, "0.1.9", "0.1.9 is not greater than 0.2.0, the version so far"),
        (nothing, "", "'' is no version; type such as: make release VERSION=1.0.0"),
        (nothing, "v1.0.0", "'v1.0.0' is no version"),
        (nothing, "1.0", "'1.0' is no version"),
        (nothing, "01.0.0", "'01.0.0' is no version"),
        (nothing, "1.0.0\n", "'1.0.0\\n' is no version"),
    ],
)  # fmt: skip
def test_what_is_in_the_way_is_said_and_nothing_is_changed(
    repo: Path, change: Callable[[Path], None], version: str, said: str
) -> None:
    change(repo)
    before = state(repo)
    with pytest.raises(release.Refused) as caught:
        release.make(repo, version)
    assert str(caught.value).startswith(said)
    assert state(repo) == before


def test_ten_is_greater_than_nine(repo: Path) -> None:
    assert release.problems(repo, "0.10.0") == []


def test_the_formula_of_this_checkout_could_be_made_a_version() -> None:
    has = [place.findall((REPO / name).read_text())[0][1] for name, place in release.PLACES.items()]
    assert len(set(has)) == 1 and release.unreleased(REPO) != []


def test_the_command_says_what_is_in_the_way_and_fails() -> None:
    done = subprocess.run(["python", REPO / "tools/release.py", "one"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "'one' is no version; type such as: make release VERSION=1.0.0\n"
