"""
Git origins of extensions: a ref becomes one commit, and a commit becomes a checkout.

A bare mirror of each origin is kept under ``shared/mirrors``, so a deploy fetches only what is new. Nothing here knows
what a release is.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import fnmatch
import hashlib
import os
import re
import shutil

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_source"

# Seconds that a server has to say which refs it has.
ASK_TIMEOUT = 30
COMMIT = re.compile(r"^[0-9a-f]{40}$")
SHORT_COMMIT = re.compile(r"^[0-9a-f]{7,39}$")


def __virtual__() -> str:
    return __virtualname__


def resolve(origin: dict, mirrors: str) -> dict:
    """
    Return the commit that the ref of a git origin stands for now.

    A branch is looked for first, then a tag (an annotated one gives the commit it is about), then a commit by the
    beginning of its id; a full commit id is taken as it is.

    origin
        The origin: ``url``, ``ref`` and its credentials (see ``ckan_git``).
    mirrors
        The directory that holds the bare mirrors of origins.

    Returns ``{"commit": 40 hex digits, "kind": "branch", "tag", "commit" or "head"}``. Raises
    ``CommandExecutionError`` when the origin does not answer, has no such ref, or has a branch and a tag of that name
    at different commits.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_source.resolve '{url: "https://git.example.org/x.git", ref: main}' /usr/lib/ckan/shared/mirrors
    """
    url, ref = origin["url"], origin["ref"]
    if COMMIT.match(ref):
        return {"commit": ref, "kind": "commit"}
    refs = _refs(origin, url, mirrors)
    if ref == "HEAD" or ref.startswith("refs/"):
        commit = refs.get(f"{ref}^{{}}") or refs.get(ref)
        if commit:
            kinds = {"refs/heads/": "branch", "refs/tags/": "tag"}
            return {"commit": commit, "kind": next((k for p, k in kinds.items() if ref.startswith(p)), "head")}
    branch = refs.get(f"refs/heads/{ref}")
    tag = refs.get(f"refs/tags/{ref}^{{}}") or refs.get(f"refs/tags/{ref}")
    if branch and tag and branch != tag:
        raise CommandExecutionError(
            f"{ref} of {url} is a branch at {branch[:12]} and a tag at {tag[:12]}; "
            f"say refs/heads/{ref} or refs/tags/{ref} in the pillar."
        )
    if branch or tag:
        return {"commit": branch or tag, "kind": "branch" if branch else "tag"}
    if SHORT_COMMIT.match(ref):
        found = _by_beginning(origin, ref, mirrors)
        if found:
            return {"commit": found, "kind": "commit"}
    raise CommandExecutionError(f"{url} has no branch or tag {ref}{_near(ref, refs)}; correct ref in the pillar.")


def checkout(origin: dict, commit: str, target: str, mirrors: str) -> dict:
    """
    Put one commit of a git origin into a new directory, with its submodules unless ``submodules`` is False.

    origin
        The origin: ``url`` and its credentials.
    commit
        The commit, 40 hex digits.
    target
        The directory to make; must not exist.
    mirrors
        The directory that holds the bare mirrors of origins.

    Returns ``{"commit": ..., "subject": ..., "fetched": bool}``. Raises ``CommandExecutionError`` when the commit
    cannot be had.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_source.checkout '{url: "https://git.example.org/x.git"}' \\
            0123456789012345678901234567890123456789 /tmp/x /usr/lib/ckan/shared/mirrors
    """
    url = origin["url"]
    with _mirror(origin, mirrors) as mirror:
        fetched = _fetch(origin, commit, mirror, mirrors)
        # A copy of its own: the mirror is root's, and the checkout is given to the build user.
        _local(["clone", "-q", "--no-hardlinks", "--no-checkout", "--", mirror, target], f"{target} cannot be made")
    what = f"commit {commit} of {url} cannot be checked out"
    _local(["-C", target, "checkout", "-q", "--detach", commit, "--"], what)
    _local(["-C", target, "remote", "set-url", "origin", url], what)
    if origin.get("submodules", True) and os.path.isfile(os.path.join(target, ".gitmodules")):
        _run(
            origin, ["-C", target, "submodule", "--quiet", "update", "--init", "--recursive"],
            f"the submodules of {url} cannot be had", mirrors,
        )  # fmt: skip
    subject = _local(["-C", target, "log", "-1", "--format=%s"], what).strip()
    return {"commit": commit, "subject": subject, "fetched": fetched}


def log(url: str, old: str, new: str, mirrors: str) -> dict:
    """
    List the commits between two, as far as the mirror on this host knows them.

    url
        The address of the origin.
    old, new
        Two commits.
    mirrors
        The directory that holds the bare mirrors of origins.

    Returns ``{"known": bool, "ahead": [{"commit", "subject"}], "behind": [...]}``: what ``new`` has and ``old`` has
    not, newest first, and the other way round.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_source.log https://git.example.org/x.git 1a2b3c4 5d6e7f8 /usr/lib/ckan/shared/mirrors
    """
    mirror = _place(url, mirrors)
    if not all(os.path.isdir(mirror) and _has(mirror, commit) for commit in (old, new)):
        return {"known": False, "ahead": [], "behind": []}
    sides = {}
    for side, span in (("ahead", f"{old}..{new}"), ("behind", f"{new}..{old}")):
        lines = _local(["-C", mirror, "log", "--format=%H %s", span, "--"], f"{mirror} cannot be read").splitlines()
        sides[side] = [{"commit": line[:40], "subject": line[41:]} for line in lines]
    return {"known": True, **sides}


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

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_source.added https://git.example.org/x.git '' 5d6e7f8 /usr/lib/ckan/shared/mirrors '*.py'
    """
    mirror, what = _place(url, mirrors), f"the mirror of {url} cannot be read"
    if not all(os.path.isdir(mirror) and _has(mirror, commit) for commit in (old, new) if commit):
        return []
    if old:
        span = ["diff", "--name-only", "--diff-filter=A", "--no-renames", old, new, "--", pattern]
        return _local(["-C", mirror, *span], what).splitlines()
    listed = _local(["-C", mirror, "ls-tree", "-r", "--name-only", new], what).splitlines()
    return fnmatch.filter(listed, pattern)


def compare_upstream(origin: dict, commit: str, mirrors: str) -> dict:
    """
    Say how far a commit of a fork is from the head of the origin it was forked from.

    origin
        The origin, with ``upstream``.
    commit
        The commit.
    mirrors
        The directory that holds the bare mirrors of origins.

    Returns ``{"url", "commit", "ahead": n, "behind": n}``. Raises ``CommandExecutionError`` when the upstream does not
    answer.

    CLI Example: not for the command line; ``ckan_release.plan`` uses it.
    """
    # A stranger's server: the keys of the fork are not for it.
    upstream = {"url": origin["upstream"], "host_keys": origin.get("host_keys")}
    with _mirror(origin, mirrors) as mirror:
        _fetch(origin, commit, mirror, mirrors)
        what = f"the upstream {upstream['url']} cannot be fetched"
        _transfer(upstream, mirror, mirrors, what, "--no-tags", spans=["HEAD:refs/upstream/head"])
        head = _local(["-C", mirror, "rev-parse", "refs/upstream/head"], f"{mirror} cannot be read").strip()
        counts = _local(["-C", mirror, "rev-list", "--left-right", "--count", f"{commit}...{head}", "--"], mirror)
    ahead, behind = map(int, counts.split())
    return {"url": upstream["url"], "commit": head, "ahead": ahead, "behind": behind}


def _refs(origin: dict, url: str, mirrors: str) -> dict[str, str]:
    text = _run(
        origin,
        ["ls-remote", *_reader(url), "--", url],
        f"the origin {url} cannot be read",
        mirrors,
        timeout=ASK_TIMEOUT,
    )
    return {name: commit for commit, _, name in (line.partition("\t") for line in text.splitlines())}


def _by_beginning(origin: dict, ref: str, mirrors: str) -> str:
    """The full id of a commit that is known by its beginning; only the origin's own repository can tell."""
    with _mirror(origin, mirrors) as mirror:
        question = ["-C", mirror, "rev-parse", "--quiet", "--verify", f"{ref}^{{commit}}"]
        # The mirror may be old, and know one commit of that beginning where there are two by now.
        _update(origin, mirror, mirrors)
        if not __salt__["ckan_git.test"](question):
            many = _local(["-C", mirror, "rev-parse", f"--disambiguate={ref}"], f"{mirror} cannot be read").split()
            if len(many) > 1:
                raise CommandExecutionError(f"{ref} of {origin['url']} may be several commits; say more of it.")
            return ""
        return _local(question, f"{mirror} cannot be read").strip()


def _fetch(origin: dict, commit: str, mirror: str, mirrors: str) -> bool:
    """Bring a commit into the mirror; True when the origin had to be asked."""
    if _has(mirror, commit):
        return False
    _update(origin, mirror, mirrors)
    if not _has(mirror, commit):
        # A commit that no branch holds: many servers give it when asked for by its id.
        what = f"{origin['url']} has no commit {commit} (was the branch rewritten?)"
        _transfer(origin, mirror, mirrors, what, "--no-tags", spans=[f"{commit}:refs/kept/{commit}"])
    return True


def _update(origin: dict, mirror: str, mirrors: str) -> None:
    spans = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
    _transfer(origin, mirror, mirrors, f"the origin {origin['url']} cannot be fetched", "--prune", spans=spans)


def _transfer(origin: dict, mirror: str, mirrors: str, what: str, *options: str, spans: list[str]) -> None:
    url = origin["url"]
    args = ["-C", mirror, "fetch", "-q", "--force", *options, *_reader(url), "--", url, *spans]
    _run(origin, args, what, mirrors)


@contextlib.contextmanager
def _mirror(origin: dict, mirrors: str):
    """The mirror of an origin, ours alone until the end. One that a kill has left unusable is made anew."""
    mirror = _place(origin["url"], mirrors)
    os.makedirs(mirrors, exist_ok=True)
    with open(f"{mirror}.lock", "w", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if not os.path.isdir(mirror) or not __salt__["ckan_git.test"](
            ["-C", mirror, "rev-parse", "--is-bare-repository"]
        ):
            shutil.rmtree(mirror, ignore_errors=True)
            _local(["init", "-q", "--bare", "--", mirror], f"{mirror} cannot be made")
        for name in ("shallow.lock", "packed-refs.lock", "config.lock", "HEAD.lock"):
            # We hold the lock of the mirror: what is left of git's own is a killed run's.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(mirror, name))
        yield mirror


def _place(url: str, mirrors: str) -> str:
    return os.path.join(mirrors, hashlib.sha256(url.encode("utf-8")).hexdigest()[:16] + ".git")


def _has(mirror: str, commit: str) -> bool:
    return __salt__["ckan_git.test"](["-C", mirror, "cat-file", "-e", f"{commit}^{{commit}}"])


def _run(origin: dict, args: list[str], what: str, mirrors: str, **options) -> str:
    keys = os.path.join(os.path.dirname(os.path.abspath(mirrors)), "keys")
    return __salt__["ckan_git.run"](origin, args, what, keys, **options)


def _reader(url: str) -> list[str]:
    """For an origin that is a path: git may read one of another user's. Reading obeys none of its configuration."""
    # As a command, since the option "safe.directory" does not reach the process that reads in any other way.
    return ["--upload-pack=git -c safe.directory='*' upload-pack"] if url.startswith(("/", "file://")) else []


def _local(args: list[str], what: str) -> str:
    """Run git on this host's own repositories: no origin is asked."""
    return __salt__["ckan_git.run"]({"url": "/"}, args, what, "/nonexistent")


def _near(ref: str, refs: dict) -> str:
    names = {name.split("/", 2)[2] for name in refs if name.startswith(("refs/heads/", "refs/tags/"))}
    near = difflib.get_close_matches(ref, sorted(n for n in names if not n.endswith("^{}")), n=3, cutoff=0.5)
    return f" (near: {', '.join(near)})" if near else ""
