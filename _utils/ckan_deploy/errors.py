"""What the package raises. The text is the sentence that an operator reads."""

from __future__ import annotations

import errno
import re
import shutil


class FormulaError(Exception):
    """
    Something cannot be done; the thin modules raise it as Salt's ``CommandExecutionError``.

    details
        What a program said besides, in lines and without secrets: for the log and the report, not for the sentence.
    """

    details: str = ""

    def with_details(self, details: str) -> FormulaError:
        """
        Return the same with details.

        details
            Lines without secrets.
        """
        self.details = details
        return self


class InvalidArgument(FormulaError):
    """What was typed cannot be meant; the thin modules raise it as Salt's ``SaltInvocationError``."""


def sentence(exc: BaseException) -> str:
    """
    Return what an exception says, for people.

    exc
        The exception; one of the system says what it was about, one that is not ours which kind it is.
    """
    if isinstance(exc, FormulaError):
        return str(exc)
    if isinstance(exc, shutil.Error) and exc.args and isinstance(exc.args[0], list) and exc.args[0]:
        # Of a tree that was copied: each file that could not be.
        _, place, reason = exc.args[0][0]
        others = len(exc.args[0]) - 1
        why = re.sub(r"\[Errno \d+\] ([^:]+).*", r"\1", str(reason), flags=re.DOTALL)
        return f"{place}{f' and {others} more' if others else ''} cannot be copied: {why}"
    if isinstance(exc, OSError) and exc.errno == errno.EROFS:
        return (
            f"{exc.filename or 'a file'} cannot be written, since its file system is mounted read-only; see why with "
            "dmesg, then type: mount -o remount,rw MOUNTPOINT"
        )
    if isinstance(exc, OSError) and exc.strerror:
        return f"{exc.strerror}: {exc.filename or 'unknown file'}"
    if isinstance(exc, (KeyboardInterrupt, SystemExit)):
        return "it was stopped"
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
