"""Git servers that ask who is there: a real sshd with a key for each repository, and git's own HTTP backend."""

from __future__ import annotations

import base64
import os
import re
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from parts.ports import free_port
from parts.process import Service

_SERVE = """\
#!/bin/sh
# What a key may do: read the repositories that are named here.
for repository in "$@"; do
    if [ "$SSH_ORIGINAL_COMMAND" = "git-upload-pack '$repository'" ]; then exec git-upload-pack "$repository"; fi
done
echo "ERROR: Repository not found." >&2
exit 1
"""


def make_key(directory: Path, name: str) -> Path:
    """Make a key pair without a passphrase; returns the path of the private key."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", path], check=True)
    return path


def fingerprint(key: Path) -> str:
    """Return a key's fingerprint as sshd logs it, `SHA256:...`."""
    done = subprocess.run(["ssh-keygen", "-l", "-f", key], check=True, capture_output=True, text=True)
    return done.stdout.split()[1]


class SshGitServer(Service):
    """An sshd on a free port of 127.0.0.1 where each key may read some repositories.

    sandbox
        Directory of all the parts.
    access
        Paths of repositories by public key file.
    name
        Name of the service in the sandbox.
    """

    def __init__(self, sandbox: str | Path, access: Mapping[Path, Sequence[Path]], name: str = "sshd") -> None:
        super().__init__(sandbox, name)
        self.port = free_port()
        self.host_key = make_key(self.directory, "host")
        serve = self.directory / "serve"
        serve.write_text(_SERVE)
        serve.chmod(0o755)
        lines = [
            f'restrict,command="{serve} {" ".join(map(str, repositories))}" {Path(key).read_text().strip()}'
            for key, repositories in access.items()
        ]
        (self.directory / "authorized_keys").write_text("\n".join(lines) + "\n")
        config = {
            "Port": self.port, "ListenAddress": "127.0.0.1", "HostKey": self.host_key, "PidFile": "none",
            "AuthorizedKeysFile": self.directory / "authorized_keys", "StrictModes": "no", "UsePAM": "no",
            "PasswordAuthentication": "no", "KbdInteractiveAuthentication": "no", "PermitRootLogin": "yes",
            "LogLevel": "VERBOSE",
        }  # fmt: skip
        (self.directory / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in config.items()))

    @property
    def known_hosts(self) -> str:
        """The line of a known_hosts file for this server."""
        kind, key, *_ = self.host_key.with_suffix(".pub").read_text().split()
        return f"[127.0.0.1]:{self.port} {kind} {key}"

    def url(self, repository: Path) -> str:
        """Return the address of a repository on it."""
        return f"ssh://root@127.0.0.1:{self.port}{repository}"

    def start(self, timeout: float = 30) -> SshGitServer:
        """Start it. Raises PartError."""
        Path("/run/sshd").mkdir(exist_ok=True)
        command = ["/usr/sbin/sshd", "-D", "-e", "-f", self.directory / "sshd_config"]
        self.launch(command, self._answers, timeout=timeout)
        return self

    def offered(self) -> list[set[str]]:
        """Return the fingerprints of the keys that were offered, a set for each connection."""
        found: dict[str, set[str]] = {}
        for line in self.log.read_text(errors="replace").splitlines():
            match = re.search(
                r"(?:Accepted|Failed|Postponed) publickey for \S+ from \S+ port (\d+) .*(SHA256:\S+)", line
            )
            if match:
                found.setdefault(match[1], set()).add(match[2])
        return list(found.values())

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 2) as line:
            return line.recv(4) == b"SSH-"
        return False


class HttpGitServer:
    """Git over HTTP with a user and a token, in a thread of this process.

    root
        Directory that holds the repositories.
    user, token
        Who may read; an empty token lets everybody.
    """

    def __init__(self, root: Path, user: str = "oauth2", token: str = "") -> None:
        self.root, self.user, self.token = root, user, token
        # The Authorization header of each request, and a place to send everybody to instead.
        self.asked: list[str] = []
        self.redirect = ""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def do_GET(self) -> None:
                outer._serve(self)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]

    def url(self, repository: Path) -> str:
        """Return the address of a repository below the root."""
        return f"http://127.0.0.1:{self.port}/{repository.relative_to(self.root)}"

    def start(self) -> HttpGitServer:
        """Start it."""
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def stop(self) -> None:
        """Stop it."""
        self.server.shutdown()
        self.server.server_close()

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        header = request.headers.get("Authorization", "")
        self.asked.append(header)
        wanted = "Basic " + base64.b64encode(f"{self.user}:{self.token}".encode()).decode()
        if self.redirect:
            request.send_response(302)
            request.send_header("Location", self.redirect + request.path)
            request.end_headers()
            return
        if self.token and header != wanted:
            request.send_response(401)
            request.send_header("WWW-Authenticate", 'Basic realm="git"')
            request.end_headers()
            return
        path, _, query = request.path.partition("?")
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        env = {
            **os.environ, "GIT_PROJECT_ROOT": str(self.root), "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": path,
            "QUERY_STRING": query, "REQUEST_METHOD": request.command, "REMOTE_USER": self.user,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""), "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
            "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
        }  # fmt: skip
        done = subprocess.run(["git", "http-backend"], input=body, capture_output=True, env=env, check=False)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = [line.decode().partition(": ") for line in head.split(b"\r\n") if line]
        status = next((int(value.split()[0]) for name, _, value in headers if name == "Status"), 200)
        request.send_response(status)
        for name, _, value in headers:
            if name != "Status":
                request.send_header(name, value)
        request.end_headers()
        request.wfile.write(content)
