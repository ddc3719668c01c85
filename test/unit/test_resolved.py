"""A resolution that is taken again while nothing has changed of what it was made from."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from ckan_deploy.build import locking, resolved, uv_and_pip
from ckan_deploy.build.installer import Changes
from ckan_deploy.build.locking import Wish, lock
from ckan_deploy.build.packages import Wanted
from ckan_deploy.build.sandbox import Sandbox
from ckan_deploy.build.uv_and_pip import Installer
from ckan_deploy.build.virtualenv import create
from ckan_deploy.build.wheels import Builder
from fakes import FakeHost
from parts.base import uv_path
from stub import wheels

pytestmark = pytest.mark.slow

WISH = Wish([Wanted("asks", "asks")])


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="ckan-r-", dir="/tmp"))
    create(str(place / "base"))
    yield place / "base"
    shutil.rmtree(place)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A page with wheels, of whose changes nothing is seen without a question; and where they lie."""
    folder = tmp_path / "page"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def maker(base: Path, page: tuple[Path, str], tmp_path: Path) -> Builder:
    # An index in the place of PyPI that has nothing.
    empty = tmp_path / "empty"
    empty.mkdir()
    installer = Installer(
        kind="uv", uv=uv_path(), shared=str(tmp_path / "shared"), find_links=page[1], index_url=f"file://{empty}",
        reuse_hours=24,
    )  # fmt: skip
    return Builder(FakeHost({}), installer, Sandbox(user="nobody"), str(base))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What uv was called for."""
    said: list[str] = []
    real = uv_and_pip.run

    def run(command: list[str], *args: Any) -> Any:
        said.append(" ".join(command[1:3]))
        return real(command, *args)

    monkeypatch.setattr(uv_and_pip, "run", run)
    return said


def kept(maker: Builder) -> Path:
    (file,) = Path(maker.installer.shared, "resolutions").iterdir()
    return file


def test_the_second_plan_makes_no_call_of_uv_and_takes_no_other_version(base, page, maker, calls):
    wheels.make_wheel(page[0], "asks", "1.0", requires=["shared-thing"])
    wheels.make_wheel(page[0], "shared-thing", "1.0")
    first = lock(str(base), WISH, {}, maker)
    assert first.packages == {"asks": "1.0", "shared-thing": "1.0"} and calls
    calls.clear()
    wheels.make_wheel(page[0], "shared-thing", "2.0")
    assert lock(str(base), WISH, {}, maker) == first and calls == []
    # Asked to, it asks, and what comes of that is what is taken from then on.
    renewed = lock(str(base), WISH, {}, maker, renew=True)
    assert renewed.packages["shared-thing"] == "2.0" and calls
    calls.clear()
    assert lock(str(base), WISH, {}, maker) == renewed and calls == []
    # Where a release that was made of it has failed, too.
    resolved.forget(maker.installer.shared)
    lock(str(base), WISH, {}, maker)
    assert calls


def test_without_the_setting_each_plan_asks(base, page, maker, calls):
    wheels.make_wheel(page[0], "asks", "1.0")
    maker = evolve(maker, installer=evolve(maker.installer, reuse_hours=0))
    for _ in range(2):
        calls.clear()
        lock(str(base), WISH, {}, maker)
        assert calls
    assert not os.path.exists(f"{maker.installer.shared}/resolutions")


def too_old(file: Path) -> None:
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "made": told["made"] - 24 * 3600 - 1}))


def of_tomorrow(file: Path) -> None:
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "made": time.time() + 3600}))


def linked(file: Path) -> None:
    file.rename(file.with_name("other"))
    file.symlink_to("other")


def changed(**fields: Any) -> Callable[[Path], None]:
    return lambda file: file.write_text(json.dumps({**json.loads(file.read_text()), **fields})) and None


SPOILT: dict[str, Callable[[Path], Any]] = {
    "too old": too_old,
    "of tomorrow": of_tomorrow,
    "empty": lambda file: file.write_text(""),
    "cut": lambda file: file.write_text(file.read_text()[:-20]),
    "no JSON": lambda file: file.write_bytes(b"\xff\x00"),
    "another thing": lambda file: file.write_text("[1]"),
    "of another key": changed(key="0" * 64),
    "no lock file": changed(lock="x"),
    "a lock file that leads elsewhere": changed(
        lock='[[packages]]\nname = "asks"\nversion = "1.0"\nwheels = [{url = "ssh://x/asks-1.0-py3-none-any.whl"}]\n'
    ),
    "no versions": changed(installed={"asks": 1}),
    "all may write to it": lambda file: file.chmod(0o666),
    "its group may": lambda file: file.chmod(0o620),
    "another one's": lambda file: shutil.chown(file, "nobody"),
    "a link": linked,
    "a directory that all may write to": lambda file: file.parent.chmod(0o777),
    "a directory of another one": lambda file: shutil.chown(file.parent, "nobody"),
    "a queue": lambda file: (file.unlink(), os.mkfifo(file)),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
def test_what_is_too_old_damaged_or_may_be_of_somebody_else_is_not_taken(tmp_path, spoil):
    installer = Installer(shared=str(tmp_path), reuse_hours=24)
    found = Changes({"asks": "1.0"}, ["gone"], [])
    resolved.keep("a" * 64, found, installer)
    assert resolved.find("a" * 64, installer) == found
    spoil(tmp_path / f"resolutions/{'a' * 64}.json")
    assert resolved.find("a" * 64, installer) is None


def test_what_is_kept_is_roots_alone_has_no_secret_and_goes_when_it_is_too_old(tmp_path, base, page, maker):
    wheels.make_wheel(page[0], "asks", "1.0")
    login = page[1].replace("http://", "http://ann:a-password@")
    secret = evolve(maker, installer=evolve(maker.installer, find_links=login))
    lock(str(base), WISH, {}, secret)
    file = kept(maker)
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert "a-password" not in file.read_text()
    # Another login is no other index.
    assert resolved.key(str(base), {}, secret.installer) == resolved.key(str(base), {}, maker.installer)
    os.utime(file, (1, 1))
    draft = file.with_name("of-a-killed-plan.json.tmp")
    draft.touch()
    lock(str(base), Wish([Wanted("asks", "asks==1.0")]), {}, maker)
    assert kept(maker) != file and not draft.exists()


def test_each_input_makes_another_resolution(tmp_path, base, maker, monkeypatch):
    """What was resolved for other commits, versions, indexes or programs is not taken."""
    installer, names = maker.installer, set()

    def note(asked: Any = None, **changes: Any) -> None:
        names.add(resolved.key(str(base), asked or {}, evolve(installer, **changes)))

    note()
    note({"held": ["babel==2.1"]})
    note({"held": ["babel==2.2"]})
    note({"overrides": ["babel==2.2"]})
    note({"from": [["ckanext-mycity", "", "/sources/mycity-1"]]})
    note({"from": [["ckanext-mycity", "", "/sources/mycity-2"]]})
    note(index_url="https://pypi.example.org/simple")
    note(index_urls=("https://one.example.org/simple",))
    note(offline=True)
    note(kind="pip")
    other = tmp_path / "uv"
    shutil.copy("/bin/true", other)
    note(uv=str(other))
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    note(find_links=str(shelf))
    wheels.make_wheel(shelf, "asks", "1.0")
    note(find_links=str(shelf))
    (tmp_path / "shared/wheels").mkdir(parents=True)
    wheels.make_wheel(tmp_path / "shared/wheels", "asks", "1.0")
    note()
    monkeypatch.setattr(resolved.ckan_deploy, "VERSION", "9.9")
    note()
    monkeypatch.setattr(resolved.platform, "machine", lambda: "other")
    note()
    monkeypatch.setattr(resolved.virtualenv, "interpreter", lambda path: {"version": "3.99"})
    note()
    assert len(names) == 17


def test_the_wish_is_in_what_a_resolution_is_named_after(base, page, maker, monkeypatch):
    for version in ("1.0", "2.0"):
        wheels.make_wheel(page[0], "asks", version)
    asked: list[str] = []
    real = resolved.key

    def key(path: str, made_from: dict[str, Any], installer: Installer) -> str:
        asked.append(real(path, made_from, installer))
        return asked[-1]

    monkeypatch.setattr(locking.resolved, "key", key)
    wishes = [
        (WISH, {}),
        (WISH, {"other": "1.0"}),
        (Wish([Wanted("asks", "asks<2")]), {}),
        (Wish([Wanted("asks", "asks")], packages=("asks>=1",)), {}),
        (Wish([Wanted("asks", "asks")], overrides={"ckan:override": ["asks==1.0"]}), {}),
    ]
    for wish, pins in wishes:
        lock(str(base), wish, pins, maker)
    assert len(set(asked)) == len(wishes)
