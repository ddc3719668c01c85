"""
Maintenance mode: the web server answers 503 with a page, to everybody but the health check, until it is told otherwise.

nginx and Apache look for one file at each request, so nothing is reloaded, and a restart of the host changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

from ckan_deploy.errors import FormulaError
from ckan_deploy.releases import ids
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import services
from ckan_deploy.system import arguments, files, safely

# The form of CKAN's own errors: https://docs.ckan.org/en/latest/api/ ("success", "error").
API_ANSWER = {
    "success": False,
    "error": {"__type": "Service Unavailable", "message": "The portal is under maintenance."},
}


def on(site: Site, reason: str = "", by: str = "", stop_workers: bool = False) -> dict[str, Any]:
    """
    Answer visitors with 503, ``Retry-After`` and a page, and requests of the API with JSON.

    site
        The site.
    reason, by
        Why, and who asked; for ``status``, not for visitors.
    stop_workers
        Background workers and cron jobs stop as well, each when its job is done. ``off`` starts them.

    Returns ``{"on": True, "changed": bool, "since", "by", "reason"}``, and ``warnings`` of jobs that are not done.
    Raises ``InvalidArgument`` for a reason or a name that is no text, ``FormulaError`` when the page of
    ``web:maintenance_page`` is not there, or no server of the formula's looks for it.
    """
    if site.settings.web.server == "none":
        raise FormulaError("ckan:web:server is none: maintenance is the business of your own server.")
    reason, by = arguments.line("reason", reason), arguments.text("by", by)
    known = status(site)
    if known["on"]:
        return {**known, "changed": False}
    _put_pages(site)
    # Last: from here on it counts.
    noted = {"since": ids.now(), "by": by, "reason": reason}
    noted.update({"workers": "stopped"} if stop_workers else {})
    files.write(_switch(site), json.dumps(noted))
    told = {name: text for name, text in noted.items() if name != "since"}
    site.log.append(stage="maintenance on", env=site.settings.env, result="ok", **told)
    # After the page: what visitors queue until then is done before they stop.
    warnings = services.pause(site) if stop_workers else []
    return {"on": True, "changed": True, **noted, **({"warnings": warnings} if warnings else {})}


def off(site: Site, by: str = "") -> dict[str, Any]:
    """
    Let visitors in again, and start the workers that were stopped for it.

    site
        The site.
    by
        Who asked.

    Returns ``{"on": False, "changed": bool}``, and ``warnings`` where a worker does not start.
    """
    by = arguments.text("by", by)
    changed, known, warnings = False, status(site), []
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_switch(site))
        changed = True
        site.log.append(stage="maintenance off", env=site.settings.env, result="ok", by=by)
    if "workers" in known:
        try:
            warnings = services.follow(site)["warnings"]
        except FormulaError as exc:
            warnings = [str(exc)]
    return {"on": False, "changed": changed, **({"warnings": warnings} if warnings else {})}


def status(site: Site) -> dict[str, Any]:
    """
    Say whether this host is in maintenance.

    site
        The site.

    Returns ``{"on": False}``, or ``{"on": True, "since", "by", "reason"}``.
    """
    try:
        with open(_switch(site), encoding="utf-8") as handle:
            return {"on": True, **json.loads(handle.read() or "{}")}
    except FileNotFoundError:
        return {"on": False}


def directory(site: Site) -> str:
    """
    Return where the page is, and the file ``on`` while there is maintenance.

    site
        The site.
    """
    return os.path.join(site.paths.config, "maintenance")


def _switch(site: Site) -> str:
    """The file that the web server looks for."""
    return os.path.join(directory(site), "on")


def _put_pages(site: Site) -> None:
    folder, page = directory(site), site.settings.web.maintenance_page
    source = site.host.file(page) if page.startswith("salt://") else page
    if not source or not os.path.isfile(source):
        raise FormulaError(f"there is no page {page} (ckan:web:maintenance_page); correct it.")
    safely.ensure(folder)
    page = files.read(source, "", errors="surrogateescape")
    files.write(os.path.join(folder, "page.html"), page, errors="surrogateescape")
    files.write(os.path.join(folder, "page.json"), json.dumps(API_ANSWER))
