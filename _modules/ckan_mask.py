"""
Secrets kept out of what people read: among options of CKAN, in addresses, in what a program said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

__virtualname__ = "ckan_mask"

MASK = "**********"
# A password of three letters would be found everywhere.
SHORTEST = 4
_SECRET_WORDS = re.compile(r"passw|passphrase|secret|token|credential|key([._-]|$)", re.I)


def __virtual__() -> str:
    return __virtualname__


def options(found: dict, hidden: Iterable[str], settings: dict) -> dict:
    """
    Mask the secrets among options of CKAN.

    found
        ``{option: value}``.
    hidden
        Options whose values are secret, whatever their names.
    settings
        The settings, with their secrets.

    Returns the same options. Masked is a value whose option is called a password, a secret, a token or a key, and one
    in which a secret of the settings stands; of an address, user and password.

    CLI Example: not for the command line, since the settings hold secrets.
    """
    secrets = _long(__salt__["ckan_settings.secret_values"](settings))
    shown = {}
    for option, value in found.items():
        text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        plain = address(text) if "@" in text else text
        if option in hidden or _SECRET_WORDS.search(option) or any(secret in plain for secret in secrets):
            shown[option] = MASK
        else:
            shown[option] = plain if plain != text else value
    return shown


def address(url: str) -> str:
    """
    Return an address without user and password; where no address can be seen around an @, nothing of it.

    url
        The address.

    CLI Example:

    .. code-block:: bash

        salt web1 ckan_mask.address https://me:secret@example.org/
    """
    # Up to the last @: a password may hold one, and a slash too.
    shown = re.sub(r"://.*@", f"://{MASK}@", url, flags=re.S)
    return shown if shown != url or "@" not in url or "://" not in url else MASK


def text(said: str, settings: dict, longest: int = 300) -> str:
    """
    Return what a program said as one line, without the secrets of the settings.

    said
        The text; a message of CKAN may quote its configuration.
    settings
        The settings, with their secrets.
    longest
        Where the line is cut, in characters.

    CLI Example: not for the command line, since the settings hold secrets.
    """
    line = " ".join(said.split())
    secrets = list(__salt__["ckan_settings.secret_values"](settings))
    secrets += [value for option, value in settings["config"].items()
                if isinstance(value, str) and _SECRET_WORDS.search(option)]  # fmt: skip
    for secret in sorted(_spellings(_long(secrets)), key=len, reverse=True):
        line = line.replace(secret, MASK)
    # Whatever else looks like the login of an address.
    line = re.sub(r"://[^\s/@]*@", f"://{MASK}@", line)
    return line if len(line) <= longest else line[: longest - 3] + "..."


def _long(secrets: Iterable[str]) -> set[str]:
    return {secret for secret in secrets if len(secret) >= SHORTEST}


def _spellings(secrets: Iterable[str]) -> set[str]:
    """Each secret as it is, as it stands in an address, in an ini, in Python's quotes; with its blanks made one."""
    found = set()
    for secret in secrets:
        for form in (secret, quote(secret, safe=""), quote(secret), quote_plus(secret)):
            found |= {form, form.replace("%", "%%"), repr(form)[1:-1]}
    return found | {" ".join(form.split()) for form in found}
