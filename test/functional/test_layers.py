"""Layers: what does not change from release to release is installed and compiled once."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from ckan_deploy.build import ahead, assembly, editable, resolution, trees, uv_and_pip
from ckan_deploy.deploy import candidates, plan
from ckan_deploy.sources import origins as sources
from functional.steps import deployed, extension
from stub import repos
from stub.wheels import make_wheel

pytestmark = pytest.mark.slow

SITE = "lib/python3.11/site-packages"


@pytest.fixture
def mycity(host, origins, shelf) -> Path:
    """An extension that requires a library of the index."""
    for number in ("1.0", "2.0"):
        make_wheel(shelf, "shared-lib", number)
    repo = repos.make_repo(origins, "mycity", "one", requirements=["shared-lib<2"], backend="uv_build")
    host.pillar["extensions"] = {"ckanext-mycity": extension(repo)}
    host.pillar["plugins"] = ["mycity"]
    host.pillar["link"] = "hard"
    return repo


def layers(host) -> list[str]:
    return sorted(name for name in os.listdir(host.home / "shared/layers") if not name.endswith(".lock"))


def release(host, **options) -> Path:
    return host.home / "releases" / deployed(host, **options)


def begun(host) -> Path:
    """The directory of a release that nothing but its manifest is in yet."""
    path = host.home / "releases/20990101000000Z"
    path.mkdir()
    (path / "release.json").write_text("{}")
    return path


def require(repo: Path, line: str) -> None:
    (repo / "requirements.txt").write_text(f"{line}\n")
    repos.commit_change(repo, "another library")


def test_releases_of_one_lock_share_a_layer_and_another_lock_has_its_own(host, mycity):
    first = release(host)
    repos.commit_change(mycity, "two")
    second = release(host)
    (key,) = layers(host)
    assert [host.show(path.name)["layer"] for path in (first, second)] == [key] * 2
    library = f"{SITE}/shared_lib.py"
    assert os.path.samefile(first / library, second / library)
    assert os.path.samefile(host.home / "shared/layers" / key / library, first / library)
    require(mycity, "shared-lib==2.0")
    third = release(host)
    assert len(layers(host)) == 2
    assert "2.0" in (third / library).read_text() and "1.0" in (second / library).read_text()
    assert host.show(third.name)["packages"]["shared-lib"] == "2.0"
    # A release is nothing but its own: the layer may go without harm to it.
    shutil.rmtree(host.home / "shared/layers")
    assert host.python(third.name, "import shared_lib, ckanext.mycity.plugin as p; print(p.TEXT)") == "another library"


def test_a_layer_goes_with_the_last_release_that_was_made_of_it(host, mycity):
    host.pillar["keep"] = 2
    release(host)
    old = layers(host)
    require(mycity, "shared-lib==2.0")
    release(host)
    assert set(old) < set(layers(host))
    repos.commit_change(mycity, "three")
    release(host)
    assert len(layers(host)) == 1 and old != layers(host)
    # So does what was written down of its files: that of the base, of the other layer and of two checkouts is left.
    assert len(list((host.home / "shared/installed").glob("*.json"))) == 4


def test_a_layer_that_was_not_finished_is_never_used(host, mycity):
    first = release(host)
    layer = host.home / "shared/layers" / layers(host)[0]
    # As a kill leaves it: its mark is written last.
    (layer / ".ckan-layer.json").unlink()
    (layer / SITE / "shared_lib.py").unlink()
    repos.commit_change(mycity, "two")
    second = release(host)
    assert (second / SITE / "shared_lib.py").read_text() == (first / SITE / "shared_lib.py").read_text()
    assert (layer / ".ckan-layer.json").exists() and not (second / ".ckan-layer.json").exists()


def test_another_base_is_another_layer(host, mycity, own_base):
    release(host)
    module = own_base / SITE / "ckan/common.py"
    text = module.read_text()
    module.unlink()
    module.write_text(f"{text}\nMENDED = True\n")
    assert host.repair(accept=True)["accepted"] == [f"{SITE}/ckan/common.py"]
    assert "MENDED" in (release(host) / SITE / "ckan/common.py").read_text()
    assert len(layers(host)) == 2


def test_bytecode_is_compiled_where_it_is_made_and_never_again(host, mycity):
    first, second = release(host), release(host)
    layer = host.home / "shared/layers" / layers(host)[0]
    library = f"{SITE}/__pycache__/shared_lib.cpython-311.pyc"
    assert os.path.samefile(layer / library, first / library) and os.path.samefile(layer / library, second / library)
    own = "src/ckanext-mycity/ckanext/mycity/__pycache__/plugin.cpython-311.pyc"
    assert (first / own).read_bytes() == (second / own).read_bytes()
    assert (first / own).stat().st_mtime_ns == (second / own).stat().st_mtime_ns
    missing = [
        path for path in [*second.glob("lib/**/*.py"), *second.glob("src/**/*.py")]
        if not list((path.parent / "__pycache__").glob(f"{path.stem}.cpython-*.pyc"))
    ]  # fmt: skip
    assert missing == []
    # It is that of the checkout in the release, not of the place that it was compiled at.
    assert host.python(
        second.name, "import ckanext.mycity.plugin as p; print(p.Plugin.front_text.__code__.co_filename)"
    ) == (str(second / "src/ckanext-mycity/ckanext/mycity/plugin.py"))


def test_no_directory_of_a_release_is_read_twice_by_its_build(host, mycity, monkeypatch):
    release(host)
    read: Counter[str] = Counter()
    scandir = os.scandir

    def counted(path="."):
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        read[str(path)] += 1
        return scandir(path)

    site = host.site()
    planned = resolution.resolve(site)
    path = begun(host)
    # Nothing of it is read where it was cloned ahead (test_ahead.py).
    ahead.forget(site)
    monkeypatch.setattr(os, "scandir", counted)
    assembly.fill(site, str(path), planned)
    layer = str(host.home / "shared/layers" / layers(host)[0])
    # Looked at for what names the place as well: the scripts, and what packages say of themselves.
    inner = [name for name in read if "/site-packages/" in name and ".dist-info" not in name]
    assert any(name.startswith(layer) for name in inner)
    assert {name: count for name, count in read.items() if name in inner and count > 1} == {}
    assert not [name for name in inner if name.startswith(str(path))]


def test_the_plan_makes_the_checkout_of_a_new_commit_ready_and_the_build_does_no_more_than_put_it(
    host, mycity, monkeypatch
):
    release(host)
    commit = repos.commit_change(mycity, "two")
    site = host.site()
    (pin,) = site.settings.extensions
    planned = resolution.resolve(site)
    assert editable.is_made(sources.place(planned.extensions[pin], site.paths.shared), pin)
    path = begun(host)
    monkeypatch.setattr(editable, "_make", lambda *_: pytest.fail("it is made again"))
    monkeypatch.setattr(trees, "_has_translations", lambda *_: pytest.fail("it is searched again"))
    built = assembly.fill(site, str(path), planned)["resolution"]
    assert built.extensions[pin].commit == commit
    assert list((path / "src" / pin).rglob("__pycache__/plugin.*.pyc"))


def test_a_plan_of_the_same_commits_asks_uv_for_nothing_unless_it_is_told_to_or_the_last_one_failed(
    host, mycity, monkeypatch
):
    asked: list[str] = []
    real = uv_and_pip.run

    def run(command, *args):
        asked.append(" ".join(command[1:3]))
        return real(command, *args)

    monkeypatch.setattr(uv_and_pip, "run", run)
    first = resolution.resolve(host.site())
    assert "pip install" in asked
    asked.clear()
    assert resolution.resolve(host.site()) == first and asked == []
    assert plan.make(host.site(), "20990101000000Z", renew=True).resolution == first and "pip install" in asked
    asked.clear()
    repos.commit_change(mycity, "two")
    assert resolution.resolve(host.site()) != first and "pip install" in asked
    asked.clear()
    # What is no matter of packages.
    host.pillar["config"] = {"ckan.site_title": "another title"}
    resolution.resolve(host.site())
    assert asked == []
    candidates.note_failed(host.site(), "20990101000000Z", "ann", "it does not boot")
    resolution.resolve(host.site())
    assert "pip install" in asked
