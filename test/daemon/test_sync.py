"""
After `saltutil.sync_all` each process runs the new code: a minion of either kind, the master's runners, reactor, pillar
and salt-api. Processes that live on keep what they have imported; `ckan_deploy.fresh` is the remedy.
"""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckan_deploy
from daemon.conftest import eventually, later
from parts.fleet import Fleet, salt_program
from parts.ports import answers, free_port
from parts.process import Service, kill_all, sandbox

pytestmark = pytest.mark.daemon

# Thin modules as those of the formula, which say what code of the package they run.
PROBE = """
import sys
LOADED = "ckan_deploy.deploy.plan" in sys.modules
import ckan_deploy
ckan_deploy.fresh(__file__)
from ckan_deploy.releases import ids
try:
    from ckan_deploy.releases import extra
except ImportError:
    extra = None


def said(*args, **kwargs):
    return [ids.MARK, getattr(extra, "MARK", "")]


def pillar():
    return __pillar__["probe_mark"]


def loaded():
    return LOADED
"""
RUNNER = (
    PROBE
    + """

def note(path, **kwargs):
    with open(path, "w") as handle:
        handle.write(ids.MARK)
"""
)
PILLAR = (
    PROBE
    + """

def ext_pillar(minion_id, pillar):
    return {"probe_mark": ids.MARK}
"""
)
REACTION = """
note:
  runner.ckan_probe.note:
    - args:
      - path: {path}
"""


class Synced(Fleet):
    """A master with everything that lives long, and a minion of either kind."""

    def __init__(self, place: Path) -> None:
        self.api, self.note = free_port(), place / "note"
        options = {
            "master": {
                # A file that is new is seen at once.
                "fileserver_list_cache_time": 0,
                "reactor": [{"ckan/probe/ask": [str(place / "srv/salt/probe-reaction.sls")]}],
                "rest_cherrypy": {"host": "127.0.0.1", "port": self.api, "disable_ssl": True},
                "netapi_enable_clients": ["runner"],
                "external_auth": {"sharedsecret": {"eve": ["@runner"]}},
                "sharedsecret": "a-shared-secret",
            },
            # Its parent process loads the modules for the schedule, and keeps them.
            "forks": {"schedule": {"probe": {"function": "ckan_probe.said", "seconds": 2}}},
            "threads": {"multiprocessing": False},
        }
        super().__init__(place, ["forks", "threads"], options=options)
        self.package = self.file_roots / "_utils/ckan_deploy/releases"
        self.ids = (self.package / "ids.py").read_text()
        for folder, text in (("_modules", PROBE), ("_runners", RUNNER), ("_pillar", PILLAR)):
            (self.file_roots / folder / "ckan_probe.py").write_text(text)
        (self.file_roots / "probe-reaction.sls").write_text(REACTION.format(path=self.note))
        for minion in self.minions:
            (self.overlay / f"{minion}.yaml").write_text("{}\n")
        (self.pillar_roots / "top.sls").write_text("base: {}\n")

    def put(self, mark: str, extra: str = "") -> None:
        """Put a state of the code into the file server: a file that differs, and one that is there or not."""
        (self.package / "ids.py").write_text(f'{self.ids}\n\nMARK = "{mark}"\n')
        if extra:
            (self.package / "extra.py").write_text(f'MARK = "{extra}"\n')
        else:
            (self.package / "extra.py").unlink(missing_ok=True)

    def start_api(self) -> None:
        """Start salt-api."""
        service = self.services["api"] = Service(self.sandbox, "salt-api")
        service.launch([salt_program("salt-api"), "-c", self.config], lambda: answers(self.api), timeout=60)

    def by_api(self) -> list[str]:
        """What a runner says that salt-api runs."""
        login = {"client": "runner", "eauth": "sharedsecret", "username": "eve", "password": "a-shared-secret"}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.api}/run", json.dumps([{**login, "fun": "ckan_probe.said"}]).encode(),
            {"Content-Type": "application/json", "Accept": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["return"][0]

    def by_runner(self) -> list[str]:
        """What a runner says on the command line."""
        return json.loads(self.run("salt-run", "ckan_probe.said", "--out=json").stdout)

    def by_reactor(self) -> str:
        """What a runner writes that the reactor runs."""
        self.note.unlink(missing_ok=True)
        self.ask("forks", "event.send", "ckan/probe/ask")
        eventually(self.note.exists, True, 30)
        time.sleep(0.2)
        return self.note.read_text()

    def by_pillar(self) -> str:
        """What an ext_pillar says in the master's own processes."""
        self.ask("forks", "saltutil.refresh_pillar", wait=True)
        return self.ask("forks", "ckan_probe.pillar")


@pytest.fixture(scope="module")
def synced() -> Iterator[Synced]:
    place = sandbox("ckan-s-")
    fleet = Synced(place)
    fleet.put("zero")
    try:
        fleet.start()
        # Not before the code is there: a pillar that fails would be remembered.
        fleet.stop_master()
        fleet.start_master(ext_pillar=[{"ckan_probe": []}])
        fleet.wait_for_minions()
        fleet.start_api()
        yield fleet
    finally:
        kill_all(place)
        shutil.rmtree(place, ignore_errors=True)


def test_a_minion_has_loaded_the_package_before_a_job_asks_for_it(synced):
    """Loading it takes a third of a second, and each job is a process of its own."""
    for minion in synced.minions:
        assert synced.ask(minion, "grains.get", "ckan_formula:version") == ckan_deploy.VERSION
        assert synced.ask(minion, "ckan_probe.loaded") is True


@pytest.mark.parametrize(
    ("mark", "extra"), [("one", "new"), later("two", "")], ids=["changed and added", "changed and removed"]
)
def test_every_process_runs_the_code_that_was_synced(synced, mark: str, extra: str):
    # Each has the code of before in its memory.
    before = synced.by_api()
    assert [synced.ask(minion, "ckan_probe.said") for minion in synced.minions] == [before] * 2
    synced.put(mark, extra)
    synced.sync()
    wanted = [mark, extra]
    # The minion that forks is told of the new modules; its schedule's process takes them up at its next turn.
    for minion in synced.minions:
        eventually(lambda asked=minion: synced.ask(asked, "ckan_probe.said"), wanted, 30)
    assert synced.by_runner() == wanted
    eventually(synced.by_api, wanted, 30)
    eventually(synced.by_reactor, mark, 60)
    eventually(synced.by_pillar, mark, 30)


def test_what_other_tests_lay_out_is_what_a_sync_brings(synced, tmp_path):
    caches = {f"salt/{minion}/var/cache/salt/minion": "grains modules output states utils" for minion in synced.minions}
    caches["salt/m/var/cache/salt/master"] = "grains modules output pillar runners states utils"
    synced._lay_out_modules(tmp_path)
    laid_out = content(tmp_path / "extmods")
    for cache, kinds in caches.items():
        wanted = {name: text for name, text in laid_out.items() if name.split("/")[0] in kinds.split()}
        assert content(synced.sandbox / cache / "extmods") == wanted
        fetched = content(synced.sandbox / cache / "files/base")
        assert {name: text for name, text in fetched.items() if name.startswith("_")} == {
            f"_{name}": text for name, text in wanted.items()
        }


def content(folder: Path) -> dict[str, bytes]:
    """The files below a directory, but for bytecode."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.*") if file.suffix != ".pyc"}


def test_half_a_sync_is_said_in_a_sentence_with_what_to_type(synced):
    for minion in synced.minions:
        cached = next(synced.sandbox.glob(f"salt/{minion}/**/extmods/utils/ckan_deploy"))
        broken, kept = cached / "errors.py", (cached / "errors.py").read_text()
        broken.write_text("this is half of a\n")
        try:
            synced.ask(minion, "saltutil.refresh_modules")
            done = synced.run("salt", minion, "ckan_release.list")
            assert done.returncode != 0
            assert "the formula's package cannot be imported" in done.stdout, done.stdout
            assert "saltutil.sync_all" in done.stdout and "Traceback" not in done.stdout
        finally:
            broken.write_text(kept)
        assert synced.run("salt", minion, "saltutil.sync_all").returncode == 0
        eventually(lambda asked=minion: "the pillar has no key ckan" in words(synced, asked), True, 20)


def words(synced: Synced, minion: str) -> str:
    return synced.run("salt", minion, "ckan_release.list").stdout
