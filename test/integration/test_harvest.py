"""
ckanext-harvest on two hosts: its gather consumer on one of them and its fetch consumers on both, across a deploy.

The harvester is one of our own, so that each object takes its time and leaves a note of where it was worked on.
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parts.nine import VERSIONS, commit_to, make_repos
from parts.portal import next_second
from parts.process import sandbox
from parts.real import RealPortal

pytestmark = [pytest.mark.integration, pytest.mark.long]

OBJECTS, SECONDS = 8, 1
# A value that a shell, supervisor, cron and an ini would each read in their own way.
WORD = 'it\'s 100% "here"; #and\n`there` $HOME'
HARVESTER = f'''\
"""Objects that take their time, and leave notes."""

import os
import sys
import time

from ckan.plugins import toolkit

from ckanext.harvest.harvesters import HarvesterBase
from ckanext.harvest.model import HarvestObject


def note(*words):
    with open(os.path.join(toolkit.config["ckan.storage_path"], "notes"), "a") as handle:
        handle.write(" ".join([*words, os.path.basename(sys.prefix), str(os.environ.get("WORD") == {WORD!r})]) + "\\n")


class Slow(HarvesterBase):
    def info(self):
        return {{"name": "slow", "title": "Slow", "description": "Takes its time"}}

    def gather_stage(self, job):
        note("gather", job.source.title)
        made = [HarvestObject(guid=f"{{job.source.title}}-{{number}}", job=job) for number in range({OBJECTS})]
        for each in made:
            each.save()
        return [each.id for each in made]

    def fetch_stage(self, harvest_object):
        note("fetch", harvest_object.guid)
        time.sleep({SECONDS})
        title, _, number = harvest_object.guid.rpartition("-")
        if title in ("across", "back") and int(number) < 2:
            # Both consumers are at work from before the switch until the last stage asks them to end.
            current, until = os.path.join(sys.prefix, "../../current"), time.time() + 300
            while os.path.realpath(current) == os.path.realpath(sys.prefix) and time.time() < until:
                time.sleep(0.2)
            time.sleep(10)
        harvest_object.content = "{{}}"
        harvest_object.save()
        note("fetched", harvest_object.guid)
        return True

    def import_stage(self, harvest_object):
        user = toolkit.get_action("get_site_user")({{"ignore_auth": True}}, {{}})["name"]
        package = {{"name": harvest_object.guid, "title": harvest_object.guid, "owner_org": "city-hall"}}
        made = toolkit.get_action("package_create")({{"ignore_auth": True, "user": user}}, package)
        harvest_object.package_id, harvest_object.current = made["id"], True
        harvest_object.save()
        note("import", harvest_object.guid)
        return True
'''
_CONSUMER = {"stop_when_idle": True, "stop_seconds": 60}
SERVICES = {
    "gather": {**_CONSUMER, "command": "harvester gather-consumer", "once": True},
    "fetch": {**_CONSUMER, "command": "harvester fetch-consumer", "processes": 1, "order": 1},
}


class HarvestPortal(RealPortal):
    """A RealPortal with ckanext-harvest and a harvester of our own."""

    synced = True

    def __init__(self, place: Path) -> None:
        super().__init__(place, say=print)
        harvest = make_repos(self.sandbox / "git", print)["harvest"]
        (self.mycity / "ckanext/mycity/harvester.py").write_text(HARVESTER, encoding="utf-8")
        project = self.mycity / "pyproject.toml"
        text = project.read_text(encoding="utf-8")
        entry = '"ckanext.mycity.plugin:Plugin"\n'
        project.write_text(text.replace(entry, f'{entry}slow_harvester = "ckanext.mycity.harvester:Slow"\n'))
        commit_to(self.mycity, "A harvester of our own")
        self.harvest = {"url": str(harvest), "ref": f"v{VERSIONS['harvest']}"}

    def write_pillar(self, settings: Any) -> None:
        """Lay the pillar of a portal that harvests over that of the example."""
        own = {
            "extensions": {**settings["extensions"], "ckanext-harvest": self.harvest},
            "plugins": ["mycity", "harvest", "slow_harvester"],
            "config": {**settings["config"], "ckan.harvest.mq.type": "redis"},
            "services": SERVICES,
            "environment": {"WORD": WORD},
            "cron": {"harvest": {"schedule": "*/15 * * * *", "command": "harvester run", "once": True}},
        }
        super().write_pillar({**own, **settings, **{name: own[name] for name in ("extensions", "plugins", "config")}})

    def notes(self, source: str) -> list[list[str]]:
        """What was noted of a source: what, of which object, by which release, with the variable or not."""
        files = [self.root(host) / "var/lib/ckan/default/storage/notes" for host in self.hosts]
        rows = [line.split() for file in files if file.exists() for line in file.read_text().splitlines()]
        return [row for row in rows if row[1].startswith(source)]

    def begin_harvest(self, source: str) -> str:
        """Make a source and harvest it; returns the id of the job."""
        made = self.api("harvest_source_create", {
            "name": source, "title": source, "url": f"http://127.0.0.1:1/{source}", "source_type": "slow",
            "owner_org": "city-hall",
        })  # fmt: skip
        return self.api("harvest_job_create", {"source_id": made["id"], "run": True})["id"]

    def imported(self, source: str) -> int:
        return sum(row[0] == "import" for row in self.notes(source))

    def run_line(self) -> None:
        """Do what the line of cron does."""
        line = (self.root("web1") / "etc/cron.d/ckan-default").read_text().splitlines()[-1]
        command = line.removeprefix("*/15 * * * * www-data ").replace(r"\%", "%")
        done = subprocess.run(["runuser", "-u", "www-data", "--", "sh", "-c", command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def site():
    with HarvestPortal(sandbox("ckan-i-")) as portal:
        portal.set_up()
        portal.add_sample_data()
        yield portal


def eventually(holds: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def rows(site: HarvestPortal) -> dict[str, list[dict[str, Any]]]:
    """What the hosts say of each service."""
    found: dict[str, list[dict[str, Any]]] = {}
    for host in site.hosts:
        for row in site.call(host, "ckan_jobs.status")[1]["services"]:
            found.setdefault(row["service"], []).append(row)
    return found


def once_each(site: HarvestPortal, source: str) -> None:
    """Each object was fetched once and imported once, and all of them with the variable."""
    found = site.notes(source)
    names = {f"{source}-{number}" for number in range(OBJECTS)}
    for what in ("fetch", "fetched", "import"):
        assert Counter(row[1] for row in found if row[0] == what) == dict.fromkeys(names, 1), found
    assert [row[0] for row in found].count("gather") == 1
    assert {row[3] for row in found} == {"True"}


def test_f10_a_source_is_harvested_across_a_deploy_and_a_rollback_and_no_job_is_lost_or_run_twice(
    site: HarvestPortal,
):
    code, told = site.status()
    assert code == 0, told
    first = site.current("web1")
    found = rows(site)
    assert sorted(row["state"] for row in found["gather"]) == ["RUNNING", "STANDBY"]
    assert [row["state"] for row in found["fetch"]] == ["RUNNING", "RUNNING"]
    assert {row["release"] for name in SERVICES for row in found[name]} == {first}
    jobs = [site.begin_harvest("before")]
    eventually(lambda: site.imported("before") == OBJECTS)
    once_each(site, "before")

    jobs.append(site.begin_harvest("across"))
    eventually(lambda: len(site.notes("across")) == 3)
    commit_to(site.mycity, "Another release")
    next_second()
    done = site.deploy()
    assert done["code"] == 0 and "did not end" not in done["text"], done["text"][-3000:]
    second = site.current("web1")
    eventually(lambda: site.imported("across") == OBJECTS)
    jobs.append(site.begin_harvest("back"))
    eventually(lambda: len(site.notes("back")) == 3)
    done = site.deploy("rollback")
    assert done["code"] == 0, done["text"][-3000:]
    eventually(lambda: site.imported("back") == OBJECTS)
    jobs.append(site.begin_harvest("after"))
    eventually(lambda: site.imported("after") == OBJECTS)
    for source in ("across", "back", "after"):
        once_each(site, source)
    # What was under way was brought to its end by the release of before, and all else is of the one after.
    for source, before, after in (("across", first, second), ("back", second, first), ("after", first, first)):
        at_work = {f"{source}-0", f"{source}-1"}
        assert {row[2] for row in site.notes(source) if row[1] in at_work} == {before}
        assert {row[2] for row in site.notes(source) if row[1] not in {*at_work, source}} == {after}
    # Nothing is left in the queues, and the line of cron finds all jobs done.
    site.run_line()
    assert [site.api("harvest_job_show", {"id": job})["status"] for job in jobs] == ["Finished"] * len(jobs)
    code, told = site.status()
    assert code == 0, told
    found = rows(site)
    assert all(row["restarts"] == 0 for name in SERVICES for row in found[name]), found
    assert {row["release"] for name in SERVICES for row in found[name]} == {first}


def test_commands_that_ckan_does_not_have_are_refused_by_the_check_all_at_once_and_nothing_live_is_touched(
    site: HarvestPortal,
):
    linked, before = site.current("web1"), rows(site)
    wrong = {
        "services": {
            "gather": {"command": "harvester gather-consumr"},
            "fetch": {"command": "harvester"},
            "other": {"command": "harvest fetch-consumer"},
        },
        "cron": {"harvest": {"schedule": "@daily", "command": "harvester runn -x"}},
    }  # fmt: skip
    site.write_pillar({**site.settings, **wrong})
    next_second()
    done = site.deploy(force=True)
    site.write_pillar(site.settings)
    text = " ".join(done["text"].split())
    assert done["code"] == 1 and "failed at check" in text, done["text"][-3000:]
    for said in (
        "ckan:services:gather:command: CKAN has no command 'harvester gather-consumr' (did you mean gather-consumer?)",
        "ckan:services:fetch:command: 'harvester' is no command by itself; add one of ",
        "ckan:services:other:command: CKAN has no command 'harvest' (did you mean harvester?)",
        "ckan:cron:harvest:command: CKAN has no command 'harvester runn' (did you mean run?)",
    ):
        assert said in text, done["text"][-3000:]
    assert site.current("web1") == linked
    pids = {name: [row["pid"] for row in found] for name, found in before.items()}
    assert {name: [row["pid"] for row in found] for name, found in rows(site).items()} == pids
