"""
Run the programs that build a release: quietly, as another user where that is asked for, with words for what they say.
And what a process that serves takes.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from typing import Any

import psutil
from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_process"


def __virtual__() -> str:
    return __virtualname__


def run(
    command: list[str],
    user: str = "",
    env: dict[str, str] | None = None,
    cwd: str = "/",
    timeout: int = 600,
) -> dict[str, Any]:
    """
    Run a program and return what it said.

    command
        The program and its arguments.
    user
        Who runs it; '' for whoever runs this. That user needs neither a shell nor a home: HOME is ``/nonexistent``
        unless ``env`` names one.
    env
        Variables beside those that are there. What is secret belongs here, not into ``command``.
    cwd
        Where it runs.
    timeout
        Seconds.

    Returns ``{"retcode", "stdout", "stderr", "pid"}``. It never raises for a program that fails; for one that is not
    there ``CommandExecutionError``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_process.run '[id]' user=ckan-build
    """
    if not shutil.which(command[0]):
        raise CommandExecutionError(f"there is no program {command[0]}; install it or correct its path.")
    env = {"LC_ALL": "C.UTF-8", **(env or {})}
    if user and os.geteuid() == 0:
        # Not Salt's runas: that one wants a login, and build users have no shell.
        command = ["runuser", "-u", user, "--", *command]
        env.setdefault("HOME", "/nonexistent")
    return __salt__["cmd.run_all"](
        command,
        python_shell=False,
        cwd=cwd,
        umask="022",
        env=env,
        reset_system_locale=False,
        output_loglevel="quiet",
        ignore_retcode=True,
        timeout=timeout,
    )


def usage(pid: int) -> dict[str, float]:
    """
    Say what a process takes.

    pid
        Its id.

    Returns ``{"memory_mb", "age_seconds"}``; memory is what it has for itself alone (USS). Raises ``psutil.Error``.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_process.usage 19844
    """
    process = psutil.Process(pid)
    return {
        "memory_mb": round(process.memory_full_info().uss / 2**20, 1),
        "age_seconds": round(time.time() - process.create_time()),
    }


def tail(said: dict[str, Any], lines: int = 12, hide: list[str] | None = None) -> str:
    """
    Return the last lines of what a program said as one, without its progress and without passwords.

    said
        What ``run`` returned.
    lines
        How many lines at most.
    hide
        Texts that must not appear.

    CLI Example: not for the command line.
    """
    text = said["stderr"] if said["stderr"].strip() else said["stdout"]
    kept = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    first = next((index for index, line in enumerate(kept) if re.match(r"(error|ERROR|×|x )", line)), 0)
    # What a traceback goes through helps nobody here; its last line says it.
    kept = [line for line in kept[first:] if not re.match(r"(Traceback \(most|File \"|hint: )", line)]
    told = " ".join(kept[-lines:]) or "no message"
    for secret in filter(None, hide or []):
        told = told.replace(secret, "****")
    return re.sub(r"://[^/@\s]+@", "://", told)
