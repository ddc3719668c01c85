"""Archives of layers and releases: what goes into them, and what none of them may bring."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ckan_deploy.build import packing, unpacking
from ckan_deploy.build.shipment import Shipment
from ckan_deploy.errors import FormulaError, InvalidArgument

SITE = "lib/python3.11/site-packages"
PYTHON = os.path.realpath(sys.executable)


def virtualenv(path: Path) -> Path:
    """A virtualenv as an installer leaves it, with all that names its place."""
    for name, text in {
        "pyvenv.cfg": f"home = {os.path.dirname(PYTHON)}\nversion = 3.11.2\n",
        "bin/tool": f"#!{path}/bin/python\nprint('tool')\n",
        f"{SITE}/lib.py": "X = 1\n",
        f"{SITE}/a.pth": f"{path}/src/x\n",
        f"{SITE}/lib-1.dist-info/RECORD": "lib.py,,\n",
        "production.ini": "secret",
        ".lock": "",
        ".ckan-layer.json": "{}",
    }.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (path / "bin/tool").chmod(0o755)
    (path / "bin/python").symlink_to(PYTHON)
    (path / "lib64").symlink_to("lib")
    (path / "src/x").mkdir(parents=True)
    return path


def archive(path: Path, *members: tuple[str, bytes | str | None], **about: object) -> str:
    """An archive with files (bytes), links (text) and directories (None)."""
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        for name, what in members:
            info = tarfile.TarInfo(name)
            for field, value in about.items():
                setattr(info, field, value)
            if isinstance(what, bytes):
                info.size = len(what)
                tar.addfile(info, io.BytesIO(what))
            else:
                info.type, info.linkname = (tarfile.DIRTYPE, "") if what is None else (tarfile.SYMTYPE, what)
                tar.addfile(info)
    return str(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A release to unpack into."""
    path = tmp_path / "release"
    (path / "lib").mkdir(parents=True)
    (path / "lib64").symlink_to("lib")
    (path / "lib/shared.py").write_text("shared")
    os.link(path / "lib/shared.py", tmp_path / "elsewhere")
    return path


def test_a_layer_comes_to_another_place_with_nothing_of_the_host_that_made_it(tmp_path: Path) -> None:
    here, there, file = virtualenv(tmp_path / "here"), tmp_path / "there/layer", str(tmp_path / "a.tar.gz")
    packed = packing.layer(str(here), file)
    unpacking.layer(file, str(there), str(here))
    assert packed.size == os.path.getsize(file)
    assert sorted(str(path.relative_to(there)) for path in there.rglob("*") if not path.is_dir()) == [
        "bin/python", "bin/tool", f"{SITE}/a.pth", f"{SITE}/lib-1.dist-info/RECORD", f"{SITE}/lib.py", "pyvenv.cfg",
    ]  # fmt: skip
    assert (there / "bin/tool").read_text().splitlines()[0] == f"#!{there}/bin/python"
    assert (there / f"{SITE}/a.pth").read_text() == f"{there}/src/x\n" and (there / "src/x").is_dir()
    assert os.readlink(there / "lib64") == "lib" and os.readlink(there / "bin/python") == PYTHON
    assert int((there / f"{SITE}/lib.py").stat().st_mtime) == int((here / f"{SITE}/lib.py").stat().st_mtime)
    assert (there / "bin/tool").stat().st_mode & 0o777 == 0o755
    # The same tree is the same archive, and root's.
    assert packing.layer(str(here), f"{file}.2") == packed
    with tarfile.open(file) as tar:
        assert {(member.uid, member.gid, member.uname, member.gname) for member in tar} == {(0, 0, "", "")}


def test_a_release_is_what_it_has_of_its_own_and_what_it_has_not(tmp_path: Path) -> None:
    layer, release = virtualenv(tmp_path / "layer"), virtualenv(tmp_path / "release")
    for path in (layer, release):
        (path / f"{SITE}/old").mkdir()
        (path / f"{SITE}/old/x.py").write_text("old")
    same = f"{SITE}/lib.py"
    os.utime(release / same, ns=(0, (layer / same).stat().st_mtime_ns))
    os.utime(release / f"{SITE}/old/x.py", ns=(0, (layer / f"{SITE}/old/x.py").stat().st_mtime_ns))
    (release / f"{SITE}/old/x.py").unlink()
    (release / f"{SITE}/old").rmdir()
    (release / "src/x/plugin.py").write_text("1")
    (release / "src/x/link").symlink_to("plugin.py")
    (release / "bin/added").write_text(f"#!{release}/bin/python\n")
    file = str(tmp_path / "a.tar.gz")
    packing.release(str(release), str(layer), file)
    with tarfile.open(file) as tar:
        names = tar.getnames()
        gone = json.load(tar.extractfile(packing.REMOVED))  # type: ignore[arg-type]
    assert names == [packing.REMOVED, "bin/added", "src/x/link", "src/x/plugin.py"]
    assert gone == [f"{SITE}/old"]
    there = virtualenv(tmp_path / "there")
    (there / f"{SITE}/old").mkdir()
    (there / f"{SITE}/old/x.py").write_text("old")
    unpacking.release(file, str(there), str(release))
    assert not (there / f"{SITE}/old").exists()
    assert (there / "bin/added").read_text() == f"#!{there}/bin/python\n"
    assert (there / "production.ini").read_text() == "secret"


HOSTILE: dict[str, tuple[list[tuple[str, bytes | str | None]], dict[str, object], str]] = {
    "absolute": ([("/etc/x", b"")], {}, "it has '/etc/x', which is outside of it"),
    "up": ([("../x", b"")], {}, "it has '../x', which is outside of it"),
    "up in between": ([("lib/../../x", b"")], {}, "it has 'lib/../../x', which is outside of it"),
    "control": ([("none/a\nb", b"")], {}, "it has 'none/a\\nb', whose directory is none of its own"),
    "link up": ([("lib/x", "../../out")], {}, "lib/x is a link that may lead out of it, to ../../out"),
    "link back": ([("b", "."), ("a", "b/..")], {}, "a is a link that may lead out of it, to b/.."),
    "link out": ([("lib/x", "/etc")], {}, "lib/x is a link out of it, to /etc"),
    "over a link": ([("lib64/x.py", b"")], {}, "it has lib64/x.py, whose directory is none of its own"),
    "over its own link": ([("d", None), ("d", "lib"), ("d/x", b"")], {}, "it has d/x, whose directory is none"),
    "nowhere": ([("none/x", b"")], {}, "it has none/x, whose directory is none of its own"),
    "hard link": ([("lib/x", b"")], {"type": tarfile.LNKTYPE, "linkname": "/etc/shadow"}, "x is neither a file, nor"),
    "device": ([("lib/x", b"")], {"type": tarfile.BLKTYPE}, "lib/x is neither a file, nor a directory, nor a link"),
    "fifo": ([("lib/x", b"")], {"type": tarfile.FIFOTYPE}, "lib/x is neither a file, nor a directory, nor a link"),
    "manifest": ([("release.json", b"")], {}, "it has release.json, which is the formula's own"),
    "ini": ([("production.ini", b"")], {}, "it has production.ini, which is the formula's own"),
    "start script": ([("serve.sh", b"")], {}, "it has serve.sh, which is the formula's own"),
    "sockets": ([("run", None)], {}, "it has run, which is the formula's own"),
    "lock file": ([("pylock.toml", b"")], {}, "it has pylock.toml, which is the formula's own"),
    "mark": ([(".ckan-layer.json", b"")], {}, "it has .ckan-layer.json, which is the formula's own"),
    "virtualenv": ([("pyvenv.cfg", b"")], {}, "it has pyvenv.cfg, which is the formula's own"),
    "interpreter": ([("bin", None), ("bin/python3", b"")], {}, "it has bin/python3, which is the formula's own"),
    "removed out": ([(packing.REMOVED, b'["../x"]')], {}, "it has '../x', which is outside of it"),
    "removed own": ([(packing.REMOVED, b'["release.json"]')], {}, "it has release.json, which is the formula's own"),
    "removed over a link": ([(packing.REMOVED, b'["lib64/shared.py"]')], {}, "lib64/shared.py, whose directory"),
    "removed what": ([(packing.REMOVED, b"7")], {}, "its .ckan-removed is no list"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_what_does_not_belong_into_a_release_is_refused(tmp_path: Path, tree: Path, case: str) -> None:
    members, about, sentence = HOSTILE[case]
    file = archive(tmp_path / "a.tar.gz", *members, **about)
    outside = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(FormulaError) as told:
        unpacking.release(file, str(tree), "/usr/lib/ckan/releases/20260101000001Z")
    assert str(told.value).startswith("a.tar.gz is refused: ") and sentence in str(told.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == outside
    assert (tree / "lib/shared.py").read_text() == "shared"


def test_a_file_with_holes_is_refused(tmp_path: Path, tree: Path) -> None:
    """A few bytes of an archive may fill any disk; the formula packs none."""
    file, made = tmp_path / "holes", tmp_path / "a.tar.gz"
    with file.open("wb") as handle:
        handle.truncate(2**22)
    subprocess.run(["tar", "-czSf", made, "-C", tmp_path, "holes"], check=True)
    with pytest.raises(FormulaError, match="holes is neither a file, nor a directory, nor a link"):
        unpacking.release(str(made), str(tree), "/x")
    assert not (tree / "holes").exists()


def test_modes_owners_and_shared_files_are_as_the_formula_wants_them(tmp_path: Path, tree: Path) -> None:
    was = "/usr/lib/ckan/releases/20260101000001Z"
    file = archive(tmp_path / "a.tar.gz", ("d", None), ("d/x", b"x"), ("lib/shared.py", b"new"), ("d/l", f"{was}/lib"),
                   mode=0o6777, uid=12, gid=34)  # fmt: skip
    unpacking.release(file, str(tree), was)
    assert [(tree / name).stat().st_mode & 0o7777 for name in ("d", "d/x")] == [0o755, 0o755]
    assert (tree / "d/x").stat().st_uid == os.geteuid()
    assert os.readlink(tree / "d/l") == f"{tree}/lib"
    # Another release shares it.
    assert ((tree / "lib/shared.py").read_text(), (tmp_path / "elsewhere").read_text()) == ("new", "shared")


@pytest.mark.parametrize("seed", range(3))
def test_an_archive_that_was_cut_short_or_damaged_is_a_sentence(tmp_path: Path, tree: Path, seed: int) -> None:
    random.seed(seed)
    noise = bytes(random.randrange(256) for _ in range(20_000))
    whole = Path(archive(tmp_path / "a.tar.gz", ("lib/noise", noise), ("lib/more", noise[::-1]))).read_bytes()
    changes: list[Callable[[bytes], bytes]] = [
        lambda data: data[: len(data) // 2],
        lambda data: noise,
        lambda data: gzip.compress(noise),
    ]
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(changes[seed](whole))
    with pytest.raises(FormulaError, match=r"cut\.tar\.gz is damaged \(.+\); deploy again"):
        unpacking.release(str(cut), str(tree), "/x")


def test_an_interpreter_that_is_not_here_or_not_roots_is_refused(tmp_path: Path) -> None:
    theirs = tmp_path / "python3.11"
    layer = [("pyvenv.cfg", b"home = /usr/bin\n"), ("bin", None), ("bin/python", str(theirs))]
    file = archive(tmp_path / "a.tar.gz", *layer)  # type: ignore[arg-type]
    with pytest.raises(FormulaError, match=f"bin/python leads to {theirs}, and there is no such interpreter here"):
        unpacking.layer(file, str(tmp_path / "one"), "/x")
    theirs.write_text("#!/bin/sh\n")
    theirs.chmod(0o777)
    if os.geteuid() == 0:
        with pytest.raises(FormulaError, match=f"{theirs}, which others than root may write to"):
            unpacking.layer(file, str(tmp_path / "two"), "/x")


def test_a_link_that_leads_out_of_a_release_is_not_packed(tmp_path: Path) -> None:
    layer, release = virtualenv(tmp_path / "layer"), virtualenv(tmp_path / "release")
    (release / "src/x/link").symlink_to("/etc/passwd")
    with pytest.raises(FormulaError, match="cannot be shipped: src/x/link is a link out of it, to /etc/passwd"):
        packing.release(str(release), str(layer), str(tmp_path / "a.tar.gz"))


@pytest.mark.parametrize(
    "change",
    [{"layer_path": "/"}, {"release_path": "/"}, {"layer_path": "/usr/../x"}, {"key": "../x"}, {"host": "a/b"},
     {"layer": {"name": "../x.tar.gz", "size": 1, "sha256": "0" * 64}}, {"facts": []}, {"release": None}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_shipment_that_names_places_of_others_is_refused(change: dict[str, object]) -> None:
    archive = {"name": "production.default.0123456789abcdef.0123456789abcdef.tar.gz", "size": 1, "sha256": "0" * 64}
    told = {"host": "web1", "facts": {}, "key": "0123456789abcdef", "layer": archive, "layer_path": "/usr/lib/l",
            "release": archive, "release_path": "/usr/lib/r"}  # fmt: skip
    assert Shipment.of(told).to_json() == told
    with pytest.raises(InvalidArgument, match=r"shipped is not what ckan_release\.pack returned"):
        Shipment.of({**told, **change})
