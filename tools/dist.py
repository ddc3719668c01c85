"""
Make what a release of the formula consists of, from the files of a commit: `make dist`.

Usage: `python tools/dist.py [FOLDER]`. Writes two files into the folder, by default `dist/`:

- `ckan-formula-VERSION.tar.gz`, to unpack below a directory of `file_roots`;
- `ckan_formula-VERSION-py3-none-any.whl`, the Salt extension for `salt-pip install`.

It takes the commit that is checked out. Changes that are not committed are not in it, and are named.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
# What a master needs, and who reads.
ARCHIVED = (
    "FORMULA", "LICENSE", "README.md", "SECURITY.md", "CHANGELOG.md", "ckan", "orch", "pillar.example", "docs",
    "_grains", "_modules", "_output", "_pillar", "_runners", "_states", "_utils",
)  # fmt: skip


def version(repo: Path = REPO) -> str:
    """
    Return the formula's version.

    repo
        A checkout of it.
    """
    text = (repo / "_utils/ckan_deploy/__init__.py").read_text(encoding="utf-8")
    return re.findall(r'^VERSION = "(.+)"$', text, re.M)[0]


def archive(folder: Path, repo: Path = REPO) -> Path:
    """
    Write the archive for `file_roots`; returns its path.

    folder
        Where to write it.
    repo
        The checkout.
    """
    name = f"ckan-formula-{version(repo)}"
    made = folder / f"{name}.tar.gz"
    _git(repo, "archive", f"--prefix={name}/", f"--output={made}", "HEAD", *ARCHIVED)
    return made


def wheel(folder: Path, repo: Path = REPO) -> Path:
    """
    Build the Salt extension out of a copy of its own, so that nothing of an earlier build is in it; returns its path.

    folder, repo
        As for `archive`.
    """
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place, "whole.tar")
        _git(repo, "archive", f"--output={whole}", "HEAD")
        source = Path(place, "source")
        source.mkdir()
        subprocess.run(["tar", "-xf", whole, "-C", source], check=True)
        subprocess.run(["uv", "build", "--quiet", "--wheel", f"--out-dir={place}/made", str(source)], check=True)
        (built,) = Path(place, "made").glob("*.whl")
        made = folder / built.name
        made.write_bytes(built.read_bytes())
    return made


def _git(repo: Path, *command: str) -> str:
    return subprocess.run(["git", *command], cwd=repo, check=True, capture_output=True, text=True).stdout


def main() -> int:
    """Write both; returns the exit code."""
    folder = Path(sys.argv[1] if sys.argv[1:] else REPO / "dist").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for changed in _git(REPO, "status", "--porcelain").splitlines():
        print(f"not in it, since it is not committed: {changed[3:]}", file=sys.stderr)
    for make in (archive, wheel):
        print(make(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
