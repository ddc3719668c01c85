"""
What becomes of a run when its terminal closes, or somebody types Ctrl-C.

A closed terminal (SIGHUP) has no effect: the run goes on to its end, or to its revert. The first Ctrl-C (SIGINT) is
noted, and the run is reverted in order when the stage at work has ended. The next one does what Salt does.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_SAID = (
    "\nInterrupted: the run is reverted as soon as the stage at work has ended. Ctrl-C once more ends this command at "
    "once, and leaves the hosts as they are; type then: salt-run ckan.unlock {env}"
)


class _Noted:
    """A handler of SIGINT that notes the first one, and hands on the next ones."""

    def __init__(self, env: str, before: Any) -> None:
        self.env, self.before, self.asked = env, before, False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.asked:
            self.asked = True
            with contextlib.suppress(OSError, ValueError):
                print(_SAID.format(env=self.env), file=sys.stderr, flush=True)
            return
        signal.signal(signal.SIGINT, self.before)
        signal.raise_signal(signal.SIGINT)


def hold(env: str) -> None:
    """
    See to it that this program does not die of a closed terminal, or of one Ctrl-C, as long as it has a run.

    env
        The name of the environment.
    """
    # Elsewhere, such as in salt-api, signals are somebody else's.
    if threading.current_thread() is not threading.main_thread():
        return
    handler = _handler()
    # What was typed in a run before is no business of this one.
    before = handler.before if isinstance(handler, _Noted) else handler
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, _Noted(env, before or signal.SIG_DFL))


def asked() -> bool:
    """Say whether somebody has typed Ctrl-C since ``hold``."""
    handler = _handler()
    return isinstance(handler, _Noted) and handler.asked


def let_go() -> None:
    """Undo ``hold``, but for a closed terminal: this program has to print how the run ended, and nothing else."""
    handler = _handler()
    if isinstance(handler, _Noted) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler.before)


def _handler() -> Callable[..., Any] | int | None:
    return signal.getsignal(signal.SIGINT)
