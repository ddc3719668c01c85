"""All stages of a deploy on one host alone, and a host that catches up with its environment."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from attrs import Factory, define

from ckan_deploy.database import compatibility
from ckan_deploy.deploy import plan, preflight, stages, switch
from ckan_deploy.deploy.rollback import go
from ckan_deploy.errors import FormulaError, sentence
from ckan_deploy.releases import lock, stage
from ckan_deploy.releases.ids import check_id, new_id
from ckan_deploy.releases.manifest import Resolution
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import maintenance

log = logging.getLogger(__name__)


class StageFailed(FormulaError):
    """A stage after the plan failed, and was reverted."""


def deploy(
    open_site: Callable[[], Site], release: str = "", by: str = "", job: str = "", closed: bool = False,
    renew: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """
    Run all stages on this host alone. A failure at any stage leaves the host on the release that it served before.

    open_site
        Makes the site; settings that do not hold are a failure of the plan.
    release
        The id to give; by default a stamp of now.
    by, job
        Who asked, and the id of the job.
    closed
        Visitors get the maintenance page from the stage migrate to the end of verify.
    renew
        As for ``plan.make``.

    Returns ``{"current": id, "previous": id, "changes": [sentences], "seconds": {stage: s}}``, and ``warnings`` where
    there are any. Raises ``FormulaError`` that names the stage.
    """
    entered: list[_Deploy] = []
    try:
        site = open_site()
        stage.refuse_builder(site)
        if release:
            check_id(release)
        with lock.held(site, "deploy", release, by, job):
            planned = plan.make(site, release or new_id(), renew=renew)
            assert planned.resolution
            entered.append(_Deploy(site, planned.release, planned.current, planned.resolution, by, job))
            entered[0].warned += [*planned.resolution.notes, *planned.own_remarks]
            done = entered[0].run(closed)
    except StageFailed:
        raise
    except Exception as exc:
        log.debug("the deploy failed", exc_info=True)
        if entered:  # a fault of the code: what a stage raises is reverted, and is a StageFailed
            now = site.releases.current() or "no release"
            raise FormulaError(f"{sentence(exc)}; this host is on {now} now; look with: ckan_release.status") from exc
        raise FormulaError(f"the deploy failed at plan: {sentence(exc)} -- nothing was touched.") from exc
    return {
        "current": planned.release, "previous": planned.current,
        "changes": [*planned.changes, *planned.own_changes, *planned.remarks], **done,
    }  # fmt: skip


def catch_up(open_site: Callable[[dict[str, Any] | None], Site], by: str = "", job: str = "") -> dict[str, Any]:
    """
    Bring this host to the release that its environment is on, which it has missed: that very one, built of the same
    commits and packages, or taken from the releases here.

    open_site
        Makes the site, given what differs from the pillar for one deploy.
    by, job
        Who asked, and the id of the job.

    Returns ``{"current": id, "previous": id}``, with ``seconds`` and ``warnings`` where there are any. Raises
    ``FormulaError`` when it is not known which one that is, or when it cannot be served here; the host then serves what
    it served before.
    """
    wanted = open_site(None).environment.wanted
    if not wanted:
        raise FormulaError(
            "the pillar does not say which release the environment is on; type on the master: salt-run ckan.status ENV"
        )
    extensions = dict(wanted.extensions)
    site, release = open_site({"extensions": extensions} if extensions else None), check_id(wanted.release)
    stage.refuse_builder(site)
    with lock.held(site, "catch_up", release, by, job):
        current = site.releases.current()
        if current == release:
            return {"current": release, "previous": release}
        have = site.releases.find(release)
        if have and have.state == "bad":
            raise FormulaError(
                f"the environment is on {release}, which is marked bad here ({have.bad_reason}); take it "
                f"with: ckan_release.activate {release} force=True"
            )
        if have and have.state in ("live", "retired"):
            # What is left is newer where the others went back meanwhile.
            left = "bad" if current > release else "retired"
            return go(site, release, left, by, "the environment is on another one", job)
        if have:
            stages.abort(site, release, "left unfinished", by, job)
        problems = preflight.obstacles(site, release, any_age=True)
        if problems:
            raise FormulaError("; ".join(problems) + ".")
        resolution = Resolution.of(wanted.contents)
        done = _Deploy(site, release, current, resolution, by, job, served=True).run()
        return {"current": release, "previous": current, **done}


@define
class _Deploy:
    """
    A release is built on this host alone and made live; what fails is reverted. ``served``: other hosts serve it.
    ``stage`` is the one that it is at, ``closed`` whether it has turned maintenance mode on.
    """

    site: Site
    release: str
    previous: str
    resolution: Resolution
    by: str
    job: str
    served: bool = False
    stage: str = ""
    closed: bool = False
    seconds: dict[str, float] = Factory(dict)
    warned: list[str] = Factory(list)

    def run(self, closed: bool = False) -> dict[str, Any]:
        """All stages after the plan, in order; ``closed`` as for ``deploy``."""
        try:
            self._make_live(closed)
        except BaseException as exc:
            log.debug("the deploy failed at %s", self.stage, exc_info=True)
            failed = self._reverted(exc)
            if isinstance(exc, Exception):
                raise failed from exc
            log.error("%s", failed)  # stopped from outside: that goes on
            raise
        self._follow()
        warned = list(dict.fromkeys(self.warned))
        return {"seconds": self.seconds, **({"warnings": warned} if warned else {})}

    def _make_live(self, closed: bool) -> None:
        """From build to verify: what fails here is reverted."""
        self._timed("build", self._build)
        checked = self._timed("check", lambda: self._check(closed))
        self.stage = "migrate"
        if closed or checked.get("maintenance"):
            self._close()
        for name, run in (("migrate", self._migrate), ("start", self._start), ("activate", self._activate)):
            self._timed(name, run)
        self._timed("verify", self._verify)
        if self.closed:
            self.warned += maintenance.off(self.site, self.by).get("warnings", [])

    def _follow(self) -> None:
        """Search index and finish: the release is served, so what fails here is a warning."""
        # A host that catches up comes to an index that others have seen to.
        index, warned = ({}, []) if self.served else switch.reindex(self.site, self.release, self.by, self.job)
        self.warned += warned
        try:
            self.warned += stages.finish(self.site, self.release, by=self.by, job=self.job, index=index)["warnings"]
        except Exception as exc:
            log.debug("finish failed", exc_info=True)
            self.warned.append(
                f"{self.release} is live, but its finish failed: {sentence(exc)}; mend that, then type: "
                f"ckan_release.finish {self.release}"
            )

    def _timed(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        begun, self.stage = time.monotonic(), name
        try:
            done = run()
            self.warned += done.get("warnings", [])
            return done
        finally:
            self.seconds[name] = round(time.monotonic() - begun, 2)

    def _build(self) -> dict[str, Any]:
        stages.build(self.site, self.release, self.resolution, self.by, self.job)
        return {}

    def _check(self, closes: bool) -> dict[str, Any]:
        return stages.check(self.site, self.release, self.by, self.job, self.served, closes, boots=not closes)

    def _close(self) -> None:
        # Noted before it is done: it may get half-way.
        self.closed = not maintenance.status(self.site)["on"]
        maintenance.on(self.site, "deploy", self.by, stop_workers=True)

    def _migrate(self) -> dict[str, Any]:
        return stages.migrate(self.site, self.release, self.by, self.job)

    def _start(self) -> dict[str, Any]:
        return stages.start(self.site, self.release, self.by, self.job)

    def _activate(self) -> dict[str, Any]:
        return stages.activate(self.site, self.release, by=self.by, job=self.job)

    def _verify(self) -> dict[str, Any]:
        return stages.verify(self.site, self.release, self.by, self.job)

    def _reverted(self, exc: BaseException) -> StageFailed:
        """Revert, and return the sentence that says what came of it: as it is now, whatever was meant to be."""
        cause, undone, left = sentence(exc), "", []
        try:
            done = stages.abort(self.site, self.release, f"{self.stage}: {cause}", self.by, self.job)
            left = done.get("warnings", [])
        except Exception as problem:
            log.debug("the revert failed", exc_info=True)
            undone = sentence(problem)
        now = self.site.releases.current()
        if undone:
            serves = f"the revert failed, too ({undone}): this host is on {now or 'no release'} now"
            left = [f"mend that, then type: ckan_release.abort {self.release}"]
        elif now == self.previous:
            serves = f"this host serves {now or 'what it served'} as before"
        else:
            serves = f"this host is on {now or 'no release'} now, and was on {self.previous or 'no release'} before"
        told = "; ".join([serves, *left, *(self._opened(bool(undone)) if self.closed else [])])
        return StageFailed(
            f"the deploy of {self.release} failed at {self.stage}: {cause} -- {told}; mend the cause and deploy again."
        )

    def _opened(self, undone: bool) -> list[str]:
        """Let visitors in again, where the database is one that what is served knows; returns what is left to do."""
        try:
            # Other hosts may be open, so whether a dump loses nothing is for the operator to say.
            problem = "" if undone else compatibility.mismatch(self.site, self.previous)
            if not problem and not undone:
                maintenance.off(self.site, self.by)
                return []
        except Exception as exc:
            return [
                f"visitors get the maintenance page ({sentence(exc)}): when all is well, type: ckan_maintenance.off"
            ]
        if undone:
            return ["visitors get the maintenance page: when all is well, type: ckan_maintenance.off"]
        return [
            f"visitors get the maintenance page, since {problem}; put the dump back (ckan_backup.restore "
            f"{self.release} confirm={self.release}), then type: ckan_maintenance.off"
        ]
