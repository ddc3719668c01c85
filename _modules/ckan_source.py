"""
Origins of extensions: a git address and a ref become one commit, and a commit becomes a checkout.

A bare mirror of each origin is kept under ``shared/mirrors``, so a deploy fetches only what is new. Nothing here
knows what a release is.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_source"

COMMIT = re.compile(r"^[0-9a-f]{40}$")
GIT_TIMEOUT = 300


def __virtual__() -> str:
    return __virtualname__


def resolve(url: str, ref: str) -> str:
    """
    Return the commit that a ref of a git origin stands for now.

    A branch is looked for first, then a tag (an annotated one gives the commit it is about); a full commit id is
    taken as it is.

    url
        The address of the origin.
    ref
        A branch, a tag, a full ref name, ``HEAD`` or a commit id of 40 hex digits.

    Returns 40 hex digits. Raises ``CommandExecutionError`` when the origin does not answer, has no such ref, or
    has a branch and a tag of that name at different commits.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_source.resolve https://example.org/ckanext-mycity.git main
    """
    if COMMIT.match(ref):
        return ref
    refs = {}
    for line in _git(["ls-remote", "--", url], f"the origin {url} cannot be read").splitlines():
        commit, _, name = line.partition("\t")
        refs[name] = commit
    if ref == "HEAD" or ref.startswith("refs/"):
        found = {refs[name] for name in (f"{ref}^{{}}", ref) if name in refs}
        if found:
            return refs.get(f"{ref}^{{}}") or refs[ref]
    branch = refs.get(f"refs/heads/{ref}")
    tag = refs.get(f"refs/tags/{ref}^{{}}") or refs.get(f"refs/tags/{ref}")
    if branch and tag and branch != tag:
        raise CommandExecutionError(
            f"{ref} of {url} is a branch at {branch[:12]} and a tag at {tag[:12]}; "
            f"say refs/heads/{ref} or refs/tags/{ref} in the pillar."
        )
    if branch or tag:
        return branch or tag
    raise CommandExecutionError(f"{url} has no branch or tag {ref}{_near(ref, refs)}; correct ref in the pillar.")


def checkout(url: str, commit: str, target: str, mirrors: str) -> dict:
    """
    Put one commit of a git origin into a new directory.

    url
        The address of the origin.
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

        salt web1 ckan_source.checkout https://example.org/x.git 0123456789012345678901234567890123456789 \\
            /tmp/x /usr/lib/ckan/shared/mirrors
    """
    mirror = os.path.join(mirrors, hashlib.sha256(url.encode()).hexdigest()[:16] + ".git")
    os.makedirs(mirrors, exist_ok=True)
    with _locked(f"{mirror}.lock"):
        fetched = _fetch(url, commit, mirror)
        _git(["clone", "-q", "--local", "--no-checkout", "--", mirror, target], f"{target} cannot be made")
    _git(["-C", target, "checkout", "-q", "--detach", commit, "--"], f"commit {commit} of {url} cannot be checked out")
    _git(["-C", target, "remote", "set-url", "origin", url], f"{target} cannot be set up")
    subject = _git(["-C", target, "log", "-1", "--format=%s"], f"{target} cannot be read").strip()
    return {"commit": commit, "subject": subject, "fetched": fetched}


def _fetch(url: str, commit: str, mirror: str) -> bool:
    """Bring a commit into the mirror; True when the origin had to be asked."""
    if os.path.isdir(mirror) and _has(mirror, commit):
        return False
    try:
        if not os.path.isdir(mirror):
            _git(["init", "-q", "--bare", mirror], f"{mirror} cannot be made")
        _git(
            ["-C", mirror, "fetch", "-q", "--prune", "--force", "--no-auto-gc", "--", url,
             "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"],
            f"the origin {url} cannot be fetched",
        )  # fmt: skip
        if not _has(mirror, commit):
            # A commit that no branch holds: many servers give it when asked for by its id.
            _git(
                ["-C", mirror, "fetch", "-q", "--", url, commit],
                f"{url} has no commit {commit} (was the branch rewritten?)",
            )
    except CommandExecutionError:
        if os.path.isdir(mirror) and not os.listdir(os.path.join(mirror, "refs", "heads")):
            shutil.rmtree(mirror, ignore_errors=True)
        raise
    return True


def _has(mirror: str, commit: str) -> bool:
    done = _run(["-C", mirror, "cat-file", "-e", f"{commit}^{{commit}}"])
    return done["retcode"] == 0


def _git(args: list[str], what: str) -> str:
    done = _run(args)
    if done["retcode"] != 0:
        lines = [line for line in done["stderr"].splitlines() if line.strip()]
        named = [line for line in lines if line.startswith(("fatal:", "error:", "ERROR:"))]
        raise CommandExecutionError(f"{what}: {(named or lines[-1:] or ['no message'])[0].strip()}")
    return done["stdout"]


def _run(args: list[str]) -> dict:
    return __salt__["cmd.run_all"](
        # ext:: runs any command; nobody can answer a question here.
        ["git", "-c", "protocol.ext.allow=never", *args],
        python_shell=False,
        env={"GIT_TERMINAL_PROMPT": "0", "GIT_SSH_COMMAND": "ssh -oBatchMode=yes", "LC_ALL": "C.UTF-8"},
        reset_system_locale=False,
        output_loglevel="quiet",
        ignore_retcode=True,
        timeout=GIT_TIMEOUT,
        stdin="",
    )


def _near(ref: str, refs: dict) -> str:
    import difflib

    names = {name.split("/", 2)[2] for name in refs if name.startswith(("refs/heads/", "refs/tags/"))}
    near = difflib.get_close_matches(ref, sorted(n for n in names if not n.endswith("^{}")), n=3)
    return f" (near: {', '.join(near)})" if near else ""


@contextlib.contextmanager
def _locked(path: str):
    with open(path, "w", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
