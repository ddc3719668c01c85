"""Scripts of ours that CKAN's interpreter runs, for what only CKAN's libraries can tell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from attrs import frozen

from ckan_deploy import scripts
from ckan_deploy.releases.site import Site
from ckan_deploy.settings import mask
from ckan_deploy.system import processes


@frozen
class Script:
    """
    Modules of ``ckan_deploy.scripts``, one text for the interpreter. What it prints ends with a line: ``mark`` and
    JSON. What is printed before it is not ours: libraries and plugins print what they like.
    """

    names: tuple[str, ...]
    mark: str

    def run(
        self, site: Site, python: str, arguments: Sequence[str], cwd: str, timeout: float, call: str = "",
        env: dict[str, str] | None = None,
    ) -> tuple[dict[str, Any] | None, str]:  # fmt: skip
        """
        Run it as the user of CKAN.

        site
            The site.
        python
            The interpreter.
        arguments
            Its arguments, with ``-`` where the script goes; never a secret.
        cwd
            The directory to run it in.
        timeout
            Seconds it may take.
        call
            What follows the script: it goes by standard input, so it may hold secrets.
        env
            Further variables.

        Returns what it tells, None where it ended before that; and the last line of what it said, without secrets, or
        ``no output``. Raises ``FormulaError`` where it does not run, or takes too long.
        """
        text = "\n".join([scripts.text(self.names), call, ""])
        done = processes.run(
            [python, *arguments], user=site.settings.user, stdin=text, cwd=cwd, timeout=timeout,
            env={"PYTHONUTF8": "1", "PYTHONDONTWRITEBYTECODE": "1", "HOME": site.home, **(env or {})},
        )  # fmt: skip
        line = next((row for row in reversed(done.stdout.splitlines()) if row.startswith(self.mark)), None)
        rest = [row.strip() for row in (done.stderr or done.stdout).splitlines() if row.strip()]
        last = mask.text(rest[-1], site.settings) if rest else "no output"
        try:
            told = json.loads(line.removeprefix(self.mark)) if line else None
        except ValueError:
            told = None
        return (told if isinstance(told, dict) else None), last
