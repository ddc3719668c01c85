"""Directories that are made once, whoever wants them."""

from __future__ import annotations

import os
import threading
import time

import pytest

from ckan_deploy.errors import FormulaError
from ckan_deploy.system import files


def test_what_is_made_once_is_made_once_and_what_was_not_finished_is_made_again(tmp_path):
    place, made = tmp_path / "top/layer", []

    def make() -> dict[str, int]:
        assert not place.exists()
        place.mkdir()
        time.sleep(0.05)
        made.append(1)
        return {"made": len(made)}

    threads = [threading.Thread(target=files.once, args=(str(place), make)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (made, (place / ".done").read_text()) == ([1], '{"made": 1}')
    # As a kill leaves it: the mark is written last.
    (place / ".done").unlink()
    (place / "half").touch()
    files.once(str(place), make)
    assert (len(made), sorted(os.listdir(place))) == (2, [".done"])


def test_what_cannot_be_made_leaves_nothing_behind(tmp_path):
    def fail() -> None:
        (tmp_path / "layer").mkdir()
        raise FormulaError("no such package")

    with pytest.raises(FormulaError, match="no such package"):
        files.once(str(tmp_path / "layer"), fail)
    assert not (tmp_path / "layer").exists()
