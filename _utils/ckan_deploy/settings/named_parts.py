"""Hooks, services, cron jobs, smoke pages and ACME of the pillar against their rules."""

from __future__ import annotations

import re
from typing import Any

from ckan_deploy.settings.parts import Acme, CronJob, Hook, Page, Service, Worker
from ckan_deploy.settings.rules import rules
from ckan_deploy.settings.schedules import check_command, check_cron_job
from ckan_deploy.settings.values import check_fields, refuse_unknown
from ckan_deploy.system.arguments import missing_blank

# Of a service and of a cron job.
NAME = r"[a-z][a-z0-9-]{0,39}"


def check_hooks(key: str, value: Any, problems: list[str]) -> list[dict[str, Any]]:
    """
    Check the hooks.

    key
        What they stand under.
    value
        What the pillar has there.
    problems
        Gets a sentence for each thing that is wrong.

    Returns the settings of each.
    """
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        problems.append(f"{key} must be a list of dictionaries with stage, when, and function or state")
        return []
    hooks = []
    for index, given in enumerate(value):
        at = f"{key}:{index}"
        refuse_unknown(at, given, rules(Hook), problems)
        hook = check_fields(at, given, dict(rules(Hook)), problems)
        if bool(hook["function"]) == bool(hook["state"]):
            problems.append(f"{at} must have a function or a state, one of them")
        if not isinstance(hook["args"], list) or not isinstance(hook["kwargs"], dict):
            problems.append(f"{at}: args is a list, and kwargs a dictionary; correct them")
        hooks.append(hook)
    return hooks


def check_workers(key: str, value: Any, problems: list[str]) -> dict[str, dict[str, Any]]:
    """
    Check the workers: parameters as for ``check_hooks``.

    Returns the settings of each by its name, without those that are removed.
    """
    found = _by_name(key, value, Worker, problems)
    for name, worker in found.items():
        if worker["queues"] == []:
            problems.append(f"{key}:{name}:queues is empty; name a queue, or leave it out for 'default'")
    return found


def check_services(key: str, value: Any, problems: list[str]) -> dict[str, dict[str, Any]]:
    """
    Check the services: parameters as for ``check_hooks``.

    Returns the settings of each by its name, without those that are removed.
    """
    found = _by_name(key, value, Service, problems)
    for name, service in found.items():
        at = f"{key}:{name}"
        if bool(service["command"]) == bool(service["queues"]):
            problems.append(f"{at} must have a command or queues, one of them")
        check_command(at, service["command"], problems)
        if service["once"] and service["processes"] != 1:
            problems.append(f"{at}:processes is {service['processes']}, while once is set; take one of them out")
        if service["queues"] and service["stop_when_idle"]:
            problems.append(f"{at}:stop_when_idle is for a command: a job worker finishes its job anyway; take it out")
    return found


def check_cron_jobs(key: str, value: Any, problems: list[str]) -> dict[str, dict[str, Any]]:
    """
    Check the cron jobs: parameters as for ``check_hooks``.

    Returns the settings of each by its name, without those that are removed.
    """
    found = _by_name(key, value, CronJob, problems)
    for name, job in found.items():
        check_cron_job(f"{key}:{name}", job, problems)
    return found


def check_pages(key: str, value: Any, problems: list[str]) -> list[dict[str, Any]]:
    """
    Check the pages: parameters as for ``check_hooks``.

    Returns the settings of each; a path alone is one that answers 200.
    """
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, (str, dict)) for item in value):
        problems.append(f"{key} must be a list of paths, or of dictionaries such as {{path: /about, status: 200}}")
        return []
    pages: list[dict[str, Any]] = []
    for index, given in enumerate(value):
        at = f"{key}:{index}"
        given = {"path": given} if isinstance(given, str) else given
        refuse_unknown(at, given, rules(Page), problems)
        page = check_fields(at, given, dict(rules(Page)), problems)
        if any((page["path"], page["login"]) == (other["path"], other["login"]) for other in pages):
            problems.append(f"{key} lists {page['path']} twice; remove one")
        pages.append(page)
    return pages


def check_acme(key: str, value: Any, problems: list[str]) -> dict[str, Any]:
    """
    Check how a certificate is got by ACME: parameters as for ``check_hooks``.

    Returns its settings; without an e-mail address where it is not used.
    """
    if value is None or value == {}:
        return _plain_acme()
    if not isinstance(value, dict):
        problems.append(f"{key} must be a dictionary such as {{email: admin@example.org}}{missing_blank(value)}")
        return _plain_acme()
    refuse_unknown(key, value, rules(Acme), problems)
    found = check_fields(key, value, dict(rules(Acme)), problems)
    if not value.get("email") and any(tuple(found[name]) != tuple(default) for name, default in _plain_acme().items()):
        problems.append(f"{key}:email is missing; set it in the pillar, or leave {key} out")
    return found


def _plain_acme() -> dict[str, Any]:
    return check_fields("", {}, dict(rules(Acme)), [])


def _by_name(key: str, value: Any, cls: type, problems: list[str]) -> dict[str, dict[str, Any]]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        problems.append(f"{key} must be a dictionary by name{missing_blank(value)}")
        return {}
    found = {}
    for name, given in value.items():
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            problems.append(f"{key}: {name!r} cannot be a name; use small letters, digits and '-', 40 at most")
            continue
        given = {} if given is None else given
        if not isinstance(given, dict):
            leaf = next(leaf for leaf in rules(cls) if leaf != "remove")
            problems.append(f"{key}:{name} must be a dictionary such as {{{leaf}: ...}}{missing_blank(given)}")
            continue
        refuse_unknown(f"{key}:{name}", given, rules(cls), problems)
        if given.get("remove") is not True:
            found[name] = check_fields(f"{key}:{name}", given, dict(rules(cls)), problems)
    return found
