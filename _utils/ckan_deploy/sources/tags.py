"""
The tags that a version is made of: setuptools_scm and the like ask git. A commit that gets a tag later is another
version, though its files are the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import os

from ckan_deploy.errors import FormulaError
from ckan_deploy.sources import git, repositories
from ckan_deploy.sources.git import Origin
from ckan_deploy.sources.pins import COMMIT

# Where a project says how it gets its version, and the words of those that ask git.
FILES = ("pyproject.toml", "setup.py", "setup.cfg")
ASKS_GIT = (
    r"setuptools[-_]?scm|hatch[-_.]vcs|vcs[-_]versioning|versioneer|versioningit|dunamai|dynamic[-_]versioning|flit[-_]scm|"
    r"git[-_]?version|setuptools[-_]git|(^|[^a-z])pbr([^a-z]|$)|source *= *.(vcs|scm)|git.{1,5}(describe|rev-parse|tag)"
)


def known(origin: Origin, commit: str, folder: str, mirrors: str) -> str:
    """
    Return a hash of the tags of a commit and of those before it, as its origin has them now.

    origin
        The origin.
    commit
        The commit.
    folder
        Where the package is in it, '' for its top.
    mirrors
        The directory that holds the bare mirrors of origins.

    Returns '' where there are none, or the version of the package does not come from them. Raises ``FormulaError`` when
    the origin does not answer, but for a ref that is a commit: such a release needs no origin.
    """

    def asks(mirror: str) -> bool:
        paths = [os.path.join(folder, name) for name in FILES]
        return git.test(["-C", mirror, "grep", "-q", "-i", "-E", ASKS_GIT, commit, "--", *paths])

    mirror = repositories.place_of(origin.url, mirrors)
    with contextlib.suppress(FormulaError) if COMMIT.fullmatch(origin.ref) else contextlib.nullcontext():
        repositories.bring(origin, commit, mirrors, asks)
    return _hash(mirror, commit) if asks(mirror) else ""


def follow(origin: Origin, commit: str, tags: str, mirrors: str) -> None:
    """
    See that the mirror of this host has the tags that another host has seen, as far as the origin gives them.

    origin, commit, mirrors
        As for ``known``.
    tags
        What that gave there.
    """
    with contextlib.suppress(FormulaError):  # the checkout tells of a commit that is not there
        repositories.bring(origin, commit, mirrors, lambda mirror: _hash(mirror, commit) != tags)


def _hash(mirror: str, commit: str) -> str:
    question = ["-C", mirror, "for-each-ref", f"--merged={commit}", "--format=%(refname) %(objectname)", "refs/tags"]
    found = git.run(Origin("/"), question, f"{mirror} cannot be read", "/nonexistent")
    return hashlib.sha256(found.encode("utf-8")).hexdigest()[:16] if found.strip() else ""
