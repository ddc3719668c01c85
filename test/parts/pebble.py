"""Pebble, a small ACME server of Let's Encrypt's for tests, and the names that it looks up."""

from __future__ import annotations

import json
import os
import shutil
import socketserver
import ssl
import struct
import subprocess
import threading
import urllib.request
from pathlib import Path

from parts.ports import answers, free_port
from parts.process import PartError, Service, run

# The second for a Go that does not bring a newer one by itself, such as Debian 12's.
VERSION, OLDER = "v2.10.3", "v2.4.0"
_CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ckan-formula"


def program() -> Path:
    """Return pebble; built from the Go module proxy once. Raises PartError where there is no Go."""
    if not shutil.which("go"):
        raise PartError("pebble is built with Go, which is not there: install golang-go")
    said = subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True, check=True).stdout
    version = VERSION if int(said.split(".")[1]) >= 21 else OLDER
    path = _CACHE / f"pebble-{version}" / "pebble"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        module = f"github.com/letsencrypt/pebble/v2/cmd/pebble@{version}"
        env = {"GOBIN": str(path.parent), "GOFLAGS": "-modcacherw"}
        run(["go", "install", module], "Building pebble", path.parent / "build.log", env=env)
    return path


class Names(socketserver.ThreadingTCPServer):
    """A name server, by TCP as pebble asks, that has the same address for each name but those of `missing`."""

    daemon_threads = True

    def __init__(self) -> None:
        self.missing: set[str] = set()
        super().__init__(("127.0.0.1", 0), _Lookup)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


class _Lookup(socketserver.StreamRequestHandler):
    server: Names

    def handle(self) -> None:
        while length := self.rfile.read(2):
            answer = self._answer(self.rfile.read(int.from_bytes(length, "big")))
            self.wfile.write(len(answer).to_bytes(2, "big") + answer)

    def _answer(self, data: bytes) -> bytes:
        end = data.index(b"\0", 12)
        at, labels = 12, []
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]].decode())
            at += data[at] + 1
        (kind,) = struct.unpack("!H", data[end + 1 : end + 3])
        gone = ".".join(labels).lower() in self.server.missing
        found = kind == 1 and not gone
        # An answer of its own, no such name, or nothing of that kind.
        head = data[:2] + struct.pack("!HHHHH", 0x8583 if gone else 0x8580, 1, int(found), 0, 0)
        answer = b"\xc0\x0c" + struct.pack("!HHIH4B", 1, 1, 1, 4, 127, 0, 0, 1) if found else b""
        return head + data[12 : end + 5] + answer


class Pebble(Service):
    """An ACME server whose CA asks for challenges at a port of this machine, whatever the name.

    sandbox
        Directory of all the parts.
    port
        Where it asks for challenges; 80 elsewhere.
    """

    def __init__(self, sandbox: str | Path, port: int) -> None:
        super().__init__(sandbox, "pebble")
        self.port, self.names = free_port(), Names()
        self._management = free_port()
        self.directory_url = f"https://localhost:{self.port}/dir"
        self.bundle = self.directory / "ca.pem"
        key = self.directory / "ca.key"
        subject = ["-x509", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2", "-nodes"]
        made = ["-newkey", "rsa:2048", "-keyout", str(key), "-out", str(self.bundle)]
        subprocess.run(["openssl", "req", *subject, *made], check=True, capture_output=True)
        self.conf = self.directory / "pebble.json"
        self.conf.write_text(json.dumps({"pebble": {
            "listenAddress": f"127.0.0.1:{self.port}", "managementListenAddress": f"127.0.0.1:{self._management}",
            "certificate": str(self.bundle), "privateKey": str(key), "httpPort": port, "tlsPort": free_port(),
            "ocspResponderURL": "", "externalAccountBindingRequired": False,
            "retryAfter": {"authz": 1, "order": 1},
            "profiles": {"default": {"description": "as usual", "validityPeriod": 7776000}},
        }}))  # fmt: skip

    def start(self, timeout: float = 30) -> Pebble:
        """Start it. Raises PartError with its message."""
        command = [program(), "-config", self.conf, "-dnsserver", f"127.0.0.1:{self.names.server_address[1]}"]
        # Else it waits before each challenge, and refuses a part of what it is asked.
        env = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0", "PEBBLE_AUTHZREUSE": "0"}
        self.launch(command, lambda: answers(self.port), timeout=timeout, env=env)
        return self

    def root(self) -> str:
        """Return the certificate of its CA, which is made at each start."""
        context = ssl._create_unverified_context()
        with urllib.request.urlopen(f"https://127.0.0.1:{self._management}/roots/0", context=context) as answer:
            return str(answer.read().decode())

    def close(self) -> None:
        """Stop looking up names; the process is stopped with all of the sandbox."""
        self.names.shutdown()
        self.names.server_close()
