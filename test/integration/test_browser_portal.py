"""
A person with a real browser at a real CKAN, by https on a port of its own: logs in, makes a dataset, uploads a file and
sees it, before and after a deploy. Below a path, and with the host for itself.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from parts.accounts import make_admins
from parts.browser import Browser
from parts.lone import DOMAIN, LonePortal
from stub import repos

# A browser has to be installed for it.
pytestmark = [pytest.mark.integration, pytest.mark.long]

PASSWORD = "a-password-of-eight"
FILE = "Linden, Żabia 7\nOak, Große Straße 12\n".encode() * 500


@pytest.fixture(scope="module")
def portal(lone: LonePortal) -> LonePortal:
    lone.be_at("/data")
    make_admins(lone.ini, PASSWORD)
    return lone


class Person:
    """Somebody at the browser, who is at what they see only while nothing on a page goes wrong."""

    def __init__(self, window: Browser, portal: LonePortal) -> None:
        self.window, self.portal, self.url = window, portal, portal.url

    def look(self) -> None:
        """Nothing leaves the portal's address, nothing fails, and the console is clean."""
        asked = self.window.asked()
        outside = [each for each in asked if not each.url.startswith((f"{self.url}/", "data:", "blob:", "about:"))]
        failed = [each for each in asked if each.url.startswith(self.url) and each.told not in (200, 302, 303, 304)]
        assert asked and (outside, failed) == ([], [])
        assert self.window.errors() == []
        assert self.window.url.startswith(f"{self.url}/")
        ours = [address for address in self.window.addresses() if urlsplit(address).hostname == DOMAIN]
        leaving = [address for address in ours if not address.startswith(f"{self.url}/")]
        assert len(ours) > 5 and leaving == [], leaving

    def go(self, path: str) -> None:
        self.window.go(self.url + path)
        self.look()

    def log_in(self) -> None:
        self.go("/")
        self.window.submit(".account a[href$='/user/login']")
        self.look()
        self.window.fill(login="admin", password=PASSWORD)
        self.window.submit("form .form-actions button")
        self.look()
        assert self.is_logged_in()

    def is_logged_in(self) -> bool:
        return "admin" in self.window.text(".account-masthead .username")

    def make_organization(self, title: str) -> None:
        self.go("/organization/new")
        self.window.fill(title=title)
        self.window.submit("form [name=save]")
        self.look()
        self.window.text("title", title)

    def make_dataset(self, title: str, file: Path) -> str:
        """Make a dataset with a file; returns the path of its page."""
        self.go("/dataset/new")
        self.window.fill(title=title, notes="What stands in the streets.")
        self.window.submit("form [name=save]")
        self.look()
        self.window.choose("#resource-upload-button", "[name=upload]", file)
        self.window.submit("form [value=go-metadata]")
        self.look()
        self.window.text("title", title)
        return self.window.url.removeprefix(self.url)

    def see_file(self, dataset: str, wanted: bytes) -> None:
        """Look at the file on its page, and download it."""
        self.go(dataset)
        self.window.submit(".resource-item a.heading")
        self.window.text("pre", wanted.decode().splitlines()[1], frame="iframe")
        link = self.window.find(".module-resource a.resource-url-analytics").get_attribute("href")
        assert link.startswith(f"{self.url}/") and self.window.content(link) == wanted
        self.look()


def icon_is_there(person: Person) -> None:
    (icon,) = [address for address in person.window.addresses() if address.endswith(".ico")]
    assert person.window.content(icon)[:4] == b"\0\0\1\0"


@pytest.mark.parametrize(("path", "address"), [("/data", "127.0.0.1"), ("", "[::1]")])
def test_a_person_uploads_a_file_and_sees_it_before_and_after_a_deploy(
    portal: LonePortal, tmp_path: Path, path: str, address: str
) -> None:
    portal.be_at(path)
    file = tmp_path / "trees.txt"
    file.write_bytes(FILE)
    title = f"Trees of {path.strip('/') or 'all'}"
    with Browser.open({DOMAIN: address}) as window:
        person = Person(window, portal)
        person.log_in()
        icon_is_there(person)
        person.make_organization(f"Office of {title}")
        before = person.make_dataset(title, file)
        person.see_file(before, FILE)
        old = portal.host.current()
        repos.commit_change(portal.mycity, f"Welcome, with {title}")
        assert portal.host.deploy()["current"] != old
        person.go("/dataset/")
        assert window.text(".mycity-marker") == f"Welcome, with {title}" and person.is_logged_in()
        person.see_file(before, FILE)
        file.write_bytes("Platanen, Łódź 1\nUlmen, Ring 2\n".encode())
        after = person.make_dataset(f"More {title}", file)
        person.see_file(after, file.read_bytes())
    log = Path(portal.host.site().paths.access_log).read_text()
    assert [line for line in log.splitlines() if '" 4' in line or '" 5' in line] == []
