"""Manifests and resolutions as JSON: what is written is read again, and what comes from elsewhere is looked at."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest

from ckan_deploy.errors import FormulaError, InvalidArgument
from ckan_deploy.releases import ids
from ckan_deploy.releases.manifest import Base, Manifest, Resolution
from ckan_deploy.sources.pins import Patch, Pin

ID = "20260101000000Z"
COMMIT, SHA256 = "0123456789abcdef0123456789abcdef01234567", "a" * 64
PATCH = Patch("salt://patches/01-title.patch", SHA256, "applied", ("a.py", "b/c.py"), ("test.py",))
GIT = Pin(
    "git", url="https://git.example.org/a.git", ref="v1.0", ref_kind="tag", commit=COMMIT, submodules=False,
    patches=(PATCH,), subject="Fix\tthe café", moved_from="f" * 40, tags="0123456789abcdef", build=("npm ci", "make"),
    upstream={"url": "/srv/up.git", "commit": COMMIT, "ahead": 1, "behind": 0},
)  # fmt: skip
INDEX = Pin("index", asked=">=1.4,<2", version="1.5")
ARCHIVE = Pin("archive", archive="salt://a-1.0.whl", hash=f"sha256={SHA256}", version="1.0")
RESOLUTION = Resolution(
    Base("2.11.1", "3.11", "/usr/lib/ckan/default"),
    {"ckanext-a": GIT, "ckanext_b": INDEX, "ckanext.c": ARCHIVE},
    (Patch("salt://core.patch", SHA256),),
    {"ckan": "2.11.1", "ckanext-a": "0.0.1", "libx": "1!2.0.post1+local"},
    {"libx": {"by": "ckanext-a", "base": "1.0", "got": "2.0"}},
)
MANIFEST = Manifest(
    ID, "live", "2026-01-01T00:00:00Z", ({"state": "building", "at": "2026-01-01T00:00:00Z", "by": "eve"},),
    env="production", site="default", by="eve", job="20260101000000123456", resolution=RESOLUTION,
    plugins=("a", "b"), configuration="f" * 64, secret_options=("smtp.password",), settings={"web": "0123456789abcdef"},
    layer="0123456789abcdef", built_on="web9",
    disk_mb=0, build_seconds={"clone": 0.5}, check={"ckan": "2.11.1", "warnings": []},
    migration={"state": "none"},
    index={"made": {"a": 1}}, adopted={"from": "/srv/x"}, previous="20250101000000Z", previous_link="../x",
    finish_due="2026-01-01T00:00:00Z", came_after="20250101000000Z", bad_reason="slow",
)  # fmt: skip


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def odd(**changes: Any) -> dict:
    """A resolution as JSON with other fields; `a__commit` stands for the commit of the extension `a`."""
    made: dict = Resolution(Base("2.11", "3.11"), {"a": GIT}).to_json()
    for name, value in changes.items():
        part, _, leaf = name.partition("__")
        if part == "a":
            made["extensions"]["a"][leaf] = value
        elif leaf:
            made[part][leaf] = value
        else:
            made[part] = value
    return made


# What is written is read again.


def test_a_manifest_goes_through_json_and_comes_back_the_same():
    assert Manifest.of(through_json(MANIFEST.to_json())) == MANIFEST
    assert all(getattr(MANIFEST, field.name) != field.default for field in attrs.fields(Manifest))


@pytest.mark.parametrize("manifest", [Manifest(ID, "building"), Manifest(ID, "failed", by="eve"),
                                      attrs.evolve(MANIFEST, plugins=())])  # fmt: skip
def test_so_does_one_with_little_in_it(manifest):
    assert Manifest.of(through_json(manifest.to_json())) == manifest


def test_what_is_empty_is_not_written():
    assert Manifest(ID, "building").to_json() == {"id": ID, "state": "building", "created": "", "events": []}


def test_a_field_that_this_version_does_not_know_breaks_nothing():
    given = {**through_json(MANIFEST.to_json()), "of_tomorrow": {"x": [1]}, "resolution": "another thing"}
    given["extensions"]["ckanext-a"]["of_tomorrow"] = 1
    given["base"]["of_tomorrow"] = 1
    assert Manifest.of(given) == MANIFEST


def test_a_manifest_of_the_version_before_is_read():
    pin = {"kind": "git", "url": "/srv/a.git", "ref": "main", "ref_kind": "branch", "commit": COMMIT,
           "submodules": True, "patches": [], "subject": "One"}  # fmt: skip
    given = {
        "id": ID, "state": "retired", "created": "2025-01-01T00:00:00Z", "by": "", "job": "", "env": "production",
        "site": "default", "events": [{"state": "building", "at": "2025-01-01T00:00:00Z"}],
        "base": {"ckan": "2.10.4", "python": "3.11", "path": "/usr/lib/ckan/default"},
        "extensions": {"ckanext-a": pin}, "patches": [], "packages": {"ckan": "2.10.4"}, "overridden": {},
        "plugins": ["a"], "configuration": "f" * 64, "secret_options": [], "settings": {"web": "0"}, "disk_mb": 9,
        "build_seconds": {"clone": 1.0}, "check": {"migrations": {}}, "migration": {}, "index": {}, "previous": "",
        "previous_link": "", "came_after": "", "bad_reason": "",
    }  # fmt: skip
    read = Manifest.of(given)
    assert (read.state, read.plugins, read.disk_mb) == ("retired", ("a",), 9)
    assert read.resolution and read.resolution.extensions["ckanext-a"].commit == COMMIT
    # One that was adopted has no overridden, and one that is under way has no base.
    for name in ("overridden", "extensions"):
        del given[name]
    assert Manifest.of(given).resolution == attrs.evolve(read.resolution, extensions={})
    del given["base"]
    assert Manifest.of(given).resolution is None


def test_a_package_whose_version_no_installer_would_take_hides_no_release():
    given = through_json(MANIFEST.to_json())
    given["packages"]["local"] = "0.1 (unknown)"
    assert Manifest.of(given) == MANIFEST
    with pytest.raises(InvalidArgument):
        Resolution.of(given)


def test_a_resolution_goes_through_json_and_comes_back_the_same():
    assert Resolution.of(through_json(RESOLUTION.to_json())) == RESOLUTION
    for pin in (GIT, INDEX, ARCHIVE):
        assert Pin.of(through_json(pin.to_json())) == pin
    assert Patch.of(through_json(PATCH.to_json())) == PATCH


def test_another_host_builds_from_commits_and_not_from_versions_of_checkouts():
    told = RESOLUTION.to_build()
    assert told.base == Base("2.11.1", "3.11")
    assert "ckanext-a" not in told.packages and told.packages["ckan"] == "2.11.1"
    assert told.extensions == RESOLUTION.extensions


def test_a_state_follows_another_or_is_refused():
    built = Manifest(ID, "building").became("built", "eve", "why", disk_mb=5)
    assert (built.state, built.disk_mb, built.events[-1]["by"], built.events[-1]["reason"]) == (
        "built",
        5,
        "eve",
        "why",
    )
    assert built.became("built", "eve", bad_reason="x") == attrs.evolve(built, bad_reason="x")
    with pytest.raises(FormulaError, match=f"release {ID} is built, so it cannot become live"):
        built.became("live")


# What comes from elsewhere.


@pytest.mark.parametrize(
    "given",
    [
        None, 7, "x", [], {}, {"base": {}, "extensions": {}}, {"base": {"ckan": "2.11", "python": "3.11"}},
        odd(base=[]), odd(base="2.11"), odd(base=None), odd(base__ckan=2.11), odd(base__python=""), odd(base__path=[1]),
        odd(extensions=[]), odd(extensions="a"), odd(extensions={"a": None}), odd(extensions={"a": "main"}),
        odd(extensions={"a": []}), odd(extensions={7: GIT.to_json()}), odd(patches="salt://a"), odd(patches=[7]),
        odd(patches=[{}]), odd(patches={"a": 1}), odd(packages=["ckan"]), odd(packages={"ckan": 2.11}),
        odd(overridden=["x"]), odd(overridden={"libx": "1.0"}), odd(overridden={"libx": {"by": 7}}),
    ],
)  # fmt: skip
def test_a_resolution_of_the_wrong_form_is_refused(given):
    with pytest.raises(InvalidArgument):
        Resolution.of(given)


@pytest.mark.parametrize("name", ["..", ".", "../x", "a/b", "/etc", "-e", "", "a b", "a\n", "a;b", "é"])
def test_a_name_that_could_be_a_path_or_an_option_is_refused(name):
    for given in (odd(extensions={name: GIT.to_json()}), odd(packages={name: "1.0"}), odd(overridden={name: {}})):
        with pytest.raises(InvalidArgument, match="that is no resolution"):
            Resolution.of(given)


@pytest.mark.parametrize(
    "version", ["", "-1", "1.0\n--index-url=http://x", "1.0 --hash=x", "../x", "1;x", "1 @ file:///x"]
)
def test_a_version_that_could_be_more_than_one_is_refused(version):
    with pytest.raises(InvalidArgument, match="that is no resolution"):
        Resolution.of(odd(packages={"libx": version}))


@pytest.mark.parametrize(
    "changes",
    [
        {"a__commit": "../../etc"}, {"a__commit": f"../{COMMIT[3:]}"}, {"a__commit": COMMIT[:12]}, {"a__commit": ""},
        {"a__commit": f"{COMMIT}\n"}, {"a__commit": COMMIT.upper()}, {"a__commit": None}, {"a__commit": [COMMIT]},
        {"a__build": ["make\nx"]}, {"a__build": "make"}, {"a__build": [7]}, {"a__tags": 7},
        {"a__commit": 7}, {"a__url": ""}, {"a__url": "--upload-pack=touch /tmp/x"}, {"a__url": "-x"}, {"a__url": 7},
        {"a__url": "ext::sh -c x"}, {"a__url": "https://h/a\n.git"}, {"a__url": ["https://h/a"]},
        {"a__ref": "--upload-pack=x"}, {"a__ref": "a\nb"}, {"a__ref": {}}, {"a__kind": "svn"}, {"a__kind": None},
        {"a__kind": ["git"]}, {"a__kind": "index"}, {"a__kind": "archive"}, {"a__upstream": "x"}, {"a__upstream": [7]},
        {"a__patches": "x"}, {"a__patches": [None]}, {"a__patches": [{"patch": "/etc/passwd", "sha256": SHA256}]},
        {"a__patches": [{"patch": "salt://a b", "sha256": SHA256}]}, {"a__patches": [{"patch": "salt://a"}]},
        {"a__patches": [{"patch": "salt://a", "sha256": "../x"}]},
        {"a__patches": [{"patch": "salt://a", "sha256": SHA256, "files": "a.py"}]},
        {"a__patches": [{"patch": "salt://a", "sha256": SHA256, "left_out": [7]}]},
    ],
)  # fmt: skip
def test_a_pin_that_would_lead_elsewhere_is_refused(changes):
    given = odd(**changes)
    for read in (lambda: Resolution.of(given), lambda: Pin.of(given["extensions"]["a"])):
        with pytest.raises(InvalidArgument, match="take one that ckan_release.plan returned"):
            read()


@pytest.mark.parametrize(
    "given",
    [
        {"kind": "index", "asked": ""}, {"kind": "index", "asked": "--index-url=http://x"},
        {"kind": "index", "asked": ">=1,\n<2"}, {"kind": "index", "asked": "1.0 --hash=x"}, {"kind": "index"},
        {"kind": "index", "asked": 1.0}, {"kind": "archive", "archive": "/etc/passwd", "hash": f"sha256={SHA256}"},
        {"kind": "archive", "archive": "file:///etc/passwd", "hash": f"sha256={SHA256}"},
        {"kind": "archive", "archive": "salt://a.whl"}, {"kind": "archive", "archive": "salt://a.whl", "hash": "md5=0"},
        {"kind": "archive", "archive": "salt://a.whl", "hash": "sha256=../x"},
        {"kind": "archive", "archive": "--x", "hash": f"sha256={SHA256}"},
        {"kind": "archive", "archive": "https://h/a\r.whl", "hash": f"sha256={SHA256}"},
        None, 7, "x", [], {}, [("kind", "git")],
    ],
)  # fmt: skip
def test_a_pin_of_another_kind_that_would_lead_elsewhere_is_refused(given):
    with pytest.raises(InvalidArgument, match="is no pin of an extension; take one that ckan_release.plan returned"):
        Pin.of(given)


@pytest.mark.parametrize("given", [None, 7, "salt://a", [], {}, {"patch": "salt://a", "sha256": 7}])
def test_a_patch_of_the_wrong_form_is_refused(given):
    with pytest.raises(InvalidArgument, match="is no patch of a resolution"):
        Patch.of(given)


@pytest.mark.parametrize(
    "given", ["../x", "2026", f"{ID}\n", f"{ID}/..", 20260101000000, None, "", [], "２０２６0101000000Z"]
)
def test_an_id_is_a_stamp_and_nothing_else(given):
    with pytest.raises(InvalidArgument, match="is not a release id"):
        ids.check_id(given)


def test_an_id_that_is_made_now_is_one():
    assert ids.check_id(ids.new_id()) <= ids.check_id(ids.new_id())


@pytest.mark.parametrize(
    "given",
    [{}, {"state": "live"}, {"id": ID, "state": "live", "events": 5}, {"id": ID, "state": "live", "base": {}},
     {"id": ID, "state": "live", "base": {"ckan": "2.11", "python": "3.11"}, "packages": ["x"]}],
)  # fmt: skip
def test_what_is_no_manifest_is_refused(given):
    with pytest.raises((ValueError, InvalidArgument)):
        Manifest.of(given)
