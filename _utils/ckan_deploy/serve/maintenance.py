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
from ckan_deploy.serve import maintenance_page, services
from ckan_deploy.system import arguments, files, safely

# The form of CKAN's own errors: https://docs.ckan.org/en/latest/api/ ("success", "error").
API_ANSWER = {
    "success": False,
    "error": {"__type": "Service Unavailable", "message": "The portal is under maintenance."},
}


def on(
    site: Site, reason: str = "", by: str = "", stop_workers: bool = False, message: Any = "", until: str = "",
    test: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """
    Answer visitors with 503, ``Retry-After`` and a page, and requests of the API with JSON.

    site
        The site.
    reason, by
        Why, and who asked; for ``status``, not for visitors.
    stop_workers
        Background workers and cron jobs stop as well, each when its job is done. ``off`` starts them.
    message
        What visitors read: a line in the language of the portal, or ``{language: line}``.
    until
        When it is expected to end: date, time and zone.
    test
        Only look whether that can be done.

    Where maintenance mode is on already, a message or an end changes the page, and nothing else.

    Returns ``{"on": True, "changed": bool, "since", "by", "reason"}``, with ``message`` and ``until`` where there are
    any, and ``warnings`` of jobs that are not done. Raises ``InvalidArgument`` for what cannot be meant,
    ``FormulaError`` when the page cannot be made, or no server of the formula's looks for it.
    """
    if site.settings.web.server == "none":
        raise FormulaError("ckan:web:server is none: maintenance is the business of your own server.")
    reason, by = arguments.line("reason", reason), arguments.text("by", by)
    notice, known = maintenance_page.Notice.of(site, message, until), status(site)
    if arguments.flag("test", test):
        maintenance_page.make(site, notice)
        return {**known, "changed": False}
    if known["on"] and not notice.to_json():
        return {**known, "changed": False}
    _put_pages(site, notice)
    if known["on"]:
        kept = {name: value for name, value in known.items() if name not in ("on", "message", "until")}
        files.write(_switch(site), json.dumps({**kept, **notice.to_json()}))
        return {**known, **notice.to_json(), "changed": False}
    # Last: from here on it counts.
    noted = {"since": ids.now(), "by": by, "reason": reason, **notice.to_json()}
    noted.update({"workers": "stopped"} if stop_workers else {})
    files.write(_switch(site), json.dumps(noted))
    told = {name: noted[name] for name in ("by", "reason", "workers") if name in noted}
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

    Returns ``{"on": False}``, or ``{"on": True, "since", "by", "reason"}``, with ``message`` and ``until`` where the
    page has them.
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


def _put_pages(site: Site, notice: maintenance_page.Notice) -> None:
    folder, page = directory(site), maintenance_page.make(site, notice)
    safely.ensure(folder)
    files.write(os.path.join(folder, "page.html"), page, errors="surrogateescape")
    files.write(os.path.join(folder, "page.json"), json.dumps(API_ANSWER))
