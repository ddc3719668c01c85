"""The maintenance page: one file, made of the settings and of what the operator says, with nothing from elsewhere."""

from __future__ import annotations

import base64
import datetime
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from typing import Any

import jinja2
from attrs import frozen

from ckan_deploy.errors import FormulaError, InvalidArgument
from ckan_deploy.releases.site import Site
from ckan_deploy.settings import languages
from ckan_deploy.system import arguments, files, safely

# The setting's default: a template of ours. Another page is taken as it is.
OWN = "salt://ckan/files/maintenance.html.jinja"
# It is in each answer to a visitor, so it is small.
LOGO_KB = 200
_KINDS = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
}
_UNTIL = "write date, time and zone, such as 2026-11-29T18:30+01:00"


@frozen
class Notice:
    """What the operator says to visitors: by language, and until when; '' and {} for nothing."""

    message: Mapping[str, str] = {}
    until: str = ""

    @classmethod
    def of(cls, site: Site, message: Any, until: Any) -> Notice:
        """
        Take what was typed.

        site
            The site.
        message
            A line of text, in the language of the portal, or ``{language: line}``.
        until
            The expected end: date, time and zone as ISO 8601 has them.

        Raises ``InvalidArgument`` for a language that the page does not have, an end that is none or in the past.
        """
        shown = shown_languages(site)
        if not isinstance(message, Mapping):
            said = arguments.line("message", message)
            return cls({shown[0]: said} if said else {}, _end(until))
        for language in message:
            if wrong := languages.problem("message", str(language)):
                raise InvalidArgument(f"{wrong}.")
            if language not in shown:
                raise InvalidArgument(
                    f"message is in {language}, but the page is in {', '.join(shown)}; add it to "
                    "ckan:web:maintenance_languages."
                )
        return cls({name: arguments.line("message", said) for name, said in message.items()}, _end(until))

    def to_json(self) -> dict[str, Any]:
        """Return it as the file of maintenance mode has it; what is empty is left out."""
        return {
            **({"message": dict(self.message)} if self.message else {}), **({"until": self.until} if self.until else {})
        }  # fmt: skip


def shown_languages(site: Site) -> list[str]:
    """
    Return the languages that the page is in, by the names that CKAN has for them: those of the setting, else those of
    the portal. The first one is the page's own.

    site
        The site.
    """
    if site.settings.web.maintenance_languages:
        return list(site.settings.web.maintenance_languages)
    config = site.settings.config
    default = str(config.get("ckan.locale_default") or "en")
    offered = config.get("ckan.locales_offered") or []
    names = [default, *(map(str, offered) if isinstance(offered, (list, tuple)) else str(offered).split())]
    # Those that nobody has translated for us are left out, unless the pillar has a message in them.
    message = site.settings.web.maintenance_message
    known = [name for name in dict.fromkeys(names) if name in message or languages.texts(name)]
    return [*known, *(name for name in message if name not in known)] or ["en"]


def make(site: Site, notice: Notice) -> str:
    """
    Return the page as HTML.

    site
        The site.
    notice
        What the operator says.

    Raises ``FormulaError`` where ``web:maintenance_page`` is not there, or ``web:maintenance_logo`` is no image, and
    where others than root have put a link in place of one of them.
    """
    page = site.settings.web.maintenance_page
    source = site.host.file(page) if page.startswith("salt://") else page
    if not source or not os.path.isfile(source):
        raise FormulaError(f"there is no page {page} (ckan:web:maintenance_page); correct it.")
    if page != OWN:
        about = f"the page {page} (ckan:web:maintenance_page)"
        return _content(source, about, safely.MOST_BYTES).decode("utf-8", "surrogateescape")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    said = {**site.settings.web.maintenance_message, **notice.message}
    end = datetime.datetime.fromisoformat(notice.until) if notice.until else None
    return environment.from_string(files.read(source)).render(
        title=str(site.settings.config.get("ckan.site_title") or site.settings.domain or "CKAN"),
        logo=logo(site), parts=[_part(language, str(said.get(language, ""))) for language in shown_languages(site)],
        until={"machine": notice.until, "people": f"{end:%Y-%m-%d %H:%M} ({end.tzname()})"} if end else None,
    )  # fmt: skip


def logo(site: Site) -> str:
    """
    Return the logo as an address that holds it (``data:``), ``''`` where the settings name none.

    site
        The site.

    Raises ``FormulaError`` where it is not there, no image, or too large.
    """
    named = site.settings.web.maintenance_logo
    if not named:
        return ""
    source = site.host.file(named) if named.startswith("salt://") else named
    about = f"the logo {named} (ckan:web:maintenance_logo)"
    if not source or not os.path.isfile(source):
        raise FormulaError(f"{about} is not there; correct it.")
    size = os.path.getsize(source)
    if size > LOGO_KB * 1024:
        raise FormulaError(f"{about} has {size // 1024} KB; take one of at most {LOGO_KB} KB, each visitor gets it.")
    data = _content(source, about, LOGO_KB * 1024)
    kind = _image(data)
    if not kind:
        raise FormulaError(f"{about} is no image; take a PNG, JPEG, GIF, WebP or SVG.")
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def problems(site: Site) -> list[str]:
    """
    Say what keeps the page from being made, before it is wanted.

    site
        The site.

    Returns a list of sentences without full stop.
    """
    if site.settings.web.server == "none":
        return []
    try:
        make(site, Notice())
    except FormulaError as exc:
        return [str(exc).rstrip(".")]
    return []


def _content(source: str, about: str, most: int) -> bytes:
    """What is shown to everybody: no link is followed to it that others than root have put there."""
    try:
        with safely.file(source) as handle:
            return handle.read(most)
    except OSError as exc:
        raise FormulaError(f"{about} cannot be read ({exc.strerror}); correct it.") from exc


def _part(language: str, message: str) -> dict[str, str]:
    """The page in one language. Where only the operator's words are in it, they are the heading."""
    heading, text, until = languages.texts(language) or (message, "", "")
    message = "" if heading == message else message
    return {
        "tag": language.replace("_", "-"), "direction": "rtl" if language in languages.RIGHT_TO_LEFT else "ltr",
        "heading": heading, "text": text, "until": until, "message": message,
    }  # fmt: skip


def _end(until: Any) -> str:
    said = arguments.text("until", until)
    if not said:
        return ""
    try:
        # Python before 3.11 does not know the Z.
        end = datetime.datetime.fromisoformat(said[:-1] + "+00:00" if said.endswith("Z") else said)
    except ValueError:
        raise InvalidArgument(f"until is {said!r}, which is no time; {_UNTIL}.") from None
    if end.tzinfo is None:
        raise InvalidArgument(f"until is {said!r}, without a zone; {_UNTIL}.")
    if end <= datetime.datetime.now(datetime.timezone.utc):
        raise InvalidArgument(f"until is {said!r}, which is in the past; name a time to come.")
    return end.isoformat(timespec="minutes")


def _image(data: bytes) -> str:
    """What kind of image this is, '' for none."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    for begin, kind in _KINDS.items():
        if data.startswith(begin):
            return kind
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError):
        return ""
    return "image/svg+xml" if root.tag == "{http://www.w3.org/2000/svg}svg" else ""
