"""A headless Chromium of Debian, driven by selenium, with axe-core of npm to look for what shuts people out."""

from __future__ import annotations

import contextlib
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from parts import system

PACKAGES = ("chromium", "chromium-driver", "fonts-dejavu-core")
AXE = "axe-core@4.14.1"
# The rules of WCAG 2.2 at the levels A and AA, and what axe holds for good practice.
TAGS = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")


class Browser:
    """A window of the browser."""

    def __init__(self, driver: Any, axe: str) -> None:
        self._driver, self._axe = driver, axe

    @classmethod
    @contextlib.contextmanager
    def open(cls) -> Iterator[Browser]:
        """Install what is missing, and start the browser. Raises PartError where something cannot be had."""
        system.ensure_packages(PACKAGES)
        # Only here: whoever asks for no browser does without it.
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        # As root, as in a container, it starts without its sandbox only; it sees pages of ours and nothing else.
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
        try:
            yield cls(driver, _axe())
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

    def problems(self) -> list[dict[str, Any]]:
        """Return what axe finds wrong: its rule, why, and where."""
        self._driver.execute_script(self._axe)
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
