"""
A real CKAN behind the virtual host of a real nginx (with uWSGI) and of a real Apache (with mod_wsgi), for a browser.

There is no Salt here: the site is the package's, its files are made by the package's own functions.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.conftest import Behind

from ckan_deploy.build import ini
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import health, pointers, uwsgi, virtual_host
from fakes import fake_site
from parts.accounts import Here, Person, make_admins, said
from parts.apache import Apache
from parts.nginx import host_nginx
from parts.ports import free_port, socket_answers
from parts.process import Service, kill_all, sandbox

pytestmark = pytest.mark.integration

DOMAIN, RELEASE, LOGIN = "data.example.org", "20260101000000Z", "a-password-of-eight"


class Portal:
    """A CKAN of one host, with its web server; nothing is started yet."""

    def __init__(self, behind: Behind, server: str, **changes: Any) -> None:
        self.place = sandbox("ckan-v-")
        self.server, self.port = server, free_port()
        self.sites = self.place / "sites"
        self.web = host_nginx(self.place, self.sites) if server == "nginx" else Apache(self.place, self.sites)
        certificate = {"certificate": str(self.place / "cert.pem"), "key": str(self.place / "cert.key")}
        _make_certificate(**certificate)
        root = self.place / "host"
        settings: dict[str, Any] = {
            **behind.settings,
            "site_url": f"https://{DOMAIN}:{self.port}",
            "database": {
                **behind.settings["database"],
                **dict.fromkeys(("name", "user"), "web_default"),
                "password": LOGIN,
            },
            "datastore": {},
            "tls": {**certificate, "listen": f"127.0.0.1:{self.port}"},
            "paths": {**behind.settings["paths"], f"{server}_site": str(self.sites / "ckan.conf")},
            "web": {
                "server": server, "listen": f"127.0.0.1:{free_port()}", f"{server}_conf": str(self.web.conf),
                "processes": 1, "upload_limit_mb": 20,
            },
            **{key: value for key, value in changes.items() if key != "web"},
        }  # fmt: skip
        settings["web"].update(changes.get("web", {}))
        settings["site_url"] = settings["site_url"].format(port=self.port)
        self.site: Site = fake_site(root, **settings)
        self.url = self.site.settings.site_url
        self.release = Path(self.site.releases.directory(RELEASE))
        self._make_release(Path(behind.base))

    def _make_release(self, base: Path) -> None:
        """The base itself, seen as a release."""
        self.release.mkdir(parents=True)
        for name in ("bin", "lib", "pyvenv.cfg"):
            (self.release / name).symlink_to(base / name)
        Path(self.site.paths.current).symlink_to(f"releases/{RELEASE}")
        ini.write(self.site, str(self.release))
        for folder in ("storage", "sessions", "home"):
            (Path(self.site.paths.data) / folder).mkdir(parents=True, exist_ok=True)
            shutil.chown(Path(self.site.paths.data) / folder, "www-data", "www-data")
        uwsgi.write(self.site, str(self.release), "nobody")
        os.makedirs(self.site.paths.config, exist_ok=True)
        for name in ("wsgi.py", "apache.wsgi"):
            pointers.install(self.site, os.path.join(self.site.paths.config, name))

    def ckan(self, *arguments: str) -> None:
        command = [self.release / "bin/python", *arguments]
        done = subprocess.run(
            ["runuser", "-u", "www-data", "--", *command], capture_output=True, text=True, cwd="/", check=False
        )
        assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2000:]

    def start(self) -> Portal:
        if self.server == "nginx":
            server = Service(self.place, "uwsgi", stop_signal=9)
            shutil.chown(server.directory, "www-data")
            place = str(self.release / "run/web.sock")
            server.launch(
                [self.release / "bin/uwsgi", "--ini", self.release / "uwsgi.ini"],
                lambda: socket_answers(place), user="www-data", env={"RELEASE_DIR": str(self.release)},
            )  # fmt: skip
        self.web.start()
        virtual_host.install(self.site)
        health.front_problem(self.site)
        health.health(self.site, RELEASE)
        return self

    def stop(self) -> None:
        kill_all(self.place)
        shutil.rmtree(self.place, ignore_errors=True)


def _make_certificate(certificate: str, key: str) -> None:
    command = ["openssl", "req", "-x509", "-subj", f"/CN={DOMAIN}", "-days", "2", "-nodes", "-newkey", "ec"]
    command += ["-pkeyopt", "ec_paramgen_curve:P-256", "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)


def browser_of(portal: Portal) -> Person:
    return Person(portal.url, Here(portal.port))


@pytest.fixture(scope="module")
def database(behind: Behind) -> Behind:
    """An initialized database of these portals alone, with an administrator in it."""
    behind.postgres.create_database("web_default", "web_default", LOGIN)
    portal = Portal(behind, "nginx")
    file = str(portal.release / "production.ini")
    try:
        portal.ckan(str(portal.release / "bin/ckan"), "-c", file, "db", "init")
        make_admins(portal.release / "production.ini", LOGIN)
    finally:
        portal.stop()
    return behind


@pytest.fixture(scope="module", params=["nginx", "apache"])
def portal(request: pytest.FixtureRequest, database: Behind) -> Iterator[Portal]:
    """https on another port than 443."""
    made = Portal(database, request.param)
    try:
        yield made.start()
    finally:
        made.stop()


def test_f08_a_form_is_taken_by_https_on_another_port(portal: Portal) -> None:
    browser = browser_of(portal)
    browser.log_in("admin", LOGIN)
    name = f"office-{portal.server}"
    done = browser.submit("/organization/new", name=name, title="Office", save="")
    assert (done.status_code, done.url) == (200, f"{portal.url}/organization/{name}"), said(done)


def test_an_image_above_ckan_s_own_limit_is_taken_and_one_above_ours_is_told_by_ckan(portal: Portal) -> None:
    browser = browser_of(portal)
    browser.log_in("admin", LOGIN)
    picture, name = (
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\2\0\0\0" + bytes(11 * 2**20),
        f"picture-{portal.server}",
    )
    done = browser.submit("/organization/new", name=name, title="P", image_upload=("a.png", picture, "image/png"))
    assert (done.status_code, done.url) == (200, f"{portal.url}/organization/{name}"), said(done)
    stored = Path(portal.site.paths.data) / "storage/storage/uploads/group"
    assert [file.stat().st_size for file in stored.iterdir()] == [len(picture)]
    large = picture + bytes(9 * 2**20 + 2**19)
    done = browser.submit(
        "/organization/new", name=f"large-{name}", title="P", image_upload=("a.png", large, "image/png")
    )
    assert done.status_code == 200 and "File upload too large" in said(done), said(done)


@pytest.fixture(scope="module", params=["nginx", "apache"])
def below(request: pytest.FixtureRequest, database: Behind) -> Iterator[Portal]:
    """A portal that is below a path of its host."""
    made = Portal(
        database,
        request.param,
        site_url=f"https://{DOMAIN}:{{port}}/open/data",
        config={"ckan.locales_offered": "en de"},
    )
    try:
        yield made.start()
    finally:
        made.stop()


def test_f18_a_portal_below_a_path(below: Portal) -> None:
    browser, url = browser_of(below), below.url
    page = browser.see("/")
    assert (page.status_code, browser.see("").url) == (200, f"{url}/")
    # Whatever the page names of its own host is there.
    links = set(re.findall(r'(?:href|src)="((?:/|https://data\.example\.org)[^"#]*)"', page.text))
    assets = [link for link in links if re.search(r"\.(css|js)(\?|$)", link)]
    assert len(assets) > 2 and len(links) > 10
    for link in sorted(links):
        address = urllib.parse.urljoin(f"{url}/", link)
        # Pictures are of another portal with this database.
        if "/uploads/" not in address:
            assert address.startswith(url), address
            assert browser.get(address, timeout=60).status_code == 200, address
    # Languages.
    german = browser.see("/de/dataset/")
    assert german.status_code == 200 and "Datensätze" in german.text and "/open/data/de/organization/" in german.text
    languages = re.findall(r'<option value="([^"]*/dataset/)"', german.text)
    assert sorted(languages) == ["/open/data/de/dataset/", "/open/data/en/dataset/"]
    # API, login and forms.
    assert browser.see("/api/3/action/status_show").json()["result"]["site_url"] == url.removesuffix("/open/data")
    assert browser.log_in("admin", LOGIN).url.startswith(f"{url}/")
    name = f"below-{below.server}"
    done = browser.submit("/organization/new", name=name, title="Below", save="")
    assert (done.status_code, done.url) == (200, f"{url}/organization/{name}"), said(done)


def test_the_socket_of_the_app_server_is_for_the_group_of_the_web_server_only(portal: Portal) -> None:
    if portal.server == "apache":
        # mod_wsgi has no app server of ours.
        assert not (portal.release / "run/web.sock").exists()
        return
    place = portal.release / "run/web.sock"
    assert (stat.S_IMODE(place.stat().st_mode), place.group()) == (0o660, "www-data")
    ask = f"import socket; socket.socket(socket.AF_UNIX).connect({str(place)!r})"
    codes = [
        subprocess.run(["runuser", "-u", user, "--", "python3", "-c", ask], cwd="/", capture_output=True).returncode
        for user in ("www-data", "nobody")
    ]
    assert codes == [0, 1]
