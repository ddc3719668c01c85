"""The host's deploy log, ``shared/deploy.log``: one JSON object a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from attrs import frozen

from ckan_deploy.releases.ids import now
from ckan_deploy.system import safely


@frozen
class Log:
    """
    The log of a site on this host.

    folder
        The directory ``shared``.
    """

    folder: str

    def append(self, **entry: Any) -> None:
        """
        Add a line.

        entry
            What happened: ``stage``, ``release``, ``result``, ``seconds``, ``by``, ``reason``; what is '' is left out.
        """
        safely.ensure(self.folder)
        said = {name: value for name, value in entry.items() if value != ""}
        line = json.dumps({"at": now(), **said}, sort_keys=True, ensure_ascii=False) + "\n"
        # One write call in append mode: lines of two processes do not mix.
        fd = os.open(os.path.join(self.folder, "deploy.log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        try:
            os.write(fd, line.encode("utf-8"))
        finally:
            os.close(fd)

    def read(self, limit: int = 50) -> list[dict[str, Any]]:
        """
        Return the newest entries, newest first.

        limit
            How many at most.
        """
        try:
            lines = Path(self.folder, "deploy.log").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        entries: list[dict[str, Any]] = []
        for line in reversed(lines):
            if len(entries) >= limit:
                break
            try:
                entries.append(json.loads(line))
            except ValueError:
                continue
        return entries
