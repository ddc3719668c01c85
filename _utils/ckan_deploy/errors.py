"""What the package raises. The text is the sentence that an operator reads."""

from __future__ import annotations


class FormulaError(Exception):
    """Something cannot be done; the thin modules raise it as Salt's ``CommandExecutionError``."""


class InvalidArgument(FormulaError):
    """What was typed cannot be meant; the thin modules raise it as Salt's ``SaltInvocationError``."""
