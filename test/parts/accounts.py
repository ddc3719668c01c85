"""People with accounts at a real CKAN, and what their browsers send: cookies, and forms with all their fields."""

from __future__ import annotations

import re
import subprocess
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter

# Runs inside a release, for one boot instead of several.
_MAKE = """
import sys
from ckan.cli import CKANConfigLoader
from ckan.config.middleware import make_app
app = make_app(CKANConfigLoader(sys.argv[1]).get_config())
app = getattr(app, "_wsgi_app", app)
from ckan import model
from ckan.plugins import toolkit
with app.test_request_context("/"):
    names = sys.argv[3:]
    for name in names:
        about = {"name": name, "email": name + "@example.org", "password": sys.argv[2]}
        toolkit.get_action("user_create")({"ignore_auth": True}, about)
        model.User.get(name).sysadmin = True
    model.Session.commit()
    token = toolkit.get_action("api_token_create")({"ignore_auth": True, "user": names[0]},
                                                   {"user": names[0], "name": "demo"})
print("TOKEN", token["token"])
"""


def make_admins(ini: Path, password: str, names: Sequence[str] = ("admin",)) -> str:
    """Make system administrators of CKAN.

    ini
        The ini of a release, in its directory.
    password
        The password of each.
    names
        Their names.

    Returns an API token of the first. Raises RuntimeError with CKAN's words.
    """
    done = subprocess.run(
        ["runuser", "-u", "www-data", "--", ini.parent / "bin/python", "-c", _MAKE, ini, password, *names],
        capture_output=True, text=True, cwd="/", check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("TOKEN ")]
    if not lines:
        raise RuntimeError(f"no accounts could be made: {done.stderr[-2000:]}")
    return lines[0].split()[1]


class Here(HTTPAdapter):
    """Every name is an address of this machine.

    port
        The port there.
    address
        The address, `127.0.0.1` or `[::1]`.
    """

    def __init__(self, port: int, address: str = "127.0.0.1") -> None:
        self.place = f"{address}:{port}"
        super().__init__()

    def send(self, request: requests.PreparedRequest, *rest: Any, **more: Any) -> requests.Response:
        """Send one request; redirects are another one each."""
        parts = urllib.parse.urlsplit(str(request.url))
        request.headers["Host"] = parts.netloc
        asked, request.url = request.url, parts._replace(netloc=self.place).geturl()
        answer = super().send(request, *rest, **more)
        request.url = answer.url = str(asked)
        return answer


class Person(requests.Session):
    """Somebody with a browser.

    url
        Address of the portal.
    adapter
        Where that is.
    """

    def __init__(self, url: str, adapter: HTTPAdapter) -> None:
        super().__init__()
        self.verify, self.trust_env, self.url = False, False, url
        self.mount("https://", adapter)

    def see(self, path: str) -> requests.Response:
        """Ask for a page."""
        return self.get(self.url + path, timeout=120)

    def submit(self, path: str, to: str = "", **fields: Any) -> requests.Response:
        """Fill in the form of a page, and send it as a browser does; redirects are followed.

        path
            The page.
        to
            Where the form is sent, if not to the page.
        fields
            What is filled in; a file is (name, content, type).

        Raises AssertionError where the page has no form.
        """
        address = self.url + path
        page = self.get(address, timeout=120)
        token = re.search(r'name="_csrf_token" content="([^"]+)"|name="_csrf_token" value="([^"]+)"', page.text)
        assert page.status_code == 200 and token, (page.status_code, page.text[:500])
        files = {name: fields.pop(name) for name in [*fields] if isinstance(fields[name], tuple)}
        data = {"_csrf_token": token[1] or token[2], **fields}
        return self.post(
            self.url + (to or path), data=data, files=files or None, headers={"Referer": address}, timeout=120
        )

    def log_in(self, name: str, password: str) -> requests.Response:
        """Log in by the form; raises AssertionError where CKAN does not take that."""
        done = self.submit("/user/login", login=name, password=password)
        assert done.status_code == 200 and "Log out" in done.text, (done.status_code, done.url, done.text[:300])
        return done


def said(answer: requests.Response) -> str:
    """Return what a page says of what went wrong."""
    errors = re.findall(r'class="(?:error-explanation|alert|error-block)[^"]*".*?</div>', answer.text, re.S)
    return f"{answer.status_code} {answer.url}: {' '.join(errors) or answer.text[:500]}"
