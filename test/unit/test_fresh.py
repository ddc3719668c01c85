"""
A process that lives on takes the package anew when its files change. Each test has a process and a copy of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "_utils/ckan_deploy"
# What a minion's cache looks like after a sync, and what each thin module does.
PRELUDE = """
import json, os, sys, threading, time

top = sys.argv[1]
sys.path.insert(0, f"{top}/utils")
changes = 0

def write(name, text):
    # As whole files, each with a time of its own: Python takes bytecode for current by the second.
    global changes
    changes += 1
    path = f"{top}/utils/ckan_deploy/{name}.py"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(f"{path}.new", "w") as handle:
        handle.write(text)
    os.utime(f"{path}.new", (1700000000 + changes,) * 2)
    os.rename(f"{path}.new", path)

def load(*statements):
    names = {"__file__": f"{top}/modules/ckan_thin.py"}
    head = ("import ckan_deploy", "ckan_deploy.fresh(__file__)")
    exec(compile("\\n".join((*head, *statements)), names["__file__"], "exec"), names)
    return names

def tell(**found):
    print(json.dumps(found))
"""


def run(top: Path, script: str) -> dict[str, Any]:
    """Run a script with a copy of the package on its path; returns what it told."""
    if not (top / "utils").exists():
        shutil.copytree(PACKAGE, top / "utils/ckan_deploy", ignore=shutil.ignore_patterns("__pycache__"))
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script, str(top)],
        capture_output=True,
        text=True,
        env=env,
        cwd="/",
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_where_nothing_has_changed_all_modules_stay_the_same(tmp_path):
    told = run(tmp_path, """
first = load("import ckan_deploy.host, ckan_deploy.releases.site")
before = {name: id(module) for name, module in sys.modules.items() if name.startswith("ckan_deploy")}
second = load("import ckan_deploy.host, ckan_deploy.releases.site")
after = {name: id(module) for name, module in sys.modules.items() if name.startswith("ckan_deploy")}
tell(same=before == after and first["ckan_deploy"] is second["ckan_deploy"], modules=len(before),
     own=sys.modules["ckan_deploy"].__file__)
""")  # fmt: skip
    assert told["same"] and told["modules"] > 10
    assert told["own"] == str(tmp_path / "utils/ckan_deploy/__init__.py")


def test_a_file_that_was_changed_added_or_removed_is_seen_by_the_next_import(tmp_path):
    told = run(tmp_path, """
write("odd/__init__", "")
write("odd/values", "VALUE = 1")
write("odd/user", "from ckan_deploy.odd.values import VALUE\\nfrom ckan_deploy.odd import values\\ndef both():\\n"
                  "    return [VALUE, values.VALUE]")
user = "from ckan_deploy.odd.user import both"
first = load(user)["both"]
seen = [first()]
# Only what another module imports has changed.
write("odd/values", "VALUE = 2")
seen += [load(user)["both"](), first()]
write("odd/more", "from ckan_deploy.odd.values import VALUE\\nVALUE += 10")
seen.append([load("from ckan_deploy.odd import more")["more"].VALUE])
write("odd/values", "VALUE = 3")
write("odd/user", "from ckan_deploy.odd.values import VALUE\\ndef both():\\n    from ckan_deploy.odd import late\\n"
                  "    return [VALUE, late.VALUE]")
write("odd/late", "from ckan_deploy.odd.values import VALUE")
late = load(user)["both"]
seen += [late(), [sys.modules["ckan_deploy.odd.late"] is sys.modules["ckan_deploy.odd"].late]]
os.remove(f"{top}/utils/ckan_deploy/odd/more.py")
gone = []
for statement in ("from ckan_deploy.odd import more", "import ckan_deploy.odd.more"):
    try:
        load(statement)
    except ImportError as exc:
        gone.append(type(exc).__name__)
tell(seen=seen, gone=gone, there="ckan_deploy.odd.more" in sys.modules, still=load(user)["both"]())
""")  # fmt: skip
    # What was at work before keeps all that it had.
    assert told["seen"] == [[1, 1], [2, 2], [1, 1], [12], [3, 3], [True]]
    assert (told["gone"], told["there"]) == (["ImportError", "ModuleNotFoundError"], False)
    assert told["still"] == [3, 3]


def test_what_is_imported_after_a_change_is_of_one_copy(tmp_path):
    told = run(tmp_path, """
load("from ckan_deploy.host import salt_errors", "from ckan_deploy.releases.site import Site")
old = sys.modules["ckan_deploy.errors"]
write("errors", open(f"{top}/utils/ckan_deploy/errors.py").read() + "\\nADDED = 1\\n")
names = load("from ckan_deploy.host import salt_errors, FormulaError", "from ckan_deploy.releases import site, store",
             "from ckan_deploy import errors")
from salt.exceptions import CommandExecutionError
try:
    with names["salt_errors"]():
        names["store"].Releases("/nowhere", "/nowhere/current").read("20260101000000Z")
except CommandExecutionError as exc:
    said = str(exc)
classes = {id(module.FormulaError) for name, module in sys.modules.items()
           if name.startswith("ckan_deploy.") and hasattr(module, "FormulaError")}
parents = [name for name, module in sys.modules.items() if name.startswith("ckan_deploy.")
           and getattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2]) is not module]
tell(said=said, classes=len(classes), new=names["errors"] is not old, parents=parents)
""")  # fmt: skip
    assert told["said"].startswith("there is no release 20260101000000Z on this host")
    assert (told["classes"], told["new"], told["parents"]) == (1, True, [])


def test_files_that_cannot_be_imported_leave_the_package_as_it_is(tmp_path):
    told = run(
        tmp_path,
        """
write("odd", "VALUE = 1")
first = load("from ckan_deploy.odd import VALUE")["ckan_deploy"]
failures = []
for text in ("VALUE = = 2", "from ckan_deploy.errors import Missing", "import ckan_deploy.missing"):
    write("odd", text)
    for _ in range(2):
        try:
            load()
        except Exception as exc:
            failures.append(type(exc).__name__)
    assert sys.modules["ckan_deploy"] is first and sys.modules["ckan_deploy.odd"].VALUE == 1
write("odd", "VALUE = 30")
tell(failures=failures, value=load("from ckan_deploy.odd import VALUE")["VALUE"])
""",
    )
    assert told["failures"] == ["SyntaxError"] * 2 + ["ImportError"] * 2 + ["ModuleNotFoundError"] * 2
    assert told["value"] == 30


@pytest.mark.slow
def test_threads_that_import_while_files_change_find_a_whole_package(tmp_path):
    told = run(tmp_path, """
import traceback
import ckan_deploy

def change(count):
    # What imports first: in between, the two do not fit, and nothing may fail all the same.
    write("odd/second", f"import time\\ntime.sleep(0.001)\\nfrom ckan_deploy.odd.first import COUNT\\nOWN = {count}")
    write("odd/first", f"COUNT = {count}")
    if count % 5 == 0:
        write(f"odd/added{count}", "from ckan_deploy.odd.first import COUNT")

statements = ("from ckan_deploy.odd.second import OWN, COUNT", "from ckan_deploy.host import salt_errors",
              "from ckan_deploy.releases.site import Site", "from ckan_deploy.releases import stage, lock",
              "import ckan_deploy.settings.mask", "from ckan_deploy.odd import first")
write("odd/__init__", "")
change(0)
failures, loads, last, end = [], [], {}, threading.Event()

def work(thread):
    while not end.is_set():
        # A new one now and then: what no thread has imported so far.
        there = os.listdir(f"{top}/utils/ckan_deploy/odd")
        added = max((name[:-3] for name in there if name.startswith("added") and name.endswith(".py")), default="first")
        try:
            names = load(*statements, f"from ckan_deploy.odd.{added} import COUNT")
            last[thread] = [names["OWN"], names["COUNT"], names["first"].COUNT]
            loads.append(thread)
        except BaseException:
            failures.append(traceback.format_exc())

threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
for thread in threads:
    thread.start()
deadline = time.monotonic() + 60

def until(done):
    while not failures and not done() and time.monotonic() < deadline:
        time.sleep(0.002)

for count in range(1, 31):
    # In the midst of a load, on a machine of any speed.
    before = len(loads)
    until(lambda: len(loads) > before)
    time.sleep(count % 7 / 500)
    change(count)
until(lambda: list(last.values()) == [[30, 30, 30]] * 4)
end.set()
for thread in threads:
    thread.join()
tell(failures=failures, loads=len(loads), last=list(last.values()), then=load(*statements)["OWN"])
""")  # fmt: skip
    assert told["failures"] == []
    assert told["loads"] > 30
    assert told["last"] == [[30, 30, 30]] * 4 and told["then"] == 30


def test_a_thread_that_holds_an_older_copy_comes_to_the_one_that_is_there(tmp_path):
    told = run(
        tmp_path,
        """
write("odd", "VALUE = 1")
oldest = load("from ckan_deploy.odd import VALUE")["ckan_deploy"]
write("odd", "VALUE = 2")
newer = load()
package = sys.modules["ckan_deploy"]
oldest.fresh(f"{top}/modules/ckan_thin.py")
same = sys.modules["ckan_deploy"] is package
write("odd", "VALUE = 3")
oldest.fresh(f"{top}/modules/ckan_thin.py")
tell(same=same, lock=sys.modules["ckan_deploy"]._LOCK is oldest._LOCK, value=sys.modules["ckan_deploy.odd"].VALUE)
""",
    )
    assert told == {"same": True, "lock": True, "value": 3}


@pytest.mark.parametrize(("version", "refused"), [("0.0.1", True), (None, True), ("same", False)])
def test_a_synced_copy_of_another_version_beside_an_installed_one_is_refused(tmp_path, version, refused):
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "site-packages/ckan_deploy", ignore=ignored)
    shutil.copytree(PACKAGE, tmp_path / "utils/ckan_deploy", ignore=ignored)
    synced = tmp_path / "utils/ckan_deploy/__init__.py"
    if version != "same":
        lines = synced.read_text().splitlines(keepends=True)
        line = f'VERSION = "{version}"\n' if version else ""
        synced.write_text("".join(line if text.startswith("VERSION = ") else text for text in lines))
    told = run(
        tmp_path,
        """
sys.path.insert(0, f"{top}/site-packages")
try:
    load("import ckan_deploy.host")
    said = ""
except ImportError as exc:
    said = str(exc)
import ckan_deploy
tell(said=said, own=ckan_deploy.__file__)
""",
    )
    assert told["own"] == str(tmp_path / "site-packages/ckan_deploy/__init__.py")
    assert bool(told["said"]) is refused
    if refused:
        assert f"another one ({version or 'unknown'}) was synced; remove one: pip uninstall" in told["said"]
        assert f"installed in {tmp_path}/site-packages/ckan_deploy" in told["said"]


def test_a_version_that_was_installed_meanwhile_is_the_one_that_counts(tmp_path):
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("site-packages", "utils"):
        shutil.copytree(PACKAGE, tmp_path / name / "ckan_deploy", ignore=ignored)
    told = run(
        tmp_path,
        """
sys.path.insert(0, f"{top}/site-packages")
load()
for name in ("site-packages", "utils"):
    path = f"{top}/{name}/ckan_deploy/__init__.py"
    with open(path) as handle:
        lines = handle.readlines()
    with open(path, "w") as handle:
        handle.writelines('VERSION = "99.0"\\n' if line.startswith("VERSION = ") else line for line in lines)
load()
tell(version=sys.modules["ckan_deploy"].VERSION)
""",
    )
    assert told == {"version": "99.0"}


def test_a_call_costs_next_to_nothing(tmp_path):
    told = run(
        tmp_path,
        """
import ckan_deploy
times = []
for _ in range(101):
    begun = time.perf_counter()
    ckan_deploy.fresh(f"{top}/modules/ckan_thin.py")
    times.append(time.perf_counter() - begun)
tell(milliseconds=sorted(times)[50] * 1000)
""",
    )
    assert told["milliseconds"] < 5
