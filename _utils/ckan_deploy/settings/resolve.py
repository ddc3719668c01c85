"""
The pillar becomes settings: defaults, pillar and what one deploy changes, checked as a whole. All problems are said at
once, a line each. Knows nothing of Salt.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from ckan_deploy.errors import FormulaError
from ckan_deploy.settings.model import Settings
from ckan_deploy.settings.named_parts import (
    check_acme,
    check_cron_jobs,
    check_hooks,
    check_pages,
    check_services,
    check_workers,
)
from ckan_deploy.settings.origins import ORIGINS, check_extensions, server
from ckan_deploy.settings.parts import Acme, CronJob, Extension, Hook, Page, Service, Worker
from ckan_deploy.settings.rules import Rule, groups, rules, table
from ckan_deploy.settings.together import check_together, derive
from ckan_deploy.settings.values import check_value, named, refuse_unknown
from ckan_deploy.system.arguments import missing_blank

_PARTS = {
    "extension": check_extensions,
    "hooks": check_hooks,
    "pages": check_pages,
    "service": check_services,
    "worker": check_workers,
    "cronjob": check_cron_jobs,
    "acme": check_acme,
}


def resolve(pillar: Any, overrides: Any = None) -> Settings:
    """
    Make settings of a pillar.

    pillar
        What the pillar says under ``ckan``.
    overrides
        What differs from it for one deploy: ``{"extensions": {name: {"ref": ...}}}``.

    Raises ``FormulaError`` with every problem, a line each. No message holds the value of a secret.
    """
    if pillar is None:
        raise FormulaError("the pillar has no key ckan for this minion; see pillar.example and its top.sls.")
    if not isinstance(pillar, dict):
        raise FormulaError("the pillar's key ckan is not a dictionary; see pillar.example.")
    problems: list[str] = []
    pillar = _plain(pillar)
    if overrides is not None:
        _override(pillar, overrides, problems)
    if encrypted := ciphertext("ckan", pillar):
        # Whatever else could be said of these values is noise, and may quote them.
        hint = "is still encrypted (PGP); check its file's #!yaml|gpg line and the master's key"
        raise FormulaError("\n".join(f"{key} {hint}" for key in encrypted))
    settings = _checked(pillar, problems)
    if not problems:
        derive(settings, pillar)
        check_together(settings, problems)
    if problems:
        raise FormulaError("\n".join(problems))
    return _frozen(settings)


def ciphertext(key: str, value: Any) -> list[str]:
    """
    Return the keys whose values are still encrypted.

    key
        What the value stands under; '' at the top of a pillar.
    value
        A value of a pillar, with all that is in it.
    """
    if isinstance(value, dict):
        return [
            found for name, inner in value.items() for found in ciphertext(f"{key}:{name}" if key else str(name), inner)
        ]
    if isinstance(value, list):
        return [found for index, inner in enumerate(value) for found in ciphertext(f"{key}:{index}", inner)]
    return [key] if isinstance(value, str) and "-----BEGIN PGP" in value else []


def _checked(pillar: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """All settings by group and name, each by its own rule."""
    parts = groups(Settings)
    refuse_unknown("ckan", pillar, {*rules(Settings), *parts}, problems)
    for group, cls in sorted(parts.items()):
        inside = pillar.get(group)
        if inside is not None and not isinstance(inside, dict):
            # A number here may be a password that was put one level too high.
            problems.append(
                f"ckan:{group} must be a dictionary, not {named(inside, secret=True)}{missing_blank(inside)}"
            )
            inside = None
        inside = inside or {}
        refuse_unknown(f"ckan:{group}", inside, rules(cls), problems)
        # A key with nothing behind it is as good as none: its default holds.
        pillar[group] = {leaf: value for leaf, value in inside.items() if value is not None}
    settings: dict[str, Any] = {}
    for name, rule in table(Settings):
        group, _, leaf = name.rpartition(":")
        given, place = (pillar[group], settings.setdefault(group, {})) if group else (pillar, settings)
        place[leaf] = _value(f"ckan:{name}", given.get(leaf), rule, problems)
    return settings


def _value(key: str, value: Any, rule: Rule, problems: list[str]) -> Any:
    check = _PARTS.get(rule.kind)
    return check(key, value, problems) if check else check_value(key, value, rule, problems)


def _frozen(settings: dict[str, Any]) -> Settings:
    made = {name: settings[name] for name in rules(Settings)}
    settings["web"]["smoke"] = [Page(**part) for part in settings["web"]["smoke"]]
    settings["tls"]["acme"] = Acme(**_tuples(settings["tls"]["acme"]))
    made.update({group: cls(**_tuples(settings[group])) for group, cls in groups(Settings).items()})
    made["extensions"] = {name: Extension(**_tuples(part)) for name, part in settings["extensions"].items()}
    made["services"] = {name: Service(**_tuples(part)) for name, part in settings["services"].items()}
    made["workers"] = {name: Worker(**_tuples(part)) for name, part in settings["workers"].items()}
    made["cron"] = {name: CronJob(**_tuples(part)) for name, part in settings["cron"].items()}
    made["hooks"] = tuple(Hook(**part) for part in settings["hooks"])
    return Settings(**_tuples(made))


def _tuples(part: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in part.items()}


def _override(pillar: dict[str, Any], overrides: Any, problems: list[str]) -> None:
    if not isinstance(overrides, dict):
        problems.append("what one deploy changes must be a dictionary such as {extensions: {ckanext-x: {ref: y}}}")
        return
    for name in overrides:
        if name != "extensions":
            problems.append(f"{name} cannot be given for one deploy, only extensions can; put it in the pillar")
    wanted = overrides.get("extensions")
    if wanted is None:
        return
    if not isinstance(wanted, dict) or not all(isinstance(content, dict) for content in wanted.values()):
        problems.append("extensions must be a dictionary such as {ckanext-mycity: {ref: fix-42}}")
        return
    known = pillar.get("extensions") or {}
    if not isinstance(known, dict):
        return  # refused by its key later on
    pillar["extensions"] = known
    for name, content in _plain(wanted).items():
        if name not in known and "url" not in content:
            near = _near(name, known)
            problems.append(f"extension {name} is not in the pillar{near}; give its url and ref, or correct it")
            continue
        if isinstance(known.get(name, {}), dict):
            mine = known.get(name, {})
            if any(parts["needs"][0] in content for parts in ORIGINS.values()):
                # Another origin for once: what belongs to the one in the pillar goes.
                firsts = {leaf for parts in ORIGINS.values() for leaf in parts["needs"]}
                if "url" in content and server(content["url"]) != server(mine.get("url")):
                    firsts |= {"token", "token_user"}  # of one server; no other one is told them
                mine = {leaf: value for leaf, value in mine.items() if leaf not in firsts or leaf in content}
            known[name] = {**mine, **content}


def _near(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(str(name), sorted(map(str, known)), n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else ""


def _plain(value: Any) -> Any:
    """Salt's masked dictionaries and lists as plain ones, so that nothing of ours changes the pillar."""
    if isinstance(value, dict):
        return {key: _plain(content) for key, content in value.items()}
    if isinstance(value, list):
        return [_plain(content) for content in value]
    return value
