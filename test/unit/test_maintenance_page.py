"""The maintenance page: title, message, expected end, languages, logo; what cannot be meant is refused."""

from __future__ import annotations

import datetime
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckan_deploy.deploy import preflight
from ckan_deploy.errors import FormulaError, InvalidArgument
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import health, maintenance, maintenance_page
from ckan_deploy.settings import languages
from ckan_deploy.settings.resolve import resolve
from fakes import fake_site, least_pillar
from parts import pages

LATER = (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=2)).isoformat(timespec="minutes")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short path, as sockets want it."""
    with tempfile.TemporaryDirectory(prefix="ckan-m-", dir="/tmp") as path:
        yield Path(path)


def site_of(root: Path, locales: str = "", default: str = "en", **changes: Any) -> Site:
    config = {"ckan.site_title": "Data & <more>", "ckan.locale_default": default, "ckan.locales_offered": locales}
    return fake_site(root, config=config, **changes)


def page_of(site: Site, message: Any = "", until: Any = "") -> str:
    return maintenance_page.make(site, maintenance_page.Notice.of(site, message, until))


def test_it_has_the_title_of_the_site_and_the_languages_of_the_portal(place: Path) -> None:
    page = page_of(site_of(place, "en fr km", "de"))
    assert '<html lang="de" dir="ltr">' in page and "<p>Data &amp; &lt;more&gt;</p>" in page
    # Of Khmer nobody has written a text.
    assert re.findall(r'<section lang="([\w-]+)"', page) == ["de", "en", "fr"]
    assert re.findall("<h[12]>(.*)</h[12]>", page) == [
        "Wir sind bald wieder da", "We will be back soon", "Nous revenons bientôt"
    ]  # fmt: skip
    assert page.count("<h1>") == 1 and "<img" not in page and "<time" not in page
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert re.findall(r'<section lang="([\w-]+)"', page_of(fake_site(place / "b"))) == ["en"]


def test_what_the_operator_says_is_in_place_of_the_sentence(place: Path) -> None:
    site = site_of(place, "de", web__maintenance_message={"de": "Umzug", "he": "שלום"})
    page = page_of(site, "New <servers>", LATER)
    assert "<p>New &lt;servers&gt;</p>" in page and "<p>Umzug</p>" in page and "Please try again" not in page
    assert '<section lang="he" dir="rtl">\n<h2>שלום</h2>' in page
    end = datetime.datetime.fromisoformat(LATER)
    assert page.count(f'<time datetime="{LATER}" dir="ltr">{end:%Y-%m-%d %H:%M} (UTC)</time>') == 3
    assert "<p>Voraussichtliches Ende: <time" in page
    assert "<p>Neue Server</p>" in page_of(site, {"de": "Neue Server"})


def test_a_look_whether_it_can_be_shown_changes_nothing(place: Path) -> None:
    site = fake_site(place)
    before = sorted(path for path in place.rglob("*"))
    assert maintenance.on(site, message="New servers", until=LATER, test=True) == {"on": False, "changed": False}
    assert sorted(path for path in place.rglob("*")) == before and maintenance.status(site) == {"on": False}
    with pytest.raises(InvalidArgument, match="in the past"):
        maintenance.on(site, until="2020-01-01T10:00Z", test=True)
    with pytest.raises(InvalidArgument, match="test is 'yes'"):
        maintenance.on(site, message="x", test="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "until", "told"),
    [
        ({"gr": "x"}, "", "message names the language 'gr', which CKAN does not have"),
        ({"fr": "x"}, "", "message is in fr, but the page is in en, de; add it to ckan:web:maintenance_languages."),
        (["x"], "", "message must be a line of text"),
        ({"de": ["x"]}, "", "message must be a line of text"),
        ("x", "soon", "until is 'soon', which is no time; write date, time and zone, such as 2026-11-29T18:30"),
        ("x", "2099-01-01T10:00", "until is '2099-01-01T10:00', without a zone"),
        ("x", "2020-01-01T10:00Z", "until is '2020-01-01T10:00Z', which is in the past; name a time to come."),
        ("x", ["2099"], "until must be a line of text"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_visitors_stay_in(place: Path, message: Any, until: Any, told: str) -> None:
    site = site_of(place, "de")
    with pytest.raises(InvalidArgument, match=re.escape(told)):
        maintenance.on(site, message=message, until=until)
    assert maintenance.status(site) == {"on": False} and not Path(maintenance.directory(site)).exists()


@pytest.mark.parametrize(
    ("web", "told"),
    [
        ({"maintenance_languages": ["de", "ger"]}, "ckan:web:maintenance_languages names the language 'ger'"),
        ({"maintenance_languages": ["pt"]}, "the language 'pt', which CKAN does not have"),
        ({"maintenance_languages": ["lv"]}, "names lv, which the formula has no text in; write one under"),
        ({"maintenance_message": {"xx": "x"}}, "ckan:web:maintenance_message names the language 'xx'"),
        ({"maintenance_message": {"de": 5}}, "ckan:web:maintenance_message:de must be text"),
        ({"maintenance_message": "x"}, "ckan:web:maintenance_message must be a dictionary of texts by language"),
        ({"maintenance_languages": ["de"], "maintenance_message": {"fr": "x"}}, "is for a language that ckan:web"),
        ({"maintenance_logo": "logo.png"}, "ckan:web:maintenance_logo is not valid"),
        ({"maintenance_logo": "/var/lib/ckan/default/l.png"}, "ckan:web:maintenance_logo (/var/lib/ckan/default/l"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_meant_is_refused_by_its_name(web: dict[str, Any], told: str) -> None:
    with pytest.raises(FormulaError) as failure:
        resolve({"ckan": {**least_pillar(), "web": web}}["ckan"])
    assert told in str(failure.value)


def test_the_logo_is_in_the_page(place: Path) -> None:
    logo = place / "logo"
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    for data, kind in ((pages.png(), "png"), (b"\xff\xd8\xff\xe0", "jpeg"), (b"GIF89a", "gif"), (svg, "svg+xml"),
                       (b"RIFF\0\0\0\0WEBPVP8 ", "webp")):  # fmt: skip
        logo.write_bytes(data)
        site = fake_site(place, (place,), web__maintenance_logo="salt://logo")
        assert f'<img src="data:image/{kind};base64,' in page_of(site)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"<html><svg/></html>", "is no image; take a PNG, JPEG, GIF, WebP or SVG"),
        (b"root:x:0:0", "is no image"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 300_000, "has 292 KB; take one of at most 200 KB, each visitor gets it"),
        (None, "is not there; correct it"),
    ],
)
def test_a_logo_that_is_none_is_refused_by_the_plan_and_before_visitors_are_kept_out(
    place: Path, data: bytes | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # There is no web server here, and nobody waits for one.
    monkeypatch.setattr(health, "LISTEN_SECONDS", 0.01)
    logo = place / "logo.png"
    if data:
        logo.write_bytes(data)
    site = fake_site(place, web__maintenance_logo=str(logo))
    with pytest.raises(FormulaError, match=re.escape(f"the logo {logo} (ckan:web:maintenance_logo) {told}")):
        maintenance.on(site)
    assert maintenance.status(site) == {"on": False}
    assert any(told in obstacle for obstacle in preflight.obstacles(site, "20260101000000Z"))


def test_a_page_of_your_own_is_taken_as_it_is_and_is_no_template(place: Path) -> None:
    own = place / "closed.html.jinja"
    own.write_text("<h1>{{ 7 * 7 }}</h1>")
    assert page_of(fake_site(place, web__maintenance_page=str(own)), "x") == "<h1>{{ 7 * 7 }}</h1>"


def test_a_message_or_an_end_changes_the_page_while_it_is_on(place: Path) -> None:
    site = site_of(place)
    page = Path(maintenance.directory(site), "page.html")
    Path(site.paths.shared).mkdir(parents=True)
    told = maintenance.on(site, "a move", "ann", message="One")
    assert (told["changed"], told["message"]) == (True, {"en": "One"}) and "<p>One</p>" in page.read_text()
    again = maintenance.on(site, "another", "bob", message="Two", until=LATER)
    assert (again["changed"], again["reason"], again["by"]) == (
        False,
        "a move",
        "ann",
    ) and "<p>Two</p>" in page.read_text()
    assert maintenance.status(site)["until"] == LATER
    assert maintenance.on(site) == {**maintenance.status(site), "changed": False} and "<p>Two</p>" in page.read_text()
    assert maintenance.off(site)["changed"]


def test_all_languages_are_those_of_ckan_and_have_all_texts() -> None:
    assert {*languages.TEXTS, *languages.SAME, *languages.RIGHT_TO_LEFT} <= {*languages.KNOWN}
    assert all(len(texts) == 3 and all(texts) for texts in languages.TEXTS.values())
    assert {*languages.SAME.values()} <= {*languages.TEXTS}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be made to show what others may not read")
@pytest.mark.parametrize("setting", ["maintenance_page", "maintenance_logo"])
@pytest.mark.parametrize("kind", ["link", "second name", "link above"])
def test_no_file_of_roots_is_shown_to_visitors_by_a_link_of_ckans_user(place: Path, setting: str, kind: str) -> None:
    """A page beside the uploads, in a directory that CKAN's user may write to."""
    theirs, secret = place / "theirs", place / "secret/file"
    secret.parent.mkdir()
    secret.write_bytes(b"GIF89a a secret")
    secret.chmod(0o600)
    theirs.mkdir()
    shutil.chown(theirs, "www-data")
    named = theirs / "file"
    if kind == "link above":
        (theirs / "pages").symlink_to(secret.parent)
        named = theirs / "pages/file"
    elif kind == "link":
        named.symlink_to(secret)
    else:
        named.hardlink_to(secret)
    site = fake_site(place, **{f"web__{setting}": str(named)})
    with pytest.raises(FormulaError, match=f"{theirs}.*, and others than root may have put it there"):
        page_of(site)
    assert maintenance_page.problems(site)
    # Root's own link is meant.
    mine = place / "mine"
    mine.symlink_to(secret)
    assert page_of(fake_site(place, **{f"web__{setting}": str(mine)}))
