"""
The demo: a real CKAN on two web hosts, from the first deploy to a rollback. `make demo` runs it.

DEMO_ONCE=1 ends by itself, and the exit code tells whether every step did what it should.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from parts.keyring import KeyRing  # noqa: E402
from parts.process import stop_all  # noqa: E402
from parts.real import RealPortal  # noqa: E402
from parts.system import ensure_packages  # noqa: E402
from parts.visitors import Visitors  # noqa: E402
from stub import repos  # noqa: E402

SANDBOX = Path("/tmp/ckan-demo")
BEGUN = time.monotonic()


def say(text: str) -> None:
    """Print a progress line with the time since the start."""
    print(f"[{time.monotonic() - BEGUN:5.0f} s]   {text}", flush=True)


def title(text: str) -> None:
    """Print the headline of a step."""
    print(f"\n[{time.monotonic() - BEGUN:5.0f} s] {text}", flush=True)


class Walk:
    """The steps of the demo. Each prints what it sees, and remembers what was not as it should be."""

    def __init__(self, portal: RealPortal) -> None:
        self.portal = portal
        self.wrong: list[str] = []
        self.served = ""

    def expect(self, claim: str, true: bool) -> None:
        """Print a claim with its outcome."""
        print(f"            {'ok ' if true else 'NOT SO'} {claim}", flush=True)
        if not true:
            self.wrong.append(claim)

    def first_deploy(self) -> None:
        """Highstate on both hosts: everything from directories to the first release."""
        title("first deploy: salt -I 'ckan:env:production' state.highstate")
        with self.watching():
            done = self.portal.highstate()
        if done["code"]:
            print(done["text"][-4000:])
        self.expect("the highstate succeeds", done["code"] == 0)
        self.show("Welcome to My City")
        self.first = self.portal.current("web1")
        self.expect("both hosts have the same release", self.portal.current("web2") == self.first != "")

    def sample_data(self) -> None:
        """An organisation and datasets, over the API of the live site."""
        title("sample data: an organisation and three datasets over the API")
        with self.watching():
            titles = self.portal.add_sample_data()
        status, page, _ = self.portal.get("/dataset/")
        self.expect(f"/dataset/ shows {', '.join(titles)}", status == 200 and all(t in page for t in titles))

    def deploy(self) -> None:
        """A new commit of the extension, visible on every page."""
        title("deploy: a new commit of ckanext-mycity; salt-run state.orch orch.deploy pillar='{env: production}'")
        commit = repos.commit_change(self.portal.mycity, "My City, now with more trees")
        with self.watching(visited=True):
            done = self.portal.deploy()
        self.summary(done)
        self.expect("the deploy succeeds", done["code"] == 0)
        self.show("My City, now with more trees")
        self.second = self.portal.current("web1")
        self.expect("both hosts have the same new release", self.portal.current("web2") == self.second > self.first)
        code, shown = self.portal.call("web2", "ckan_release.show")
        got = shown["extensions"]["ckanext-mycity"]["commit"] if code == 0 else ""
        self.expect(f"its manifest names commit {commit[:12]}", got == commit)

    def failed_deploy(self) -> None:
        """A commit whose plugin raises when CKAN boots."""
        title("a deploy that must fail: the plugin of the next commit raises when CKAN starts")
        repos.commit_broken(self.portal.mycity, "no such table: trees")
        with self.watching(visited=True):
            done = self.portal.deploy()
        self.summary(done)
        self.expect("the exit code is not 0", done["code"] != 0)
        sentence = "web1, web2 failed at check: plugin mycity does not start: RuntimeError: no such table: trees"
        self.expect("it names host, stage, plugin and cause", sentence in done["text"])
        self.show("My City, now with more trees")
        for host in self.portal.hosts:
            self.expect(f"{host} is on {self.second} as before", self.portal.current(host) == self.second)
            kept = self.portal.releases(host)
            self.expect(f"{host} has no trace of the candidate", kept == [self.first, self.second])

    def rollback(self) -> None:
        """Back to the first release, in one command."""
        title("rollback: salt-run state.orch orch.rollback pillar='{env: production}'")
        with self.watching(visited=True):
            done = self.portal.deploy("rollback", reason="the trees are not ours")
        self.summary(done)
        self.expect("the rollback succeeds", done["code"] == 0)
        self.show("Welcome to My City")
        for host in self.portal.hosts:
            self.expect(f"{host} is back on {self.first}", self.portal.current(host) == self.first)
        code, shown = self.portal.call("web1", "ckan_release.show", self.second)
        self.expect("the release that was left is marked bad", code == 0 and shown["state"] == "bad")
        status, page, _ = self.portal.get("/dataset/")
        self.expect("the datasets are still there", status == 200 and "Street trees" in page)

    def at_a_glance(self) -> None:
        """Where all hosts stand, and what was done to them."""
        for command in ("ckan.status", "ckan.history"):
            title(f"at a glance: salt-run {command} production")
            done = self.portal.fleet.run("salt-run", command, "production")
            for line in done.stdout.splitlines():
                print(f"            {line}", flush=True)
            self.expect(f"the exit code of {command} is 0", done.returncode == 0)
        self.expect("the history has the rollback and its reason", "the trees are not ours" in done.stdout)
        title("a page of all runs: salt-run ckan.report production")
        done = self.portal.fleet.run("salt-run", "ckan.report", "production")
        print(f"            {done.stdout.strip()}", flush=True)
        self.expect("the page is there", done.returncode == 0 and "index.html" in done.stdout)

    def show(self, text: str) -> None:
        """Print what the front door serves and each host's release."""
        status, page, release = self.portal.get("/")
        found = re.search(r'class="mycity-marker"[^>]*>([^<]*)<', page)
        print(f"            front door {self.portal.url}/ : {status}, release {release}, "
              f"page says: {found.group(1) if found else 'nothing of mycity'}")  # fmt: skip
        for host in self.portal.hosts:
            print(f"            {host}: current -> {self.portal.current(host) or 'none'}; "
                  f"releases {' '.join(self.portal.releases(host))}")  # fmt: skip
        self.expect(f"the page says {text!r}", status == 200 and bool(found) and found.group(1) == text)

    def summary(self, done: dict[str, Any]) -> None:
        """Print what the operator sees of an orchestration, but for Salt's list of its steps."""
        # What Salt itself logs begins with a bracket.
        progress = [line for line in done["progress"].splitlines() if not line.startswith("[")]
        for line in [*progress, "", *done["summary"].splitlines()]:
            print(f"            {line}".rstrip(), flush=True)

    @contextmanager
    def watching(self, visited: bool = False):
        """Print what the hosts are at, every few seconds, while something runs; visited: ask for pages meanwhile."""
        visitors = Visitors(self.portal.front_port, threads=2)
        over = threading.Event()

        def watch() -> None:
            while not over.wait(4):
                say("; ".join(f"{host}: {self.last_stage(host)}" for host in self.portal.hosts))

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            with visitors if visited else nullcontext():
                yield
        finally:
            over.set()
            thread.join()
        if visited:
            self.expect(f"visitors meanwhile: {visitors.told()}", visitors.asked > 0 and not visitors.failed)

    def last_stage(self, host: str) -> str:
        """Say what a host's deploy log ends with."""
        log = self.portal.root(host) / "usr/lib/ckan/shared/deploy.log"
        if not log.exists():
            return "at work"
        entry = json.loads(log.read_text().splitlines()[-1])
        return f"after {entry['stage']} of {entry['release']} ({entry['result']}, {entry['seconds']:.1f} s)"


def main() -> int:
    """Run the walk; returns the exit code."""
    if sys.argv[1:] == ["stop"]:
        print("stopped: " + (", ".join(stop_all(SANDBOX)) or "nothing ran") if SANDBOX.exists() else "no demo is here")
        return 0
    if SANDBOX.exists():
        stop_all(SANDBOX)
        import shutil

        shutil.rmtree(SANDBOX)
    SANDBOX.mkdir(mode=0o755)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    title("parts: what is missing is installed")
    ensure_packages(say=say)
    try:
        portal = RealPortal(SANDBOX, say=say)
        title("services: everything in " + str(SANDBOX) + ", on loopback")
        portal.start()
        walk = Walk(portal)
        steps = (walk.first_deploy, walk.sample_data, walk.deploy, walk.failed_deploy, walk.rollback, walk.at_a_glance)
        for step in steps:
            step()
        title("the demo went as it should" if not walk.wrong else f"NOT as it should: {'; '.join(walk.wrong)}")
        if os.environ.get("DEMO_ONCE") != "1":
            print(f"\nThe portal is up: {portal.url}/  (Ctrl-C or `make demo-stop` ends it)", flush=True)
            while True:
                time.sleep(3600)
        return 1 if walk.wrong else 0
    except KeyboardInterrupt:
        print("\nstopping")
        return 0
    finally:
        KeyRing(SANDBOX / "salt/k").stop()
        stop_all(SANDBOX)


if __name__ == "__main__":
    sys.exit(main())
