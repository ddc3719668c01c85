"""
Run one command of a site's crontab, inside the release that is current. The CKAN formula writes the lines.

    cron.py [--once] --site SITE --env ENV --ini INI NAME -- COMMAND...

What the command says goes to the system's log, under ckan-SITE-NAME. When it fails, a line on standard error says so,
and cron mails that.

--once: on one host of the environment alone. The hosts fire at the same minute; the first to note it in Redis, whose
address is CKAN's own and read from the ini, runs the command.
"""

from __future__ import annotations

import argparse
import configparser
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time

# Long enough for hosts whose clocks or time zones differ; a key is of one minute.
REMEMBERED_SECONDS = 24 * 3600


def main() -> int:
    """Run the command; returns its exit code, and 0 where it is another host's turn, or nobody's for now."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--once", action="store_true")
    for option in ("--site", "--env", "--ini"):
        parser.add_argument(option, required=True)
    parser.add_argument("name")
    parser.add_argument("command", nargs="+")
    told = parser.parse_args()
    if is_paused():
        return 0
    os.environ.update(variables())
    tag = f"ckan-{told.site}-{told.name}"
    if told.once:
        try:
            if not is_mine(told):
                return 0
        except Exception as exc:
            # Its text may have the address in it, and that a password.
            return complain(told.name, f"was not run: Redis cannot be asked whose turn it is ({type(exc).__name__})")
    code = run(told.command, tag)
    if code:
        return complain(told.name, f"ended with exit code {code}; see journalctl -t {tag}", code)
    return 0


def is_paused() -> bool:
    """Whether maintenance mode is on for a migration: services and cron jobs are paused."""
    noted = os.path.join(os.path.dirname(os.path.abspath(__file__)), "maintenance", "on")
    try:
        with open(noted, encoding="utf-8") as handle:
            return "workers" in json.loads(handle.read() or "{}")
    except FileNotFoundError:
        return False


def variables() -> dict[str, str]:
    """The environment variables of the release, which this runs in: lines of sh."""
    try:
        with open("environment.sh", encoding="utf-8") as handle:
            return dict(word.split("=", 1) for word in shlex.split(handle.read()) if "=" in word)
    except FileNotFoundError:
        return {}


def is_mine(told: argparse.Namespace) -> bool:
    """Whether this host is the first of the environment to run this command in this minute."""
    import redis

    ini = configparser.ConfigParser(defaults={"here": os.path.dirname(os.path.abspath(told.ini))})
    ini.read(told.ini, encoding="utf-8")
    key = f"ckan-formula:cron:{told.site}:{told.env}:{told.name}:{int(time.time() // 60)}"
    client = redis.Redis.from_url(ini["app:main"]["ckan.redis.url"], socket_timeout=10, socket_connect_timeout=10)
    return bool(client.set(key, socket.gethostname(), nx=True, ex=REMEMBERED_SECONDS))


def run(command: list[str], tag: str) -> int:
    """Run a command with its output in the system's log, or where there is none, in cron's mail."""
    logger = shutil.which("logger")
    if not logger or not os.path.exists("/dev/log"):
        return subprocess.run(command, stderr=subprocess.STDOUT, check=False).returncode
    with subprocess.Popen([logger, "-t", tag], stdin=subprocess.PIPE) as log:
        code = subprocess.run(command, stdout=log.stdin, stderr=subprocess.STDOUT, check=False).returncode
        log.stdin.close()
    return code


def complain(name: str, what: str, code: int = 1) -> int:
    """Say what went wrong, and where; returns the exit code."""
    print(f"{name} {what} (host {socket.gethostname()}, release {os.path.basename(os.getcwd())})", file=sys.stderr)
    return code if code > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
