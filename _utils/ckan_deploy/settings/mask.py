"""
Secrets kept out of what people read: among settings, among options of CKAN, in addresses, in what a program said.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus, unquote

from ckan_deploy.settings.model import Settings
from ckan_deploy.settings.parts import Extension
from ckan_deploy.settings.plain import as_dict
from ckan_deploy.settings.rules import groups, rules, table
from ckan_deploy.system import processes

MASK = "**********"
# Addresses that may hold a password.
ADDRESSES = ("redis_url", "solr_url", "installer:index_url", "installer:find_links")
# Lists of such.
LISTS = ("installer:index_urls",)
DICTIONARIES = ("options", "variables")
# A password of three letters would be found everywhere.
SHORTEST = 4
_SECRET_WORDS = re.compile(r"passw|passphrase|secret|token|credential|key([._-]|$)", re.I)


def secret_names() -> list[str]:
    """Return the names of the settings that are secrets; ``*`` stands for any name."""
    names = [f"{name}:*" if rule.kind in DICTIONARIES else name for name, rule in table(Settings) if rule.secret]
    names += [f"extensions:*:{leaf}" for leaf, rule in rules(Extension).items() if rule.secret]
    return [*names, *ADDRESSES, "config:*"]


def secret_values(settings: Settings) -> list[str]:
    """
    Return the values of the secrets in the settings.

    settings
        The settings.
    """
    values: list[str] = []
    for name, rule in table(Settings):
        if rule.secret:
            value = _at(settings, name)
            values += map(str, value.values()) if rule.kind in DICTIONARIES else [value]
    for extension in settings.extensions.values():
        values += [getattr(extension, leaf) for leaf, rule in rules(Extension).items() if rule.secret]
    addresses = [_at(settings, name) for name in ADDRESSES]
    for url in [*addresses, *(url for name in LISTS for url in _at(settings, name))]:
        login = url.partition("://")[2].rpartition("@")[0]
        values.append(unquote(login.partition(":")[2]))
        values += map(unquote, processes.secret_parameters(url))
    return [value for value in values if value]


def shown(settings: Settings) -> dict[str, Any]:
    """
    Return the settings for people: by group and name, with secrets masked.

    settings
        The settings.
    """
    found = as_dict(settings)
    found["config"] = options(settings.config, (), settings)
    for place in (found, found["build"], *found["services"].values()):
        # A proxy's address may hold a password.
        place["environment"] = options(place["environment"], (), settings)
    for hook in found["hooks"]:
        hook.update(args=[MASK for _ in hook["args"]], kwargs=dict.fromkeys(hook["kwargs"], MASK))
    for place, name, rule in _secrets_of(found):
        if place[name]:
            place[name] = dict.fromkeys(place[name], MASK) if rule in DICTIONARIES else MASK
    for name in ADDRESSES:
        group, _, leaf = name.rpartition(":")
        place = found[group] if group else found
        place[leaf] = address(place[leaf])
    for name in LISTS:
        group, _, leaf = name.rpartition(":")
        found[group][leaf] = [address(url) for url in found[group][leaf]]
    return found


def options(found: Mapping[str, Any], hidden: Collection[str], settings: Settings) -> dict[str, Any]:
    """
    Mask the secrets among options of CKAN.

    found
        ``{option: value}``.
    hidden
        Options whose values are secret, whatever their names.
    settings
        The settings.

    Returns the same options. Masked is a value whose option is called a password, a secret, a token or a key, and one
    in which a secret of the settings stands; of an address, user and password.
    """
    secrets = _long(secret_values(settings))
    made = {}
    for option, value in found.items():
        text_ = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        plain = address(text_) if re.search("[@?]", text_) else text_
        if option in hidden or _SECRET_WORDS.search(option) or any(secret in plain for secret in secrets):
            made[option] = MASK
        else:
            made[option] = plain if plain != text_ else value
    return made


def address(url: str) -> str:
    """
    Return an address without user and password, and without a token in its query; where no address can be seen around
    an @, nothing of it.

    url
        The address.
    """
    # Up to the last @: a password may hold one, and a slash too.
    masked = processes.without_logins(re.sub(r"://.*@", f"://{MASK}@", url, flags=re.S), MASK)
    return masked if masked != url or "@" not in url or "://" not in url else MASK


def text(said: str, settings: Settings, longest: int = 300) -> str:
    """
    Return what a program said as one line, without the secrets of the settings.

    said
        The text; a message of CKAN may quote its configuration.
    settings
        The settings.
    longest
        Where the line is cut, in characters.
    """
    line = _without(" ".join(said.split()), _spellings(_long(_all_secrets(settings))))
    return line if len(line) <= longest else line[: longest - 3] + "..."


def lines(said: str, settings: Settings, most: int = 40, longest: int = 300) -> str:
    """
    Return the last lines of what a program said, such as a traceback, without the secrets of the settings.

    said
        The text.
    settings
        The settings.
    most
        How many lines at most.
    longest
        Where a line is cut, in characters.
    """
    secrets = _all_secrets(settings)
    # Of a secret of several lines each one, and what stands across lines first.
    spelled = _spellings(_long([*secrets, *(line.strip() for secret in secrets for line in secret.splitlines())]))
    text_ = _without(said, spelled)
    shown_ = [line.rstrip().expandtabs(4) for line in text_.splitlines() if line.strip()][-most:]
    shown_ = ["".join(letter if letter.isprintable() else "?" for letter in line) for line in shown_]
    return "\n".join(line if len(line) <= longest else f"{line[: longest - 3]}..." for line in shown_)


def _all_secrets(settings: Settings) -> list[str]:
    """Those that are secret by their setting, and those whose option or variable is called so."""
    own = [settings.config, settings.environment, *(service.environment for service in settings.services.values())]
    return secret_values(settings) + [
        value for given in own for option, value in given.items()
        if isinstance(value, str) and _SECRET_WORDS.search(option)
    ]  # fmt: skip


def _without(said: str, spelled: Iterable[str]) -> str:
    for secret in sorted(spelled, key=len, reverse=True):
        said = said.replace(secret, MASK)
    # Whatever else looks like the login of an address.
    return processes.without_logins(said, MASK)


def _secrets_of(found: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Where secrets stand among settings by group and name: the dictionary, the name in it, the kind."""
    for group, cls in groups(Settings).items():
        yield from ((found[group], leaf, rule.kind) for leaf, rule in rules(cls).items() if rule.secret)
    for extension in found["extensions"].values():
        yield from ((extension, leaf, rule.kind) for leaf, rule in rules(Extension).items() if rule.secret)


def _at(settings: Settings, name: str) -> Any:
    group, _, leaf = name.rpartition(":")
    return getattr(getattr(settings, group) if group else settings, leaf)


def _long(secrets: Iterable[str]) -> set[str]:
    return {secret for secret in secrets if len(secret) >= SHORTEST}


def _spellings(secrets: Iterable[str]) -> set[str]:
    """Each secret as it is, as it stands in an address, in an ini, in Python's quotes; with its blanks made one."""
    found: set[str] = set()
    for secret in secrets:
        for form in (secret, quote(secret, safe=""), quote(secret), quote_plus(secret)):
            found |= {form, form.replace("%", "%%"), repr(form)[1:-1]}
    return found | {" ".join(form.split()) for form in found}
