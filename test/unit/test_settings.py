"""The settings: what is accepted, what is refused and how it is said, and that secrets stay out of every message."""

from __future__ import annotations

import copy
import datetime
import grp
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from salt.utils import yaml
from salt.utils.secret import MaskedDict, MaskedList

from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.site import Site
from ckan_deploy.settings import mask
from ckan_deploy.settings.model import Paths, Settings
from ckan_deploy.settings.resolve import resolve
from ckan_deploy.settings.rules import rules, table
from ckan_deploy.settings.together import SOCKET_LIMIT
from fakes import FakeHost

REPO = Path(__file__).resolve().parents[2]
PGP = "-----BEGIN PGP MESSAGE-----\n\nhQEMA5x\n-----END PGP MESSAGE-----\n"


def pillar(**changes: Any) -> dict:
    """The least that a host needs, with changes; `web__listen` stands for web:listen."""
    made: dict[str, Any] = {
        "env": "production",
        "site_url": "https://data.example.org",
        "database": {"password": "database-secret"},
        "secrets": {"session": "session-secret", "api_token": "token-secret"},
        "extensions": {"ckanext-mycity": {"url": "https://git.example.org/ckanext-mycity.git", "ref": "main"}},
    }
    for name, value in changes.items():
        group, _, leaf = name.rpartition("__")
        (made.setdefault(group, {}) if group else made)[leaf] = value
    return made


def extension(**changes: Any) -> dict:
    return pillar(extensions={"ckanext-a": {"url": "https://git.example.org/a.git", "ref": "main", **changes}})


def refused(given: Any, overrides: Any = None) -> str:
    with pytest.raises(FormulaError) as failure:
        resolve(given, overrides)
    return str(failure.value)


def site(ckan: Any = None, **more: Any) -> Site:
    """The site of a host with this pillar."""
    return Site.of(FakeHost({**({} if ckan is None else {"ckan": ckan}), **more}))


# Defaults, and what follows from other settings.


def test_the_least_pillar_gets_every_default():
    settings = resolve(pillar())
    for name, rule in table(Settings):
        group, _, leaf = name.rpartition(":")
        assert hasattr(getattr(settings, group) if group else settings, leaf)
        assert rule.text
    assert settings.keep == 5
    assert settings.domain == "data.example.org"
    assert settings.extensions["ckanext-mycity"].requirements == "auto"
    assert attrs.asdict(settings.paths) == {
        "home": "/usr/lib/ckan",
        "base": "/usr/lib/ckan/default",
        "releases": "/usr/lib/ckan/releases",
        "current": "/usr/lib/ckan/current",
        "access_log": "/var/log/nginx/ckan-default-access.log",
        "shared": "/usr/lib/ckan/shared",
        "config": "/etc/ckan/default",
        "data": "/var/lib/ckan/default",
        "log": "/var/log/ckan",
        "backups": "/var/backups/ckan/default",
        "nginx_site": "/etc/nginx/conf.d/ckan-default.conf",
        "apache_site": "/etc/apache2/sites-enabled/ckan-default.conf",
        "supervisor_programs": "/etc/supervisor/conf.d",
        "cron": "/etc/cron.d/ckan-default",
    }
    assert settings.installer.uv == "/usr/lib/ckan/shared/tools/bin/uv"


def test_a_root_stands_before_every_default_path_and_before_none_that_is_given():
    settings = resolve(pillar(root="/srv/x", paths={"log": "/var/log/portal"}))
    paths = attrs.asdict(settings.paths)
    assert paths.pop("log") == "/var/log/portal"
    assert all(path.startswith("/srv/x/") for path in paths.values())
    assert settings.installer.uv.startswith("/srv/x/")


def test_a_second_site_has_paths_of_its_own():
    first, second = (attrs.asdict(resolve(pillar(site=name)).paths) for name in ("default", "museum"))
    assert second["releases"] == "/usr/lib/ckan/sites/museum/releases"
    same = {name for name in first if first[name] == second[name]}
    assert same == {"log", "supervisor_programs"}


def test_a_home_that_is_given_carries_the_paths_below_it():
    paths = resolve(pillar(root="/srv/x", paths={"home": "/opt/portal"})).paths
    assert (paths.home, paths.current) == ("/opt/portal", "/opt/portal/current")
    assert paths.config == "/srv/x/etc/ckan/default"


def test_a_program_uv_that_is_given_is_taken_as_it_is():
    for given in ("/opt/uv", "uv", "{shared}/{x}"):
        assert resolve(pillar(installer__uv=given)).installer.uv == given


def test_a_key_with_nothing_behind_it_has_its_default():
    given = yaml.safe_load("keep:\nweb:\npaths: {home: }\nextensions:\nplugins:\nconfig:\n")
    settings = resolve({**pillar(), **given})
    assert (settings.keep, settings.web.listen, settings.extensions) == (5, ("80",), {})
    assert settings.paths.releases == "/usr/lib/ckan/releases"


def test_two_results_share_no_default():
    first = resolve(pillar())
    first.config["x"] = "y"
    second = resolve(pillar())
    assert (first.plugins, second.plugins, second.config) == ((), (), {})


# Unknown names.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (pillar(plugin=["a"]), "ckan:plugin is not a setting; did you mean ckan:plugins?"),
        (pillar(web__listn="80"), "ckan:web:listn is not a setting; did you mean ckan:web:listen?"),
        (extension(reff="x"), "ckan:extensions:ckanext-a:reff is not a setting; did you mean "
                              "ckan:extensions:ckanext-a:ref?"),
        (pillar(zzz=1), "ckan:zzz is not a setting; see docs/pillar.md"),
        ({**pillar(), 7: 1}, "ckan:7 is not a setting; see docs/pillar.md"),
    ],
)  # fmt: skip
def test_an_unknown_name_is_refused_with_the_nearest_known_one(given, message):
    assert refused(given) == message


def test_options_of_ckan_are_free():
    config = {"ckan.site_title": "Catálogo – données", "a.b": 1, "c": True, "d": 1.5, "e": ["x", "y"], "f": "a\nb"}
    assert resolve(pillar(config=config)).config == config


# Quotes.


@pytest.mark.parametrize(
    ("text", "key", "seen"),
    [
        ("base: {version: 2.10}", "ckan:base:version", "the number 2.1"),
        ("base: {version: 2}", "ckan:base:version", "the number 2"),
        ("extensions: {a: {url: /a, ref: 2.10}}", "ckan:extensions:a:ref", "the number 2.1"),
        ("extensions: {a: {url: /a, ref: 0012345}}", "ckan:extensions:a:ref", "the number 12345"),
        ("extensions: {a: {url: /a, ref: 1234567}}", "ckan:extensions:a:ref", "the number 1234567"),
        ("extensions: {a: {url: /a, ref: off}}", "ckan:extensions:a:ref", "the yes/no value False"),
        ("extensions: {a: {url: /a, ref: 12:30:45}}", "ckan:extensions:a:ref", "the number 45045"),
    ],
)
def test_a12_a_version_or_ref_without_quotes_is_refused_by_key(text, key, seen):
    message = refused({**pillar(), **yaml.safe_load(text)})
    assert message == f"{key} is {seen}; put the value in quotes in the pillar"


@pytest.mark.parametrize("ref", ["'2.10'", "'0012345'", "'1234567'", "'off'", "12345e10", "2026-01-02", "v2.10"])
def test_a12_a_ref_that_yaml_leaves_as_text_is_taken_as_it_stands(ref):
    given = yaml.safe_load(f"extensions: {{a: {{url: /a, ref: {ref}}}}}")
    assert resolve({**pillar(), **given}).extensions["a"].ref == ref.strip("'")


def test_a_list_of_plugins_with_a_number_or_yes_no_word_is_refused():
    for text in ("[a, 1]", "[a, on]", "[a, '']", "a b", "{a: b}"):
        message = refused(pillar(plugins=yaml.safe_load(text)))
        assert message.startswith("ckan:plugins must be a list of text") and "in quotes" in message


# What is missing or of the wrong kind.


def test_all_missing_settings_are_named_at_once():
    lines = refused({}).splitlines()
    for key in ("env", "site_url", "database:password", "secrets:session", "secrets:api_token"):
        assert any(line.startswith(f"ckan:{key} is missing; set it in the pillar") for line in lines)
    assert len(lines) == 5


def test_an_empty_secret_is_missing():
    assert refused(pillar(secrets__session="")) == (
        "ckan:secrets:session is missing; set it in the pillar, or let the master make it (docs/secrets.md)"
    )


def test_an_extension_without_url_and_ref_is_refused():
    for content, message in (
        ({}, "ckan:extensions:a names no origin; give url and ref, version, or archive and hash"),
        ({"url": "/srv/a.git"}, "ckan:extensions:a:ref is missing; set it in the pillar"),
        ({"ref": "main"}, "ckan:extensions:a:url is missing; set it in the pillar"),
        ({"archive": "salt://a-1.0.tar.gz"}, "ckan:extensions:a:hash is missing; set it in the pillar"),
    ):
        assert refused(pillar(extensions={"a": content})) == message


def test_an_extension_has_one_origin_of_one_kind():
    git = {"url": "https://git.example.org/a.git", "ref": "main"}
    archive = {"archive": "https://files.example.org/a-1.0.whl", "hash": "sha256=" + "a" * 64}
    for content, kind in ((git, "git"), ({"version": "1.2"}, "index"), ({"version": ">=1,<2"}, "index"),
                          (archive, "archive")):  # fmt: skip
        assert resolve(pillar(extensions={"a": content})).extensions["a"].kind == kind
    for content, message in (
        ({**git, "version": "1.2"}, "a has url and version: name one origin"),
        ({"version": "1.2", "ref": "main"}, "a:ref means nothing for an extension from index"),
        ({**archive, "locked": True}, "a:locked means nothing for an extension from archive"),
        ({"version": "newest"}, "a:version ('newest') is neither a version nor specifiers"),
        ({**archive, "archive": "/srv/a-1.0.whl"}, "a:archive must begin with https://, http:// or salt://"),
        ({**archive, "hash": "md5=00"}, "a:hash is not valid"),
        ({**git, "override": ["libx"]}, None),
        ({**git, "override": ["== 1.0"]}, "a:override has the item '== 1.0', which is no requirement"),
        ({**git, "init": ["mycity init-db --name 'a b'"]}, None),
        ({**git, "init": ["mycity 'init"]}, 'a:init has the item "mycity \'init", which cannot be split into words'),
        ({**git, "subdirectory": "../x"}, "a:subdirectory must be a path inside the repository"),
        ({**git, "upstream": "ext::sh -c x"}, "a:upstream names a helper program of git"),
        ({**git, "deploy_key": "12345"}, "a:deploy_key is not a private key"),
        ({**git, "url": "/srv/a.git", "token": "abc"}, "a:token is for https"),
        ({**git, "patches": ["/srv/a.patch"]}, "a:patches has the item '/srv/a.patch', which is not valid"),
    ):
        if message:
            assert message in refused(pillar(extensions={"a": content}))
        else:
            resolve(pillar(extensions={"a": content}))


def test_two_spellings_of_one_package_are_refused():
    git = {"url": "https://git.example.org/a.git", "ref": "main"}
    message = refused(pillar(extensions={"ckanext-a": git, "ckanext_a": git}))
    assert "ckan:extensions:ckanext_a and ckan:extensions:ckanext-a are the same package" in message


def test_keys_and_tokens_are_masked_and_never_quoted():
    key = "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n-----END OPENSSH PRIVATE KEY-----"
    git = {"url": "https://git.example.org/a.git", "ref": "main", "token": "a-token-of-git", "deploy_key": key}
    got = site(pillar(extensions={"a": git}, git={"host_keys": ["git.example.org ssh-x AAAA"]})).settings
    shown = mask.shown(got)
    assert got.extensions["a"].deploy_key == key
    assert got.extensions["a"].host_keys == ("git.example.org ssh-x AAAA",)
    assert shown["extensions"]["a"]["host_keys"] == ["git.example.org ssh-x AAAA"]
    assert "a-token-of-git" not in repr(shown) and "c2VjcmV0" not in repr(shown)
    message = refused(pillar(extensions={"a": {**git, "token": 12345678, "deploy_key": [key]}}))
    assert "12345678" not in message and "c2VjcmV0" not in message


def test_another_origin_for_one_deploy_takes_the_place_of_the_one_in_the_pillar():
    known = pillar(extensions={"a": {"version": "1.2", "override": ["libx==1"]}})
    override = {"extensions": {"a": {"url": "/srv/a.git", "ref": "fix"}}}
    got = resolve(known, override).extensions["a"]
    assert (got.kind, got.ref, got.version, got.override) == ("git", "fix", "", ("libx==1",))


@pytest.mark.parametrize(
    ("content", "token"),
    [
        ({"ref": "fix"}, "a-token-of-git"),
        ({"url": "https://git.example.org/fork.git", "ref": "fix"}, "a-token-of-git"),
        ({"url": "https://git.example.org.evil.example/a.git", "ref": "fix"}, ""),
        ({"url": "https://git.example.org:8443/a.git", "ref": "fix"}, ""),
        ({"url": "http://git.example.org/a.git", "ref": "fix"}, ""),
        ({"url": "/srv/a.git", "ref": "fix"}, ""),
        ({"url": "https://evil.example/a.git", "ref": "fix", "token": "mine"}, "mine"),
    ],
)
def test_the_token_of_an_origin_goes_to_no_other_server_for_one_deploy(content: dict[str, str], token: str):
    git = {"url": "https://git.example.org/a.git", "ref": "main", "token": "a-token-of-git"}
    got = resolve(pillar(extensions={"a": git}), {"extensions": {"a": content}}).extensions["a"]
    assert (got.token, got.ref) == (token, "fix")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": "5"}, "ckan:keep must be a whole number, not the text '5'"),
        ({"keep": True}, "ckan:keep must be a whole number, not the yes/no value True"),
        ({"keep": 2.5}, "ckan:keep must be a whole number, not the number 2.5"),
        ({"keep": 1}, "ckan:keep is 1; use 2 or more"),
        ({"web__processes": 0}, "ckan:web:processes is 0; use 1 or more"),
        ({"installer__offline": "yes"}, "ckan:installer:offline must be True or False, not the text 'yes'"),
        ({"manage__user": 1}, "ckan:manage:user must be True or False, not the number 1"),
        ({"web__listen": 80}, "ckan:web:listen is the number 80; put the value in quotes in the pillar"),
        ({"link": "soft"}, "ckan:link is 'soft'; use auto or hard or copy"),
        ({"web": "nginx"}, "ckan:web must be a dictionary, not text"),
        ({"web": ["nginx"]}, "ckan:web must be a dictionary, not a list"),
        ({"config": ["a"]}, "ckan:config must be a dictionary of CKAN's options"),
        ({"config": {"a": {"b": "c"}}}, "ckan:config:a must be text, a number, True or False, or a list of them"),
        ({"config": {"a": b"c"}}, "ckan:config:a must be text, a number, True or False, or a list of them"),
        (
            {"config": {"a": [datetime.date(2026, 1, 2)]}},
            "ckan:config:a must be text, a number, True or False, or a list of them",
        ),
        ({"config": {"a": None}}, "ckan:config:a must be text, a number, True or False, or a list of them"),
        ({"config": {"a b": "c"}}, "ckan:config: 'a b' cannot be the name of an option; correct it"),
        ({"config": {7: "c"}}, "ckan:config: 7 cannot be the name of an option; correct it"),
        ({"config": {"a": "b\x1bc"}}, "ckan:config:a has control characters in it; remove them"),
        ({"extensions": ["a"]}, "ckan:extensions must be a dictionary of extensions by name"),
        ({"extensions": {"a": "main"}}, "ckan:extensions:a must be a dictionary such as {url: ..., ref: ...}"),
        ({"plugins": ["a", "b", "a"]}, "ckan:plugins lists a twice; remove one"),
        ({"database__port": 0}, "ckan:database:port is 0; use 1 or more"),
        ({"database__port": 65536}, "ckan:database:port is 65536; use 65535 or less"),
        ({"web__server": "lighttpd"}, "ckan:web:server is 'lighttpd'; use nginx or apache or none"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_key(changes, message):
    assert refused(pillar(**changes)) == message


@pytest.mark.parametrize(
    "changes",
    [
        {"env": "Production"}, {"env": "a/b"}, {"env": "-x"}, {"site": "a_b"}, {"site": ".."}, {"root": "srv"},
        {"root": "/srv/"}, {"user": "www data"}, {"base__version": "-e x"}, {"domain": "a b"}, {"domain": "a;b"},
        {"web__listen": "80; x"}, {"web__health_path": "status"}, {"site": "a\nb"}, {"plugins": ["a b"]},
        {"plugins": ["a\nb"]}, {"aliases": ["a b"]}, {"plugins": ["a\tb"]}, {"plugins": ["a\xa0b"]},
        {"database__host": "a\tb"}, {"database__host": "a\x85b"}, {"redis_url": "redis://a\r"},
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_form_is_refused_by_key(changes):
    key = next(iter(changes)).replace("__", ":")
    message = refused(pillar(**changes))
    assert message.startswith(f"ckan:{key} ") and len(message.splitlines()) == 1


def test_a_pillar_that_is_no_dictionary_is_refused():
    assert refused(["env"]) == "the pillar's key ckan is not a dictionary; see pillar.example."


def test_all_problems_are_named_at_once():
    lines = refused(pillar(keep="x", plugin=[], link="soft", web__processes=0)).splitlines()
    assert [line.split()[0] for line in lines] == ["ckan:plugin", "ckan:link", "ckan:keep", "ckan:web:processes"]


# Extensions.


@pytest.mark.parametrize("name", ["../a", "-a", "", "a b", ".git", "a/b", 7, True])
def test_an_extension_s_name_that_could_be_a_path_or_an_option_is_refused(name):
    message = refused(pillar(extensions={name: {"url": "/a", "ref": "main"}}))
    assert message.startswith(f"ckan:extensions: {name!r} is not the name of an extension; use ")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ext::sh -c 'touch /tmp/x'", "names a helper program of git"),
        ("--upload-pack=touch /tmp/x", "begins with '-'"),
        ("https://me:hunter2@git.example.org/a.git", "has a password or a token in it"),
        ("https://hunter2@git.example.org/a.git", "has a password or a token in it"),
        ("ssh://git:hunter2@git.example.org/a.git", "has a password or a token in it"),
        ("https://git.example.org/a.git?private_token=hunter2", "has a query or a fragment"),
        ("https://git.example.org/a.git?x=hunter2", "has a query or a fragment"),
        ("https://git.example.org/a.git#hunter2", "has a query or a fragment"),
        ("https://[git.example.org/a.git", "cannot be read as an address"),
        ("https://me:hunter2/x@git.example.org/a.git", "cannot be read as an address"),
        ("https://git.example.org/a\n.git", "has control characters or line breaks"),
        ("https://git.example.org/a\t.git", "has control characters or line breaks"),
    ],
)
def test_an_origin_that_could_run_a_program_or_hold_a_password_is_refused(url, why):
    message = refused(extension(url=url))
    assert message.startswith("ckan:extensions:ckanext-a:url ") and why in message
    assert "hunter2" not in message and "touch" not in message


@pytest.mark.parametrize("leaf", ["upstream", "archive"])
@pytest.mark.parametrize("query", ["access_token=hunter2", "a=b&X-Amz-Signature=hunter2", "sig=hunter2", "key=hunter2"])
def test_a_token_in_the_query_of_an_address_is_refused_and_never_quoted(leaf, query):
    address = f"https://h.example.org/a-1.0.tar.gz?{query}"
    given = {"url": "https://h.example.org/a.git", "ref": "main", "upstream": address}
    if leaf == "archive":
        given = {"archive": address, "hash": "sha256=" + "0" * 64}
    message = refused(pillar(extensions={"a": given}))
    assert message.startswith(f"ckan:extensions:a:{leaf} has a ") and "hunter2" not in message
    plain = {"archive": "https://h.example.org/a-1.0.tar.gz?version=2", "hash": "sha256=" + "0" * 64}
    assert resolve(pillar(extensions={"a": plain})).extensions["a"].archive.endswith("?version=2")


@pytest.mark.parametrize(
    "address", ["https://me:hunter2@h/x.whl", "https://hunter2@h/x.whl", "https://h/x?token=hunter2"]
)
def test_a_token_in_the_address_of_a_requirement_is_refused_and_never_quoted(address):
    for given in (
        extension(override=[f"x @ {address}"]),
        pillar(base={"version": "2.12.0", "packages": [f"x@{address}"]}),
    ):
        message = refused(given)
        assert "a password or a token" in message and "hunter2" not in message


def test_h06_a_deploy_key_with_other_line_breaks_is_taken_and_one_with_a_passphrase_is_named(tmp_path):
    def made(passphrase: str, *options: str) -> str:
        path = tmp_path / f"key{len(list(tmp_path.iterdir()))}"
        subprocess.run(["ssh-keygen", "-q", "-N", passphrase, *options, "-f", path], check=True)
        return path.read_text()

    plain = made("", "-t", "ed25519")
    url = "ssh://git@git.example.org/a.git"
    got = resolve(extension(url=url, deploy_key=plain.replace("\n", "\r\n")))
    assert got.extensions["ckanext-a"].deploy_key == plain
    for key in (made("hunter2", "-t", "ed25519"), made("hunter2", "-t", "rsa", "-m", "PEM", "-b", "2048"),
                made("hunter2", "-t", "rsa", "-m", "PKCS8", "-b", "2048")):  # fmt: skip
        message = refused(extension(url=url, deploy_key=key))
        assert message == (
            "ckan:extensions:ckanext-a:deploy_key has a passphrase, which nobody could type; make a key without one"
        )
    assert resolve(extension(url=url, deploy_key=made("", "-t", "rsa", "-m", "PEM", "-b", "2048")))


@pytest.mark.parametrize(
    "url", ["https://h/a.git", "ssh://git@h/a.git", "git@h:team/a.git", "/srv/git/a.git", "file:///srv/a"]
)
def test_usual_origins_are_accepted(url):
    assert resolve(extension(url=url)).extensions["ckanext-a"].url == url


@pytest.mark.parametrize(
    "ref", ["-x", "--upload-pack=x", "a..b", "a b", " main", "main ", "a\tb", "a~1", "a^", "a:b", "a?", "@{1}", "a\\b"]
)
def test_a_ref_that_no_branch_tag_or_commit_can_have_is_refused(ref):
    message = refused(extension(ref=ref))
    assert message.startswith("ckan:extensions:ckanext-a:ref ") and len(message.splitlines()) == 1


@pytest.mark.parametrize("ref", ["main", "feature/a-b", "v1.2.3", "0012345", "ckan-2.10", "b9ab0d1"])
def test_usual_refs_are_accepted(ref):
    assert resolve(extension(ref=ref)).extensions["ckanext-a"].ref == ref


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.txt", "a/../../x.txt", "-r"])
def test_a_requirements_file_outside_the_repository_is_refused(path):
    assert refused(extension(requirements=path)).startswith("ckan:extensions:ckanext-a:requirements ")


@pytest.mark.parametrize("path", ["auto", "none", "requirements-py3.txt", "req/a.txt", "a..b.txt"])
def test_a_requirements_file_inside_the_repository_is_accepted(path):
    settings = resolve(extension(requirements=path))
    assert settings.extensions["ckanext-a"].requirements == path


# Paths and addresses.


@pytest.mark.parametrize("path", ["srv/x", "/srv/../x", "/srv/x/", "/srv//x", ""])
def test_a_path_that_is_relative_or_winds_is_refused(path):
    assert refused(pillar(paths={"data": path})) == (
        f"ckan:paths:data ({path}) must be an absolute path without '..' or a slash at the end"
    )


# What a generated file of nginx, Apache, uWSGI, supervisor, cron, sh or YAML reads as more than a letter.
SYNTAX = ['"', "'", "`", "\n", ";", "{", "}", "$", "%", "#", " ", "\\", "|", "&", "<", "*", "(", "[", "\u00a0"]
# Settings whose text stands in no such file, or is escaped where it does.
ELSEWHERE = {
    "base:python": "a program's name, run without a shell",
    "base:packages": "arguments of the installer",
    "git:host_keys": "a file of ssh, a line an item",
    "installer:uv": "a program's name, run without a shell",
    "installer:index_url": "an environment variable",
    "installer:find_links": "an argument",
    "patches": "addresses of the file server",
    "plugins": "the ini, which is read back and compared",
    "config_known": "compared with names, written nowhere",
    "site_id": "the ini", "solr_url": "the ini", "redis_url": "the ini",
    "database:name": "the ini, quoted as an address has it", "database:user": "the same", "database:admin_user": "none",
    "datastore:name": "the ini, quoted", "datastore:user": "the ini, quoted", "datastore:read_user": "the ini, quoted",
    "web:extra": "the virtual host, as it is: that is what it is for",
    "web:health_text": "compared with an answer",
    "web:maintenance_page": "a file that is read", "web:maintenance_logo": "a file that is read",
    "web:maintenance_languages": "compared with names, and in a page that escapes it",
    "cron:a:command": "the crontab, quoted", "cron:a:shell": "the crontab, quoted",
}  # fmt: skip
# Characters that may be meant, where they do no harm.
HARMLESS = {
    "web:health_path": "&*(", "web:warm": "&*($;%", "web:smoke_skip": "&*($;%", "web:listen": "[",
    "tls:listen": "[", "web:health_url": "[",
    "cron:a:schedule": " ",
}  # fmt: skip


def in_files() -> list[str]:
    found = [name for name, rule in table(Settings) if rule.kind in ("str", "list") and not rule.secret]
    found = [name for name in found if not rule_of(name).choices]
    return [
        name for name in [*found, "workers:a:queues", "cron:a:schedule", "workers", "cron"] if name not in ELSEWHERE
    ]


def rule_of(name: str):
    return dict(table(Settings))[name]


def with_text(name: str, odd: str) -> dict:
    """A pillar in which a setting has an odd character within what it has by default, or at its end."""
    if name in ("workers", "cron"):
        return pillar(**{name: {f"a{odd}b": {"command": "x", "schedule": "@daily"} if name == "cron" else {}}})
    if name == "workers:a:queues":
        return pillar(workers={"a": {"queues": [f"a{odd}b"]}})
    if name == "cron:a:schedule":
        return pillar(cron={"a": {"command": "x", "schedule": f"0 0 * *{odd}*"}})
    usual = {
        "site_url": "https://a.org", "domain": "a.org", "aliases": "a.org", "web:health_url": "http://a:80", "env": "a",
        "tls:certificate": "/a", "tls:key": "/a", "web:nginx_conf": "/a", "web:apache_conf": "/a",
        "web:supervisor_conf": "/a", "deploy_group": "a", "base:version": "1", "search:second_core": "a", "root": "/a",
        "database:host": "a", "datastore:host": "a", "web:warm": "/", "web:smoke_skip": "/", "web:group": "a",
    }  # fmt: skip
    default = rule_of(name).default
    default = "".join(default[:1]) if isinstance(default, tuple) else default
    value = usual.get(name) or default.format(
        root="", home="/usr/lib/ckan", site="default", shared="/a", server="nginx"
    )
    # A domain that is an address may have a zone.
    value = f"fe80::1%{odd}" if name in ("domain", "aliases") and odd in ";}" else f"{value}{odd}b"
    made = pillar(tls={"certificate": "/a", "key": "/a"}) if name.startswith("tls") else pillar()
    group, _, leaf = name.rpartition(":")
    place = made.setdefault(group, {}) if group else made
    place[leaf] = [value] if rule_of(name).kind == "list" else value
    return made


@pytest.mark.parametrize("name", in_files())
def test_a_setting_that_a_generated_file_would_read_as_syntax_is_refused_by_its_key(name):
    for odd in SYNTAX:
        if odd not in HARMLESS.get(name, ""):
            message, key = refused(with_text(name, odd)), name.replace(":a:queues", ":a")
            assert f"ckan:{key}" in message or name == "root" and "ckan:paths:home (/a" in message, odd
        elif odd != "[":
            resolve(with_text(name, odd))


def test_every_setting_that_is_said_to_stand_elsewhere_is_one():
    assert set(ELSEWHERE) - {"cron:a:command", "cron:a:shell"} <= {name for name, _ in table(Settings)}


@pytest.mark.parametrize("path", ["/srv/a b", "/srv/%(x)s", "/srv/{root}", "/srv/a;b", "/srv/$x", '/srv/"', "/srv/a`b"])
def test_a_path_that_a_configuration_file_would_read_otherwise_is_refused(path):
    assert refused(pillar(paths={"data": path})).startswith(f"ckan:paths:data ({path}) has ")


@pytest.mark.parametrize("name", [name for name in rules(Paths)])
@pytest.mark.parametrize("path", ["/", "/etc", "/usr", "/var/log", "/home", "/root", "/tmp", "/proc/1", "/dev/shm/x"])
def test_a_directory_of_the_system_is_no_path_of_the_portal(name, path):
    message = refused(pillar(paths={name: path}))
    assert f"ckan:paths:{name} ({path}) belongs to the system" in message


@pytest.mark.parametrize(
    "path",
    ["/etc/sudoers.d", "/etc/systemd/system", "/etc/passwd", "/root/.ssh", "/usr/bin/ckan", "/var/lib/dpkg/x",
     "/var/spool/cron/crontabs"],
)  # fmt: skip
def test_what_the_system_keeps_elsewhere_is_no_path_of_the_portal_either(path):
    taken = [name for name in rules(Paths) if "belongs to the system" not in refused(pillar(paths={name: path}))]
    assert taken == []
    # It is only read.
    resolve(pillar(tls={"certificate": "/etc/ssh/portal.crt", "key": "/etc/ssh/portal.key"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"paths": {"log": "/var/lib/ckan/default/log"}}, "paths:log (/var/lib/ckan/default/log) is in ckan:paths"),
        ({"paths": {"data": "/usr/lib/ckan"}}, "paths:releases (/usr/lib/ckan/releases) is in ckan:paths:data (/usr/"),
        ({"paths": {"data": "/usr/lib/ckan/releases/x"}}, "is in ckan:paths:releases (/usr/lib/ckan/releases), which"),
        ({"paths": {"shared": "/usr/lib/ckan/current/x"}}, "is in ckan:paths:current"),
        ({"paths": {"current": "/usr/lib/ckan/releases"}}, "paths:current (/usr/lib/ckan/releases) is in ckan:paths"),
        ({"paths": {"base": "/usr/lib/ckan"}}, "paths:releases (/usr/lib/ckan/releases) is in ckan:paths:base"),
        ({"tls": {"certificate": "/var/lib/ckan/default/a", "key": "/a"}}, "tls:certificate (/var/lib/ckan/default/a)"),
        ({"web__maintenance_page": "/var/lib/ckan/default/a"}, "ckan:web:maintenance_page (/var/lib/ckan/default/a)"),
        ({"installer": {"uv": "/var/lib/ckan/default/uv"}}, "ckan:installer:uv (/var/lib/ckan/default/uv) is in"),
    ],
)  # fmt: skip
def test_a_path_in_a_directory_that_is_not_for_it_is_refused(changes, message):
    assert message in refused(pillar(**changes))


def test_paths_that_begin_alike_are_not_in_one_another():
    resolve(pillar(paths={"data": "/srv/ckan", "log": "/srv/ckan-log", "backups": "/srv/ckan.backups"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user": "root"}, "ckan:user is root, who may do anything"),
        ({"group": "root"}, "ckan:group is root, the group of root"),
        ({"build_user": "root"}, "ckan:build_user is root, who may do anything"),
        ({"build_user": "www-data"}, "ckan:build_user is www-data, who runs CKAN and may read its secrets"),
        ({"user": "toor"}, "ckan:user is toor (root by its number)"),
        ({"build_user": "toor"}, "ckan:build_user is toor (root by its number)"),
        ({"build_user": "web"}, "ckan:build_user is web, who runs CKAN"),
        ({"group": "wheel"}, "ckan:group is wheel (root by its number)"),
        ({"build_user": "reader"}, "ckan:build_user (reader) is in the group www-data, which may read the secrets"),
    ],
)
def test_a_user_or_group_that_would_give_the_machine_or_secrets_away_is_refused(monkeypatch, changes, message):
    numbers = {"toor": (0, 0), "web": (33, 100), "reader": (1000, 1000), "www-data": (33, 33)}

    def entry(name: str) -> Any:
        return type("Entry", (), dict(zip(("pw_uid", "pw_gid"), numbers[name], strict=True)))

    monkeypatch.setattr(pwd, "getpwnam", entry)
    monkeypatch.setattr(grp, "getgrnam", lambda name: type("Entry", (), {"gr_gid": {"wheel": 0, "www-data": 33}[name]}))
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, 33] if name == "reader" else [gid])
    assert message in refused(pillar(**changes))
    assert resolve(pillar()).build_user == "ckan-build"


@pytest.mark.parametrize("name", ["nginx_conf", "apache_conf", "supervisor_conf"])
def test_a_configuration_of_an_own_server_is_an_absolute_path(name):
    assert getattr(resolve(pillar(web={name: "/srv/own.conf"})).web, name) == "/srv/own.conf"
    for path in ("own.conf", "../own.conf", "-x"):
        assert refused(pillar(web={name: path})).startswith(f"ckan:web:{name} ({path}) must be an absolute path")
    assert refused(pillar(web={name: "/srv/a;b"})).startswith(f"ckan:web:{name} (/srv/a;b) has ; in it")


def test_a_root_that_winds_is_refused():
    assert "ckan:paths:home (/srv/../x/usr/lib/ckan) must be an absolute path" in refused(pillar(root="/srv/../x"))


def test_a_path_too_long_for_a_socket_is_refused_where_there_is_a_socket():
    # /releases/YYYYMMDDhhmmssZ/run/web.sock: 38 bytes
    longest = "/" + "x" * (SOCKET_LIMIT - 39)
    resolve(pillar(paths={"home": longest}))
    message = refused(pillar(paths={"home": longest + "x"}))
    assert "longer than the 107 bytes" in message and message.endswith("choose a shorter ckan:paths:home")
    for web in ({"server": "apache"}, {"server": "none", "app": "none"}):
        resolve(pillar(paths={"home": longest + "x"}, web=web))


def test_nginx_without_an_app_server_is_refused_and_apache_needs_none():
    assert "ckan:web:app is none, but nginx asks an app server" in refused(pillar(web__app="none"))
    assert resolve(pillar(web__server="apache")).web.app == "none"


@pytest.mark.parametrize(
    "url",
    [
        "data.example.org", "//data.example.org", "ftp://data.example.org", "https://", "https:///x",
        "https://data.example.org/", "https://data.example.org/a/", "https://data.example.org?x=1",
        "https://data.example.org/a/../b", "https://data.example.org/a;b", "https://data.example.org//a",
        "https://me:hunter2@data.example.org", "https://data example.org", "https://[data", "https://a;b.org",
        "https://data.example.org:http", " https://data.example.org",
    ],
)  # fmt: skip
def test_a_site_url_that_is_more_or_less_than_scheme_host_port_and_path_is_refused(url):
    message = refused(pillar(site_url=url))
    assert (
        message
        == "ckan:site_url must be http(s)://host, with :port or a /path where it has one, and no more; correct it"
    )


@pytest.mark.parametrize(
    ("url", "domain"),
    [
        ("http://data.example.org", "data.example.org"),
        ("https://Data.Example.org:8443", "data.example.org"),
        ("http://127.0.0.1:5000", "127.0.0.1"),
        ("https://www.example.org:8443/open/data", "www.example.org"),
        ("http://[::1]:5000", "::1"),
    ],
)
def test_the_domain_is_the_host_of_the_site_url(url, domain):
    assert resolve(pillar(site_url=url)).domain == domain


def test_a_root_path_beside_a_site_url_with_a_path_is_refused():
    config = {"ckan.root_path": "/data/{{LANG}}"}
    assert refused(pillar(site_url="https://www.example.org/data", config=config)) == (
        "ckan.root_path follows from ckan:site_url, which has /data; take it out of ckan:config"
    )
    resolve(pillar(site_url="https://www.example.org", config=config))


def test_a_domain_that_is_given_wins():
    assert resolve(pillar(domain="inside.example.org")).domain == "inside.example.org"


NO_NAMES = ["a..b", ".a", "a.", "-a.org", "a-.org", "a_b.org", "a;b", "a.org/", "é.org", "a." * 127 + "ab", "x" * 64]


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_domain_or_alias_that_is_no_host_name_is_refused_by_its_key(name):
    hint = "; write one such as data.example.org (letters beyond a-z as xn--...)"
    assert refused(pillar(domain=name)) == f"ckan:domain ({name}) is not a host name{hint}"
    for alias in (name, f"*.{name}"):
        assert refused(pillar(aliases=["b.org", alias])) == (
            f"ckan:aliases has the item {alias!r}, which is not a host name{hint}"
        )


@pytest.mark.parametrize("name", ["a", "a.b", "1.org", "xn--9ca.org", "a-b.example.org", "x" * 63, "a." * 126 + "a"])
def test_usual_host_names_are_accepted(name):
    settings = resolve(pillar(domain=name, aliases=[f"www.{name}"[:253], f"*.{name}"]))
    assert settings.domain == name


@pytest.mark.parametrize("alias", ["*", "*.", "a.*", "*a.org", "**.a.org", "*.*.a.org"])
def test_an_alias_is_open_at_its_beginning_only(alias):
    assert refused(pillar(aliases=[alias])).startswith(f"ckan:aliases has the item {alias!r}, which is not a host name")


@pytest.mark.parametrize("host", ["a..org", "-a.org", "a_b.org", "x" * 64])
def test_a_site_url_whose_host_is_no_host_name_is_refused(host):
    message = refused(pillar(site_url=f"https://{host}:8443"))
    assert message.startswith(f"ckan:site_url has {host} in it, which is not a host name; ")


@pytest.mark.parametrize("port", ["0", "65536", "99999"])
def test_a_port_that_does_not_exist_is_refused_by_its_key(port):
    assert refused(pillar(site_url=f"http://data.example.org:{port}")) == (
        f"ckan:site_url has the port {port}; use one from 1 to 65535"
    )
    for key in ("web", "tls"):
        for listen in (port, f"127.0.0.1:{port}", "127.0.0.1", "localhost:http", "80:"):
            message = refused(pillar(**{f"{key}__listen": listen}))
            assert message == f"ckan:{key}:listen ({listen}) has no port from 1 to 65535; use one such as '8080'"


@pytest.mark.parametrize("listen", ["80", "127.0.0.1:8080", "[::]:80", "localhost:65535"])
def test_usual_places_to_listen_are_accepted(listen):
    for given in (listen, [listen]):
        assert resolve(pillar(web__listen=given)).web.listen == (listen,)


def test_several_places_to_listen_are_accepted_and_none_are_refused():
    assert resolve(pillar(web__listen=["80", "127.0.0.1:8080"])).web.listen == ("80", "127.0.0.1:8080")
    assert refused(pillar(web__listen=[])) == (
        "ckan:web:listen is an empty list; name a port such as '8080', or leave it out"
    )
    message = refused(pillar(web__listen=["80", "70000"]))
    assert message == "ckan:web:listen (70000) has no port from 1 to 65535; use one such as '8080'"


def test_a_certificate_has_a_key_and_both_are_absolute_paths():
    both = {"certificate": "/etc/ssl/c.pem", "key": "/etc/ssl/k.pem"}
    found = resolve(pillar(tls=both)).tls
    assert (found.certificate, found.key, found.listen) == (*both.values(), ("443",))
    assert found.redirect and found.hsts == 0
    for there, missing in (("certificate", "key"), ("key", "certificate")):
        assert refused(pillar(tls={there: both[there]})) == (
            f"ckan:tls:{missing} is missing, while ckan:tls:{there} is set; set both or none"
        )
        assert f"ckan:tls:{there} (c.pem) must be an absolute path" in refused(pillar(tls={**both, there: "c.pem"}))
    message = refused(pillar(tls=both, web__listen="443"))
    assert message == "ckan:tls:listen and ckan:web:listen are both 443; give each a port of its own"


def test_extra_lines_for_the_web_server_are_text_of_several_lines():
    lines = "location /x {\n\treturn 204;\n}\n"
    assert resolve(pillar(web__extra=lines)).web.extra == lines
    assert refused(pillar(web__extra=["a"])) == "ckan:web:extra is a list; put the value in quotes in the pillar"
    assert refused(pillar(web__extra="a\x00")) == "ckan:web:extra has control characters in it; remove them"


# Secrets.


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"secrets__session": PGP}, "ckan:secrets:session"),
        ({"database__password": PGP}, "ckan:database:password"),
        ({"config": {"ckanext.x.token": PGP}}, "ckan:config:ckanext.x.token"),
        ({"config": {"a": ["x", PGP]}}, "ckan:config:a:1"),
        ({"aliases": ["a.org", PGP]}, "ckan:aliases:1"),
        ({"extensions": {"a": {"url": "/a", "ref": PGP}}}, "ckan:extensions:a:ref"),
        ({"env": PGP}, "ckan:env"),
    ],
)
def test_a_value_that_is_still_encrypted_is_refused_by_key_only(changes, key):
    message = refused(pillar(**changes))
    assert message == f"{key} is still encrypted (PGP); check its file's #!yaml|gpg line and the master's key"


@pytest.mark.parametrize("value", ["hunter2\x00", "hunter2\t", "hunter2\x1b[31m", "hunter2\n", 9999999, 99999.99, True,
                                   {"hunter2": 1}, {"a": "hunter2"}, ["hunter2"], b"hunter2"])  # fmt: skip
@pytest.mark.parametrize("key", ["database:password", "secrets:session", "secrets:api_token"])
def test_no_message_holds_the_value_of_a_secret(key, value):
    message = refused(pillar(**{key.replace(":", "__"): value}))
    assert message.startswith(f"ckan:{key} ") and len(message.splitlines()) == 1
    assert "hunter2" not in message and "9999" not in message and "True" not in message


@pytest.mark.parametrize("value", ["hunter2", 9999999, ["hunter2"]])
@pytest.mark.parametrize("group", ["database", "secrets"])
def test_no_message_holds_a_secret_that_stands_one_level_too_high(group, value):
    message = refused(pillar(**{group: value}))
    assert f"ckan:{group} must be a dictionary, not " in message
    assert "hunter2" not in message and "9999" not in message


def test_a_secret_with_odd_characters_is_taken_as_it_is():
    for odd in ("pa%ss", "100%(x)s", "a b", "ä@/:#'\"", "{x}"):
        assert resolve(pillar(database__password=odd)).database.password == odd


def test_settings_that_are_printed_hold_no_secret():
    key = "-----BEGIN OPENSSH PRIVATE KEY-----\nhunter2"
    git = {"url": "https://git.example.org/a.git", "ref": "main", "token": "hunter2", "deploy_key": key}
    settings = site(pillar(extensions={"a": git}, secrets__config={"smtp.password": "hunter2"})).settings
    for secret in ("hunter2", "database-secret", "session-secret", "token-secret"):
        assert secret not in repr(settings) and secret not in str(settings)
    assert settings.secrets.session == "session-secret"


def test_show_masks_secrets_and_tells_all_else():
    given = site(
        pillar(
            redis_url="redis://me:hunter2/@x@redis.example.org:6379/0",
            solr_url="http://me:hunter2@solr.example.org/solr/ckan",
            installer={
                "index_url": "https://me:hunter2@index.example.org/simple", "find_links": "https://hunter2@h/w",
                "index_urls": ["https://me:hunter2@first.example.org/simple"],
            },
            config={
                "x.address": "https://h/?access_token=hunter2&a=b",
                "smtp.password": "hunter2", "beaker.session.secret": "hunter2", "ckanext.x.api_key": "hunter2",
                "x.apikey": "hunter2", "ckan.recaptcha.privatekey": "hunter2", "api_token.x": "hunter2",
                "smtp.passwd": "hunter2", "ckan.datastore.write_url": "postgresql://u:hunter2@h/d",
                "x.urls": ["https://u:hunter2@h/"], "ckan.site_title": "Data", "ckan.max_size": 5,
            },
        )
    )  # fmt: skip
    shown = mask.shown(given.settings)
    text = repr(shown)
    for secret in ("hunter2", "database-secret", "session-secret", "token-secret"):
        assert secret not in text
    assert shown["database"] == {**shown["database"], "password": mask.MASK, "host": "localhost"}
    assert shown["redis_url"] == f"redis://{mask.MASK}@redis.example.org:6379/0"
    assert shown["installer"]["index_url"] == f"https://{mask.MASK}@index.example.org/simple"
    assert shown["installer"]["index_urls"] == [f"https://{mask.MASK}@first.example.org/simple"]
    assert (shown["config"]["ckan.site_title"], shown["config"]["ckan.max_size"]) == ("Data", 5)
    assert shown["extensions"]["ckanext-mycity"]["url"] == "https://git.example.org/ckanext-mycity.git"


def test_show_tells_addresses_without_credentials_as_they_are():
    shown = mask.shown(site(pillar()).settings)
    assert (shown["redis_url"], shown["solr_url"]) == ("redis://127.0.0.1:6379/0", "http://127.0.0.1:8983/solr/ckan")


# What differs for one deploy.


def test_an_override_changes_the_ref_for_this_call_only():
    given = pillar()
    settings = resolve(given, {"extensions": {"ckanext-mycity": {"ref": "fix-42"}}})
    assert settings.extensions["ckanext-mycity"].ref == "fix-42"
    assert settings.extensions["ckanext-mycity"].url == "https://git.example.org/ckanext-mycity.git"
    assert given == pillar()


def test_an_override_of_an_unknown_extension_is_refused_with_the_near_name():
    message = refused(pillar(), {"extensions": {"ckanext-myctiy": {"ref": "x"}}})
    assert message == (
        "extension ckanext-myctiy is not in the pillar (did you mean ckanext-mycity?); "
        "give its url and ref, or correct it"
    )


def test_an_override_that_is_still_encrypted_is_refused_by_key_only():
    for override in ({"ckanext-mycity": {"ref": PGP}}, {"ckanext-new": {"url": PGP, "ref": "main"}}):
        message = refused(pillar(), {"extensions": override})
        assert message.startswith("ckan:extensions:ckanext-") and " is still encrypted (PGP); check " in message
        assert len(message.splitlines()) == 1 and "hQEMA5x" not in message


def test_an_override_of_nothing_changes_nothing():
    for nothing in (None, {}, {"extensions": None}, {"extensions": {}}):
        assert resolve(pillar(), nothing) == resolve(pillar())


def test_an_override_may_add_an_extension_with_url_and_ref():
    override = {"extensions": {"ckanext-new": {"url": "/srv/new.git", "ref": "main"}}}
    assert list(resolve(pillar(), override).extensions) == ["ckanext-mycity", "ckanext-new"]
    for none in ({"extensions": None}, {"extensions": {}}):
        assert list(resolve(pillar(**none), override).extensions) == ["ckanext-new"]
    assert refused(pillar(), {"extensions": {"ckanext-new": {"url": "/srv/new.git"}}}) == (
        "ckan:extensions:ckanext-new:ref is missing; set it in the pillar"
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"plugins": ["a"]}, "plugins cannot be given for one deploy, only extensions can; put it in the pillar"),
        ({"extensions": {"ckanext-mycity": {"ref": 2.1}}}, "ckan:extensions:ckanext-mycity:ref is the number 2.1; "
                                                           "put the value in quotes in the pillar"),
        ({"extensions": {"ckanext-mycity": {"ref": "-x"}}}, "ckan:extensions:ckanext-mycity:ref begins with '-', "
                                                            "which git would take for an option; correct it"),
        ({"extensions": {"ckanext-mycity": {"reff": "x"}}}, "ckan:extensions:ckanext-mycity:reff is not a setting; "
                                                            "did you mean ckan:extensions:ckanext-mycity:ref?"),
        ({"extensions": {"ckanext-mycity": "fix"}}, "extensions must be a dictionary such as "
                                                    "{ckanext-mycity: {ref: fix-42}}"),
        ({"extensions": ["ckanext-mycity"]}, "extensions must be a dictionary such as {ckanext-mycity: {ref: fix-42}}"),
        *[({"extensions": odd}, "extensions must be a dictionary such as {ckanext-mycity: {ref: fix-42}}")
          for odd in ([], "", False, 0)],
        *[(odd, "what one deploy changes must be a dictionary such as {extensions: {ckanext-x: {ref: y}}}")
          for odd in ([], "", False, 0)],
        (["extensions"], "what one deploy changes must be a dictionary such as "
                         "{extensions: {ckanext-x: {ref: y}}}"),
        ("extensions", "what one deploy changes must be a dictionary such as {extensions: {ckanext-x: {ref: y}}}"),
    ],
)  # fmt: skip
def test_an_override_of_anything_else_or_of_the_wrong_form_is_refused(overrides, message):
    assert refused(pillar(), overrides) == message


@pytest.mark.parametrize("broken", [["a"], {"ckanext-mycity": "x"}, {"ckanext-mycity": None}, {7: {}, "a": {}}])
def test_an_override_on_a_broken_pillar_is_refused_by_the_pillar_s_key(broken):
    message = refused(pillar(extensions=broken), {"extensions": {"ckanext-mycity": {"ref": "x", "url": "/a"}}})
    assert message.startswith("ckan:extensions")


# The pillar as Salt hands it over.


def test_a_host_without_pillar_is_told_so():
    for content in ({}, {"ckan": None}):
        with pytest.raises(FormulaError, match="the pillar has no key ckan for this minion; see"):
            site(**content)


def test_a_pillar_that_failed_to_render_is_not_used():
    with pytest.raises(FormulaError, match="failed to render: Rendering SLS 'ckan.secrets' failed"):
        site(pillar(), _errors=["Rendering SLS 'ckan.secrets' failed"])


def test_the_pillar_is_never_changed():
    given = pillar(plugins=["a"], config={"x": ["y"]}, web=None, paths={"home": None}, extensions=None)
    before = copy.deepcopy(given)
    host = FakeHost({"ckan": given})
    settings = Site.of(host, {"extensions": {"n": {"url": "/n", "ref": "main"}}}).settings
    settings.config["x"].append("z")
    assert given == before
    mask.shown(settings)["plugins"].append("b")
    assert given == before and settings.plugins == ("a",)


def test_salt_s_masked_pillar_becomes_plain():
    def masked(value: Any) -> bool:
        if isinstance(value, dict):
            return isinstance(value, MaskedDict) or any(map(masked, value.values()))
        return isinstance(value, MaskedList)

    settings = site(MaskedDict(pillar(plugins=["a"], config={"x": ["y"]}))).settings
    assert not masked(attrs.asdict(settings))
    assert settings.database.password == "database-secret"
    assert settings.config == {"x": ["y"]} and type(settings.config["x"]) is list


def test_validate_says_true_or_names_the_problems():
    assert site(pillar()).settings.keep == 5
    with pytest.raises(FormulaError, match="ckan:keep must be"):
        site(pillar(keep="x"))


def test_a_pillar_that_the_minion_remembers_is_taken_anew_where_it_is_refused():
    host = FakeHost({"ckan": pillar(keep="x")})
    host.stays, host.rendered = True, {"ckan": pillar(keep=7)}
    assert Site.of(host).settings.keep == 7
    host.rendered = {"ckan": pillar(keep=8)}
    assert Site.of(host).settings.keep == 7
    assert Site.of(host, fresh=True).settings.keep == 8
    host.rendered = {"ckan": pillar(keep="y")}
    with pytest.raises(FormulaError, match="ckan:keep must be"):
        Site.of(host, fresh=True)


# The page of the settings.


def test_the_page_of_the_settings_is_current():
    check = [sys.executable, str(REPO / "tools/settings_docs.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_stale_page_of_the_settings_is_reported(tmp_path):
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("tools", "_utils/ckan_deploy"):
        shutil.copytree(REPO / name, tmp_path / name, ignore=ignored)
    (tmp_path / "docs").mkdir()
    program = [sys.executable, str(tmp_path / "tools/settings_docs.py")]
    stale = subprocess.run([*program, "--check"], capture_output=True, text=True)
    assert stale.returncode == 1 and "run make docs" in stale.stderr
    assert subprocess.run(program).returncode == 0
    assert subprocess.run([*program, "--check"]).returncode == 0
    for name in ("docs/pillar.md", "docs/pillar.schema.json"):
        assert (tmp_path / name).read_text() == (REPO / name).read_text()
        (tmp_path / name).write_text("another")
        stale = subprocess.run([*program, "--check"], capture_output=True, text=True)
        assert (stale.returncode, stale.stderr) == (1, f"{name} is not current; run make docs\n")
        assert subprocess.run(program).returncode == 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        ({"store": "srv/x"}, "ckan:build:store"),
        ({"store": "/srv/x/../y"}, "ckan:build:store (/srv/x/../y) must be an absolute path without '..'"),
        ({"store": "/usr/lib"}, "ckan:build:store (/usr/lib) belongs to the system"),
        (
            {"store": "https://files.example.org/ckan"},
            "ckan:build:publish is missing, while ckan:build:store is an addr",
        ),
        (
            {"store": "https://me:pw@files.example.org/ckan", "publish": "/srv/www"},
            "ckan:build:store has a password or a token in its address",
        ),
        ({"publish": "/srv/www"}, "ckan:build:publish is for a ckan:build:store that is an address"),
        ({"store": "https://files.example.org", "publish": "www"}, "ckan:build:publish (www) must be an absolute path"),
        (
            {"ship": True, "only": True},
            "ckan:build:only is set, so this host builds for others; set ckan:build:ship and build:host",
        ),
        ({"host": "a/b"}, "ckan:build:host"),
    ],
)
def test_a_way_to_ship_that_cannot_be_meant_is_refused(build: dict, message: str) -> None:
    assert message in refused(pillar(build=build))


def test_ways_to_ship_are_taken() -> None:
    for build in (
        {"ship": True},
        {"ship": True, "host": "build1", "only": True},
        {"ship": True, "store": "/srv/ckan-store"},
        {"ship": True, "store": "https://files.example.org/ckan", "publish": "/srv/www/ckan"},
    ):
        assert resolve(pillar(build=build)).build.ship
