"""Which files of the official package are found on a host, kept, and taken out of service."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import official_files, official_package
from fakes import fake_site
from parts.process import sandbox

SITE = "server {\n    location / {\n        proxy_pass http://127.0.0.1:8080/;\n    }\n}\n"


@pytest.fixture
def root() -> Iterator[Path]:
    """The root of a host, whose path is short enough for a socket below it."""
    path = sandbox("ckan-u-")
    yield path
    shutil.rmtree(path)


@pytest.fixture
def package(root: Path) -> Callable[..., Site]:
    """A host with the files of the package, as a site with changes to its settings."""
    etc = root / "etc"
    for path, text in {
        "nginx/sites-available/ckan": SITE,
        "supervisor/conf.d/ckan-uwsgi.conf": "[program:ckan-uwsgi]\n",
        "supervisor/conf.d/ckan-worker.conf": "[program:ckan-worker]\n",
        "supervisor/conf.d/ckan-datapusher.conf": "[program:ckan-datapusher]\n",
        "ckan/default/wsgi.py": "application = None\n",
    }.items():
        (etc / path).parent.mkdir(parents=True, exist_ok=True)
        (etc / path).write_text(text)
    (etc / "nginx/sites-enabled").mkdir()
    (etc / "nginx/sites-enabled/ckan").symlink_to("../sites-available/ckan")

    def site(**changes: Any) -> Site:
        return fake_site(root, **changes)

    return site


def test_the_files_of_the_package_are_found_and_ours_are_not(package, root):
    assert sorted(official_files.found(package())) == ["ckan-uwsgi", "ckan-worker", "nginx", "wsgi"]
    assert official_files.address(package()) == "127.0.0.1:8080"
    (root / "etc/ckan/default/wsgi.py").write_text("# Written by the CKAN formula\n")
    (root / "etc/nginx/sites-enabled/ckan").unlink()
    assert sorted(official_files.found(package())) == ["ckan-uwsgi", "ckan-worker"]
    assert official_files.address(package()) == ""
    assert official_files.found(package(site="second")) == {}


def test_they_are_kept_once(package, root):
    config = root / "etc/ckan/default"
    assert len(official_files.keep(package())) == 4
    assert (config / "before-formula/nginx-site").read_text() == SITE
    assert not (config / "before-formula/nginx-site").is_symlink()
    (config / "wsgi.py").write_text("changed by hand\n")
    assert official_files.keep(package()) == official_files.unkept(package()) == []
    assert (config / "wsgi.py.before-formula").read_text() == "application = None\n"


def test_what_goes_out_of_service_is_what_the_front_door_replaces(package):
    assert sorted(official_files.replaced(package())) == ["ckan-uwsgi", "ckan-worker", "nginx"]
    assert sorted(official_files.replaced(package(web__server="apache"))) == ["ckan-uwsgi", "ckan-worker"]
    assert official_files.replaced(package(web__server="none", web__app="none")) == {}


def test_nothing_goes_out_of_service_without_a_release_that_answers(package):
    with pytest.raises(FormulaError, match="no release is live, so the official package's CKAN stays"):
        official_package.retire(package())
    release = "20260101000000Z"
    package().releases.create(release)
    package().releases.point(release)
    before = official_files.found(package())
    with pytest.raises(FormulaError, match="the web server at http://127.0.0.1:1/"):
        official_package.retire(package(web__listen="127.0.0.1:1", web__health_attempts=1))
    assert official_files.found(package()) == before


def test_there_is_nothing_to_put_back_where_nothing_was_kept(root):
    with pytest.raises(FormulaError, match="nothing of the official package was kept"):
        official_package.restore(fake_site(root))
