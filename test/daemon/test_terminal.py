"""A deploy whose terminal closes, and one that somebody interrupts, on a real terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import time

import pytest

from daemon.conftest import eventually
from daemon.test_lock import locked, slow
from parts.portal import next_second
from stub import repos

pytestmark = pytest.mark.daemon


class Terminal:
    """`salt-run state.orch orch.deploy` on a terminal of its own."""

    def __init__(self, site) -> None:
        command = site.fleet.command("salt-run", "state.orch", "orch.deploy", f"pillar={json.dumps({'env': site.env})}")
        environment = site.fleet.environment()
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe(command[0], [str(word) for word in command], environment)
        self.text = ""

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def close(self) -> None:
        os.close(self.fd)
        self.fd = -1

    def read(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        with contextlib.suppress(OSError):  # the program has ended
            while self.fd >= 0 and (left := deadline - time.monotonic()) > 0:
                if select.select([self.fd], [], [], left)[0]:
                    self.text += os.read(self.fd, 65536).decode(errors="replace")

    def until(self, seen) -> None:
        deadline = time.monotonic() + 60
        while not seen():
            assert time.monotonic() < deadline, self.text
            self.read(0.1)

    def ended(self) -> int:
        """Wait for the end of the program; returns its exit code."""
        deadline = time.monotonic() + 120
        while not (told := os.waitpid(self.pid, os.WNOHANG))[0]:
            assert time.monotonic() < deadline, self.text
            self.read(0.1)
            time.sleep(0.1)
        self.read(1)
        return os.waitstatus_to_exitcode(told[1])


LATER = [pytest.param(name, marks=pytest.mark.long) for name in ("build", "activate", "verify", "finish")]


@pytest.mark.parametrize("stage", ["check", *LATER])
def test_h25_a_deploy_whose_terminal_closes_comes_to_its_end(site, stage):
    next_second()
    repos.commit_change(site.repo, f"Hello from afar at {stage}")
    slow(site, stage, 4)
    terminal = Terminal(site)
    terminal.until(lambda: stage in site.stage_under_way("web1"))
    terminal.close()
    terminal.ended()
    assert site.served() == [f"Hello from afar at {stage}"] * 2
    assert locked(site) == "production is not locked"
    assert site.status()[0] == 0


def test_ctrl_c_takes_a_deploy_back_when_its_stage_has_ended(site):
    release = site.good_deploy("Hello before the interrupt")
    next_second()
    repos.commit_change(site.repo, "Hello interrupted")
    slow(site, "check", 4)
    terminal = Terminal(site)
    terminal.until(lambda: "check" in site.stage_under_way("web1"))
    terminal.type("\x03")
    assert terminal.ended() == 1, terminal.text
    assert "Interrupted: the run is reverted as soon as the stage at work has ended." in terminal.text
    last = [line.strip() for line in terminal.text.strip().splitlines()[-8:]]
    assert "cause: root interrupted it in check" in last and f"now: web1, web2 on {release}" in last, terminal.text
    assert site.linked() == [release, release]
    assert locked(site) == "production is not locked"
    eventually(lambda: [name for host in site.hosts for name in site.releases(host) if name > release], [])
