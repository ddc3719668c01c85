"""
Pictures of what people see, for the manual: docs/images. The reports and the page of all runs are those of the demo
that ran last (`make demo`), and the manual is the site in site/.

    make screenshots
"""

from __future__ import annotations

import sys
import tempfile
from datetime import datetime, timedelta, timezone
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from ckan_deploy.serve import maintenance_page  # noqa: E402
from demo import SANDBOX  # noqa: E402
from fakes import fake_site  # noqa: E402
from parts.browser import Browser  # noqa: E402

REPO = Path(__file__).resolve().parents[1]
IMAGES = REPO / "docs/images"
# What a phone and a desk show of a page, in pixels.
PHONE, DESK = 390, 1280


def maintenance(place: Path) -> Path:
    """The page of a portal that is closed until tomorrow."""
    config = {"ckan.site_title": "Open Data of My City", "ckan.locales_offered": "en de fr"}
    site = fake_site(place, config=config)
    until = (datetime.now(timezone.utc) + timedelta(days=1)).strftime("%Y-%m-%dT18:30+00:00")
    notice = maintenance_page.Notice.of(site, {"en": "The database moves to a new server."}, until)
    page = place / "maintenance.html"
    page.write_text(maintenance_page.make(site, notice), encoding="utf-8")
    return page


def pages(place: Path) -> dict[str, tuple[Path, int]]:
    """The pages by the names of their pictures, each with the width of the window."""
    reports = sorted(SANDBOX.glob("salt/m/var/cache/salt/master/ckan/production/reports/*.html"))
    index = [page for page in reports if page.name == "index.html"]
    runs = [page for page in reports if page.name != "index.html"]
    failed = [page for page in runs if "failed" in page.read_text(encoding="utf-8").split("</title>")[0]]
    good = [page for page in runs if "-deploy-" in page.name and page not in failed]
    return {
        "report": (good[-1], DESK),
        "report-failed": (failed[-1], DESK),
        "report-phone": (failed[-1], PHONE),
        "runs": (index[0], DESK),
        "maintenance": (maintenance(place), DESK),
        "manual": (REPO / "site/index.html", DESK),
    }


def main() -> int:
    """Write the pictures."""
    with tempfile.TemporaryDirectory() as place:
        try:
            found = pages(Path(place))
        except IndexError:
            print("there is no demo to take pictures of; run: make demo DEMO_ONCE=1", file=sys.stderr)
            return 1
        IMAGES.mkdir(exist_ok=True)
        with Browser.open() as window:
            for name, (page, width) in found.items():
                window.show(page, width, "light")
                window.picture(IMAGES / f"{name}.png")
                print(f"{IMAGES / name}.png: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
