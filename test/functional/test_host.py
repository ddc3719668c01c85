"""What the highstate would do to a host that it may touch: asked of Salt's state compiler, and not done."""

from __future__ import annotations

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
