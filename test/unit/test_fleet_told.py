"""What people are told of a fleet: status, history, lines of progress, the report of a run."""

from __future__ import annotations

import logging
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ckan_deploy.errors import FormulaError
from ckan_deploy.fleet import begin, history, maintenance, progress, report, status
from ckan_deploy.fleet.hosts import Group
from ckan_deploy.fleet.record import Record
from ckan_deploy.fleet.run import Failure, Run, Span, causes, join
from ckan_deploy.system.tables import table
from parts.fake_master import FIRST, JOB, SECOND, FakeMaster


@pytest.fixture
def master(tmp_path: Path) -> FakeMaster:
    return FakeMaster(tmp_path)


@pytest.fixture
def run(master: FakeMaster) -> Run:
    return Run(
        master=master, env="production", kind="deploy", by="ann", job=JOB, since="2026-01-01T00:00:00Z",
        hosts=["web1", "web2"], groups=[Group("canary", ["web1"]), Group("rest", ["web2"])], release=SECOND,
        reason="the <news>", changes=["a <script>alert(1)</script> & more"],
        spans=[Span("plan", "", "", 10.0, 2.0, "ok"), Span("build", "canary", "web1", 12.0, 8.0, "failed")],
    )  # fmt: skip


def test_hosts_that_agree_are_in_order_and_what_they_are_on_is_wanted(master: FakeMaster) -> None:
    found = status.look(master, "production")
    assert (found.wrong, found.wanted, found.lock) == ([], FIRST, None)
    row = {"linked": FIRST, "serving": [FIRST], "answers": FIRST, "services": [], "workers": {}, "wrong": [],
           "last": "finish ok 2026-01-01T00:00:00Z"}  # fmt: skip
    assert found.to_json() == {"env": "production", "wanted": FIRST, "lock": None, "hosts": {"web1": row, "web2": row}}
    assert found.text() == (
        "host  linked           serving          answers          last stage\n"
        f"web1  {FIRST}  {FIRST}  {FIRST}  finish ok 2026-01-01T00:00:00Z\n"
        f"web2  {FIRST}  {FIRST}  {FIRST}  finish ok 2026-01-01T00:00:00Z\n"
        f"wanted: {FIRST}; production is not locked"
    )
    assert master.told("ckan_release.status")[0][1] == {"processes": True}


def test_a_host_that_was_adopted_and_not_activated_is_told_what_to_type_and_no_more(master: FakeMaster) -> None:
    fine, link = master._ckan_release_status, "current points to releases/old; type: salt web1 ckan_release.activate 1"

    def told(host: str, processes: bool) -> dict[str, Any]:
        none = {"current": "", "answers": "", "serving": [], "workers": {"default": "STOPPED"}, "link": link}
        return {**fine(host, processes), **(none if host == "web1" else {})}

    master._ckan_release_status = told  # type: ignore[method-assign]
    found = status.look(master, "production")
    assert [line for line in found.wrong if line.startswith("web1 has")] == [f"web1 has no release: {link}"]


def test_hosts_before_their_first_highstate_are_told_what_to_type_and_nothing_of_what_it_installs(
    master: FakeMaster,
) -> None:
    lost = "there is no configuration of supervisor (/etc/supervisord.conf); install it."
    harvest = {"service": "harvest", "kind": "service", "state": "STOPPED", "release": "", "problem": lost}
    none = {"current": "", "answers": "", "serving": [], "workers": {"all": lost}, "last": {}, "services": [harvest]}
    fine = master._ckan_release_status
    master.answers["ckan_release.status"] = lambda host, processes: {**fine(host, processes), **none}
    found = status.look(master, "production")
    todo = "has no release yet; type: salt -I 'ckan:env:production' state.highstate"
    assert found.wrong == [f"web1 {todo}", f"web2 {todo}"]


def test_an_app_server_that_still_finishes_requests_is_shown_and_is_not_wrong(master: FakeMaster) -> None:
    fine = master._ckan_release_status
    more = {"serving": [FIRST, SECOND], "draining": [SECOND]}
    master.answers["ckan_release.status"] = lambda host, processes: {**fine(host, processes), **more}
    found = status.look(master, "production")
    assert found.wrong == [] and found.hosts["web1"]["serving"] == [FIRST, f"{SECOND} (draining)"]
    assert "(draining)" in found.text()


def test_what_came_of_a_drain_is_told_by_status_and_history_and_is_not_wrong(master: FakeMaster) -> None:
    ended = "finished its requests and ended, 12 s after it was told to"
    fine, drained = master._ckan_release_status, {FIRST: ended}
    master.answers["ckan_release.status"] = lambda host, processes: {**fine(host, processes), "drained": drained}
    found = status.look(master, "production")
    assert found.wrong == [] and f"the app server of {FIRST} on web1 {ended}" in found.text()
    rows = history.merge({"web1": [{**entry("finish", SECOND, "2"), "drained": drained}]})
    assert rows[0]["drained"] == [f"the app server of {FIRST} on web1 {ended}"]
    assert "on web1 finished its requests" in history.text(rows)


def test_hosts_that_disagree_do_not_answer_or_serve_something_else_are_wrong(master: FakeMaster) -> None:
    status.look(master, "production")
    Record(master, "production").take("lock", "by hand", "election night")
    fine = master._ckan_release_status

    def told(host: str, processes: bool) -> dict[str, Any]:
        return {
            **fine(host, processes), "answers": "", "workers": {"default": FIRST, "more": "is down"}, "last": None,
            "maintenance": {"reason": "a move"},
        }  # fmt: skip

    master.pillars["web3"] = master.pillars["web1"]
    master.current |= {"web2": SECOND, "web3": FIRST}
    master.answers["ckan_release.status"] = lambda host, processes: (
        told(host, processes) if host == "web2" else fine(host, processes)
    )
    master.down.add("web3")
    found = status.look(master, "production")
    silent = "does not answer; start its salt-minion, then repeat"
    assert found.hosts["web2"]["wrong"] == [
        f"is linked to {SECOND}, but nothing answers", f"is on {SECOND}, the environment on {FIRST}",
        f"has worker default on {FIRST}", "has worker more is down",
    ]  # fmt: skip
    assert (found.hosts["web2"]["last"], found.hosts["web2"]["maintenance"]) == ("none", {"reason": "a move"})
    assert found.hosts["web3"] == {
        "linked": "", "serving": [], "answers": silent, "services": [], "workers": {}, "last": "", "wrong": [silent]
    }  # fmt: skip
    assert found.wrong[-2:] == [f"web3 {silent}", "the hosts do not all serve one release"]
    assert set(found.to_json()["lock"]) == {"env", "kind", "by", "since", "reason", "job"}
    assert "! in maintenance\n" in found.text() and found.text().endswith("(by hand, election night)")


def test_services_are_shown_with_release_state_restarts_and_age_and_what_is_wrong_with_them(master: FakeMaster) -> None:
    up = {"kind": "service", "release": FIRST, "pid": 7, "restarts": 0, "age_seconds": 7300}
    rows = [
        {**up, "service": "gather", "state": "RUNNING", "once": True},
        {**up, "service": "fetch", "state": "RUNNING", "restarts": 4, "problem": "was started again 4 times within"},
        {**up, "service": "old", "state": "RUNNING", "release": SECOND, "age_seconds": 59},
        {**up, "service": "none", "state": "STANDBY", "once": True},
        {"service": "gone", "kind": "service", "state": "FATAL", "release": "", "pid": 0, "restarts": 0},
    ]
    fine = master._ckan_release_status
    waits = [{**rows[0], "state": "STANDBY", "age_seconds": 180000}, rows[3]]
    given = {"web1": rows, "web2": waits}
    master.answers["ckan_release.status"] = lambda host, processes: {**fine(host, processes), "services": given[host]}
    found = status.look(master, "production")
    assert found.hosts["web1"]["wrong"] == [
        "has service fetch was started again 4 times within", f"has service old on {SECOND}", "has service gone FATAL",
    ]  # fmt: skip
    assert found.wrong[-1] == "service none, which is to run on one host, runs on none"
    assert not any("gather" in said for said in found.wrong)
    assert max(map(len, found.text().splitlines())) <= 116
    text = " ".join(found.text().split())
    assert f"services of web1: gather {FIRST} up 2 h, fetch was started again 4 times within up 2 h 4 restarts" in text
    assert f"old {SECOND} up 59 s" in text and f"gather {FIRST} standby up 2 d" in text and "gone FATAL" in text
    # One that another host holds at the same time.
    given["web2"] = [{**rows[0]}]
    found = status.look(master, "production")
    assert "service gather, which is to run on one host, runs on web1 and web2" in found.wrong


def entry(stage: str, release: str = FIRST, at: str = "1", **about: Any) -> dict[str, Any]:
    return {"at": f"2026-01-01T00:00:0{at}Z", "stage": stage, "release": release, "result": "ok", **about}


def test_a_history_has_a_row_for_each_run_with_the_slowest_host_of_each_stage(master: FakeMaster) -> None:
    logs = {
        "web1": [entry("activate", at="3", job="1", by="ann", seconds=1), entry("build", job="1", by="ann", seconds=5)],
        "web2": [entry("activate", at="3", job="1", by="ann", seconds=4), entry("build", job="1", by="ann", seconds=2)],
    }
    assert history.merge(logs) == [
        {"at": "2026-01-01T00:00:01Z", "kind": "deploy", "release": FIRST, "by": "ann", "hosts": ["web1", "web2"],
         "seconds": 9, "result": "ok", "reason": "", "job": "1"}
    ]  # fmt: skip


def test_a_history_tells_kinds_failures_and_what_was_done_by_hand_apart() -> None:
    logs = {
        "web1": [
            entry("maintenance on", release="", at="9"),
            entry("abort", SECOND, "8", job="3", reason="web2 failed at verify: boom"),
            entry("check", SECOND, "7", job="3"),
            entry("check", SECOND, "6", job="2", result="failed", reason="boom"),
            entry("rollback", FIRST, "5", reason="only here"),
            entry("adopt", FIRST, "4"),
            entry("catch_up", SECOND, "3"),
        ],
        "web2": [entry("rollback", FIRST, "2", reason="here, too")],
    }
    told = [(run["kind"], run["hosts"], run["result"], run["reason"]) for run in history.merge(logs)]
    assert told == [
        ("deploy", ["web1"], "failed", "web2 failed at verify: boom"),
        ("deploy", ["web1"], "failed", "web1 at check: boom"),
        ("rollback", ["web1"], "ok", "only here"),
        ("adoption", ["web1"], "ok", ""),
        ("catching up", ["web1"], "ok", ""),
        ("rollback", ["web2"], "ok", "here, too"),
    ]


def test_a_history_says_which_logs_are_not_in_it(master: FakeMaster) -> None:
    master.answers["ckan_release.history"] = [
        entry("build", at="2", job="2", by="ann"), entry("rollback", at="1", job="1", reason="for the history")
    ]  # fmt: skip
    runs, missing = history.read(master, "production", 1)
    assert (len(runs), missing) == (1, "")
    assert master.told("ckan_release.history")[0][1] == {"limit": 10}
    master.down.add("web2")
    runs, missing = history.read(master, "production", 5)
    assert missing == "not all logs are in it: web2 does not answer; start its salt-minion, then repeat"
    lines = history.text(runs).splitlines()
    assert lines[2].endswith("  ok [1]") and lines[3] == "[1] for the history"
    with pytest.raises(FormulaError, match="environments known"):
        history.read(master, "prodction", 5)


def test_a_history_says_ref_and_commit_of_what_changed_and_fits_the_terminal() -> None:
    changed = {f"ckanext-{n}": "main 0123456789ab" for n in range(30)}
    hosts = {f"web{n}": [entry("activate", at="3", job="1"), entry("build", at="2", job="1", changed=changed)]
             for n in range(40)}  # fmt: skip
    late = {"web1": [entry("check", at="5", job="2", result="failed", reason="because " * 40)]}
    runs = history.merge(hosts) + history.merge(late)
    assert runs[0]["changed"] == changed and "changed" not in runs[1]
    text = history.text(runs)
    assert "ckanext-0 main 0123456789ab" in " ".join(text.split()) or "ckanext-0" in text
    assert max(map(len, text.splitlines())) <= 116 and "and 34" in text and "and 24" in text
    assert "\n[1] web1 at check: because" in text


def test_a_table_is_as_wide_as_what_is_in_it() -> None:
    assert table([["a", "bb", "c"], ["long", "b", ""]]) == "a     bb  c\nlong  b\n"


def test_hosts_with_the_same_trouble_are_in_one_sentence() -> None:
    assert join({"web2": "boom", "web1": "boom", "web3": "other"}, "check") == (
        "web1, web2 failed at check: boom; web3 failed at check: other"
    )
    assert causes([]) == ""


def test_a_line_says_stage_host_seconds_and_what_went_wrong(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    progress.tell(run, "build", "started")
    progress.tell(run, "build", "ok", "web1", 12.34)
    progress.tell(run, "check", "failed", "web2", 0.1, "bo\x1b[2Jom")
    progress.tell(run, "finish", "warning", "web2", 0.1, "a worker had to be ended")
    progress.tell(run, "done", "ok", comment="it is live")
    assert capsys.readouterr().err.splitlines() == [
        "build      web1                12.3 s",
        "check      web2                 0.1 s  FAILED: bo?[2Jom",
        "finish     web2                 0.1 s  warning: a worker had to be ended",
    ]


def test_from_the_beginning_a_plan_says_what_goes_on(master: FakeMaster, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []

    def ready(host: str) -> dict[str, Any]:
        said.append(capsys.readouterr().err)
        return master._ckan_plan_ready(host)

    master.answers["ckan_plan.ready"] = ready
    begin.plan(master, "production", job=JOB)
    first = said[0].splitlines()
    assert [line.split()[:2] for line in first] == [["plan", "-"]] * 2
    assert first[0].endswith("s  deploy to production: looks for its hosts")
    assert first[1].endswith("s  checks that web1, web2 can take a deploy")
    rest = capsys.readouterr().err.splitlines()
    assert rest[0].endswith("s  resolves refs and packages, and compares with what is live")
    assert rest[1].split()[4:] == ["release", Record(master, "production").run()["release"]]
    assert rest[2].endswith("s  ckanext-mycity changed")


def test_colours_are_for_a_terminal_without_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert progress.coloured("x", True) == "x"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert progress.coloured("x", False) == "\033[1;31mx\033[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert progress.coloured("x", False) == "x"


def test_what_salt_says_of_its_own_objects_is_left_out_once() -> None:
    progress.quiet()
    progress.quiet()
    handler = logging.lastResort
    assert handler
    mine = [rule for rule in handler.filters if getattr(rule, "__name__", "") in ("_is_said", "_is_no_comment")]
    assert len(mine) == 2
    record = logging.LogRecord("salt", logging.WARNING, "", 0, "unclosed Runner %s", ("x",), None)
    other = logging.LogRecord("salt", logging.WARNING, "", 0, "no space", (), None)
    assert (mine[0](record), mine[0](other)) == (False, True)
    # The comment of a step that failed stands in what Salt prints of the orchestration.
    comment = logging.LogRecord("salt.state", logging.ERROR, "", 0, "boom", (), None, "format_log")
    assert (mine[1](comment), mine[1](other)) == (False, True)
    for rule in mine:
        handler.removeFilter(rule)


def heard(run: Run, *stages: tuple[str, str, str]) -> list[tuple[str, dict[str, Any]] | None]:
    return [
        (f"ckan/deploy/production/{stage}", {"stage": stage, "host": host, "result": result, "seconds": 1.0,
                                            "comment": f"{stage} {result}"})
        for stage, host, result in stages
    ]  # fmt: skip


def test_a_watch_shows_a_run_from_its_beginning_to_its_end(
    master: FakeMaster, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run.save()
    run.record.take("deploy", JOB)
    master.heard = [
        None, ("salt/job/1", {}), ("ckan/deploy/staging/done", {"stage": "done", "result": "ok", "comment": "no"}),
        *heard(run, ("check", "", "started"), ("check", "web1", "ok"), ("done", "", "ok"), ("check", "web9", "ok")),
    ]  # fmt: skip
    assert progress.watch(master, "production", 60) == "done ok"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("production is locked by ann since 20")
    assert [line.split()[:2] for line in lines[1:]] == [["plan", "-"], ["build", "web1"], ["check", "web1"]]


@pytest.mark.parametrize("end", ["revert", "refused"])
def test_a_watch_fails_with_the_run(master: FakeMaster, run: Run, capsys: pytest.CaptureFixture[str], end: str) -> None:
    master.heard = heard(run, ("check", "web1", "failed"), (end, "", "failed"))
    with pytest.raises(FormulaError, match=f"{end} failed"):
        progress.watch(master, "production", 60)
    assert capsys.readouterr().out.startswith("no run is under way for production\ncheck      web1 ")


def test_a_watch_that_sees_no_end_says_so(master: FakeMaster) -> None:
    with pytest.raises(FormulaError, match="nothing was seen of the end of a run of production in 0 s; see salt-run"):
        progress.watch(master, "production", 0)


def test_maintenance_of_all_hosts_says_who_and_why(master: FakeMaster) -> None:
    assert maintenance.turn(master, "production", "on", "a move").failures == {}
    maintenance.turn(master, "production", "off")
    assert master.told("ckan_maintenance.on")[1] == ("web2", {"by": "ann", "reason": "a move"})
    assert master.told("ckan_maintenance.off")[1] == ("web2", {"by": "ann"})


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.bars: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "rect" and str(dict(attrs)["class"]).startswith("bar"):
            self.bars.append(dict(attrs))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(" ".join(data.split()))


def test_a_report_is_a_page_that_says_what_changed_where_and_who_did_it(run: Run) -> None:
    path = Path(report.write(run, "done", "it is live"))
    assert path == Path(run.record.folder, f"reports/{SECOND}-deploy-{JOB}.html")
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    text = path.read_text()
    page = Page(text)
    assert page.open == [] and "<script>" not in text and "http" not in text
    for word in ("ann", "the <news>", "it is live", "live", "a <script>alert(1)</script> & more", "10.0 s"):
        assert word in page.texts
    assert "web1 (canary), then web2 (rest)" in page.texts
    # Each stage of each host is a bar along time.
    assert [(bar["x"], bar["width"], bar["class"]) for bar in page.bars] == [
        ("0.0%", "20.0%", "bar ok"), ("20.0%", "80.0%", "bar failed"),
    ]  # fmt: skip


def test_a_report_of_a_run_that_failed_says_so_and_where(run: Run) -> None:
    run.failures, run.down = [Failure("web2", "check", "boom & more")], ["web3"]
    page = Page(report.page(run, "revert", "it failed"))
    assert "failed, reverted" in page.texts and "web2 at check: boom & more" in page.texts
    assert any(text.endswith("; down: web3") for text in page.texts)
    assert '<span class="warning">live' in report.page(run, "done", "it is live")


def test_the_newest_reports_are_kept(run: Run) -> None:
    folder = Path(run.record.folder, "reports")
    folder.mkdir(parents=True)
    for number in range(60):
        (folder / f"{FIRST}-deploy-202601010000000000{number:02}.html").write_text("")
    report.write(run, "done", "it is live")
    left = sorted(path.name for path in folder.iterdir())
    assert len(left) == report.KEPT and f"{SECOND}-deploy-{JOB}.html" in left
    assert f"{FIRST}-deploy-20260101000000000010.html" not in left


def test_a_finish_that_is_missing_and_a_link_to_nothing_are_wrong_but_not_while_a_run_is_under_way(
    master: FakeMaster,
) -> None:
    def answer(host: str, **about: Any) -> dict[str, Any]:
        more = {"unfinished": "the finish is missing"} if host == "web1" else {"link": "current points to nothing"}
        return {**master._ckan_release_status(host), **more}

    master.answers["ckan_release.status"] = answer
    found = status.look(master, "production")
    assert found.wrong == ["web1 is not done: the finish is missing", "web2 has no release: current points to nothing"]
    Record(master, "production").take("deploy", JOB)
    assert status.look(master, "production").wrong == ["web2 has no release: current points to nothing"]
