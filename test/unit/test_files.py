"""The scripts that a release's interpreter is given by standard input."""

from __future__ import annotations

import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FILES = Path(__file__).resolve().parents[2] / "ckan/files"


def test_the_parts_of_the_probe_are_one_script():
    text = "\n".join((FILES / f"{name}.py").read_text() for name in ("schema", "search", "probe"))
    names: dict = {"__name__": "probe"}
    exec(compile(text, "probe", "exec"), names)
    assert callable(names["main"]) and callable(names["read"]) and callable(names["rebuild_index"])


def test_the_umask_is_as_it_was_whatever_order_threads_end_in_and_what_salt_does_meanwhile(tmp_path):
    """A run had made directories that nobody could enter: Salt sets the umask for a moment when it fetches a file."""
    before, inside, go_on = os.umask(0o027), threading.Event(), threading.Event()
    try:

        def first() -> None:
            with files.usual_modes():
                inside.set()
                go_on.wait(5)

        def salt() -> None:
            with files.umask_kept():
                was = os.umask(0o077)
                inside.set()
                go_on.wait(5)
                os.umask(was)

        for other in (first, salt):
            inside.clear()
            go_on.clear()
            with ThreadPoolExecutor(1) as pool:
                done = pool.submit(other)
                assert inside.wait(5)
                threading.Timer(0.2, go_on.set).start()
                with files.usual_modes():
                    if other is first:
                        go_on.set()
                    done.result()
                    (tmp_path / other.__name__).mkdir()
            assert stat.S_IMODE((tmp_path / other.__name__).stat().st_mode) == 0o755
            assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
