"""
The WSGI pointers ``wsgi.py`` and ``apache.wsgi``: what app servers start, the same for every release.

mod_wsgi starts a process anew when the time of its pointer is another one. A new text keeps the time of the old one:
processes that boot while Apache is reloaded would lose the requests that wait for them. They take it when they start.
"""

from __future__ import annotations

import difflib
import os

import jinja2

from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import official_files
from ckan_deploy.system import files, safely

SOURCE = "salt://ckan/files/wsgi.py.jinja"


def changes(site: Site, path: str) -> dict[str, str]:
    """
    Say what ``install`` would change.

    site
        The site.
    path
        The pointer.

    Returns ``{path: what differs}``, empty when it is as it should be. Raises ``FormulaError`` where it is none of the
    site's pointers, or the formula's file server lacks the template.
    """
    known = [os.path.join(site.paths.config, name) for name in official_files.POINTERS]
    if path not in known:
        raise FormulaError(f"{path} is no pointer of the site; name one of {', '.join(known)}.")
    new, old = _render(site), files.read(path, None, official_files.UNDECODED)
    if old == new and not os.path.islink(path):
        return {}
    if old is None:
        return {path: "new file"}
    return {path: "\n".join(difflib.unified_diff(old.splitlines(), new.splitlines(), "old", "new", lineterm=""))}


def install(site: Site, path: str) -> dict[str, str]:
    """
    Write a pointer, at once. A link is replaced, and what it leads to is left alone.

    site, path
        As for ``changes``.

    Returns what ``changes`` says.
    """
    differs = changes(site, path)
    if differs:
        safely.ensure(os.path.dirname(path))
        time = os.stat(path).st_mtime_ns if os.path.exists(path) else None
        files.write(path, _render(site), mtime=time)
    return differs


def _render(site: Site) -> str:
    cached = site.host.file(SOURCE)
    if not cached:
        raise FormulaError(f"the file server has no {SOURCE}; look at the master's file_roots.")
    jinja = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return jinja.from_string(files.read(cached)).render(settings=site.settings)
