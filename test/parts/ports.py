"""Free ports on loopback."""

from __future__ import annotations

import socket

GIVEN: set[int] = set()


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on at this moment, and that was not handed out before."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        # The kernel may offer a port again as long as nobody listens on it.
        if port not in GIVEN:
            GIVEN.add(port)
            return port


def answers(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether something accepts connections on a TCP port."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def socket_answers(path: str) -> bool:
    """Return whether something accepts connections on a unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
