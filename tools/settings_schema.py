"""The pillar key `ckan` as a JSON Schema, made from the classes of the settings: docs/pillar.schema.json."""

from __future__ import annotations

from typing import Any

from ckan_deploy.settings import named_parts, origins, variables
from ckan_deploy.settings.model import Settings
from ckan_deploy.settings.parts import PAGE, Acme, CronJob, Extension, Hook, Page, Service, Worker
from ckan_deploy.settings.rules import Rule, groups, rules
from ckan_deploy.settings.values import OPTION

Schema = dict[str, Any]
_NO_CONTROL = r"[^\x00-\x1f\x7f-\x9f]"
# Patterns of those kinds of text that have none of their own.
_LINE = f"{_NO_CONTROL}*"
_TEXT = r"[^\x00-\x08\x0b-\x1f\x7f-\x9f]*"
_WORD = r"[^\s\x00-\x1f\x7f-\x9f]+"
_FULL_LINE = rf"(?=.*\S){_NO_CONTROL}+"
_REMOVED = {"required": ["remove"], "properties": {"remove": {"const": True}}}
_PARTS = {"extension": Extension, "service": Service, "worker": Worker, "cronjob": CronJob}


def schema() -> Schema:
    """Return the schema."""
    settings = _object(Settings)
    for name, cls in groups(Settings).items():
        settings["properties"][name] = _group(cls)
        if "required" in settings["properties"][name]:
            settings["required"].append(name)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The pillar of a host with a CKAN portal",
        "description": "Made by tools/settings_docs.py from _utils/ckan_deploy/settings: see pillar.md.",
        "type": "object",
        "required": ["ckan"],
        "properties": {"ckan": settings},
        "$defs": {
            "extension": {**_object(Extension), "if": _REMOVED, "else": {"oneOf": list(map(_has, _origins()))}},
            "service": {**_part(Service), "if": _REMOVED, "else": {"oneOf": [_has(["command"]), _listed("queues")]}},
            "worker": {**_object(Worker), "type": ["object", "null"]},
            "cronjob": {
                **_part(CronJob),
                "if": _REMOVED,
                "else": {**_has(["schedule"]), "oneOf": [_has(["command"]), _has(["shell"])]},
            },
            "page": {**_object(Page), "type": ["object", "string"], "pattern": _anchored(PAGE)},
            "hook": {**_object(Hook), "oneOf": [_has(["function"]), _has(["state"])]},
        },
    }


def _object(cls: type) -> Schema:
    """The settings that are fields of a class; no others."""
    found: Schema = {
        "type": "object",
        "description": cls.__doc__,
        "properties": {name: _setting(rule) for name, rule in rules(cls).items()},
        "additionalProperties": False,
    }
    required = [name for name, rule in rules(cls).items() if rule.required]
    return {**found, "required": required} if required else found


def _part(cls: type) -> Schema:
    """As `_object`, for what may be removed: then it needs nothing else."""
    return {name: value for name, value in _object(cls).items() if name != "required"}


def _group(cls: type) -> Schema:
    found = _object(cls)
    return found if "required" in found else {**found, "type": ["object", "null"]}


def _setting(rule: Rule) -> Schema:
    found = _typed(rule)
    if not rule.required:
        # A key with nothing behind it is as good as none.
        types = found["type"] if isinstance(found["type"], list) else [found["type"]]
        found["type"] = [*types, "null"]
        if "enum" in found:
            found["enum"] = [*found["enum"], None]
        if _is_plain(rule.default) and rule.kind != "acme":
            found["default"] = list(rule.default) if isinstance(rule.default, tuple) else rule.default
    return {"description": rule.text, **found, **({"writeOnly": True} if rule.secret else {})}


def _typed(rule: Rule) -> Schema:
    if rule.kind in _PARTS:
        pattern = origins.NAME if rule.kind == "extension" else named_parts.NAME
        return {**_named(pattern), "additionalProperties": {"$ref": f"#/$defs/{rule.kind}"}}
    if rule.kind == "acme":
        return {name: value for name, value in _object(Acme).items() if name != "description"}
    if rule.kind == "options":
        return {**_named(OPTION), "additionalProperties": _option(rule.secret)}
    if rule.kind == "pages":
        return {"type": "array", "items": {"$ref": "#/$defs/page"}}
    if rule.kind == "variables":
        text = {} if rule.secret else {"pattern": _anchored(_TEXT)}
        return {**_named(variables.NAME), "additionalProperties": {"type": ["string", "integer", "null"], **text}}
    if rule.kind == "hooks":
        return {"type": "array", "items": {"$ref": "#/$defs/hook"}}
    if rule.kind == "list":
        words = {"type": "string", "pattern": _anchored(rule.pattern or _WORD)}
        many: Schema = {"type": "array", "items": words, "uniqueItems": True}
        return {**many, **words, "type": ["array", "string"]} if rule.one else many
    if rule.kind == "lines":
        return {"type": "array", "items": {"type": "string", "pattern": _anchored(_FULL_LINE)}}
    if rule.kind == "int":
        return {"type": "integer", "minimum": rule.least, **({"maximum": rule.most} if rule.most else {})}
    if rule.kind == "bool":
        return {"type": "boolean"}
    if rule.kind == "any":
        return {"type": "array" if isinstance(rule.default, list) else "object"}
    return _string(rule)


def _string(rule: Rule) -> Schema:
    if rule.choices:
        return {"type": "string", "enum": list(rule.choices)}
    if rule.secret:
        # It may stand there encrypted.
        return {"type": "string", **({"minLength": 1} if rule.required else {})}
    pattern = rule.pattern or (_TEXT if rule.kind == "text" else _LINE)
    return {"type": "string", "pattern": _anchored(pattern), **({"minLength": 1} if rule.required else {})}


def _named(pattern: str) -> Schema:
    return {"type": "object", "propertyNames": {"pattern": _anchored(pattern)}}


def _option(secret: bool) -> Schema:
    """The value of an option of CKAN."""
    text = {} if secret else {"pattern": _anchored(_TEXT)}
    item = {"type": ["string", "number", "boolean"], **text}
    return {"type": [*item["type"], "array"], **text, "items": item}


def _origins() -> list[tuple[str, ...]]:
    return [parts["needs"] for parts in origins.ORIGINS.values()]


def _has(names: list[str] | tuple[str, ...]) -> Schema:
    return {"required": list(names), "properties": {name: {"type": "string", "minLength": 1} for name in names}}


def _listed(name: str) -> Schema:
    return {"required": [name], "properties": {name: {"type": "array", "minItems": 1}}}


def _is_plain(default: Any) -> bool:
    """Whether a default says something by itself, and does not follow from other settings."""
    return default not in ("", (), [], {}) and "{" not in str(default)


def _anchored(pattern: str) -> str:
    return f"^(?:{pattern})$"
