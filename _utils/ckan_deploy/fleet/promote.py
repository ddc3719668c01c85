"""What an environment takes from another one: the release that is live there, or an older one of its releases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from ckan_deploy.errors import FormulaError
from ckan_deploy.fleet import hosts
from ckan_deploy.fleet.record import Record
from ckan_deploy.fleet.run import Run, join
from ckan_deploy.releases import ids
from ckan_deploy.releases.manifest import GOOD, Manifest, Resolution

TIMEOUT = 30
# Settings of an extension that decide what is built of its commit, and stand in no resolution.
BUILT_WITH = ("subdirectory", "requirements", "override")
# What was asked for besides. What came of it is in the lock file, which is taken as it is.
ASKED = ("packages", "override")


@frozen
class Taken:
    """A release of another environment: its id, what it holds, and its plugins."""

    release: str
    contents: dict[str, Any]
    plugins: tuple[str, ...]


def check(run: Run, given: list[str]) -> None:
    """
    Refuse what cannot be meant, before anything is asked.

    run
        The run: ``source`` is the environment, ``source_release`` a release by name.
    given
        All names of the pillar of the orchestration.

    Raises ``FormulaError``.
    """
    if not run.source:
        if run.source_release or "release" in given:
            raise FormulaError("release names one of the environment that from names: add from: ENV")
        if "from" in given:
            raise FormulaError("from names no environment; type pillar='{env: production, from: staging}'")
        return
    if not isinstance(run.source, str):
        raise FormulaError(f"from must be the name of one environment, not {run.source!r}")
    if run.source == run.env:
        raise FormulaError(f"from is {run.env} itself; leave it out, or go back with orch.rollback")
    if run.extensions:
        raise FormulaError(f"extensions and from exclude each other: a release of {run.source} is taken as it is")
    if run.source_release:
        ids.check_id(run.source_release)
    run.source_hosts = hosts.targets(run.master, run.source).hosts


def take(run: Run) -> Taken:
    """
    Ask the hosts of the other environment what they have live, or what the release holds that was named.

    run
        The run.

    Raises ``FormulaError`` where there is a run under way, where they do not agree, or have no such release.
    """
    lock = Record(run.master, run.source).lock()
    if lock and not lock.by_hand:
        raise FormulaError(f"what {run.source} has is not settled: {lock.sentence()}; {lock.way_out()}")
    about = {"release": run.source_release, "lock": True}
    told = hosts.ask(run.master, run.source_hosts, "ckan_release.show", about, TIMEOUT)
    if told.failures and not (run.source_release and told.good):
        what = f"release {run.source_release}" if run.source_release else "what is live, or add release: ID"
        raise FormulaError(f"{run.source} does not tell {what}: {join(told.failures, 'plan')}")
    manifests = {host: _manifest(run, host, answer) for host, answer in sorted(told.good.items())}
    first = manifests[min(manifests)]
    if len({manifest.id for manifest in manifests.values()}) > 1:
        each = ", ".join(f"{host} is on {manifest.id}" for host, manifest in manifests.items())
        raise FormulaError(f"the hosts of {run.source} do not agree ({each}); deploy there, or add release: ID")
    contents = {host: _contents(manifest) for host, manifest in manifests.items()}
    other = ", ".join(host for host in manifests if contents[host] != contents[min(manifests)])
    if other:
        raise FormulaError(
            f"{first.id} of {run.source} is not the same on {other} as on {min(manifests)}; deploy there again"
        )
    source = {"env": run.source, "release": first.id}
    return Taken(first.id, {**contents[min(manifests)], "promoted": source}, first.plugins or ())


def differences(run: Run, taken: Taken, plan: Mapping[str, Any]) -> list[str]:
    """
    Say how what is taken goes with the pillar of this environment; what does not go with it was refused.

    run
        The run.
    taken
        What ``take`` returned.
    plan
        What a host of this environment answered.

    Returns a list of sentences without full stop.
    """
    here, there = plan["host"].get("plugins") or [], taken.plugins
    sides = (run.source, [name for name in there if name not in here]), (
        run.env, [name for name in here if name not in there],
    )  # fmt: skip
    said = [f"plugins that only {env} has: {', '.join(names)}" for env, names in sides if names]
    return [*plan.get("differs", []), *_other_settings(run), *said]


def _other_settings(run: Run) -> list[str]:
    """What both pillars say of how an extension is built, where that is not the same now."""
    pillars = [run.master.pillar(host).get("ckan") or {} for host in (run.source_hosts[0], run.hosts[0])]
    there, here = map(_extensions, pillars)
    said = [
        f"ckan:{key} is another one in the pillar of {run.source}, and what {run.source} has is taken"
        for key in ASKED
        if (pillars[0].get(key) or []) != (pillars[1].get(key) or [])
    ]
    for name in sorted(there.keys() & here.keys()):
        other = [key for key in BUILT_WITH if there[name].get(key) != here[name].get(key)]
        if other:
            said.append(f"{name} has other settings in the pillar of {run.source}: {', '.join(other)}")
    return said


def _extensions(pillar: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found = pillar.get("extensions") or {}
    return {name: about for name, about in found.items() if isinstance(about, dict)} if isinstance(found, dict) else {}


def _manifest(run: Run, host: str, answer: Any) -> Manifest:
    """Read what a host said, which may be damaged, or of a release that nobody should take."""
    try:
        manifest = Manifest.of(answer if isinstance(answer, dict) else {})
        if not manifest.resolution or not all(isinstance(name, str) for name in manifest.plugins or ()):
            raise ValueError(manifest)
        ids.check_id(manifest.id)
    except (ValueError, FormulaError) as exc:
        raise FormulaError(
            f"what {host} of {run.source} says is no manifest of a release that was built; look with: salt {host} "
            "ckan_release.show"
        ) from exc
    if manifest.adopted:
        raise FormulaError(f"{manifest.id} of {run.source} was adopted, not built; deploy to {run.source} first")
    if manifest.state not in GOOD:
        why = f" ({manifest.bad_reason})" if manifest.bad_reason else ""
        raise FormulaError(f"{manifest.id} is {manifest.state} on {host} of {run.source}{why}; take another release")
    return manifest


def _contents(manifest: Manifest) -> dict[str, Any]:
    assert isinstance(manifest.resolution, Resolution)
    contents = manifest.resolution.to_build().to_json()
    contents.pop("promoted", None)  # where it was promoted from itself
    return contents
