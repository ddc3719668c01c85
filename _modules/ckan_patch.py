"""
Patches: ordered unified diffs from Salt's file server, applied to a directory, each one as a whole or not at all.

``git apply`` does the work, without fuzz: a hunk may have moved, but each of its context lines must be there. It never
writes into an existing file; it removes the file and makes a new one, so a file that shares its content with another
release by a hard link leaves that release as it is. It is told of no repository: then it does the same in a checkout,
in a subdirectory of a foreign repository (where it would otherwise skip every file in silence) and outside of any, and
no configuration and no ``.gitattributes`` change line ends.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import shutil
import tempfile
from collections.abc import Iterable
from typing import Any, NamedTuple

from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "ckan_patch"

GIT_TIMEOUT = 120
# Signs that a patch fits, but not at the place and in the state that it was made for.
INEXACT = re.compile(r"\(offset -?\d+ lines?\)|has type \d+, expected \d+")


def __virtual__() -> str:
    return __virtualname__


def read(sources: Iterable[str]) -> list[dict[str, str]]:
    """
    Fetch patches from Salt's file server and see that each is a unified diff.

    sources
        Their addresses, ``salt://...``, in order.

    Returns ``[{"patch": address, "sha256": hash of its bytes, "path": copy on this host}]`` in the same order.

    Raises CommandExecutionError that names the patch which has no such address, is not in the file server, is no
    unified diff, is damaged, or touches what a patch must not (a path that leads outside, ``.git``, a symbolic link,
    a submodule).

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_patch.read '[salt://patches/01-title.patch]'
    """
    if isinstance(sources, str):
        raise SaltInvocationError(f"sources is {sources!r}; use a list of salt:// addresses.")
    found = []
    for source in sources:
        if not isinstance(source, str) or not source.startswith("salt://") or ".." in source.split("/"):
            raise CommandExecutionError(f"The patch {source!r} is no address of a file; write it as salt://path/name.")
        path = __salt__["cp.cache_file"](source)
        if not path:
            raise CommandExecutionError(
                f"{source} is not in the file server; put the patch there or correct its address."
            )
        data = _content(source, path)
        __salt__["ckan_unidiff.parse"](data, source)
        found.append({"patch": source, "sha256": hashlib.sha256(data).hexdigest(), "path": path})
    return found


def apply(
    directory: str,
    patches: Iterable[dict[str, str] | str],
    user: str | None = None,
    only: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """
    Apply patches to a directory, in order.

    A patch that is there already is skipped and that is said. One that does not apply changes nothing; those before it
    stay applied, so the directory is to be thrown away, or the call repeated.

    directory
        Absolute path of the directory that the names in the patches start from: a checkout, or the ``site-packages``
        that holds the package. It may share files with other directories by hard links.
    patches
        What :py:func:`read` returned, or addresses.
    user
        User who writes the files, and owns what is written. Default: whoever runs this.
    only
        Beginnings of names, such as ``ckan/``. A patch made for a repository also touches files that an installed
        package does not have (tests, a changelog): what lies elsewhere is left out and named. Default: everything.

    Returns ``[{"patch", "sha256", "result": "applied" or "already applied", "files": [names]}]``, with
    ``"left_out": [names]`` where something was left out.

    Raises SaltInvocationError for wrong arguments; CommandExecutionError that names the patch, the file and the hunk
    when one does not apply, is half applied already, or touches nothing of ``only``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_patch.apply /usr/lib/ckan/default/src/ckan '[salt://patches/01-title.patch]'
    """
    if not isinstance(directory, str) or not os.path.isabs(directory):
        raise SaltInvocationError(f"directory is {directory!r}; use an absolute path.")
    if isinstance(patches, str) or isinstance(only, str):
        raise SaltInvocationError("patches and only are lists; write one patch as '[salt://patches/x.patch]'.")
    directory = os.path.realpath(directory)
    if not os.path.isdir(directory):
        raise CommandExecutionError(f"{directory} is no directory; name the one that the patches are for.")
    wanted = [read([patch])[0] if isinstance(patch, str) else patch for patch in patches]
    return [_apply_one(directory, patch, user, tuple(only)) for patch in wanted]


def _apply_one(directory: str, patch: dict[str, str], user: str | None, only: tuple[str, ...]) -> dict[str, Any]:
    source = patch["patch"]
    data = _content(source, patch["path"])
    if hashlib.sha256(data).hexdigest() != patch["sha256"]:
        raise CommandExecutionError(f"{source} was changed since it was read; try again.")
    diff = __salt__["ckan_unidiff.parse"](data, source)
    sections, left_out = _selection(source, diff["sections"], only)
    files = sorted({name for section in sections for name in _names(section)})
    _refuse_links(source, directory, files)
    git = _Git(source, directory, diff["level"], sections, user)
    forward, reverse = git.check(), git.check(reverse=True)
    # Where lines repeat, a patch can fit at its own place and, the other way round, at a second one. The exact fit
    # tells which it is. So a patch is not applied twice, and not passed over for a likeness elsewhere.
    if forward.fits and reverse.fits and forward.exact == reverse.exact:
        raise CommandExecutionError(
            f"{source} could be applied to {directory} as well as taken back, so nothing tells whether it is there "
            f"already ({', '.join(files)}); make it anew with more context (git diff -U10) and deploy again."
        )
    if reverse.fits and not (forward.fits and forward.exact):
        result = "already applied"
    elif forward.fits:
        git.apply()
        result = "applied"
    else:
        raise CommandExecutionError(git.reason(forward))
    done = {"patch": source, "sha256": patch["sha256"], "result": result, "files": files}
    return {**done, "left_out": left_out} if left_out else done


class _Check(NamedTuple):
    """What git says of applying a patch: whether it fits, whether without any shift, and in which words."""

    fits: bool
    exact: bool
    output: str


class _Git:
    """``git apply`` of a patch, or of a part of it, in a directory."""

    def __init__(self, source: str, directory: str, level: int, sections: list[dict], user: str | None) -> None:
        self.source = source
        self.directory = directory
        self.level = level
        self.sections = sections
        self.user = user or ""

    def check(self, reverse: bool = False) -> _Check:
        done = self.run("--check", "-v", "--numstat", "-z", *(["--reverse"] if reverse else []))
        fits = done["retcode"] == 0
        if fits and not reverse:
            # What was looked at here must be what git writes to.
            names = sorted(entry.split("\t", 2)[-1] for entry in done["stdout"].split("\0") if entry.strip())
            if names != sorted(map(_name, self.sections)):
                raise CommandExecutionError(
                    f"{self.source} says in more than one way which files it is about; make it anew with git diff."
                )
        return _Check(fits, not INEXACT.search(done["stderr"]), done["stderr"])

    def apply(self) -> None:
        done = self.run()
        if done["retcode"] != 0:
            # It was checked just before: what fails now is the writing.
            raise CommandExecutionError(
                f"{self.source} fits, but cannot be written to {self.directory} ({_said(done['stderr'])}); "
                f"correct that and deploy again."
            )

    def reason(self, failed: _Check) -> str:
        """Say in one sentence why the patch does not apply."""
        sections = self.sections
        merged, missing = [], []
        names = [name for section in sections for name in _names(section)]
        if len(sections) > 1 and len(names) == len(set(names)):
            for section in sections:
                alone = _Git(self.source, self.directory, self.level, [section], self.user)
                forward = alone.check()
                there = not forward.fits and alone.check(reverse=True).fits
                (merged if there else missing).append((section, forward))
        if merged:
            others = [
                f"{_name(section)} has not" if forward.fits else _failure(sections, forward.output)
                for section, forward in missing
            ]
            have = ", ".join(_name(section) for section, _ in merged)
            return (
                f"{self.source} is half in {self.directory} already: {have} has its part, {', '.join(others)}; "
                f"leave only what is missing in the patch and deploy again."
            )
        return (
            f"{self.source} does not apply to {self.directory}: {_failure(sections, failed.output)}; "
            f"make the patch anew against this version, or take it from the list, and deploy again."
        )

    def run(self, *options: str) -> dict[str, Any]:
        program = shutil.which("git")
        if not program:
            raise CommandExecutionError("git is not installed; install it and deploy again.")
        # A file, since standard input goes through text; in a directory of its own, which that user can read.
        with tempfile.TemporaryDirectory(prefix="ckan-patch-") as folder:
            name = os.path.join(folder, "patch")
            with open(name, "xb") as handle:
                handle.write(b"".join(section["data"] for section in self.sections))
            if self.user and os.geteuid() == 0:
                try:
                    entry = pwd.getpwnam(self.user)
                except KeyError as exc:
                    raise CommandExecutionError(f"There is no user {self.user!r} here; create it first.") from exc
                for path in (folder, name):
                    os.chown(path, entry.pw_uid, entry.pw_gid)
            return __salt__["ckan_process.run"](
                [program, "apply", f"-p{self.level}", "--whitespace=nowarn", *options, name],
                user=self.user,
                cwd=self.directory,
                env={
                    "GIT_DIR": "/dev/null",
                    "GIT_CONFIG_GLOBAL": "/dev/null",
                    "GIT_CONFIG_NOSYSTEM": "1",
                    "LC_ALL": "C",
                },
                timeout=GIT_TIMEOUT,
            )


def _failure(sections: list[dict], output: str) -> str:
    """Say what of a patch does not fit, from what ``git apply --check`` wrote."""
    found = re.search(r"^error: patch failed: (.*):(\d+)$", output, re.MULTILINE)
    if found:
        name, start = found[1], int(found[2])
        for section in sections:
            if name in _names(section) and start in section["hunks"]:
                return f"hunk {section['hunks'].index(start) + 1} of {name} (line {start}) does not match the file"
    found = re.search(r"^error: (.*): No such file or directory$", output, re.MULTILINE)
    if found:
        return f"{found[1]} does not exist"
    found = re.search(r"^error: (.*): already exists in working directory$", output, re.MULTILINE)
    if found:
        return f"{found[1]} is to be made and exists with another content"
    return f"git says: {_said(output)}"


def _said(output: str) -> str:
    """Return the line with which git says what is wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next((line for line in lines if re.match("error: |fatal: ", line)), (lines or ["nothing"])[-1])


def _content(source: str, path: str) -> bytes:
    try:
        with open(path, "rb") as handle:
            return handle.read()
    except OSError as exc:
        raise CommandExecutionError(f"{source} cannot be read ({exc.strerror}); try again.") from exc


def _selection(source: str, sections: list[dict], only: tuple[str, ...]) -> tuple[list[dict], list[str]]:
    """Return the sections about files whose names begin as ``only`` says, and the names of the others."""
    if not only:
        return sections, []
    kept, left_out = [], set()
    for section in sections:
        inside = [name for name in _names(section) if name.startswith(only)]
        if inside == _names(section):
            kept.append(section)
        elif inside:
            raise CommandExecutionError(
                f"{source} moves {section['old']} to {section['new']}, and only files in {', '.join(only)} are there; "
                f"make a patch of the change to {inside[0]} alone."
            )
        else:
            left_out.update(_names(section))
    if not kept:
        raise CommandExecutionError(
            f"{source} changes nothing in {', '.join(only)}, only {', '.join(sorted(left_out))}; take it from the list."
        )
    return kept, sorted(left_out)


def _refuse_links(source: str, directory: str, names: list[str]) -> None:
    """Refuse to go through a symbolic link, or to put a file in its place, wherever it leads to."""
    for name in names:
        place = directory
        for part in name.split("/"):
            place = os.path.join(place, part)
            if os.path.islink(place):
                raise CommandExecutionError(
                    f"{source} touches {name}, and {place} is a symbolic link; replace the link or correct the patch."
                )


def _name(section: dict) -> str:
    """The one name by which git speaks of a section."""
    return section["new"] or section["old"]


def _names(section: dict) -> list[str]:
    return sorted({name for name in (section["old"], section["new"]) if name})
