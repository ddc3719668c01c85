"""Archives of every bad kind are refused before anything unpacks them."""

from __future__ import annotations

import stat
import tarfile
import zipfile

import pytest

from ckan_deploy.errors import FormulaError
from ckan_deploy.sources.archives import check_members
from stub.archives import WHEEL, sdist, special, wheel


@pytest.fixture
def check():
    return lambda path, **arguments: check_members(str(path), **arguments)


def refusal(function, *arguments, **keywords) -> str:
    """The one sentence with which a call is refused."""
    with pytest.raises(FormulaError) as failure:
        function(*arguments, **keywords)
    text = str(failure.value)
    assert "\n" not in text and "Traceback" not in text and text.endswith(".")
    return text


def test_good_archives_of_every_kind_pass(check, tmp_path):
    assert check(wheel(tmp_path / WHEEL)) == {"kind": "wheel", "members": 1, "bytes": 6}
    assert check(wheel(tmp_path / "alpha-1.0.zip"))["kind"] == "sdist"
    link = special("alpha-1.0/doc/readme", tarfile.SYMTYPE, "../README")
    chain = special("alpha-1.0/again", tarfile.SYMTYPE, "doc/readme")
    hard = special("alpha-1.0/copy", tarfile.LNKTYPE, "alpha-1.0/README")
    folder = special("./alpha-1.0/doc", tarfile.DIRTYPE)
    for suffix in (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"):
        path = sdist(tmp_path / f"alpha-1.0{suffix}", folder, "alpha-1.0/README", "alpha-1.0/a..b", link, chain, hard)
        assert check(path) == {"kind": "sdist", "members": 6, "bytes": 2}


EVIL = {
    "parent": ["../../evil"],
    "parent within": ["alpha/../../evil"],
    "absolute": ["/tmp/evil"],
    "link to an absolute place": [special("alpha/link", tarfile.SYMTYPE, "/etc/passwd")],
    "link that leads outside": [special("alpha/link", tarfile.SYMTYPE, "../../evil")],
    "hard link that leads outside": [special("alpha/link", tarfile.LNKTYPE, "../evil")],
    "member behind a link": [special("alpha/link", tarfile.SYMTYPE, "."), "alpha/link/evil"],
    "member in the place of a link": [special("alpha/link", tarfile.SYMTYPE, "evil"), "alpha/link"],
    "chain of links": [special("a/b/up", tarfile.SYMTYPE, "../.."), special("evil", tarfile.SYMTYPE, "a/b/up/../x")],
    "hard link to a link": [special("a", tarfile.SYMTYPE, "b"), special("evil", tarfile.LNKTYPE, "a")],
    "character device": [special("alpha/null", tarfile.CHRTYPE)],
    "block device": [special("alpha/sda", tarfile.BLKTYPE)],
    "pipe": [special("alpha/pipe", tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("case", EVIL)
def test_an_archive_that_could_write_outside_is_refused(check, tmp_path, case):
    path = sdist(tmp_path / "alpha-1.0.tar.gz", "alpha/setup.py", *EVIL[case])
    last = EVIL[case][-1]
    said = refusal(check, path)
    assert "alpha-1.0.tar.gz" in said and repr(getattr(last, "name", last)) in said
    # The same as a wheel, which holds no hard links and devices.
    if isinstance(last, str) and len(EVIL[case]) == 1:
        assert repr(last) in refusal(check, wheel(tmp_path / WHEEL, {"setup.py": b"", last: b"x"}))


def test_links_and_devices_in_a_wheel_are_looked_at_too(check, tmp_path):
    for mode, value, reason in (
        (stat.S_IFLNK, b"/etc/passwd", "leads outside"),
        (stat.S_IFLNK, b"../../x", "leads outside"),
        (stat.S_IFIFO, b"", "neither a file"),
    ):
        info = zipfile.ZipInfo("alpha/odd")
        info.external_attr = (mode | 0o644) << 16
        with zipfile.ZipFile(tmp_path / WHEEL, "w") as archive:
            archive.writestr(info, value)
        said = refusal(check, tmp_path / WHEEL)
        assert reason in said and "alpha/odd" in said and WHEEL in said


def test_what_is_no_archive_is_refused(check, tmp_path):
    good = sdist(tmp_path / "good.tar.gz", *(f"alpha/{number}" for number in range(100))).read_bytes()
    for name, data in (
        (WHEEL, b"no archive"),
        (WHEEL, b""),
        (WHEEL, good),
        ("x.tar.gz", b"no archive"),
        ("x.tar.gz", b""),
        ("x.tar.gz", good[: len(good) // 2]),
        ("x.tar.xz", good),
        ("x.tar.bz2", good),
        ("x.tar.gz", wheel(tmp_path / "alpha.zip").read_bytes()),
    ):
        (tmp_path / name).write_bytes(data)
        assert f"{name} is not the ." in refusal(check, tmp_path / name)
    with tarfile.open(tmp_path / "empty.tar.gz", "w:gz"):
        pass
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    for name, reason in (
        ("empty.tar.gz", "is empty"), ("empty.zip", "is empty"), ("no.tar.gz", "does not exist"),
        ("x.rar", "is none of"),
    ):  # fmt: skip
        assert reason in refusal(check, tmp_path / name)


def test_an_archive_is_not_unpacked_beyond_the_limit(check, tmp_path):
    members = [special(f"alpha/{number}", tarfile.REGTYPE) for number in range(3)]
    for member in members:
        member.size = 1000
    path = sdist(tmp_path / "x.tar.gz", *members)
    assert check(path, limit=3000)["bytes"] == 3000
    said = refusal(check, path, limit=2999)
    assert "larger than 2999 bytes" in said and "alpha/2" in said
    assert "larger than 5 bytes" in refusal(check, wheel(tmp_path / WHEEL), limit=5)
    # What a tar says about a member can be large as well.
    info = special("alpha/x", tarfile.REGTYPE)
    info.pax_headers = {"comment": "x" * 3_000_000}
    assert "larger than 1000 bytes" in refusal(check, sdist(tmp_path / "pax.tar.gz", info), limit=1000)
