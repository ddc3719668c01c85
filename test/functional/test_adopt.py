"""Releases that another tool built: adopted without a rebuild, to go back to."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

from ckan_deploy.build import virtualenv
from functional.steps import deployed

pytestmark = pytest.mark.slow
NOBODY, WEB_USER = pwd.getpwnam("nobody"), pwd.getpwnam("www-data")

INI = """\
[DEFAULT]
debug = false
[app:main]
use = egg:ckan
ckan.site_url = http://old.example.org
ckan.plugins = activity pages
beaker.session.secret = an-old-secret
"""


@pytest.fixture
def old(host, stub_base):
    """Make a release as the roles left it: a virtualenv named after a local time, its ini in it."""

    def make(name: str = "20190412093000", ini: str = "production.ini") -> Path:
        path = host.home / "releases" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        virtualenv.clone(str(stub_base), str(path), link="copy")
        if ini:
            (path / ini).write_text(INI)
        return path

    return make


def snapshot(path: Path) -> dict[str, tuple]:
    found = {}
    for folder, folders, files in os.walk(path):
        for name in folders + files:
            entry = Path(folder, name)
            status = entry.lstat()
            found[str(entry)] = (status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode, status.st_uid)
    return found


def test_a_release_of_another_tool_is_cloned_and_can_be_rolled_back_to(host, old):
    source = old()
    (host.home / "current").symlink_to("releases/20190412093000")
    before = snapshot(source)
    manifest = host.adopt("20190412093000", by="eve")
    assert snapshot(source) == before
    assert (manifest["id"], manifest["state"], manifest["by"]) == ("20190412093000Z", "retired", "eve")
    assert manifest["adopted"] == {"from": str(source), "ini": f"{source}/production.ini"}
    assert manifest["plugins"] == ["activity", "pages"] and manifest["packages"]["ckan"] == "2.12.0"
    assert manifest["base"]["ckan"] == "2.12.0" and manifest["events"][-1]["reason"] == "adopted"
    ini = host.home / "releases/20190412093000Z/production.ini"
    assert ini.read_text() == INI
    assert (stat.S_IMODE(ini.stat().st_mode), ini.owner(), ini.group()) == (0o640, "root", "www-data")
    assert "an-old-secret" not in str(manifest) and "an-old-secret" not in str(host.history())
    # The link is the other tool's still; a deploy takes over, and there is one to go back to.
    assert os.readlink(host.home / "current") == "releases/20190412093000"
    latest = deployed(host)
    assert host.rollback_target() == "20190412093000Z"
    assert host.diff("20190412093000Z", latest)["from"] == "20190412093000Z"
    shutil.rmtree(source)
    assert host.rollback() == {"current": "20190412093000Z", "left": latest}
    assert host.python("20190412093000Z", "import sys, ckan; print(sys.prefix)").endswith("/20190412093000Z")


def test_status_says_what_to_type_once_what_serves_is_adopted(host, old):
    source = old()
    (host.home / "current").symlink_to(source)
    told = host.status()["link"]
    assert told.endswith("which is no release of the formula's; deploy")
    host.adopt("20190412093000")
    told = host.status()["link"]
    assert told == (
        f"{host.home}/current points to {source}, which is no release of the formula's but adopted as 20190412093000Z; "
        "type: salt web1 state.apply ckan.web; salt web1 ckan_release.activate 20190412093000Z"
    )
    host.activate("20190412093000Z")
    assert "link" not in host.status() and host.current() == "20190412093000Z"


@pytest.mark.parametrize("said", ["python-home={base}", 'python-path="{packages}:/no/such"', ""])
def test_until_a_release_is_live_the_pointer_runs_the_kept_one_with_the_packages_it_had(host, stub_base, old, said):
    config, packages = host.root / "etc/ckan/default", next(stub_base.glob("lib/python*/site-packages"))
    (config / "before-formula").mkdir(parents=True)
    # Without a word of it, those of what `current` names.
    (host.home / "releases").mkdir(parents=True, exist_ok=True)
    (host.home / "current").symlink_to(host.root if said else old())
    for name, text in {
        "apache.wsgi.before-formula-20260101000000Z": "raise RuntimeError('an older copy')",
        "apache.wsgi.before-formula-20260201000000Z": "import ckan\napplication = ckan.__file__\n",
        "before-formula/apache-virtual-host-20260201000000Z": f"WSGIDaemonProcess old {said} threads=4\n",
    }.items():
        (config / name).write_text(text.format(base=stub_base, packages=packages))
    pointer = config / "apache.wsgi"
    done = host.loaders().states["ckan_front.pointed"](name=str(pointer))
    assert done.result, done.comment
    ask = f"import runpy; print(runpy.run_path({str(pointer)!r})['application'])"
    told = subprocess.run(["/usr/bin/python3", "-c", ask], capture_output=True, text=True, check=True).stdout
    wanted = stub_base if said else (host.home / "current").resolve()
    assert told.startswith(f"{wanted}/lib/python3")


def test_one_that_has_the_name_of_a_release_stays_where_it_is(host, old):
    source = old("20200101000000Z", ini="ckan.ini")
    (host.home / "current").symlink_to("releases/20200101000000Z")
    python = (source / "bin/python").lstat().st_ino
    manifest = host.adopt("20200101000000Z")
    assert (manifest["state"], host.current()) == ("live", "20200101000000Z")
    assert (source / "bin/python").lstat().st_ino == python
    assert (source / "production.ini").read_text() == (source / "ckan.ini").read_text() == INI
    assert host.show()["adopted"]["from"] == str(source)
    latest = deployed(host)
    assert host.rollback()["left"] == latest
    assert [row["release"] for row in host.list()] == [latest, "20200101000000Z"]


def test_adopted_releases_count_when_releases_are_pruned(host, old):
    for name in ("20180101000000", "20190101000000", "20200101000000"):
        old(name)
        host.adopt(name)
    latest = deployed(host)
    host.prune(keep=2)
    kept = [name for name in host.releases() if name.endswith("Z")]
    assert kept == ["20200101000000Z", latest]
    # What is not ours stays.
    assert "20180101000000" in host.releases()


def test_a_virtualenv_elsewhere_and_an_ini_elsewhere(host, stub_base, tmp_path):
    ini = tmp_path / "ckan.ini"
    ini.write_text(INI)
    manifest = host.adopt(str(stub_base), release="20170101000000Z", ini=str(ini))
    assert (manifest["id"], manifest["adopted"]["ini"]) == ("20170101000000Z", str(ini))
    assert host.releases() == ["20170101000000Z"]


def test_a_name_without_a_time_takes_that_of_the_directory(host, old):
    path = old("blue")
    os.utime(path, (1500000000, 1500000000))
    assert host.adopt("blue")["id"] == "20170714024000Z"


@pytest.mark.parametrize(
    ("spoil", "options", "sentence"),
    [
        (lambda path: shutil.rmtree(path), {}, "is not a directory"),
        (lambda path: (path / "pyvenv.cfg").unlink(), {}, "is not a virtualenv"),
        (lambda path: _unlink(path / "bin", "python*"), {}, "is not a virtualenv"),
        (lambda path: _dangle(path / "bin/python"), {}, "the interpreter of .* is gone"),
        (lambda path: _rmtree(path, "lib/python*/site-packages/ckan-*"), {}, "there is no CKAN in"),
        (lambda path: (path / "production.ini").unlink(), {}, "has no ini; give CKAN's with ini="),
        (lambda path: (path / "staging.ini").write_text(INI), {}, "has 2 ini files"),
        (lambda path: (path / "production.ini").write_text("no section"), {}, "cannot be read as an ini"),
        (
            lambda path: (path / "production.ini").write_text("[client]\npassword = an-old-secret\n"),
            {},
            r"has no section \[app:main\], so it is not CKAN's",
        ),
        (lambda path: None, {"ini": "/no/such.ini"}, "there is no file /no/such.ini"),
        (lambda path: None, {"ini": ["/etc/passwd"]}, "ini must be a line of text"),
        (lambda path: None, {"release": "29990101000000Z"}, "29990101000000Z is not older than now"),
        (lambda path: (path.parent / "20190412093000Z").mkdir(), {}, "there is a release 20190412093000Z already"),
    ],
)
def test_what_cannot_be_adopted_is_refused_and_nothing_is_changed(host, old, spoil, options, sentence):
    path = old()
    spoil(path)
    before = snapshot(host.home)
    with pytest.raises((CommandExecutionError, SaltInvocationError), match=sentence) as failure:
        host.adopt("20190412093000", **options)
    assert "an-old-secret" not in str(failure.value)
    assert snapshot(host.home) == before


def test_an_odd_id_one_newer_than_what_serves_and_a_second_time_are_refused(host, old):
    old()
    with pytest.raises(SaltInvocationError, match="is not a release id"):
        host.adopt("20190412093000", release="2019")
    host.adopt("20190412093000")
    with pytest.raises(CommandExecutionError, match="there is a release 20190412093000Z already"):
        host.adopt("20190412093000")
    with pytest.raises(CommandExecutionError, match="is a release already"):
        host.adopt("20190412093000Z")
    host.activate("20190412093000Z")
    old("20200101000000")
    with pytest.raises(CommandExecutionError, match="is not older than 20190412093000Z"):
        host.adopt("20200101000000")


@pytest.fixture
def theirs(old, host) -> Path:
    """A release of another tool that belongs to another user, who notes in it as whom its interpreter ran."""
    return handed_over(host, old())


def handed_over(host, path: Path) -> Path:
    packages = next(path.glob("lib/python*/site-packages"))
    noted = host.root / "ran"
    noted.mkdir(mode=0o777)
    noted.chmod(0o777)
    (packages / "noted.pth").write_text(f"import os; open(f'{noted}/{{os.geteuid()}}', 'w').close()\n")
    for folder, folders, files in os.walk(path):
        for name in [".", *folders, *files]:
            os.lchown(os.path.join(folder, name), NOBODY.pw_uid, NOBODY.pw_gid)
    return path


def test_root_never_runs_what_it_adopts(host, theirs):
    release = host.adopt("20190412093000")["id"]
    # In the sandbox it is run, and reaches nothing of the host.
    assert [path.name for path in (host.root / "ran").iterdir()] == []
    assert host.python(release, "import ckan").strip() == ""


def test_what_others_may_write_to_is_copied_with_their_rights_and_becomes_roots(host, theirs):
    victim = host.root / "victim"
    victim.mkdir(mode=0o700)
    (victim / "secret").write_text("a secret")
    packages = next(theirs.glob("lib/python*/site-packages"))
    (packages / "shell").write_text("#!/bin/sh")
    os.lchown(packages / "shell", NOBODY.pw_uid, NOBODY.pw_gid)
    (packages / "shell").chmod(0o6777)
    (packages / "outside").symlink_to(victim)
    os.mkfifo(packages / "fifo")
    (packages / "mine.txt").write_text("x")
    before = snapshot(victim)
    release = host.adopt("20190412093000")["id"]
    made = host.home / "releases" / release
    for folder, folders, files in os.walk(made):
        for name in [".", *folders, *files]:
            status = Path(folder, name).lstat()
            assert status.st_uid == 0 and (stat.S_ISLNK(status.st_mode) or not status.st_mode & 0o7022), Path(
                folder, name
            )
    there = next(made.glob("lib/python*/site-packages"))
    assert (there / "shell").is_file() and (there / "outside").is_symlink() and not (there / "fifo").exists()
    # Their bytecode counts, and a file that they change afterwards is not the release's.
    (packages / "mine.txt").write_text("changed")
    assert (there / "mine.txt").read_text() == "x" and snapshot(victim) == before
    assert [path.name for path in (host.home / "shared").iterdir() if path.name.startswith("adopt-")] == []


@pytest.mark.parametrize(
    ("put", "sentence"),
    [
        (lambda ini, secret: ini.symlink_to(secret), "production.ini is a link, and others than root may have put it"),
        (
            lambda ini, secret: os.link(secret, ini),
            r"cannot be read by nobody: \./production.ini: Cannot open: Permission denied",
        ),
        (lambda ini, secret: os.mkfifo(ini), "has no ini; give CKAN's with ini="),
    ],
    ids=["link", "hard link", "FIFO"],
)
@pytest.mark.parametrize("typed", [False, True])
def test_an_ini_that_its_owner_may_not_read_is_not_taken(host, theirs, put, sentence, typed):
    secret, ini = host.root / "other-portal.ini", theirs / "production.ini"
    secret.write_text(INI)
    secret.chmod(0o600)
    ini.unlink()
    put(ini, secret)
    with pytest.raises(CommandExecutionError) as failure:
        host.adopt("20190412093000", **({"ini": str(ini)} if typed else {}))
    if not typed:
        assert re.search(sentence, str(failure.value))
    assert "an-old-secret" not in str(failure.value) and host.releases() == ["20190412093000"]


def test_a_directory_that_others_may_write_to_does_not_become_the_release_itself(host, old):
    theirs = handed_over(host, old("20190412093000Z"))
    before = snapshot(theirs)
    with pytest.raises(CommandExecutionError, match="others than root may write to .*; adopt it under another id"):
        host.adopt("20190412093000Z")
    assert snapshot(theirs) == before
    assert host.adopt("20190412093000Z", release="20190412093001Z")["state"] == "retired"


def test_a_clone_that_fails_leaves_nothing(host, old):
    path = old()
    packages = next(path.glob("lib/python*/site-packages"))
    (packages / "__editable__.gone.pth").write_text("/no/such/checkout\n")
    before = snapshot(host.home / "releases/20190412093000")
    with pytest.raises(CommandExecutionError, match="names /no/such/checkout, which does not exist"):
        host.adopt("20190412093000")
    assert host.releases() == ["20190412093000"]
    assert snapshot(path) == before


def test_a_first_deploy_that_fails_gives_the_link_of_the_other_tool_back(host, old, mycity):
    old()
    (host.home / "current").symlink_to("releases/20190412093000")
    modules = host.loaders().modules
    release = host.plan()["release"]
    for stage in ("build", "check", "start", "activate"):
        modules[f"ckan_release.{stage}"](release)
    assert host.current() == release
    modules["ckan_release.abort"](release)
    assert os.readlink(host.home / "current") == "releases/20190412093000"


def _unlink(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink()


def _rmtree(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        shutil.rmtree(path)


def _dangle(link: Path) -> None:
    link.unlink()
    link.symlink_to("/no/such/python")
