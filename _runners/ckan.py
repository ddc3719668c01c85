"""
What the master can be asked about the hosts of an environment: where they stand, what a deploy would do, who holds
the lock. An answer with ``error`` is a complaint, and makes the exit code 1: ``salt-run`` takes it from ``retcode``.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import os
import re
import time
from typing import Any

import salt.client
import salt.utils.user


def status(env: str) -> dict:
    """
    Say where each host stands: the release linked, the one that answers, the app servers that run.

    env
        The name of the environment.

    Returns ``{"hosts": {host: {"current", "state", "running", "answers"}}}``. The exit code is 1 when a host does not
    answer, serves another release than the one that is linked, or the hosts disagree.

    CLI Example:

    .. code-block:: bash

        salt-run ckan.status production
    """
    found = __salt__["ckan_hosts.targets"](env)
    if not found["ok"]:
        return _complain(found["comment"])
    with salt.client.get_local_client(mopts=__opts__) as client:
        answers = client.cmd(found["hosts"], "ckan_release.status", tgt_type="list", timeout=10)
    rows: dict[str, Any] = {}
    for host in found["hosts"]:
        row = answers.get(host)
        silent = not row or str(row).startswith("Minion did not return")
        rows[host] = "does not answer; start its salt-minion" if silent else row
    linked = {row["current"] if isinstance(row, dict) else None for row in rows.values()}
    honest = all(isinstance(row, dict) and row["answers"] == row["current"] for row in rows.values())
    if len(linked) > 1 or not honest:
        return {"hosts": rows, **_complain("the hosts do not all serve one release; see the rows")}
    return {"hosts": rows}


def pending(env: str, extensions: dict | None = None) -> dict:
    """
    Say what a deploy would build now, and what that changes. Nothing that is served is touched.

    env
        The name of the environment.
    extensions
        What would differ from the pillar, as for a deploy.

    Returns ``{"release", "hosts", "extensions": {name: what}, "changes": [sentences]}``.

    CLI Example:

    .. code-block:: bash

        salt-run ckan.pending production
    """
    planned = __salt__["ckan_fleet.plan"](env, extensions=extensions, dry_run=True)
    if not planned["ok"]:
        return _complain(planned["comment"])
    return {key: planned[key] for key in ("release", "hosts", "extensions", "changes")}


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
    Keep deploys and rollbacks of an environment out until ``ckan.unlock``.

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
    path = _file(env)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    held = {"env": env, "kind": "lock", "by": salt.utils.user.get_specific_user(), "since": since, "reason": reason}
    try:
        with open(path, "x", encoding="utf-8") as handle:
            json.dump({**held, "job": "a lock by hand"}, handle)
    except FileExistsError:
        return _complain(lock_status(env))
    return f"{env} is locked; free it with: salt-run ckan.unlock {env}"


def unlock(env: str, force: bool = False) -> dict | str:
    """
    Free the lock of an environment, whoever holds it. The lock of a run that is still at work is kept: that run needs
    it to find its way back.

    env
        The name of the environment.
    force
        Free that one, too.

    CLI Example:

    .. code-block:: bash

        salt-run ckan.unlock production
    """
    was = lock_status(env)
    held = _read(env)
    if held and not force and os.path.exists(f"/proc/{held.get('pid') or 'none'}"):
        return _complain(f"{was} and is still at work; wait for it, or repeat with force=True")
    if os.path.exists(_file(env)):
        os.unlink(_file(env))
        return f"freed: {was}"
    return was


def lock_status(env: str) -> str:
    """
    Say who holds the lock of an environment, since when and why.

    env
        The name of the environment.

    CLI Example:

    .. code-block:: bash

        salt-run ckan.lock_status production
    """
    held = _read(env)
    if not held:
        return f"{env} is not locked"
    why = f": {held['reason']}" if held.get("reason") else ""
    return f"{env} is locked by {held['by']} since {held['since']} ({held['kind']}{why})"


def _complain(sentence: str) -> dict:
    return {"error": sentence, "retcode": 1}


def _read(env: str) -> dict | None:
    try:
        with open(_file(env), encoding="utf-8") as handle:
            return json.load(handle)
    except (FileNotFoundError, ValueError):
        return None


def _file(env: str) -> str:
    return os.path.join(__opts__["cachedir"], "ckan", f"{os.path.basename(str(env))}.json")
