"""All stages of a deploy on one host alone, and a host that catches up with its environment."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from attrs import frozen

from ckan_deploy.database import compatibility
from ckan_deploy.deploy import plan, preflight, stages, switch
from ckan_deploy.deploy.rollback import go
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases import lock
from ckan_deploy.releases.ids import check_id, new_id
from ckan_deploy.releases.manifest import Resolution
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import maintenance


class StageFailed(FormulaError):
    """A stage after the plan failed, and was reverted."""


def deploy(
    open_site: Callable[[], Site], release: str = "", by: str = "", job: str = "", closed: bool = False
) -> dict[str, Any]:
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

    Returns ``{"current": id, "previous": id, "changes": [sentences], "seconds": {stage: s}}``, and ``warnings`` where
    there are any. Raises ``FormulaError`` that names the stage.
    """
    try:
        site = open_site()
        if release:
            check_id(release)
        with lock.held(site, "deploy", release, by, job):
            planned = plan.make(site, release or new_id())
            assert planned.resolution
            done = _Deploy(site, planned.release, planned.current, planned.resolution, by, job).run(closed)
    except StageFailed:
        raise
    except FormulaError as exc:
        raise FormulaError(f"the deploy failed at plan: {exc} -- nothing was touched.") from exc
    return {
        "current": planned.release, "previous": planned.current,
        "changes": [*planned.changes, *planned.own_changes], **done,
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


@frozen
class _Deploy:
    """A release is built on this host alone and made live; what fails is reverted. ``served``: other hosts serve it."""

    site: Site
    release: str
    previous: str
    resolution: Resolution
    by: str
    job: str
    served: bool = False

    def run(self, closed: bool = False) -> dict[str, Any]:
        """All stages after the plan, in order; ``closed`` as for ``deploy``."""
        seconds: dict[str, float] = {}
        self._timed(seconds, "build", self._build)
        checked = self._timed(seconds, "check", lambda: self._check(closed))
        closes = self._close("migrate") if closed or checked.get("maintenance") else False
        for name, run in (
            ("migrate", self._migrate), ("start", self._start), ("activate", self._activate), ("verify", self._verify),
        ):  # fmt: skip
            self._timed(seconds, name, run, closes)
        if closes:
            maintenance.off(self.site, self.by)
        # A host that catches up comes to an index that others have seen to.
        index, warned = ({}, []) if self.served else switch.reindex(self.site, self.release, self.by, self.job)
        finished = stages.finish(self.site, self.release, by=self.by, job=self.job, index=index)
        warned = warned + finished["warnings"]
        return {"seconds": seconds, **({"warnings": warned} if warned else {})}

    def _timed(
        self, seconds: dict[str, float], name: str, run: Callable[[], dict[str, Any]], closed: bool = False
    ) -> dict[str, Any]:
        begun = time.monotonic()
        try:
            return run()
        except FormulaError as exc:
            raise self._reverted(name, exc, closed) from exc
        finally:
            seconds[name] = round(time.monotonic() - begun, 2)

    def _build(self) -> dict[str, Any]:
        stages.build(self.site, self.release, self.resolution, self.by, self.job)
        return {}

    def _check(self, closes: bool) -> dict[str, Any]:
        return stages.check(self.site, self.release, self.by, self.job, self.served, closes)

    def _close(self, name: str) -> bool:
        try:
            return bool(maintenance.on(self.site, "deploy", self.by, stop_workers=True)["changed"])
        except FormulaError as exc:
            raise self._reverted(name, exc, False) from exc

    def _migrate(self) -> dict[str, Any]:
        return stages.migrate(self.site, self.release, self.by, self.job)

    def _start(self) -> dict[str, Any]:
        return stages.start(self.site, self.release, self.by, self.job)

    def _activate(self) -> dict[str, Any]:
        return stages.activate(self.site, self.release, by=self.by, job=self.job)

    def _verify(self) -> dict[str, Any]:
        return stages.verify(self.site, self.release, self.by, self.job)

    def _reverted(self, name: str, exc: FormulaError, closed: bool) -> StageFailed:
        """Revert, and return the sentence that says so."""
        stages.abort(self.site, self.release, f"{name}: {exc}", self.by, self.job)
        # Other hosts may be open, so whether a dump loses nothing is for the operator to say.
        problem = compatibility.mismatch(self.site, self.previous) if closed else ""
        serves = f"this host serves {self.previous or 'what it served'} as before"
        if problem:
            serves += (
                f", behind the maintenance page: {problem}; put the dump back "
                f"(ckan_backup.restore {self.release}), then type: ckan_maintenance.off"
            )
        elif closed:
            maintenance.off(self.site, self.by)
        return StageFailed(
            f"the deploy of {self.release} failed at {name}: {exc} -- {serves}; mend the cause and deploy again."
        )
