"""
The files of a commit in a directory: the same on every host, whatever git's settings say there. No command runs that a
repository names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from ckan_deploy.errors import FormulaError
from ckan_deploy.sources import git
from ckan_deploy.sources.git import Origin

# For git that asks an origin: there the host's settings hold (a proxy, certificates), but for these.
STEADY = (
    "-c", "clone.defaultRemoteName=origin", "-c", "init.templateDir=", "-c", "core.attributesFile=/dev/null",
    "-c", "filter.lfs.smudge=", "-c", "filter.lfs.process=", "-c", "filter.lfs.required=false",
)  # fmt: skip
# Objects in one pack, as they come from a server. Of an origin on this host, and of a few commits, each is a file in
# one of 256 directories, and every release would have them.
PACK = ("-c", "pack.threads=1", "repack", "-a", "-d", "-n", "-q")
# Files anew, by git's own defaults. Not by "checkout", which says that all is well with files that it could not write.
AGAIN = f"git read-tree --empty && git reset -q --hard && git {' '.join(PACK)}"
# What stands in place of a file whose content is in Git LFS, and how large that may be.
POINTER, POINTER_SIZE = b"version https://git-lfs.github.com/spec/", 1024
# A refusal is for people: so many files are named.
SHOWN = 3


def clone(origin: Origin, commit: str, mirror: str, target: str) -> None:
    """
    Make a repository of its own with a commit checked out.

    origin
        The origin.
    commit
        The commit.
    mirror
        The mirror of the origin, which has it.
    target
        The directory to make.

    Raises ``FormulaError``.
    """
    git.local(
        ["clone", "-q", "--template=", "--no-hardlinks", "--no-checkout", "--", mirror, target],
        f"{target} cannot be made",
    )
    for name in ("hooks", "info"):
        # Builds find these in any clone. Without git's examples: each release would have them.
        os.makedirs(os.path.join(target, ".git", name), exist_ok=True)
    what = f"commit {commit} of {origin.url} cannot be checked out"
    git.local(["-C", target, "update-ref", "--no-deref", "HEAD", commit], what)
    # Not by "checkout", which says that all is well with files that it could not read or write.
    git.local(["-C", target, "reset", "-q", "--hard", commit, "--"], what)
    git.local(["-C", target, *PACK], f"{target} cannot be made")
    git.local(["-C", target, "remote", "set-url", "origin", origin.url], what)


def add_submodules(origin: Origin, target: str, ask: Callable[[list[str], str], str]) -> None:
    """
    Add the submodules of a checkout, and theirs.

    origin
        The origin.
    target
        The checkout.
    ask
        Runs git with the credentials of the origin, given its arguments and what a failure means.

    Raises ``FormulaError``.
    """
    what = f"the submodules of {origin.url} cannot be had"
    ask([*STEADY, "-C", target, "submodule", "--quiet", "update", "--init", "--recursive"], what)
    git.local(["-C", target, "submodule", "--quiet", "foreach", "--recursive", AGAIN], what)


def refuse_pointers(origin: Origin, target: str) -> None:
    """
    Refuse a checkout that has pointers of Git LFS in place of files: a release would serve them.

    origin
        The origin.
    target
        The checkout, with its submodules.

    Raises ``FormulaError`` that names some of the files.
    """
    found = []
    for folder, name in _pointers(target):
        # Some are only about LFS: what is no LFS file by its attributes is what was committed.
        said = git.local(["check-attr", "filter", "--", name], f"{folder} cannot be read", cwd=folder)
        if said.endswith(": lfs"):
            found.append(os.path.relpath(os.path.join(folder, name), target))
        if len(found) > SHOWN:
            break
    if found:
        more = ", ..." if len(found) > SHOWN else ""
        raise FormulaError(
            f"{origin.url} keeps files in Git LFS, which is not fetched ({', '.join(found[:SHOWN])}{more}); commit the "
            "files themselves, or deploy the extension as an archive."
        )


def _pointers(target: str) -> Iterator[tuple[str, str]]:
    for folder, folders, names in os.walk(target):
        folders[:] = sorted(name for name in folders if name != ".git")
        for name in sorted(names):
            path = os.path.join(folder, name)
            if not os.path.islink(path) and os.path.getsize(path) <= POINTER_SIZE:
                with open(path, "rb") as handle:
                    if handle.read(len(POINTER)) == POINTER:
                        yield folder, name
