"""Addresses of web pages that show a commit, made from the address of its origin. Asks nobody."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_PATH = re.compile(r"[A-Za-z0-9_.~-]+(/[A-Za-z0-9_.~-]+)+")
# What stands between the repository and the commit, by a word in the name of the host.
_FORGES = {
    "github": "commit",
    "gitlab": "-/commit",
    "gitea": "commit",
    "forgejo": "commit",
    "codeberg": "commit",
    "bitbucket.org": "commits",
}


def commit_page(origin: str, commit: str) -> str:
    """
    Return the address of the page that shows a commit, ``''`` where the origin's address does not tell it.

    origin
        The address of the origin: ``https://...``, ``ssh://...`` or ``git@host:path``. A login in it is left out.
    commit
        The full id of the commit.
    """
    host, port, path = _parts(origin)
    path = path.strip("/").removesuffix(".git")
    between = next((words for forge, words in _FORGES.items() if forge in host), "")
    if not between or not _COMMIT.fullmatch(commit) or not _HOST.fullmatch(host) or not _PATH.fullmatch(path):
        return ""
    if {".", ".."} & {*path.split("/")}:
        return ""
    return f"https://{host}{port}/{path}/{between}/{commit}"


def _parts(origin: str) -> tuple[str, str, str]:
    """Host, port of https with its colon, and path of an origin; three times '' for a directory and the like."""
    if "://" not in origin:
        host, colon, path = origin.partition(":")
        return (host.rpartition("@")[2].lower(), "", path) if colon and "/" not in host else ("", "", "")
    try:
        found = urlsplit(origin)
        port = f":{found.port}" if found.port and found.scheme == "https" and found.port != 443 else ""
    except ValueError:
        return "", "", ""
    if found.scheme not in ("https", "ssh", "git+ssh"):
        return "", "", ""
    return (found.hostname or "").lower(), port, found.path
