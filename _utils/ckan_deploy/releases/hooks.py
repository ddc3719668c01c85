"""Hooks: what the pillar wants done before and after a stage. A function of an execution module, or an SLS."""

from __future__ import annotations

import logging
import time
from typing import Any

from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.site import Site
from ckan_deploy.settings import mask
from ckan_deploy.settings.parts import Hook

WORDS = ("release", "previous", "env", "host", "stage")
log = logging.getLogger(__name__)


def problems(site: Site) -> list[str]:
    """
    Say which hooks cannot run on this host: a function or an SLS that is not there.

    site
        The site.

    Returns a list of sentences, empty when all is well.
    """
    found = []
    for index, hook in enumerate(site.settings.hooks):
        if hook.function and not site.host.has(hook.function):
            found.append(f"ckan:hooks:{index} names the function {hook.function}, which this host does not have")
        # It is rendered for that, and may want to know what it is about.
        blank = {"ckan_hook": dict.fromkeys(WORDS, "")}
        if hook.state and not site.host.call("state.sls_exists", hook.state, pillar=blank)[0]:
            found.append(f"ckan:hooks:{index} names the state {hook.state}, which is not there or does not render")
    return [f"{sentence}; correct it" for sentence in found]


def run(site: Site, when: str, stage: str, release: str, previous: str = "") -> list[dict[str, Any]]:
    """
    Run the hooks of a stage, in the order of the pillar.

    site
        The site.
    when
        ``before`` or ``after``.
    stage
        The stage.
    release, previous
        The release that the stage is about, and the one that is current.

    Returns what was run: ``[{"hook", "seconds", "problem"}]``, the problem '' or that of a hook whose failure is a
    warning. Raises ``FormulaError`` for the first other one that fails: one ``before`` a stage always, one ``after`` it
    with ``on_failure: stop``.
    """
    done = []
    words = dict(zip(WORDS, (release, previous, site.settings.env, site.host.id, stage), strict=True))
    for hook in site.settings.hooks:
        if (hook.when, hook.stage) != (when, stage):
            continue
        name = f"hook {when} {stage} ({hook.function or hook.state})"
        begun = time.monotonic()
        problem = _problem(site, hook, words)
        if problem and (when == "before" or hook.on_failure == "stop"):
            raise FormulaError(f"{name} failed: {problem}; correct it, or ckan:hooks")
        if problem:
            log.warning("%s failed: %s", name, problem)
        done.append({"hook": name, "seconds": round(time.monotonic() - begun, 3), "problem": problem})
    return done


def _problem(site: Site, hook: Hook, words: dict[str, str]) -> str:
    """Run one; returns what went wrong in a line, or ''."""
    try:
        if hook.state:
            # Not stopped by a highstate that a first deploy is part of.
            answer, _ = site.host.call("state.apply", hook.state, pillar={"ckan_hook": words}, concurrent=True)
            return _failed_states(answer, site)
        answer, code = site.host.call(hook.function, *_filled(hook.args, words), **_filled(hook.kwargs, words))
        code = code or (answer.get("retcode", 0) if isinstance(answer, dict) else 0)
        if answer is False:
            return "it returned False"
        return f"exit code {code}: {_line(answer, site)}" if code else ""
    except Exception as exc:  # whatever a function of somebody else's raises
        return _line(exc, site) or type(exc).__name__


def _failed_states(answer: Any, site: Site) -> str:
    if not isinstance(answer, dict):
        return _line(answer, site)  # what does not render is told in a list of sentences
    failed = [state for state in answer.values() if not isinstance(state, dict) or state.get("result") is False]
    if not failed:
        return ""
    first = failed[0]
    if not isinstance(first, dict):
        return "a state"
    return f"{first.get('__id__', 'a state')}: {_line(first.get('comment', ''), site)}"


def _filled(value: Any, words: dict[str, str]) -> Any:
    """Arguments with {release} and the like filled in; other braces stay as they are."""
    if isinstance(value, dict):
        return {key: _filled(inner, words) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_filled(inner, words) for inner in value]
    if isinstance(value, str):
        for name, word in words.items():
            value = value.replace(f"{{{name}}}", word)
    return value


def _line(said: Any, site: Site) -> str:
    if isinstance(said, dict):
        said = said.get("stderr") or said.get("stdout") or said.get("comment") or said
    text = " ".join(str(item) for item in said) if isinstance(said, list) else str(said)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return mask.text(lines[-1], site.settings) if lines else ""
