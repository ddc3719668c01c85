"""
Uploads that all hosts of an environment are to see: one host leaves a mark in the storage, the others read it.

CKAN's user does both. The storage is that user's, and root may be nobody there.
"""

from __future__ import annotations

import os
from typing import Any

from ckan_deploy.build import ini
from ckan_deploy.releases.site import Site
from ckan_deploy.system import processes
from ckan_deploy.system.processes import Done

MARK = ".ckan-shared-"
# A server of files that does not answer holds whoever asks.
SECONDS = 10
# Those of earlier plans go. What is there by that name, a link say, is not written to.
_WRITE = (
    'find "$1" -maxdepth 1 -name "$2*" -mmin +60 -delete; set -C; umask 022; rm -f -- "$1/$2$3"; printf %s "$4" > '
    '"$1/$2$3"'
)
_READ = 'cat -- "$1/$2$3"'


def seen(site: Site, release: str, writes: bool) -> dict[str, Any]:
    """
    Leave a mark in a storage that is shared, or read that of another host.

    site
        The site.
    release
        The id of the release that is planned: the mark is named after it.
    writes
        Leave the mark, with the id of this host in it; else read it.

    Returns ``{"kind", "path", "serves": whether visitors reach this host, "mark": the host that left it, "problem": why
    there is none}``.
    """
    path, web = str(ini.options(site).get("ckan.storage_path") or ""), site.settings.web
    kind = site.settings.storage.kind
    told = {
        "kind": kind, "path": path, "serves": web.server != "none" or web.app != "none", "mark": "", "problem": "",
    }  # fmt: skip
    if kind != "shared":
        return told
    if not os.path.isabs(path):
        return {**told, "problem": "ckan.storage_path is no absolute path"}
    host = site.host.id
    command = ["sh", "-c", _WRITE if writes else _READ, "sh", path, MARK, release, host]
    done = processes.run(command, user=site.settings.user, timeout=SECONDS)
    if done.retcode:
        return {**told, "problem": _words(done)}
    return {**told, "mark": host if writes else done.stdout}


def _words(done: Done) -> str:
    said = (done.stderr or done.stdout).splitlines()
    return said[-1].rpartition(": ")[2] if said else f"exit code {done.retcode}"
