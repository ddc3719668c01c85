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

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO / "test"), str(REPO), str(REPO / "_utils")]

from ckan_deploy.serve import maintenance_page  # noqa: E402
from demo import SANDBOX  # noqa: E402
from fakes import fake_site  # noqa: E402
from parts.browser import Browser  # noqa: E402

IMAGES = REPO / "docs/images"
# In pixels.
WIDTH = 1280


def maintenance(place: Path) -> Path:
    """The page of a portal that is closed until tomorrow."""
    config = {"ckan.site_title": "Open Data of My City", "ckan.locales_offered": "en de fr"}
    site = fake_site(place, config=config)
    until = (datetime.now(timezone.utc) + timedelta(days=1)).strftime("%Y-%m-%dT18:30+00:00")
    notice = maintenance_page.Notice.of(site, {"en": "The database moves to a new server."}, until)
    page = place / "maintenance.html"
    page.write_text(maintenance_page.make(site, notice), encoding="utf-8")
    return page


def pages(place: Path) -> dict[str, Path]:
    """The pages by the names of their pictures."""
    reports = sorted(SANDBOX.glob("salt/m/var/cache/salt/master/ckan/production/reports/*.html"))
    index = [page for page in reports if page.name == "index.html"]
    runs = [page for page in reports if page.name != "index.html"]
    good = [page for page in runs if "<title>Deployed " in page.read_text(encoding="utf-8")]
    return {
        "report": good[-1],
        "runs": index[0],
        "maintenance": maintenance(place),
        "manual": REPO / "site/index.html",
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
            for name, page in found.items():
                window.show(page, WIDTH, "light")
                window.picture(IMAGES / f"{name}.png")
                print(f"{IMAGES / name}.png: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
