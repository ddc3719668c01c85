"""
What every stage has: nobody else works on the host meanwhile, its hooks run, and the host's log says how it went.
"""

from __future__ import annotations

import contextlib
import time

from salt.exceptions import CommandExecutionError, SaltException

__virtualname__ = "ckan_stage"


def __virtual__() -> str:
    return __virtualname__


@contextlib.contextmanager
def running(
    settings: dict, name: str, release: str, by: str = "", job: str = "", reason: str = "", wait: float = 0,
    locked: bool = True,
):  # fmt: skip
    """
    Run a stage: with the lock of the host, with its hooks, timed, and written to the host's log.

    settings
        The settings.
    name
        The stage.
    release
        The release that it is about.
    by, job, reason
        Who asked, the run of the master that it belongs to, and why.
    wait
        How long to wait for another process that is at work on this host, in seconds.
    locked
        False where a lock of the environment is no obstacle.

    Yields the list of what is to be said besides. Raises ``CommandExecutionError``; what the system says is turned into
    a sentence.

    CLI Example: not for the command line.
    """
    with __salt__["ckan_lock.held"](settings, name, release, by, job, wait, locked):
        begun = time.monotonic()
        entry = {"stage": name, "release": release, "env": settings["env"], "by": by, "job": job, "reason": reason}
        hooks, warned, previous = [], [], __salt__["ckan_store.current"](settings["paths"])
        try:
            hooks += __salt__["ckan_hooks.run"]("before", name, settings, release, previous)
            yield warned
            hooks += __salt__["ckan_hooks.run"]("after", name, settings, release, previous)
            # Into the list that the stage has in its answer already.
            warned += [f"{hook['hook']} failed: {hook['problem']}" for hook in hooks if hook["problem"]]
        except (SaltException, OSError) as exc:
            entry.update(result="failed", reason=str(exc))
            if isinstance(exc, SaltException):
                raise
            raise CommandExecutionError(f"{exc.strerror or exc}: {exc.filename or 'unknown file'}") from exc
        else:
            entry["result"] = "ok"
        finally:
            if hooks:
                entry["hooks"] = hooks
            entry["seconds"] = round(time.monotonic() - begun, 3)
            __salt__["ckan_store.append_log"](settings["paths"], **{k: v for k, v in entry.items() if v != ""})
