"""
An operator may be given `ckan_*` on a minion (docs/operators.md): every public function is safe in the hands of
whoever may call it. None writes outside of the formula's own directories, runs what it is told, or gives a secret away.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import salt.utils.args
from salt.exceptions import SaltException, SaltInvocationError

from functional.conftest import Host
from functional.steps import deployed, extension, later_id
from stub import repos

pytestmark = pytest.mark.slow

REPO = Path(__file__).resolve().parents[2]
PLANTED = "planted-secret"
# What the formula itself may write to, below the root of a host.
OWN = ("usr/lib/ckan/releases", "usr/lib/ckan/current", "usr/lib/ckan/shared", "etc/ckan", "var", "etc/supervisor",
       "etc/cron.d")  # fmt: skip


def public_functions(folder: str) -> list[str]:
    """The functions that people can call in a folder of thin modules, such as `ckan_release.list`."""
    found = []
    for path in sorted((REPO / folder).glob("ckan*.py")):
        tree = ast.parse(path.read_text())
        names = {node.targets[0].id: ast.literal_eval(node.value) for node in tree.body
                 if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
                 and node.targets[0].id in ("__virtualname__", "__func_alias__")}  # fmt: skip
        module, alias = names.get("__virtualname__", path.stem), names.get("__func_alias__", {})
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                found.append(f"{module}.{alias.get(node.name, node.name)}")
    return found


FUNCTIONS = public_functions("_modules")
# It has no argument, and waits for a minion's event bus, which is not here.
NOT_CALLED = ("ckan_plan.ready",)


def hostile(canary: Path) -> list[Any]:
    """Arguments that nobody means well: paths, programs, SQL, options, absurd types."""
    return [
        f"../../../../../..{canary}/made",
        str(canary / "made"),
        f"$(touch {canary}/made)",
        f"x'; copy (select 1) to program 'touch {canary}/made'; --",
        f"--upload-pack=touch {canary}/made",
        f"x\n[program:evil]\ncommand=touch {canary}/made",
        -1,
        True,
        ["a", {"b": "c"}],
        {"url": f"ext::sh -c touch% {canary}/made", "ref": "main"},
        {"base": {"ckan": "9.9", "python": "3.11"}, "patches": [], "packages": {"../x": "1"}, "overridden": {},
         "extensions": {"ckanext-mycity": {"kind": "git", "url": "/x", "ref": "main", "ref_kind": "branch",
                                           "commit": f"../../../../../..{canary}/made", "patches": []}}},
    ]  # fmt: skip


def tree(root: Path, without: tuple[str, ...] = ()) -> dict[str, Any]:
    found = {}
    for folder, folders, files in os.walk(root):
        place = os.path.relpath(folder, root)
        folders[:] = [name for name in folders if os.path.normpath(f"{place}/{name}") not in without]
        for name in [*folders, *files]:
            path = Path(folder, name)
            if os.path.normpath(f"{place}/{name}") in without:
                continue
            status = path.lstat()
            found[str(path)] = (status.st_mode, status.st_uid, status.st_size if path.is_file() else 0,
                                status.st_mtime_ns if path.is_file() else 0)  # fmt: skip
    return found


@pytest.fixture(scope="module")
def canary(session_dir: Path) -> Path:
    """A directory of somebody else, which every user may write to."""
    path = session_dir / "canary"
    path.mkdir()
    path.chmod(0o777)
    (path / "precious").write_text("as it was")
    return path


@pytest.fixture(scope="module")
def portal(stub_base: Path, session_loaders, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with two releases and a secret in every place that may hold one."""
    root = Path(tempfile.mkdtemp(prefix="ckan-h-", dir="/tmp"))
    host = Host(root, stub_base, session_loaders)
    repo = repos.make_repo(tmp_path_factory.mktemp("origins"), "mycity", "Hello one", backend="uv_build")
    host.pillar["extensions"] = {"ckanext-mycity": extension(repo)}
    host.pillar["plugins"] = ["mycity"]
    host.pillar["database"] = {
        "password": f"{PLANTED}-1", "admin_password": f"{PLANTED}-2", "host": "127.0.0.1", "port": 9,
    }  # fmt: skip
    host.pillar["secrets"] = {
        "session": f"{PLANTED}-3", "api_token": f"{PLANTED}-4", "config": {"smtp.password": f"{PLANTED}-5"},
    }  # fmt: skip
    host.pillar["config"] = {"ckanext.x.password": f"{PLANTED}-6", "ckanext.y.url": f"https://me:{PLANTED}-7@x.org/"}
    host.pillar["redis_url"] = f"redis://me:{PLANTED}-8@127.0.0.1:9/0"
    host.pillar["solr_url"] = f"http://me:{PLANTED}-9@127.0.0.1:9/solr"
    host.pillar["extensions"]["ckanext-other"] = {
        "url": "https://127.0.0.1:9/x.git", "ref": "main", "token": f"{PLANTED}-10", "remove": True,
    }  # fmt: skip
    deployed(host)
    repos.commit_change(repo, "Hello two")
    deployed(host)
    yield host
    shutil.rmtree(root, ignore_errors=True)


def test_no_more_functions_than_a_person_can_know():
    assert len(FUNCTIONS) <= 55 and len(set(FUNCTIONS)) == len(FUNCTIONS)
    assert len(public_functions("_runners")) <= 20


def test_every_function_of_the_loader_is_one_of_ours(host):
    """What the package brings into a thin module by import is not callable from outside."""
    there = {name for name in host.loaders().modules if name.startswith("ckan_")}
    assert there == set(FUNCTIONS)


@pytest.mark.parametrize("module", sorted({name.partition(".")[0] for name in FUNCTIONS if name not in NOT_CALLED}))
def test_an_operator_with_hostile_arguments_changes_nothing_outside_and_learns_no_secret(portal, canary, module: str):
    before = tree(portal.root, OWN), tree(canary)
    modules, answers = portal.loaders().modules, []
    for function in [name for name in FUNCTIONS if name.startswith(f"{module}.") and name not in NOT_CALLED]:
        parameters = [name for name in inspect.signature(modules[function]).parameters if name != "kwargs"]
        calls = [dict.fromkeys(parameters, value) for value in hostile(canary)]
        # And one at a time, where the others are as somebody would type them.
        makes = function.endswith(("build", "plan", "deploy", "clone"))
        meant = {"release": later_id(portal) if makes else portal.releases()[0]}
        meant.update(
            {"name": "20200101000000Z", "confirm": "20200101000000Z", "knows": "r1", "at": "r2", "fresh": False}
        )
        if function.endswith("clone"):
            meant.update({"contents": modules["ckan_release.plan"]()["contents"], "layer": "0123456789abcdef"})
        for name in [name for name in parameters if name not in ("by", "job", "reason")]:
            base = {other: meant[other] for other in parameters if other in meant}
            calls += [{**base, name: value} for value in hostile(canary)[::3]]
        for call in calls:
            try:
                answers.append((function, call, modules[function](**call)))
            except SaltException as exc:
                # Anything else would be a traceback.
                answers.append((function, call, str(exc)))
    assert answers
    said = json.dumps([(function, answer) for function, _, answer in answers], default=str)
    assert PLANTED not in said, [
        function for function, _, answer in answers if PLANTED in json.dumps(answer, default=str)
    ]
    assert (tree(portal.root, OWN), tree(canary)) == before
    assert not (canary / "made").exists()
    log = portal.home / "shared/deploy.log"
    assert PLANTED not in log.read_text()


@pytest.mark.parametrize(
    ("function", "arguments", "said"),
    [
        ("list", {"limt": 3}, "ckan_release.list does not know limt; it takes nothing"),
        (
            "rollback",
            {"too": "ID"},
            r"ckan_release.rollback does not know too \(did you mean to\?\); it takes to, reason",
        ),
        ("history", {"limit": "ten"}, "limit must be a whole number, not 'ten'"),
        ("history", {"limit": -1}, "limit must be a whole number, 0 or more, not -1"),
        ("deploy", {"maintenance": "yes"}, "maintenance is 'yes'; use True or False"),
        ("deploy", {"extensions": "ckanext-mycity"}, "extensions must be a dictionary, not 'ckanext-mycity'"),
        ("rollback", {"to": ["ID"]}, r"to must be a line of text, not \['ID'\]"),
        ("build", {}, "ckan_release.build needs release; it takes release, contents"),
        ("plan", {"refresh": True}, r"ckan_release.plan does not know refresh \(did you mean fresh\?\)"),
    ],
)
def test_arguments_that_a_function_does_not_take_are_refused_with_what_was_meant(host, function, arguments, said):
    before = host.tree()
    with pytest.raises(SaltInvocationError, match=said):
        host.loaders().modules[f"ckan_release.{function}"](**arguments)
    assert host.tree() == before


def test_the_functions_show_the_arguments_that_they_take_and_ignore_what_salt_adds(host):
    modules = host.loaders().modules
    told = modules["sys.argspec"]("ckan_release.history")["ckan_release.history"]
    assert (told["args"], told["defaults"], told["varargs"]) == (["limit"], (50,), None)
    assert "How many entries at most." in modules["sys.doc"]("ckan_release.history")["ckan_release.history"]
    assert modules["ckan_release.history"](limit=3, __pub_jid="1") == []
    # What is imported is no function of the formula.
    assert [name for name in modules if name.startswith("ckan") and name.endswith("fit_arguments")] == []
    missing = [
        name for name in modules
        if name.startswith("ckan_") and salt.utils.args.get_function_argspec(modules[name]).keywords != "more"
    ]  # fmt: skip
    assert missing == []
    # `key: ` without a value.
    assert modules["ckan_release.history"](limit=None) == []
