"""
Patches: unified diffs from Salt's file server, applied to a directory in order, with no fuzz.

``git apply`` does it: it takes a patch whole or not at all, writes new files instead of changing existing ones (which
may be hard links shared with another release), and refuses paths that lead outside.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_patch"

HUNK = re.compile(r"^@@ -(\d+)(?:,\d+)? \+\d+(?:,\d+)? @@", re.MULTILINE)


def __virtual__() -> str:
    return __virtualname__


def read(sources: list[str]) -> list[dict]:
    """
    Read patches from the file server.

    sources
        Their addresses, ``salt://...``.

    Returns ``[{"patch": address, "sha256": hex, "path": file on this host}]``. Raises ``CommandExecutionError`` that
    names one which is missing, or is no unified diff.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_patch.read '["salt://patches/01.patch"]'
    """
    found = []
    for source in sources:
        # An error of the file server and a missing file are both told by a false value.
        path = __salt__["cp.cache_file"](source)
        if not path:
            raise CommandExecutionError(
                f"{source} is not in the file server; add it, or correct patches in the pillar."
            )
        with open(path, "rb") as handle:
            data = handle.read()
        if not re.search(rb"^--- .*\n\+\+\+ ", data, re.MULTILINE) and b"\ndiff --git " not in b"\n" + data:
            raise CommandExecutionError(f"{source} is not a unified diff; make one with git diff or diff -u.")
        found.append({"patch": source, "sha256": hashlib.sha256(data).hexdigest(), "path": path})
    return found


def apply(directory: str, patches: list[dict], only: tuple[str, ...] = ()) -> list[dict]:
    """
    Apply patches to a directory, in order. One that is in it already is skipped.

    directory
        The directory that the paths of the patches start from.
    patches
        What ``read`` returned.
    only
        Beginnings of the paths that count: files of a patch elsewhere (tests, a changelog) are left out.

    Returns ``[{"patch", "sha256", "result": "applied" or "already applied", "files": [...], "left_out": [...]}]``.
    Raises ``CommandExecutionError`` that names patch, file and hunk; nothing of that patch is applied then.

    CLI Example: not for the command line; ``ckan_release.build`` uses it.
    """
    return [_apply(directory, patch, tuple(only)) for patch in patches]


def _apply(directory: str, patch: dict, only: tuple[str, ...]) -> dict:
    files, strip = _files(directory, patch)
    if not files:
        raise CommandExecutionError(f"{patch['patch']} changes no file; correct it, or remove it from the pillar.")
    kept = [name for name in files if not only or name.startswith(only)]
    left_out = [name for name in files if name not in kept]
    if not kept:
        raise CommandExecutionError(
            f"{patch['patch']} changes {', '.join(files[:3])}, and nothing under {' or '.join(only)}; correct it."
        )
    options = [f"-p{strip}", *(f"--exclude={_literal(name)}" for name in left_out)]
    result = "applied"
    failed = _git(directory, [*options, "--check"], patch)
    if failed["retcode"] != 0:
        if _git(directory, [*options, "--check", "--reverse"], patch)["retcode"] != 0:
            raise CommandExecutionError(
                f"{patch['patch']} does not apply: {_where(failed['stderr'], patch, strip)}; adapt the patch to this "
                "version, or remove it from the pillar if it is no longer needed."
            )
        result = "already applied"
    else:
        done = _git(directory, options, patch)
        if done["retcode"] != 0:
            raise CommandExecutionError(f"{patch['patch']} could not be applied: {done['stderr'].strip()}.")
    about = {"patch": patch["patch"], "sha256": patch["sha256"], "result": result, "files": kept}
    return {**about, "left_out": left_out} if left_out else about


def _files(directory: str, patch: dict) -> tuple[list[str], int]:
    """The files that a patch is about, and how many leading parts of its paths are not part of the names."""
    found: dict[int, list[str]] = {}
    for strip in (1, 0):
        said = _git(directory, [f"-p{strip}", "--numstat", "-z"], patch)
        if said["retcode"] != 0:
            if "invalid path" in said["stderr"] or "outside" in said["stderr"]:
                raise CommandExecutionError(f"{patch['patch']} leads outside: {said['stderr'].strip()}.")
            continue
        found[strip] = [entry.split("\t", 2)[2] for entry in said["stdout"].split("\0") if entry.count("\t") == 2]
    if not found:
        raise CommandExecutionError(f"{patch['patch']} cannot be read as a patch: {said['stderr'].strip()}.")
    # With `a/` and `b/` before the names or without: the names that are there decide.
    for strip, names in found.items():
        if any(os.path.lexists(os.path.join(directory, name)) for name in names):
            return names, strip
    strip = next(iter(found))
    return found[strip], strip


def _git(directory: str, options: list[str], patch: dict) -> dict:
    return __salt__["cmd.run_all"](
        ["git", "apply", "--whitespace=nowarn", *options, "--", patch["path"]],
        python_shell=False,
        cwd=directory,
        # As if there were no repository: inside one, git apply skips what is not below its own directory, in silence.
        env={"LC_ALL": "C.UTF-8", "GIT_DIR": _NOWHERE, "GIT_CEILING_DIRECTORIES": os.path.dirname(directory)},
        reset_system_locale=False,
        output_loglevel="quiet",
        ignore_retcode=True,
        umask="022",
    )


def _where(text: str, patch: dict, strip: int) -> str:
    """What git complains of, with the number of the hunk."""
    found = re.search(r"^error: patch failed: (.*):(\d+)$", text, re.MULTILINE)
    if not found:
        lines = [line.removeprefix("error: ").strip() for line in text.splitlines() if line.startswith("error: ")]
        return "; ".join(lines) or "no message"
    name, line = found[1], int(found[2])
    with open(patch["path"], encoding="utf-8", errors="replace") as handle:
        parts = re.split(r"^--- ", handle.read(), flags=re.MULTILINE)
    for part in parts[1:]:
        header = part.splitlines()[1] if len(part.splitlines()) > 1 else ""
        target = header.removeprefix("+++ ").partition("\t")[0].strip().strip('"')
        if target.split("/", strip)[-1] == name or part.partition("\t")[0].partition("\n")[0].endswith(name):
            starts = [int(start) for start in HUNK.findall(part)]
            if line in starts:
                return f"{name}, hunk {starts.index(line) + 1} (line {line})"
    return f"{name}, hunk at line {line}"


def _literal(name: str) -> str:
    """A path as git's pattern for it alone."""
    return re.sub(r"([*?\[\\])", r"\\\1", name)


# A path that is no repository, so that git looks for none.
_NOWHERE = os.path.join(tempfile.gettempdir(), "no-such-repository")
