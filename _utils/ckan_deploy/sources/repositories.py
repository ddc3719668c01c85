"""
Git origins of extensions: a ref becomes one commit, and a commit becomes a checkout.

A bare mirror of each origin is kept under ``shared/mirrors``, so a deploy fetches only what is new. Nothing here knows
what a release is.

A commit's object may be there without its trees, after a fetch that was killed. So a commit counts when all that it
needs was seen; ``refs/kept/COMMIT`` notes that.
"""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import glob
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ckan_deploy.errors import FormulaError
from ckan_deploy.sources import checkouts, git
from ckan_deploy.sources.git import Origin
from ckan_deploy.sources.pins import COMMIT
from ckan_deploy.system import files

SHORT_COMMIT = re.compile(r"[0-9a-f]{7,39}")
# What is fetched outlives a power failure. Versions of git that do not know these pass over them.
DURABLE = ("-c", "core.fsync=objects,reference", "-c", "core.fsyncMethod=batch")


class Resolved(NamedTuple):
    """The commit that a ref stands for, and what the ref is: ``branch``, ``tag``, ``commit`` or ``head``."""

    commit: str
    kind: str


class CheckedOut(NamedTuple):
    """A commit in a directory; ``fetched`` says whether the origin had to be asked."""

    commit: str
    subject: str
    fetched: bool


class Between(NamedTuple):
    """What the newer of two commits has and the older one has not, newest first, and the other way round."""

    known: bool
    ahead: list[dict[str, str]]
    behind: list[dict[str, str]]


def resolve(origin: Origin, mirrors: str) -> Resolved:
    """
    Return the commit that the ref of a git origin stands for now.

    A branch is looked for first, then a tag (an annotated one gives the commit it is about), then a commit by the
    beginning of its id; a full commit id is taken as it is.

    origin
        The origin.
    mirrors
        The directory that holds the bare mirrors of origins.

    Raises ``FormulaError`` when the origin does not answer, has no such ref, or has a branch and a tag of that name at
    different commits.
    """
    url, ref = origin.url, origin.ref
    if COMMIT.fullmatch(ref):
        return Resolved(ref, "commit")
    refs = _refs(origin, mirrors)
    found = _named_in_full(ref, refs) or _branch_or_tag(url, ref, refs)
    if found:
        return found
    if SHORT_COMMIT.fullmatch(ref):
        commit = _by_beginning(origin, ref, mirrors)
        if commit:
            return Resolved(commit, "commit")
    raise FormulaError(f"{url} has no branch or tag {ref}{_near(ref, refs)}; correct ref in the pillar.")


def checkout(origin: Origin, commit: str, target: str, mirrors: str) -> CheckedOut:
    """
    Put one commit of a git origin into a new directory, with its submodules unless ``submodules`` is False.

    origin
        The origin.
    commit
        The commit, 40 hex digits.
    target
        The directory to make; must not exist.
    mirrors
        The directory that holds the bare mirrors of origins.

    The files are those that ``git clone`` gives to somebody who has set nothing. Raises ``FormulaError`` when the
    commit cannot be had, or has files that are in Git LFS only.
    """
    url = origin.url
    with _mirror(origin, mirrors) as mirror:
        fetched = _fetch(origin, commit, mirror, mirrors)
        try:
            checkouts.clone(origin, commit, mirror, target)
        except FormulaError:
            if _connected(mirror, commit):
                raise  # not the mirror's fault: the disk may be full
            shutil.rmtree(target, ignore_errors=True)
            _renew(origin, mirror, mirrors)
            fetched = _fetch(origin, commit, mirror, mirrors)
            checkouts.clone(origin, commit, mirror, target)
    if origin.submodules and os.path.isfile(os.path.join(target, ".gitmodules")):
        checkouts.add_submodules(origin, target, lambda args, what: _run(origin, args, what, mirrors))
    checkouts.refuse_pointers(origin, target)
    what = f"commit {commit} of {url} cannot be read"
    subject = _local(["-C", target, "log", "-1", "--format=%s"], what).strip()
    return CheckedOut(commit, subject, fetched)


def bring(origin: Origin, commit: str, mirrors: str, stale: Callable[[str], bool]) -> None:
    """
    Bring a commit into the mirror of an origin; all branches and tags, too, where those that are there are stale.

    origin, commit, mirrors
        As for ``checkout``.
    stale
        Says so of a mirror that has the commit.

    Raises ``FormulaError`` when the commit cannot be had.
    """
    with _mirror(origin, mirrors) as mirror:
        if not _fetch(origin, commit, mirror, mirrors) and stale(mirror):
            _update(origin, mirror, mirrors)


def log(url: str, old: str, new: str, mirrors: str) -> Between:
    """
    List the commits between two, as far as the mirror on this host knows them.

    url
        The address of the origin.
    old, new
        Two commits.
    mirrors
        The directory that holds the bare mirrors of origins.

    Each commit is ``{"commit", "author", "at", "subject"}``.
    """
    mirror = place_of(url, mirrors)
    if not all(os.path.isdir(mirror) and _has(mirror, commit) for commit in (old, new)):
        return Between(False, [], [])
    return Between(True, _commits(mirror, f"{old}..{new}"), _commits(mirror, f"{new}..{old}"))


def added(url: str, old: str, new: str, mirrors: str, pattern: str) -> list[str]:
    """
    List the files that a commit has and an older one has not, as far as the mirror on this host knows them.

    url
        The address of the origin.
    old, new
        Two commits; with ``''`` for the older one all files of the new one.
    mirrors
        The directory that holds the bare mirrors of origins.
    pattern
        Which files, as git understands it: ``*`` stands for slashes, too.
    """
    mirror, what = place_of(url, mirrors), f"the mirror of {url} cannot be read"
    if not all(os.path.isdir(mirror) and _has(mirror, commit) for commit in (old, new) if commit):
        return []
    if old:
        span = ["diff", "--name-only", "--diff-filter=A", "--no-renames", old, new, "--", pattern]
        return _local(["-C", mirror, *span], what).splitlines()
    listed = _local(["-C", mirror, "ls-tree", "-r", "--name-only", new], what).splitlines()
    return fnmatch.filter(listed, pattern)


def compare_upstream(origin: Origin, commit: str, mirrors: str) -> dict[str, Any]:
    """
    Say how far a commit of a fork is from the head of the origin it was forked from.

    origin
        The origin, with ``upstream``.
    commit
        The commit.
    mirrors
        The directory that holds the bare mirrors of origins.

    Returns ``{"url", "commit", "ahead": n, "behind": n}``. Raises ``FormulaError`` when the upstream does not answer.
    """
    # A stranger's server: the keys of the fork are not for it.
    upstream = Origin(origin.upstream, host_keys=origin.host_keys)
    with _mirror(origin, mirrors) as mirror:
        _fetch(origin, commit, mirror, mirrors)
        what = f"the upstream {upstream.url} cannot be fetched"
        _transfer(upstream, mirror, mirrors, what, "--no-tags", spans=["HEAD:refs/upstream/head"])
        head = _local(["-C", mirror, "rev-parse", "refs/upstream/head"], f"{mirror} cannot be read").strip()
        counts = _local(["-C", mirror, "rev-list", "--left-right", "--count", f"{commit}...{head}", "--"], mirror)
    ahead, behind = map(int, counts.split())
    return {"url": upstream.url, "commit": head, "ahead": ahead, "behind": behind}


def _refs(origin: Origin, mirrors: str) -> dict[str, str]:
    url = origin.url
    args = ["ls-remote", *_reader(url), "--", url]
    text = _run(origin, args, f"the origin {url} cannot be read", mirrors, timeout=git.ASK_TIMEOUT)
    return {name: commit for commit, _, name in (line.partition("\t") for line in text.splitlines())}


def _named_in_full(ref: str, refs: Mapping[str, str]) -> Resolved | None:
    """The commit of ``HEAD`` or of a name such as ``refs/heads/main``."""
    commit = refs.get(f"{ref}^{{}}") or refs.get(ref)
    if not commit or not (ref == "HEAD" or ref.startswith("refs/")):
        return None
    kinds = {"refs/heads/": "branch", "refs/tags/": "tag"}
    return Resolved(commit, next((kind for prefix, kind in kinds.items() if ref.startswith(prefix)), "head"))


def _branch_or_tag(url: str, ref: str, refs: Mapping[str, str]) -> Resolved | None:
    branch = refs.get(f"refs/heads/{ref}")
    tag = refs.get(f"refs/tags/{ref}^{{}}") or refs.get(f"refs/tags/{ref}")
    if branch and tag and branch != tag:
        raise FormulaError(
            f"{ref} of {url} is a branch at {branch[:12]} and a tag at {tag[:12]}; "
            f"say refs/heads/{ref} or refs/tags/{ref} in the pillar."
        )
    if branch:
        return Resolved(branch, "branch")
    return Resolved(tag, "tag") if tag else None


def _by_beginning(origin: Origin, ref: str, mirrors: str) -> str:
    """The full id of a commit that is known by its beginning; only the origin's own repository can tell."""
    with _mirror(origin, mirrors) as mirror:
        question = ["-C", mirror, "rev-parse", "--quiet", "--verify", f"{ref}^{{commit}}"]
        # The mirror may be old, and know one commit of that beginning where there are two by now.
        _update(origin, mirror, mirrors)
        if not git.test(question):
            many = _local(["-C", mirror, "rev-parse", f"--disambiguate={ref}"], f"{mirror} cannot be read").split()
            if len(many) > 1:
                raise FormulaError(f"{ref} of {origin.url} may be several commits; say more of it.")
            return ""
        return _local(question, f"{mirror} cannot be read").strip()


def _commits(mirror: str, span: str) -> list[dict[str, str]]:
    form = "--format=%H%x00%an%x00%aI%x00%s"
    lines = _local(["-C", mirror, "log", form, span, "--"], f"{mirror} cannot be read").split("\n")
    names = ("commit", "author", "at", "subject")
    return [dict(zip(names, line.split("\0", 3), strict=True)) for line in lines if line]


def _fetch(origin: Origin, commit: str, mirror: str, mirrors: str) -> bool:
    """Bring a commit with all that it needs into the mirror; True when the origin had to be asked."""
    if _whole(mirror, commit):
        return False
    _update(origin, mirror, mirrors)
    if _has(mirror, commit) and not _whole(mirror, commit):
        # What git takes for granted, since a branch has it, is not there.
        _renew(origin, mirror, mirrors)
    if not _has(mirror, commit):
        # A commit that no branch holds: many servers give it when asked for by its id.
        what = f"{origin.url} has no commit {commit} (was the branch rewritten?)"
        _transfer(origin, mirror, mirrors, what, "--no-tags", spans=[f"{commit}:refs/kept/{commit}"])
    if not _whole(mirror, commit):
        raise FormulaError(f"commit {commit} of {origin.url} came without all of its files; look at that repository.")
    return True


def _update(origin: Origin, mirror: str, mirrors: str) -> None:
    """Bring all branches and tags into the mirror; where it is damaged, into a new one."""
    try:
        _transfer_all(origin, mirror, mirrors)
    except FormulaError:
        if git.test(["-C", mirror, "fsck", "--connectivity-only"], timeout=git.TRANSFER_TIMEOUT):
            raise
        _renew(origin, mirror, mirrors)


def _renew(origin: Origin, mirror: str, mirrors: str) -> None:
    """Make a mirror anew. The damaged one goes when the origin has given all: other commits may still be had of it."""
    fresh, old = f"{mirror}.new", f"{mirror}.old"
    _init(fresh)
    _transfer_all(origin, fresh, mirrors)
    os.rename(mirror, old)
    os.rename(fresh, mirror)
    shutil.rmtree(old, ignore_errors=True)


def _transfer_all(origin: Origin, mirror: str, mirrors: str) -> None:
    spans = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
    _transfer(origin, mirror, mirrors, f"the origin {origin.url} cannot be fetched", "--prune", spans=spans)


def _transfer(origin: Origin, mirror: str, mirrors: str, what: str, *options: str, spans: Sequence[str]) -> None:
    url = origin.url
    args = ["-C", mirror, *DURABLE, "fetch", "-q", "--force", *options, *_reader(url), "--", url, *spans]
    _run(origin, args, what, mirrors)


@contextlib.contextmanager
def _mirror(origin: Origin, mirrors: str) -> Iterator[str]:
    """The mirror of an origin, ours alone until the end. One that a kill has left unusable is made anew."""
    mirror = place_of(origin.url, mirrors)
    os.makedirs(mirrors, exist_ok=True)
    with files.locked(f"{mirror}.lock"):
        for name in ("new", "old"):
            shutil.rmtree(f"{mirror}.{name}", ignore_errors=True)
        if not os.path.isdir(mirror) or not git.test(["-C", mirror, "rev-parse", "--is-bare-repository"]):
            _init(mirror)
        _sweep(mirror)
        yield mirror


def _init(mirror: str) -> None:
    shutil.rmtree(mirror, ignore_errors=True)
    _local(["init", "-q", "--template=", "--bare", "--", mirror], f"{mirror} cannot be made")


def _sweep(mirror: str) -> None:
    """Remove git's locks and drafts. We hold the lock of the mirror, so they are a killed run's."""
    objects = os.path.join(glob.escape(mirror), "objects")
    left = [*glob.glob(f"{objects}/*/tmp_*"), *glob.glob(f"{objects}/tmp_*"), *glob.glob(f"{objects}/incoming-*")]
    for folder, folders, names in os.walk(mirror):
        if folder == mirror:
            folders.remove("objects")
        # No branch or tag can have such a name.
        left += [os.path.join(folder, name) for name in names if name.endswith(".lock")]
    for path in left:
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)


def place_of(url: str, mirrors: str) -> str:
    """Return the directory of the mirror of an address, below the directory of all of them."""
    return os.path.join(mirrors, hashlib.sha256(url.encode("utf-8")).hexdigest()[:16] + ".git")


def _has(mirror: str, commit: str) -> bool:
    return git.test(["-C", mirror, "cat-file", "-e", f"{commit}^{{commit}}"])


def _whole(mirror: str, commit: str) -> bool:
    """Say whether a commit is there with all that it needs, and note it: it is looked through once."""
    note = f"refs/kept/{commit}"
    if git.test(["-C", mirror, "rev-parse", "--quiet", "--verify", f"{note}^{{commit}}"]):
        return True
    # What other notes stand for is not looked through again.
    if not _connected(mirror, commit, "--not", "--glob=refs/kept/*"):
        return False
    _local(["-C", mirror, *DURABLE, "update-ref", note, commit], f"{mirror} cannot be written to")
    return True


def _connected(mirror: str, commit: str, *but: str) -> bool:
    args = ["-C", mirror, "rev-list", "--objects", "--quiet", commit, *but]
    return git.test(args, timeout=git.TRANSFER_TIMEOUT)


def _run(origin: Origin, args: Sequence[str], what: str, mirrors: str, timeout: int = git.TRANSFER_TIMEOUT) -> str:
    keys = os.path.join(os.path.dirname(os.path.abspath(mirrors)), "keys")
    return git.run(origin, args, what, keys, timeout=timeout)


def _reader(url: str) -> list[str]:
    """For an origin that is a path: git may read one of another user's. Reading obeys none of its configuration."""
    # As a command, since the option "safe.directory" does not reach the process that reads in any other way.
    return ["--upload-pack=git -c safe.directory='*' upload-pack"] if url.startswith(("/", "file://")) else []


def _local(args: Sequence[str], what: str) -> str:
    """Run git on this host's own repositories: no origin is asked."""
    return git.local(args, what)


def _near(ref: str, refs: Mapping[str, str]) -> str:
    names = {name.split("/", 2)[2] for name in refs if name.startswith(("refs/heads/", "refs/tags/"))}
    near = difflib.get_close_matches(ref, sorted(n for n in names if not n.endswith("^{}")), n=3, cutoff=0.5)
    return f" (near: {', '.join(near)})" if near else ""
