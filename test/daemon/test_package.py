"""A host with the official CKAN package is taken over, and visitors notice nothing. Only CKAN is a small stand-in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from daemon.conftest import Site, eventually
from parts.portal import next_second
from parts.ports import answers, free_port
from parts.visitors import Visitors
from stub import repos

pytestmark = pytest.mark.daemon

# In the words of the package, as far as they count here.
WSGI = """\
import os
from ckan.config.middleware import make_app
from ckan.cli import CKANConfigLoader
config_filepath = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'ckan.ini')
application = make_app(CKANConfigLoader(config_filepath).get_config())
"""
UWSGI = """\
[uwsgi]
http = 127.0.0.1:{port}
master = true
lazy-apps = true
wsgi-file = {config}/wsgi.py
virtualenv = {base}
"""
PROGRAM = """\
[program:{name}]
command = {command}
user = www-data
numprocs = 1
process_name = %(program_name)s-%(process_num)02d
autostart = true
autorestart = true
stopsignal = {signal}
stopwaitsecs = 20
"""
NGINX = """\
server {{
    listen 127.0.0.1:{listen};
    location / {{
        proxy_pass http://127.0.0.1:{port}/;
        proxy_set_header Host $host;
    }}
}}
"""


class PackageSite(Site):
    """One host as the official package leaves it."""

    def __init__(self, base: Path) -> None:
        super().__init__(base, hosts=["web1"])
        self.package_port = free_port()
        self.settings["workers"] = {"default": {}}
        self.settings["web"]["drain_timeout"] = 30
        self.settings["config"]["stub.jobs"] = str(self.sandbox / "jobs")
        (self.sandbox / "jobs/default").mkdir(parents=True)
        self.write_pillar(self.settings)
        self.etc = self.root("web1") / "etc"
        self.config = self.etc / "ckan/default"
        self.programs = self.etc / "supervisor/conf.d"
        for path in (self.config, self.programs, self.etc / "nginx/sites-available", self.etc / "nginx/sites-enabled"):
            path.mkdir(parents=True)
        (self.config / "ckan.ini").write_text(
            "[app:main]\nckan.site_url = http://127.0.0.1\nckan.site_title = Of the package\n"
            f"ckan.plugins =\nstub.jobs = {self.sandbox}/jobs\nstub.database = {self.sandbox}/database/stub.json\n"
        )
        (self.config / "wsgi.py").write_text(WSGI)
        names = {"port": self.package_port, "config": self.config, "base": base, "listen": self.ports["web1"]}
        (self.config / "ckan-uwsgi.ini").write_text(UWSGI.format(**names))
        commands = {
            "ckan-uwsgi": (f"{base}/bin/uwsgi -i {self.config}/ckan-uwsgi.ini", "QUIT"),
            "ckan-worker": (f"{base}/bin/ckan -c {self.config}/ckan.ini jobs worker", "TERM"),
        }
        for name, (command, signal) in commands.items():
            text = PROGRAM.format(name=name, command=command, signal=signal)
            (self.programs / f"{name}.conf").write_text(text)
        (self.etc / "nginx/sites-available/ckan").write_text(NGINX.format(**names))
        (self.etc / "nginx/sites-enabled/ckan").symlink_to(self.etc / "nginx/sites-available/ckan")
        self.before = {path: path.read_text() for path in self.files()}

    def files(self) -> list[Path]:
        """What of the package is in service, as far as the formula touches it."""
        programs = [self.programs / f"{name}.conf" for name in ("ckan-uwsgi", "ckan-worker")]
        return [self.etc / "nginx/sites-enabled/ckan", *programs, self.config / "wsgi.py"]

    def page(self) -> str:
        return self.get("/", "web1")[1]


@pytest.fixture(scope="module")
def packaged(stub_base: Path) -> Iterator[PackageSite]:
    site = PackageSite(stub_base)
    try:
        site.start()
        eventually(lambda: "Of the package" in site.page(), True, 20)
        yield site
    finally:
        site.destroy()


def test_a_first_deploy_that_fails_leaves_the_package_in_service(packaged):
    repos.commit_broken(packaged.repo, "not yet")
    with Visitors(packaged.front_port) as visitors:
        done = packaged.highstate()
        assert done["code"] == 1 and "not yet" in done["text"], done["text"]
    assert visitors.failed == [] and "Of the package" in packaged.page()
    # Its app server can be started again, though the pointer is the formula's now.
    assert "Written by the CKAN formula" in (packaged.config / "wsgi.py").read_text()
    packaged.supervisor().ctl("restart", "ckan-uwsgi")
    eventually(lambda: "Of the package" in packaged.page(), True, 20)


def test_a_host_of_the_official_package_is_taken_over_and_no_request_fails(packaged):
    next_second()
    repos.commit_change(packaged.repo, "Hello formula")
    with ThreadPoolExecutor(1) as pool, Visitors(packaged.front_port) as visitors:
        # One that the package's app server is still at when it is to end.
        slow = pool.submit(packaged.get, "/slow?seconds=15", "web1")
        done = packaged.highstate()
        assert slow.result()[:2] == (200, "slow\n")
    assert done["code"] == 0, done["text"]
    assert visitors.failed == [] and visitors.asked > 20
    assert packaged.served() == ["Hello formula"]
    there = [path for path in packaged.files() if path.exists()]
    assert [path.name for path in there] == ["wsgi.py"]
    assert not answers(packaged.package_port)
    assert "ckan-worker" not in packaged.supervisor().ctl("status")
    assert "backup" not in (packaged.etc / "nginx/conf.d/ckan-default.conf").read_text()
    copies = [*(packaged.config / "before-formula").iterdir(), *packaged.config.glob("wsgi.py.before-formula-*")]
    links = [path.name for path in copies if path.is_symlink()]
    assert [name.partition("-20")[0] for name in links] == ["nginx-site"] and links[0].endswith("Z.link")
    # Their names say of what and when.
    kept = {re.sub("-[0-9]{14}Z$", "", path.name): path.read_text() for path in copies if not path.is_symlink()}
    names = {"ckan": "nginx-site", "wsgi.py": "wsgi.py.before-formula"}
    assert kept == {names.get(path.name, path.name): text for path, text in packaged.before.items()}
    done = packaged.highstate()
    assert done["code"] == 0
    assert [s for states in done["hosts"].values() for s in states.values() if s["changes"]] == []


def test_the_package_can_be_put_back(packaged):
    with Visitors(packaged.front_port) as visitors:
        code, told = packaged.call("web1", "ckan_package.restore")
        assert code == 0, told
        eventually(lambda: "Of the package" in packaged.page(), True, 20)
    assert visitors.failed == []
    assert {path: path.read_text() for path in packaged.files()} == packaged.before
    told = packaged.supervisor().ctl("status").splitlines()
    assert sorted(line.split(":")[0] for line in told) == ["ckan-uwsgi", "ckan-worker"]
