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
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from attrs import evolve, frozen

from ckan_deploy.errors import FormulaError, InvalidArgument
from ckan_deploy.host import Host
from ckan_deploy.sources import seen, unidiff
from ckan_deploy.sources.pins import Patch
from ckan_deploy.sources.unidiff import Section
from ckan_deploy.system import processes
from ckan_deploy.system.processes import Done

GIT_TIMEOUT = 120
# Signs that a patch fits, but not at the place and in the state that it was made for.
INEXACT = re.compile(r"\(offset -?\d+ lines?\)|has type \d+, expected \d+")


@frozen
class Copy:
    """A patch of the file server on this host: its address, the hash of its bytes, and where it is."""

    patch: str
    sha256: str
    path: str


def read(host: Host, sources: Iterable[str]) -> list[Copy]:
    """
    Fetch patches from Salt's file server and see that each is a unified diff.

    host
        The host, which fetches them.
    sources
        Their addresses, ``salt://...``, in order.

    Returns them in the same order.

    Raises ``FormulaError`` that names the patch which has no such address, is not in the file server, is no unified
    diff, is damaged, or touches what a patch must not (a path that leads outside, ``.git``, a symbolic link, a
    submodule).
    """
    if isinstance(sources, str):
        raise InvalidArgument(f"sources is {sources!r}; use a list of salt:// addresses.")
    found = []
    for source in sources:
        if not isinstance(source, str) or not source.startswith("salt://") or ".." in source.split("/"):
            raise FormulaError(f"The patch {source!r} is no address of a file; write it as salt://path/name.")
        path = host.file(source)
        if not path:
            raise FormulaError(f"{source} is not in the file server; put the patch there or correct its address.")
        data = _content(source, path)
        unidiff.parse(data, source)
        found.append(Copy(source, hashlib.sha256(data).hexdigest(), path))
    return found


def apply(
    host: Host, directory: str, patches: Iterable[Copy | str], user: str = "", only: Iterable[str] = ()
) -> list[Patch]:
    """
    Apply patches to a directory, in order.

    A patch that is there already is skipped and that is said. One that does not apply changes nothing; those before it
    stay applied, so the directory is to be thrown away, or the call repeated.

    host
        The host, which fetches those that are given as addresses.
    directory
        Absolute path of the directory that the names in the patches start from: a checkout, or the ``site-packages``
        that holds the package. It may share files with other directories by hard links.
    patches
        What ``read`` returned, or addresses.
    user
        User who writes the files, and owns what is written. Default: whoever runs this.
    only
        Beginnings of names, such as ``ckan/``. A patch made for a repository also touches files that an installed
        package does not have (tests, a changelog): what lies elsewhere is left out and named. Default: everything.

    Returns what became of each: ``applied`` or ``already applied``, the names of its files with hashes of what they
    hold now, and what was left out.

    Raises ``InvalidArgument`` for wrong arguments; ``FormulaError`` that names the patch, the file and the hunk when
    one does not apply, is half applied already, or touches nothing of ``only``.
    """
    if not isinstance(directory, str) or not os.path.isabs(directory):
        raise InvalidArgument(f"directory is {directory!r}; use an absolute path.")
    if isinstance(patches, str) or isinstance(only, str):
        raise InvalidArgument("patches and only are lists; write one patch as '[salt://patches/x.patch]'.")
    directory = os.path.realpath(directory)
    if not os.path.isdir(directory):
        raise FormulaError(f"{directory} is no directory; name the one that the patches are for.")
    wanted = [read(host, [patch])[0] if isinstance(patch, str) else patch for patch in patches]
    done = [_apply_one(directory, patch, user, tuple(only)) for patch in wanted]
    # When all are applied: a later one may change a file of an earlier one.
    return [evolve(one, hashes=tuple(seen.digest(os.path.join(directory, name)) for name in one.files)) for one in done]


def _apply_one(directory: str, patch: Copy, user: str, only: tuple[str, ...]) -> Patch:
    source = patch.patch
    data = _content(source, patch.path)
    if hashlib.sha256(data).hexdigest() != patch.sha256:
        raise FormulaError(f"{source} was changed since it was read; try again.")
    diff = unidiff.parse(data, source)
    sections, left_out = _selection(source, diff.sections, only)
    names = sorted({name for section in sections for name in section.names})
    _refuse_links(source, directory, names)
    git = _Git(source, directory, diff.level, sections, user)
    forward, reverse = git.check(), git.check(reverse=True)
    # Where lines repeat, a patch can fit at its own place and, the other way round, at a second one. The exact fit
    # tells which it is. So a patch is not applied twice, and not passed over for a likeness elsewhere.
    if forward.fits and reverse.fits and forward.exact == reverse.exact:
        raise FormulaError(
            f"{source} could be applied to {directory} as well as taken back, so nothing tells whether it is there "
            f"already ({', '.join(names)}); make it anew with more context (git diff -U10) and deploy again."
        )
    if reverse.fits and not (forward.fits and forward.exact):
        result = "already applied"
    elif forward.fits:
        git.apply()
        result = "applied"
    else:
        raise FormulaError(git.reason(forward))
    return Patch(source, patch.sha256, result, tuple(names), left_out)


class _Check(NamedTuple):
    """What git says of applying a patch: whether it fits, whether without any shift, and in which words."""

    fits: bool
    exact: bool
    output: str


class _Git:
    """``git apply`` of a patch, or of a part of it, in a directory."""

    def __init__(self, source: str, directory: str, level: int, sections: Sequence[Section], user: str) -> None:
        self.source = source
        self.directory = directory
        self.level = level
        self.sections = sections
        self.user = user

    def check(self, reverse: bool = False) -> _Check:
        done = self.run("--check", "-v", "--numstat", "-z", *(["--reverse"] if reverse else []))
        fits = done.retcode == 0
        if fits and not reverse:
            # What was looked at here must be what git writes to.
            names = sorted(entry.split("\t", 2)[-1] for entry in done.stdout.split("\0") if entry.strip())
            if names != sorted(section.name for section in self.sections):
                raise FormulaError(
                    f"{self.source} says in more than one way which files it is about; make it anew with git diff."
                )
        return _Check(fits, not INEXACT.search(done.stderr), done.stderr)

    def apply(self) -> None:
        done = self.run()
        if done.retcode != 0:
            # It was checked just before: what fails now is the writing.
            raise FormulaError(
                f"{self.source} fits, but cannot be written to {self.directory} ({_said(done.stderr)}); "
                f"correct that and deploy again."
            )

    def reason(self, failed: _Check) -> str:
        """Say in one sentence why the patch does not apply."""
        merged, missing = self.halves()
        if merged:
            others = [
                f"{section.name} has not" if forward.fits else _failure(self.sections, forward.output)
                for section, forward in missing
            ]
            have = ", ".join(section.name for section in merged)
            return (
                f"{self.source} is half in {self.directory} already: {have} has its part, {', '.join(others)}; "
                f"leave only what is missing in the patch and deploy again."
            )
        return (
            f"{self.source} does not apply to {self.directory}: {_failure(self.sections, failed.output)}; "
            f"make the patch anew against this version, or take it from the list, and deploy again."
        )

    def halves(self) -> tuple[list[Section], list[tuple[Section, _Check]]]:
        """Return the sections that the directory has already, and the others with what git says of them."""
        merged: list[Section] = []
        missing: list[tuple[Section, _Check]] = []
        names = [name for section in self.sections for name in section.names]
        if len(self.sections) > 1 and len(names) == len(set(names)):
            for section in self.sections:
                alone = _Git(self.source, self.directory, self.level, [section], self.user)
                forward = alone.check()
                if not forward.fits and alone.check(reverse=True).fits:
                    merged.append(section)
                else:
                    missing.append((section, forward))
        return merged, missing

    def run(self, *options: str) -> Done:
        program = shutil.which("git")
        if not program:
            raise FormulaError("git is not installed; install it and deploy again.")
        # A file, since standard input goes through text; without a name, so that nothing of it outlives a kill.
        with tempfile.TemporaryFile() as handle:
            handle.write(b"".join(section.data for section in self.sections))
            handle.flush()
            if self.user and os.geteuid() == 0:
                try:
                    os.fchown(handle.fileno(), pwd.getpwnam(self.user).pw_uid, -1)
                except KeyError as exc:
                    raise FormulaError(f"There is no user {self.user!r} here; create it first.") from exc
            name = f"/dev/fd/{handle.fileno()}"
            return processes.run(
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
                pass_fds=(handle.fileno(),),
            )


def _failure(sections: Iterable[Section], output: str) -> str:
    """Say what of a patch does not fit, from what ``git apply --check`` wrote."""
    found = re.search(r"^error: patch failed: (.*):(\d+)$", output, re.MULTILINE)
    if found:
        name, start = found[1], int(found[2])
        for section in sections:
            if name in section.names and start in section.hunks:
                hunk = f"hunk {section.hunks.index(start) + 1} of {name} (line {start})"
                if start in section.bare:
                    return f"{hunk} has no context lines (diff -U0?) and is not about the whole file"
                return f"{hunk} does not match the file"
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
        raise FormulaError(f"{source} cannot be read ({exc.strerror}); try again.") from exc


def _selection(
    source: str, sections: Sequence[Section], only: tuple[str, ...]
) -> tuple[Sequence[Section], tuple[str, ...]]:
    """Return the sections about files whose names begin as ``only`` says, and the names of the others."""
    if not only:
        return sections, ()
    kept: list[Section] = []
    left_out: set[str] = set()
    for section in sections:
        inside = [name for name in section.names if name.startswith(only)]
        if inside == section.names:
            kept.append(section)
        elif inside:
            raise FormulaError(
                f"{source} moves {section.old} to {section.new}, and only files in {', '.join(only)} are there; "
                f"make a patch of the change to {inside[0]} alone."
            )
        else:
            left_out.update(section.names)
    if not kept:
        raise FormulaError(
            f"{source} changes nothing in {', '.join(only)}, only {', '.join(sorted(left_out))}; take it from the list."
        )
    return kept, tuple(sorted(left_out))


def _refuse_links(source: str, directory: str, names: Iterable[str]) -> None:
    """Refuse to go through a symbolic link, or to put a file in its place, wherever it leads to."""
    for name in names:
        place = directory
        for part in name.split("/"):
            place = os.path.join(place, part)
            if os.path.islink(place):
                raise FormulaError(
                    f"{source} touches {name}, and {place} is a symbolic link; replace the link or correct the patch."
                )
