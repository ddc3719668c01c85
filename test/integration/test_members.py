"""
Eight people who browse, log in, post forms and upload 50 MB at a real CKAN by https, on IPv4 and on IPv6, through a
deploy, a rollback, and a deploy that fails after its switch and is reverted.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError

from parts.accounts import Here, Person, make_admins
from parts.lone import LonePortal
from parts.members import Members
from stub import repos

pytestmark = [pytest.mark.integration, pytest.mark.long]

PASSWORD, SIZE = "a-password-of-eight", 50 * 2**20
NAMES = [f"person{number}" for number in range(8)]


@pytest.fixture(scope="module")
def portal(lone: LonePortal) -> LonePortal:
    # Far fewer can be served at once than come: some wait in line at each switch.
    lone.host.pillar["web"] |= {"processes": 1, "threads": 2, "drain_timeout": 60}
    lone.be_at("")
    token = make_admins(lone.ini, PASSWORD, NAMES)
    api = Person(lone.url, Here(lone.port))
    api.headers["Authorization"] = token
    made = api.post(f"{lone.url}/api/3/action/organization_create", json={"name": "city-hall", "title": "City Hall"})
    assert made.status_code == 200, made.text
    return lone


def stored(portal: LonePortal, dataset: str) -> tuple[int, str]:
    """Size and hash of the only file of a dataset, as it is in CKAN's storage."""
    told = Person(portal.url, Here(portal.port)).see(f"/api/3/action/package_show?id={dataset}").json()
    (resource,) = told["result"]["resources"]
    one = resource["id"]
    content = (Path(portal.host.site().paths.data) / "storage/resources" / one[:3] / one[3:6] / one[6:]).read_bytes()
    assert resource["size"] == len(content)
    return len(content), hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("lone", ["nginx", "apache"], indirect=True)
def test_eight_people_upload_through_deploy_rollback_and_revert_and_no_request_fails(portal: LonePortal) -> None:
    host, first = portal.host, portal.host.current()
    with Members(portal.url, NAMES, PASSWORD, "city-hall", SIZE) as members:
        repos.commit_change(portal.mycity, "With more trees")
        second = host.deploy()["current"]
        assert host.rollback()["current"] == first
        repos.commit_change(portal.mycity, "With even more trees")
        # Visitors are at the candidate for a moment, or a process of Apache still loads it; then it is reverted.
        hook = {"stage": "activate", "when": "after", "function": "cmd.shell", "args": ["sleep 2; exit 1"]}
        host.pillar["hooks"] = [{**hook, "on_failure": "stop"}]
        with pytest.raises(CommandExecutionError, match=f"failed at activate: .* this host serves {first} as before"):
            host.deploy()
    print(members.told())
    assert members.failed == []
    assert host.current() == first and {first, second} <= set(members.releases)
    assert min(members.by.values()) > 50 and len(members.files) > 16
    assert {name: stored(portal, name) for name in members.files} == {
        name: (SIZE, told) for name, told in members.files.items()
    }
