"""Private git with servers that are real: sshd with a key for each repository, git over HTTP with a token."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ckan_deploy.errors import FormulaError
from ckan_deploy.sources import repositories
from ckan_deploy.sources.git import Origin
from parts.git_server import HttpGitServer, SshGitServer, fingerprint, make_key
from parts.process import sandbox
from stub import repos

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def place():
    path = sandbox("ckan-g-")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def source():
    """The functions of the package that ask git servers."""
    return lambda name, about, *arguments: getattr(repositories, name)(Origin(**about), *arguments)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """What `paths:shared` would be."""
    return tmp_path / "shared"


@pytest.fixture(scope="module")
def private(place: Path):
    """Two repositories, each with a key of its own, on a server that also lets a stranger's key log in."""
    one = repos.make_repo(place / "git", "one", "One", backend="uv_build")
    two = repos.make_repo(place / "git", "two", "Two", backend="uv_build")
    keys = {name: make_key(place / "keys", name) for name in ("one", "two", "stranger")}
    access = {keys["one"].with_suffix(".pub"): [one], keys["two"].with_suffix(".pub"): [two]}
    access[keys["stranger"].with_suffix(".pub")] = []
    server = SshGitServer(place, access).start()
    server.repositories, server.keys = {"one": one, "two": two}, keys
    yield server
    server.stop()


@pytest.fixture
def agent(private, place: Path, monkeypatch):
    """An ssh-agent that runs beside us, with a key that logs in and may read nothing."""
    link = place / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", link], stdout=subprocess.DEVNULL)
    while not link.exists():
        time.sleep(0.05)
    env = {**os.environ, "SSH_AUTH_SOCK": str(link)}
    subprocess.run(["ssh-add", "-q", private.keys["stranger"]], check=True, env=env)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(link))
    yield
    process.terminate()
    process.wait()
    link.unlink(missing_ok=True)


def origin(server: SshGitServer, name: str, key: str = "", **more) -> dict:
    # As the gpg renderer hands it over: without the line break at its end.
    text = server.keys[key or name].read_text().strip()
    url = server.url(server.repositories[name])
    return {"url": url, "ref": "main", "deploy_key": text, "host_keys": [server.known_hosts], **more}


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_a06_each_repository_is_asked_with_its_own_key_only(source, private, agent, shared, order):
    before = len(private.offered())
    for name in order:
        commit = source("resolve", origin(private, name), str(shared / "mirrors")).commit
        assert commit == repos.git(private.repositories[name], "rev-parse", "main")
        source("checkout", origin(private, name), commit, str(shared / name), str(shared / "mirrors"))
        assert repos.git(shared / name, "rev-parse", "HEAD") == commit
        offered = private.offered()
        assert offered[before:] == [{fingerprint(private.keys[name])}] * 2
        before = len(offered)
    assert os.listdir(shared / "keys") == []
    assert oct((shared / "keys").stat().st_mode)[-3:] == "700"


def test_a06_a_wrong_key_fails_by_name_and_shows_nothing_of_it(source, private, agent, shared):
    with pytest.raises(FormulaError) as failure:
        source("resolve", origin(private, "one", key="two"), str(shared / "mirrors"))
    assert str(private.repositories["one"]) in str(failure.value)
    assert "Repository not found" in str(failure.value)
    unknown = make_key(shared, "unknown").read_text()
    with pytest.raises(FormulaError, match="127.0.0.1 does not accept the key; correct deploy_key") as failure:
        source("resolve", origin(private, "one", deploy_key=unknown), str(shared / "mirrors"))
    for line in unknown.splitlines()[1:-1]:
        assert line not in str(failure.value)
    assert os.listdir(shared / "keys") == []


@pytest.fixture
def no_known_hosts(tmp_path: Path, monkeypatch):
    """A user who never accepted a host key."""
    monkeypatch.setenv("HOME", str(tmp_path))
    home = Path("/root/.ssh/known_hosts")
    assert not home.exists() or "[127.0.0.1]" not in home.read_text()


def test_a07_a_host_key_of_the_pillar_is_enough(source, private, shared, no_known_hosts):
    assert source("resolve", origin(private, "one"), str(shared / "mirrors")).kind == "branch"


def test_a07_an_unknown_and_a_different_host_key_fail_at_once_and_name_the_host(
    source, private, place, shared, no_known_hosts
):
    begun = time.monotonic()
    with pytest.raises(FormulaError, match="host key of 127.0.0.1 is not known; set host_keys"):
        source("resolve", origin(private, "one", host_keys=[]), str(shared / "mirrors"))
    other = make_key(shared, "other").with_suffix(".pub").read_text().split()
    wrong = f"[127.0.0.1]:{private.port} {other[0]} {other[1]}"
    with pytest.raises(FormulaError, match="127.0.0.1 shows another host key than the one that is known"):
        source("resolve", origin(private, "one", host_keys=[wrong]), str(shared / "mirrors"))
    assert time.monotonic() - begun < 30
    text = "".join(path.read_text() for path in (REPO / "_utils").rglob("*.py"))
    assert "StrictHostKeyChecking=no" not in text and "StrictHostKeyChecking=accept-new" not in text


def test_a06_a_key_that_a_killed_run_left_is_gone_after_the_next(source, private, shared):
    """The server accepts and says nothing, so the run is killed while its key is there."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"ssh://root@127.0.0.1:{silent.getsockname()[1]}/x"
        code = (
            "import json, sys; sys.path.insert(0, sys.argv[1])\n"
            "from ckan_deploy.sources import repositories\n"
            "from ckan_deploy.sources.git import Origin\n"
            "repositories.resolve(Origin(**json.load(sys.stdin)), sys.argv[2] + '/mirrors')\n"
        )
        run = subprocess.Popen(
            [sys.executable, "-c", code, str(REPO / "_utils"), str(shared)], stdin=subprocess.PIPE, text=True,
            start_new_session=True, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        import json

        run.stdin.write(json.dumps(origin(private, "one", url=url)))
        run.stdin.close()
        deadline = time.monotonic() + 30
        while not list(shared.glob("keys/*/id")) and time.monotonic() < deadline:
            time.sleep(0.05)
        left = list(shared.glob("keys/*/id"))
        assert len(left) == 1 and oct(left[0].stat().st_mode)[-3:] == "600"
        time.sleep(0.5)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    assert left[0].exists()
    source("resolve", origin(private, "one"), str(shared / "mirrors"))
    assert os.listdir(shared / "keys") == []


def test_a_server_that_accepts_and_says_nothing_is_given_up_within_half_a_minute(source, private, shared):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        with pytest.raises(FormulaError, match="127.0.0.1"):
            url = f"ssh://root@127.0.0.1:{silent.getsockname()[1]}/x"
            source("resolve", origin(private, "one", url=url), str(shared / "mirrors"))
        assert time.monotonic() - begun < 32


@pytest.fixture
def web(place: Path, private):
    server = HttpGitServer(place, user="robot", token="a-token-of-git").start()
    yield server
    server.stop()


def arguments_seen(work) -> str:
    """The arguments and environments of all processes that ran while something was done."""
    seen, over = set(), threading.Event()

    def look() -> None:
        while not over.is_set():
            for entry in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(entry.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
                except OSError:
                    continue

    thread = threading.Thread(target=look)
    thread.start()
    try:
        work()
    finally:
        over.set()
        thread.join()
    return "\n".join(seen)


def test_a_token_opens_the_origin_and_is_in_no_argument_and_no_file(source, private, web, shared):
    repository = private.repositories["one"]
    asked = {"url": web.url(repository), "ref": "main", "token": "a-token-of-git", "token_user": "robot"}
    commit = source("resolve", asked, str(shared / "mirrors")).commit
    seen = arguments_seen(lambda: source("checkout", asked, commit, str(shared / "one"), str(shared / "mirrors")))
    assert "http-backend" in seen or "git" in seen
    assert "a-token-of-git" not in seen
    done = subprocess.run(["grep", "-rl", "a-token-of-git", shared], capture_output=True, text=True, check=False)
    assert done.stdout == ""
    with pytest.raises(FormulaError, match="cannot be read") as failure:
        source("resolve", {**asked, "token": "another-token"}, str(shared / "mirrors"))
    assert "another-token" not in str(failure.value)


def test_a_redirect_to_another_server_does_not_get_the_token(source, place, private, web, shared):
    elsewhere = HttpGitServer(place, user="robot", token="something-else").start()
    try:
        web.redirect = f"http://127.0.0.1:{elsewhere.port}"
        asked = {"url": web.url(private.repositories["one"]), "ref": "main", "token": "a-token-of-git",
                 "token_user": "robot"}  # fmt: skip
        with pytest.raises(FormulaError):
            source("resolve", asked, str(shared / "mirrors"))
        assert elsewhere.asked and set(elsewhere.asked) == {""}
    finally:
        elsewhere.stop()


def test_a_private_submodule_comes_with_the_same_credentials(source, place, private, web, shared):
    outer = place / "git/outer"
    if not outer.exists():
        outer.mkdir()
        repos.git(outer, "init", "-q", "--initial-branch", "main")
        (outer / ".gitmodules").write_text('[submodule "one"]\n\tpath = one\n\turl = ../ckanext-one\n')
        commit = repos.git(private.repositories["one"], "rev-parse", "main")
        repos.git(outer, "add", ".gitmodules")
        repos.git(outer, "update-index", "--add", "--cacheinfo", f"160000,{commit},one")
        repos.git(outer, "commit", "-qm", "with a submodule")
    asked = {"url": web.url(outer), "ref": "main", "token": "a-token-of-git", "token_user": "robot"}
    commit = source("resolve", asked, str(shared / "mirrors")).commit
    source("checkout", asked, commit, str(shared / "outer"), str(shared / "mirrors"))
    assert (shared / "outer/one/pyproject.toml").exists()


def test_an_origin_given_as_a_path_may_belong_to_another_user(source, place, shared):
    repo = repos.make_repo(shared / "git", "theirs", "Theirs", backend="uv_build")
    subprocess.run(["chown", "-R", "nobody", repo], check=True)
    for url in (str(repo), f"file://{repo}"):
        asked = {"url": url, "ref": "main"}
        commit = source("resolve", asked, str(shared / "mirrors")).commit
        source("checkout", asked, commit, str(shared / f"out-{len(url)}"), str(shared / "mirrors"))


@pytest.mark.parametrize("url", ["ext::sh -c touch% /tmp/ckan-evil", "fd::3", "-oProxyCommand=touch /tmp/ckan-evil"])
def test_addresses_that_run_programs_are_refused(source, shared, url):
    with pytest.raises(FormulaError):
        source("resolve", {"url": url, "ref": "main"}, str(shared / "mirrors"))
    assert not os.path.exists("/tmp/ckan-evil")
