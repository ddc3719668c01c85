"""What a highstate does for a certificate by ACME, as Salt reads it."""

from __future__ import annotations

from typing import Any

from functional.conftest import Host


def states(host: Host, sls: str) -> dict[str, Any]:
    found = host.loaders().modules["state.show_sls"](sls)
    assert isinstance(found, dict), found
    return found


def test_a_highstate_has_the_certificate_and_nothing_waits_for_it(host: Host) -> None:
    host.pillar["web"] = {"server": "apache"}
    host.pillar["manage"] = {"packages": True, "services": True, "user": False}
    assert "ckan-certificate" not in states(host, "ckan")
    bundle = {"ca_bundle": "/etc/ssl/own.pem", "peers": ["10.0.0.11"]}
    host.pillar["tls"] = {"acme": {"email": "admin@example.org", **bundle}}
    found = states(host, "ckan")
    assert {"ckan-certificate", "ckan-acme.wsgi", "ckan-certbot-bundle"} <= found.keys()
    packages = next(part["pkgs"] for part in found["ckan-packages"]["pkg"] if "pkgs" in part)
    assert "certbot" in packages
    # A certificate that is not got stops no release.
    others = {name: state for name, state in found.items() if name != "ckan-certificate"}
    assert "ckan-certificate" not in str(others) and "ckan.certificate" not in str(
        [part for state in others.values() for kind in state.values() if isinstance(kind, list) for part in kind]
    )
