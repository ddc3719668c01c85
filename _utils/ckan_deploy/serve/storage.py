"""
Uploads that all hosts of an environment are to see: each leaves a mark in the storage, and the others read that of one.

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


def seen(site: Site, release: str, of: str = "") -> dict[str, Any]:
    """
    Leave a mark in a storage that is shared, or read that of another host. Nobody looks for a mark that is not there
    yet: NFS would remember for half a minute that it was not.

    site
        The site.
    release
        The id of the release that is planned: the mark is named after it, and after the host.
    of
        The host whose mark is read, once it has left it; by default this one leaves its own.

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
    script, name = (_READ, of) if of else (_WRITE, host)
    command = ["sh", "-c", script, "sh", path, MARK, f"{release}-{name}", name]
    done = processes.run(command, user=site.settings.user, timeout=SECONDS)
    if done.retcode:
        return {**told, "problem": _words(done)}
    return {**told, "mark": done.stdout if of else host}


def _words(done: Done) -> str:
    said = (done.stderr or done.stdout).splitlines()
    return said[-1].rpartition(": ")[2] if said else f"exit code {done.retcode}"
