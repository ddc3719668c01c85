"""A virtualenv with a real CKAN, as the official source install makes it, plus uWSGI."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from parts.process import PartError, run

# Not in a home directory: the build user reads the base, and runs uv.
CACHE = Path("/var/cache/ckan-formula") if os.geteuid() == 0 else Path.home() / ".cache/ckan-formula"
# The version that tests and demo run.
CKAN = "2.12.0"
_MARKER = ".ckan-formula-base"


def uv_path() -> str:
    """Return the path of a uv that every user may run: a copy of the one beside this interpreter or in PATH.

    Raises PartError if there is none.
    """
    beside = Path(sys.executable).parent / "uv"
    found = Path(beside if beside.exists() else shutil.which("uv") or "")
    if not found.is_file():
        raise PartError("uv is missing: install the package uv from the Python package index")
    copy = CACHE / "bin/uv"
    if not copy.exists() or copy.stat().st_size != found.stat().st_size:
        copy.parent.mkdir(parents=True, exist_ok=True)
        draft = f"{copy}.{os.getpid()}"
        shutil.copy2(found, draft)
        os.replace(draft, copy)
    return str(copy)


@contextlib.contextmanager
def alone(path: str | Path):
    """Wait until no other process makes the same thing in the cache, and keep others waiting meanwhile."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f"{path.name}.lock"), "w", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def build_base(
    path: str | Path | None = None,
    version: str = CKAN,
    python: str = "/usr/bin/python3",
    say: Callable[[str], None] | None = None,
) -> Path:
    """Make a virtualenv with CKAN, its requirements and uWSGI, unless a complete one is there.

    path
        Where it is wanted; by default in the user's cache, named after both versions.
    version
        CKAN version.
    python
        Interpreter that it stands on.
    say
        Called with progress lines.

    Returns its path. Raises PartError when a step fails.
    """
    if path is None:
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        result = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
        path = CACHE / f"base-{version}-py{result.stdout.strip()}"
    with alone(path):
        return _built(Path(path), version, python, say)


def _built(path: Path, version: str, python: str, say: Callable[[str], None] | None) -> Path:
    marker = path / _MARKER
    wanted = f"ckan {version}, {python}\n"
    if marker.exists() and marker.read_text() == wanted:
        return path
    # A virtualenv cannot be moved, so it is built in place: what has no marker was interrupted.
    if path.exists():
        if any(path.iterdir()) and not (path / "pyvenv.cfg").exists():
            raise PartError(f"{path} is no virtualenv and will not be replaced; give another path")
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.with_name(f"{path.name}.log")
    uv = uv_path()
    run([uv, "venv", "--python", python, path], f"Making a virtualenv in {path}", log, say=say)
    install = [uv, "pip", "install", "--python", path / "bin/python", "--compile-bytecode"]
    install += [f"ckan[requirements]=={version}", "uwsgi"]
    run(install, f"Installing CKAN {version} and uWSGI", log, say=say)
    marker.write_text(wanted)
    return path
