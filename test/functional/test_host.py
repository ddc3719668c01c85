"""What the highstate would do to a host that it may touch: asked of Salt's state compiler, and not done."""

from __future__ import annotations

import os
import shutil

import pytest


@pytest.mark.parametrize(
    ("server", "packages", "services"),
    [
        ("nginx", {"nginx", "supervisor"}, ["nginx", "supervisor"]),
        ("apache", {"apache2", "libapache2-mod-wsgi-py3"}, ["apache2"]),
        ("none", {"supervisor"}, ["supervisor"]),
    ],
)
def test_a_server_is_installed_gets_its_file_and_then_runs(host, server, packages, services):
    host.pillar.update(web={"server": server}, manage={})
    chunks = host.loaders().modules["state.show_low_sls"]("ckan.web")
    assert all(isinstance(chunk, dict) for chunk in chunks), chunks
    chunks.sort(key=lambda chunk: chunk["order"])
    installed = next(chunk["pkgs"] for chunk in chunks if chunk["__id__"] == "ckan-packages")
    others = {"nginx", "supervisor", "apache2", "libapache2-mod-wsgi-py3"} - packages
    assert packages <= set(installed) and not others & set(installed)
    order = [chunk["__id__"] for chunk in chunks]
    assert [chunk["name"] for chunk in chunks if chunk["__id__"] == "ckan-services"] == services
    assert ("ckan-apache-modules" in order) == (server == "apache")
    if server != "none":
        assert order.index("ckan-apache.wsgi") < order.index("ckan-front") < order.index("ckan-services")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives directories away")
def test_f01_the_highstate_takes_the_data_over_and_follows_no_link(host):
    data, victim = host.root / "var/lib/ckan/default", host.root / "victim"
    victim.mkdir()
    shutil.chown(data, "www-data", "www-data")
    (data / "storage").rename(data / "storage.aside")
    (data / "storage").symlink_to(victim)
    present = host.loaders().states["ckan_data.present"]
    ret = present(name="ckan-data")
    assert ret.result is False and f"{data}/storage is a link" in ret.comment
    assert (victim.owner(), data.owner()) == ("root", "www-data")
    (data / "storage").unlink()
    assert host.loaders(test=True).states["ckan_data.present"](name="ckan-data").result is None
    assert data.owner() == "www-data"
    ret = host.loaders().states["ckan_data.present"](name="ckan-data")
    assert ret.result and ret.changes[str(data)] == "made root's", ret
    owners = {path.name: path.owner() for path in data.iterdir()}
    assert owners.pop("storage.aside") and data.owner() == "root"
    assert owners == {"storage": "www-data", "sessions": "www-data", "home": "www-data", "webassets": "root"}
    assert host.loaders().states["ckan_data.present"](name="ckan-data").changes == {}
