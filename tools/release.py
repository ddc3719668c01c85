"""
Make a version of the formula: `make release VERSION=1.0.0`. See docs/releasing.md.

Usage: `python tools/release.py VERSION`. Writes the version into the package, FORMULA and CHANGELOG.md, commits that,
and sets the tag `vVERSION`. Pushes nothing. Refuses, before it changes anything: changes that are not committed, a
tag that is there, a version that is not greater, and a changelog without a line below "Unreleased".
"""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
PACKAGE, FORMULA, CHANGELOG = "_utils/ckan_deploy/__init__.py", "FORMULA", "CHANGELOG.md"
# What stands where in a file, with the version as its second group.
PLACES = {
    PACKAGE: re.compile(r'^(VERSION = ")(.+)(")$', re.M),
    FORMULA: re.compile(r"^(version: )(.+)()$", re.M),
}
HEADING = "## Unreleased\n"


class Refused(Exception):
    """What is in the way, with what to do."""


def problems(repo: Path, wanted: str) -> list[str]:
    """
    Say what is in the way of a version.

    repo
        The checkout.
    wanted
        The version, such as `1.0.0`.
    """
    found = []
    if not re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}", wanted):
        return [f"{wanted!r} is no version; type such as: make release VERSION=1.0.0"]
    if changed := [line[3:] for line in git(repo, "status", "--porcelain").splitlines()]:
        found.append(f"there are changes that are not committed: {', '.join(changed)}; commit them, or take them back")
    if git(repo, "tag", "--list", f"v{wanted}").strip():
        found.append(f"the tag v{wanted} is there; take a greater version")
    has = {name: PLACES[name].findall((repo / name).read_text(encoding="utf-8"))[0][1] for name in PLACES}
    if len(set(has.values())) > 1:
        each = ", ".join(f"{name} has {version}" for name, version in has.items())
        found.append(f"the versions differ: {each}; make them one")
    elif _number(wanted) <= _number(has[PACKAGE]):
        found.append(f"{wanted} is not greater than {has[PACKAGE]}, the version so far; take a greater one")
    if not unreleased(repo):
        found.append(f'{CHANGELOG} has no line below "Unreleased"; write down what a user notices')
    return found


def unreleased(repo: Path) -> list[str]:
    """
    Return the lines of the changelog that belong to no version yet.

    repo
        The checkout.
    """
    _, heading, rest = (repo / CHANGELOG).read_text(encoding="utf-8").partition(HEADING)
    return re.findall(r"^- .+$", re.split(r"^## ", rest, maxsplit=1, flags=re.M)[0], re.M) if heading else []


def make(repo: Path, wanted: str, today: Callable[[], datetime.date] = datetime.date.today) -> None:
    """
    Make the version: files, commit, tag.

    repo, wanted
        As for `problems`.
    today
        For the heading of the changelog.

    Raises `Refused` where something is in the way; nothing is changed then.
    """
    if found := problems(repo, wanted):
        raise Refused("\n".join(found))
    for name, place in PLACES.items():
        text = (repo / name).read_text(encoding="utf-8")
        (repo / name).write_text(place.sub(rf"\g<1>{wanted}\g<3>", text, count=1), encoding="utf-8")
    text = (repo / CHANGELOG).read_text(encoding="utf-8")
    heading = f"{HEADING}\n## {wanted} ({today().isoformat()})\n"
    (repo / CHANGELOG).write_text(text.replace(HEADING, heading, 1), encoding="utf-8")
    git(repo, "commit", "--quiet", f"--message=Version {wanted}", *PLACES, CHANGELOG)
    git(repo, "tag", "--annotate", f"--message=Version {wanted}", f"v{wanted}")


def git(repo: Path, *command: str) -> str:
    """
    Return what a command of git prints.

    repo
        The checkout.
    command
        Its words.
    """
    return subprocess.run(["git", *command], cwd=repo, check=True, capture_output=True, text=True).stdout


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def main() -> int:
    """Make the version that the command names; returns the exit code."""
    wanted = sys.argv[1] if sys.argv[1:] else ""
    try:
        make(REPO, wanted)
    except Refused as exc:
        print(exc, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as exc:
        print(f"{' '.join(exc.cmd[:2])} failed: {exc.stderr.strip()}", file=sys.stderr)
        return 1
    print(f"v{wanted} is set; look at it with: git show v{wanted}\nthen type: make dist; git push --follow-tags")
    return 0


if __name__ == "__main__":
    sys.exit(main())
