"""
What the formula's execution modules answer, as tables and short texts for people. ``--out json`` gives the data.

Salt takes the name of this outputter from the answer (``__outputter__`` of a module). ``salt`` needs it on the master:
``salt-run saltutil.sync_all``; ``salt-call`` on the minion: ``saltutil.sync_all``.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import salt.output
import salt.utils.color

log = logging.getLogger(__name__)

# Of the package: Salt puts it into the path of modules, states and runners, and not into that of outputters.
FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COLORS = {"heading": "CYAN", "good": "GREEN", "bad": "LIGHT_RED"}


def output(data: Any, **kwargs: Any) -> str:
    """
    Return the answers of hosts as text. What is no answer of a function that has one, such as an error, looks as ever.

    data
        What each host says.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_release.list
        salt web1 ckan_release.list --out json
    """
    try:
        texts = _texts()
        text = texts.TEXTS.get(str(__opts__.get("fun")))
        if text and isinstance(data, dict) and data:
            # A failure is a sentence.
            told = {host: salt.output.strip_esc_sequence(said) if isinstance(said, str) else text(said, _paint)
                    for host, said in data.items()}  # fmt: skip
            return "".join(_host(host, said) for host, said in told.items())
    except Exception:
        # Another version of the formula on the minion, or half a sync: the data is there all the same.
        log.debug("the answer cannot be shown as a table", exc_info=True)
    # Of two that call each other there would be no end, where somebody has typed --out ckan.
    return salt.output.out_format(data, "nested", {**__opts__, "output": "nested"})


def _texts() -> Any:
    for name in ("utils", "_utils"):
        folder = os.path.join(FOLDER, name)
        if os.path.isdir(os.path.join(folder, "ckan_deploy")) and folder not in sys.path:
            sys.path.append(folder)
    from ckan_deploy.deploy import texts

    return texts


def _host(host: str, text: str) -> str:
    lines = "".join(f"    {line}\n" if line else "\n" for line in text.splitlines())
    return f"{_paint('heading', f'{host}:')}\n{lines}"


def _paint(how: str, text: str) -> str:
    if not __opts__.get("color") or os.environ.get("NO_COLOR"):
        return text
    colors = salt.utils.color.get_colors(True, __opts__.get("color_theme"))
    return f"{colors[COLORS[how]]}{text}{colors['ENDC']}"
