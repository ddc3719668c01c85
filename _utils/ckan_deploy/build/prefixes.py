"""
Prefixes: the places that the files of a virtualenv name as its own, found in them and replaced by another one.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import NamedTuple

# A prefix ends where a file name cannot go on: /x/default is neither in /x/default2 nor in /y/x/default.
NAME_BYTES = rb"\w.+~@%\x80-\xff-"
# The kernel reads no more than this of a script's first line.
SHEBANG_MAX = 127
TRAMPOLINE = re.compile(
    rb"""#! ?/bin/sh\n'''exec' (?:'(?P<one>/[^'\n]*)'|"(?P<two>/[^"\n]*)"|(?P<bare>/[^\s'"]*))"""
    rb"""(?P<args>[^\n]*?) "\$0" "\$@"\n' '''\n"""
)
DIRECT = re.compile(rb"#![ \t]*(?P<bare>/[^\s]*)(?P<args>[^\n]*)\n")
SYSTEM_PREFIXES = ("", "/", "/usr", "/usr/local", "/opt")


class Shebang(NamedTuple):
    """A script's interpreter, the interpreter's arguments, and where the script goes on."""

    interpreter: str
    arguments: bytes
    end: int


def own(source: str) -> list[str]:
    """
    List the places that a virtualenv's files may name as its own, the longest first.

    source
        The virtualenv.
    """
    real = os.path.realpath(source)
    with open(f"{source}/pyvenv.cfg", encoding="utf-8") as handle:
        home = re.search(r"^home\s*=\s*(.*?)/bin/?\s*$", handle.read(), re.MULTILINE)
    foreign = (*SYSTEM_PREFIXES, home[1] if home else "")
    found = {
        prefix for prefix in _named(source)
        if prefix not in foreign and not any(inside(place, prefix) for place in (source, real))
    }  # fmt: skip
    return sorted({*found, real, source}, key=lambda item: (-len(item), item))


def forms(paths: Iterable[str]) -> list[bytes]:
    """
    Return how files may spell any of the paths: plain, and as in a URL. The longest first.

    paths
        Absolute paths.
    """
    plain = {item.rstrip("/") for item in paths if item.rstrip("/")}
    found = {form for item in plain for form in (item, urllib.parse.quote(item))}
    return [os.fsencode(form) for form in sorted(found, key=lambda item: (-len(item), item))]


def mentions(data: bytes, names: Iterable[bytes]) -> bool:
    """
    Say whether a file may name any of the paths: much faster than ``pattern``, and most files name none.

    data
        The content.
    names
        What ``forms`` returned.
    """
    return any(name in data for name in names)


def pattern(paths: Iterable[str]) -> re.Pattern[bytes]:
    """
    Compile an expression that finds any of the paths, plain or in a file URL; one that finds nothing without paths.

    paths
        Absolute paths.
    """
    names = forms(paths)
    if not names:
        return re.compile(rb"(?!)")
    body = b"|".join(map(re.escape, names))
    return re.compile(rb"(?:(?P<url>file://)|(?<![/%s]))(?P<prefix>%s)(?![%s])" % (NAME_BYTES, body, NAME_BYTES))


def replaced(data: bytes, old: re.Pattern[bytes], target: str, script: bool) -> bytes:
    """
    Return a file's content with every old prefix replaced.

    data
        The content.
    old
        What ``pattern`` returned.
    target
        The new prefix.
    script
        Whether it is a script: its first line is then one that the kernel can read.
    """
    plain, in_url = os.fsencode(target), urllib.parse.quote(target).encode()

    def replacement(match: re.Match[bytes]) -> bytes:
        return b"file://" + in_url if match["url"] else plain

    head = shebang(data) if script else None
    if not head or not is_python(head.interpreter):
        return old.sub(replacement, data)
    interpreter = os.fsencode(head.interpreter)
    moved = old.sub(replacement, interpreter)
    rest = old.sub(replacement, data[head.end :])
    if moved == interpreter:
        return data[: head.end] + rest
    line = b"#!" + moved + head.arguments + b"\n"
    if b" " in moved or len(line) > SHEBANG_MAX:
        # The kernel cuts such a first line; the shell and Python both read this one.
        line = b"#!/bin/sh\n'''exec' '" + moved + b"'" + head.arguments + b" \"$0\" \"$@\"\n' '''\n"
    return line + rest


def shebang(data: bytes) -> Shebang | None:
    """
    Return which interpreter a script asks for, None where it asks for none.

    data
        The beginning of the script.
    """
    match = TRAMPOLINE.match(data)
    if match:
        name = match["one"] or match["two"] or match["bare"]
    else:
        match = DIRECT.match(data)
        if not match:
            return None
        name = match["bare"]
    return Shebang(os.fsdecode(name), match["args"].rstrip(), match.end())


def is_python(name: str) -> bool:
    """
    Say whether an interpreter is a Python.

    name
        Its path.
    """
    return os.path.basename(name).startswith(("python", "pypy"))


def is_binary(data: bytes) -> bool:
    """
    Say whether a file is no text.

    data
        Its content.
    """
    return b"\0" in data[:8192]


def inside(path: str, folder: str) -> bool:
    """
    Say whether a path is a directory or lies in it, by its name.

    path, folder
        Absolute paths.
    """
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


def _named(source: str) -> Iterator[str]:
    """The prefixes that a virtualenv's scripts name."""
    for entry in os.scandir(f"{source}/bin"):
        if not entry.is_file(follow_symlinks=False):
            continue
        with open(entry.path, "rb") as handle:
            data = handle.read(8192)
        if entry.name == "activate":
            named = re.findall(rb"""VIRTUAL_ENV=['"]?(/[^'"\n]+)""", data)
            yield from (os.fsdecode(item).rstrip("/") for item in named)
        head = shebang(data)
        if head and is_python(head.interpreter) and os.path.basename(os.path.dirname(head.interpreter)) == "bin":
            prefix = os.path.dirname(os.path.dirname(head.interpreter))
            # A prefix with an interpreter but no pyvenv.cfg is an installation of Python, not a virtualenv.
            if os.path.exists(f"{prefix}/pyvenv.cfg") or not os.path.exists(head.interpreter):
                yield prefix
