"""Archives of every kind for the tests: wheels and sdists with members as they are wanted, good or bad."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

WHEEL = "ckanext_alpha-1.0-py3-none-any.whl"


def wheel(path: Path, members: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (members or {"ckanext/alpha/__init__.py": b"x = 1\n"}).items():
            archive.writestr(name, data)
    return path


def sdist(path: Path, *members: tarfile.TarInfo | str) -> Path:
    with tarfile.open(path, "w:" + {".tgz": "gz"}.get(path.suffix, path.suffix[1:])) as archive:
        for member in members or ("ckanext-alpha-1.0/setup.py",):
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            data = b"x" * (info.size if info.isfile() else 0) or b"x"
            info.size = len(data) if info.isfile() else 0
            archive.addfile(info, io.BytesIO(data))
    return path


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
