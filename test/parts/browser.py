"""A headless Chromium of Debian, driven by selenium, with axe-core of npm to look for what shuts people out."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from parts import system

PACKAGES = ("chromium", "chromium-driver", "fonts-dejavu-core")
AXE = "axe-core@4.14.1"
# The rules of WCAG 2.2 at the levels A and AA, and what axe holds for good practice.
TAGS = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")
# As in a container, where it is root and has little shared memory. A page that still scrolls cannot be clicked on.
ARGUMENTS = (
    "headless=new", "no-sandbox", "disable-dev-shm-usage", "hide-scrollbars", "window-size=1280,900",
    "force-prefers-reduced-motion",
)  # fmt: skip
# Until a page is there.
SECONDS = 60


class Asked(NamedTuple):
    """What a page has asked for: its address, and the status of the answer, or why there was none; 0 for not yet."""

    url: str
    told: int | str


class Browser:
    """A window of the browser."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    @classmethod
    @contextlib.contextmanager
    def open(cls, names: Mapping[str, str] | None = None) -> Iterator[Browser]:
        """Install what is missing, and start the browser.

        names
            Where the hosts are that it is to ask, such as `{"data.example.org": "[::1]"}`; their certificates are taken
            as they are.

        Raises PartError where something cannot be had.
        """
        system.ensure_packages(PACKAGES)
        # Only here: whoever asks for no browser does without it.
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        # As root it starts without its sandbox only; it sees pages of ours and nothing else.
        for argument in ARGUMENTS:
            options.add_argument(f"--{argument}")
        if names:
            rules = ", ".join(f"MAP {name} {place}" for name, place in names.items())
            for argument in (f"host-resolver-rules={rules}", "ignore-certificate-errors", "no-proxy-server"):
                options.add_argument(f"--{argument}")
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
        try:
            yield cls(driver)
        finally:
            driver.quit()

    def show(self, page: Path, width: int, scheme: str) -> None:
        """Show a page in a window of a width in pixels, `light` or `dark`."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self._driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self._driver.get_log("performance")
        self._driver.get(page.as_uri())

    def width(self) -> tuple[int, int]:
        """Return the width of the window, and the one that the page takes."""
        found = self._driver.execute_script("return [window.innerWidth, document.documentElement.scrollWidth]")
        return found[0], found[1]

    def ground(self) -> list[int]:
        """Return red, green and blue of the page's ground."""
        color = self._driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        return [int(part) for part in re.findall(r"\d+", color)[:3]]

    def loaded(self) -> list[str]:
        """Return what the page that is shown has asked for, beside itself and what it holds."""
        own = self._driver.current_url
        urls = re.findall(r'"Network.requestWillBeSent".*?"request":\{.*?"url":"([^"]*)"',
                          "\n".join(entry["message"] for entry in self._driver.get_log("performance")))  # fmt: skip
        return [url for url in urls if url != own and not url.startswith("data:")]

    def go(self, url: str) -> None:
        """Go to a page."""
        self._driver.get(url)

    @property
    def url(self) -> str:
        """The address of the page that is shown."""
        return str(self._driver.current_url)

    def find(self, what: str) -> Any:
        """Return the element of a CSS selector, as soon as it is there; raises TimeoutException where it is not."""
        return self._wait(lambda driver: driver.find_elements("css selector", what))[0]

    def fill(self, **fields: str) -> None:
        """Fill in fields of a form by their names."""
        for name, value in fields.items():
            self.find(f"[name={name}]").send_keys(value)

    def submit(self, button: str) -> None:
        """Click on what leads to another page, and wait for that."""
        page = self.find("html")
        self.find(button).click()
        self._wait(lambda driver: driver.find_element("css selector", "html") != page)
        self._wait(lambda driver: driver.execute_script("return document.readyState") == "complete")

    def text(self, what: str, wanted: str = "", frame: str = "") -> str:
        """Return the text of an element, as soon as something is in it; the element may be in a frame of the page."""
        if frame:
            self._driver.switch_to.frame(self.find(frame))
        try:
            self._wait(lambda _: wanted in self._text(what))
            return self._text(what)
        finally:
            self._driver.switch_to.default_content()

    def _wait(self, until: Callable[[Any], Any]) -> Any:
        from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        ignored = (NoSuchElementException, StaleElementReferenceException)
        return WebDriverWait(self._driver, SECONDS, 0.1, ignored).until(until)

    def _text(self, what: str) -> str:
        # Also of what a narrow window hides.
        return " ".join(str(self.find(what).get_attribute("textContent")).split())

    def choose(self, button: str, field: str, file: Path) -> None:
        """Click on a button that asks for a file, and give that to the field behind it."""
        self._driver.execute_cdp_cmd("Page.setInterceptFileChooserDialog", {"enabled": True})
        self.find(button).click()
        self.find(field).send_keys(str(file))

    def content(self, url: str) -> bytes:
        """Return what is at an address, asked for by the page that is shown."""
        ask = """
            const [url, done] = arguments;
            fetch(url).then(answer => answer.blob()).then(blob => {
                const reader = new FileReader();
                reader.onload = () => done(reader.result);
                reader.readAsDataURL(blob);
            }).catch(problem => done(String(problem)));"""
        told = self._driver.execute_async_script(ask, url)
        assert told.startswith("data:"), told
        return base64.b64decode(told.partition(",")[2])

    def addresses(self) -> list[str]:
        """Return all addresses that the page names: of links, pictures, scripts, styles, frames and forms."""
        ask = """
            const found = [];
            const kinds = [["a, link", "href"], ["img, script, iframe, source", "src"], ["form", "action"]];
            for (const [what, name] of kinds)
                for (const each of document.querySelectorAll(what))
                    if (each.hasAttribute(name)) found.push(new URL(each.getAttribute(name), document.baseURI).href);
            return found;"""
        return [str(address) for address in self._driver.execute_script(ask)]

    def asked(self) -> list[Asked]:
        """Return what was asked for since the last call of it, once all of it is answered."""
        found: dict[str, list[Asked]] = {}

        def all_answered(driver: Any) -> bool:
            for entry in driver.get_log("performance"):
                message = json.loads(entry["message"])["message"]
                _note(found, message["method"], message["params"])
            return all(many[-1].told for many in found.values())

        self._wait(all_answered)
        return [each for many in found.values() for each in many]

    def errors(self) -> list[str]:
        """Return the errors on the console since the last call of it."""
        return [entry["message"] for entry in self._driver.get_log("browser") if entry["level"] == "SEVERE"]

    def problems(self) -> list[dict[str, Any]]:
        """Return what axe finds wrong: its rule, why, and where."""
        self._driver.execute_script(_axe())
        ask = "axe.run(document, {runOnly: arguments[0]}).then(arguments[arguments.length - 1])"
        found = self._driver.execute_async_script(ask, list(TAGS))
        return [
            {"id": rule["id"], "help": rule["help"], "nodes": [node["html"] for node in rule["nodes"]][:5]}
            for rule in found["violations"]
        ]

    def picture(self, path: Path) -> None:
        """Write a picture of the whole page."""
        height = self._driver.execute_script("return document.documentElement.scrollHeight")
        width = self.width()[0]
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self._driver.save_screenshot(str(path))


def _note(found: dict[str, list[Asked]], method: str, params: dict[str, Any]) -> None:
    """Note what the browser tells of a request: it has one id, redirects included."""
    one = str(params.get("requestId"))
    many = found.get(one, [])
    if method == "Network.requestWillBeSent":
        if many and "redirectResponse" in params:
            many[-1] = many[-1]._replace(told=params["redirectResponse"]["status"])
        found.setdefault(one, many).append(Asked(params["request"]["url"], 0))
    elif many and method == "Network.responseReceived":
        many[-1] = many[-1]._replace(told=params["response"]["status"])
    elif many and method == "Network.loadingFailed":
        many[-1] = many[-1]._replace(told=params["errorText"])


@functools.cache
def _axe() -> str:
    """The text of axe-core, fetched by npm."""
    system.ensure_programs({"npm": "npm"})
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", AXE], cwd=folder, check=True, capture_output=True, timeout=300)
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as packed:
            script = packed.extractfile("package/axe.min.js")
            assert script
            return script.read().decode("utf-8")
