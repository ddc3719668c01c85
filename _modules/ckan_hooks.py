"""
Hooks: what the pillar wants done before and after a stage. A function of an execution module, or an SLS.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_hooks"

WORDS = ("release", "previous", "env", "host", "stage")
log = logging.getLogger(__name__)


def __virtual__() -> str:
    return __virtualname__


def problems(settings: dict) -> list[str]:
    """
    Say which hooks cannot run on this host: a function or an SLS that is not there.

    settings
        The settings.

    Returns a list of sentences, empty when all is well.

    CLI Example: not for the command line; ``ckan_release.plan`` uses it.
    """
    found = []
    for index, hook in enumerate(settings["hooks"]):
        if hook["function"] and hook["function"] not in __salt__:
            found.append(f"ckan:hooks:{index} names the function {hook['function']}, which this host does not have")
        # It is rendered for that, and may want to know what it is about.
        blank = {"ckan_hook": dict.fromkeys(WORDS, "")}
        if hook["state"] and not __salt__["state.sls_exists"](hook["state"], pillar=blank):
            found.append(f"ckan:hooks:{index} names the state {hook['state']}, which is not there or does not render")
    return [f"{sentence}; correct it" for sentence in found]


def run(when: str, stage: str, settings: dict, release: str, previous: str = "") -> list[dict]:
    """
    Run the hooks of a stage, in the order of the pillar.

    when
        ``before`` or ``after``.
    stage
        The stage.
    settings
        The settings.
    release, previous
        The release that the stage is about, and the one that is current.

    Returns what was run: ``[{"hook", "seconds", "problem"}]``, the problem ``""`` or that of a hook whose failure is a
    warning. Raises ``CommandExecutionError`` for the first other one that fails: one ``before`` a stage always, one
    ``after`` it with ``on_failure: stop``.

    CLI Example: not for the command line; the stages of ``ckan_release`` use it.
    """
    done = []
    words = dict(zip(WORDS, (release, previous, settings["env"], __opts__["id"], stage), strict=True))
    for hook in settings["hooks"]:
        if (hook["when"], hook["stage"]) != (when, stage):
            continue
        name = f"hook {when} {stage} ({hook['function'] or hook['state']})"
        begun = time.monotonic()
        problem = _problem(hook, words, settings)
        if problem and (when == "before" or hook["on_failure"] == "stop"):
            raise CommandExecutionError(f"{name} failed: {problem}; correct it, or ckan:hooks")
        if problem:
            log.warning("%s failed: %s", name, problem)
        done.append({"hook": name, "seconds": round(time.monotonic() - begun, 3), "problem": problem})
    return done


def _problem(hook: dict, words: dict[str, str], settings: dict) -> str:
    """Run one; returns what went wrong in a line, or ''."""
    # A program that fails leaves its exit code here, and Salt would take it for that of the whole stage.
    before = __context__.pop("retcode", 0)
    try:
        if hook["state"]:
            # Not stopped by a highstate that a first deploy is part of.
            answer = __salt__["state.apply"](hook["state"], pillar={"ckan_hook": words}, concurrent=True)
            return _failed_states(answer, settings)
        answer = __salt__[hook["function"]](*_filled(hook["args"], words), **_filled(hook["kwargs"], words))
        code = __context__.get("retcode", 0) or (answer.get("retcode", 0) if isinstance(answer, dict) else 0)
        if answer is False:
            return "it returned False"
        return f"exit code {code}: {_line(answer, settings)}" if code else ""
    except Exception as exc:  # whatever a function of somebody else's raises
        return _line(exc, settings) or type(exc).__name__
    finally:
        __context__["retcode"] = before


def _failed_states(answer: Any, settings: dict) -> str:
    if not isinstance(answer, dict):
        return _line(answer, settings)  # what does not render is told in a list of sentences
    failed = [state for state in answer.values() if not isinstance(state, dict) or state.get("result") is False]
    if not failed:
        return ""
    first = failed[0]
    if not isinstance(first, dict):
        return "a state"
    return f"{first.get('__id__', 'a state')}: {_line(first.get('comment', ''), settings)}"


def _filled(value: Any, words: dict[str, str]) -> Any:
    """Arguments with {release} and the like filled in; other braces stay as they are."""
    if isinstance(value, dict):
        return {key: _filled(inner, words) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, words) for inner in value]
    if isinstance(value, str):
        for name, word in words.items():
            value = value.replace(f"{{{name}}}", word)
    return value


def _line(said: Any, settings: dict) -> str:
    if isinstance(said, dict):
        said = said.get("stderr") or said.get("stdout") or said.get("comment") or said
    text = " ".join(str(item) for item in said) if isinstance(said, list) else str(said)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return __salt__["ckan_mask.text"](lines[-1], settings) if lines else ""
