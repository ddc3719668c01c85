"""
What the master can be asked about the hosts of an environment: where they stand, what a deploy would do, who holds
the lock. An answer with ``error`` is a complaint, and makes the exit code 1: ``salt-run`` takes it from ``retcode``.
"""

from __future__ import annotations

import difflib
import fnmatch
import os
import re
import time
from typing import Any

import salt.utils.event
import salt.utils.user

ASK_TIMEOUT = 20


def status(env: str) -> dict:
    """
    Say where each host stands: the release linked, the ones that its processes have loaded, the one that answers
    visitors, its workers, and how its last deploy went. And who keeps deploys out.

    env
        The name of the environment.

    Returns a table; with ``--out json`` ``{"env", "wanted", "lock", "hosts": {host: {"linked", "serving", "answers",
    "workers", "last", "wrong": [sentences]}}}``. The exit code is 1, and ``error`` says why, when a host does not
    answer, serves another release than the one that is linked, or the hosts disagree.

    CLI Example:

    .. code-block:: bash

        salt-run ckan.status production
        salt-run ckan.status production --out json
    """
    found = __salt__["ckan_hosts.targets"](env)
    if not found["ok"]:
        return _complain(found["comment"])
    told = __salt__["ckan_hosts.ask"](found["hosts"], "ckan_release.status", {"processes": True}, ASK_TIMEOUT)
    current = {host: row["current"] for host, row in told["results"].items() if host not in told["failures"]}
    wanted = __salt__["ckan_plan.remember"](env, current, sorted(told["failures"]))
    rows = {
        host: _row(told["results"][host], told["failures"].get(host, ""), wanted) for host in found["hosts"]
    }  # fmt: skip
    linked = {row["linked"] for row in rows.values()}
    wrong = [f"{host} {sentence}" for host, row in rows.items() for sentence in row["wrong"]]
    if len(linked - {""}) > 1:
        wrong.append("the hosts do not all serve one release")
    lock = __salt__["ckan_record.lock_of"](env)
    held = __salt__["ckan_record.sentence"](lock) if lock else f"{env} is not locked"
    trouble = {"error": "; ".join(wrong), "retcode": 1} if wrong else {}
    if __opts__.get("output"):
        shown = {name: lock[name] for name in __salt__["ckan_record.shown"]()} if lock else None
        return {"env": env, "wanted": wanted, "lock": shown, "hosts": rows, **trouble}
    table = [["host", "linked", "serving", "answers", "workers", "last stage", ""]]
    for host, row in rows.items():
        workers = ", ".join(f"{name} {what}" for name, what in row["workers"].items())
        serving = ", ".join(row["serving"])
        mark = " ".join(["!"] * bool(row["wrong"]) + ["in maintenance"] * ("maintenance" in row))
        table.append([host, row["linked"], serving, row["answers"], workers, row["last"], mark])
    return {env: _table(table) + f"wanted: {wanted or 'not known yet'}; {held}", **trouble}


def history(env: str, limit: int = 20) -> dict:
    """
    Say who deployed what and when, how long it took and how it went: from the logs of the hosts, newest first.

    env
        The name of the environment.
    limit
        How many deploys and rollbacks at most.

    Returns a table; with ``--out json`` ``{"env", "runs": [{"at", "kind", "release", "by", "hosts", "seconds",
    "result", "reason"}]}``. The exit code is 1 when a host does not answer.

    CLI Example:

    .. code-block:: bash

        salt-run ckan.history production limit=5
    """
    found = __salt__["ckan_hosts.targets"](env)
    if not found["ok"]:
        return _complain(found["comment"])
    # A run has about eight entries on each host.
    told = __salt__["ckan_hosts.ask"](found["hosts"], "ckan_release.history", {"limit": limit * 10}, ASK_TIMEOUT)
    logs = {host: log for host, log in told["results"].items() if host not in told["failures"]}
    runs = __salt__["ckan_runs.merge"](logs)[:limit]
    trouble = {}
    if told["failures"]:
        each = "; ".join(f"{host} {cause}" for host, cause in sorted(told["failures"].items()))
        trouble = {"error": f"not all logs are in it: {each}", "retcode": 1}
    if __opts__.get("output"):
        return {"env": env, "runs": runs, **trouble}
    rows = [["at", "what", "release", "by", "hosts", "seconds", "result"]]
    for run in runs:
        result = f"{run['result']}{': ' + run['reason'] if run['reason'] else ''}"
        rows.append(
            [run["at"], run["kind"], run["release"], run["by"], ", ".join(run["hosts"]), str(run["seconds"]), result]
        )
    return {env: _table(rows), **trouble}


def watch(env: str, timeout: int = 3600) -> dict:
    """
    Show a deploy or a rollback while it goes on, a line for each stage and host. Where none is under way the next one
    is waited for.

    env
        The name of the environment.
    timeout
        How long at most, in seconds.

    Returns how it ended. The exit code is 1 where it failed, or nothing was seen of an end in that time.

    CLI Example:

    .. code-block:: bash

        salt-run ckan.watch production
    """
    found = __salt__["ckan_hosts.targets"](env)
    if not found["ok"]:
        return _complain(found["comment"])
    deadline, tags = time.monotonic() + timeout, re.compile(rf"ckan/(deploy|rollback)/{re.escape(env)}/\w+")
    with salt.utils.event.get_master_event(__opts__, __opts__["sock_dir"], listen=True) as bus:
        lock = __salt__["ckan_record.lock_of"](env)
        print(__salt__["ckan_record.sentence"](lock) if lock else f"no run is under way for {env}", flush=True)
        ticket = __salt__["ckan_record.run_of"](env) if lock else None
        for span in ticket["spans"] if ticket and ticket["job"] == lock["job"] else []:
            print(__salt__["ckan_progress.line"]({**span, "comment": ""}), flush=True)
        while time.monotonic() < deadline:
            event = bus.get_event(wait=1, full=True)
            if not event or not tags.fullmatch(event["tag"]):
                continue
            told = event["data"]
            if told["stage"] in ("done", "way_back", "refused"):
                return {env: told["comment"]} if told["result"] == "ok" else _complain(told["comment"])
            if told["result"] != "started":
                print(__salt__["ckan_progress.line"](told), flush=True)
    return _complain(f"nothing was seen of the end of a run of {env} in {timeout} s; see salt-run ckan.status {env}")


def pending(
    env: str, extensions: dict | None = None, groups: Any = None, allow_down: list | None = None
) -> dict:  # fmt: skip
    """
    Say what a deploy would do now: the very plan that it would make. Nothing that is served is touched.

    env
        The name of the environment.
    extensions, groups, allow_down
        As for a deploy.

    Returns ``{"release", "changes": [sentences], "extensions": {name: what}, "hosts": {host: {"current", "free_mb",
    "needed_mb", "prunes"}}, "groups", "down", "last": how long the last one took}``.

    CLI Example:

    .. code-block:: bash

        salt-run ckan.pending production
    """
    about = {"extensions": extensions, "groups": groups, "allow_down": allow_down}
    planned = __salt__["ckan_fleet.plan"](env, dry_run=True, **about)
    if not planned["ok"]:
        return _complain(planned["comment"])
    return {key: value for key, value in planned.items() if key not in ("ok", "comment")}


def encrypt(env: str, key: str, recipients: str = "") -> dict | str:
    """
    Encrypt a secret for the pillar. It is read from standard input, or asked for at the terminal.

    env
        The name of the environment.
    key
        The setting, such as ``database:password`` or ``extensions:ckanext-mycity:token``.
    recipients
        Keys to encrypt for, with commas between; by default all in the master's key ring that can be used.

    Returns the lines of YAML to paste.

    CLI Example:

    .. code-block:: bash

        salt-run ckan.encrypt production database:password
        openssl rand -hex 32 | salt-run ckan.encrypt production secrets:session
    """
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", str(env)):
        return _complain(f"{env!r} cannot be the name of an environment")
    key = str(key).removeprefix("ckan:")
    # Salt's own way from a runner to an execution module.
    names = __salt__["salt.cmd"]("ckan_settings.secret_names")
    if not isinstance(names, list):
        return _complain("the master does not know the formula's modules; type: salt-run saltutil.sync_all")
    if not any(fnmatch.fnmatchcase(key, name) and key.count(":") == name.count(":") for name in names):
        near = difflib.get_close_matches(key, names, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        return _complain(f"{key} is not a secret setting{hint}; the secret ones are {', '.join(names)}")
    try:
        secret = __salt__["ckan_secret.read"](f"{key} of {env}")
        block = __salt__["ckan_secret.block"](key, secret, [name for name in recipients.split(",") if name])
    except ValueError as exc:
        return _complain(str(exc))
    return f"# Into the secrets of {env}: a file of its pillar whose first line is #!yaml|gpg\n{block}"


def maintenance(env: str, state: str, reason: str = "") -> dict:
    """
    Turn maintenance on or off on all hosts of an environment: visitors get a page and status 503.

    env
        The name of the environment.
    state
        ``on`` or ``off``.
    reason
        Why; for those who ask, not for visitors.

    Returns ``{"hosts": {host: {"on": bool, ...}}}``, with ``error`` when a host did not do it.

    CLI Example:

    .. code-block:: bash

        salt-run ckan.maintenance production on reason='the database moves'
        salt-run ckan.maintenance production off
    """
    # YAML reads on and off, without quotes, as yes and no.
    wanted = {True: "on", False: "off"}.get(state, state)
    if wanted not in ("on", "off"):
        return _complain(f"{state!r} is neither on nor off")
    found = __salt__["ckan_hosts.targets"](env)
    if not found["ok"]:
        return _complain(found["comment"])
    about = {"by": salt.utils.user.get_specific_user(), **({"reason": reason} if wanted == "on" else {})}
    told = __salt__["ckan_hosts.ask"](found["hosts"], f"ckan_maintenance.{wanted}", about)
    if told["failures"]:
        each = "; ".join(f"{host}: {cause}" for host, cause in sorted(told["failures"].items()))
        return {"hosts": told["results"], **_complain(f"not all hosts are {wanted}: {each}")}
    return {"hosts": told["results"]}


def lock(env: str, reason: str) -> dict | str:
    """
    Keep deploys and rollbacks of an environment out until ``ckan.unlock``: by orchestrations, and on each host.

    env
        The name of the environment.
    reason
        Why; shown to whoever is kept out.

    CLI Example:

    .. code-block:: bash

        salt-run ckan.lock production reason='election night'
    """
    found = __salt__["ckan_hosts.targets"](env)
    if not found["ok"]:
        return _complain(found["comment"])
    taken = __salt__["ckan_record.take"](env, "lock", "by hand", str(reason))
    if not taken["ok"]:
        return _complain(taken["comment"])
    return f"{env} is locked; free it with: salt-run ckan.unlock {env}"


def unlock(env: str, force: bool = False) -> dict | str:
    """
    Free the lock of an environment, whoever holds it. Where that is a run that died, its hosts are brought together
    first. The lock of a run that is still at work is kept: that run needs it to find its way back.

    env
        The name of the environment.
    force
        Free it in any case, and touch no host.

    CLI Example:

    .. code-block:: bash

        salt-run ckan.unlock production
    """
    problem = _no_environment(env)
    if problem:
        return _complain(problem)
    held = __salt__["ckan_record.lock_of"](env)
    if not held:
        return f"{env} is not locked"
    was = __salt__["ckan_record.sentence"](held)
    if not force and held["kind"] != "lock":
        if not __salt__["ckan_record.stale"](held):
            return _complain(f"{was} and is still at work; wait for it, or repeat with force=True")
        done = __salt__["ckan_fleet.recover"](env)
        if not done["ok"]:
            return _complain(f"{was} -- {done['comment']} -- then repeat, or free it all the same with force=True")
        return f"freed: {was} -- {done['comment']}"
    __salt__["ckan_record.free"](env)
    return f"freed: {was}"


def lock_status(env: str) -> dict | str:
    """
    Say who holds the lock of an environment, since when, why, and whether that run is still alive.

    env
        The name of the environment.

    CLI Example:

    .. code-block:: bash

        salt-run ckan.lock_status production
    """
    problem = _no_environment(env)
    if problem:
        return _complain(problem)
    held = __salt__["ckan_record.lock_of"](env)
    return __salt__["ckan_record.sentence"](held) if held else f"{env} is not locked"


def _no_environment(env: Any) -> str:
    """A sentence for a name that no host belongs to; one that the master has a record of needs no look at the hosts."""
    try:
        known = os.path.isdir(__salt__["ckan_record.folder"](env, make=False))
    except ValueError as exc:
        return str(exc)
    return "" if known else __salt__["ckan_hosts.targets"](env)["comment"]


def _row(row: Any, failure: str, wanted: str) -> dict:
    """What the status says of one host, and what is wrong with it."""
    if failure:
        return {"linked": "", "serving": [], "answers": failure, "workers": {}, "last": "", "wrong": [failure]}
    linked, last = row["current"], row["last"]
    wrong = []
    if row["answers"] != linked:
        wrong.append(f"is linked to {linked or 'no release'}, but {row['answers'] or 'nothing'} answers")
    if wanted and linked != wanted:
        wrong.append(f"is on {linked or 'no release'}, the environment on {wanted}")
    wrong += [
        f"has worker {name} on {what}" for name, what in row["workers"].items() if what != linked
    ]  # fmt: skip
    told = f"{last['stage']} {last['result']} {last['at']}" if last else "none"
    return {
        "linked": linked, "serving": row["serving"], "answers": row["answers"], "workers": row["workers"],
        "last": told, "wrong": wrong, **({"maintenance": row["maintenance"]} if "maintenance" in row else {}),
    }  # fmt: skip


def _table(rows: list[list[str]]) -> str:
    """Columns as wide as what is in them; what is long stands last."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "".join(f"{line}\n" for line in lines)


def _complain(sentence: str) -> dict:
    return {"error": sentence, "retcode": 1}
