"""What is wrong with an extension's settings: it has one origin, and only what goes with that."""

from __future__ import annotations

import base64
import copy
import re
import shlex
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from ckan_deploy.settings.parts import Extension
from ckan_deploy.settings.rules import rules
from ckan_deploy.settings.values import CONTROL, check_value, refuse_unknown
from ckan_deploy.system.arguments import missing_blank
from ckan_deploy.system.processes import secret_parameters, without_logins

_OPENSSH = b"openssh-key-v1\0"
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
# An extension has one origin: which settings each kind needs, and which it may have.
ORIGINS: dict[str, dict[str, tuple[str, ...]]] = {
    "git": {
        "needs": ("url", "ref"),
        "may": ("subdirectory", "submodules", "upstream", "locked", "deploy_key", "host_keys", "token", "token_user",
                "requirements", "patches", "build"),
    },
    "index": {"needs": ("version",), "may": ()},
    "archive": {"needs": ("archive", "hash"), "may": ()},
}  # fmt: skip


def check_extensions(key: str, value: Any, problems: list[str]) -> dict[str, dict[str, Any]]:
    """
    Check the extensions.

    key
        What they stand under.
    value
        What the pillar has there.
    problems
        Gets a sentence for each thing that is wrong.

    Returns the settings of each extension by its name, without those that are removed.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        problems.append(f"{key} must be a dictionary of extensions by name{missing_blank(value)}")
        return {}
    result = {}
    for name, content in value.items():
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            problems.append(f"{key}: {name!r} is not the name of an extension; use letters, digits, '.', '_' and '-'")
            continue
        if not isinstance(content, dict):
            problems.append(f"{key}:{name} must be a dictionary such as {{url: ..., ref: ...}}{missing_blank(content)}")
            continue
        refuse_unknown(f"{key}:{name}", content, rules(Extension), problems)
        if content.get("remove") is not True:
            result[name] = _extension(f"{key}:{name}", content, problems)
    # Two spellings of one package (ckanext_a, ckanext-a) would be installed over one another.
    spellings: dict[str, str] = {}
    for name in result:
        other = spellings.setdefault(canonicalize_name(name), name)
        if other != name:
            problems.append(f"{key}:{name} and {key}:{other} are the same package; remove one")
    return result


def is_specifier(version: str) -> bool:
    """
    Say whether something is a version, or specifiers such as ``>=1.4,<2``.

    version
        The text.
    """
    try:
        SpecifierSet(version if version[:1] in ("<", ">", "=", "!", "~") else f"=={version}")
    except InvalidSpecifier:
        return False
    return True


def server(url: Any) -> tuple[str, str]:
    """
    Return scheme and server of an address, '' where it has none: a token is for one server, and goes to no other.

    url
        The address.
    """
    try:
        parts = urlsplit(str(url))
    except ValueError:
        return "", ""
    return parts.scheme, parts.netloc


def has_secret(requirement: str) -> bool:
    """
    Say whether a requirement names an address with a password or a token in it: manifests would show it.

    requirement
        The requirement, such as ``name @ https://...``.
    """
    # Over ssh a name alone is the login.
    login = re.search(r"(https?://[^\s/@]+|://[^\s/@:]*:[^\s/@]+)@", requirement)
    return bool(login or secret_parameters(requirement))


def requirement_problems(key: str, lines: Iterable[str]) -> list[str]:
    """
    Say what is wrong with requirements that stand in the settings.

    key
        What they stand under.
    lines
        The requirements.

    Returns a sentence for each.
    """
    problems = []
    for line in lines:
        try:
            Requirement(line)
        except InvalidRequirement:
            shown = without_logins(line)
            problems.append(f"{key} has the item {shown!r}, which is no requirement such as 'name==1.0'")
        if has_secret(line):
            problems.append(f"{key} has an item with a password or a token in its address; take it out")
    return problems


def _extension(key: str, content: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    given = {leaf: content.get(leaf) for leaf in rules(Extension)}
    if isinstance(given["deploy_key"], str):
        # As Windows and some forms write it.
        given["deploy_key"] = given["deploy_key"].replace("\r\n", "\n")
    got = {
        leaf: copy.copy(rule.default) if given[leaf] in (None, "") else check_value(
            f"{key}:{leaf}", given[leaf], rule, problems
        )
        for leaf, rule in rules(Extension).items()
    }  # fmt: skip
    _check_kind(key, given, problems)
    _check_git(key, got, problems)
    _check_addresses(key, got, problems)
    _check_requirements(key, got, problems)
    _check_logins(key, got, problems)
    return got


def _check_kind(key: str, given: dict[str, Any], problems: list[str]) -> None:
    """An extension names one kind of origin."""
    kinds = [kind for kind, parts in ORIGINS.items() if given[parts["needs"][0]] not in (None, "")]
    if len(kinds) > 1:
        firsts = " and ".join(ORIGINS[kind]["needs"][0] for kind in kinds)
        problems.append(f"{key} has {firsts}: name one origin (url and ref, version, or archive and hash)")
        return
    if not kinds and given["ref"] in (None, ""):
        problems.append(f"{key} names no origin; give url and ref, version, or archive and hash")
        return
    kind = kinds[0] if kinds else "git"
    missing = [leaf for leaf in ORIGINS[kind]["needs"] if given[leaf] in (None, "")]
    problems += [f"{key}:{leaf} is missing; set it in the pillar" for leaf in missing]
    known = {*ORIGINS[kind]["needs"], *ORIGINS[kind]["may"], "override", "init", "remove"}
    for leaf, value in given.items():
        if value not in (None, "", []) and leaf not in known:
            problems.append(f"{key}:{leaf} means nothing for an extension from {kind}; remove it")


def _check_git(key: str, extension: dict[str, Any], problems: list[str]) -> None:
    ref = extension["ref"]
    for leaf in ("url", "ref", "requirements", "upstream", "subdirectory", "archive"):
        if extension[leaf].startswith("-"):
            problems.append(f"{key}:{leaf} begins with '-', which git would take for an option; correct it")
    for leaf in ("url", "upstream"):
        if re.match(r"^[A-Za-z0-9+.-]+::", extension[leaf]):
            problems.append(f"{key}:{leaf} names a helper program of git; use https, ssh, git or a path")
    if not CONTROL.search(ref) and re.search(r"\s|\.\.|[~^:?*\[\\]|@\{", ref):
        problems.append(f"{key}:ref ({ref!r}) cannot be the name of a branch, a tag or a commit; correct it")
    for leaf in ("requirements", "subdirectory"):
        if extension[leaf].startswith("/") or ".." in extension[leaf].split("/"):
            problems.append(f"{key}:{leaf} must be a path inside the repository")


def _check_addresses(key: str, extension: dict[str, Any], problems: list[str]) -> None:
    for leaf in ("url", "upstream", "archive"):
        try:
            parts = urlsplit(extension[leaf])
            # Raises where the port is none: what is taken for one may be half of a password.
            _ = parts.port
            # A name alone may be a token over http; over ssh it is the login.
            if parts.password or (parts.username and parts.scheme in ("http", "https")):
                problems.append(f"{key}:{leaf} has a password or a token in it; take it out and set {key}:token")
            elif leaf == "archive" and secret_parameters(extension[leaf]):
                problems.append(
                    f"{key}:{leaf} has a token in its query, which manifests would show; take it out, or put the file "
                    "into Salt's file server and write salt://..."
                )
            elif leaf != "archive" and parts.scheme in ("http", "https") and (parts.query or parts.fragment):
                problems.append(
                    f"{key}:{leaf} has a query or a fragment, which no git server reads; take it out (a token goes "
                    f"into {key}:token)"
                )
        except ValueError:
            problems.append(f"{key}:{leaf} cannot be read as an address; correct it")
    if extension["archive"] and not re.match(r"^(https?|salt)://", extension["archive"]):
        problems.append(f"{key}:archive must begin with https://, http:// or salt://")


def _check_requirements(key: str, extension: dict[str, Any], problems: list[str]) -> None:
    if extension["version"] and not is_specifier(extension["version"]):
        problems.append(f"{key}:version ({extension['version']!r}) is neither a version nor specifiers; correct it")
    problems += requirement_problems(f"{key}:override", extension["override"])
    for line in extension["init"]:
        try:
            shlex.split(line)
        except ValueError as exc:
            problems.append(f"{key}:init has the item {line!r}, which cannot be split into words ({str(exc).lower()})")


def _check_logins(key: str, extension: dict[str, Any], problems: list[str]) -> None:
    deploy_key = extension["deploy_key"]
    if deploy_key and "PRIVATE KEY-----" not in deploy_key:
        problems.append(f"{key}:deploy_key is not a private key; it begins with -----BEGIN")
    elif deploy_key and _has_passphrase(deploy_key):
        problems.append(f"{key}:deploy_key has a passphrase, which nobody could type; make a key without one")
    if extension["token"] and not extension["url"].startswith(("https://", "http://")):
        problems.append(f"{key}:token is for https, and url is not https; use deploy_key, or correct url")


def _has_passphrase(key: str) -> bool:
    """Whether a private key is encrypted: PEM says so in the clear, OpenSSH's own form in its first bytes."""
    if "ENCRYPTED" in key:
        return True
    body = "".join(line.strip() for line in key.splitlines() if not line.startswith("-----"))
    try:
        data = base64.b64decode(body)
    except ValueError:
        return False
    # The name of the cipher, with its length before it.
    return data.startswith(_OPENSSH) and data[len(_OPENSSH) :][:8] != b"\0\0\0\x04none"
