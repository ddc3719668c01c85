"""The files of a virtualenv by another place: what ``relocate`` does to a whole one, for one file at a time."""

from __future__ import annotations

from ckan_deploy.build import prefixes, relocate


class Move:
    """A virtualenv that stood in one place, and stands in another one."""

    def __init__(self, old: str, new: str) -> None:
        """
        Say from where to where.

        old, new
            Absolute paths, in their normal form.
        """
        self.old, self.new = old, new
        self._pattern = prefixes.pattern([old])

    def may_name(self, path: str) -> bool:
        """
        Say whether a file may name the place.

        path
            Its path in the virtualenv.
        """
        *folders, name = path.split("/")
        return relocate.may_name_prefix(_kind(folders), name)

    def content(self, path: str, data: bytes) -> bytes:
        """
        Return the content of a file as it is in the new place.

        path
            Its path in the virtualenv; one that ``may_name`` the place.
        data
            Its content in the old one.
        """
        if prefixes.is_binary(data):
            return data
        return prefixes.replaced(data, self._pattern, self.new, script=path.startswith("bin/"))

    def link(self, target: str) -> str:
        """
        Return where a link leads in the new place.

        target
            Where it leads in the old one.
        """
        return self.new + target[len(self.old) :] if prefixes.inside(target, self.old) else target


def _kind(folders: list[str]) -> str:
    kind = "top"
    for folder in folders:
        kind = relocate.kind_of(kind, folder)
    return kind
