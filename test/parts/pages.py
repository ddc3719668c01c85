"""Pages of the formula made from made-up data, without any portal: a report, the page of all runs, maintenance."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

from ckan_deploy.fleet import index, report
from ckan_deploy.fleet.hosts import Group
from ckan_deploy.fleet.record import Record
from ckan_deploy.fleet.run import Failure, Run, Span
from ckan_deploy.serve import maintenance_page
from fakes import fake_site
from parts.fake_master import FIRST, JOB, SECOND, FakeMaster

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TRACEBACK = (
    'Traceback (most recent call last):\n  File "ckanext/mycity/plugin.py", line 7, in update_config\nKeyError: 1'
)
NOTED = {"details": TRACEBACK, "log": ["2026-01-01T00:00:07Z check failed 4.1 s: plugin mycity does not start"]}
LONG = "https://data.example.org/" + "a-very-long-word-without-any-break" * 6


def details() -> dict[str, Any]:
    """What a plan says of changes."""
    commits: list[dict[str, str]] = [
        {"commit": COMMIT, "author": "Ann <b>", "at": "2026-01-01T00:00:00+00:00", "subject": "Show & tell <script>",
         "page": f"https://github.com/my/city/commit/{COMMIT}"},
        {"commit": "f" * 40, "author": "Bob", "at": "2025-12-31T00:00:00+00:00", "subject": LONG},
    ]  # fmt: skip
    return {
        "extensions": {
            "ckanext-mycity": {"change": "changed", "old": "main 1", "new": "main 2", "commits": commits, "count": 7}
        },
        "packages": {"babel": {"old": "2.1", "new": "2.2"}, "requests": {"old": "", "new": "2.32"}},
        "configuration": {"changed": {"ckan.site_title": ["web1", "web2"]}, "added": {"smtp.password": ["web1"]}},
    }


def a_run(master: FakeMaster, **about: Any) -> Run:
    """A run over two hosts, in two groups, with maintenance mode."""
    hosts, at, spans = ["web1", "web2"], 10.0, [Span("plan", "", "", 10.0, 2.0, "ok")]
    for name, seconds in (("build", 21.5), ("check", 4.1), ("migrate", 6.0), ("activate", 2.2), ("verify", 1.4)):
        at = spans[-1].at + spans[-1].seconds + (1.5 if name == "check" else 0.3)
        if name == "migrate":
            spans.append(Span("maintenance on", "", "", at, 0.5, "ok"))
        spans += [Span(name, "", host, at, seconds - 0.2 * index_, "ok") for index_, host in enumerate(hosts)]
    spans.append(Span("maintenance off", "", "", spans[-1].at + 1.4, 0.4, "ok"))
    given: dict[str, Any] = {
        "env": "production", "kind": "deploy", "by": "ann", "job": JOB, "since": "2026-01-01T00:00:00Z",
        "hosts": hosts, "groups": [Group("canary", ["web1"]), Group("rest", ["web2"])], "release": SECOND,
        "before": dict.fromkeys(hosts, FIRST), "changes": ["ckanext-mycity changed: main 1 -> main 2"], "spans": spans,
        "reason": "the <news>", "warnings": [f"option x is not declared, see {LONG}"], "details": details(),
        "backends": {"PostgreSQL": "15.6", "Redis": "7.0", "Solr": "9.4"}, **about,
    }  # fmt: skip
    return Run(master=master, **given)


def failed_run(master: FakeMaster) -> Run:
    """One that failed on a host, and was reverted."""
    return a_run(
        master, failures=[Failure("web2", "check", "plugin mycity does not start: KeyError: 1")],
        noted={"web2": NOTED}, serves={"web1": FIRST, "web2": FIRST},
    )  # fmt: skip


def runs(count: int = 40) -> list[dict[str, Any]]:
    """Rows of a history, newest first."""
    return [
        {
            "at": f"2026-01-{28 - number // 2:02}T{(number % 2) * 9:02}:00:00Z", "kind": "deploy", "release": SECOND,
            "by": "ann", "hosts": ["web1", "web2"], "seconds": 20.0 + number * 7 % 60, "job": f"{int(JOB) - number}",
            "result": "failed" if number % 7 == 3 else "ok", "reason": LONG if number % 7 == 3 else "",
            **({"warnings": ["a <warning>"]} if number % 5 == 2 else {}),
        }
        for number in range(count)
    ]  # fmt: skip


def png(width: int = 60, height: int = 20) -> bytes:
    """A picture of one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + b"\x20\x60\xa0" * width) * height
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def write(place: Path) -> dict[str, Path]:
    """Write all of them into a directory; returns their paths by name."""
    master = FakeMaster(place)
    record = Record(master, "production")
    record.want(SECOND, {})
    (place / "logo.png").write_bytes(png())
    site = fake_site(
        place, web__maintenance_logo=str(place / "logo.png"),
        web__maintenance_message={"lv": "Mēs drīz atgriezīsimies"},
        config={
            "ckan.site_title": "Open Data of My City", "ckan.locale_default": "de",
            "ckan.locales_offered": "en fr he",
        },
    )  # fmt: skip
    notice = maintenance_page.Notice.of(site, {"de": f"Neue Server. {LONG}"}, "2099-11-29T18:30+01:00")
    made = {
        "deploy": report.page(a_run(master), "done", "it is live"),
        "failed": report.page(failed_run(master), "revert", f"it failed: {LONG}"),
        "rollback": report.page(
            a_run(master, kind="rollback", release=FIRST, left={"web1": SECOND, "web2": SECOND}), "done", "it is live"
        ),
        "index": index.page(record, runs(), [f"{SECOND}-deploy-{JOB}.html"], "not all logs are in it: web3"),
        "maintenance": maintenance_page.make(site, notice),
    }
    paths = {name: place / f"{name}.html" for name in made}
    for name, path in paths.items():
        path.write_text(made[name], encoding="utf-8")
    return paths
