"""
A run: one deploy or rollback over an environment, and what it knows from its plan to its end.

It stands in ``run.json`` on the master (``record``), since each stage is a call of its own. It is the deploy lock that
keeps others out meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attr
from attrs import Factory, define, frozen

from ckan_deploy.fleet.hosts import Group
from ckan_deploy.fleet.master import Master
from ckan_deploy.fleet.names import NAME
from ckan_deploy.fleet.record import Record


@frozen
class Span:
    """How long a stage took on a host, from when on, and how it went: ``ok``, ``warning`` or ``failed``."""

    stage: str
    group: str
    host: str
    at: float
    seconds: float
    result: str


@frozen
class Failure:
    """Which host failed at which stage, and why."""

    host: str
    stage: str
    cause: str


@define(kw_only=True, eq=False)
class Run:
    """
    A deploy or rollback. The names are those of ``run.json``.

    First what was asked for; ``source`` is the environment that the release is promoted from, ``source_release`` the
    one there; visitors read ``message`` and ``until`` in maintenance mode. With ``build:ship`` (``ships``) the
    ``builder`` builds for all, and the archives go ``by_master`` where there is no store; ``layer`` is the one to be,
    ``layers`` are those that each host has, and ``shipped`` is what was packed once it has ``built``. Then the plan:
    the release and its resolution (``contents``), how a promoted one ``differs`` from the pillar here, the versions of
    the ``backends``, the hosts in their groups and those that are ``down``, what each host was on ``before`` a deploy,
    or a rollback has ``left``; the host that undoes migrations (``undo_on``). Then what the stages told: whether there
    is anything to ``migrate``, which host ``migrates``, what it told of that, the ``closed`` hosts that this run has
    turned to maintenance (None as long as it has turned none), what does not stay up (``unsteady``), and the old app
    servers that still finish requests (``draining``: host and release). For the report: the ``details`` of what
    changes, what each host ``serves`` after a revert, and what those that failed have ``noted`` (``{host: {"details":
    what a program said, "log": lines}}``). ``interrupted`` says who wanted it to end early. ``warnings`` are from all
    of it, each once.
    """

    master: Master
    env: str
    kind: str
    by: str
    job: str
    since: str
    reason: str = ""
    force: bool = False
    maintenance: bool = False
    extensions: dict[str, Any] = Factory(dict)
    accept_schema: bool = False
    downgrade: bool = False
    restore: str = ""
    asked_groups: Any = Factory(list)
    allow_down: Any = Factory(list)
    dry_run: bool = False
    source: Any = ""
    source_release: Any = ""
    source_hosts: list[str] = Factory(list)
    fresh: bool = False
    message: Any = ""
    until: str = ""

    ships: bool = False
    builder: str = ""
    by_master: bool = False
    built: bool = False
    shipped: dict[str, Any] = Factory(dict)
    layer: str = ""
    layers: dict[str, list[str]] = Factory(dict)

    hosts: list[str] = Factory(list)
    groups: list[Group] = Factory(list)
    down: list[str] = Factory(list)
    release: str = ""
    contents: dict[str, Any] = Factory(dict)
    changes: list[str] = Factory(list)
    differs: list[str] = Factory(list)
    backends: dict[str, str] = Factory(dict)
    nothing: bool = False
    before: dict[str, str] = Factory(dict)
    left: dict[str, str] = Factory(dict)
    undo: bool = False
    undo_on: str = ""

    seconds: dict[str, float] = Factory(dict)
    spans: list[Span] = Factory(list)
    failures: list[Failure] = Factory(list)
    warnings: list[str] = Factory(list)
    unsteady: list[str] = Factory(list)
    draining: list[list[str]] = Factory(list)
    migrate: bool = False
    migrates: str = ""
    migration: dict[str, Any] = Factory(dict)
    closed: list[str] | None = None
    reindex: bool = False
    index: Any = None
    downgraded: bool = False
    kept_as: str = ""
    restored: bool = False
    details: dict[str, Any] = Factory(dict)
    serves: dict[str, str] = Factory(dict)
    noted: dict[str, dict[str, Any]] = Factory(dict)
    interrupted: str = ""
    ended: str = ""
    result: str = ""

    @classmethod
    def of(cls, master: Master, told: Mapping[str, Any]) -> Run:
        """
        Make it of what ``run.json`` holds.

        master
            The master.
        told
            Its content; what is missing is as it was at the beginning of a run.
        """
        known = {name: told[name] for name in attr.fields_dict(cls) if name in told and told[name] is not None}
        for name, part in (("groups", Group), ("spans", Span), ("failures", Failure)):
            known[name] = [part(**entry) for entry in told.get(name) or []]
        return cls(master=master, **known)

    @classmethod
    def under_way(cls, master: Master, env: Any, job: str) -> Run | None:
        """
        Return the run of a job whose plan came to its end, and whose deploy lock it still holds; None for none.

        master
            The master.
        env
            The name of the environment.
        job
            The id of the job that planned it.
        """
        if not isinstance(env, str) or not NAME.fullmatch(env):
            return None
        record = Record(master, env)
        told, lock = record.run(), record.lock()
        return cls.of(master, told) if told and lock and told.get("job") == lock.job == job else None

    @property
    def record(self) -> Record:
        """What the master keeps of the environment."""
        return Record(self.master, self.env)

    def to_json(self) -> dict[str, Any]:
        """Return it as it stands in ``run.json``."""
        plain: dict[str, Any] = attr.asdict(
            self, filter=lambda field, value: field.name != "master" and value is not None
        )
        return plain

    def save(self) -> None:
        """Keep it on the master."""
        self.record.save_run(self.to_json())

    def warn(self, sentences: Iterable[str]) -> list[str]:
        """
        Note warnings that the run does not know yet; returns those.

        sentences
            The warnings.
        """
        new = [said for said in dict.fromkeys(sentences) if said not in self.warnings]
        self.warnings += new
        return new

    def want(self) -> None:
        """Note its release as the wanted one: what a host must be on from now, also one that was not there."""
        self.record.want(
            self.release, self.contents, extensions=self.extensions, by=self.by, kind=self.kind, seconds=self.seconds
        )


def causes(failures: Iterable[Failure]) -> str:
    """
    Say which hosts failed at which stage, and why: hosts with the same trouble in one sentence.

    failures
        The failures.
    """
    same: dict[tuple[str, str], list[str]] = {}
    for failure in failures:
        same.setdefault((failure.stage, failure.cause), []).append(failure.host)
    return "; ".join(f"{', '.join(sorted(some))} failed at {stage}: {why}" for (stage, why), some in same.items())


def told_once(said: Mapping[str, Iterable[str]], everyone: int = 0) -> list[str]:
    """
    Return what several hosts say, each sentence once: with their names where not all say it.

    said
        The sentences of each host.
    everyone
        How many hosts there are, where others have not been asked.
    """
    by_sentence: dict[str, list[str]] = {}
    for host, sentences in said.items():
        for sentence in dict.fromkeys(sentences):
            by_sentence.setdefault(sentence, []).append(host)
    all_of_them = max(everyone, len(said))
    return [
        sentence if len(some) == all_of_them else f"{', '.join(some)}: {sentence}"
        for sentence, some in by_sentence.items()
    ]


def join(failures: Mapping[str, str], stage: str) -> str:
    """
    Put failures of one stage into a sentence, '' for none.

    failures
        The cause for each host.
    stage
        The stage.
    """
    return causes(Failure(host, stage, cause) for host, cause in failures.items())
