"""Which files of the official package are found on a host, kept, and taken out of service."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import official_files, official_package, pointers, virtual_host
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
    assert sorted(official_files.found(package())) == ["ckan-uwsgi", "ckan-worker", "nginx", "wsgi.py"]
    assert official_files.address(package()) == "127.0.0.1:8080"
    (root / "etc/ckan/default/wsgi.py").write_text("# Written by the CKAN formula\n")
    (root / "etc/nginx/sites-enabled/ckan").unlink()
    assert sorted(official_files.found(package())) == ["ckan-uwsgi", "ckan-worker"]
    assert official_files.address(package()) == ""
    assert official_files.found(package(site="second")) == {}


STAMP = re.compile(r"-[0-9]{14}Z$")


def test_a_copy_says_of_what_and_when_and_what_changes_is_kept_again(package, root):
    config = root / "etc/ckan/default"
    made = official_files.keep(package())
    assert len(made) == 4 and all(STAMP.search(copy) for _, copy in made)
    copy = Path(official_files.copy_of(package(), "nginx"))
    assert (copy.read_text(), copy.is_symlink(), copy.parent) == (SITE, False, config / "before-formula")
    assert official_files.link_of(str(copy)) == "../sites-available/ckan"
    assert official_files.keep(package()) == official_files.unkept(package()) == []
    # Somebody went back and changed it.
    first = Path(official_files.copy_of(package(), "wsgi.py"))
    first.rename(first.with_name("wsgi.py.before-formula-20200101000000Z"))
    (config / "wsgi.py").write_text("changed by hand\n")
    assert [path for path, _ in official_files.keep(package())] == [str(config / "wsgi.py")]
    kept = sorted(path.read_text() for path in config.glob("wsgi.py.before-formula-*"))
    assert kept == ["application = None\n", "changed by hand\n"]
    assert Path(official_files.copy_of(package(), "wsgi.py")).read_text() == "changed by hand\n"


def test_a_copy_of_a_former_version_has_no_time_and_counts(package, root):
    copy = root / "etc/ckan/default/wsgi.py.before-formula"
    copy.write_text("application = None\n")
    assert official_files.copy_of(package(), "wsgi.py") == str(copy)
    assert "wsgi.py" not in official_files.unkept(package())


def test_whatever_the_formula_writes_over_is_kept_as_it_was(root):
    site = fake_site(root, web__server="apache")
    wanted = {
        "apache.wsgi": Path(site.paths.config, "apache.wsgi"), "virtual host": Path(site.paths.apache_site),
        "cron": Path(site.paths.cron),
    }  # fmt: skip
    for name, path in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{name}\r\nSetEnv SECRET \xe4\n".encode("latin-1"))
        path.chmod(0o640)
    before = {name: path.read_bytes() for name, path in wanted.items()}
    old = root / "usr/lib/ckan/releases/20190412093000"
    old.mkdir(parents=True)
    Path(site.paths.current).symlink_to(old)
    assert sorted(official_files.unkept(site)) == ["apache.wsgi", "cron", "current", "virtual host"]
    assert len(official_files.keep(site)) == 4 and official_files.keep(site) == []
    for name in wanted:
        copy = Path(official_files.copy_of(site, name))
        assert (copy.read_bytes(), copy.stat().st_mode & 0o777) == (before[name], 0o640)
        assert STAMP.search(copy.name)
    # Apache and cron read no copy.
    assert not [path for path in Path(site.paths.apache_site).parent.iterdir() if path != wanted["virtual host"]]
    assert official_files.kept_link(site) == str(old)


def test_nothing_is_put_back_where_what_current_named_is_gone(root):
    site = fake_site(root, web__server="apache")
    old = root / "usr/lib/ckan/releases/20190412093000"
    old.mkdir(parents=True)
    Path(site.paths.current).symlink_to("releases/20190412093000")
    official_files.keep(site)
    release = "20260101000000Z"
    site.releases.create(release)
    site.releases.point(release)
    old.rmdir()
    with pytest.raises(FormulaError, match="current named .*/20190412093000 before, which is gone, so nothing was"):
        official_package.restore(site)
    assert site.releases.current() == release


def test_a_virtual_host_that_was_a_link_is_one_again_where_the_server_does_not_take_ours(root, monkeypatch):
    site = fake_site(root, web__server="apache", web__listen="127.0.0.1:1")
    file = Path(site.paths.apache_site)
    (file.parent.parent / "sites-available").mkdir(parents=True)
    file.parent.mkdir()
    (file.parent.parent / "sites-available/old.conf").write_text("# the roles'\n")
    file.symlink_to("../sites-available/old.conf")
    monkeypatch.setattr(virtual_host, "render", lambda _: "ours")

    def refuse(_: Site) -> bool:
        assert file.read_text() == "ours"
        raise FormulaError("not valid")

    monkeypatch.setattr(virtual_host, "reload", refuse)
    with pytest.raises(FormulaError, match="not valid"):
        virtual_host.install(site)
    assert os.readlink(file) == "../sites-available/old.conf" and file.read_text() == "# the roles'\n"


def test_a_pointer_takes_the_place_of_the_old_one_with_its_time_and_not_of_what_it_links_to(root):
    """mod_wsgi starts a process anew where the time is another one; it would boot while Apache is reloaded."""
    site = fake_site(root)
    path = Path(site.paths.config, "apache.wsgi")
    theirs = root / "roles/apache.wsgi"
    for folder in (path.parent, theirs.parent):
        folder.mkdir(parents=True)
    theirs.write_text("application = None\n")
    os.utime(theirs, ns=(10**18, 10**18 + 7))
    path.symlink_to(theirs)
    assert pointers.install(site, str(path)) and pointers.install(site, str(path)) == {}
    assert "Written by the CKAN formula" in path.read_text() and path.stat().st_mtime_ns == 10**18 + 7
    assert theirs.read_text() == "application = None\n" and not path.is_symlink()
    with pytest.raises(FormulaError, match="is no pointer of the site; name one of"):
        pointers.install(site, str(root / "other.py"))


def test_a_process_of_mod_wsgi_that_missed_a_switch_ends_when_it_is_asked(root):
    """mod_wsgi notes the time of the file when CKAN is loaded, so a switch meanwhile is none to it."""
    site = fake_site(root)
    pointer, current, names = Path(site.paths.config, "apache.wsgi"), Path(site.paths.current), ("1", "2")
    pointer.parent.mkdir(parents=True)
    pointers.install(site, str(pointer))
    for name in names:
        package = Path(site.paths.releases, name, "lib/python3.11/site-packages/ckan")
        (package / "config").mkdir(parents=True)
        (package / "cli.py").write_text("class CKANConfigLoader:\n    __init__ = get_config = lambda *_: None\n")
        app = "def make_app(config):\n    return lambda environ, start: start('', [])\n"
        (package / "config/middleware.py").write_text(app)
    current.symlink_to("releases/1")
    script = f"""
import os, runpy, signal
signal.signal(signal.SIGINT, lambda *_: print("told to end"))
ask = runpy.run_path({str(pointer)!r})["application"]
say = lambda status, headers, _: print(headers[0][1])
ask({{"mod_wsgi.process_group": "ckan"}}, say)
os.unlink({str(current)!r})
os.symlink("releases/2", {str(current)!r})
# Apache's own process, and another server, are not ended.
for environ in ({{"mod_wsgi.process_group": ""}}, {{}}, {{"mod_wsgi.process_group": "ckan"}}):
    ask(environ, say)
"""
    said = subprocess.run(["/usr/bin/python3", "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.split("\n") == ["1", "1", "1", "told to end", "1", ""]


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
    with pytest.raises(FormulaError, match="nothing was kept on this host of what served it before"):
        official_package.restore(fake_site(root))
