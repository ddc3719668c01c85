"""
What every stage has: nobody else works on the host meanwhile, its hooks run, and the host's log says how it went.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ckan_deploy.errors import FormulaError, sentence
from ckan_deploy.releases import hooks, lock
from ckan_deploy.releases.ids import check_id
from ckan_deploy.releases.site import Site
from ckan_deploy.system import arguments, files

log = logging.getLogger(__name__)


def refuse_builder(site: Site) -> None:
    """
    Refuse a host that builds for others and serves nothing.

    site
        The site.

    Raises ``FormulaError``.
    """
    if site.settings.build.only:
        raise FormulaError("this host builds for others and serves nothing (ckan:build:only); name one that serves.")


@contextlib.contextmanager
def running(
    site: Site, name: str, release: str, by: str = "", job: str = "", reason: str = "", wait: float = 0,
    locked: bool = True, origin: str = "", changed: Mapping[str, str] | None = None,
) -> Iterator[list[str]]:  # fmt: skip
    """
    Run a stage: with the lock of the host, with its hooks, timed, and written to the host's log.

    site
        The site.
    name
        The stage.
    release
        The release that it is about.
    by, job, reason
        Who asked, the run of the master that it belongs to, and why.
    wait
        How long to wait for another process that is at work on this host, in seconds.
    locked
        False where a deploy lock is no obstacle.
    origin
        Where a release was promoted from.
    changed
        What differs from the release that is served, as ``diff.changed`` returns it.

    Yields the list of what is to be said besides. Raises ``InvalidArgument`` for what is no release, ``FormulaError``;
    whatever else goes wrong is turned into a sentence.
    """
    # First of all: a hook may make a command of it. A restore names its dump here.
    if name != "restore":
        check_id(release)
    if name not in ("build", "pack", "abort"):
        refuse_builder(site)
    by, job, reason = arguments.text("by", by), arguments.text("job", job), arguments.line("reason", reason)
    with lock.held(site, name, release, by, job, wait, locked):
        begun = time.monotonic()
        entry: dict[str, Any] = {"stage": name, "release": release, "env": site.settings.env, "by": by, "job": job}
        entry.update(reason=reason, promoted=origin, changed=dict(changed or {}) or "")
        ran: list[dict[str, Any]] = []
        warned: list[str] = []
        previous = site.releases.current()
        try:
            ran += hooks.run(site, "before", name, release, previous)
            # Not for hooks: what they make is their own business.
            with files.usual_modes():
                yield warned
            ran += hooks.run(site, "after", name, release, previous)
            # Into the list that the stage has in its answer already.
            warned += [f"{hook['hook']} failed: {hook['problem']}" for hook in ran if hook["problem"]]
        except BaseException as exc:
            entry.update(result="failed", reason=sentence(exc), details=getattr(exc, "details", ""))
            if isinstance(exc, FormulaError) or not isinstance(exc, Exception):
                raise
            log.debug("the stage %s failed", name, exc_info=True)
            raise FormulaError(sentence(exc)) from exc
        else:
            entry["result"] = "ok"
        finally:
            if ran:
                entry["hooks"] = ran
            if warned:
                entry["warnings"] = list(dict.fromkeys(warned))
            missing = site.log.append(**entry, seconds=round(time.monotonic() - begun, 3))
            warned += [missing] if missing else []
