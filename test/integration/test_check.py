"""One check names all plugins that keep CKAN from starting, each with its own reason: a real CKAN and its services."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.conftest import PASSWORD, WRONG, Behind

from ckan_deploy.build import ini
from ckan_deploy.database import migration, probe
from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.site import Site
from ckan_deploy.serve import smoke, visit
from ckan_deploy.settings.parts import Page
from fakes import fake_site
from parts.base import uv_path
from parts.ports import free_port

pytestmark = pytest.mark.integration

PLUGIN = """\
import ckan.plugins as p

class {name}(p.SingletonPlugin):
    p.implements(p.IConfigurer)

    def update_config(self, config):
        {does}
"""
# By the name of the plugin: what stands in its module.
BROKEN = {
    "no_module": "import a_module_that_nobody_has\n",
    "no_name": "from ckan.plugins import something_that_ckan_does_not_have\n",
    "no_syntax": "def f(:\n",
    "raises": PLUGIN.format(name="raises", does="raise RuntimeError('no such table: trees')"),
    "leaves": PLUGIN.format(name="leaves", does="raise SystemExit('no licence')"),
    "ends": PLUGIN.format(name="ends", does="import os; os._exit(3)"),
    # As that of ckanext-hierarchy, which does not know the newest CKAN.
    "form": (
        "import ckan.plugins as p\nfrom ckan.lib.plugins import DefaultOrganizationForm\n\n"
        "class form(p.SingletonPlugin, DefaultOrganizationForm):\n    p.implements(p.IGroupForm, inherit=True)\n"
        "    def group_types(self):\n        return ('organization',)\n"
        "    def group_controller(self):\n        return 'organization'\n"
    ),
    "reads": PLUGIN.format(name="reads", does="int(config['ckan.max_image_size'])"),
    "pages": (
        "import ckan.plugins as p\nfrom flask import Blueprint\n\n"
        "def broken():\n    raise RuntimeError('no such page')\n\n"
        "class pages(p.SingletonPlugin):\n    p.implements(p.IBlueprint)\n"
        "    def get_blueprint(self):\n        own = Blueprint('own', __name__)\n"
        "        own.add_url_rule('/own/well', view_func=lambda: 'well', endpoint='well')\n"
        "        own.add_url_rule('/own/broken', view_func=broken)\n"
        "        own.add_url_rule('/own/<name>', view_func=lambda name: name, endpoint='named')\n"
        "        own.add_url_rule('/own/send', view_func=lambda: '', endpoint='send', methods=['POST'])\n"
        "        return own\n"
    ),
    "well": PLUGIN.format(name="well", does="pass"),
}


@pytest.fixture(scope="module")
def check(behind: Behind) -> Callable[..., dict[str, Any]]:
    """Check a virtualenv that has the packages of CKAN, a real extension and plugins that are broken."""
    path = behind.place / "checked"
    subprocess.run([uv_path(), "venv", "-q", "-p", behind.base / "bin/python", path], check=True)
    (folder,) = path.glob("lib/python*/site-packages")
    (theirs,) = behind.base.glob("lib/python*/site-packages")
    (folder / "base.pth").write_text(f"{theirs}\n")
    install = [uv_path(), "pip", "install", "-q", "-p", path / "bin/python"]
    subprocess.run([*install, "--no-deps", "ckanext-scheming==3.1.0"], check=True)
    subprocess.run([*install, "ckanapi"], check=True)
    for name, text in BROKEN.items():
        (folder / f"plugin_{name}.py").write_text(text)
    about = folder / "plugins_of_the_test-1.0.dist-info"
    about.mkdir()
    points = "".join(f"{name} = plugin_{name}:{name}\n" for name in BROKEN)
    (about / "entry_points.txt").write_text(f"[ckan.plugins]\n{points}")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: plugins-of-the-test\nVersion: 1.0\n")
    (path / "run").mkdir()
    subprocess.run(["chown", "www-data", path / "run", behind.place / "host"], check=True)

    def run(*plugins: str, **changes: Any) -> dict[str, Any]:
        site = fake_site(behind.place / "host", **{**behind.settings, "plugins": list(plugins), **changes})
        Path(ini.path(site, str(path))).unlink(missing_ok=True)
        ini.write(site, str(path))
        return probe.check(site, str(path))

    return run


ORGANISATIONS = {"config": {"scheming.organization_schemas": "ckanext.scheming:org_with_dept_id.json"}}


def refusal(check: Callable[..., dict[str, Any]], *plugins: str, **changes: Any) -> list[str]:
    with pytest.raises(FormulaError) as told:
        check(*plugins, **changes)
    assert WRONG not in str(told.value) and PASSWORD not in str(told.value)
    return str(told.value).split("; ")


def test_plugins_that_start_are_told(check) -> None:
    assert check("well", "scheming_datasets", "text_view")["plugins"] == ["well", "scheming_datasets", "text_view"]


def test_h11_two_plugins_that_do_not_go_together_are_both_named(check) -> None:
    (said,) = refusal(check, "scheming_organizations", "form", "well", "datatables_view", **ORGANISATIONS)
    assert said.startswith("plugins scheming_organizations and form do not go together: ValueError: ")
    assert "datatables_view" not in said


def test_h12_all_plugins_that_cannot_be_imported_are_named_in_one_check(check) -> None:
    said = refusal(check, "no_module", "well", "no_name", "text_view", "no_syntax")
    assert [one.split(": ")[0] for one in said] == [
        f"plugin {name} does not start" for name in ("no_module", "no_name", "no_syntax")
    ]
    assert "No module named 'a_module_that_nobody_has'" in said[0] and "SyntaxError" in said[2]


def test_h12_plugins_that_fail_in_different_ways_are_named_in_one_check(check) -> None:
    said = refusal(check, "well", "raises", "no_module", "leaves", "scheming_organizations", "form", **ORGANISATIONS)
    assert [one.split(": ")[0] for one in sorted(said)] == [
        "plugin leaves does not start",
        "plugin no_module does not start",
        "plugin raises does not start",
        "plugins scheming_organizations and form do not go together",
    ]
    assert "plugin raises does not start: RuntimeError: no such table: trees" in " ".join(said)
    assert not any(one.startswith("plugin well") for one in said)


def test_a_plugin_that_ends_the_process_is_a_sentence(check) -> None:
    (said,) = refusal(check, "well", "ends")
    assert said == "CKAN ended the process while it started, as a plugin may"


def test_a_wrong_option_is_never_blamed_on_a_plugin(check) -> None:
    said = refusal(check, "well", "datatables_view", config={"config.mode": "strict", "ckan.max_image_size": "many"})
    assert not any(one.startswith("plugin") for one in said), said
    assert any("ckan.max_image_size" in one for one in said), said


def test_options_that_nobody_declares_are_found_with_the_nearest_name(check) -> None:
    told = check("well", "scheming_datasets", config={
        "scheming.dataset_schemas": "ckanext.scheming:ckan_dataset.yaml", "ckan.site_descripton": "A portal",
        "ckan.site_description": "A portal", "ckan.datasets_per_page": 30,
    })  # fmt: skip
    # The two of the datastore follow from ckan:datastore, and nobody has to answer for them.
    theirs = {name: near for name, near in told["undeclared"].items() if not name.startswith("ckan.datastore.")}
    assert theirs == {"scheming.dataset_schemas": "", "ckan.site_descripton": "ckan.site_description"}
    assert not any("option" in said for said in told["warnings"])


def test_a_plugin_that_trips_over_a_wrong_option_is_told_with_that_option(check) -> None:
    # The declaration knows that it is no number, and the plugin that reads it cannot know what to do.
    said = refusal(check, "well", "reads", config={"ckan.max_image_size": "many"})
    assert any("option ckan.max_image_size is not valid" in one for one in said), said
    assert not any(one.startswith("plugin") for one in said), said


def test_h19_a_database_that_refuses_is_never_blamed_on_a_plugin(check, behind: Behind) -> None:
    said = refusal(check, "activity", database={**behind.settings["database"], "password": WRONG})
    assert not any("activity" in one for one in said), said


def test_h13_an_administrator_who_may_not_give_the_datastore_its_permissions_is_a_warning_with_what_to_type(
    check, behind: Behind
) -> None:
    behind.postgres.create_database("h13", "ckan_default", PASSWORD)
    behind.postgres.sql("postgres", f"create role weak login createdb password '{PASSWORD}'")
    weak = {
        "database": {**behind.settings["database"], "admin_user": "weak", "admin_password": PASSWORD},
        "datastore": {**behind.settings["datastore"], "name": "h13"},
    }
    checked = {"datastore": check("datastore", **weak)["datastore"]}
    assert checked["datastore"].startswith("the view _table_metadata, ")
    site = fake_site(behind.place / "h13", **{**behind.settings, "plugins": ["datastore"], **weak})
    release = Path(site.releases.directory("20261129120000Z"))
    release.parent.mkdir(parents=True)
    release.symlink_to(behind.place / "checked")
    (said,) = migration.run(site, release.name, checked, closed=False)["warnings"]
    assert said.startswith(f"the datastore lacks {checked['datastore']}, which weak could not give it (")
    assert 'could not give it (must be member of role "ckan_default"); ' in said
    assert said.endswith(
        f"; have a superuser of PostgreSQL run the output of: {release}/bin/ckan -c {release}/production.ini datastore "
        "set-permissions; or name one in ckan:database:admin_user"
    )
    assert PASSWORD not in said


def test_the_pages_that_plugins_add_without_arguments_are_known_from_the_check(check) -> None:
    told = check("pages", "well")
    # Neither those of CKAN itself, nor those with an argument or another method.
    assert told["pages"] == ["/own/broken", "/own/well"]
    scheming = {"scheming.dataset_schemas": "ckanext.scheming:camel_photos.yaml"}
    found = check("scheming_datasets", "activity", config=scheming)["pages"]
    assert "/camel-photos/" in found and not any("<" in path for path in found), found


SERVE = """
import socketserver, sys, wsgiref.simple_server as simple
from ckan.cli import CKANConfigLoader
from ckan.config.middleware import make_app

class Server(socketserver.ThreadingMixIn, simple.WSGIServer):
    daemon_threads = True

app = make_app(CKANConfigLoader(sys.argv[1]).get_config())
with app._wsgi_app.test_request_context("/"):
    from ckan.plugins import toolkit
    about = {"ignore_auth": True, "user": "visitor"}
    toolkit.get_action("organization_create")(dict(about), {"name": "town"})
    toolkit.get_action("package_create")(dict(about), {"name": "trees", "owner_org": "town"})
simple.make_server("127.0.0.1", int(sys.argv[2]), app, Server).serve_forever()
"""


@pytest.fixture
def portal(behind: Behind, check) -> Iterator[tuple[Site, dict[str, Any], visit.Connect]]:
    """A CKAN with a user, an organisation and a dataset that serves; what its check said, and how it is asked."""
    behind.postgres.create_database("smoke", "ckan_default", PASSWORD)
    settings = {
        **behind.settings,
        "database": {**behind.settings["database"], "name": "smoke"},
        "plugins": ["pages"],
        "config": {"ckan.auth.create_user_via_web": "false"},
        "web": {"server": "none", "smoke_timeout": 60, "smoke_total": 120},
    }
    check("pages", **{name: value for name, value in settings.items() if name != "plugins"})
    path, site = behind.place / "checked", fake_site(behind.place / "host", **settings)
    config, port = ini.path(site, str(path)), free_port()
    probe.migrate(site, str(path))
    words = ["user", "add", "visitor", "email=v@example.org", f"password={WRONG}"]
    command = [path / "bin/python", "-c", "from ckan.cli.cli import ckan; ckan()", "-c", config, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    server = subprocess.Popen([path / "bin/python", "-c", SERVE, config, str(port)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.2)
        told = check("pages", **{name: value for name, value in settings.items() if name != "plugins"})
        yield site, told, lambda seconds: http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    finally:
        server.kill()
        server.wait()


def test_h14_a_real_ckan_is_asked_for_its_pages_with_and_without_a_login(portal) -> None:
    site, told, connect = portal
    assert told["examples"] == ["/dataset/trees", "/organization/town"]
    asked = smoke.pages(site, told)
    answers = zip(asked, visit.visit(site, asked, connect), strict=True)
    failing = {page.path: answer for page, answer in answers if answer.problem}
    assert failing == {"/own/broken": visit.Answer(500, "answers 500")}
    for password, problem in ((WRONG, ""), ("another", "cannot be asked: the login is refused with 200")):
        secrets = {"session": "session-secret", "api_token": "token-secret", "smoke": {"visitor": password}}
        logged_in = fake_site(site.settings.root, secrets=secrets, web={"server": "none", "smoke_timeout": 60})
        page = Page("/user/edit", status=200, text="visitor", login="visitor")
        (answer,) = visit.visit(logged_in, [page], connect)
        assert answer.problem == problem
    (anonymous,) = visit.visit(site, [Page("/user/edit", status=200)], connect)
    assert anonymous.problem.endswith(" instead of 200")
