"""Visitors: threads that ask a site again and again, and remember what went wrong and how long it took."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter


class Visitors:
    """Ask while the block runs: ``with Visitors(port) as visitors: ...``.

    port
        Where the site is asked, on this machine.
    path
        What is asked for.
    name
        The host name that is asked for.
    threads
        How many visitors there are; each waits for its answer, and for `pause` seconds, before it asks again.
    wanted
        The status of a good answer.

    Afterwards `asked` is the number of requests, `failed` the bad answers (a status or an error, each with its time),
    `longest` the seconds of the slowest one, `releases` how many answers each release gave (seen where the site tells).
    """

    def __init__(
        self,
        port: int,
        path: str = "/",
        name: str = "127.0.0.1",
        threads: int = 3,
        pause: float = 0.01,
        wanted: int = 200,
    ) -> None:
        self.port, self.path, self.name, self.pause, self.wanted = port, path, name, pause, wanted
        self.asked, self.longest = 0, 0.0
        self.failed: list[str] = []
        self.releases: Counter[str] = Counter()
        self._over, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._visit, daemon=True) for _ in range(threads)]

    def __enter__(self) -> Visitors:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def told(self) -> str:
        """Return what a person wants to read of it."""
        return f"{self.asked} requests, {len(self.failed)} failed, longest {self.longest:.2f} s"

    def _visit(self) -> None:
        while not self._over.wait(self.pause):
            begun, release = time.monotonic(), ""
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
                connection.request("GET", self.path, headers={"Host": self.name})
                answer = connection.getresponse()
                answer.read()
                release = answer.getheader("X-CKAN-Release", "")
                problem = "" if answer.status == self.wanted else str(answer.status)
                connection.close()
            except (OSError, http.client.HTTPException) as exc:
                problem = repr(exc)
            seconds = time.monotonic() - begun
            with self._lock:
                self.asked += 1
                self.longest = max(self.longest, seconds)
                self.releases[release] += 1
                if problem:
                    self.failed.append(f"{time.strftime('%H:%M:%S')} {problem}")
