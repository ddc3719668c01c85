"""
Programs of ours that other interpreters run: that of a release, and the system's for cron. They import nothing of the
package, and the package imports none of them; those of one script are one text.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

# What the boot check and all other questions to a release are made of, and what those to its backends are.
PROBE = ("connection", "schema", "search", "plugins", "assets", "probe")
BACKENDS = ("connection", "schema", "search", "backends")
SERVICE, CRON = ("service",), ("cron",)


def text(names: Iterable[str]) -> str:
    """
    Return the text of a script.

    names
        The modules that it is made of, in their order.
    """
    folder, found = os.path.dirname(__file__), []
    for name in names:
        with open(os.path.join(folder, f"{name}.py"), encoding="utf-8") as handle:
            found.append(handle.read())
    return "\n".join(found)
