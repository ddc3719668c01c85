"""Visitors with accounts: they look around, log in, post forms and upload large files, again and again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import requests

from parts.accounts import Here, Person, said
from parts.visitors import Visitors

ADDRESSES = ("127.0.0.1", "[::1]")


class Members(Visitors):
    """Visitors of a real CKAN: ``with Members(url, names, password, "city-hall") as members: ...``.

    url
        Address of the portal, by https; it is on this machine.
    names
        Their accounts, one for each; every other one comes by IPv6.
    password
        The password of each.
    organization
        Where their datasets belong.
    size
        Bytes of each file.
    pause
        Seconds before they begin again.

    Beside what Visitors tell: `files` are the hashes of the files by dataset, `uploads` that were answered well, and
    `by` is the number of answers by address.
    """

    def __init__(
        self, url: str, names: Sequence[str], password: str, organization: str, size: int, pause: float = 0.2
    ) -> None:
        super().__init__(urlsplit(url).port or 443, threads=0, pause=pause)
        self.url, self.password, self.organization, self.size = url, password, organization, size
        self.files: dict[str, str] = {}
        self.by = dict.fromkeys(ADDRESSES, 0)
        self._block = os.urandom(size)
        self._threads = [
            threading.Thread(target=self._live, args=(name, ADDRESSES[place % 2]), daemon=True)
            for place, name in enumerate(names)
        ]

    def told(self) -> str:
        """Return what a person wants to read of it."""
        return f"{super().told()}; {len(self.files)} uploads of {self.size / 2**20:.0f} MB; {self.by}"

    def answered(self, address: str, answer: requests.Response, seconds: float) -> None:
        """Note an answer."""
        problem = f"{answer.request.method} {answer.url} {answer.status_code}" if answer.status_code >= 400 else ""
        with self._lock:
            self.asked += 1
            self.by[address] += 1
            self.longest = max(self.longest, seconds)
            self.releases[answer.headers.get("X-CKAN-Release", "")] += 1
        if problem:
            self._note(f"{problem}, after {seconds:.1f} s")

    def _note(self, problem: str) -> None:
        with self._lock:
            self.failed.append(f"{time.strftime('%H:%M:%S')} {problem}")

    def _live(self, name: str, address: str) -> None:
        while not self._over.wait(self.pause):
            person = Person(self.url, _Counted(self, self.port, address))
            try:
                with contextlib.suppress(_Noted):
                    self._visit_once(person, name, f"{name}-{time.time_ns()}")
            except (requests.RequestException, OSError, AssertionError) as exc:
                self._note(f"{name} by {address}: {exc!r}"[:500])
            finally:
                person.close()

    def _visit_once(self, person: Person, name: str, dataset: str) -> None:
        for path in ("/", "/dataset/", f"/organization/{self.organization}"):
            self._good(person.see(path), path)
        person.log_in(name, self.password)
        done = person.submit(
            "/dataset/new", _ckan_phase="dataset_new_1", pkg_name="", title=dataset, name=dataset, notes="A dataset.",
            owner_org=self.organization, save="",
        )  # fmt: skip
        form = f"/dataset/{dataset}/resource/new"
        self._good(done, form)
        content = os.urandom(64) + self._block[64:]
        done = person.submit(
            form, id="", url_type="upload", url="file.bin", name="A file", save="go-metadata",
            upload=("file.bin", content, "application/octet-stream"),
        )  # fmt: skip
        self._good(done, f"/dataset/{dataset}")
        with self._lock:
            self.files[dataset] = hashlib.sha256(content).hexdigest()
        self._good(person.submit(f"/dataset/{dataset}", to="/user/_logout"), "")

    def _good(self, answer: requests.Response, path: str) -> None:
        """What is not where it should be; an error was noted already."""
        if answer.status_code >= 400:
            raise _Noted
        assert answer.url.startswith(self.url + path), said(answer)


class _Noted(Exception):
    """A visit ends here."""


class _Counted(Here):
    """Tells of each answer."""

    def __init__(self, members: Members, port: int, address: str) -> None:
        super().__init__(port, address)
        self.members, self.address = members, address

    def send(self, request: requests.PreparedRequest, *rest: Any, **more: Any) -> requests.Response:
        begun = time.monotonic()
        answer = super().send(request, *rest, **more)
        self.members.answered(self.address, answer, time.monotonic() - begun)
        return answer
