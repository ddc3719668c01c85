"""
Run a command of CKAN as a service, inside the release that is current. The CKAN formula writes the lines.

    service.py idle --signal TERM -- bin/ckan -c INI COMMAND...
    service.py once --site SITE --env ENV --ini INI --name NAME --signal TERM -- COMMAND...

idle: for a command that knows no signals and waits for Redis without end (BLPOP), as the consumers of ckanext-harvest
do: asked to end, it finishes what it is at, and ends when it next waits. No message is taken that nobody works on.

once: on one host of the environment alone. The hosts hold a lease in Redis, whose address is CKAN's own and read from
the ini; the others wait. A host that is down does not renew it, and another one takes over when it has run out. Who
cannot renew it ends the command before that.
"""

from __future__ import annotations

import argparse
import configparser
import ctypes
import os
import runpy
import secrets
import signal
import socket
import subprocess
import sys
import time

# How long a lease lasts, and how often it is renewed; how long before its end the command is asked to end, and killed.
LEASE_SECONDS = 30
RENEW_SECONDS, ASK_SECONDS, KILL_SECONDS = LEASE_SECONDS / 6, LEASE_SECONDS * 3 / 4, LEASE_SECONDS / 6
# How often a host that waits asks for it, how long Redis has to answer, and how often the command is looked at.
WAIT_SECONDS, ANSWER_SECONDS, POLL_SECONDS = 2, 2, 0.2
RENEW = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) end return 0"
RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"
PR_SET_PDEATHSIG = 1


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser()
    modes = parser.add_subparsers(dest="mode", required=True)
    idle = modes.add_parser("idle")
    once = modes.add_parser("once")
    for option in ("--site", "--env", "--ini", "--name"):
        once.add_argument(option, required=True)
    for mode in (idle, once):
        mode.add_argument("--signal", required=True)
        mode.add_argument("command", nargs="+")
    told = parser.parse_args()
    asked: list[int] = []
    signal.signal(getattr(signal, f"SIG{told.signal}"), lambda number, frame: asked.append(number))
    return run_until_idle(told.command, asked) if told.mode == "idle" else run_once(told, asked)


def run_until_idle(command: list[str], asked: list[int]) -> int:
    """Run a Python program in this process; it ends between two messages of Redis once it was asked to."""
    import redis

    wait = redis.Redis.blpop

    def blpop(self, keys, timeout=0):
        if timeout:
            return wait(self, keys, timeout)
        while not asked:
            found = wait(self, keys, 1)
            if found is not None:
                return found
        print("-- ends, as asked", flush=True)
        raise SystemExit(0)

    redis.Redis.blpop = blpop
    # As where the program is run by itself: this directory is not for what it imports.
    sys.argv, sys.path[0] = command, os.path.dirname(os.path.abspath(command[0]))
    runpy.run_path(command[0], run_name="__main__")
    return 0


class Lease:
    """What one host of the environment holds; ``until`` is when it runs out at the earliest."""

    def __init__(self, told: argparse.Namespace) -> None:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        ini = configparser.ConfigParser(defaults={"here": os.path.dirname(os.path.abspath(told.ini))})
        ini.read(told.ini, encoding="utf-8")
        self.redis = redis.Redis.from_url(
            ini["app:main"]["ckan.redis.url"],
            socket_timeout=ANSWER_SECONDS,
            socket_connect_timeout=ANSWER_SECONDS,
            # Whoever tries again and again does not see that the lease runs out.
            retry=Retry(NoBackoff(), 0),
        )
        self.key = f"ckan-formula:service:{told.site}:{told.env}:{told.name}"
        self.mine = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(8)}"
        self.until = 0.0

    def take(self) -> bool:
        """Take it, unless another one has it."""
        asked = time.monotonic()
        if self.redis.set(self.key, self.mine, nx=True, px=LEASE_SECONDS * 1000):
            self.until = asked + LEASE_SECONDS
            return True
        return False

    def renew(self) -> bool:
        """Keep it; False where another one has it now."""
        asked = time.monotonic()
        if self.redis.eval(RENEW, 1, self.key, self.mine, LEASE_SECONDS * 1000):
            self.until = asked + LEASE_SECONDS
            return True
        # A Redis that was started anew has forgotten it.
        return self.take()

    def release(self) -> None:
        """Let another host have it at once."""
        self.redis.eval(RELEASE, 1, self.key, self.mine)


def run_once(told: argparse.Namespace, asked: list[int]) -> int:
    """Wait for the lease, and run the command for as long as it is ours."""
    lease, complained = Lease(told), False
    while not asked:
        try:
            if lease.take():
                break
            complained = False
        except Exception as exc:
            # Its text may have the address in it, and that a password.
            if not complained:
                print(f"-- waits: Redis cannot be asked whose turn it is ({type(exc).__name__})", flush=True)
            complained = True
        rest(asked)
    if asked:
        return 0
    print(f"-- {told.name} runs on this host", flush=True)
    with subprocess.Popen(told.command, preexec_fn=end_with_parent) as process:
        lost = keep(process, lease, asked, getattr(signal, f"SIG{told.signal}"))
    try:
        lease.release()
    except Exception as exc:
        print(f"-- the lease was not given back ({type(exc).__name__})", flush=True)
    if lost:
        print(f"-- {told.name} was ended: {lost}", flush=True)
        return 1
    return process.returncode if process.returncode >= 0 else 1


def keep(process: subprocess.Popen, lease: Lease, asked: list[int], number: int) -> str:
    """Renew the lease until the command has ended; returns why it was ended without being asked to, or ''."""
    renewed, lost, told = time.monotonic(), "", False
    while process.poll() is None:
        now = time.monotonic()
        if now - renewed > RENEW_SECONDS:
            renewed = now
            try:
                if not lease.renew():
                    process.kill()
                    lost = "another host has it"
            except Exception as exc:
                if lease.until - now < ASK_SECONDS:
                    lost = f"Redis cannot be asked ({type(exc).__name__})"
                    asked.append(number)
                if lease.until - now < KILL_SECONDS + RENEW_SECONDS + ANSWER_SECONDS:
                    process.kill()
        if asked and not told:
            process.send_signal(number)
            told = True
        try:
            process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    return lost


def rest(asked: list[int]) -> None:
    """Wait until it is time to ask again, or this was asked to end."""
    until = time.monotonic() + WAIT_SECONDS
    while not asked and time.monotonic() < until:
        time.sleep(0.1)


def end_with_parent() -> None:
    """Whoever kills this kills the command: it must not go on without a lease."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
