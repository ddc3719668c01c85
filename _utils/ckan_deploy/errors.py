"""What the package raises. The text is the sentence that an operator reads."""

from __future__ import annotations


class FormulaError(Exception):
    """Something cannot be done; the thin modules raise it as Salt's ``CommandExecutionError``."""


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
    if isinstance(exc, OSError) and exc.strerror:
        return f"{exc.strerror}: {exc.filename or 'unknown file'}"
    if isinstance(exc, (KeyboardInterrupt, SystemExit)):
        return "it was stopped"
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
