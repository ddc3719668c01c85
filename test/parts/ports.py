"""Free ports on loopback."""

from __future__ import annotations

import os
import random
import socket

# Below those that the kernel gives to outgoing connections. Tests may run several at a time, each in a process of its
# own with a part of these.
FIRST, COUNT = 20000, 3000
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 4
GIVEN: set[int] = set()


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on at this moment, and that was not handed out before."""
    while True:
        port = FIRST + WORKER * COUNT + random.randrange(COUNT)
        if port in GIVEN:
            continue
        GIVEN.add(port)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
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
