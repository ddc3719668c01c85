"""What the functional tests do again and again."""

from __future__ import annotations

import calendar
import hashlib
import re
import time
from pathlib import Path


def extension(repo: Path, ref: str = "main", **more) -> dict:
    return {"url": str(repo), "ref": ref, **more}


def archive(file: Path) -> dict:
    """An extension from an archive that the file server has at its top."""
    return {"archive": f"salt://{file.name}", "hash": "sha256=" + hashlib.sha256(file.read_bytes()).hexdigest()}


def later_id(host) -> str:
    """An id a second after the newest release: what a deploy a second later would give, without the wait."""
    newest = [time.strptime(name, "%Y%m%d%H%M%SZ") for name in host.releases() if re.fullmatch(r"20[0-8]\d{11}Z", name)]
    seconds = max([time.time(), *(calendar.timegm(stamp) + 1 for stamp in newest)])
    return time.strftime("%Y%m%d%H%M%SZ", time.gmtime(seconds))


def deployed(host, **options) -> str:
    return host.deploy(**options)["current"]
