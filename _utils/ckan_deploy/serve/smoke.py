"""
Smoke pages: what a portal shows, asked of a new release before visitors are sent to it, and through the web server
after the switch. A page that fails in the new release and not in the live one stops a deploy.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.manifest import Manifest
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import addresses, answers, app_server, health, maintenance
from ckan_deploy.serve.visit import NOBODY, Answer, Connect, visit
from ckan_deploy.settings.parts import PAGE, Page
from ckan_deploy.system import beside
from ckan_deploy.system.unix_http import UnixConnection

# What every CKAN has.
DEFAULTS = ("/", "/dataset/", "/organization/", "/group/", "/user/login", "/api/3/action/status_show")
# Of CKAN's own plugin `activity`: they compare what a form names, and end in an error where nobody names anything.
OF_FORMS = tuple(f"/{what}/changes_multiple" for what in ("dataset", "group", "organization"))
# The probe ran as CKAN's user: what it says is taken within limits.
MOST_PAGES, LONGEST_PATH = 500, 300
# So many are named in a message.
MOST_NAMED = 10


class Failure(NamedTuple):
    """A page that fails, with its answer; ``live`` is that of the live release, None where there is none."""

    page: Page
    answer: Answer
    live: Answer | None

    @property
    def known(self) -> bool:
        """Whether the live release fails in the same way, so that nothing gets worse for visitors."""
        if self.live is None or not self.live.problem or self.live.status == NOBODY:
            return False
        # A page that is not there in the live release, and broken in this one, is a new page that is broken.
        return self.live.status == self.answer.status or self.live.status == 0 or self.live.status >= 500

    def text(self) -> str:
        """Return what is wrong, for people."""
        live = "" if self.live is None or self.live.status <= 0 else f" (the live release answers {self.live.status})"
        return f"{self.page.label} {self.answer.problem}{live}"


def pages(site: Site, check: Mapping[str, Any]) -> list[Page]:
    """
    Return the pages that a release is asked for: those of ``web:smoke``, those that every CKAN has, those of
    ``web:warm``, and those that the check of the release found, but for those that wait for a form. All but the first
    fail by an error of the server only.

    site
        The site.
    check
        What the check of the release said.
    """
    web = site.settings.web
    found = [*check.get("examples", []), *check.get("pages", [])]
    ours = [path for path in found if isinstance(path, str) and len(path) <= LONGEST_PATH and re.fullmatch(PAGE, path)]
    left_out = {*OF_FORMS, *web.smoke_skip, *(page.path for page in web.smoke)}
    paths = dict.fromkeys([*DEFAULTS, *web.warm, *ours])
    return [*web.smoke, *(Page(path, status=0) for path in paths if path not in left_out)][:MOST_PAGES]


def before(site: Site, release: str) -> dict[str, Any]:
    """
    Ask a release that was started for its pages, on its own socket, and the live release for the same ones.

    site
        The site.
    release
        The id of the release; it is not current yet.

    Returns what ``after`` wants to know, for the manifest: ``live``, the pages that fail in the live release, and
    ``known``, those that fail in both; ``{page: {"status", "problem"}}`` each. Raises ``FormulaError`` that names the
    pages which fail in the new release alone.
    """
    asked = pages(site, site.release(release).manifest.check)
    with beside.running(functools.partial(_live, site, asked)) as serving:
        mine = visit(site, asked, _socket(site, release)) if site.settings.web.app == "uwsgi" else []
        live = serving.result()
    others: Sequence[Answer | None] = live or [None] * len(asked)
    failures = [Failure(*each) for each in zip(asked, mine, others, strict=False) if each[1].problem]
    _refuse(site, release, failures, f"pages of {release} fail")
    failing = {page.label: answer for page, answer in zip(asked, live, strict=False) if answer.problem}
    return {
        "live": {label: answer._asdict() for label, answer in failing.items() if answer.status != NOBODY},
        "known": {failure.page.label: failure.answer._asdict() for failure in failures},
    }


def after(site: Site, release: str) -> list[str]:
    """
    Ask the web server for the pages of a release to which visitors have just been sent.

    site
        The site.
    release
        The id of the release.

    Returns warnings: the pages that fail, and failed in the release before. Raises ``FormulaError`` that names the
    others that fail.
    """
    web, manifest = site.settings.web, site.release(release).manifest
    if not _new(manifest):
        return []
    known: dict[str, Any] = dict(manifest.smoke.get("known", {}))
    asked: list[Page] = []
    warnings = []
    if web.server == "none" and not web.health_url:
        pass  # asked on its own socket only: the address of the site's own server is not known
    elif maintenance.status(site)["on"]:
        # Visitors get the maintenance page, whatever is asked for.
        if web.app != "uwsgi":
            warnings = ["the pages of web:smoke were not asked, since the portal is in maintenance mode"]
    else:
        # What is known to fail has been asked on both sides; one that hangs would keep visitors waiting.
        asked = [page for page in pages(site, manifest.check) if page.label not in known]
    answered = _at_the_web_server(site, asked)
    live = {label: Answer(**answer) for label, answer in manifest.smoke.get("live", {}).items()}
    failures = [
        Failure(page, answer, live.get(page.label))
        for page, answer in zip(asked, answered, strict=True)
        if answer.problem
    ]
    _refuse(site, release, failures, f"pages of {release} fail at the web server")
    known.update({failure.page.label: failure.answer._asdict() for failure in failures})
    return [*warnings, *(f"{label} {answer['problem']}, as in the release before" for label, answer in known.items())]


def _new(manifest: Manifest) -> bool:
    """Whether this is a deploy under way: a rollback is not held up by a page that fails, nor is a repair."""
    times = sum(event.get("state") == "live" for event in manifest.events)
    return bool(manifest.finish_due) and times == 1


def _live(site: Site, asked: Iterable[Page]) -> list[Answer]:
    """What is answered by the release that visitors have now; nothing where there is none to ask."""
    current, web = site.releases.current(), site.settings.web
    if not current:
        return []
    if (web.server != "none" or web.health_url) and not maintenance.status(site)["on"]:
        return _at_the_web_server(site, asked)
    return visit(site, asked, _socket(site, current)) if web.app == "uwsgi" else []


def _at_the_web_server(site: Site, asked: Iterable[Page]) -> list[Answer]:
    return visit(site, asked, lambda seconds: health.connection(site, seconds), addresses.path(site))


def _socket(site: Site, release: str) -> Connect:
    place = answers.socket_of(site.releases.directory(release))
    return lambda seconds: UnixConnection(place, seconds)


def _refuse(site: Site, release: str, failures: Sequence[Failure], what: str) -> None:
    new = [failure for failure in failures if not failure.known]
    if not new:
        return
    named = [failure.text() for failure in new[:MOST_NAMED]]
    named += [f"and {len(new) - MOST_NAMED} more"] if len(new) > MOST_NAMED else []
    listed = any(failure.page.status for failure in new)
    found = any(not failure.page.status for failure in new)
    ways = ["correct ckan:web:smoke"] if listed else []
    ways += ["leave it out by ckan:web:smoke_skip"] if found else []
    said = app_server.last_error(site, release)
    raise FormulaError(
        f"{what}: {'; '.join(named)}{f'; its log says: {said}' if said else ''}; see "
        f"{app_server.log_place(site, release)}; mend the page, or {' or '.join(ways)}"
    )
