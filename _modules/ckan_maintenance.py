"""
Maintenance: the front door answers 503 with a page, to everybody but the health check, until it is told otherwise.

nginx and Apache look for one file at each request, so nothing is reloaded, and a restart of the host changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_maintenance"

# The form of CKAN's own errors: https://docs.ckan.org/en/latest/api/ ("success", "error").
API_ANSWER = {
    "success": False,
    "error": {"__type": "Service Unavailable", "message": "The portal is under maintenance."},
}


def __virtual__() -> str:
    return __virtualname__


def on(reason: str = "", by: str = "", stop_workers: bool = False) -> dict:
    """
    Answer visitors with 503, ``Retry-After`` and a page, and requests of the API with JSON.

    reason, by
        Why, and who asked; for ``status``, not for visitors.
    stop_workers
        Background workers and lines of cron stop as well, each when its job is done. ``off`` starts them.

    Returns ``{"on": True, "changed": bool, "since", "by", "reason"}``, and ``warnings`` of jobs that are not done.
    Raises ``CommandExecutionError`` when the page of ``web:maintenance_page`` is not there, or no server of the
    formula's looks for it.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_maintenance.on reason='the database moves'
    """
    settings = __salt__["ckan_settings.get"]()
    if settings["web"]["server"] == "none":
        raise CommandExecutionError("ckan:web:server is none: maintenance is the business of your own server.")
    known = status()
    if known["on"]:
        return {**known, "changed": False}
    folder = directory(settings)
    page = settings["web"]["maintenance_page"]
    source = __salt__["cp.cache_file"](page) if page.startswith("salt://") else page
    if not source or not os.path.isfile(source):
        raise CommandExecutionError(f"there is no page {page} (ckan:web:maintenance_page); correct it.")
    os.makedirs(folder, mode=0o755, exist_ok=True)
    shutil.copyfile(source, os.path.join(folder, "page.html"))
    os.chmod(os.path.join(folder, "page.html"), 0o644)
    __salt__["ckan_file.write"](os.path.join(folder, "page.json"), json.dumps(API_ANSWER))
    # Last: from here on it counts.
    noted = {"since": __salt__["ckan_store.now"](), "by": by, "reason": reason}
    noted.update({"workers": "stopped"} if stop_workers else {})
    __salt__["ckan_file.write"](os.path.join(folder, "on"), json.dumps(noted))
    __salt__["ckan_store.append_log"](settings["paths"], stage="maintenance on", env=settings["env"], result="ok", **{
        name: text for name, text in noted.items() if text and name != "since"
    })  # fmt: skip
    # After the page: what visitors queue until then is done before they stop.
    warnings = __salt__["ckan_jobs.pause"](settings) if stop_workers else []
    return {"on": True, "changed": True, **noted, **({"warnings": warnings} if warnings else {})}


def off(by: str = "") -> dict:
    """
    Let visitors in again, and start the workers that were stopped for it.

    by
        Who asked.

    Returns ``{"on": False, "changed": bool}``, and ``warnings`` where a worker does not start.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_maintenance.off
    """
    settings = __salt__["ckan_settings.get"]()
    changed, known, warnings = False, status(), []
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(directory(settings), "on"))
        changed = True
        about = {"by": by} if by else {}
        __salt__["ckan_store.append_log"](
            settings["paths"], stage="maintenance off", env=settings["env"], result="ok", **about
        )
    if "workers" in known:
        try:
            warnings = __salt__["ckan_jobs.follow"](settings)["warnings"]
        except CommandExecutionError as exc:
            warnings = [str(exc)]
    return {"on": False, "changed": changed, **({"warnings": warnings} if warnings else {})}


def status() -> dict:
    """
    Say whether this host is in maintenance.

    Returns ``{"on": False}``, or ``{"on": True, "since", "by", "reason"}``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_maintenance.status
    """
    try:
        with open(os.path.join(directory(__salt__["ckan_settings.get"]()), "on"), encoding="utf-8") as handle:
            return {"on": True, **json.loads(handle.read() or "{}")}
    except FileNotFoundError:
        return {"on": False}


def directory(settings: dict) -> str:
    """
    Return where the page is, and the file ``on`` while there is maintenance.

    settings
        The settings.

    CLI Example: not for the command line.
    """
    return os.path.join(settings["paths"]["config"], "maintenance")
