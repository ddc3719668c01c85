"""
What visitors notice of a switch of a real CKAN: 200 switches behind nginx, deploys over two hosts, and Apache with
mod_wsgi, once as the formula does it and once with a graceful restart, as is usual. `make bench` runs it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from parts.portal import next_second  # noqa: E402
from parts.process import sandbox  # noqa: E402
from parts.real import RealPortal  # noqa: E402
from parts.visitors import Visitors  # noqa: E402
from stub import repos  # noqa: E402

SWITCHES, SLOW_SWITCHES, DEPLOYS = 200, 20, 3
VISITORS = 4


def row(what: str, visitors: Visitors) -> str:
    """A line of the table in docs/benchmarks.md."""
    line = f"| {what} | {visitors.asked} | {len(visitors.failed)} | {visitors.longest:.2f} s |"
    print(line, *sorted(set(visitors.failed))[:5], flush=True)
    return line


def two_releases(portal: RealPortal) -> tuple[str, str]:
    """A highstate and a deploy; returns the older and the newer release."""
    assert portal.highstate()["code"] == 0
    next_second()
    repos.commit_change(portal.mycity, "Another text")
    done = portal.deploy()
    assert done["code"] == 0, done["text"]
    older, newer = portal.releases("web1")
    portal.get("/", "web1")
    return older, newer


def behind_nginx() -> list[str]:
    """200 switches on one host, then deploys over two."""
    portal, rows = RealPortal(sandbox("ckan-b-"), say=print), []
    try:
        portal.start()
        older, newer = two_releases(portal)
        with Visitors(portal.ports["web1"], threads=VISITORS) as visitors:
            time.sleep(60)
        rows.append(row("nothing is done, 60 s", visitors))
        portal.fleet.ask("web1", "ckan_release.start", older)
        with Visitors(portal.ports["web1"], threads=VISITORS) as visitors:
            for turn in range(SWITCHES):
                portal.fleet.ask("web1", "ckan_release.activate", (older, newer)[turn % 2])
        rows.append(row(f"nginx, {SWITCHES} switches on one host", visitors))
        assert len(visitors.releases) == 2, visitors.releases
        portal.fleet.ask("web1", "ckan_release.finish", newer, prune=False)
        with Visitors(portal.front_port, threads=VISITORS) as visitors:
            for turn in range(DEPLOYS):
                next_second()
                repos.commit_change(portal.mycity, f"Turn {turn}")
                done = portal.deploy()
                assert done["code"] == 0, done["text"]
        rows.append(row(f"nginx, {DEPLOYS} whole deploys over two hosts", visitors))
    finally:
        portal.destroy()
    return rows


def under_apache() -> list[str]:
    """The same release pair under mod_wsgi: a touched pointer, and a graceful restart."""
    portal, rows = RealPortal(sandbox("ckan-b-"), hosts=["web1"], say=print, server="apache"), []
    try:
        portal.start()
        pair = two_releases(portal)
        home = portal.root("web1") / "usr/lib/ckan"
        graceful = ["/usr/sbin/apache2", "-f", str(portal.sandbox / "apache/apache.conf"), "-k", "graceful"]
        with Visitors(portal.ports["web1"], threads=VISITORS) as visitors:
            for turn in range(SLOW_SWITCHES):
                portal.fleet.ask("web1", "ckan_release.activate", pair[turn % 2])
                portal.fleet.ask("web1", "ckan_release.verify", pair[turn % 2])
                time.sleep(2)
        rows.append(row(f"Apache, {SLOW_SWITCHES} switches by the formula", visitors))
        with Visitors(portal.ports["web1"], threads=VISITORS) as visitors:
            for turn in range(SLOW_SWITCHES):
                (home / "next").symlink_to(f"releases/{pair[turn % 2]}")
                (home / "next").rename(home / "current")
                subprocess.run(graceful, check=True)
                portal.fleet.ask("web1", "ckan_release.verify", pair[turn % 2])
                time.sleep(2)
        rows.append(row(f"Apache, {SLOW_SWITCHES} switches by a graceful restart", visitors))
    finally:
        portal.destroy()
    return rows


def main() -> None:
    """Measure and print a table."""
    rows = behind_nginx() + under_apache()
    print("\n".join(["", "| what | requests | failed | longest |", "|---|---|---|---|", *rows]))


if __name__ == "__main__":
    main()
