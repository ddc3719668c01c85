"""Hooks: what the pillar wants done before and after a stage. A function of an execution module, or an SLS."""

from __future__ import annotations

import logging
import re
import time
from typing import Any

from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.site import Site
from ckan_deploy.settings import mask
from ckan_deploy.settings.parts import Hook

# The stage that reverts a failed deploy: nothing may keep it from being done.
REVERT = "abort"
WORDS = ("release", "previous", "env", "host", "stage")
# What a token is made of, and from which length on it can be one.
_WORD, LONG = re.compile(r"[\w.+/~-]+"), 12
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


def there(site: Site, stage: str) -> bool:
    """
    Say whether a stage has hooks.

    site
        The site.
    stage
        The stage.
    """
    return any(hook.stage == stage for hook in site.settings.hooks)


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
    with ``on_failure: stop``. None of them stops a revert.
    """
    done = []
    words = dict(zip(WORDS, (release, previous, site.settings.env, site.host.id, stage), strict=True))
    for hook in site.settings.hooks:
        if (hook.when, hook.stage) != (when, stage):
            continue
        name = f"hook {when} {stage} ({hook.function or hook.state})"
        begun = time.monotonic()
        problem = _problem(site, hook, words)
        if problem and stage != REVERT and (when == "before" or hook.on_failure == "stop"):
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
            return _failed_states(answer, hook, site)
        answer, code = site.host.call(hook.function, *_filled(hook.args, words), **_filled(hook.kwargs, words))
        code = code or (answer.get("retcode", 0) if isinstance(answer, dict) else 0)
        if answer is False:
            return "it returned False"
        return f"exit code {code}: {_line(answer, hook, site)}" if code else ""
    except Exception as exc:  # whatever a function of somebody else's raises
        return _line(exc, hook, site) or type(exc).__name__


def _failed_states(answer: Any, hook: Hook, site: Site) -> str:
    if not isinstance(answer, dict):
        return _line(answer, hook, site)  # what does not render is told in a list of sentences
    failed = [state for state in answer.values() if not isinstance(state, dict) or state.get("result") is False]
    if not failed:
        return ""
    first = failed[0]
    if not isinstance(first, dict):
        return "a state"
    return f"{first.get('__id__', 'a state')}: {_line(first.get('comment', ''), hook, site)}"


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


def _line(said: Any, hook: Hook, site: Site) -> str:
    """The last line of what a hook said, without secrets and without its arguments, which an error may quote."""
    if isinstance(said, dict):
        said = said.get("stderr") or said.get("stdout") or said.get("comment") or "it said nothing"
    text = " ".join(str(item) for item in said) if isinstance(said, list) else str(said)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    for argument in sorted(_texts([hook.args, hook.kwargs]), key=len, reverse=True):
        last = last.replace(argument, mask.MASK)
    return mask.text(last, site.settings)


def _texts(value: Any) -> set[str]:
    """The texts in arguments that are long enough to be found; of a command also its words that look like a secret."""
    if isinstance(value, dict):
        return _texts(list(value.values()))
    if isinstance(value, (list, tuple)):
        return set().union(*map(_texts, value))
    if not isinstance(value, str):
        return set()
    words = {word for word in _WORD.findall(value) if len(word) >= LONG and any(map(str.isdigit, word))}
    return words | ({value} if len(value) >= mask.SHORTEST else set())
