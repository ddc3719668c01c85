"""
Supervisor, asked by way of Salt's module ``supervisord``: the one of the system, or one of our own.
"""

from __future__ import annotations

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_supervisor"


def __virtual__() -> str:
    return __virtualname__


def ask(function: str, settings: dict, **arguments: str) -> str:
    """
    Call a function of ``supervisord`` and return what supervisor says.

    function
        Its name, such as ``update``.
    settings
        The settings.
    arguments
        Its arguments.

    CLI Example: not for the command line; use ``supervisord.status``.
    """
    conf_file = settings["web"]["supervisor_conf"] or None
    answer = __salt__[f"supervisord.{function}"](conf_file=conf_file, **arguments)
    # supervisorctl ends with 3 where a program stands still, which Salt would make the exit code of the whole job.
    __context__.pop("retcode", None)
    return answer


def problem(settings: dict) -> str:
    """
    Say what keeps supervisor from being asked, or ``''``.

    settings
        The settings.

    CLI Example: not for the command line; ``ckan_web.supervisor_problem`` uses it.
    """
    return _problem(ask("status_raw", settings))


def expect(function: str, settings: dict, **arguments: str) -> str:
    """
    As ``ask``, for where supervisor has to answer.

    function, settings, arguments
        As for ``ask``.

    Raises ``CommandExecutionError`` when it does not answer.

    CLI Example: not for the command line; ``ckan_jobs`` uses it.
    """
    said = ask(function, settings, **arguments)
    if _problem(said):
        raise CommandExecutionError(f"{_problem(said)}.")
    return said


def last_line(said: str) -> str:
    """
    Return the last line of what supervisor said, for a message.

    said
        What it said.

    CLI Example: not for the command line.
    """
    lines = [line.strip() for line in (said or "").splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def _problem(said: str) -> str:
    if "refused" in said or "no such file" in said or "SHUTDOWN" in said:
        return f"supervisor does not answer ({last_line(said)}); start it"
    return ""
