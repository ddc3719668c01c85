"""The ini of a release: what the pillar says, to the letter, in every locale; and no secret anywhere else."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError
from salt.utils import yaml

from ckan_deploy.build import ini as ini_of_release
from fakes import fake_site
from functional.steps import deployed

REPO = Path(__file__).resolve().parents[2]
# A server process without any locale, as Apache's often is.
BARE = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PATH": os.environ["PATH"]}
TITLE = "Catálogo – données"
SECRETS = {
    "session": "pa%ss",
    "api_token": "100%(x)s",
    "config": {"smtp.password": "%%", "ckanext.x.secret": "%(here)s"},
}


def ini(host, release: str) -> Path:
    return host.home / "releases" / release / "production.ini"


def read(path: Path) -> configparser.SectionProxy:
    """The options as CKAN's loader sees them."""
    parser = configparser.ConfigParser({"here": str(path.parent)})
    parser.optionxform = str
    parser.read(path, encoding="utf-8")
    return parser["app:main"]


@pytest.mark.parametrize(
    ("url", "config", "icon"),
    [
        ("https://www.example.org:8443/open/data", {}, "/open/data/base/images/ckan.ico"),
        ("https://www.example.org/data", {"ckan.favicon": "/data/city.ico"}, "/data/city.ico"),
        # CKAN's own is right then.
        ("https://data.example.org", {}, None),
    ],
)
def test_f18_below_a_path_the_icon_is_below_it_too(url, config, icon):
    """CKAN writes this option into its pages as it is, and its default is at the top of the host."""
    assert ini_of_release.options(fake_site("", site_url=url, config=config)).get("ckan.favicon") == icon


@pytest.mark.slow
def test_a09_the_ini_gives_back_the_secrets_of_the_pillar_and_here_still_resolves(host):
    host.pillar["secrets"] = SECRETS
    host.pillar["database"] = {"password": "p@ss:for/ckan%#"}
    host.pillar["config"] = {"who.config_file": "%(here)s/who.ini", "ckanext.x.share": "up 100%, or %(x)s"}
    release = deployed(host)
    found = read(ini(host, release))
    assert found["SECRET_KEY"] == found["beaker.session.secret"] == found["WTF_CSRF_SECRET_KEY"] == "pa%ss"
    assert found["api_token.jwt.encode.secret"] == found["api_token.jwt.decode.secret"] == "string:100%(x)s"
    assert (found["smtp.password"], found["ckanext.x.secret"]) == ("%%", "%(here)s")
    assert found["who.config_file"] == f"{host.home}/releases/{release}/who.ini"
    assert found["ckanext.x.share"] == "up 100%, or %(x)s"
    assert found["sqlalchemy.url"] == (
        "postgresql://ckan_default:p%40ss%3Afor%2Fckan%25%23@localhost:5432/ckan_default"
    )
    # And so does the loader of the release's own CKAN.
    loaded = json.loads(
        host.python(
            release,
            "import json; from ckan.cli import CKANConfigLoader;"
            f" print(json.dumps(CKANConfigLoader({str(ini(host, release))!r}).get_config()))",
        )
    )
    assert {name: loaded[name] for name in found if name != "here"} == {n: found[n] for n in found if n != "here"}


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("first\nsecond\n\n  indented\n", "first\nsecond\n\nindented"),
        (["a", "b c", 3], "a b c 3"),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (1.5, "1.5"),
        ("", ""),
        ("a = b : c ; d # e", "a = b : c ; d # e"),
        ("[app:main]", "[app:main]"),
        ('{"a": [1, "é"]}', '{"a": [1, "é"]}'),
        ("'quoted'", "'quoted'"),
        ("日本語 \U0001f600", "日本語 \U0001f600"),
    ],
)
def test_every_kind_of_value_comes_back_from_the_ini(host, value: Any, wanted: str):
    place = host.root / "place"
    place.mkdir()
    ini_of_release.write(host.site(config={"ckanext.x.option": value}), str(place))
    assert read(place / "production.ini")["ckanext.x.option"] == wanted


@pytest.mark.parametrize("value", [" leading", "trailing ", "a\n# no comment", "a\n; no comment", "\u00a0no-break"])
def test_a_value_that_an_ini_cannot_hold_is_refused_at_plan(host, value: str):
    host.pillar["config"] = {"ckanext.x.option": value}
    before = host.tree()
    with pytest.raises(CommandExecutionError, match=r"an ini file cannot hold the value of ckanext\.x\.option"):
        host.plan()
    with pytest.raises(CommandExecutionError, match="failed at plan"):
        host.deploy()
    assert (host.releases(), host.current()) == ([], "")
    assert not any(name.endswith(".ini") for name in host.tree() if name not in before)


def served_title(host, release: str, pointer: Path) -> bytes:
    """The front page of a release, by its WSGI entry in a process without a locale."""
    code = (
        f"import io, runpy; app = runpy.run_path({str(pointer)!r})['application']\n"
        "environ = {'REQUEST_METHOD': 'GET', 'PATH_INFO': '/', 'wsgi.input': io.BytesIO(), 'SERVER_NAME': 'x',"
        " 'SERVER_PORT': '80', 'wsgi.url_scheme': 'http', 'QUERY_STRING': ''}\n"
        "import sys; sys.stdout.buffer.write(b''.join(app(environ, lambda *a: None)))"
    )
    path = host.home / "releases" / release
    done = subprocess.run(
        [path / "bin/python", "-c", code], env={**BARE, "RELEASE_DIR": str(path)}, capture_output=True, cwd="/"
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.slow
def test_a10_accents_survive_a_server_without_a_locale(host, tmp_path):
    host.pillar["config"] = {"ckan.site_title": TITLE}
    release = deployed(host)
    assert f"ckan.site_title = {TITLE}\n".encode() in ini(host, release).read_bytes()
    pointer = host.root / "etc/ckan/default/wsgi.py"
    done = host.loaders().states["ckan_front.pointed"](name=str(pointer))
    assert done["result"], done
    assert f"<h1>{TITLE}</h1>".encode() in served_title(host, release, pointer)


@pytest.mark.slow
def test_a10_a_deploy_without_a_locale_writes_the_same_bytes(host, tmp_path):
    host.pillar["config"] = {"ckan.site_title": TITLE}
    (tmp_path / "pillar").mkdir()
    (tmp_path / "pillar/top.sls").write_text("base: {'*': [ckan]}")
    (tmp_path / "pillar/ckan.sls").write_text(yaml.dump({"ckan": host.pillar}, allow_unicode=True), encoding="utf-8")
    (tmp_path / "minion").write_text(
        yaml.dump(
            {
                "id": "web1", "file_client": "local", "root_dir": str(tmp_path), "log_level_logfile": "quiet",
                "file_roots": {"base": [str(REPO)]}, "pillar_roots": {"base": [str(tmp_path / "pillar")]},
                "module_dirs": [str(REPO / "_modules")], "utils_dirs": [str(REPO / "_utils")],
            }
        )
    )  # fmt: skip
    done = subprocess.run(
        [Path(sys.executable).parent / "salt-call", "-c", tmp_path, "--local", "--out=json", "--retcode-passthrough",
         "ckan_release.deploy"],
        env=BARE, capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode(errors="replace") + done.stdout.decode(errors="replace")
    release = host.current()
    assert release and json.loads(done.stdout)["local"]["current"] == release
    assert f"ckan.site_title = {TITLE}\n".encode() in ini(host, release).read_bytes()


@pytest.mark.slow
def test_a_password_that_ckan_quotes_in_its_error_is_masked(host):
    host.pillar["database"] = {"password": "p@ss:for/ckan%#"}
    host.pillar["config"] = {"stub.migrate_error": "no way to postgresql://ckan:p%40ss%3Afor%2Fckan%25%23@db/ckan"}
    with pytest.raises(CommandExecutionError, match="failed at migrate: .*no way to postgresql://") as failure:
        deployed(host)
    told = [str(failure.value), json.dumps(host.history())]
    assert [text for text in told if "p%40ss" in text or "p@ss" in text or "no way to" not in text] == []


@pytest.mark.slow
def test_config_diff_shows_what_a_deploy_would_change_and_no_secret(host):
    host.pillar["config"] = {"ckan.site_title": "Old", "ckan.locale_default": "en", "ckanext.x.password": "old-hidden"}
    release = deployed(host)
    assert host.config_diff() == {"release": release, "added": {}, "removed": {}, "changed": {}}
    host.pillar["config"] = {"ckan.site_title": TITLE, "ckanext.x.password": "new-hidden", "ckan.max_thing_size": 50}
    host.pillar["secrets"] = {**host.pillar["secrets"], "session": "new-session-secret"}
    host.pillar["database"] = {"password": "new-database-password", "host": "db2"}
    found = host.config_diff()
    assert found["added"] == {"ckan.max_thing_size": "50"}
    assert found["removed"] == {"ckan.locale_default": "en"}
    assert found["changed"] == {
        "ckan.site_title": f"Old -> {TITLE}",
        "ckanext.x.password": "(changed)",
        # Of an address only user and password are secret.
        "sqlalchemy.url": "postgresql://**********@localhost:5432/ckan_default -> "
        "postgresql://**********@db2:5432/ckan_default",
        "SECRET_KEY": "(changed)",
        "beaker.session.secret": "(changed)",
        "WTF_CSRF_SECRET_KEY": "(changed)",
    }
    assert host.releases() == [release]
    host.pillar["database"] = {"password": "new-database-password"}
    assert host.config_diff()["changed"]["sqlalchemy.url"] == "(changed)"
    # And a deploy does just that.
    latest = deployed(host)
    assert host.config_diff() == {"release": latest, "added": {}, "removed": {}, "changed": {}}
    assert host.config_diff(release)["added"] == {"ckan.max_thing_size": "50"}
