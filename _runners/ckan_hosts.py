"""
The hosts of an environment: which they are, and what they answer.

They are the accepted minions whose pillar names the environment, never the ones that happen to answer: Salt leaves a
minion that is down out of its answers without a word.
"""

from __future__ import annotations

import contextlib
import logging
import re
from typing import Any

import salt.client
import salt.key
import salt.pillar
import salt.utils.minions

TIMEOUT = 30
PGP_BLOCK = re.compile(r"-----BEGIN PGP.*?-----END PGP [A-Z ]+-----", re.S)


def targets(env: Any) -> dict:
    """
    Return the hosts of an environment: the accepted minions whose pillar says ``ckan:env: ENV``.

    env
        The name of the environment.

    Returns ``{"ok", "comment", "hosts": [minion ids]}``.

    CLI Example:

    .. code-block:: bash

        salt-run ckan_hosts.targets production
    """
    if not env:
        return _no("the pillar names no environment; type pillar='{env: production}' (with a blank after the colon)")
    if not isinstance(env, str):
        return _no(f"env must be the name of one environment, not {env!r}")
    accepted = salt.key.get_key(__opts__).list_keys()["minions"]
    by_env: dict[str, list[str]] = {}
    broken = []
    for host in accepted:
        name, rendered = _environment_of(host)
        if isinstance(name, str) and name:
            by_env.setdefault(name, []).append(host)
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
        return {"ok": True, "comment": "", "hosts": sorted(by_env[env])}
    known = "; ".join(f"{name}: {', '.join(sorted(hosts))}" for name, hosts in sorted(by_env.items()))
    comment = f"no accepted minion has ckan:env: {env} in its pillar; environments known: {known or 'none'}"
    return _no(comment)


def ask(hosts: list[str], function: str, kwargs: dict | None = None, timeout: int = TIMEOUT) -> dict:
    """
    Call a function on every host, and wait for each of them.

    hosts
        Ids of minions.
    function
        A function of an execution module.
    kwargs
        Its arguments. Never a secret: arguments are kept in the job cache.
    timeout
        Seconds to wait.

    Returns ``{"results": {host: answer}, "failures": {host: sentence}}``.

    CLI Example: not for the command line; use ``salt``.
    """
    with salt.client.get_local_client(mopts=__opts__) as client:
        answers = client.cmd(hosts, function, kwarg=kwargs or {}, tgt_type="list", timeout=timeout, full_return=True)
    results, failures = {}, {}
    for host in hosts:
        answer = answers.get(host)
        if not isinstance(answer, dict):
            failures[host] = "does not answer; start its salt-minion, then repeat"
            continue
        results[host] = answer.get("ret")
        if str(results[host]).startswith("Minion did not return"):
            failures[host] = "does not answer; start its salt-minion, then repeat"
        elif answer.get("retcode", 0) != 0:
            failures[host] = _sentence(answer.get("ret"), function, host)
    return {"results": results, "failures": failures}


def _sentence(text: Any, function: str, host: str) -> str:
    text = str(text).strip()
    if "is not available" in text and function in text:
        return f"does not know {function}; type: salt {host} saltutil.sync_all"
    if "Traceback (most recent call last)" in text:
        # A fault of the formula itself: its last line says what, the minion's log has the rest.
        return text.splitlines()[-1] + " (see the minion's log)"
    return " ".join(re.sub(r"^ERROR( executing '[\w.]+')?: ", "", text).split())


def _environment_of(host: str) -> tuple[str, bool]:
    """The environment that a minion's pillar names, '' for none, and whether that pillar renders as it is now."""
    _, _, known = salt.utils.minions.get_minion_data(host, __opts__)
    pillar = _pillar(host, __opts__)
    errors = pillar.get("_errors")
    # What the master remembers of a pillar that does not render now: enough to tell another environment's host.
    ckan = ((known if errors else pillar) or {}).get("ckan") or {}
    return (ckan.get("env") or "") if isinstance(ckan, dict) else "", not errors


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
