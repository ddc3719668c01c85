"""
The hosts of an environment: which they are, and what they answer.

They are the accepted minions whose pillar names the environment, never the ones that happen to answer: Salt leaves a
minion that is down out of its answers without a word.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterable
from typing import Any

import salt.client
import salt.fileserver
import salt.key
import salt.pillar
import salt.utils.minions
from salt.exceptions import SaltException

TIMEOUT = 30
NO_RETURN = "Minion did not return"
MODULE = re.compile(r"_modules/ckan_\w+\.py")
PGP_BLOCK = re.compile(r"-----BEGIN PGP.*?-----END PGP [A-Z ]+-----", re.S)


def targets(env: Any) -> dict:
    """
    Return the hosts of an environment: the accepted minions whose pillar says ``ckan:env: ENV``.

    env
        The name of the environment.

    Returns ``{"ok", "comment", "hosts": [minion ids], "groups": {host: its ckan:deploy_group}}``.

    CLI Example:

    .. code-block:: bash

        salt-run ckan_hosts.targets production
    """
    if not env:
        return _no("the pillar names no environment; type pillar='{env: production}' (with a blank after the colon)")
    if not isinstance(env, str):
        return _no(f"env must be the name of one environment, not {env!r}")
    accepted = salt.key.get_key(__opts__).list_keys()["minions"]
    by_env: dict[str, dict[str, str]] = {}
    broken = []
    for host in accepted:
        ckan, rendered = _ckan_of(host)
        name = ckan.get("env") or ""
        if isinstance(name, str) and name:
            by_env.setdefault(name, {})[host] = str(ckan.get("deploy_group") or "")
        if not rendered and name in ("", env):
            broken.append(host)
    if broken:
        # A host that may belong to it must not be left behind in silence.
        text = (
            f"the pillar of {', '.join(sorted(broken))} does not render (see the master's log), so it cannot be told "
        )
        text += f"what belongs to {env}; correct it"
        locked = sorted({key for host in broken for key in _undecryptable(host)})
        return _no(f"{text}: the master has no key to decrypt {', '.join(locked)}" if locked else text)
    if env in by_env:
        return {"ok": True, "comment": "", "hosts": sorted(by_env[env]), "groups": by_env[env]}
    known = "; ".join(f"{name}: {', '.join(sorted(hosts))}" for name, hosts in sorted(by_env.items()))
    comment = f"no accepted minion has ckan:env: {env} in its pillar; environments known: {known or 'none'}"
    return _no(comment)


def in_groups(groups: Any, hosts: list[str], members: dict[str, str]) -> dict:
    """
    Say in which groups, one after the other, a deploy goes over hosts.

    groups
        A list of names, each a ``ckan:deploy_group``, a host, or ``rest`` for all others; or a number of hosts.
    hosts
        The hosts.
    members
        Which group each host is in.

    Returns ``{"ok", "comment", "groups": [{"name", "hosts"}]}``; a group without hosts is left out.

    CLI Example: not for the command line; ``orch.deploy`` uses it.
    """
    if not groups:
        return {"ok": True, "comment": "", "groups": [{"name": "", "hosts": hosts}]}
    if isinstance(groups, int) and not isinstance(groups, bool) and groups > 0:
        parts = [hosts[at : at + groups] for at in range(0, len(hosts), groups)]
        return {"ok": True, "comment": "", "groups": [{"name": ", ".join(part), "hosts": part} for part in parts]}
    if not isinstance(groups, list) or not all(isinstance(name, str) for name in groups):
        return _no(f"groups must be a list of names, such as [canary, rest], or a number of hosts, not {groups!r}")
    known = sorted({*members.values(), *members, "rest"} - {""})
    for name in groups:
        if name not in known or groups.count(name) > 1:
            what = "stands twice in groups" if name in known else f"is no group, nor a host{near(name, known)}"
            return _no(f"{name} {what}; there are {', '.join(known)}")
    named = {name: [host for host in hosts if name in (host, members.get(host))] for name in groups if name != "rest"}
    taken = [host for part in named.values() for host in part]
    twice = sorted({host for host in taken if taken.count(host) > 1})
    rest = [host for host in hosts if host not in taken]
    if twice:
        return _no(f"{', '.join(twice)} would be in two groups; name each host once")
    if rest and "rest" not in groups:
        return _no(f"{', '.join(rest)} would be in no group; add rest to groups")
    found = [{"name": name, "hosts": rest if name == "rest" else named[name]} for name in groups]
    return {"ok": True, "comment": "", "groups": [group for group in found if group["hosts"]]}


def steps(env: Any, groups: Any = None) -> list[str]:
    """
    Return the names of the groups of a deploy, for the steps of ``orch/deploy.sls``; one empty name for no groups, and
    where something is wrong: the stage plan says what.

    env
        The name of the environment.
    groups
        As for ``in_groups``.

    CLI Example: not for the command line; ``orch.deploy`` uses it.
    """
    if groups:
        found = targets(env)
        if found["ok"]:
            parts = in_groups(groups, found["hosts"], found["groups"])
            if parts["ok"]:
                return [part["name"] for part in parts["groups"]]
    return [""]


def ask(
    hosts: list[str], function: str, kwargs: dict | None = None, timeout: int = TIMEOUT,
    told: Callable[[str, str, float], None] | None = None,
) -> dict:  # fmt: skip
    """
    Call a function on every host, and wait for each of them.

    hosts
        Ids of minions.
    function
        A function of an execution module.
    kwargs
        Its arguments. Never a secret: arguments are kept in the job cache.
    timeout
        Seconds after which a host is asked whether it is still at it.
    told
        Called with each host as its answer comes: host, why it failed or ``''``, seconds.

    Returns ``{"results": {host: answer}, "failures": {host: sentence}}``.

    CLI Example: not for the command line; use ``salt``.
    """
    results: dict[str, Any] = {}
    failures: dict[str, str] = {}
    begun = time.monotonic()

    def note(host: str, answer: Any) -> None:
        failed = ""
        if not isinstance(answer, dict) or "ret" not in answer or str(answer["ret"]).startswith(NO_RETURN):
            failed = "does not answer; start its salt-minion, then repeat"
        elif answer.get("retcode", 0) != 0:
            failed = _sentence(answer["ret"], function, host)
        results[host] = answer.get("ret") if isinstance(answer, dict) else None
        if failed:
            failures[host] = failed
        if told:
            told(host, failed, time.monotonic() - begun)

    problem = ""
    if hosts:
        try:
            with salt.client.get_local_client(mopts=__opts__) as client:
                answers = client.cmd_iter(hosts, function, kwarg=kwargs or {}, tgt_type="list", timeout=timeout)
                for answer in answers:
                    for host in [host for host in (answer or {}) if host in hosts and host not in results]:
                        note(host, answer[host])
        except SaltException as exc:
            problem = f"the master does not take jobs ({str(exc).strip() or type(exc).__name__}); start salt-master"
    for host in [host for host in hosts if host not in results]:
        note(host, {"ret": problem, "retcode": 1} if problem else None)
    return {"results": results, "failures": failures}


def version() -> str:
    """
    Return a hash of the formula's execution modules as they are in the master's file server, as
    ``ckan_version.modules`` makes it of those that a minion has.

    CLI Example:

    .. code-block:: bash

        salt-run ckan_hosts.version
    """
    server = salt.fileserver.Fileserver(__opts__)
    server.update()
    digest = hashlib.sha256()
    names = [name for name in server.file_list({"saltenv": "base", "prefix": "_modules"}) if MODULE.fullmatch(name)]
    for name in sorted(names):
        found = server.find_file(name, "base")
        with open(found["path"], "rb") as handle:
            digest.update(f"{name.rpartition('/')[2]} {hashlib.sha256(handle.read()).hexdigest()}\n".encode())
    return digest.hexdigest() if names else ""


def near(name: str, known: Iterable[str]) -> str:
    """
    Return `` (did you mean X?)`` for a name that is close to a known one, else ``''``.

    name
        What was given.
    known
        The names that there are.

    CLI Example: not for the command line.
    """
    found = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def _sentence(text: Any, function: str, host: str) -> str:
    text = str(text).strip()
    if "is not available" in text and function in text:
        return f"does not know {function}; type: salt {host} saltutil.sync_all"
    if "Traceback (most recent call last)" in text:
        # A fault of the formula itself: its last line says what, the minion's log has the rest.
        return text.splitlines()[-1] + " (see the minion's log)"
    return " ".join(re.sub(r"^ERROR( executing '[\w.]+')?: ", "", text).split())


def _ckan_of(host: str) -> tuple[dict, bool]:
    """What a minion's pillar says under ``ckan``, and whether that pillar renders as it is now."""
    _, _, known = salt.utils.minions.get_minion_data(host, __opts__)
    pillar = _pillar(host, __opts__)
    errors = pillar.get("_errors")
    # What the master remembers of a pillar that does not render now: enough to tell another environment's host.
    ckan = ((known if errors else pillar) or {}).get("ckan") or {}
    return ckan if isinstance(ckan, dict) else {}, not errors


def _undecryptable(host: str) -> list[str]:
    """The keys of a pillar that the master cannot decrypt: Salt's own message has the file only."""
    # All that there is to log was logged when it was rendered before.
    logging.disable(logging.CRITICAL)
    try:
        return _ciphertext("", _pillar(host, {**__opts__, "gpg_decrypt_must_succeed": False}))
    finally:
        logging.disable(logging.NOTSET)


def _pillar(host: str, opts: dict) -> dict:
    """The pillar of a minion as the master renders it now."""
    _, grains, _ = salt.utils.minions.get_minion_data(host, opts)
    with _blocks_shortened():
        return salt.pillar.Pillar(opts, grains or {"fqdn": host}, host, "base").compile_pillar()


@contextlib.contextmanager
def _blocks_shortened():
    """Salt writes the whole of a block that it cannot decrypt to the terminal, more than once; a word will do."""

    def shorten(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if "-----BEGIN PGP" in message:
            record.msg, record.args = PGP_BLOCK.sub("(encrypted)", message), ()
            record.exc_info = record.exc_text = None
        return True

    handlers = list(logging.root.handlers)
    for handler in handlers:
        handler.addFilter(shorten)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(shorten)


def _ciphertext(key: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        return [found for name, inner in value.items() for found in _ciphertext(f"{key}:{name}".strip(":"), inner)]
    if isinstance(value, list):
        return [found for index, inner in enumerate(value) for found in _ciphertext(f"{key}:{index}", inner)]
    return [key] if isinstance(value, str) and "-----BEGIN PGP" in value else []


def _no(comment: str) -> dict:
    return {"ok": False, "comment": comment}
