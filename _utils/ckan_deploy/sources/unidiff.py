"""
Unified diffs taken apart: which files a patch is about, where its hunks start, what of it belongs to which file.

This is the reading half of ``patches``. It writes nothing and asks nobody; what it gives is compared with what
``git apply`` makes of the same bytes before anything is written.
"""

from __future__ import annotations

import re

from attrs import frozen

from ckan_deploy.errors import FormulaError

HUNK = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? @@")
HEADER = re.compile(
    rb"(?P<what>(?:rename|copy) (?:from|to)|(?:new file|deleted file|old|new) mode|index [0-9a-f]+\.\.[0-9a-f]+) "
    rb"(?P<value>.*)"
)
# What `diff -u` writes behind a name when it writes no tab.
TIME = re.compile(rb"[ \t]+\d{4}-\d\d-\d\d \d\d:\d\d:\d\d.*$")
QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"')
ESCAPE = re.compile(rb"\\([0-7]{3}|.)")
ESCAPES = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}


@frozen
class Section:
    """
    What a diff says about one file: its name before and after, '' where the file does not exist then; the bytes about
    it; the line of the old file at which each hunk starts, and those of them that have no line of context.
    """

    old: str
    new: str
    data: bytes
    hunks: tuple[int, ...]
    bare: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The one name by which git speaks of it."""
        return self.new or self.old

    @property
    def names(self) -> list[str]:
        """The names before and after, in order."""
        return sorted({name for name in (self.old, self.new) if name})


@frozen
class Diff:
    """A unified diff; ``level`` is how many leading directories (a/, b/) its own names have too many."""

    level: int
    sections: tuple[Section, ...]


def parse(data: bytes, source: str) -> Diff:
    """
    Read a unified diff: of git, of svn or of ``diff -u``, with the mail or log message around it.

    data
        The bytes of the patch.
    source
        What it is called in messages.

    Raises ``FormulaError`` for what is none, is damaged, or is about what a patch must not touch.
    """
    try:
        raw = _Reader(data).sections()
        levels = {section.level for section in raw if section.level is not None}
        if len(levels) > 1:
            raise ValueError("has names with and without a/ and b/ before them; make it anew with git diff")
        if not raw:
            raise ValueError("is no unified diff; make it with git diff or diff -u")
        # Where nothing tells (new files of a plain diff -u), the usual prefixes do.
        usual = all(name.startswith((b"a/", b"b/")) for section in raw for name in (section.old, section.new) if name)
        level = levels.pop() if levels else int(usual)
        return Diff(level, tuple(section.finished(level) for section in raw))
    except UnicodeDecodeError as exc:
        raise FormulaError(f"{source} names a file in another encoding than UTF-8; rename the file.") from exc
    except ValueError as exc:
        raise FormulaError(f"{source} {exc}.") from exc


class _Raw:
    """A section as it is being read, with the names as they stand there; b'' where the file does not exist."""

    def __init__(self, line: bytes = b"") -> None:
        self.lines: list[bytes] = []
        self.hunks: list[int] = []
        self.bare: list[int] = []
        self.old = self.new = b""
        self.level: int | None = None
        self.moved: dict[bytes, bytes] = {}
        self.git = bool(line)
        if line:
            self.header(line)

    def header(self, line: bytes) -> None:
        """Take the two names of a ``diff --git`` line: where a name has blanks, only their likeness parts them."""
        rest = line[len(b"diff --git ") :]
        pairs = []
        if b'"' in rest:
            tokens = [_unquoted(token) for token in re.findall(rb'"(?:[^"\\]|\\.)*"|\S+', rest)]
            pairs = [tuple(tokens)] if len(tokens) == 2 else []
        else:
            pairs = [(rest[:at], rest[at + 1 :]) for at in range(len(rest)) if rest[at : at + 1] == b" "]
        pairs = [pair for pair in pairs if _level(*pair) is not None] or pairs[:1]
        if pairs:
            self.names(*pairs[0])

    def names(self, old: bytes, new: bytes) -> None:
        self.old, self.new = (b"" if name == b"/dev/null" else name for name in (old, new))
        for name in (self.old, self.new):
            if name.startswith(b"/"):
                raise ValueError(f"names {name.decode()}, which is absolute; make it anew in the top directory")
        if self.old and self.new:
            self.level = _level(self.old, self.new)

    def extended(self, what: bytes, value: bytes) -> None:
        """Take a line that stands between ``diff --git`` and the hunks."""
        if what.endswith((b"mode",)) or what.startswith(b"index"):
            if value in (b"120000", b"160000"):
                raise ValueError("is about a symbolic link or a submodule; leave that out")
            if what == b"new file mode":
                self.old = b""
            if what == b"deleted file mode":
                self.new = b""
        else:
            end, name = what.split()[1], _unquoted(value)
            self.moved[end] = name
            # These names have no prefix, so the others tell by them.
            beside = self.old if end == b"from" else self.new
            if beside.endswith(name):
                self.level = beside[: -len(name)].count(b"/")

    def finished(self, level: int) -> Section:
        """Return the section with its names as they are in the directory."""
        if not self.git and self.old and self.new:
            # Two names for one file, as in `diff -u x.py.orig x.py`: git takes the one that the other begins with.
            old, new = (name.partition(b"/")[2] if level else name for name in (self.old, self.new))
            self.old = self.new = self.old if new.startswith(old) else self.new
        before, after = self.checked(self.old, b"from", level), self.checked(self.new, b"to", level)
        if not before and not after:
            raise ValueError("has a part that names no file; make it anew with git diff")
        return Section(before, after, b"".join(self.lines), tuple(self.hunks), tuple(self.bare))

    def checked(self, raw: bytes, end: bytes, level: int) -> str:
        """Return one of the two names without its prefix; refuse one that a patch must not touch."""
        name = self.moved.get(end) or (raw.partition(b"/")[2] if raw and level else raw)
        if raw and not name:
            raise ValueError(f"names {raw.decode()} without a/ or b/ before it; make it anew with git diff")
        text = name.decode("utf-8")
        parts = text.split("/")
        if ".." in parts or text.startswith("/"):
            raise ValueError(f"names {text}, which leads outside; correct the patch")
        if any(part.lower() == ".git" for part in parts):
            raise ValueError(f"names {text}, which belongs to git; correct the patch")
        return text


class _Reader:
    """Takes a unified diff apart as ``git apply`` does; the mail or log message around it does not count."""

    def __init__(self, data: bytes) -> None:
        self.lines = _lines(data)
        self.at = 0
        self.found: list[_Raw] = []

    def sections(self) -> list[_Raw]:
        while self.at < len(self.lines):
            line = self.lines[self.at].rstrip(b"\r\n")
            current = self.found[-1] if self.found else None
            if line.startswith(b"diff --git "):
                self.found.append(_Raw(line))
            elif self.names_follow():
                if not (current and current.git and not current.hunks):
                    self.found.append(_Raw())
                old, new = line, self.lines[self.at + 1].rstrip(b"\r\n")
                self.found[-1].names(_name(old[4:]), _name(new[4:]))
                self.take()
            elif current and (hunk := HUNK.match(line)):
                self.hunk(current, hunk)
                continue
            elif current and current.git and not current.hunks and (header := HEADER.fullmatch(line)):
                current.extended(header["what"], header["value"])
            elif re.fullmatch(rb"Binary files .* differ", line):
                raise ValueError("names a binary file without what is in it; make it anew with git diff --binary")
            self.take()
        return self.found

    def names_follow(self) -> bool:
        """Say whether here are the two lines with the names, and a hunk after them."""
        following = self.lines[self.at : self.at + 3]
        begins = (b"--- ", b"+++ ", b"@@ -")
        return len(following) == 3 and all(map(bytes.startswith, following, begins))

    def take(self) -> None:
        if self.found:
            self.found[-1].lines.append(self.lines[self.at])
        self.at += 1

    def hunk(self, current: _Raw, match: re.Match[bytes]) -> None:
        first, start = self.at + 1, int(match[1])
        current.hunks.append(start)
        old, new = (int(count) if count else 1 for count in (match[2], match[3]))
        lines, bare = old, True
        self.take()
        while old > 0 or new > 0:
            sign = self.lines[self.at][:1] if self.at < len(self.lines) else b""
            if sign not in (b" ", b"\n", b"\r", b"-", b"+", b"\\"):
                raise ValueError(f"is damaged: the hunk in its line {first} is shorter than it says; make it anew")
            bare = bare and sign in (b"-", b"+", b"\\")
            old -= sign in (b" ", b"\n", b"\r", b"-")
            new -= sign in (b" ", b"\n", b"\r", b"+")
            self.take()
        while self.at < len(self.lines) and self.lines[self.at].startswith(b"\\"):
            self.take()
        if bare:
            current.bare.append(start)
            # At the top it may be a new file, or a change of every line of one. Elsewhere lines of context are missing:
            # nothing but its number would say where it belongs.
            if start > 1 or (start == 1 and not lines):
                raise ValueError(
                    f"has no context lines (the hunk in its line {first}), so nothing tells where it belongs; make it "
                    "anew without -U0"
                )


def _lines(data: bytes) -> list[bytes]:
    """Split at line feeds only: a lone carriage return may stand within a line."""
    return [line for line in re.split(rb"(?<=\n)", data) if line]


def _level(old: bytes, new: bytes) -> int | None:
    """Say how many leading directories two names for one file have too many; None where they do not tell."""
    if old == new:
        return 0
    if b"/" in old and old.partition(b"/")[2] == new.partition(b"/")[2]:
        return 1
    if old.startswith(b"a/") and new.startswith(b"b/"):
        return 1
    # As in `diff -u x.py.orig x.py`.
    return 0 if old.startswith(new) or new.startswith(old) else None


def _name(text: bytes) -> bytes:
    """Take the name out of a ``---`` or ``+++`` line: what stands behind it is a time or a revision."""
    if text.startswith(b'"'):
        quoted = QUOTED.match(text)
        return _unquoted(quoted[0] if quoted else text)
    return TIME.sub(b"", text.partition(b"\t")[0])


def _unquoted(text: bytes) -> bytes:
    """Undo git's quoting of names that are not plain ASCII."""
    match = QUOTED.fullmatch(text)
    if not match:
        return text

    def character(found: re.Match[bytes]) -> bytes:
        code = found[1]
        return bytes([int(code, 8)]) if len(code) == 3 else ESCAPES.get(code, code)

    return ESCAPE.sub(character, match[1])
