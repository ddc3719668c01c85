"""
Two environments under one master, from pillar.example as it stands, with secrets encrypted as its comments say.
Everything is logged, and every program that a minion starts is recorded: no secret may be found anywhere.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from daemon.conftest import Site
from daemon.test_fleet import refused
from parts.keyring import ARMOR, write_secrets
from parts.portal import next_second
from stub import repos

pytestmark = pytest.mark.daemon

HOSTS = {"production": "web1", "staging": "staging-web1"}
DOMAINS = {"production": "data.example.org", "staging": "data-staging.example.org"}
# A marked secret for each way that one can be given.
SECRETS = {
    "database:password": "marked-{env}-database-%s@:/#",
    "datastore:password": "marked-{env}-datastore-write",
    "datastore:read_password": "marked-{env}-datastore-read",
    "secrets:api_token": "marked-{env}-api-token",
    "secrets:config:ckanext.mycity.pin": "marked-{env}-pin 100%(x)s",
    "config:smtp.password": "marked-{env}-smtp",
    "extensions:ckanext-mycity:token": "marked-{env}-git-token",
    "redis_url": "redis://:marked-{env}-redis@127.0.0.1:6379/0",
    "installer:index_url": "https://user:marked-{env}-index@pypi.example.org/simple",
}


def marked(env: str) -> dict[str, str]:
    return {name: text.replace("{env}", env) for name, text in SECRETS.items()}


class Environments(Site):
    """One host of each environment; what is in the pillar of either is what the example says."""

    def __init__(self, base: Path) -> None:
        super().__init__(base, list(HOSTS.values()), secrets={env: marked(env) for env in HOSTS}, trace=True)
        self.address = None
        self.settings["datastore"] = {"name": "datastore_default"}
        self.settings["installer"] = {"offline": True}
        # The token is for https; a path is what there is here.
        self.settings["extensions"]["ckanext-mycity"] = {"url": str(self.repo), "ref": "main", "token": ""}
        self.write_pillar(self.settings)

    def restart_master(self, **changes: object) -> None:
        self.fleet.stop_master()
        self.fleet.start_master(**changes)
        self.fleet.wait_for_minions()

    def ini(self, env: str) -> Path:
        return self.root(HOSTS[env]) / f"usr/lib/ckan/current/{env}.ini"

    def options(self, env: str) -> dict[str, str]:
        parser = configparser.ConfigParser(defaults={"here": str(self.ini(env).parent)})
        parser.optionxform = str
        parser.read(self.ini(env), encoding="utf-8")
        return dict(parser["app:main"])


@pytest.fixture(scope="module")
def both(stub_base: Path) -> Iterator[Environments]:
    site = Environments(stub_base)
    try:
        site.start()
        for env in HOSTS:
            done = site.highstate(env=env)
            assert done["code"] == 0, done["text"]
        yield site
    finally:
        site.destroy()


def test_each_environment_is_deployed_with_its_own_domain_and_secrets(both):
    next_second()
    repos.commit_change(both.repo, "Hello both")
    before = both.current("staging-web1")
    done = both.deploy()
    assert done["code"] == 0, done["text"]
    assert both.current("staging-web1") == before
    next_second()
    done = both.deploy(env="staging")
    assert done["code"] == 0, done["text"]
    made = {env: json.loads((both.fleet.secrets / f"{env}.json").read_text()) for env in HOSTS}
    for env, host in HOSTS.items():
        assert "Hello both" in both.get("/", host, DOMAINS[env])[1]
        options = both.options(env)
        assert options["ckan.site_url"] == f"https://{DOMAINS[env]}"
        assert options["ckan.site_title"] == "My City's Data"
        assert options["sqlalchemy.url"].startswith(
            f"postgresql://ckan_default:marked-{env}-database-%25s%40%3A%2F%23@db"
        )
        assert options["ckanext.mycity.pin"] == f"marked-{env}-pin 100%(x)s"
        assert options["api_token.jwt.encode.secret"] == f"string:marked-{env}-api-token"
        # Not in the pillar's files: made by the master.
        assert options["SECRET_KEY"] == made[env]["session"]
        other = next(name for name in HOSTS if name != env)
        assert f"marked-{other}" not in both.ini(env).read_text()
        assert made[other]["session"] not in both.ini(env).read_text()
    assert made["production"]["session"] != made["staging"]["session"]


def test_a17_deploys_of_different_environments_do_not_keep_each_other_out(both):
    next_second()
    repos.commit_change(both.repo, "Hello at once")
    both.fleet.run("salt-run", "ckan.lock", "staging", "reason=not now")
    runs = [both.begin(), both.begin(env="staging")]
    live, kept_out = (both.end(run) for run in runs)
    assert (live["code"], kept_out["code"]) == (0, 1), live["text"]
    assert "staging is locked" in kept_out["summary"] and "not now" in kept_out["summary"]
    both.fleet.run("salt-run", "ckan.unlock", "staging")
    runs = [both.begin(force=True), both.begin(env="staging")]
    for run in runs:
        done = both.end(run)
        assert done["code"] == 0, done["text"]
    for env, host in HOSTS.items():
        assert "Hello at once" in both.get("/", host, DOMAINS[env])[1]


def test_production_takes_what_staging_has_live_whatever_its_origin_says_by_now(both):
    next_second()
    commit = repos.commit_change(both.repo, "Hello staging")
    done = both.deploy(env="staging", force=True)
    assert done["code"] == 0, done["text"]
    release = both.current("staging-web1")
    later = repos.commit_change(both.repo, "Hello later")
    pending = both.fleet.run("salt-run", "ckan.pending", "production", "from=staging", "--out=json")
    told = json.loads(pending.stdout)
    assert (pending.returncode, told["from"], told["differs"]) == (0, f"{release} of staging", [])
    assert "Hello staging" in " ".join(told["changes"]) and "Hello later" not in pending.stdout
    wrong = both.fleet.run("salt-run", "ckan.pending", "production", "from=stagin")
    assert wrong.returncode == 1 and "no accepted minion has ckan:env: stagin" in wrong.stdout
    next_second()
    done = both.deploy(**{"from": "staging"})
    assert done["code"] == 0, done["text"]
    assert f"as {release} of staging has it" in " ".join(done["text"].split())
    assert "Hello staging" in both.get("/", "web1", DOMAINS["production"])[1]
    assert both.options("production")["ckan.site_url"] == f"https://{DOMAINS['production']}"
    code, manifest = both.call("web1", "ckan_release.show")
    assert code == 0 and manifest["promoted"] == {"env": "staging", "release": release}
    assert manifest["extensions"]["ckanext-mycity"]["commit"] == commit != later
    history = both.fleet.run("salt-run", "ckan.history", "production", "limit=1")
    assert f"[1] from {release} of staging" in history.stdout
    done = both.deploy(**{"from": "staging"})
    assert done["code"] == 0 and "Nothing to deploy" in done["text"]


def test_the_configuration_is_compared_without_values_of_secrets(both):
    overlay, file = both.overlay("web1"), both.fleet.pillar_roots / "ckan/secrets/production.sls"
    kept = {path: path.read_text() for path in (overlay, file)}
    pillar = yaml.safe_load(kept[overlay])
    pillar["ckan"]["config"]["ckan.site_title"] = "Catálogo – données"
    overlay.write_text(yaml.safe_dump(pillar, allow_unicode=True))
    secrets = {
        "config:smtp.password": "marked-production-new",
        "secrets:config:ckanext.mycity.pin": "marked-production-pin",
    }
    write_secrets(file, {name: both.fleet.keyring.encrypt(secret) for name, secret in secrets.items()})
    try:
        both.call("web1", "saltutil.refresh_pillar", "wait=True")
        code, told = both.call("web1", "ckan_release.config_diff")
        assert code == 0
        assert told["changed"] == {
            "ckan.site_title": "My City's Data -> Catálogo – données",
            "smtp.password": "(changed)",
            "ckanext.mycity.pin": "(changed)",
        }
        assert (told["added"], told["removed"]) == ({}, {})
        planned = both.deploy(dry_run=True)
        assert "configuration: ckan.site_title, smtp.password, ckanext.mycity.pin changed" in " ".join(
            planned["text"].split()
        )
    finally:
        for path, text in kept.items():
            path.write_text(text)
        both.call("web1", "saltutil.refresh_pillar", "wait=True")


def test_a_secret_is_encrypted_by_a_command_and_decrypted_by_a_deploy_which_makes_none_anew(both):
    made = both.options("production")["SECRET_KEY"]
    command = both.fleet.command("salt-run", "ckan.encrypt", "production", "database:password")
    done = subprocess.run(
        command, input="marked-production-é-new\n", capture_output=True, text=True, env=both.fleet.environment()
    )
    assert done.returncode == 0, done.stderr
    file = both.fleet.pillar_roots / "ckan/secrets/production.sls"
    kept = file.read_text()
    block = yaml.safe_load(done.stdout)["ckan"]["database"]["password"]
    assert block.startswith(ARMOR) and "marked" not in done.stdout
    write_secrets(file, {"database:password": block})
    try:
        both.good_deploy("Hello new password")
        assert both.options("production")["sqlalchemy.url"].split("@")[0].endswith("marked-production-%C3%A9-new")
        assert both.options("production")["SECRET_KEY"] == made
    finally:
        file.write_text(kept)
    for key, stdin, sentence in (
        ("database:pasword", "x", "did you mean database:password?"),
        ("database:password", "", "there was no secret on standard input"),
    ):
        command[-1] = key
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, env=both.fleet.environment())
        assert done.returncode == 1 and sentence in done.stdout


@pytest.mark.parametrize(
    "variant", ["renderer line missing", "key missing", "key missing, may fail", "one good, one bad"]
)
def test_a11_a_secret_that_stays_encrypted_stops_the_deploy_and_its_key_is_named(both, variant):
    before = {**both.disk(), "staging-web1": None}
    file = both.fleet.pillar_roots / "ckan/secrets/production.sls"
    kept, ring = file.read_text(), both.fleet.keyring
    foreign = re.sub(r"(?m)^([A-Za-z0-9+/]{10})", lambda match: match.group(1)[::-1], ring.encrypt("lost"), count=3)
    if variant == "renderer line missing":
        file.write_text(kept.split("\n", 1)[1])
    elif variant == "one good, one bad":
        write_secrets(file, {"datastore:read_password": foreign})
    else:
        ring.stop()
        ring.path.rename(f"{ring.path}-away")
        ring.path.mkdir(mode=0o700)
    may_fail = variant == "key missing, may fail"  # what a master of Salt 3006 does by default
    if may_fail:
        both.restart_master(gpg_decrypt_must_succeed=False)
    try:
        done = both.deploy()
        named = "datastore:read_password" if variant == "one good, one bad" else "database:password"
        assert named in done["text"], done["text"]
        assert "BEGIN PGP" not in done["text"] and "marked" not in done["text"]
        assert done["code"] == 1 and "Traceback" not in done["text"]
        # A master whose gpg lacks its key, or waits for its agent, is slow to hear of minions.
        both.fleet.wait_for_minions()
        host = both.call("web1", "ckan_release.deploy")
        assert "the deploy failed at plan" in host[1] and "BEGIN PGP" not in host[1]
    finally:
        file.write_text(kept)
        if "key missing" in variant:
            ring.stop()
            subprocess.run(["rm", "-rf", ring.path], check=True)
            Path(f"{ring.path}-away").rename(ring.path)
        if may_fail:
            both.restart_master(gpg_decrypt_must_succeed=True)
        both.fleet.wait_for_minions()
        both.call("web1", "saltutil.refresh_pillar", "wait=True")
    assert {**both.disk(), "staging-web1": None} == before
    found = subprocess.run(["grep", "-rl", "BEGIN PGP MESSAGE", both.root("web1")], capture_output=True, text=True)
    assert found.stdout == ""


def test_an_environment_that_lacks_settings_is_told_all_of_them(both):
    before = both.disk()
    file = both.fleet.pillar_roots / "ckan/production.sls"
    kept = file.read_text()
    file.write_text("include:\n  - ckan.common\n\nckan:\n  env: production\n")
    try:
        refused(both, before, both.deploy(), "ckan:site_url is missing", "ckan:database:password is missing")
    finally:
        file.write_text(kept)
        both.call("web1", "saltutil.refresh_pillar", "wait=True")


def test_no_secret_is_in_arguments_logs_jobs_events_manifests_or_files_that_all_may_read(both):
    """The last test: by now there were highstates, deploys, refusals and comparisons."""
    wanted = {secret for env in HOSTS for secret in marked(env).values()}
    wanted |= {"marked-production-new", "marked-production-pin"}
    for env in HOSTS:
        wanted |= set(json.loads((both.fleet.secrets / f"{env}.json").read_text()).values())
    needles = {secret.encode() for secret in wanted} | {b"marked-production-", b"marked-staging-"}
    # Where secrets belong: what the master made, Salt's own memory of pillars, and the ini of each release.
    own = (both.fleet.secrets, both.sandbox / "salt/m/var/cache/salt/master/pillar")
    assert all(not path.stat().st_mode & stat.S_IROTH for place in own for path in place.iterdir())
    seen, leaks = 0, []
    for folder, folders, names in os.walk(both.sandbox):
        folders[:] = [name for name in folders if Path(folder, name) not in own]
        for name in names:
            path = Path(folder, name)
            if path.is_symlink() or not path.is_file():
                continue
            content = path.read_bytes()
            seen += 1
            if any(needle in content for needle in needles):
                ini = path.suffix == ".ini" and re.search(r"/releases/\d{14}Z/", str(path))
                if not ini or path.stat().st_mode & stat.S_IROTH:
                    leaks.append(str(path))
    assert leaks == []
    assert seen > 1000
    for host in HOSTS.values():
        programs = both.fleet.programs(host).read_text()
        assert "execve(" in programs and "git" in programs and "uv" in programs
    # The search would have found something: the logs are full, and the inis have the secrets.
    assert "TRACE" in (both.sandbox / "salt/web1/var/log/salt/minion").read_text()
    assert "marked-production-" in both.ini("production").read_text()
