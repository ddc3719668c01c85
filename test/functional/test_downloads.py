"""Wheels and sdists by address and hash: Salt's own client, a real web server, Salt's file server."""

from __future__ import annotations

import concurrent.futures
import copy
import hashlib
import http.server
import os
import socket
import stat
import threading
from pathlib import Path
from urllib.parse import unquote

import pytest

from ckan_deploy.errors import FormulaError, InvalidArgument
from ckan_deploy.host import SaltHost
from ckan_deploy.sources import archives
from stub.archives import WHEEL, sdist, sha256, wheel


class Server(http.server.BaseHTTPRequestHandler):
    """Serves a folder, says what was asked for, and misbehaves where the path says so."""

    folder: Path
    asked: list[str]

    def do_GET(self):
        self.asked.append(self.path)
        self.server.authorization = self.headers.get("Authorization")
        path = unquote(self.path.partition("?")[0])
        if path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", path.removeprefix("/moved"))
            self.end_headers()
            return
        file = self.folder / path.rpartition("/")[2]
        if not file.is_file():
            self.send_error(404)
            return
        data = file.read_bytes()
        self.send_response(200)
        # What a web server says of a .tar.gz that it means as it is.
        if file.name.endswith(".gz"):
            self.send_header("Content-Encoding", "x-gzip")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if path.startswith("/cut/") else data)

    def log_message(self, *_):
        pass


@pytest.fixture
def web(tmp_path):
    """A web server; `web.folder` is what it serves, `web.asked` what it was asked for."""
    folder = tmp_path / "web"
    folder.mkdir()
    handler = type("Handler", (Server,), {"folder": folder, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.folder, server.asked, server.authorization = folder, handler.asked, None
    server.host = f"127.0.0.1:{server.server_port}"
    server.url = f"http://{server.host}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def salt_host(session_loaders, served) -> SaltHost:
    """A host whose file server has that folder too."""
    opts = copy.deepcopy(session_loaders.opts)
    session_loaders.turn_to({**opts, "file_roots": {"base": [*opts["file_roots"]["base"], str(served)]}})
    return SaltHost(session_loaders.modules, session_loaders.opts, {}, {})


@pytest.fixture
def fetch(salt_host, tmp_path):
    def function(source, checksum, directory=tmp_path / "shared/archives") -> Path:
        return Path(archives.fetch(salt_host, "ckanext-alpha", source, checksum, str(directory)))

    return function


def refusal(function, *arguments, **keywords) -> str:
    """The one sentence with which a call is refused."""
    with pytest.raises(FormulaError) as failure:
        function(*arguments, **keywords)
    text = str(failure.value)
    assert "\n" not in text and "Traceback" not in text and text.endswith(".")
    return text


@pytest.mark.parametrize("file", [WHEEL, "ckanext-alpha-1.0.tar.gz", "v1.0+b.zip"])
def test_an_archive_comes_once_and_keeps_its_name(fetch, web, tmp_path, file):
    origin = sdist(web.folder / file) if file.endswith(".gz") else wheel(web.folder / file)
    umask = os.umask(0o077)
    try:
        path = fetch(f"{web.url}/moved/{file.replace('+', '%2B')}", f"sha256={sha256(origin)}")
    finally:
        os.umask(umask)
    assert path.name == file and path.read_bytes() == origin.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    folders = [path.parent, path.parent.parent, path.parent.parent.parent]
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in folders] == [0o755] * 3
    web.asked.clear()
    origin.unlink()
    before = path.stat()
    assert fetch(f"{web.url}/{file}", f"sha256:{sha256(path)}") == path
    assert (web.asked, path.stat().st_mtime_ns) == ([], before.st_mtime_ns)
    assert os.listdir(path.parent.parent) == [path.parent.name]


def test_a_kept_archive_that_was_damaged_is_fetched_again(fetch, web):
    origin = wheel(web.folder / WHEEL)
    path = fetch(f"{web.url}/{WHEEL}", sha256(origin))
    path.write_bytes(b"damaged")
    assert fetch(f"{web.url}/{WHEEL}", sha256(origin)).read_bytes() == origin.read_bytes()


def test_the_file_server_gives_archives_too(fetch, served):
    origin = wheel(served / WHEEL)
    digest = hashlib.sha512(origin.read_bytes()).hexdigest()
    for checksum in (f"sha512={digest.upper()}", digest, f"sha256:{sha256(origin)}", sha256(origin)):
        assert fetch(f"salt://{WHEEL}", checksum).read_bytes() == origin.read_bytes()
    # What is given is a copy, and the file server's own stays.
    other = f"salt://{WHEEL}"
    assert "hash says " + "0" * 64 in refusal(fetch, other, "0" * 64) and origin.exists()
    assert "is not in the file server" in refusal(fetch, "salt://no/" + WHEEL, "0" * 64)


def test_several_fetches_at_once_give_one_whole_archive(fetch, web):
    origin = wheel(web.folder / WHEEL, {"a": os.urandom(200_000)})
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: fetch(f"{web.url}/{WHEEL}", sha256(origin)), range(6)))
    assert len(set(found)) == 1 and found[0].read_bytes() == origin.read_bytes()
    assert os.listdir(found[0].parent) == [WHEEL] and len(os.listdir(found[0].parent.parent)) == 1


def test_a_wrong_hash_leaves_nothing_and_names_both(fetch, web, tmp_path):
    origin = wheel(web.folder / WHEEL)
    said = refusal(fetch, f"{web.url}/{WHEEL}", "sha256=" + "0" * 64)
    assert "0" * 64 in said and sha256(origin) in said and "ckan:extensions:ckanext-alpha:hash" in said
    assert os.listdir(tmp_path / "shared/archives") == []
    # A corrected one at the same address is found: nothing keeps the wrong one.
    other = wheel(web.folder / WHEEL, {"b": b"other"})
    assert fetch(f"{web.url}/{WHEEL}", sha256(other)).read_bytes() == other.read_bytes()


def test_what_cannot_be_had_is_said_in_one_sentence(fetch, web, tmp_path):
    wheel(web.folder / WHEEL, {"a": os.urandom(50_000)})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}"
        for source, reason in (
            (f"{web.url}/no/{WHEEL}x.whl", "404"),
            (f"{web.url}/cut/{WHEEL}", "cannot be had"),
            (f"{dead}/{WHEEL}", "refused"),
            (f"http://no-such-host.invalid/{WHEEL}", "cannot be had"),
            (f"https://{web.host}/{WHEEL}", "cannot be had"),
        ):
            said = refusal(fetch, source, "0" * 64)
            assert reason in said and "ckan:extensions:ckanext-alpha:archive" in said, said
    assert os.listdir(tmp_path / "shared/archives") == []


def test_no_message_has_a_password_in_it(fetch, web):
    origin = wheel(web.folder / WHEEL)
    for path in (WHEEL, f"no/{WHEEL}"):
        said = refusal(fetch, f"http://someone:pa55word@{web.host}/{path}?token=t0ken", "0" * 64)
        assert "pa55word" not in said and "t0ken" not in said and "someone" not in said
        assert f"http://****@{web.host}/{path}?****" in said
    said = refusal(fetch, f"http://someone:pa/pass@w0rd@{web.host}/{WHEEL}", "0" * 64)
    assert "pass" not in said and "w0rd" not in said
    # It is sent, though.
    fetch(f"http://someone:pa55word@{web.host}/{WHEEL}", sha256(origin))
    assert web.authorization == "Basic c29tZW9uZTpwYTU1d29yZA=="


def test_a_wrong_address_or_hash_is_refused_before_anything_is_asked(fetch, web):
    good = "0" * 64
    for source, checksum, reason in (
        (f"ftp://{web.host}/{WHEEL}", good, "https://"),
        (f"/srv/{WHEEL}", good, "https://"),
        (f"file:///srv/{WHEEL}", good, "https://"),
        (f"-o/{WHEEL}", good, "https://"),
        (f"{web.url}/a b/{WHEEL}", good, "https://"),
        (f"{web.url}/\n{WHEEL}", good, "https://"),
        (None, good, "https://"),
        (f"{web.url}/archive/main", good, "ends in none of"),
        (f"{web.url}/alpha.egg", good, "ends in none of"),
        (f"{web.url}/.tar.gz", good, "ends in none of"),
        (f"{web.url}/..%2F..%2F-x.tar.gz", good, "ends in none of"),
        (f"{web.url}/a%0Ab.tar.gz", good, "ends in none of"),
        ("salt://../x.tar.gz", good, "without '..'"),
        (f"{web.url}/alpha.whl", good, "name of a wheel"),
        (f"{web.url}/{WHEEL}", "", "sha256= and 64"),
        (f"{web.url}/{WHEEL}", None, "sha256= and 64"),
        (f"{web.url}/{WHEEL}", "md5=" + "0" * 32, "sha256= and 64"),
        (f"{web.url}/{WHEEL}", "0" * 32, "sha256= and 64"),
        (f"{web.url}/{WHEEL}", "sha512=" + good, "sha256= and 64"),
        (f"{web.url}/{WHEEL}", "sha256=" + "g" * 64, "sha256= and 64"),
    ):
        assert reason in refusal(fetch, source, checksum)
    assert web.asked == []
    with pytest.raises(InvalidArgument):
        fetch(f"{web.url}/{WHEEL}", good, directory="archives")


def test_a_directory_that_cannot_be_written_is_named(fetch, web, tmp_path):
    wheel(web.folder / WHEEL)
    (tmp_path / "file").write_text("")
    assert f"{tmp_path}/file/x" in refusal(fetch, f"{web.url}/{WHEEL}", "0" * 64, directory=tmp_path / "file/x")
