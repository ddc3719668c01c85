"""
Build once, ship to all, as seen from the master: which host builds, whether the others are like it, and what is left on
the master of what it has packed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckan_deploy.errors import FormulaError
from ckan_deploy.fleet.hosts import Targets
from ckan_deploy.fleet.run import Run, join
from ckan_deploy.system import facts

# Below the files of a minion on the master: as ``build.shipping`` names it.
FOLDER = "ckan-ship"


def own_builder(run: Run, found: Targets) -> list[str]:
    """
    Return the host that builds for the others and serves nothing, as a list of none or one.

    run
        The run.
    found
        The hosts of the environment.
    """
    named = {str(found.build[host].get("host") or "") for host in found.hosts if _ships(found, host)}
    return [host for host in found.builders if host in named] if run.kind == "deploy" else []


def choose(run: Run, found: Targets) -> None:
    """
    Choose the host that builds; the run has its hosts, and gets ``ships``, ``builder`` and ``by_master``.

    run
        The run.
    found
        The hosts of the environment.

    Raises ``FormulaError`` where it cannot be told which one, or the archives could not be handed over.
    """
    if run.kind != "deploy" or not any(_ships(found, host) for host in run.hosts):
        return
    for name in ("ship", "host", "store"):
        values = {host: str(found.build[host].get(name) or "") for host in [*run.hosts, *own_builder(run, found)]}
        if len(set(values.values())) > 1:
            each = ", ".join(f"{value or 'not set'} on {host}" for host, value in sorted(values.items()))
            raise FormulaError(f"ckan:build:{name} is {each}; set it alike for all hosts of {run.env}")
    about = found.build[run.hosts[0]]
    named = str(about.get("host") or "")
    if named in run.down:
        raise FormulaError(f"{named} builds for all (ckan:build:host) and does not answer; start its salt-minion")
    there = [*run.hosts, *found.builders]
    if named and named not in there:
        raise FormulaError(
            f"ckan:build:host is {named}, which is neither a host of {run.env} nor one that builds for it "
            f"(ckan:build:only); there are {', '.join(there)}"
        )
    run.ships, run.builder, run.by_master = True, named or run.hosts[0], not about.get("store")
    lacks = run.master.handing_over if run.by_master else ""
    if lacks and [host for host in run.hosts if host != run.builder]:
        raise FormulaError(
            f"the archives of ckan:build:ship go over the master, whose configuration lacks: {lacks}; write that into "
            "/etc/salt/master.d/ckan.conf and restart salt-master, or set ckan:build:store"
        )
    if not run.dry_run:  # which has no deploy lock: another run may be at it
        forget(run)


def refuse_differences(run: Run, about: Mapping[str, Mapping[str, Any]], main: Mapping[str, Any]) -> None:
    """
    Refuse hosts on which what the builder has built would not run; the run gets ``layer`` and ``layers``.

    run
        The run.
    about
        What each host says of itself.
    main
        The plan of the builder.

    Raises ``FormulaError`` with what differs on each.
    """
    if not run.ships:
        return
    run.layer = str(about[run.builder].get("layer", ""))
    run.layers = {host: list(told["layers"]) for host, told in about.items()}
    # Its virtualenv may be made with another Python than new ones are.
    one = {**about[run.builder]["facts"], "Python": main["contents"]["base"]["python"]}
    others = {host: facts.differences(told["facts"], one) for host, told in about.items() if host != run.builder}
    failures = {
        host: f"it differs from {run.builder}, which builds for all: {', '.join(differences)}; make them alike"
        for host, differences in others.items() if differences
    }  # fmt: skip
    if failures:
        raise FormulaError(join(failures, "plan"))


def everyone(run: Run) -> list[str]:
    """
    Return the hosts that have the release of a run, or had it: those that serve, and the one that builds.

    run
        The run.
    """
    return [*run.hosts, *([run.builder] if run.builder and run.builder not in run.hosts else [])]


def forget(run: Run) -> None:
    """
    Remove the archives of an environment from the master.

    run
        The run.
    """
    if run.by_master:
        run.master.forget_pushed(run.builder, f"{FOLDER}/{run.env}")


def _ships(found: Targets, host: str) -> bool:
    return found.build.get(host, {}).get("ship") is True
