"""The release that a deploy makes, as long as it serves nobody: its beginning, and the mark of one that failed."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator

from attrs import define

from ckan_deploy.build import resolved
from ckan_deploy.errors import FormulaError, sentence
from ckan_deploy.releases.manifest import Resolution
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import app_server, draining
from ckan_deploy.system import beside

log = logging.getLogger(__name__)


def create(site: Site, release: str, planned: Resolution, by: str, job: str) -> None:
    """
    Make the directory of a release, with its manifest.

    site
        The site.
    release
        Its id.
    planned
        What it is to hold.
    by
        Who asked.
    job
        The run of the master that it belongs to, ``''`` for none.

    Raises ``FormulaError`` where it is there already.
    """
    about = {"env": site.settings.env, "site": site.settings.site, "by": by, "job": job}
    # What it is to hold from the start: a prune spares the checkouts that it names.
    site.releases.create(release, resolution=planned, **about)


@define
class Server:
    """An app server that is being started; it is stopped again unless somebody says ``keep``."""

    kept: bool = False

    def keep(self) -> None:
        """Let it run on."""
        self.kept = True


@contextlib.contextmanager
def booted(site: Site, path: str, boot: Callable[[], object] | None = None) -> Iterator[Server]:
    """
    Start the app server of a release meanwhile: its boot takes as long as the one of the check. Where it does not come
    up the stage ``start`` tries again, and says why.

    site
        The site.
    path
        The directory of the release.
    boot
        How it is started; by default by ``app_server.boot``.
    """
    server = Server()
    with beside.running(boot or functools.partial(app_server.boot, site, path)) as booting:
        try:
            yield server
        finally:
            # A boot that nobody needs is not waited for; one that has not begun yet is stopped after it.
            if not server.kept:
                draining.stop(site, path, drain=False)
            if booting.exception() is not None or not server.kept:
                draining.stop(site, path, drain=False)


@contextlib.contextmanager
def marking_failed(site: Site, release: str, by: str) -> Iterator[None]:
    """
    Mark a release failed where what is done with it fails; the exception goes on.

    site, release, by
        As for ``create``.
    """
    try:
        yield
    except Exception as exc:
        note_failed(site, release, by, sentence(exc))
        raise


def note_failed(site: Site, release: str, by: str, reason: str) -> None:
    """
    Mark a release failed, if that can be written: the failure itself is what is to be told. Its packages are resolved
    anew by the next plan.

    site, release, by
        As for ``create``.
    reason
        Why.
    """
    try:
        site.releases.set_state(release, "failed", by, reason)
    except (FormulaError, OSError) as exc:
        log.warning("release %s is not marked failed: %s", release, sentence(exc))
    resolved.forget(site.paths.shared)
