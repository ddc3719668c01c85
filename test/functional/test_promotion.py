"""A host builds what another environment has live: the same commits and versions, its own origins, plugins and ini."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

from functional.steps import archive, deployed, extension, later_id
from stub import repos, wheels

pytestmark = pytest.mark.slow

SOURCE = {"env": "staging", "release": "20260101000001Z"}


def taken(host: Any) -> dict[str, Any]:
    """What a host has live, as the master hands it over to another environment."""
    return {**copy.deepcopy(host.contents()), "promoted": SOURCE}


def test_a_promoted_release_has_the_commits_and_versions_of_the_other_and_its_own_origin_plugins_and_ini(host, origins):
    theirs = repos.make_repo(origins, "alpha", "one", backend="uv_build")
    beta = repos.make_repo(origins, "beta", "beta", backend="uv_build")
    host.pillar["extensions"] = {"ckanext-alpha": extension(theirs), "ckanext-beta": extension(beta)}
    host.pillar["plugins"] = ["alpha", "beta"]
    deployed(host)
    given, commit = taken(host), repos.git(theirs, "rev-parse", "HEAD")
    # Another environment: with an origin of its own, which has moved since.
    own = Path(shutil.copytree(theirs, origins / "own/ckanext-alpha"))
    shutil.rmtree(theirs)
    repos.commit_change(own, "two")
    host.pillar["extensions"]["ckanext-alpha"] = extension(own)
    host.pillar["plugins"] = ["alpha"]
    host.pillar["config"] = {"ckan.site_title": "Production"}
    second = deployed(host)
    ask = "import ckanext.alpha.plugin as p; print(p.TEXT)"
    assert host.python(second, ask) == "two"
    planned = host.plan(contents=given)
    assert planned["differs"] == [f"ckanext-alpha is fetched from {own}, and was from {theirs}"]
    (change,) = planned["changes"]
    assert change.startswith("ckanext-alpha changed: main ") and commit[:12] in change
    assert planned["host"]["plugins"] == ["alpha"]
    # On another host of this environment nothing is fetched at plan.
    assert host.plan(contents=given, resolve=False)["contents"] == {}
    release = later_id(host)
    host.build(release, contents=planned["contents"])
    assert host.python(release, ask) == "one"
    manifest = host.show(release)
    assert (manifest["promoted"], manifest["plugins"]) == (SOURCE, ["alpha"])
    pin = manifest["extensions"]["ckanext-alpha"]
    assert (pin["commit"], pin["url"]) == (commit, str(own))
    assert manifest["packages"] == host.show(second)["packages"]
    assert "ckan.site_title = Production" in (host.home / f"releases/{release}/production.ini").read_text()
    (entry,) = [entry for entry in host.history() if entry["release"] == release]
    assert (entry["stage"], entry["promoted"]) == ("build", "20260101000001Z of staging")
    # The same again changes nothing, so there is nothing to deploy.
    host.check(release)
    host.activate(release)
    again = host.plan(contents=given)
    assert (again["changes"], again["own_changes"]) == ([], [])


@pytest.fixture
def given(host: Any, origins: Path) -> dict[str, Any]:
    """What another environment has, of a host with an extension from git, one patched, and a package of the base."""
    alpha = repos.make_repo(origins, "alpha", "one", backend="uv_build")
    host.file_roots = [str(origins)]
    host.pillar["extensions"] = {"ckanext-alpha": extension(alpha)}
    host.pillar["plugins"] = ["alpha"]
    return {**copy.deepcopy(host.plan()["contents"]), "promoted": SOURCE}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("only there", "only staging has ckanext-gamma"),
        ("only here", "staging has no ckanext-beta"),
        ("another kind", "ckanext-alpha comes from git in staging and from the package index here"),
        ("a patch here", "the patches of ckanext-alpha are none in staging and salt://promoted-alpha.patch here"),
        ("a patch of CKAN", "the patches of CKAN are salt://promoted-core.patch in staging and none here"),
        ("a build here", "the build of ckanext-alpha is none in staging and make bundles here"),
        ("no submodules", "ckanext-alpha has submodules: true in staging only"),
        ("another Python", "it has CKAN 2.12.0 on Python 3.9, and the base here"),
        ("a version of CKAN", "staging has CKAN 2.12.0, and ckan:base:version is 2.11.0 here"),
        ("another base", "its base has "),
        ("a plugin", "plugin nobody"),
        ("a commit", "has no commit 0123456789"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_the_pillar_here_is_refused_at_plan_by_name(host, given, origins, change, sentence):
    alpha, pin = host.pillar["extensions"]["ckanext-alpha"], given["extensions"]["ckanext-alpha"]
    given["base"]["ckan"] = "2.12.0" if change in ("another Python", "a version of CKAN") else given["base"]["ckan"]
    if change == "only there":
        given["extensions"]["ckanext-gamma"] = pin
    elif change == "only here":
        host.pillar["extensions"]["ckanext-beta"] = alpha
    elif change == "another kind":
        host.pillar["extensions"]["ckanext-alpha"] = {"version": "1.0"}
    elif change == "a patch here":
        alpha["patches"] = ["salt://promoted-alpha.patch"]
    elif change == "a patch of CKAN":
        given["patches"] = [{"patch": "salt://promoted-core.patch", "sha256": "0" * 64}]
    elif change == "a build here":
        alpha["build"] = ["make bundles"]
    elif change == "no submodules":
        alpha["submodules"] = False
    elif change == "another Python":
        given["base"]["python"] = "3.9"
    elif change == "a version of CKAN":
        host.pillar["base"] = {"version": "2.11.0"}
    elif change == "another base":
        name = next(name for name in sorted(given["packages"]) if name != "ckanext-alpha")
        given["packages"][name] = "99.9"
        sentence = f"its base has {name} 99.9 in place of "
    elif change == "a plugin":
        host.pillar["plugins"] = ["alpha", "nobody"]
        sentence = "nobody"
    else:
        pin["commit"] = "0123456789" * 4
    with pytest.raises(CommandExecutionError) as failure:
        host.plan(contents=given)
    assert sentence in str(failure.value)
    if change not in ("a plugin", "a commit"):
        assert "20260101000001Z of staging cannot be built here: " in str(failure.value)
    assert (host.releases(), host.current()) == ([], "")


def test_a_patch_that_was_changed_since_is_refused_at_plan(host, given, origins):
    (origins / "promoted-core.patch").write_text("--- a/ckan/x.py\n+++ b/ckan/x.py\n@@ -1 +1 @@\n-a\n+b\n")
    host.pillar["patches"] = ["salt://promoted-core.patch"]
    given["patches"] = [{"patch": "salt://promoted-core.patch", "sha256": "0" * 64}]
    with pytest.raises(
        CommandExecutionError, match=r"salt://promoted-core.patch is another one than when that release was"
    ):
        host.plan(contents=given)


@pytest.mark.parametrize(
    "harm",
    [
        lambda given: given["extensions"]["ckanext-alpha"].update(commit="main"),
        lambda given: given["extensions"]["ckanext-alpha"].update(url="--upload-pack=x"),
        lambda given: given["extensions"].update({"../x": given["extensions"]["ckanext-alpha"]}),
        lambda given: given["packages"].update(babel="1; rm"),
        lambda given: given.update(promoted={"env": "staging"}),
        lambda given: given.pop("base"),
    ],
)
def test_a_forged_resolution_is_refused(host, given, harm):
    harm(given)
    with pytest.raises(SaltInvocationError):
        host.plan(contents=given)


def test_an_archive_of_the_other_environment_is_taken_by_its_hash(host, origins, shelf):
    file = wheels.make_extension(origins, "delta", "delta")
    host.file_roots = [str(origins)]
    host.pillar["extensions"] = {"ckanext-delta": archive(file)}
    host.pillar["plugins"] = ["delta"]
    given = {**copy.deepcopy(host.plan()["contents"]), "promoted": SOURCE}
    newer = wheels.make_extension(origins, "delta", "newer", "2.0")
    host.pillar["extensions"] = {"ckanext-delta": archive(newer)}
    planned = host.plan(contents=given)
    assert planned["differs"] == [f"ckanext-delta is salt://{file.name}, and the pillar here has salt://{newer.name}"]
    release = later_id(host)
    host.build(release, contents=planned["contents"])
    assert host.show(release)["extensions"]["ckanext-delta"]["hash"] == archive(file)["hash"]
    assert host.show(release)["packages"]["ckanext-delta"] == "1.0"
