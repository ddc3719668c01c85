"""A release from plan to prune on one host, with real virtualenvs and git, and a small stand-in for CKAN."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError

from ckan_deploy.build import virtualenv
from functional.steps import deployed, extension, later_id
from stub import repos

REPO = Path(__file__).resolve().parents[2]


def test_a_deploy_makes_a_release_of_its_own_and_makes_it_live(host, mycity):
    release = deployed(host, by="eve")
    assert host.current() == release
    assert not os.path.isabs(os.readlink(host.home / "current"))
    shown = host.show()
    assert shown["state"] == "live"
    assert shown["by"] == "eve"
    assert shown["extensions"]["ckanext-mycity"]["commit"] == repos.git(mycity, "rev-parse", "main")
    assert shown["packages"]["ckan"] == "2.12.0"
    assert shown["packages"]["ckanext-mycity"] == "0.1.0"
    assert shown["base"]["ckan"] == "2.12.0"
    assert shown["check"]["plugins"] == ["mycity"]
    assert shown["disk_mb"] >= 1
    where = host.python(release, "import sys, ckanext.mycity.plugin as p; print(sys.prefix, p.__file__)")
    path = str(host.home / "releases" / release)
    assert where.split()[0] == path
    assert where.split()[1].startswith(f"{path}/src/ckanext-mycity/")


@pytest.mark.slow
def test_the_ini_is_for_this_environment_and_readable_by_the_site_alone(host, mycity):
    release = deployed(host)
    ini = host.home / "releases" / release / "production.ini"
    assert stat.S_IMODE(ini.stat().st_mode) == 0o640
    assert ini.owner() == "root" and ini.group() == "www-data"
    text = ini.read_text()
    assert "ckan.site_url = http://portal.example.org" in text
    assert "ckan.plugins = mycity" in text


def test_a_host_whose_first_deploy_failed_says_at_what(host, mycity):
    assert "link" not in host.status()
    repos.commit_broken(mycity, "boom")
    with pytest.raises(CommandExecutionError, match="boom"):
        deployed(host)
    told = host.status()["link"]
    assert told.startswith("the deploy of 20") and " failed at check: plugin mycity does not start: " in told
    assert "boom" in told and told.endswith("; correct that, and deploy again")
    repos.commit_change(mycity, "Hello again")
    deployed(host)
    assert "link" not in host.status()


def test_no_secret_is_in_the_manifest_or_the_log(host, mycity):
    release = deployed(host)
    manifest = (host.home / "releases" / release / "release.json").read_text()
    log = (host.home / "shared/deploy.log").read_text()
    for secret in ("database-password", *host.pillar["secrets"].values()):
        assert secret not in manifest
        assert secret not in log


@pytest.mark.slow
def test_the_second_deploy_takes_the_new_commit_and_keeps_the_old_release_whole(host, mycity):
    first = deployed(host)
    commit = repos.commit_change(mycity, "Hello two")
    second = deployed(host)
    assert host.current() == second
    assert host.show()["extensions"]["ckanext-mycity"]["commit"] == commit
    assert host.show(first)["state"] == "retired"
    code = "import ckanext.mycity.plugin as p; print(p.TEXT)"
    assert host.python(first, code) == "Hello one"
    assert host.python(second, code) == "Hello two"


@pytest.mark.slow
def test_a_branch_can_be_deployed_for_once_without_a_change_of_the_pillar(host, mycity):
    deployed(host)
    repos.branch(mycity, "fix-42")
    commit = repos.commit_change(mycity, "Hello fix")
    deployed(host, extensions={"ckanext-mycity": {"ref": "fix-42"}})
    shown = host.show()["extensions"]["ckanext-mycity"]
    assert (shown["ref"], shown["commit"]) == ("fix-42", commit)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["boot", "import"])
def test_a_plugin_that_raises_is_named_and_nothing_live_is_touched(host, mycity, where):
    first = deployed(host)
    before = host.tree()
    repos.commit_broken(mycity, "no such table: mycity", where)
    with pytest.raises(CommandExecutionError) as failure:
        deployed(host)
    told = (
        "at check: plugin mycity does not start: RuntimeError: no such table: mycity (ckanext/mycity/plugin.py, line "
    )
    assert told in str(failure.value)
    assert "Traceback" not in str(failure.value)
    # The log has it, for the report of a run.
    noted = next(
        entry
        for entry in host.loaders().modules["ckan_release.history"]()
        if entry["stage"] == "check" and entry["result"] == "failed"
    )
    lines = noted["details"].splitlines()
    assert lines[0].startswith("Traceback") and lines[-1] == "RuntimeError: no such table: mycity"
    assert host.current() == first
    assert host.releases() == [first]
    after = host.tree()
    assert {k: v for k, v in after.items() if k.startswith("releases/")}.keys() == {
        k for k in before if k.startswith("releases/")
    }
    for name, value in before.items():
        # What grows or is fetched is under shared; the folder of releases got and lost an entry.
        if not name.startswith("shared") and name != "releases" and "__pycache__" not in name:
            assert after[name] == value, name


@pytest.mark.slow
def test_a_failure_stands_in_the_history_with_its_reason(host, mycity):
    deployed(host)
    repos.commit_broken(mycity, "boom")
    with pytest.raises(CommandExecutionError):
        deployed(host)
    failed = [entry for entry in host.loaders().modules["ckan_release.history"]() if entry["result"] == "failed"]
    assert failed[0]["stage"] == "check"
    assert "boom" in failed[0]["reason"]


def test_a_ref_that_does_not_exist_is_refused_before_anything_is_made(host, mycity):
    host.pillar["extensions"]["ckanext-mycity"]["ref"] = "mian"
    before = host.tree()
    with pytest.raises(CommandExecutionError, match=r"no branch or tag mian \(near: main\)"):
        host.deploy()
    made = host.tree()
    # The lock that kept others out meanwhile is a file that stays, and so is the reserve.
    assert {name: made[name] for name in made.keys() - {"shared", "shared/lock", "shared/.reserve"}} == before


def test_an_origin_that_does_not_answer_is_refused_before_anything_is_made(host, origins):
    host.pillar["extensions"] = {"ckanext-gone": extension(origins / "gone")}
    with pytest.raises(CommandExecutionError, match="cannot be read"):
        host.deploy()
    assert host.releases() == []


@pytest.mark.slow
def test_a_setup_that_fails_leaves_no_release(host, mycity):
    first = deployed(host)
    project = mycity / "pyproject.toml"
    project.write_text(project.read_text().replace('name = "ckanext-mycity"', 'name = "ckanext mycity!"'))
    repos.git(mycity, "commit", "-qam", "break the build")
    with pytest.raises(CommandExecutionError, match="failed at plan: .*ckanext mycity!"):
        deployed(host)
    assert (host.current(), host.releases()) == (first, [first])


def test_a_requirement_against_the_pins_of_the_base_stops_the_build_and_names_both(host, mycity):
    (mycity / "requirements.txt").write_text("ckan==2.11.0\n")
    repos.git(mycity, "add", "-A")
    repos.git(mycity, "commit", "-qm", "pin another ckan")
    with pytest.raises(CommandExecutionError) as failure:
        deployed(host)
    assert "at plan" in str(failure.value)
    assert "2.11.0" in str(failure.value) and "2.12.0" in str(failure.value)
    assert host.releases() == []


def test_plan_refuses_a_host_without_a_base(host, tmp_path):
    host.pillar["paths"]["base"] = str(tmp_path / "none")
    with pytest.raises(CommandExecutionError, match="no virtualenv in .*none"):
        host.plan()
    assert host.tree() == {}


def test_plan_refuses_a_full_disk(host):
    host.pillar["disk_free_mb"] = 10**9
    with pytest.raises(CommandExecutionError, match="disk_free_mb asks for"):
        host.plan()
    assert host.tree() == {}


@pytest.mark.slow
def test_plan_refuses_a_release_that_would_not_be_the_newest(host, mycity):
    deployed(host)
    before = host.tree()
    with pytest.raises(CommandExecutionError, match="compare the clocks"):
        host.plan(release="20200101000000Z")
    assert host.tree() == before


def test_an_unknown_setting_stops_a_deploy_before_anything_is_touched(host):
    host.pillar["webb"] = {}
    with pytest.raises(CommandExecutionError, match="did you mean"):
        host.deploy()
    assert host.tree() == {}


def test_a_value_that_is_still_encrypted_stops_a_deploy_before_any_ini(host):
    host.pillar["secrets"]["session"] = "-----BEGIN PGP MESSAGE-----\nabc\n-----END PGP MESSAGE-----"
    with pytest.raises(CommandExecutionError, match="ckan:secrets:session"):
        host.deploy()
    assert host.tree() == {}


@pytest.mark.slow
def test_migrations_run_once_and_only_when_some_are_pending(host, mycity):
    deployed(host)
    assert host.show()["migration"]
    deployed(host)
    assert "migration" not in host.show()
    repos.commit_change(mycity, "with a table", migrations=1)
    deployed(host)
    database = json.loads((host.root / "var/lib/ckan/default/storage/stub-database.json").read_text())
    assert database["mycity"] == 1


def test_a_migration_that_fails_switches_nothing(host, mycity):
    first = deployed(host)
    host.pillar["config"]["stub.migrate_error"] = "column exists"
    repos.commit_change(mycity, "with a table", migrations=1)
    with pytest.raises(CommandExecutionError, match="failed at migrate: .*column exists.*live release .* runs on it"):
        deployed(host)
    assert (host.current(), host.releases()) == (first, [first])


def test_a_plan_says_that_what_it_would_deploy_was_marked_bad(host, mycity):
    deployed(host)
    host.pillar["config"]["ckan.site_title"] = "Broken"
    second = deployed(host)
    assert host.plan()["remarks"] == []
    host.rollback(reason="search is broken")
    (said,) = host.plan()["remarks"]
    assert said.startswith(f"{second}, which was marked bad (search is broken), held the same; correct the cause")
    repos.commit_change(mycity, "Mended")
    assert host.plan()["remarks"] == []
    again = deployed(host)
    assert host.current() == again


def test_a_plan_says_which_commit_of_a_bad_release_comes_back_with_another_change(host, mycity):
    deployed(host)
    repos.commit_change(mycity, "Broken")
    second = deployed(host)
    host.rollback(reason="search is broken")
    commit = host.show(second)["extensions"]["ckanext-mycity"]["commit"][:12]
    host.pillar["config"]["ckan.site_title"] = "Corrected at the wrong place"
    assert host.plan()["remarks"] == [
        f"ckanext-mycity at {commit} was in {second}, which was marked bad (search is broken); deploy it if the cause "
        "is elsewhere"
    ]
    repos.commit_change(mycity, "Mended")
    assert host.plan()["remarks"] == []


def test_rollback_goes_back_marks_what_it_left_and_can_be_repeated(host, mycity):
    releases = [deployed(host) for _ in range(3)]
    assert host.rollback(reason="search is broken", by="eve") == {"current": releases[1], "left": releases[2]}
    assert host.current() == releases[1]
    left = host.show(releases[2])
    assert (left["state"], left["bad_reason"]) == ("bad", "search is broken")
    assert left["events"][-1]["by"] == "eve"
    assert host.rollback()["current"] == releases[0]
    before = host.tree()
    with pytest.raises(CommandExecutionError, match="no release older"):
        host.rollback()
    assert host.tree() == before


@pytest.mark.slow
def test_rollback_to_a_name_and_refused_ones_change_nothing(host, mycity):
    releases = [deployed(host) for _ in range(3)]
    for to, why in ((releases[2], "current already"), ("20200101000000Z", "no release"), ("../x", "not a release id")):
        before = host.tree()
        with pytest.raises(Exception, match=why):
            host.rollback(to=to)
        assert host.tree() == before
    assert host.rollback(to=releases[0])["current"] == releases[0]


@pytest.mark.slow
def test_a16_a_deploy_that_was_killed_is_no_target_and_is_pruned_by_the_next(host, mycity):
    first = deployed(host)
    killed = later_id(host)
    host.site().releases.create(killed)
    virtualenv.clone(host.pillar["paths"]["base"], str(host.home / "releases" / killed))
    third = deployed(host)
    assert host.releases() == [first, third]
    assert host.rollback()["current"] == first
    with pytest.raises(CommandExecutionError, match="no release"):
        host.rollback(to=killed)


@pytest.mark.slow
def test_a15_failed_deploys_do_not_push_out_good_releases(host, mycity):
    host.pillar["keep"] = 3
    good = [deployed(host) for _ in range(3)]
    host.pillar["extensions"]["ckanext-mycity"]["ref"] = "gone"
    for _ in range(4):
        with pytest.raises(CommandExecutionError):
            deployed(host)
    host.pillar["extensions"]["ckanext-mycity"]["ref"] = "main"
    fourth = deployed(host)
    assert host.releases() == [good[1], good[2], fourth]
    assert host.rollback()["current"] == good[2]
    assert host.python(good[2], "import ckanext.mycity.plugin as p; print(p.TEXT)") == "Hello one"


@pytest.mark.slow
def test_directories_of_others_are_never_in_the_way(host, mycity):
    host.pillar["keep"] = 2
    strangers = [host.home / "releases" / name for name in ("20200101000000Z", "20990101000000Z", "backup")]
    for stranger in strangers:
        stranger.mkdir(parents=True)
        (stranger / "precious").write_text("x")
    releases = [deployed(host) for _ in range(4)]
    assert host.releases() == sorted([*releases[2:], *(s.name for s in strangers)])
    assert host.rollback()["current"] == releases[2]
    assert all((stranger / "precious").read_text() == "x" for stranger in strangers)


@pytest.mark.slow
def test_abort_takes_back_a_switch_and_can_be_repeated(host, mycity):
    first = deployed(host)
    second = deployed(host)
    assert host.abort(second, reason="web2 failed")["current"] == first
    assert host.show(first)["state"] == "live"
    assert host.releases() == [first]
    assert host.abort(second) == {"current": first, "removed": False}


@pytest.mark.slow
def test_abort_of_a_first_deploy_leaves_no_link(host, mycity):
    first = deployed(host)
    assert host.abort(first)["current"] == ""
    assert not os.path.lexists(host.home / "current")


@pytest.mark.slow
def test_a_release_can_be_activated_only_when_it_was_checked(host, mycity):
    first = deployed(host)
    planned = host.plan()
    host.build(planned["release"], planned["contents"])
    with pytest.raises(CommandExecutionError, match="is built, not checked or"):
        host.activate(planned["release"])
    assert host.current() == first


@pytest.mark.slow
def test_one_call_starts_and_activates_as_two_do(host, mycity):
    first, planned = deployed(host), host.plan()
    release = planned["release"]
    host.build(release, planned["contents"])
    host.check(release)
    migration = {"dump": "", "migrated": {"core": "b"}}
    assert host.activate(release, starts=True, migration=migration)["previous"] == first
    assert (host.current(), host.show(release)["migration"]) == (release, migration)
    assert [entry["stage"] for entry in host.history()][:2] == ["activate", "start"]
    assert host.rollback(to=first, finish=False, starts=True)["left"] == release
    assert [entry["stage"] for entry in host.history()][:2] == ["rollback", "start"]
    with pytest.raises(CommandExecutionError, match="there is no release 20200101000000Z"):
        host.rollback(to="20200101000000Z", finish=False, starts=True)
    assert host.current() == first


@pytest.mark.slow
def test_list_is_newest_first_with_state_and_extensions(host, mycity):
    releases = [deployed(host), deployed(host)]
    rows = host.list()
    assert [row["release"] for row in rows] == releases[::-1]
    assert [row["state"] for row in rows] == ["live", "retired"]
    assert [row["current"] for row in rows] == [True, False]
    assert rows[0]["extensions"]["ckanext-mycity"].startswith("main ")


@pytest.mark.slow
def test_one_more_release_shares_its_files_with_the_base(host, mycity, stub_base):
    release = deployed(host)
    inside = Path("lib/python3.11/site-packages/ckan/common.py")
    inside = next((stub_base / "lib").glob("python3*/site-packages/ckan/common.py")).relative_to(stub_base)
    assert (host.home / "releases" / release / inside).stat().st_ino == (stub_base / inside).stat().st_ino


@pytest.mark.slow
def test_the_pillar_of_two_sites_on_one_host_gives_two_trees(host, mycity):
    first = deployed(host)
    host.pillar["site"] = "second"
    storage = host.root / "var/lib/ckan/second/storage"
    storage.mkdir(parents=True)
    subprocess.run(["chown", "www-data", storage], check=True)
    second = deployed(host)
    assert (host.home / "current").resolve().name == first
    assert (host.home / "sites/second/current").resolve().name == second


@pytest.mark.slow
def test_the_wsgi_pointer_serves_the_release_it_was_started_for_and_else_the_current_one(host, mycity, tmp_path):
    first = deployed(host)
    repos.commit_change(mycity, "Hello two")
    second = deployed(host)
    pointer = host.root / "etc/ckan/default/wsgi.py"
    loaders = host.loaders()
    result = loaders.states["ckan_front.pointed"](name=str(pointer))
    assert result.result is True
    ask = (
        "import gc, runpy, io\n"
        f"app = runpy.run_path({str(pointer)!r})['application']\n"
        "out = []\n"
        "environ = {'REQUEST_METHOD': 'GET', 'PATH_INFO': '/', 'wsgi.input': io.BytesIO(), 'SERVER_NAME': 'x',"
        " 'SERVER_PORT': '80', 'wsgi.url_scheme': 'http', 'QUERY_STRING': ''}\n"
        "body = b''.join(app(environ, lambda status, headers, exc=None: out.append(dict(headers))))\n"
        "print(out[0]['X-CKAN-Release'], 'Hello two' in body.decode(), gc.isenabled() and gc.get_freeze_count() > 0)"
    )
    assert host.python(second, ask) == f"{second} True True"
    named = f"import os; os.environ['RELEASE_DIR'] = {str(host.home / 'releases' / first)!r}\n"
    assert host.python(first, named + ask) == f"{first} False True"
    # A server with an interpreter of its own, as mod_wsgi without python-home.
    done = subprocess.run(["/usr/bin/python3", "-c", ask], capture_output=True, text=True, cwd="/")
    assert done.stdout.strip() == f"{second} True True", done.stderr


@pytest.mark.slow
def test_a13_current_is_renamed_and_never_unlinked(host, mycity, tmp_path):
    releases = [deployed(host), deployed(host)]
    trace = tmp_path / "trace"
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from ckan_deploy.releases.store import Releases\n"
        "Releases(sys.argv[2] + '/releases', sys.argv[2] + '/current').point(sys.argv[3])"
    )
    subprocess.run(
        ["strace", "-f", "-e", "trace=unlink,unlinkat,rename,renameat,renameat2,symlink,symlinkat", "-o", trace,
         sys.executable, "-c", code, REPO / "_utils", host.home, releases[0]], check=True,
    )  # fmt: skip
    text = trace.read_text()
    assert host.current() == releases[0]
    assert f'"{host.home}/current.{releases[0]}.tmp", "{host.home}/current"' in text
    assert not [line for line in text.splitlines() if "unlink" in line and f'"{host.home}/current"' in line]
