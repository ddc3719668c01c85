"""Which files of the official package are found on a host, kept, and taken out of service."""

from __future__ import annotations

import pytest
from salt.exceptions import CommandExecutionError

from functional.steps import deployed

SITE = "server {\n    location / {\n        proxy_pass http://127.0.0.1:8080/;\n    }\n}\n"


@pytest.fixture
def package(host):
    """A host with the files of the package, and a call of our module there."""
    etc = host.root / "etc"
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

    def call(function: str, **web):
        host.pillar["web"] = {"server": "nginx", **web}
        modules = host.loaders().modules
        return modules[f"ckan_package.{function}"](modules["ckan_settings.get"]())

    return call


def test_the_files_of_the_package_are_found_and_ours_are_not(host, package):
    assert sorted(package("found")) == ["ckan-uwsgi", "ckan-worker", "nginx", "wsgi"]
    assert package("address") == "127.0.0.1:8080"
    (host.root / "etc/ckan/default/wsgi.py").write_text("# Written by the CKAN formula\n")
    (host.root / "etc/nginx/sites-enabled/ckan").unlink()
    assert sorted(package("found")) == ["ckan-uwsgi", "ckan-worker"]
    assert package("address") == ""
    host.pillar["site"] = "second"
    assert package("found") == {}


def test_they_are_kept_once(host, package):
    config = host.root / "etc/ckan/default"
    assert len(package("keep")) == 4
    assert (config / "before-formula/nginx-site").read_text() == SITE
    assert not (config / "before-formula/nginx-site").is_symlink()
    (config / "wsgi.py").write_text("changed by hand\n")
    assert package("keep") == package("unkept") == []
    assert (config / "wsgi.py.before-formula").read_text() == "application = None\n"


def test_what_goes_out_of_service_is_what_the_front_door_replaces(package):
    assert sorted(package("replaced")) == ["ckan-uwsgi", "ckan-worker", "nginx"]
    assert sorted(package("replaced", server="apache")) == ["ckan-uwsgi", "ckan-worker"]
    assert package("replaced", server="none", app="none") == {}


def test_nothing_goes_out_of_service_without_a_release_that_answers(host, package):
    with pytest.raises(CommandExecutionError, match="no release is live, so the official package's CKAN stays"):
        package("retire")
    host.pillar["web"] = {"server": "none", "app": "none"}
    deployed(host)
    before = package("found")
    with pytest.raises(CommandExecutionError, match="the front door http://127.0.0.1:1/"):
        package("retire", listen="127.0.0.1:1", health_attempts=1)
    assert package("found") == before


def test_there_is_nothing_to_put_back_where_nothing_was_kept(host):
    with pytest.raises(CommandExecutionError, match="nothing of the official package was kept"):
        host.loaders().modules["ckan_package.restore"]()
