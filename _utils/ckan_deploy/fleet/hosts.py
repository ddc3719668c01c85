"""
The hosts of an environment: which they are, and what they answer.

They are the accepted minions whose pillar names the environment, never the ones that happen to answer: Salt leaves a
minion that is down out of its answers without a word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import Factory, define, frozen

from ckan_deploy.errors import FormulaError
from ckan_deploy.fleet.master import Answer, Master
from ckan_deploy.settings.resolve import ciphertext
from ckan_deploy.system import arguments
from ckan_deploy.system import version as versions

TIMEOUT = 30
# Of a host that is down, or that may answer a moment later.
NO_ANSWER = "does not answer"
# Of what Salt says of a pillar, in characters.
LONGEST = 200


@frozen
class Targets:
    """
    The hosts of an environment, and the deploy group of each, '' for none; the hosts that build for it and serve
    nothing (``ckan:build:only``), and what the pillar of each of all these says under ``ckan:build``.
    """

    hosts: list[str]
    members: dict[str, str]
    builders: list[str] = []
    build: Mapping[str, Mapping[str, Any]] = {}


@frozen
class Group:
    """Hosts that a run goes over at the same time; its name is '' where there is but one group."""

    name: str
    hosts: list[str]


@define
class Answers:
    """What hosts said, and a sentence for each that failed."""

    results: dict[str, Any] = Factory(dict)
    failures: dict[str, str] = Factory(dict)

    @property
    def good(self) -> dict[str, Any]:
        """The answers of those that did not fail."""
        return {host: answer for host, answer in self.results.items() if host not in self.failures}


def targets(master: Master, env: Any) -> Targets:
    """
    Return the hosts of an environment: the accepted minions whose pillar says ``ckan:env: ENV``.

    master
        The master.
    env
        The name of the environment.

    Raises ``FormulaError`` where there are none, or it cannot be told which they are.
    """
    if not env:
        raise FormulaError(f"no environment is named; environments known: {', '.join(environments(master)) or 'none'}")
    if not isinstance(env, str):
        raise FormulaError(f"env must be the name of one environment, not {env!r}")
    by_env: dict[str, dict[str, str]] = {}
    build: dict[str, Mapping[str, Any]] = {}
    builders: list[str] = []
    broken: list[str] = []
    empty: list[str] = []
    for host in master.minions():
        ckan, rendered = _ckan_of(master, host)
        name = ckan.get("env") or ""
        build[host] = about if isinstance(about := ckan.get("build"), dict) else {}
        if name == env and build[host].get("only") is True:
            builders.append(host)
        elif isinstance(name, str) and name and build[host].get("only") is not True:
            by_env.setdefault(name, {})[host] = str(ckan.get("deploy_group") or "")
        if rendered and "env" in ckan and not name:
            empty.append(host)
        if not rendered and name in ("", env):
            broken.append(host)
    if broken:
        # A host that may belong to it must not be left behind in silence.
        raise FormulaError(_not_rendered(master, env, broken))
    if env in by_env:
        mine = {host: build[host] for host in (*by_env[env], *builders)}
        return Targets(sorted(by_env[env]), by_env[env], sorted(builders), mine)
    known = "; ".join(f"{name}: {', '.join(sorted(hosts))}" for name, hosts in sorted(by_env.items()))
    nameless = f"; {', '.join(sorted(empty))} has an empty ckan:env" if empty else ""
    raise FormulaError(
        f"no accepted minion has ckan:env: {env} in its pillar{arguments.near(env, by_env)}; environments known: "
        f"{known or 'none'}{nameless}"
    )


def environments(master: Master) -> list[str]:
    """
    Return the names of the environments that accepted minions belong to, as far as their pillars render.

    master
        The master.
    """
    found = {str(_ckan_of(master, host)[0].get("env") or "") for host in master.minions()}
    return sorted(found - {""})


def in_groups(groups: Any, hosts: list[str], members: Mapping[str, str]) -> list[Group]:
    """
    Say in which groups, one after the other, a run goes over hosts; a group without hosts is left out.

    groups
        A list of names, each a ``ckan:deploy_group``, a host, or ``rest`` for all others; or a number of hosts.
    hosts
        The hosts.
    members
        Which group each host is in.

    Raises ``FormulaError`` where not every host would be in one group.
    """
    if not groups:
        return [Group("", hosts)]
    if isinstance(groups, int) and not isinstance(groups, bool) and groups > 0:
        parts = [hosts[at : at + groups] for at in range(0, len(hosts), groups)]
        return [Group(", ".join(part), part) for part in parts]
    if not isinstance(groups, list) or not all(isinstance(name, str) for name in groups):
        raise FormulaError(
            f"groups must be a list of names, such as [canary, rest], or a number of hosts, not {groups!r}"
        )
    known = sorted({*members.values(), *members, "rest"} - {""})
    for name in groups:
        if name not in known or groups.count(name) > 1:
            what = (
                "stands twice in groups" if name in known else f"is no group, nor a host{arguments.near(name, known)}"
            )
            none = "" if any(members.values()) else "; no host has a ckan:deploy_group in its pillar"
            raise FormulaError(f"{name} {what}; there are {', '.join(known)}{none}")
    return _named(groups, hosts, members)


def steps(master: Master, env: Any, groups: Any = None) -> list[str]:
    """
    Return the names of the groups of a run, for the steps of an orchestration; one empty name for no groups, and where
    something is wrong: the stage plan says what.

    master
        The master.
    env
        The name of the environment.
    groups
        As for ``in_groups``.
    """
    if not groups:
        return [""]
    try:
        found = targets(master, env)
        return [group.name for group in in_groups(groups, found.hosts, found.members)]
    except FormulaError:
        return [""]


def ask(
    master: Master, hosts: Sequence[str], function: str, kwargs: Mapping[str, Any] | None = None,
    timeout: int = TIMEOUT, told: Callable[[str, str], None] | None = None,
) -> Answers:  # fmt: skip
    """
    Call a function on every host, and wait for each of them.

    master
        The master.
    hosts
        Ids of minions.
    function
        A function of an execution module.
    kwargs
        Its arguments. Never a secret: arguments are kept in the job cache.
    timeout
        Seconds after which a host is asked whether it is still at it.
    told
        Called with each host as its answer comes: host, why it failed or ``''``.
    """
    answers = Answers()

    def note(answer: Answer) -> None:
        failed = _why_failed(answer, function)
        answers.results[answer.host] = answer.value
        if failed:
            answers.failures[answer.host] = failed
        if told:
            told(answer.host, failed)

    problem = ""
    if hosts:
        try:
            for answer in master.ask(hosts, function, kwargs or {}, timeout):
                if answer.host in hosts and answer.host not in answers.results:
                    note(answer)
        except FormulaError as exc:
            problem = str(exc)
    for host in [host for host in hosts if host not in answers.results]:
        note(Answer(host, problem, 1) if problem else Answer(host, None, came=False))
    return answers


def version(master: Master) -> str:
    """
    Return the hash of the formula's files in the master's file server, as ``ckan_version.modules`` makes it of those
    that a minion has; '' where they are not there.

    master
        The master.
    """
    files = master.files()
    return versions.digest(files) if files else ""


def _named(groups: list[str], hosts: list[str], members: Mapping[str, str]) -> list[Group]:
    named = {name: [host for host in hosts if name in (host, members.get(host))] for name in groups if name != "rest"}
    taken = [host for part in named.values() for host in part]
    twice = sorted({host for host in taken if taken.count(host) > 1})
    rest = [host for host in hosts if host not in taken]
    if twice:
        raise FormulaError(f"{', '.join(twice)} would be in two groups; name each host once")
    if rest and "rest" not in groups:
        raise FormulaError(f"{', '.join(rest)} would be in no group; add rest to groups")
    found = [Group(name, rest if name == "rest" else named[name]) for name in groups]
    return [group for group in found if group.hosts]


def _why_failed(answer: Answer, function: str) -> str:
    """A sentence for an answer that is a failure, '' for another one."""
    if not answer.came:
        return f"{NO_ANSWER}; start its salt-minion, then repeat"
    if answer.retcode == 0:
        return ""
    text, host = str(answer.value).strip(), answer.host
    if "is not available" in text and function in text:
        return f"does not know {function}; type: salt {host} saltutil.sync_all"
    if (lacks := re.search(r"cannot be imported \((.*?)\); type ", text)) and "__virtual__" in text:
        return f"cannot load {function} ({lacks[1]}); type: salt {host} saltutil.sync_all"
    if "Traceback (most recent call last)" in text:
        # A fault of the formula itself: its last line says what, the minion's log has the rest.
        return f"{text.splitlines()[-1]} (see the minion's log)"
    # Several problems are a line each.
    text = re.sub(r"\n(?=\S)", "; ", re.sub(r"^ERROR( executing '[\w.]+')?: ", "", text))
    return " ".join(text.split())


def _ckan_of(master: Master, host: str) -> tuple[Mapping[str, Any], bool]:
    """What a minion's pillar says under ``ckan``, and whether that pillar renders as it is now."""
    pillar = master.pillar(host)
    errors = pillar.get("_errors")
    # What the master remembers of a pillar that does not render now: enough to tell another environment's host.
    ckan = (master.remembered_pillar(host) if errors else pillar).get("ckan") or {}
    return ckan if isinstance(ckan, dict) else {}, not errors


def _not_rendered(master: Master, env: str, hosts: list[str]) -> str:
    text = (
        f"the pillar of {', '.join(sorted(hosts))} does not render (see the master's log), so it cannot be told "
        f"what belongs to {env}; correct it"
    )
    # Salt's own message has the file only. All that there is to log was logged when it was rendered before.
    locked = sorted({key for host in hosts for key in ciphertext("", master.pillar(host, must_decrypt=False))})
    if locked:
        return f"{text}: the master has no key to decrypt {', '.join(locked)}"
    where = list(dict.fromkeys(_where(error) for host in hosts for error in master.pillar(host).get("_errors") or []))
    return "; ".join([text, *where])


def _where(error: Any) -> str:
    """File, line and what is wrong, of what Salt says of a pillar that does not render; never what is in the file."""
    head, *rest = str(error).partition("\n---")[0].strip().splitlines() or [""]
    found = re.search(r"Rendering SLS '([^']+)' failed", head)
    said = " ".join(rest)
    if not found or not said or "decrypt" in said:
        return head.partition(", render error")[0]
    line = re.findall(r"\bline (\d+)(?:, column \d+)?", said)
    # Salt's own way to name a line, and YAML's.
    what = re.sub(r";? line \d+$|\s*in \"<unicode string>\", line \d+, column \d+", "", said)
    return f"{found[1]}{f', line {line[-1]}' if line else ''}: {' '.join(what.split())[:LONGEST]}"
