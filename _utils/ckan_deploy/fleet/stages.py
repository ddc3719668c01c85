"""The stages of a run after its plan: what each calls on which hosts, and what its answers mean for the run."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ckan_deploy.errors import FormulaError
from ckan_deploy.fleet import hosts, interrupts, maintenance, progress, shipping
from ckan_deploy.fleet.hosts import Answers
from ckan_deploy.fleet.run import Failure, Run, Span, join, told_once
from ckan_deploy.system import beside

# How often the rebuild of the search index is looked at, in seconds.
LOOK_SECONDS = 10

# What each stage calls on the hosts, in order. The last of each is what the stage is about.
STAGES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "deploy": {
        "build": ("ckan_release.build",),
        "check": ("ckan_release.check",),
        "migrate": ("ckan_release.migrate",),
        "activate": ("ckan_release.start", "ckan_release.activate"),
        "verify": ("ckan_release.verify",),
        "index": ("ckan_index.rebuild",),
        "finish": ("ckan_release.finish",),
    },
    "rollback": {
        "downgrade": ("ckan_schema.downgrade",),
        "activate": ("ckan_release.start", "ckan_release.rollback"),
        "verify": ("ckan_release.verify",),
        "index": ("ckan_index.rebuild",),
        "finish": ("ckan_release.finish",),
    },
}
# A stage of its own on the hosts: no host goes on before all of them have come through.
FIRST = "ckan_release.start"
# One host does it for all: they share the database.
ON_ONE_HOST = ("migrate", "downgrade", "index")
# Not before all groups serve the release: until then the app server of the release before makes a revert short.
FOR_ALL_GROUPS = ("index", "finish")
# It looks at the hosts, and changes nothing.
ASKS_ONLY = "verify"
# The new release serves already: what goes wrong is a warning.
WARN_ONLY = ("index", "finish")


def stage(run: Run, name: str, group: str = "") -> dict[str, Any]:
    """
    Run one stage on the hosts of a group, and wait for every one of them.

    run
        The run.
    name
        The stage.
    group
        The group, as ``hosts.steps`` names it; ``''`` where there is but one, or for all of them.

    Returns ``{"ok", "comment", "results": {host: ...}}``, and ``changed`` where it went well and there was something to
    do: ``{stage: hosts}``, as Salt lists it. Raises ``FormulaError`` for a stage or a group that there is not.
    """
    if name not in STAGES[run.kind]:
        raise FormulaError(f"{name!r} is no stage of a {run.kind}; the stages are {', '.join(STAGES[run.kind])}")
    needless = {"downgrade": not run.undo, "index": not run.reindex, "migrate": not (run.migrate or run.maintenance)}
    if run.nothing or needless.get(name):
        return {"ok": True, "comment": "nothing to do", "results": {}}
    names = _hosts_of(run, name, group)
    if said := _interrupted(run, f"before {name}", name):
        run.save()
        return {"ok": False, "comment": said, "results": {}}
    verified = name == "verify" and group == run.groups[-1].name
    begun = time.time()
    told = _do(run, name, group, names, begun)
    results, failures = told.results, told.failures
    if verified and not failures:
        failures = maintenance.open_again(run)
    run.seconds[name] = round(run.seconds.get(name, 0) + time.time() - begun, 1)
    if failures and name in WARN_ONLY:
        run.warnings += [f"{host} at {name}: {cause}" for host, cause in failures.items()]
        run.save()
        return {"ok": True, "comment": f"warning: {join(failures, name)}", "results": results}
    run.failures += [Failure(host, name, cause) for host, cause in failures.items()]
    interrupted = _interrupted(run, f"in {name}", name)
    if verified and not failures and not interrupted:
        run.want()
    run.save()
    if failures or interrupted:
        said = "; ".join(filter(None, [join(failures, name), interrupted]))
        return {"ok": False, "comment": said, "results": results}
    took = round(time.time() - begun, 1)
    comment = f"{name}: {', '.join(names)} in {took} s{_remarks(name, results)}"
    changed = {} if name == ASKS_ONLY else {name: ", ".join(names)}
    return {"ok": True, "comment": comment, "results": results, "changed": changed}


def arguments(function: str, run: Run, job: str, starts: bool = False) -> dict[str, Any]:
    """
    Return what a function of a stage is told. Never a secret: arguments are kept in the job cache.

    function
        The function.
    run
        The run.
    job
        The job that the hosts obey.
    starts
        The function does what ``FIRST`` does as well.
    """
    about: dict[str, Any] = {"release": run.release, "by": run.by, "job": job}
    if starts:
        about["starts"] = True
    if function == "ckan_release.build":
        return {**about, "extensions": run.extensions, "contents": run.contents, **run.shipped}
    if function == "ckan_release.check":
        return {**about, **({"closes": True} if run.maintenance else {"boots": True})}
    if function == "ckan_release.rollback":
        accept = {"accept_schema": True} if run.accept_schema else {}
        del about["release"]
        return {"to": run.release, "reason": run.reason, "force": run.force, "finish": False, **accept, **about}
    if function == "ckan_index.rebuild" and run.restored:
        return {**about, "force": True}
    if function == "ckan_schema.downgrade":
        return {**about, "restore": run.restore}
    if (function == FIRST or function == "ckan_release.activate" and starts) and run.migration:
        return {**about, "migration": run.migration}
    if function == "ckan_release.finish":
        # After a rollback the release that was left stays for a look at it; the next deploy prunes it.
        index = {"index": run.index} if run.index else {}
        again = {"again": True} if run.kind == "rollback" and not run.undo else {}
        return {**about, "prune": run.kind == "deploy", **index, **again}
    return about


def _interrupted(run: Run, when: str, name: str) -> str:
    """Who wanted the run to end, '' for nobody. What is live on all hosts goes on to its end."""
    if name in WARN_ONLY or not interrupts.asked():
        return ""
    run.interrupted = run.interrupted or f"{run.by} interrupted it {when}"
    return run.interrupted


def _hosts_of(run: Run, name: str, group: str) -> list[str]:
    if name in FOR_ALL_GROUPS:
        names = run.hosts
    elif found := [part.hosts for part in run.groups if part.name == group]:
        names = found[0]
    else:
        there = ", ".join(part.name for part in run.groups)
        raise FormulaError(f"{group!r} is no group of this run{f'; its groups are {there}' if there else ''}")
    if name == "downgrade":
        return [run.undo_on]
    return names[:1] if name in ON_ONE_HOST else names


def _do(run: Run, name: str, group: str, names: list[str], begun: float) -> Answers:
    """Close the portal where that is due, and call the functions of a stage one after the other until one fails."""
    if name == "migrate":
        run.migrates = names[0]
    if name == "build" and run.ships:
        return _build_once(run, group, names, begun)
    told = Answers()
    if name in ("migrate", "downgrade") and run.maintenance:
        told = Answers({}, maintenance.close(run))
    functions = _functions(run, name, names)
    if name == "finish" and run.kind == "deploy":
        failed = _prune_builder(run)
        run.warnings += [f"{host}: old releases were not pruned: {cause}" for host, cause in failed.items()]
    for function in [] if told.failures else functions:
        asked = names
        if function == "ckan_release.rollback":
            # A fleet that disagrees is brought together: some hosts may be on the target already.
            asked = [host for host in names if run.left[host] != run.release]
        starts = functions != STAGES[run.kind][name]
        told = _ask_aloud(run, name, group, asked, function, begun, function != functions[-1], starts)
        if told.failures:
            break
    _note_answers(run, name, told)
    _note_warnings(run, name, told, begun)
    return told


def _functions(run: Run, name: str, names: list[str]) -> tuple[str, ...]:
    """What a stage calls: on one host alone the last function does it all in one job."""
    functions = STAGES[run.kind][name]
    alone = len(names) == 1 and (run.kind == "deploy" or run.left[names[0]] != run.release)
    return functions[1:] if alone and functions[0] == FIRST else functions


def _build_once(run: Run, group: str, names: list[str], begun: float) -> Answers:
    """One host builds, in the first group, and packs; then all others take that."""
    told = Answers()
    if not run.built:
        with _cloned_meanwhile(run, [host for host in names if host != run.builder]):
            told = _ask_aloud(run, "build", group, [run.builder], "ckan_release.build", begun, quiet=False)
        run.built = not told.failures
        takers = [host for host in run.hosts if host != run.builder]
        if run.built and takers:
            key = told.results[run.builder]["layer"]
            lacked = any(key not in run.layers[host] for host in takers)
            about = {**arguments("ckan_release.pack", run, run.job), "layer": lacked}
            packed = hosts.ask(run.master, [run.builder], "ckan_release.pack", about)
            run.shipped = {} if packed.failures else packed.results[run.builder]
            told.failures.update(packed.failures)
        run.save()
    others = [host for host in names if host != run.builder]
    if not told.failures and others:
        taken = _ask_aloud(run, "build", group, others, "ckan_release.build", begun, quiet=False)
        told = Answers({**told.results, **taken.results}, taken.failures)
    return told


@contextlib.contextmanager
def _cloned_meanwhile(run: Run, names: list[str]) -> Iterator[None]:
    """While the builder builds, hosts that have the layer clone it: what takes them longest is done then."""
    ahead = [host for host in names if run.layer and run.layer in run.layers[host]]
    about = {**arguments("ckan_release.clone", run, run.job), "contents": run.contents, "layer": run.layer}
    # Where it fails their build does it, or says why not.
    ask = functools.partial(hosts.ask, run.master, ahead, "ckan_release.clone", about)
    with beside.running(ask) if ahead else contextlib.nullcontext():
        yield


def _prune_builder(run: Run) -> dict[str, str]:
    """On a builder of its own what nobody needs any more goes; returns failures."""
    apart = [host for host in shipping.everyone(run) if host not in run.hosts]
    return hosts.ask(run.master, apart, "ckan_release.prune", {"job": run.job}).failures


def _note_answers(run: Run, name: str, told: Answers) -> None:
    """What the stages told, most of it of the database: for the manifests of all hosts, and for a revert."""
    answers = [answer for answer in told.good.values() if isinstance(answer, dict)]
    if name == "check" and any(answer.get("pending") and answer.get("maintenance") for answer in answers):
        run.maintenance = True
    if name == "check" and any(answer.get("migrates") for answer in answers):
        run.migrate = True
    if name == "migrate":
        run.migration = next((answer["migration"] for answer in answers if answer.get("migration")), {})
    if name == "verify" and any(answer.get("reindex") for answer in answers):
        run.reindex = True
    if name == "index":
        run.index = next((answer["index"] for answer in answers), {})
    if name == "finish":
        run.draining = [[host, name] for host, answer in told.good.items() for name in answer.get("draining", [])]
        run.unsteady = [f"{host}: {what}" for host, answer in told.good.items() for what in _down(answer)]
    if name == "downgrade":
        # Also where it failed half-way.
        run.downgraded = True
        # Another database than the one that the search index was filled from.
        run.kept_as = next((answer["kept_as"] for answer in answers if answer.get("kept_as")), "")
        run.reindex = run.restored = bool(run.kept_as)


def _note_warnings(run: Run, name: str, told: Answers, begun: float) -> None:
    """What the hosts found besides, each sentence once in the run: told at once, and again at its end."""
    said = {host: _warnings(answer) for host, answer in told.good.items()}
    everyone = 0 if name in ON_ONE_HOST else len(run.hosts)
    progress.warn(run, name, run.warn(told_once(said, everyone)), time.time() - begun)


def _warnings(answer: Any) -> list[str]:
    """What does not stay up is told at the end, since the deploy is not good then."""
    down = _down(answer)
    found = answer.get("warnings", []) if isinstance(answer, dict) else []
    return [warning for warning in found if warning not in down]


def _down(answer: Any) -> list[str]:
    return list(answer.get("down", [])) if isinstance(answer, dict) else []


def _ask_aloud(
    run: Run, name: str, group: str, names: list[str], function: str, begun: float, quiet: bool, starts: bool = False
) -> Answers:  # fmt: skip
    """Ask hosts for a stage, and tell of each answer as it comes."""
    waiting = list(names)

    def note(host: str, failed: str) -> None:
        waiting.remove(host)
        seconds = time.time() - begun
        if failed or not quiet:
            result = "ok" if not failed else "warning" if name in WARN_ONLY else "failed"
            run.spans.append(Span(name, group, host, begun, seconds, result))
            progress.tell(run, name, result, host, seconds, failed)
        progress.waiting(name, waiting)

    if not quiet or not names:
        progress.tell(run, name, "started")
    progress.waiting(name, waiting)
    with _index_watched(run, names, begun) if name == "index" else contextlib.nullcontext():
        return hosts.ask(run.master, names, function, arguments(function, run, run.job, starts), told=note)


@contextlib.contextmanager
def _index_watched(run: Run, names: list[str], begun: float) -> Iterator[None]:
    """Tell now and then how far the rebuild of the search index is: on a large portal it takes hours."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            told = hosts.ask(run.master, names, "ckan_app.index_status")
            for host, answer in told.good.items():
                if not over.is_set():
                    progress.tell(run, "index", "progress", host, time.time() - begun, answer["rebuild"])

    with beside.running(look):
        try:
            yield
        finally:
            over.set()


def _remarks(name: str, results: Mapping[str, Any]) -> str:
    answers = [answer for answer in results.values() if isinstance(answer, dict)]
    done = ""
    if name == "migrate":
        done = "; migrated" if any(answer.get("migrated") for answer in answers) else "; nothing pending"
    if name == "index":
        done = "".join(f"; rebuilt, since {answer['why']}" for answer in answers if answer.get("rebuilt"))
    remarks = {remark for answer in answers for remark in answer.get("warnings", [])}
    return done + "".join(f"; {remark}" for remark in sorted(remarks))
