"""The release that a deploy makes, as long as it serves nobody: its beginning, and the mark of one that failed."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from ckan_deploy.errors import FormulaError, sentence
from ckan_deploy.releases.manifest import Resolution
from ckan_deploy.releases.site import Site

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
    Mark a release failed, if that can be written: the failure itself is what is to be told.

    site, release, by
        As for ``create``.
    reason
        Why.
    """
    try:
        site.releases.set_state(release, "failed", by, reason)
    except (FormulaError, OSError) as exc:
        log.warning("release %s is not marked failed: %s", release, sentence(exc))
