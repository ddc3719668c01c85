"""The host's deploy log, ``shared/deploy.log``: one JSON object a line."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path
from typing import Any

from attrs import frozen

from ckan_deploy.releases.ids import now
from ckan_deploy.system import files, safely

log = logging.getLogger(__name__)


@frozen
class Log:
    """
    The log of a site on this host.

    folder
        The directory ``shared``.
    """

    folder: str

    def append(self, **entry: Any) -> str:
        """
        Add a line.

        entry
            What happened: ``stage``, ``release``, ``result``, ``seconds``, ``by``, ``reason``; what is '' is left out.

        Returns ``''``, or why there is no such line: what was done counts all the same.
        """
        said = {name: value for name, value in entry.items() if value != ""}
        line = json.dumps({"at": now(), **said}, sort_keys=True, ensure_ascii=False) + "\n"
        path = os.path.join(self.folder, "deploy.log")
        try:
            safely.ensure(self.folder)
            with files.usual_modes():
                fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o640)
            try:
                # A line that was cut short, by a kill or a full disk, must not spoil this one.
                size = os.fstat(fd).st_size
                torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
                # One write call in append mode: lines of two processes do not mix.
                data = (b"\n" if torn else b"") + line.encode("utf-8")
                if os.write(fd, data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            finally:
                os.close(fd)
        except OSError as exc:
            log.warning("%s cannot be written (%s), so it lacks: %s", path, exc.strerror, line.strip())
            return f"the history on this host lacks this stage: {path} cannot be written ({exc.strerror})"
        return ""

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
