"""The report of a run, and the page of all runs: what they say, and that nothing of it is code or a secret."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ckan_deploy.database import probe
from ckan_deploy.errors import FormulaError
from ckan_deploy.fleet import begin, details, index, maintenance, report, revert, stages
from ckan_deploy.fleet.record import Record
from ckan_deploy.fleet.run import Failure, Run
from ckan_deploy.releases import stage
from ckan_deploy.serve import answers, app_server, uwsgi
from ckan_deploy.settings import mask
from fakes import fake_site
from parts import pages
from parts.fake_master import FIRST, JOB, SECOND, FakeMaster


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short path, as sockets want it."""
    with tempfile.TemporaryDirectory(prefix="ckan-r-", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def master(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMaster:
    # The last lines of a run are for its terminal, not for that of the tests.
    monkeypatch.setattr("ckan_deploy.fleet.progress.last_word", lambda text: None)
    return FakeMaster(tmp_path)


class Read(HTMLParser):
    """A page as its elements: texts in order, links, rows of tables, what would be loaded."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.links: list[str] = []
        self.rows: list[list[str]] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.links += [str(given["href"])] if tag == "a" else []
        self.loads += [str(given[name]) for name in ("src", "srcset", "data") if name in given]
        self.rows += [[]] if tag == "tr" else []
        self._inside = self._inside or tag == "tr"
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "tr"

    def handle_data(self, data: str) -> None:
        said = " ".join(data.split())
        self.texts += [said] if said else []
        if self.rows and self.rows[-1] and self._inside:
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {said}".strip()


def test_a_title_says_what_happened(master: FakeMaster) -> None:
    run = pages.a_run(master)
    assert report.title(run, "done") == f"Deployed {SECOND} to production in place of {FIRST}"
    run.before = {"web1": "", "web2": ""}
    assert report.title(run, "done") == f"Deployed {SECOND} to production"
    failed = pages.failed_run(master)
    assert report.title(failed, "revert") == f"Deploy of {SECOND} to production failed at check, back on {FIRST}"
    back = pages.a_run(master, kind="rollback", release=FIRST, left={"web1": SECOND, "web2": SECOND})
    assert report.title(back, "done") == f"Rolled back production from {SECOND} to {FIRST}"
    back.failures = [Failure("web1", "verify", "boom")]
    assert report.title(back, "revert") == f"Rollback of production from {SECOND} to {FIRST} failed at verify"
    found = re.search("<h1>(.*)</h1>", report.page(back, "done", "x"))
    assert found and found[1].startswith("Rolled back production from")


def test_commits_have_author_and_link_and_nothing_of_them_is_code(master: FakeMaster) -> None:
    page = report.page(pages.a_run(master), "done", "it is live")
    read = Read(page)
    assert read.links == [f"https://github.com/my/city/commit/{pages.COMMIT}"]
    assert "Show & tell <script>" in read.texts and "Ann <b>, 2026-01-01" in read.texts
    assert "ckanext-mycity: 7 commits" in read.texts and "and 5 older ones" in read.texts
    assert not {"script", "b", "link", "iframe", "img"} & {*read.tags} and read.loads == []
    assert '<meta name="viewport" content="width=device-width' in page and "prefers-color-scheme: dark" in page


def test_packages_and_options_are_tables_and_options_have_no_value(master: FakeMaster) -> None:
    rows = Read(report.page(pages.a_run(master), "done", "it is live")).rows
    for row in (["babel", "2.1", "2.2"], ["requests", "none", "2.32"], ["ckan.site_title", "changed", "web1, web2"],
                ["smtp.password", "added", "web1"]):  # fmt: skip
        assert row in rows


def test_each_host_has_a_row_with_what_it_serves(master: FakeMaster) -> None:
    run = pages.failed_run(master)
    run.down = ["web3"]
    rows = {row[0]: row for row in Read(report.page(run, "revert", "it failed")).rows if row}
    assert rows["web1"][1:4] == ["canary", FIRST, FIRST] and rows["web1"][-1] == "reverted"
    assert rows["web2"][1:4] == ["rest", FIRST, FIRST] and rows["web2"][-1] == "failed at check"
    assert rows["web3"][-1] == "was down"
    rows = {row[0]: row for row in Read(report.page(pages.a_run(master), "done", "it is live")).rows if row}
    assert rows["web1"][2:4] == [FIRST, SECOND] and "build 21.5 s, check 4.1 s" in rows["web1"][4]


def test_gaps_are_explained(master: FakeMaster) -> None:
    texts = Read(report.page(pages.a_run(master), "done", "it is live")).texts
    assert "1.3 s between build and check: the master was between two steps, no host was at work" in texts
    assert "visitors got the maintenance page for 9.7 s" in texts


def test_a_run_notes_when_it_closes_and_opens_the_portal(master: FakeMaster) -> None:
    run = pages.a_run(master, spans=[])
    maintenance.close(run)
    maintenance.open_again(run)
    assert [(span.stage, span.result) for span in run.spans] == [("maintenance on", "ok"), ("maintenance off", "ok")]


def test_a_failure_has_the_traceback_and_the_last_lines_of_its_host(master: FakeMaster) -> None:
    texts = Read(report.page(pages.failed_run(master), "revert", "it failed")).texts
    assert any("KeyError: 1" in text and "Traceback" in text for text in texts)
    assert pages.NOTED["log"][0] in texts


def planned(master: FakeMaster, **about: Any) -> Run:
    assert begin.plan(master, "production", job=JOB, **about)["ok"]
    run = Run.under_way(master, "production", JOB)
    assert run
    return run


def test_what_a_failed_host_noted_is_asked_for_and_what_each_serves_is_kept(master: FakeMaster) -> None:
    def refuse(host: str, **_: Any) -> dict[str, Any]:
        if host == "web2":
            raise FormulaError("plugin mycity does not start")
        return {}

    entry = {"at": "2026-01-01T00:00:07Z", "stage": "check", "result": "failed", "seconds": 4.1, "job": JOB}
    other = {**entry, "job": "7", "details": "of another run"}
    master.answers["ckan_release.history"] = [{**entry, "reason": "it does not", "details": "Traceback ..."}, other]
    master.answers["ckan_release.check"] = refuse
    run = planned(master)
    assert not stages.stage(run, "check")["ok"]
    revert.revert(run)
    assert master.told("ckan_release.history") == [("web2", {"limit": details.ENTRIES})]
    assert run.noted == {
        "web2": {"details": "Traceback ...", "log": ["2026-01-01T00:00:07Z check failed 4.1 s: it does not"]}
    }
    assert run.serves == {"web1": FIRST, "web2": FIRST}
    assert run.spans[-1].stage == "revert"
    (page,) = Path(run.record.folder, "reports").iterdir()
    assert "Traceback ..." in page.read_text()


def test_a_plan_brings_details_and_a_rollback_asks_for_them(master: FakeMaster) -> None:
    fine = master._ckan_release_plan
    told = {**pages.details(), "configuration": {"changed": ["ckan.site_title"]}}
    master.answers["ckan_release.plan"] = lambda host, **about: {**fine(host, **about), "details": told}
    run = planned(master)
    assert run.details["packages"] == told["packages"] and run.details["extensions"] == told["extensions"]
    assert run.details["configuration"] == {"changed": {"ckan.site_title": ["web1", "web2"]}}
    run.record.free()
    master.current = dict.fromkeys(master.current, SECOND)
    master.answers["ckan_release.diff"] = {
        "base": {}, "extensions": {}, "packages": {"babel": {"old": "2", "new": "1"}},
        "configuration": {"added": [], "removed": ["ckan.x"], "changed": []},
    }  # fmt: skip
    run = planned(master, kind="rollback")
    assert master.told("ckan_release.diff") == [("web1", {"old": SECOND, "new": FIRST})]
    assert run.details == {
        "extensions": {}, "packages": {"babel": {"old": "2", "new": "1"}},
        "configuration": {"removed": {"ckan.x": ["web1"]}},
    }  # fmt: skip
    # A host of an older formula cannot tell: the rollback goes on.
    run.record.free()
    master.answers["ckan_release.diff"] = None
    assert planned(master, kind="rollback").details == {}


def test_a_traceback_is_noted_without_secrets(place: Path) -> None:
    secret = "hunter-of-secrets"
    kind = "OPENSSH PRIVATE KEY"
    key = f"-----BEGIN {kind}-----\nfirst-line-of-it\nsecond-line-of-it\n-----END {kind}-----\n"
    git = {"url": "git@example.org:x.git", "ref": "main", "deploy_key": key}
    site = fake_site(place, database__password=secret, extensions={"ckanext-x": git})
    said = f"Traceback:\n    x = 1\nOSError: postgresql://me:{secret}@db/ at\n  second-line-of-it\n\x1b[31mred"
    masked = mask.lines(said, site.settings)
    assert secret not in masked and "second-line-of-it" not in masked and "\x1b" not in masked
    assert masked.splitlines()[:2] == ["Traceback:", "    x = 1"]
    assert mask.lines("\n".join(map(str, range(100))), site.settings, most=2) == "98\n99"
    with pytest.raises(FormulaError) as failure:
        probe._answer(site, {"ok": False, "errors": ["x"], "warnings": [], "traceback": said})
    assert failure.value.details == masked and str(failure.value) == "x"
    with pytest.raises(FormulaError), stage.running(site, "check", FIRST, job=JOB):
        raise failure.value
    assert site.log.read()[0]["details"] == masked


def test_what_the_app_server_logged_is_noted_without_secrets(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = fake_site(place, database__password="hunter-of-secrets", web__boot_timeout=1)
    log = Path(uwsgi.log(site, FIRST))
    log.parent.mkdir(parents=True)
    log.write_text("booting\nTraceback (most recent call last):\nOSError: no login with hunter-of-secrets\n")
    monkeypatch.setattr(answers, "at_socket", lambda *_: answers.Answer("does not answer", ""))
    monkeypatch.setattr(app_server, "_state", lambda *_: "FATAL")
    with pytest.raises(FormulaError, match="ended while starting") as failure:
        app_server._wait(site, site.releases.directory(FIRST), "x", time.monotonic() - 2)
    assert failure.value.details.splitlines()[-2:] == [
        "Traceback (most recent call last):", f"OSError: no login with {mask.MASK}"
    ]  # fmt: skip


def test_an_app_server_that_answers_with_errors_is_not_waited_for_as_long_as_one_that_boots(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = fake_site(place, web__boot_timeout=60)
    path, begun = site.releases.directory(FIRST), time.monotonic()
    wrong, silent, right = (
        answers.Answer(problem, FIRST, status)
        for problem, status in (("answers 500 instead of 200", 500), ("does not answer (reset)", 0), ("", 200))
    )
    monkeypatch.setattr(app_server, "WRONG_SECONDS", 0.3)
    monkeypatch.setattr(answers, "at_socket", lambda *_: wrong)
    with pytest.raises(FormulaError, match=r"answers 500 instead of 200 for 0\.3 seconds"):
        app_server._wait(site, path, "x", begun)
    assert time.monotonic() - begun < 10
    # The database of CKAN may come up a moment later; and a process that ended in between boots once more.
    said = iter([wrong] * 4 + [silent] + [wrong] * 4 + [right])
    monkeypatch.setattr(answers, "at_socket", lambda *_: next(said))
    app_server._wait(site, path, "x", time.monotonic())
    assert next(said, None) is None


def test_the_page_of_all_runs_has_a_chart_and_links_to_the_reports_that_there_are(master: FakeMaster) -> None:
    record = Record(master, "production")
    record.want(SECOND, {})
    rows, name = pages.runs(), f"{SECOND}-deploy-{JOB}.html"
    page = index.page(record, rows, [name, "index.html"])
    read = Read(page)
    assert read.links == [name] and read.tags.count("rect") == 1 + len(rows) and read.tags.count("title") == 1 + 40
    assert (
        not {"script", "link", "img"} & {*read.tags} and read.loads == [] and "http" not in page.replace(pages.LONG, "")
    )
    assert "Deploys and rollbacks of production" in read.texts
    assert any(text.startswith(f"production is on {SECOND}. 40 runs, 6 failed.") for text in read.texts)
    bars = re.findall(r'class="bar (\w+)" x="([\d.]+)%" y="([\d.]+)%" width="([\d.]+)%"\n height="([\d.]+)%"', page)
    assert len(bars) == 40 and all(float(bar[1]) + float(bar[3]) <= 100 for bar in bars)
    # Failed ones hang from the top, all others stand.
    for kind, _, y, _, height in bars:
        assert (float(y) == 0) if kind == "failed" else (float(y) + float(height) == pytest.approx(100))
    assert "no run is known" in Read(index.page(record, [], [])).texts


def test_the_page_of_all_runs_is_written_beside_the_reports_and_says_whose_log_is_missing(master: FakeMaster) -> None:
    entry = {"at": "2026-01-01T00:00:00Z", "release": SECOND, "job": JOB, "result": "ok", "stage": "build", "by": "ann"}
    master.answers["ckan_release.history"] = [entry]
    name = Path(report.write(pages.a_run(master), "done", "it is live")).name
    path, missing = index.write(master, "production", 200)
    assert missing == "" and Path(path) == Path(Record(master, "production").folder, "reports/index.html")
    assert Path(path).stat().st_mode & 0o777 == 0o600
    assert Read(Path(path).read_text()).links == [name]
    master.down.add("web2")
    path, missing = index.write(master, "production", 200)
    assert missing in Read(Path(path).read_text()).texts and "web2" in missing
    # It is no report, and does not go with the old ones.
    report.write(pages.a_run(master), "done", "it is live")
    assert Path(path).exists()
