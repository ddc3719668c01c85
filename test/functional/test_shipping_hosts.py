"""Build once, ship to all: another host makes the same release of what it is sent, and needs no tools."""

from __future__ import annotations

import base64
import copy
import errno
import functools
import http.server
import json
import os
import shutil
import stat
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

from functional.conftest import SECRETS, Host
from functional.steps import extension, later_id
from parts.git_server import HttpGitServer
from stub import repos
from stub.wheels import make_wheel

# What a host has that does not build: no git, no uv, no pip, no compiler.
TOOLS = ("runuser", "bwrap", "sh", "sync", "setpriv", "systemctl", "ps", "id", "getent", "prlimit", "env", "cp")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    path.mkdir()
    return path


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A web server: the directory that it publishes, and its port."""
    folder = tmp_path / "www"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture
def builder(host, origins, shelf, store) -> Host:
    """A host that builds an extension with a patch, a library of the index, a script and a data file."""
    make_wheel(shelf, "shared-lib", "1.0")
    repo = repos.make_repo(origins, "mycity", "one", requirements=["shared-lib<2"], backend="uv_build")
    (repo / "docs").mkdir()
    (repo / "docs/latest").symlink_to("../README.md")
    repos.commit_change(repo, "two")
    host.pillar["extensions"] = {"ckanext-mycity": extension(repo)}
    host.pillar["plugins"] = ["mycity"]
    host.pillar["build"] = {"ship": True, "store": str(store)}
    return host


@pytest.fixture
def other(builder, monkeypatch):
    """Another host of the same environment, with a root of its own, and with none of the tools of a build."""
    root = Path(tempfile.mkdtemp(prefix="ckan-i-", dir="/tmp"))
    made = Host(root, root / "no-base", builder._loaders)
    made.pillar = {
        **copy.deepcopy(builder.pillar), "root": str(root), "paths": {"base": str(root / "no-base")},
        "installer": {"uv": str(root / "no-uv"), "index_url": "http://127.0.0.1:1/"},
        "site_id": "another",
    }  # fmt: skip
    tools = root / "tools"
    tools.mkdir()
    for name in TOOLS:
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    made.tools = str(tools)
    yield made
    shutil.rmtree(root, ignore_errors=True)


def shipped(builder: Host) -> tuple[str, dict]:
    """Build on the builder; returns the release and what it has packed."""
    release = later_id(builder)
    planned = builder.plan(release=release)
    builder.build(release, contents=planned["contents"])
    # As it goes over the wire.
    return release, json.loads(json.dumps(builder.pack(release)))


def received(other: Host, release: str, packed: dict, monkeypatch) -> Path:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", other.tools)
        other.build(release, **packed)
    return other.home / "releases" / release


def look(tree: Path, *mine: str) -> dict[str, object]:
    """All of a release by path: modes, links and contents, with its own places under one name."""
    found: dict[str, object] = {}
    for folder, folders, names in os.walk(tree):
        for name in folders + names:
            path = Path(folder, name)
            about, key = path.lstat(), str(path.relative_to(tree))
            if path.is_symlink():
                found[key] = os.readlink(path)
            elif path.is_dir():
                found[key] = stat.S_IMODE(about.st_mode)
            else:
                data = path.read_bytes()
                for place in mine:
                    data = data.replace(place.encode(), b"PLACE")
                found[key] = (stat.S_IMODE(about.st_mode), about.st_uid, data)
    return found


def test_another_host_gets_the_same_release_without_any_tool_of_a_build(builder, other, monkeypatch):
    release, packed = shipped(builder)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", other.tools)
        assert other.plan(release=release, resolve=False)["host"]["facts"]["architecture"]
    there = received(other, release, packed, monkeypatch)
    here = builder.home / "releases" / release
    mine, theirs = look(here, str(here)), look(there, str(there))
    own = {"production.ini", "release.json"}
    assert {name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)} == own
    # Nothing has to be compiled on the other host, and nothing is taken for stale.
    modules = [path for path in there.rglob("*.py") if f"{path.stem}.cpython-311.pyc" in map(
        lambda p: p.name, path.parent.glob("__pycache__/*"))]  # fmt: skip
    assert len(modules) > 3
    for path in modules:
        code = path.parent / "__pycache__" / f"{path.stem}.cpython-311.pyc"
        assert int.from_bytes(code.read_bytes()[8:12], "little") == int(path.stat().st_mtime), path
    ini = (there / "production.ini").read_text()
    assert "ckan.site_id = another" in ini and str(other.root) in ini
    said, seen = builder.show(release), other.show(release)
    differ = {name for name in said.keys() | seen.keys() if said.get(name) != seen.get(name)}
    assert differ <= {"built_on", "configuration", "created", "events", "lock", "settings", "build_seconds",
                      "disk_mb"}  # fmt: skip
    assert seen["built_on"] == "web1" and "built_on" not in said
    assert other.python(release, "import shared_lib, ckanext.mycity.plugin as p; print(p.TEXT)") == "two"


@pytest.mark.slow
def test_a_shipped_release_is_checked_and_served_like_one_that_was_built_here(builder, other, monkeypatch):
    release, packed = shipped(builder)
    received(other, release, packed, monkeypatch)
    monkeypatch.setenv("PATH", other.tools)
    assert other.check(release)["plugins"]


@pytest.mark.slow
def test_a_layer_that_is_there_is_not_fetched_again(builder, other, store, monkeypatch):
    release, packed = shipped(builder)
    received(other, release, packed, monkeypatch)
    layer = store / packed["shipped"]["layer"]["name"]
    layer.unlink()
    release, packed = shipped(builder)
    assert packed["shipped"]["layer"]["name"] == layer.name
    layer.unlink()
    received(other, release, packed, monkeypatch)
    assert other.releases()[-1] == release


@pytest.mark.slow
def test_a_host_clones_the_layer_while_the_other_one_builds(builder, other, monkeypatch):
    release, packed = shipped(builder)
    received(other, release, packed, monkeypatch)
    monkeypatch.setenv("PATH", other.tools)
    whole = look(other.home / "releases" / release, str(other.home / "releases" / release))
    other.abort(release)
    key = packed["shipped"]["key"]
    with pytest.raises(SaltInvocationError, match="which is no name of a layer"):
        other.clone(release, packed["contents"], "../x")
    with pytest.raises(CommandExecutionError, match="0123456789abcdef is gone; deploy again"):
        other.clone(release, packed["contents"], "0123456789abcdef")
    # What fails leaves nothing, so that the build does it all.
    assert other.releases() == []
    assert other.clone(release, packed["contents"], key) == {"cloned": key}
    assert other.show(release)["state"] == "building"
    other.build(release, **packed)
    found = look(other.home / "releases" / release, str(other.home / "releases" / release))
    assert {name for name in whole.keys() | found.keys() if whole.get(name) != found.get(name)} <= {"release.json"}
    assert other.show(release)["layer"] == key and other.check(release)["plugins"]


@pytest.mark.slow
def test_the_plan_of_the_builder_names_the_layer_that_will_be(builder):
    release = later_id(builder)
    planned = builder.plan(release=release)
    builder.build(release, contents=planned["contents"])
    assert planned["host"]["layer"] == builder.show(release)["layer"]
    assert builder.plan()["host"]["layers"] == [planned["host"]["layer"]]


def refused(other: Host, release: str, packed: dict, monkeypatch) -> str:
    with pytest.raises(CommandExecutionError) as told:
        received(other, release, packed, monkeypatch)
    assert other.show(release)["state"] == "failed"
    other.abort(release)
    assert release not in other.releases()
    assert list((other.home / "shared/work").glob("*")) == []
    return str(told.value)


@pytest.mark.slow
def test_what_arrives_damaged_or_not_at_all_is_a_sentence_and_never_used(builder, other, store, monkeypatch):
    release, packed = shipped(builder)
    for what in ("layer", "release"):
        name = packed["shipped"][what]["name"]
        file = store / name
        whole = file.read_bytes()
        file.write_bytes(whole[:1000])
        assert refused(other, release, packed, monkeypatch) == (
            f"{file} has 1000 bytes instead of {len(whole)}: it was cut short; deploy again."
        )
        file.write_bytes(whole[:-9] + b"x" + whole[-8:])
        assert refused(other, release, packed, monkeypatch) == (
            f"{file} is another file than web1 has packed (its hash differs); deploy again."
        )
        file.unlink()
        assert f"{file} cannot be had (No such file or directory" in refused(other, release, packed, monkeypatch)
        layers = os.listdir(other.home / "shared/layers")
        assert (packed["shipped"]["key"] in layers) == (what == "release")
        for make in (lambda file=file: file.symlink_to("/dev/zero"), lambda file=file: os.mkfifo(file)):
            make()
            assert f"{file} cannot be had (" in refused(other, release, packed, monkeypatch)
            file.unlink()
        file.write_bytes(whole)
        if what == "layer":
            with monkeypatch.context() as patch:
                patch.setattr("os.utime", killed)
                with pytest.raises(KeyboardInterrupt):
                    received(other, release, packed, monkeypatch)
            other.abort(release)
    # After all that the same archives do.
    received(other, release, packed, monkeypatch)
    assert other.show(release)["state"] == "built"


def killed(*_, **__):
    raise KeyboardInterrupt


def copied(*_, **__):
    raise AssertionError("something is copied")


@pytest.mark.slow
def test_a_disk_that_runs_full_while_an_archive_is_unpacked_is_a_sentence(builder, other, mount, monkeypatch):
    release, packed = shipped(builder)
    size = packed["shipped"]["layer"]["size"]
    shared = other.home / "shared"
    # Room for the archive, and for no more than a part of what is in it.
    mount(shared, f"{size // 1024 + 100}k")
    other.pillar["disk_free_mb"] = 0
    text = refused(other, release, packed, monkeypatch)
    assert text.startswith(f"{packed['shipped']['layer']['name']} cannot be unpacked (No space left on device")
    assert text.endswith("; make room and deploy again.")
    assert not (shared / "layers" / packed["shipped"]["key"]).exists()


@pytest.mark.slow
@pytest.mark.parametrize("full", ["store", "layers"])
def test_a_disk_that_runs_full_while_an_archive_is_made_is_a_sentence_and_gets_its_room_back(
    builder, other, store, mount, monkeypatch, full
):
    release, packed = shipped(builder)
    size, key = packed["shipped"]["layer"]["size"], packed["shipped"]["key"]
    layers = builder.home / "shared/layers"
    for path in [*layers.glob("*.tar.gz"), *layers.glob("*.json"), *store.iterdir()]:
        path.unlink()
    release = later_id(builder)
    builder.build(release)
    if full == "store":
        mount(store, f"{size // 2048}k")
        file = f"{store / packed['shipped']['layer']['name']} cannot be written"
    else:
        file = f"release {release} cannot be packed"
        whole = os.fsync

        def no_room(fd: int) -> None:
            if os.readlink(f"/proc/self/fd/{fd}").endswith(f"{key}.tar.gz.part"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            whole(fd)

        monkeypatch.setattr("os.fsync", no_room)
    with pytest.raises(CommandExecutionError) as told:
        builder.pack(release)
    assert str(told.value).startswith(f"{file} (No space left on device") and "make room and deploy" in str(told.value)
    assert builder.show(release)["state"] == "failed"
    assert [path.name for folder in (layers, store) for path in folder.iterdir() if ".part" in path.name] == []


@pytest.mark.slow
def test_a_host_that_differs_from_the_one_that_built_is_refused(builder, other, monkeypatch):
    release, packed = shipped(builder)
    packed["shipped"]["facts"]["libc"] = "glibc 9.9"
    assert "this host differs from web1, which has built: libc glibc" in refused(other, release, packed, monkeypatch)
    with pytest.raises(SaltInvocationError, match="shipped is not what ckan_release.pack returned"):
        other.build(release, contents=packed["contents"], shipped={**packed["shipped"], "key": "../x"})
    with pytest.raises(SaltInvocationError, match="shipped needs contents"):
        other.build(release, shipped=packed["shipped"])


@pytest.mark.slow
def test_no_secret_is_in_an_archive_and_nothing_of_the_host(builder, store, shelf, web):
    folder, port = web
    (folder / "simple").mkdir()
    shutil.copytree(shelf, folder / "simple/shared-lib")
    builder.pillar["installer"] = {
        "uv": builder.pillar["installer"]["uv"],
        "index_url": f"http://reader:index-password@127.0.0.1:{port}/simple",
    }
    builder.pillar["config"] = {"ckan.site_title": "The title of this site"}
    _, packed = shipped(builder)
    secrets = [b"index-password", b"The title of this site", b"database-password",
               *(value.encode() for value in SECRETS.values())]  # fmt: skip
    for what in ("layer", "release"):
        with tarfile.open(store / packed["shipped"][what]["name"]) as tar:
            names = tar.getnames()
            for member in tar:
                if member.isfile():
                    data = tar.extractfile(member).read()
                    assert [secret for secret in secrets if secret in data] == [], member.name
        # Not in what others are told of it, either.
        assert [secret for secret in secrets if secret in json.dumps(packed).encode()] == []
        assert not [name for name in names if name.endswith(".ini") or name in ("release.json", "run", "pylock.toml")]
    assert "src/ckanext-mycity/.git/config" in names


def test_no_token_of_an_origin_is_in_an_archive_a_manifest_or_a_job(builder, other, origins, store, monkeypatch):
    token = "token-of-the-origin"
    server = HttpGitServer(origins, user="robot", token=token).start()
    try:
        url = server.url(Path(builder.pillar["extensions"]["ckanext-mycity"]["url"]))
        builder.pillar["extensions"] = {"ckanext-mycity": {"url": url, "ref": "main", "token": token,
                                                           "token_user": "robot"}}  # fmt: skip
        release, packed = shipped(builder)
    finally:
        server.stop()
    # The other host needs none.
    other.pillar["extensions"] = {"ckanext-mycity": {"url": url, "ref": "main"}}
    there = received(other, release, packed, monkeypatch)
    secrets = [text.encode() for text in (token, base64.b64encode(f"robot:{token}".encode()).decode())]
    with tarfile.open(store / packed["shipped"]["release"]["name"]) as tar:
        held = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
    assert url.encode() in held["src/ckanext-mycity/.git/config"]
    said = {"job": json.dumps(packed).encode(), "manifest": json.dumps(other.show(release)).encode()}
    places = [path for root in (there, builder.home / "shared/layers") for path in root.rglob("*")]
    trees = {str(path): path.read_bytes() for path in places if path.is_file() and not path.is_symlink()}
    assert [name for name, data in {**held, **said, **trees}.items() if any(one in data for one in secrets)] == []


@pytest.mark.slow
def test_archives_come_from_an_address_that_all_hosts_reach(builder, other, web, monkeypatch):
    folder, port = web
    for host in (builder, other):
        host.pillar["build"] = {"ship": True, "store": f"http://127.0.0.1:{port}", "publish": str(folder)}
    release, packed = shipped(builder)
    there = received(other, release, packed, monkeypatch)
    assert other.python(release, "import ckanext.mycity.plugin as p; print(p.TEXT)") == "two" and there.is_dir()
    (folder / packed["shipped"]["release"]["name"]).unlink()
    other.abort(release)
    assert "cannot be had" in refused(other, release, packed, monkeypatch)


@pytest.mark.slow
def test_a_store_that_is_not_there_is_told_at_plan(builder, other, store):
    for host in (builder, other):
        host.pillar["build"] = {"ship": True, "store": f"{store}/nowhere"}
    said = rf"there is no directory {store}/nowhere \(ckan:build:store\); mount it, or make it"
    with pytest.raises(CommandExecutionError, match=said):
        builder.plan()
    with pytest.raises(CommandExecutionError, match=said):
        other.plan(resolve=False)


@pytest.mark.slow
def test_a_store_keeps_what_is_asked_for_and_nothing_else(builder, store):
    (store / "notes.txt").write_text("of somebody else")
    (store / "staging.default.20260101000001Z.0123456789abcdef.tar.gz").write_text("of another environment")
    first = shipped(builder)[1]["shipped"]
    second = shipped(builder)[1]["shipped"]
    assert first["layer"] == second["layer"] and first["release"]["name"] != second["release"]["name"]
    assert sorted(path.name for path in store.iterdir()) == sorted(
        ["notes.txt", "staging.default.20260101000001Z.0123456789abcdef.tar.gz", second["layer"]["name"],
         second["release"]["name"]]
    )  # fmt: skip


@pytest.mark.slow
def test_an_archive_that_is_another_one_is_made_anew_by_the_next_deploy(builder, other, store, monkeypatch):
    """One of the same size was taken for whole, so that each deploy failed in the same way."""
    release, packed = shipped(builder)
    layer = packed["shipped"]["layer"]
    kept = builder.home / f"shared/layers/{packed['shipped']['key']}.tar.gz"
    whole = kept.read_bytes()
    for file in (kept, store / layer["name"]):
        file.write_bytes(whole[:-9] + b"x" + whole[-8:])
    release, packed = shipped(builder)
    assert packed["shipped"]["layer"] == layer
    assert kept.read_bytes() == (store / layer["name"]).read_bytes() == whole
    received(other, release, packed, monkeypatch)
    assert other.show(release)["state"] == "built"


@pytest.mark.slow
def test_what_is_larger_than_it_should_be_is_not_copied(builder, other, store, monkeypatch):
    """A store that others write to may hold a file that fills the disk; all of it was copied first."""
    release, packed = shipped(builder)
    file = store / packed["shipped"]["layer"]["name"]
    with file.open("r+b") as handle:
        handle.truncate(2**26)
    size = packed["shipped"]["layer"]["size"]
    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfileobj", copied)
        assert refused(other, release, packed, monkeypatch) == (
            f"{file} has {2**26} bytes instead of {size}: it is another one; deploy again."
        )


@pytest.mark.slow
def test_names_that_nobody_would_give_are_shipped_like_others(builder, other, monkeypatch):
    repo = Path(builder.pillar["extensions"]["ckanext-mycity"]["url"])
    odd = [b"a\nb", b"tab\there", b"latin-\xe9", "ü".encode(), b"back\\slash", b" blank "]
    for name in odd:
        Path(os.fsdecode(bytes(repo) + b"/docs/" + name)).write_text("odd")
    repos.commit_change(repo, "odd")
    release, packed = shipped(builder)
    there = received(other, release, packed, monkeypatch)
    found = {os.fsencode(path.name) for path in (there / "src/ckanext-mycity/docs").iterdir()}
    assert found == {*odd, b"latest"}


@pytest.mark.slow
def test_a_host_that_serves_nothing_does_not_ask_what_is_behind_ckan(builder):
    """It was refused where it could not reach Redis, which it has no business with."""
    python = builder.root / "stand-in/bin/python"
    python.parent.mkdir(parents=True)
    told = {"problems": [["ckan.redis.url", "Redis does not answer"]], "remarks": [], "versions": {}}
    python.write_text(f"#!/bin/sh\necho 'CKAN-BACKENDS {json.dumps(told)}'\n")
    python.chmod(0o755)
    builder.pillar["paths"] = {"base": str(python.parent.parent)}
    builder.pillar["build"].update(host="web1")
    with pytest.raises(CommandExecutionError, match="ckan:redis_url: Redis does not answer"):
        builder.plan(resolve=False)
    builder.pillar["build"]["only"] = True
    assert builder.plan(resolve=False)["own_remarks"] == []


@pytest.mark.slow
def test_a_new_host_says_why_it_builds_by_itself(builder):
    """With `ship` and no builder named, a highstate builds; it did not say that this is not what deploys do."""
    live = builder.loaders().states.ckan_release.live(name="production")
    assert live.result, live.comment
    assert live.comment == (
        f"release {builder.current()} is live; it was built here, since archives are handed over by orch.deploy alone "
        "(ckan:build:ship)"
    )


@pytest.mark.slow
def test_a_host_that_builds_for_others_serves_nothing_and_keeps_its_last_build(builder, other):
    builder.pillar["build"].update(host="web1", only=True)
    release, _ = shipped(builder)
    for call in (lambda: builder.check(release), lambda: builder.activate(release), builder.deploy):
        with pytest.raises(CommandExecutionError, match=r"builds for others and serves nothing \(ckan:build:only\)"):
            call()
    second, _ = shipped(builder)
    assert builder.prune() == [release]
    assert builder.releases() == [second]
    # And the archive of its layer, which goes with it.
    key = builder.show(second)["layer"]
    kept = sorted(name for name in os.listdir(builder.home / "shared/layers") if key in name)
    assert kept == [key, f"{key}.json", f"{key}.lock", f"{key}.tar.gz"]
    builder.abort(second)
    builder.prune()
    assert [name for name in os.listdir(builder.home / "shared/layers") if key in name] == []


@pytest.mark.slow
def test_a_host_that_another_one_builds_for_waits_for_it_and_says_so(builder, other):
    other.pillar["build"]["host"] = "web9"
    states = other.loaders().states
    assert states.ckan_base.present(name="base").comment == (
        "releases come from web9 (ckan:build:ship), so none is needed"
    )
    live = states.ckan_release.live(name="production")
    assert (live.result, live.comment) == (
        True, "the first release comes from web9, by orch.deploy (ckan:build:ship)"
    )  # fmt: skip
    with pytest.raises(CommandExecutionError, match=r"no virtualenv in .*; web9 builds for this host .*orch\.deploy"):
        other.deploy()


def installed(host: Host) -> tuple[set[str], set[str]]:
    """The states of a highstate, and the Debian packages that it installs."""
    states = host.loaders().modules["state.show_sls"]("ckan")
    assert isinstance(states, dict), states
    packages = next(item for item in states["ckan-packages"]["pkg"] if isinstance(item, dict) and "pkgs" in item)
    return set(states), set(packages["pkgs"])


@pytest.mark.slow
def test_a_highstate_installs_what_a_host_needs_and_no_more(builder, other):
    for host in (builder, other):
        host.pillar["manage"] = {"packages": True, "services": True, "user": False}
        host.pillar["web"] = {"server": "nginx"}
        host.pillar["build"].update(host="web1")
    states, packages = installed(builder)
    assert {"ckan-release", "ckan-front", "ckan-jobs"} <= states and {"git", "nginx", "supervisor"} <= packages
    # CKAN's driver for PostgreSQL has no wheel.
    builder.pillar["base"] = {"version": "2.12.0"}
    assert {"libpq-dev", "python3-dev", "build-essential"} <= installed(builder)[1]
    builder.pillar["build"]["only"] = True
    states, packages = installed(builder)
    assert {"ckan-base", "ckan-directories"} <= states and "git" in packages
    assert not {"ckan-release", "ckan-front", "ckan-jobs"} & states and not {"nginx", "supervisor"} & packages
    other.pillar["build"]["host"] = "web9"
    states, packages = installed(other)
    assert {"ckan-release", "ckan-front"} <= states and {"nginx", "bubblewrap"} <= packages
    assert not {"git", "build-essential"} & packages
