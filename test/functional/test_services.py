"""Services and app servers that do not stay up, under a real supervisor; what they run is a few lines of sh."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ckan_deploy.database import compatibility
from ckan_deploy.deploy import candidates, prune, rollback, stages, status, switch, texts
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases import ids, stage
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import answers, app_server, draining, services, steady, uwsgi
from ckan_deploy.system import supervisor
from ckan_deploy.system.unix_http import UnixConnection
from fakes import fake_site
from parts.supervisor import Supervisor

pytestmark = pytest.mark.slow

RELEASE = "20261128120000Z"
STAYS = "exec sleep 600"
# Long after supervisor has called it RUNNING, and after a boot that keeps a core busy.
DIES = "sleep 3; exit 1"
DIES_IN_BOOT = """exec python3 -c '
import sys, time
end = time.monotonic() + 7
while time.monotonic() < end:
    pass
sys.exit(1)'"""

# An app server in the place of uWSGI: answers as the release for some seconds, and for some more once it must end.
# It takes the usual options.
SERVER = """\
#!/usr/bin/python3
import http.server, os, signal, socketserver, sys, threading, time

release, seconds = os.environ["RELEASE_DIR"], {seconds}

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("X-CKAN-Release", os.path.basename(release))
        self.end_headers()

    def address_string(self):
        return "unix"

place = release + "/run/web.sock"
if os.path.exists(place):
    os.unlink(place)
server = socketserver.ThreadingUnixStreamServer(place, Handler)
threading.Timer(seconds, lambda: os._exit(1)).start()
signal.signal(signal.SIGTERM, lambda *_: threading.Timer({linger}, lambda: os._exit(0)).start())
server.serve_forever()
"""

# One that takes a request after the other, and only finishes the one that it is at once it must end, as uWSGI does.
ONE_BY_ONE = """\
#!/usr/bin/python3
import http.server, os, signal, socketserver, time

release = os.environ["RELEASE_DIR"]

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        time.sleep(0.5 if self.path == "/slow" else 0)
        self.send_response(200)
        self.send_header("X-CKAN-Release", os.path.basename(release))
        self.end_headers()

    def address_string(self):
        return "unix"

place, over = release + "/run/web.sock", []
if os.path.exists(place):
    os.unlink(place)
signal.signal(signal.SIGTERM, lambda *_: over.append(True))
server = socketserver.UnixStreamServer(place, Handler)
server.socket.listen({queue})
server.timeout = 0.1
while not over:
    server.handle_request()
"""


class Place:
    """A host with one release that is live, whose `bin/ckan` is a script; under a supervisor of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.supervisor = Supervisor(root / "parts", root / "etc/supervisor/conf.d").start()
        self.web = {"server": "none", "supervisor_conf": str(self.supervisor.conf)}
        self.script = root / "usr/lib/ckan/releases" / RELEASE / "bin/ckan"
        (root / "var/log/ckan").mkdir(parents=True)
        (root / "usr/lib/ckan/shared").mkdir(parents=True)
        (root / "usr/lib/ckan/current").symlink_to(self.script.parents[1])
        root.chmod(0o755)
        releases = fake_site(root).releases
        releases.create(RELEASE)
        self.script.parent.mkdir()
        for state in ("built", "checked", "live"):
            releases.set_state(RELEASE, state)

    def site(self, runs: str, **changes) -> Site:
        self.script.write_text(f"#!/bin/sh\n{runs}\n")
        self.script.chmod(0o755)
        told = {"web": self.web, "workers": {"default": {"timeout": 1}}, "stable_seconds": 4, **changes}
        return fake_site(self.root, **told)


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.1)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    root = Path(tempfile.mkdtemp(prefix="ckan-s-", dir="/tmp"))
    found = Place(root)
    yield found
    found.supervisor.stop()
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def clean(place: Place) -> Iterator[Place]:
    # Another test's app server has ended.
    (place.root / "usr/lib/ckan/shared/started.json").unlink(missing_ok=True)
    yield place
    services.follow(place.site(STAYS, workers={}))


@pytest.mark.parametrize("runs", [DIES, DIES_IN_BOOT], ids=["after its start", "in its boot"])
def test_h01_a_worker_that_ends_soon_after_its_start_is_told_and_is_an_error_of_the_status(clean, runs):
    site = clean.site(runs)
    assert services.follow(site)["workers"] == {"default": "started"}
    (said,) = switch.watch(site, RELEASE)
    assert "worker default does not stay up: it ended " in said and "default-worker-default.log" in said
    # Started anew by supervisor, and soon RUNNING again: the status tells it from one that was started on purpose.
    eventually(lambda: services.status(site)["workers"][0]["state"] == "RUNNING")
    (row,) = services.status(site)["workers"]
    assert row["state"] != "RUNNING" or row["problem"].startswith("ended ")
    assert status.status(site, processes=True)["workers"]["default"] != RELEASE
    (said,) = switch.down(site)
    assert said.startswith("worker default does not stay up: it ")


def test_a_worker_that_ended_is_told_also_where_another_program_was_noted_meanwhile(clean):
    site = clean.site(STAYS)
    services.follow(site)
    (row,) = services.status(site)["workers"]
    os.killpg(row["pid"], signal.SIGKILL)
    eventually(lambda: services.status(site)["workers"][0]["pid"] not in (0, row["pid"]))
    # The app server of a newer release.
    steady.note(site, "ckan-default-20261128130000Z", [os.getpid()])
    assert services.status(site)["workers"][0]["problem"].startswith("ended and was started again ")
    for number in range(2 * steady.MOST_ENDED):
        steady.note(site, f"ckan-default-{number}", [row["pid"]])
    assert len(json.loads((clean.root / "usr/lib/ckan/shared/started.json").read_text())["programs"]) <= 102


def test_one_that_supervisor_has_started_anew_from_the_release_is_started_on_purpose_by_a_deploy(clean):
    """One of the release before that failed again and again has come back of the current one, and has not ended."""
    site = clean.site(STAYS)
    services.follow(site)
    (row,) = services.status(site)["workers"]
    os.killpg(row["pid"], signal.SIGKILL)
    eventually(lambda: (now := services.status(site)["workers"][0])["pid"] != row["pid"] and now["release"] == RELEASE)
    # Not by one that is reverted: what it takes back is the release alone.
    assert services.follow(site, files=False)["workers"] == {}
    assert services.pending(site)["workers"] == {"default": "restarted"}
    assert services.follow(site)["workers"] == {"default": "restarted"}
    assert switch.watch(site, RELEASE) == [] and switch.down(site) == []
    assert services.follow(site)["workers"] == {}


def test_one_that_stays_with_another_release_is_told(clean, monkeypatch):
    site = clean.site(STAYS)
    services.follow(site)
    other = "20261128130000Z"
    site.releases.create(other)
    for state in ("built", "checked", "live"):
        site.releases.set_state(other, state)
    monkeypatch.setattr(supervisor, "stop", refuse)
    site.releases.point(other)
    try:
        (said,) = switch.follow(site)
        assert said == "supervisor does not answer (gone); start it."
        (said,) = switch.watch(site, other)
        assert said.startswith(f"worker default does not stay up: it still has {RELEASE} instead of {other}; see ")
    finally:
        monkeypatch.undo()
        site.releases.point(RELEASE)
        site.releases.remove(other)


def refuse(conf: str, group: str) -> None:
    raise supervisor.NoSupervisor("supervisor does not answer (gone); start it.")


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on nothing may be waited for, as long after the start as it is called."""

    def forbid() -> None:
        def sleep(seconds: float) -> None:
            raise AssertionError(f"waits for {seconds} s")

        monkeypatch.setattr(steady, "BOOT_SECONDS", 0)
        monkeypatch.setattr(steady.time, "sleep", sleep)

    return forbid


def test_a_worker_that_does_not_start_is_a_warning_and_an_error_of_the_status(clean):
    site = clean.site("exit 1")
    (said,) = switch.follow(site)
    assert said.startswith("worker default does not start (supervisor says ")
    (said,) = switch.watch(site, RELEASE)
    assert said.startswith("worker default does not stay up: it ")
    assert status.status(site, processes=True)["workers"]["default"] != RELEASE


def test_h01_workers_that_stay_up_are_watched_all_at_once_and_one_that_is_up_already_costs_nothing(clean, no_wait):
    site = clean.site(STAYS, workers={name: {"processes": 2} for name in ("default", "more")})
    services.follow(site)
    assert switch.watch(site, RELEASE) == []
    rows = services.status(site)["workers"]
    assert len(rows) == 4 and all(row["age_seconds"] >= site.settings.stable_seconds for row in rows), rows
    no_wait()
    assert switch.watch(site, RELEASE) == [] and switch.down(site) == []
    assert status.status(site, processes=True)["workers"] == {"default": RELEASE, "more": RELEASE}


def test_h01_one_of_several_processes_that_ends_is_not_hidden_by_the_others(clean):
    site = clean.site(f"mkdir first 2>/dev/null && {STAYS}\n{DIES}", workers={"default": {"processes": 2}})
    shutil.chown(clean.script.parents[1], "www-data")
    services.follow(site)
    assert len(switch.watch(site, RELEASE)) == 1
    assert status.status(site, processes=True)["workers"]["default"] != RELEASE


def test_h01_nothing_is_watched_where_the_setting_says_so(clean, no_wait):
    site = clean.site(DIES, stable_seconds=0)
    services.follow(site)
    no_wait()
    assert switch.watch(site, RELEASE) == [] and switch.down(site) == []


def test_h01_workers_that_a_new_supervisor_has_started_have_not_ended_by_themselves(clean):
    site = clean.site(STAYS)
    services.follow(site)
    (before,) = services.status(site)["workers"]
    clean.supervisor.stop()
    clean.supervisor.start()
    eventually(lambda: services.status(site)["workers"][0]["state"] == "RUNNING")
    (row,) = services.status(site)["workers"]
    assert row["state"] == "RUNNING" and row["pid"] != before["pid"] and "problem" not in row


@pytest.fixture
def serving(place: Place) -> Iterator[Callable[..., Site]]:
    def start(seconds: float = 600, linger: float = 0, starts: bool = True, text: str = SERVER, **web) -> Site:
        site = place.site(STAYS, workers={}, web={**place.web, "warm": [], **web})
        program = place.script.with_name("uwsgi")
        program.write_text(text.format(seconds=seconds, linger=linger) if text == SERVER else text)
        program.chmod(0o755)
        if starts:
            app_server.start(site, str(place.script.parents[1]))
        return site

    yield start
    draining.stop(place.site(STAYS), str(place.script.parents[1]), drain=False)


def test_h01_an_app_server_that_ends_after_it_answered_is_told_and_is_an_error_of_the_status(serving):
    site = serving(3)
    (said,) = switch.watch(site, RELEASE)
    assert f"the app server of {RELEASE} does not stay up: it ended within " in said
    # Started anew, it answers again: by verify and by the status that is told from the one that was started.
    eventually(lambda: bool(app_server.unsteady(site, RELEASE)))
    assert app_server.unsteady(site, RELEASE).startswith("ended ")
    with pytest.raises(FormulaError, match=f"the app server of {RELEASE} (ended|does not answer|is not listening)"):
        stages.verify(site, RELEASE)
    assert status.status(site)["answers"] != RELEASE


@pytest.mark.parametrize(("seconds", "said"), [(1, "process {pid} of mod_wsgi ended within"), (600, "")])
def test_h01_processes_of_apache_that_end_after_the_switch_are_told(tmp_path, monkeypatch, seconds, said):
    site = fake_site(tmp_path, web={"server": "apache"}, stable_seconds=3)
    with subprocess.Popen(["sleep", str(seconds)]) as program:
        # Which processes are Apache's is seen with a real one, in test/daemon.
        threading.Thread(target=program.wait, daemon=True).start()
        monkeypatch.setattr(app_server, "processes", lambda site: [{"pid": program.pid, "release": RELEASE}])
        told = app_server.watch(site, RELEASE)
        program.kill()
    assert said.format(pid=program.pid) in told and bool(told) == bool(said)
    assert not told or told.endswith("see Apache's error log")


def test_h01_an_app_server_that_stays_up_is_not_waited_for_a_second_time(serving, no_wait):
    site = serving(600)
    assert switch.watch(site, RELEASE) == []
    no_wait()
    assert switch.watch(site, RELEASE) == [] and switch.down(site) == []
    assert stages.verify(site, RELEASE)["release"] == status.status(site)["answers"] == RELEASE


def test_an_app_server_that_a_killed_supervisor_has_left_is_ended(serving, place):
    site = serving(600)
    path = str(place.script.parents[1])
    pid = answers.pid(path)
    assert psutil.Process(pid).username() == "www-data"
    os.kill(place.supervisor.pid(), signal.SIGKILL)
    eventually(lambda: not place.supervisor.pid())
    try:
        assert answers.pid(path) == pid
        assert draining.stop(site, path, drain=False)
        assert not answers.pid(path) and not psutil.pid_exists(pid)
    finally:
        place.supervisor.start()


def test_what_listens_at_the_end_of_a_link_of_ckans_user_is_not_ended(serving, place, tmp_path):
    site = serving(600)
    path = place.script.parents[1]
    draining.stop(site, str(path), drain=False)
    Path(uwsgi.program_file(site, str(path))).touch()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(place.root / "other.sock"))
        other.listen()
        (path / "run/web.sock").unlink(missing_ok=True)
        (path / "run/web.sock").symlink_to(place.root / "other.sock")
        # This very process, root's.
        assert answers.pid(str(path)) == os.getpid()
        assert draining.stop(site, str(path), drain=False)
    (path / "run/web.sock").unlink()


def test_an_app_server_that_still_has_requests_is_left_to_supervisor_and_its_release_can_be_started_again(
    serving, place
):
    site, path = serving(600, linger=4), str(place.script.parents[1])
    first = answers.pid(path)
    begun = time.monotonic()
    assert draining.stop_others(site, "", seconds=0.5) == ([], [RELEASE])
    assert time.monotonic() - begun < 3
    assert draining.under_way(site) == [RELEASE] and psutil.pid_exists(first)
    # It still answers, and is none to send visitors to.
    assert app_server.start(site, path)["started"]
    second = answers.pid(path)
    assert second and second != first and not psutil.pid_exists(first)
    assert draining.under_way(site) == []
    assert draining.stop_others(site, "") == ([RELEASE], [])
    assert not psutil.pid_exists(second)


def ask_slowly(path: str, found: list[int | str]) -> None:
    """Ask for a page that takes half a second; the status of the answer, or what went wrong, is found."""
    connection = UnixConnection(f"{path}/run/web.sock", 30)
    try:
        connection.request("GET", "/slow")
        found.append(connection.getresponse().status)
    except (OSError, http.client.HTTPException) as exc:
        found.append(repr(exc))
    finally:
        connection.close()


@pytest.mark.parametrize(("how", "queue"), [("stop", 20), ("stop_others", 20), ("stop", 4)])
def test_requests_in_line_at_an_app_server_are_answered_before_it_is_stopped(serving, place, how, queue):
    """Also where the line is so long that nobody can be added to it."""
    site, path = serving(text=ONE_BY_ONE.replace("{queue}", str(queue))), str(place.script.parents[1])
    found: list[int | str] = []
    visitors = [threading.Thread(target=ask_slowly, args=(path, found)) for _ in range(6)]
    for visitor in visitors:
        visitor.start()
    time.sleep(0.2)
    if how == "stop":
        assert draining.stop(site, path)
    else:
        assert draining.stop_others(site, "") == ([RELEASE], [])
    for visitor in visitors:
        visitor.join()
    assert found == [200] * 6


def test_an_app_server_that_takes_nobody_in_is_stopped_after_its_time(serving, place):
    text = ONE_BY_ONE.replace("{queue}", "20").replace("0.5 if", "60 if")
    site, path = serving(text=text, drain_timeout=2), str(place.script.parents[1])
    threading.Thread(target=ask_slowly, args=(path, []), daemon=True).start()
    time.sleep(0.2)
    begun = time.monotonic()
    assert draining.stop(site, path)
    assert 2 < time.monotonic() - begun < 15 and not answers.pid(path)
    # One that is not there any more is not waited for.
    begun = time.monotonic()
    Path(uwsgi.program_file(site, path)).touch()
    assert draining.stop(site, path) and time.monotonic() - begun < 2


def test_what_had_requests_when_a_deploy_ended_is_forgotten_by_the_next_one(serving, place):
    site = serving(600, linger=3)
    assert draining.stop_others(site, "", seconds=0).draining == [RELEASE]
    program = uwsgi.program(site, RELEASE)
    eventually(lambda: draining.under_way(site) == [])
    assert program in supervisor.processes(site.settings.web.supervisor_conf)
    assert draining.stop_others(site, "", seconds=0) == ([], [])
    assert program not in supervisor.processes(site.settings.web.supervisor_conf)


def test_the_app_server_that_is_started_beside_the_check_stays_only_where_the_check_says_so(serving, place):
    site, path = serving(600, starts=False), str(place.script.parents[1])
    with candidates.booted(site, path):
        pass
    assert not answers.pid(path) and not os.path.exists(uwsgi.program_file(site, path))
    begun = time.monotonic()
    with pytest.raises(FormulaError, match="no plugin"), candidates.booted(site, path):
        raise FormulaError("no plugin")
    assert time.monotonic() - begun < 5 and not os.path.exists(uwsgi.program_file(site, path))
    with candidates.booted(site, path) as server:
        server.keep()
    assert app_server.ask(site, path) == RELEASE
    assert app_server.start(site, path)["started"] is False
    draining.stop(site, path, drain=False)
    # One that does not come up is for the stage start to tell.
    place.script.with_name("uwsgi").write_text("#!/bin/sh\nexit 1\n")
    with candidates.booted(site, path) as server:
        server.keep()
    assert not os.path.exists(uwsgi.program_file(site, path))
    with pytest.raises(FormulaError, match="ended while starting"):
        app_server.start(site, path)


@pytest.fixture
def left(place: Place) -> Iterator[str]:
    """The release is one that was live, and another one is current."""
    releases, other = fake_site(place.root).releases, "20261128130000Z"
    releases.create(other)
    for state in ("built", "checked", "live"):
        releases.set_state(other, state)
    releases.point(other)
    releases.set_state(RELEASE, "retired")
    for part in ("bin/python", "production.ini"):
        (place.script.parents[1] / part).touch()
    yield other
    releases.point(RELEASE)
    releases.set_state(RELEASE, "live")
    releases.remove(other)


def test_a_rollback_boots_the_app_server_while_the_database_is_compared(serving, place, left, monkeypatch):
    site, path = serving(600, starts=False), str(place.script.parents[1])

    def compare(*_, **__):
        # Only an app server that boots meanwhile answers now.
        eventually(lambda: bool(answers.pid(path)))
        assert app_server.ask(site, path) == RELEASE
        if refused:
            raise FormulaError("the database does not fit")
        return {"different": {}, "downgrade": {}, "restore": "", "maintenance": False}

    monkeypatch.setattr(compatibility, "way_back", compare)
    refused = True
    with pytest.raises(FormulaError, match="the database does not fit"):
        rollback.rollback(site)
    assert not answers.pid(path) and site.releases.current() == left
    refused = False
    assert rollback.rollback(site)["current"] == RELEASE
    first = answers.pid(path)
    assert first and uwsgi.releases(site) == [RELEASE]
    # As a standby it runs already, and a rollback that is refused lets it.
    site.releases.point(left)
    site.releases.set_state(RELEASE, "retired")
    site.releases.set_state(left, "live")
    refused = True
    with pytest.raises(FormulaError, match="the database does not fit"):
        rollback.rollback(site)
    assert answers.pid(path) == first


def test_in_a_fleet_the_app_server_boots_ahead_unless_a_hook_wants_to_be_first_and_can_be_stopped(serving, place, left):
    site, path, known = serving(600, starts=False), str(place.script.parents[1]), fake_site(place.root).log.read()
    hook = {"stage": "start", "when": "before", "function": "x.y"}
    assert rollback.boot(fake_site(place.root, web=site_web(place), hooks=[hook]), RELEASE) == {"started": False}
    assert not answers.pid(path)
    assert rollback.boot(site, RELEASE) == {"started": True}
    assert app_server.ask(site, path) == RELEASE
    assert rollback.boot(site, RELEASE) == {"started": False}
    assert rollback.boot(site, left) == {"started": False}
    assert prune.end_standby(site, RELEASE) == [RELEASE] and not answers.pid(path)
    place.script.with_name("uwsgi").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(FormulaError, match="does not start"):
        rollback.boot(site, RELEASE)
    assert uwsgi.releases(site) == []
    # It is no stage of its own in the history.
    assert site.log.read() == known


def site_web(place: Place) -> dict:
    return {**place.web, "warm": []}


def test_what_came_of_a_drain_that_outlasts_the_run_is_in_status_history_and_manifest(serving, place, left):
    serving(600, linger=3)
    site = fake_site(place.root, workers={}, web={**place.web, "warm": [], "drain_timeout": 60})
    assert draining.stop_others(site, site.releases.directory(left), seconds=0).draining == [RELEASE]
    with stage.running(site, "finish", left):
        pass
    told = status.status(site, processes=True)
    assert told["drained"][RELEASE].startswith("still finishes requests, for ")
    eventually(lambda: draining.under_way(site) == [])
    told = status.status(site, processes=True)
    assert re.fullmatch("finished its requests and ended, [2-5] s after it was told to", told["drained"][RELEASE]), told
    newest = status.history(site, 5)[0]
    assert (newest["stage"], newest["drained"]) == ("finish", told["drained"])
    assert "seconds" not in site.releases.read(RELEASE).drain
    # The next deploy lets supervisor forget it.
    draining.stop_others(site, site.releases.directory(left), seconds=0)
    assert site.releases.read(RELEASE).drain["seconds"] in (2, 3, 4, 5)
    assert status.status(site, processes=True)["drained"] == told["drained"]
    assert f"the app server of {RELEASE} finished its requests and ended, " in texts.history(status.history(site, 5))
    # When that release is live once more it is no news.
    site.release(left).become("retired")
    time.sleep(1.01 - time.time() % 1)
    site.release(left).become("live")
    assert "drained" not in status.status(site, processes=True)


def test_a_drain_that_reaches_its_limit_and_one_whose_supervisor_is_new_are_told(serving, place, left):
    serving(600, linger=60)
    site = fake_site(place.root, workers={}, web={**place.web, "warm": [], "drain_timeout": 1})
    # Supervisor kills it 5 s after that.
    uwsgi_file = Path(uwsgi.program_file(site, str(place.script.parents[1])))
    draining.stop(site, str(place.script.parents[1]), drain=False)
    app_server.start(site, str(place.script.parents[1]))
    assert "stopwaitsecs = 6" in uwsgi_file.read_text()
    assert draining.stop_others(site, site.releases.directory(left), seconds=9).stopped == [RELEASE]
    said = status.status(site, processes=True)["drained"][RELEASE]
    assert said == "was ended at its limit of 1 s (web:drain_timeout): requests may have been cut off"
    site.release(RELEASE).note(drain={"told": ids.now(), "limit": 60, "stays": left})
    said = status.status(site, processes=True)["drained"][RELEASE]
    assert said.endswith("supervisor was started anew before its end was seen")
