"""
A host of the Ansible roles is taken over as docs/migrate-from-ansible.md says, and goes back to them: the commands are
read from that page. Apache with mod_wsgi and visitors are real, only CKAN is a small stand-in.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckan_deploy.build import virtualenv
from daemon.conftest import Site, eventually
from parts.apache import Apache
from parts.visitors import Visitors

pytestmark = pytest.mark.daemon

REPO = Path(__file__).resolve().parents[2]
OLD, RELEASE = "20190412093000", "20190412093000Z"
# As the roles' template has it: the ini is named after nothing that the formula knows.
WSGI = """\
import os
from ckan.config.middleware import make_app
from ckan.cli import CKANConfigLoader
config_filepath = os.path.join("{home}", "current", "old.ini")
application = make_app(CKANConfigLoader(config_filepath).get_config())
"""
VIRTUAL_HOST = """\
Listen 127.0.0.1:{port}
<VirtualHost 127.0.0.1:{port}>
    ServerName 127.0.0.1
    WSGIDaemonProcess ckan_default user=www-data group=www-data processes=2 threads=4 \\
        python-home={home}/current display-name=ckan_default
    WSGIProcessGroup ckan_default
    WSGIApplicationGroup %{{GLOBAL}}
    WSGIPassAuthorization On
    WSGIScriptAlias / {config}/apache.wsgi
    <Directory {config}>
        Require all granted
    </Directory>
</VirtualHost>
"""
INI = """\
[DEFAULT]
debug = false
[app:main]
use = egg:ckan
ckan.site_url = http://127.0.0.1
ckan.site_title = Of the roles
ckan.plugins =
beaker.session.secret = an-old-secret
stub.database = {sandbox}/database/stub.json
stub.jobs = {sandbox}/jobs
"""


def commands(heading: str) -> list[list[str]]:
    """The commands below a heading of the page, in order, as a shell would take them."""
    text = (REPO / "docs/migrate-from-ansible.md").read_text(encoding="utf-8")
    section = re.split(r"^###? ", text.partition(f" {heading}\n")[2], maxsplit=1, flags=re.M)[0]
    blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", section, re.M | re.S)
    return [shlex.split(line) for kind, block in blocks if not kind for line in block.splitlines()]


class RolesSite(Site):
    """One web host as the roles leave it, with Apache."""

    def __init__(self, base: Path) -> None:
        super().__init__(base, hosts=["web1"])
        root = self.root("web1")
        self.home, self.config = root / "usr/lib/ckan", root / "etc/ckan/default"
        sites = root / "etc/apache2/sites-enabled"
        self.apache = Apache(self.sandbox, sites)
        self.old, self.available = self.home / "releases" / OLD, sites.with_name("sites-available") / "portal.conf"
        self.file, self.wsgi = sites / "portal.conf", self.config / "apache.wsgi"
        for path in (self.old.parent, self.config, self.available.parent):
            path.mkdir(parents=True)
        virtualenv.clone(str(base), str(self.old), link="copy")
        (self.old / "old.ini").write_text(INI.format(sandbox=self.sandbox))
        (self.home / "current").symlink_to(self.old)
        self.wsgi.write_text(WSGI.format(home=self.home))
        names = {"home": self.home, "config": self.config, "port": self.ports["web1"]}
        self.available.write_text(VIRTUAL_HOST.format(**names))
        self.file.symlink_to("../sites-available/portal.conf")
        self.before = self.files()
        self.settings["web"] = {**self.settings["web"], "server": "apache", "apache_conf": str(self.apache.conf)}
        self.settings["paths"] = {"apache_site": str(self.file)}
        self.settings["workers"] = {"default": {}}
        self.settings["config"]["stub.jobs"] = str(self.sandbox / "jobs")
        (self.sandbox / "jobs/default").mkdir(parents=True)
        self.write_pillar(self.settings)

    def files(self) -> dict[str, str]:
        """What of the roles serves."""
        return {
            "current": str((self.home / "current").readlink()),
            "link": str(self.file.readlink()) if self.file.is_symlink() else "",
            **{str(path): path.read_text() for path in (self.wsgi, self.file, self.available)},
        }

    def type(self, words: list[str]) -> str:
        """Type a command of the page; returns what it says."""
        done = self.fleet.run(*words, "--timeout=60") if words[0] == "salt" else self.fleet.run(*words)
        assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def title(self) -> str:
        """The title of the front page, and the release that answered."""
        _, page, release = self.get("/", "web1")
        return " ".join([*re.findall("<h1>(.*)</h1>", page), *re.findall('mycity-marker">(.*?)<', page), release])


@pytest.fixture
def roles(stub_base: Path) -> Iterator[RolesSite]:
    with RolesSite(stub_base) as site:
        site.apache.start()
        site.start()
        assert site.title() == "Of the roles "
        yield site


def failed(site: RolesSite, visitors: Visitors) -> list[str]:
    """
    The requests that failed. Not those that Apache itself answers 503 when it is told to read its configuration: one
    that it has taken and not handed on yet, since the socket of mod_wsgi is another one then (1 reload of 6 with 200
    requests a second). Those that come later wait.
    """
    log = (site.apache.directory / "error.log").read_text(encoding="utf-8", errors="replace")
    reloads = [
        time.strptime(told, "%b %d %H:%M:%S") for told in re.findall(r"^\[\w+ (.{15})\.\d+ .*SIGUSR1", log, re.M)
    ]
    seconds = [time.strftime("%H:%M:%S", reload) for reload in reloads]
    return [line for line in visitors.failed if line not in {f"{second} 503" for second in seconds}]


def test_h20_the_guide_is_walked_literally_and_no_request_fails(roles):
    said: dict[str, str] = {}
    titles: dict[str, str] = {}

    def walk(heading: str) -> None:
        for words in commands(heading):
            name, asked = " ".join(words[1:]), visitors.asked
            said[name] = roles.type(words)
            # Visitors have seen what this step did.
            eventually(lambda asked=asked: visitors.asked > asked + 20, True)
            titles[name] = roles.title()
            log = (roles.apache.directory / "error.log").read_text()[-2000:]
            assert failed(roles, visitors) == [], f"{name}\n{log}"

    with Visitors(roles.ports["web1"], pause=0.05) as visitors:
        walk("Step by step")
        latest = roles.current("web1")
        code, before = roles.status()
        assert code == 0, before
        walk("Go back to the roles")
    assert latest > RELEASE and len(visitors.failed) <= 4, visitors.failed
    # Who served, after each step.
    assert list(titles.values()) == [
        *["Of the roles "] * 4, *[f"Of the roles {RELEASE}"] * 5,
        f"My City&#x27;s Data Hello one {latest}", "Of the roles ",
    ]  # fmt: skip
    # The operator is told where the copies are, and they are there.
    told = dict(re.findall(r"(\S+) as (\S+-\d{14}Z)", said["web1 state.apply ckan.web"]))
    assert sorted(told) == sorted(map(str, (roles.wsgi, roles.file, roles.home / "current")))
    assert Path(told[str(roles.wsgi)]).read_text() == roles.before[str(roles.wsgi)]
    assert f"{roles.wsgi}.before-formula-" in told[str(roles.wsgi)]
    assert "is linked" not in said["ckan.status production"] and RELEASE in said["ckan.status production"]
    # And the way back is the whole way.
    assert roles.files() == roles.before
    assert "ckan-worker" not in roles.supervisor().ctl("status")
    code, told = roles.status()
    row = told["hosts"]["web1"]
    assert f"salt web1 ckan_release.activate {RELEASE}" in " ".join(row["wrong"]), row
