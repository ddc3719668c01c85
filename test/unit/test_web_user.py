"""
Whoever has broken into the portal runs as CKAN's user, and puts what it likes in place of all that it may write to.
Root, which works there, follows it nowhere: run as root, with the real user.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckan_deploy.errors import FormulaError
from ckan_deploy.serve import answers, shared_files, uwsgi
from ckan_deploy.system import safely
from fakes import fake_site
from parts.process import sandbox

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be made to follow others")

RELEASE = "20240101000000Z"
ALARM = 20
RACE_SECONDS = 0.7
# Puts a directory of its own and a link in one place, by turns, until it is ended.
SWAP = """
import os, sys
place, victim = sys.argv[1:]
os.symlink(victim, f"{place}.link")
print("begun", flush=True)
while True:
    try:
        os.rename(place, f"{place}.dir")
        os.rename(f"{place}.link", place)
        os.rename(place, f"{place}.link")
        os.rename(f"{place}.dir", place)
    except OSError:
        pass
"""


class Portal:
    """A host with a live release, whose CKAN belongs to the attacker; ``victim`` is what must stay as it is."""

    def __init__(self, root: Path, ckans_data: bool) -> None:
        self.root = root
        self.site = fake_site(root)
        self.data = root / "var/lib/ckan/default"
        self.release = root / "usr/lib/ckan/releases" / RELEASE
        self.run = self.release / "run"
        self.victim = root / "victim"
        for folder in (self.data / "storage/uploads", self.data / "sessions", self.run / "webassets/base"):
            folder.mkdir(parents=True)
        (self.data / "webassets/base").mkdir(parents=True)
        (self.run / "webassets/base/main.css").write_text("body {}")
        own = [self.data / "storage", self.data / "sessions", self.run, *([self.data] if ckans_data else [])]
        for folder in own:
            give(folder)
        for folder in (self.data / "webassets", self.data / "webassets/base"):
            shutil.chown(folder, "root", "root")
        (self.victim / "cron.d").mkdir(parents=True)
        (self.victim / "cron.d/job").write_text("a job of root's")
        (self.victim / "secret").write_text("a secret of root's")
        (self.victim / "secret").chmod(0o600)
        self.before = self.state()

    def state(self) -> dict[str, tuple]:
        found = {}
        for path in [self.victim, *self.victim.rglob("*")]:
            status = path.lstat()
            text = path.read_text() if path.is_file() else ""
            found[str(path)] = (status.st_uid, status.st_gid, status.st_mode, status.st_mtime_ns, text)
        return found

    def check(self) -> None:
        """Nothing outside was changed, and nothing that the attacker may not read was shown."""
        assert self.state() == self.before
        for folder, _, files in os.walk(self.data / "webassets") if not (self.data / "webassets").is_symlink() else []:
            for path in (Path(folder, name) for name in files):
                if stat.S_ISREG(path.lstat().st_mode) and path.stat().st_nlink == 1:
                    assert "root's" not in path.read_text(), path


def give(top: Path) -> None:
    for path in [top, *top.rglob("*")]:
        shutil.chown(path, "www-data", "www-data")


@pytest.fixture(params=[True, False], ids=["data is the user's", "data is root's"])
def portal(request) -> Iterator[Portal]:
    path = sandbox("ckan-u-")
    yield Portal(path, request.param)
    shutil.rmtree(path)


@pytest.fixture
def old_portal() -> Iterator[Portal]:
    """A host as the formula left it until now: ``paths:data`` belongs to CKAN's user."""
    path = sandbox("ckan-u-")
    yield Portal(path, ckans_data=True)
    shutil.rmtree(path)


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(ALARM)
    yield
    signal.alarm(0)


def own(portal: Portal) -> None:
    shared_files.own(portal.site, str(portal.release))


def publish(portal: Portal) -> None:
    shared_files.publish(portal.site)


def forget(portal: Portal) -> None:
    shared_files.forget(portal.site)


def prepare(portal: Portal) -> None:
    shared_files.prepare(portal.site)


def start(portal: Portal) -> None:
    uwsgi.write(portal.site, str(portal.release), "1 boot")


WORK: list[Callable[[Portal], None]] = [own, publish, forget, prepare, start]
# All that CKAN's user may write to, and what root finds there.
PLACES = [
    "{data}/storage",
    "{data}/sessions",
    "{data}/home",
    "{data}/webassets",
    "{data}/webassets/base",
    "{data}/storage/uploads",
    "{data}/storage/uploads/file",
    "{run}/webassets",
    "{run}/webassets/base",
    "{run}/webassets/base/main.css",
]


def put(portal: Portal, place: str, kind: str) -> bool:
    """As CKAN's user, put something else in a place; returns whether the system lets it."""
    try:
        with as_web_user():
            if os.path.lexists(place):
                os.rename(place, f"{place}.aside")
            if kind.startswith("link"):
                os.symlink(portal.victim / ("secret" if kind == "link to a file" else ""), place)
            elif kind == "FIFO":
                os.mkfifo(place)
            elif kind == "directory of links":
                os.mkdir(place)
                os.symlink(portal.victim, f"{place}/base")
                os.symlink(portal.victim / "secret", f"{place}/main.css")
    except PermissionError:
        return False
    if kind == "hard link":
        # Where hard links are not protected, that user can make one of any file.
        os.link(portal.victim / "secret", place)
    return True


@contextlib.contextmanager
def as_web_user() -> Iterator[None]:
    entry, groups = pwd.getpwnam("www-data"), os.getgroups()
    os.setgroups([])
    os.setegid(entry.pw_gid)
    os.seteuid(entry.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.mark.parametrize("kind", ["link to a directory", "link to a file", "FIFO", "hard link", "directory of links"])
@pytest.mark.parametrize("place", PLACES)
def test_nothing_outside_is_changed_by_what_ckans_user_puts_in_place_of_something(portal, place, kind):
    where = place.format(data=portal.data, run=portal.run)
    if not put(portal, where, kind):
        assert Path(where).parent.owner() == "root", "the attack did not take place"
        return
    for work in [*WORK, *reversed(WORK)]:
        try:
            work(portal)
        except FormulaError as exc:
            assert str(portal.root) in str(exc)
        portal.check()


def test_f01_a_link_in_place_of_the_storage_gives_nothing_away(old_portal):
    portal = old_portal
    assert put(portal, f"{portal.data}/storage", "link to a directory")
    with pytest.raises(
        FormulaError, match=r"storage is a link, .* since of .*/default it belongs to www-data; look"
    ) as told:
        own(portal)
    portal.check()
    # Not trusted the second time either, but once the operator has typed what the message says.
    with pytest.raises(FormulaError, match="storage is a link"):
        own(portal)
    disk = portal.root / "disk"
    disk.mkdir()
    (portal.data / "storage").unlink()
    (portal.data / "storage").symlink_to(disk)
    subprocess.run(["sh", "-c", str(told.value).partition("type: ")[2]], check=True)
    own(portal)
    assert disk.owner() == "www-data"
    portal.check()


def test_f01_the_directory_above_becomes_roots_and_what_is_below_stays_ckans(old_portal):
    portal = old_portal
    own(portal)
    assert (portal.data.owner(), portal.data.group(), stat.S_IMODE(portal.data.stat().st_mode)) == (
        "root",
        "root",
        0o755,
    )
    owners = {path.name: path.owner() for path in portal.data.iterdir()}
    assert owners == {"storage": "www-data", "sessions": "www-data", "home": "www-data", "webassets": "root"}
    assert not put(portal, f"{portal.data}/storage", "link to a directory")


def test_f02_a_link_in_place_of_the_web_assets_has_nothing_written_through_it(old_portal):
    portal = old_portal
    evil = portal.run / "webassets/evil"
    evil.write_text("* * * * * root id > /root/pwned")
    shutil.chown(evil, "www-data", "www-data")
    assert put(portal, f"{portal.data}/webassets", "link to a directory")
    for work in (publish, own):
        with pytest.raises(FormulaError, match="webassets is a link"):
            work(portal)
    portal.check()


def test_web_assets_that_ckans_user_has_put_are_made_again_as_roots(old_portal):
    portal = old_portal
    assert put(portal, f"{portal.data}/webassets", "directory of links")
    own(portal)
    publish(portal)
    there = portal.data / "webassets"
    assert there.owner() == "root" and [path.name for path in there.rglob("*")] == ["base", "main.css"]
    assert (there / "base/main.css").read_text() == "body {}" and not (there / "base").is_symlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    "place", ["{data}/storage", "{data}/storage/uploads", "{data}/webassets", "{run}/webassets", "{run}/webassets/base"]
)
def test_a_race_of_directory_and_link_changes_nothing_outside(old_portal, place):
    portal = old_portal
    # Something of root's, which is to be given away.
    (portal.data / "storage/uploads/cron.d").mkdir()
    (portal.data / "storage/uploads/cron.d/job").write_text("x")
    uploads = os.open(portal.data / "storage/uploads", os.O_DIRECTORY)
    where = place.format(data=portal.data, run=portal.run)
    command = ["/usr/bin/python3", "-c", SWAP, where, str(portal.victim)]
    user = {"user": "www-data", "group": "www-data", "extra_groups": []}
    with subprocess.Popen(command, stdout=subprocess.PIPE, **user) as swap:
        assert swap.stdout and swap.stdout.readline() == b"begun\n"
        try:
            until = time.monotonic() + RACE_SECONDS
            while time.monotonic() < until:
                for work in WORK:
                    with contextlib.suppress(FormulaError):
                        work(portal)
                    # The next one finds it as it was.
                    os.chown(portal.data, pwd.getpwnam("www-data").pw_uid, 0)
                    for name in ("cron.d", "cron.d/job"):
                        os.chown(name, 0, 0, dir_fd=uploads, follow_symlinks=False)
        finally:
            swap.kill()
            os.close(uploads)
    portal.check()


@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
def test_a_directory_that_became_something_else_at_this_very_moment_is_a_sentence(old_portal, monkeypatch, work):
    """The look at what stands in the way finds a directory again: it was a link only when it was to be opened."""
    at = safely._is_link
    monkeypatch.setattr(safely, "_is_link", lambda folder, name: name != "webassets" and at(folder, name))
    portal = old_portal
    assert put(portal, f"{portal.data}/webassets", "link to a directory")
    try:
        work(portal)
    except FormulaError as exc:
        assert "Not a directory" in str(exc) or "Too many levels" in str(exc)
    portal.check()


@pytest.mark.parametrize("kind", ["link to a file", "FIFO", "hard link"])
def test_supervisor_is_not_led_elsewhere_by_what_stands_in_place_of_a_log(old_portal, kind):
    """Until now the directory of logs may have been CKAN's user's, and names of logs can be guessed."""
    portal = old_portal
    logs = portal.root / "var/log/ckan"
    logs.mkdir(parents=True)
    give(logs)
    log = uwsgi.log(portal.site, RELEASE)
    assert put(portal, log, kind)
    shutil.chown(logs, "root", "root")
    start(portal)
    assert not os.path.lexists(log)
    # One that supervisor has made stays.
    Path(log).write_text("what went before")
    start(portal)
    assert Path(log).read_text() == "what went before"
    portal.check()


def test_what_starts_an_app_server_cannot_be_written_by_ckans_user(old_portal):
    portal = old_portal
    start(portal)
    for name in ("serve.sh", "uwsgi.ini", "starter"):
        status = (portal.release / name).stat()
        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o644)
        with as_web_user(), pytest.raises(PermissionError):
            os.rename(portal.release / name, portal.release / "other")


@pytest.mark.parametrize("user", ["www-data", "nobody"])
@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("var/log/ckan", "var/log/ckan"),
        ("var/lib/ckan", "var/lib/ckan"),
        ("usr/lib", "usr/lib"),
        ("etc/ckan/default", ""),
    ],
)
def test_directories_of_roots_that_others_may_write_to_are_named_before_a_deploy(old_portal, place, told, user):
    portal = old_portal
    site = fake_site(portal.root, build_user="nobody")
    assert shared_files.exposed(site) == []
    folder = portal.root / place
    folder.mkdir(parents=True, exist_ok=True)
    if told:
        shutil.chown(folder, user, "root")
    else:
        # By its group, and by all.
        shutil.chown(folder, "root", pwd.getpwnam(user).pw_gid)
        folder.chmod(0o775)
    (sentence,) = shared_files.exposed(site)
    assert sentence.startswith(f"{user} may write to {folder}, where root works;")
    subprocess.run(["sh", "-c", sentence.partition("type: ")[2]], check=True)
    assert shared_files.exposed(site) == []


@pytest.mark.parametrize("name", ["current", "cron", "nginx_site"])
def test_what_root_writes_elsewhere_stands_in_no_directory_of_ckans_user(old_portal, name):
    """The link to the release that is served, lines of cron, the virtual host: in a directory of their own."""
    folder = old_portal.root / "elsewhere"
    folder.mkdir()
    site = fake_site(old_portal.root, paths={name: str(folder / "it")})
    assert shared_files.exposed(site) == []
    shutil.chown(folder, "www-data")
    (sentence,) = shared_files.exposed(site)
    assert sentence.startswith(f"www-data may write to {folder}, where root works;")


def test_a_storage_that_an_option_puts_at_the_data_itself_stays_ckans(old_portal):
    """CKAN's own manual has it there."""
    portal = old_portal
    portal.site = fake_site(portal.root, config={"ckan.storage_path": str(portal.data)})
    own(portal)
    publish(portal)
    assert portal.data.owner() == "www-data" and (portal.data / "webassets/base/main.css").is_file()
    assert put(portal, f"{portal.data}/webassets", "link to a directory")
    with pytest.raises(FormulaError, match="webassets is a link"):
        publish(portal)
    own(portal)
    publish(portal)
    assert (portal.data / "webassets/base/main.css").is_file() and not (portal.data / "webassets").is_symlink()
    portal.check()


def test_f15_what_is_on_a_disk_that_cannot_be_written_to_is_a_warning(old_portal):
    portal = old_portal
    archive = portal.data / "storage/archive"
    archive.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", archive], check=True)
    try:
        (archive / "old.csv").write_text("x")
        subprocess.run(["mount", "-o", "remount,ro", archive], check=True)
        done = shared_files.own(portal.site)
    finally:
        subprocess.run(["umount", archive], check=True)
    assert done["warnings"] and all(
        "is on a disk that cannot be written to, and stays root's" in w for w in done["warnings"]
    )


@pytest.mark.parametrize("place", ["storage/uploads", "storage/uploads/old.csv"])
def test_f15_where_root_may_change_no_owners_is_a_warning(old_portal, place):
    """As on NFS that takes root for nobody."""
    portal = old_portal
    (portal.data / "storage/uploads/old.csv").write_text("x")
    target = portal.data / place
    os.chown(target, 0, 0)
    subprocess.run(["chattr", "+i", target], check=True)
    try:
        done = shared_files.own(portal.site)
    finally:
        subprocess.run(["chattr", "-i", target], check=True)
    assert done["warnings"] == [f"{target} is on a disk that lets root change no owners, and stays root's"]


def test_a_tree_that_is_nested_without_end_stops_nothing(old_portal):
    portal = old_portal
    before = os.getcwd()
    with as_web_user():
        os.chdir(portal.data / "storage")
        for _ in range(1200):
            os.mkdir("d")
            os.chdir("d")
        os.chdir(before)
    own(portal)
    with safely.directory(str(portal.data)) as folder:
        safely.remove(folder, "storage")
    assert not (portal.data / "storage").exists()


def test_an_answer_without_end_does_not_fill_the_memory(old_portal):
    portal, sent = old_portal, []

    def serve(server: socket.socket) -> None:
        client, _ = server.accept()
        with client, contextlib.suppress(OSError):
            client.recv(65536)
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            for _ in range(96):
                client.sendall(b" " * 2**20)
                sent.append(2**20)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(portal.run / "web.sock"))
        server.listen()
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        assert "is answered by release unknown" in answers.socket_problem(portal.site, str(portal.release))
        thread.join()
    assert sum(sent) < 2 * answers.MOST_BYTES
