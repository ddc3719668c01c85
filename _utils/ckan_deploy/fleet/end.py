"""The end of a run: an event, the report, and the sentence that the terminal shows last."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ckan_deploy.fleet import interrupts, progress, report, shipping
from ckan_deploy.fleet.run import Run
from ckan_deploy.releases import ids
from ckan_deploy.system import tables


def end(
    run: Run, how: str, text: str, *, more: Sequence[str] = (), lines: Sequence[str] = ()
) -> dict[str, Any]:  # fmt: skip
    """
    Tell that a run has ended.

    run
        The run.
    how
        ``done``, ``revert`` or ``refused``.
    text
        How it ended, in a sentence.
    more
        What belongs to that, a sentence each. The warnings of the run are told besides.
    lines
        The same for the end of the terminal, a line each; by default ``text`` and ``more``.

    Returns ``{"ok", "comment"}``.
    """
    interrupts.let_go()
    ok = how == "done" and not run.unsteady
    brief = "; ".join([text, *more])
    comment = "; ".join([text, *run.warnings, *more]) if how == "done" else brief
    progress.tell(run, how, "ok" if ok else "failed", comment=comment)
    began = bool(run.spans) and not run.nothing
    page = report.write(run, how, brief) if began else ""
    last = [*(lines or [text, *more]), *(f"warning: {warning}" for warning in run.warnings)]
    last += [f"took: {time.time() - run.spans[0].at:.1f} s", f"report: {page}"] if page else []
    result, *rest = map(tables.clean, last)
    progress.last_word("\n".join([progress.coloured(result, ok), *rest]))
    return {"ok": ok, "comment": comment}


def refused(run: Run, comment: str, reverted: Sequence[str] = ()) -> dict[str, Any]:
    """
    Tell that a run has not begun.

    run
        The run.
    comment
        What was in the way.
    reverted
        What came of the revert of a dead run, before that; that is all that was touched.

    Returns ``{"ok": False, "comment"}``.
    """
    if reverted:
        comment = f"{comment} -- what the run before had left was reverted first: {'; '.join(reverted)}"
    touched = "" if reverted else ", nothing was touched"
    end(run, "refused", f"{run.kind} to {run.env or 'no environment'} was refused{touched}: {comment}")
    return {"ok": False, "comment": comment}


def close(run: Run) -> dict[str, Any]:
    """
    End a run that went well: free its lock, and say in a line what is live where. Where a service or an app server does
    not stay up it is not ok, though it is live.

    run
        The run.

    Returns ``{"ok", "comment"}``.
    """
    if run.nothing:
        text = f"Nothing to deploy to {run.env}: {', '.join(run.hosts)} have it all; force: true deploys all the same"
    else:
        seconds = ", ".join(f"{name} {s} s" for name, s in run.seconds.items())
        text = f"{run.release} is live in {run.env} on {', '.join(run.hosts)} ({seconds})"
        # Once more, now with all the seconds.
        run.want()
    missing = [f"{host} is down and catches up at its next highstate: salt {host} state.highstate" for host in run.down]
    missing += [
        f"the app server of {release} on {host} still finishes requests, and supervisor sees to its end: "
        f"salt-run ckan.status {run.env} tells what came of it"
        for host, release in run.draining
    ]
    over(run, "ok")
    unsteady = []
    if run.unsteady:
        hosts = ",".join(sorted({what.partition(":")[0] for what in run.unsteady}))
        again = f"mend that, then type: salt -L {hosts} state.apply ckan"
        unsteady = [f"but not all of it stays up: {'; '.join(run.unsteady)}; {again}"]
    return end(run, "done", text, more=[*missing, *unsteady])


def over(run: Run, result: str) -> None:
    """
    Note that a run has ended, and free its deploy lock.

    run
        The run.
    result
        ``ok`` or ``failed``.
    """
    run.ended, run.result = ids.now(), result
    run.save()
    shipping.forget(run)
    run.record.free(run.job)
