"""
What the formula shows people as pages, in a real browser: no scrolling to the side on a phone or a desk, and what axe
asks of a page for everybody (WCAG AA), in light and in dark. No portal is needed for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from parts import browser, pages

pytestmark = [pytest.mark.integration, pytest.mark.long]

WIDTHS = (390, 1280)
NAMES = ("deploy", "failed", "rollback", "index", "maintenance")


@pytest.fixture(scope="module")
def window() -> Iterator[browser.Browser]:
    with browser.Browser.open() as opened:
        yield opened


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return pages.write(tmp_path_factory.mktemp("pages"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", NAMES)
def test_a_page_fits_the_screen_and_can_be_read_by_all(
    window: browser.Browser, written: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    window.show(written[name], width, scheme)
    assert window.width() == (width, width), "the window, and what the page takes"
    assert window.loaded() == [], "a page asks for nothing from elsewhere"
    problems = window.problems()
    assert problems == [], json.dumps(problems, indent=1)
    window.picture(written[name].with_name(f"{name}-{width}-{scheme}.png"))


@pytest.mark.parametrize("name", NAMES)
def test_dark_is_dark(window: browser.Browser, written: dict[str, Path], name: str) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        window.show(written[name], 390, scheme)
        seen[scheme] = window.ground()
    assert min(seen["light"]) > 200 and max(seen["dark"]) < 60


def test_axe_is_not_satisfied_by_everything(window: browser.Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<html><body style="width: 900px"><img src="x.png"><p style="color:#ccc;background:#fff">words</p></body>'
    )
    window.show(bad, 390, "light")
    assert window.width()[1] > 390
    assert {"color-contrast", "html-has-lang", "image-alt"} <= {problem["id"] for problem in window.problems()}
