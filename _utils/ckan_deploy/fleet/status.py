"""Where the hosts of an environment stand, and what is wrong with that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from ckan_deploy.fleet import hosts, wanted
from ckan_deploy.fleet.master import Master
from ckan_deploy.fleet.record import Lock, Record
from ckan_deploy.fleet.run import told_once
from ckan_deploy.releases import ids
from ckan_deploy.system.tables import paragraph, span, table

TIMEOUT = 20


@frozen
class Status:
    """
    The hosts with what is said of each: ``linked``, ``serving``, ``answers``, ``services``, ``workers``, ``last``,
    ``wrong``, and ``maintenance`` where that is on, ``warnings`` where the deploy of what is live had any, ``drained``
    where app servers were told to stop for it. ``wrong`` is
    what is wrong on any of them, or between them.
    """

    env: str
    wanted: str
    lock: Lock | None
    hosts: Mapping[str, dict[str, Any]]

    @property
    def wrong(self) -> list[str]:
        """What is wrong, a sentence each."""
        said = [f"{host} {sentence}" for host, row in self.hosts.items() for sentence in row["wrong"]]
        if len({row["linked"] for row in self.hosts.values()} - {""}) > 1:
            said.append("the hosts do not all serve one release")
        return [*said, *self._once()]

    def _once(self) -> list[str]:
        """What is wrong with services that are to run on one host: on none, or on several."""
        found: dict[str, list[str]] = {}
        for host, row in self.hosts.items():
            for service in row["services"]:
                if service.get("once"):
                    found.setdefault(service["service"], []).extend([host] if service["state"] == "RUNNING" else [])
        return [
            f"service {name}, which is to run on one host, runs on {' and '.join(where) or 'none'}"
            for name, where in found.items()
            if len(where) != 1 and not any("maintenance" in row for row in self.hosts.values())
        ]

    def to_json(self) -> dict[str, Any]:
        """Return it as the answer of ``ckan.status``."""
        return {
            "env": self.env, "wanted": self.wanted, "lock": self.lock.shown() if self.lock else None,
            "hosts": dict(self.hosts),
        }  # fmt: skip

    def text(self) -> str:
        """Return it as a table for people."""
        rows = [["host", "linked", "serving", "answers", "last stage", ""]]
        services = []
        for host, row in self.hosts.items():
            services += [f"services of {host}: {', '.join(said)}"] if (said := _shown(row)) else []
            mark = " ".join(["!"] * bool(row["wrong"]) + ["in maintenance"] * ("maintenance" in row))
            rows.append([host, row["linked"], ", ".join(row["serving"]), row["answers"], row["last"], mark])
        drained = [
            f"the app server of {name} on {host} {what}"
            for host, row in self.hosts.items() for name, what in row.get("drained", {}).items()
        ]  # fmt: skip
        held = self.lock.sentence() if self.lock else f"{self.env} is not locked"
        warned = told_once({host: row.get("warnings", []) for host, row in self.hosts.items()})
        return (
            table(rows)
            + "".join(map(paragraph, services))
            + "".join(paragraph(f"warning: {each}") for each in warned)
            + "".join(map(paragraph, drained))
            + paragraph(f"wanted: {self.wanted or 'not known yet'}; {held}").rstrip()
        )


def look(master: Master, env: Any) -> Status:
    """
    Ask the hosts of an environment where they stand.

    master
        The master.
    env
        The name of the environment.

    Raises ``FormulaError`` where there is no such environment.
    """
    found = hosts.targets(master, env)
    told = hosts.ask(master, found.hosts, "ckan_release.status", {"processes": True}, TIMEOUT)
    current = {host: answer["current"] for host, answer in told.good.items()}
    record = Record(master, env)
    release = wanted.remember(record, current, sorted(told.failures))
    lock = record.lock()
    # While a run is under way its finish is still to come.
    at_work = bool(lock and not lock.by_hand and not lock.stale)
    rows = {host: _row(env, told.results[host], told.failures.get(host, ""), release, at_work) for host in found.hosts}
    return Status(env, release, lock, rows)


def _row(env: str, answer: Any, failure: str, release: str, at_work: bool) -> dict[str, Any]:
    if failure:
        return {
            "linked": "", "serving": [], "answers": failure, "services": [], "workers": {}, "last": "",
            "wrong": [failure],
        }  # fmt: skip
    linked, last = answer["current"], answer["last"]
    wrong = []
    if answer["answers"] != linked:
        wrong.append(f"is linked to {linked or 'no release'}, but {answer['answers'] or 'nothing'} answers")
    if "link" in answer:
        wrong.append(f"has no release: {answer['link']}")
    elif not linked:
        wrong.append(f"has no release yet; type: salt -I 'ckan:env:{env}' state.highstate")
    if "unfinished" in answer and not at_work:
        wrong.append(f"is not done: {answer['unfinished']}")
    if "changed" in answer:
        wrong.append(f"shares changed files: {answer['changed']}")
    if release and linked and linked != release:
        wrong.append(f"is on {linked}, the environment on {release}")
    for name, what in answer["workers"].items():
        # Where there is no release, that is what is said.
        if linked and what != linked and "link" not in answer:
            wrong.append(f"has worker {name} {'on ' if ids.ID_PATTERN.fullmatch(what) else ''}{what}")
    for row in answer.get("services", []):
        what = row.get("problem") or row["release"] or row["state"]
        if row["kind"] != "worker" and what != linked and (linked or row["release"]):
            wrong.append(f"has service {row['service']} {'on ' if ids.ID_PATTERN.fullmatch(what) else ''}{what}")
    at_it = answer.get("draining", [])
    return {
        "linked": linked, "answers": answer["answers"],
        "serving": [f"{name} (draining)" if name in at_it else name for name in answer["serving"]],
        "services": answer.get("services", []), "workers": answer["workers"],
        "last": f"{last['stage']} {last['result']} {last['at']}" if last else "none", "wrong": wrong,
        **{name: answer[name] for name in ("maintenance", "warnings", "drained") if name in answer},
    }  # fmt: skip


def _shown(row: Mapping[str, Any]) -> list[str]:
    """What is said of each service: its release or what is wrong with it, how long it is up, restarts."""
    said = []
    for one in row["services"]:
        words = [one.get("problem") or one["release"] or one["state"]]
        words += ["standby"] if one["state"] == "STANDBY" else []
        words += [f"up {span(one['age_seconds'])}"] if "age_seconds" in one else []
        words += [f"{one['restarts']} restart{'s' if one['restarts'] > 1 else ''}"] if one["restarts"] else []
        said.append(f"{one['service']} {' '.join(words)}")
    told = {one["service"] for one in row["services"]}
    return [*said, *(f"{name} {what}" for name, what in row["workers"].items() if name not in told)]
