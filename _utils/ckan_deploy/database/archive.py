"""
A dump, read entry by entry: who is to restore what of it.

The site's user restores what is its own, and what it may make in any case. What a superuser owns, and extensions, are
the administrator's, where that is a superuser. A function of the site's user, such as one in a constraint, is never
called with more rights than it has itself.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

import attrs
from attrs import frozen

from ckan_deploy.database import postgres
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.site import Site

# Number, and what it is: "2; 3079 16400 EXTENSION - postgis ". A name never has a line break here.
_ENTRY = re.compile(r"(\d+); \d+ \d+ (.*)")
_EXTENSION = re.compile(r"(?:COMMENT - EXTENSION|EXTENSION -) (.*) ")
_RIGHTS = re.compile(r"(DEFAULT )?ACL ")
# What one of them is in SQL. A name with a line break is not understood, and so said to be missing.
_RIGHT = re.compile(r"(GRANT|REVOKE|ALTER DEFAULT PRIVILEGES) .*;")
_DENIED = re.compile(r'permission denied to create extension "([^"]+)"')
_MISSING = re.compile(r'extension "([^"]+)" is not available')


@frozen
class Entry:
    """
    An entry of a dump: its number, what becomes of it (``made``, ``said`` of an extension, ``rights``), whether the
    administrator restores it, and in which role.
    """

    number: str
    kind: str
    by_admin: bool = False
    role: str = ""


@frozen
class Archive:
    """A dump in a file, and its entries in order."""

    file: str
    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, site: Site, file: str, extensions: Mapping[str, str]) -> Archive:
        """
        Read the list of a dump.

        site
            The site.
        file
            The dump.
        extensions
            By whom its extensions were made, as far as that is known.

        Raises ``FormulaError`` where it cannot be read.
        """
        listed = postgres.run(site, ["pg_restore", "--list", file])
        supers = postgres.run(
            site, [*postgres.PSQL, "-c", "select rolname from pg_roles where rolsuper"], postgres.administrator(site)
        ).splitlines()
        may = postgres.administrator(site).user in supers
        found = filter(None, map(_ENTRY.fullmatch, listed.splitlines()))
        return cls(file, tuple(_entry(site, match, supers if may else [], extensions) for match in found))

    def restore(self, site: Site, database: str) -> None:
        """
        Restore all but rights into an empty database.

        site
            The site.
        database
            Its name.

        Raises ``FormulaError`` with the first error, and what helps.
        """
        made = (entry for entry in self.entries if entry.kind == "made")
        for (by_admin, role), some in itertools.groupby(made, lambda entry: (entry.by_admin, entry.role)):
            options = ["--no-privileges", *([f"--role={role}"] if role else [])]
            said = self._restore(site, database, by_admin, [entry.number for entry in some], *options)
            wrong = [line for line in said if "WARNING:" not in line]
            if wrong:
                raise FormulaError(_helpful(wrong[0]))

    def give_rights(self, site: Site, database: str) -> list[str]:
        """
        Give roles the rights that the dump has, and extensions their comments, in a database with all the rest.

        site
            The site.
        database
            Its name.

        Returns what failed, such as for a role that is gone.
        """
        later = [entry for entry in self.entries if entry.kind != "made"]
        by_admin = [entry.number for entry in later if entry.by_admin]
        failed = self._restore(site, database, True, by_admin) if by_admin else []
        failed += self._restore(site, database, False, [e.number for e in later if not e.by_admin and e.kind == "said"])
        numbers = [entry.number for entry in later if not entry.by_admin and entry.kind == "rights"]
        about = attrs.evolve(site.settings.database, name=database)
        text = self._sql(site, numbers) if numbers else ""
        # Each by itself: what is for a role that is gone must not take the rights of others along.
        right = [line for line in text.splitlines() if _RIGHT.fullmatch(line)]
        for begin in range(0, len(right), 200):
            words = [word for line in right[begin : begin + 200] for word in ("-c", line)]
            failed += postgres.complaints(site, ["psql", "-X", "-q", *words], about)
        return list(dict.fromkeys(f"rights: {line}" for line in failed))

    def _restore(self, site: Site, database: str, by_admin: bool, numbers: list[str], *options: str) -> list[str]:
        if not numbers:
            return []
        about = attrs.evolve(site.settings.database, name=database)
        about = postgres.administrator(site, database) if by_admin else about
        owner = [] if by_admin else ["--no-owner"]
        command = ["pg_restore", *owner, *options, "-L", "/dev/stdin", "-d", database, self.file]
        return postgres.complaints(site, command, about, "".join(f"{number}; \n" for number in numbers))

    def _sql(self, site: Site, numbers: list[str]) -> str:
        command = ["pg_restore", "-L", "/dev/stdin", "-f", "-", self.file]
        return postgres.run(site, command, stdin="".join(f"{number}; \n" for number in numbers))


def _entry(site: Site, match: re.Match[str], supers: list[str], extensions: Mapping[str, str]) -> Entry:
    """Sort an entry; ``supers`` is empty where the administrator is no superuser."""
    number, about = match.groups()
    user = site.settings.database.user
    extension = _EXTENSION.fullmatch(about)
    kind = "rights" if _RIGHTS.match(about) else "said" if extension and about.startswith("COMMENT") else "made"
    if about.endswith(f" {user}") or not supers:
        return Entry(number, kind)
    if extension:
        maker = extensions.get(extension[1], "")
        return Entry(number, kind, maker != user, maker if maker in supers else "")
    return Entry(number, kind, kind == "rights" or any(about.endswith(f" {role}") for role in supers))


def _helpful(line: str) -> str:
    """What PostgreSQL says of an extension, with what helps."""
    if found := _DENIED.search(line):
        return (
            f"the database has the extension {found[1]}, which only a superuser of PostgreSQL may make; name one in "
            "ckan:database:admin_user and admin_password"
        )
    if found := _MISSING.search(line):
        return f"the database has the extension {found[1]}, which the database server lacks; install it there"
    return line
