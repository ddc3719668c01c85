"""The seam to Salt's minion: the dunders of a module, given as plain dictionaries, and errors raised as Salt's."""

from __future__ import annotations

import copy
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError, SaltReqTimeoutError

from ckan_deploy.errors import FormulaError, InvalidArgument
from ckan_deploy.host import Host, SaltHost, salt_errors
from fakes import FakeHost


def host(functions: dict[str, Any] | None = None, pillar: Any = None, context: Any = None, **opts: Any) -> SaltHost:
    return SaltHost(
        functions or {}, {"id": "web1", **opts}, {} if pillar is None else pillar, {} if context is None else context
    )


class Named:
    """What Salt's loader hands out in place of a dictionary: bound to the calling thread."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content

    def value(self) -> dict[str, Any]:
        return self.content


def test_the_host_and_the_one_of_the_tests_have_all_that_is_asked_of_one():
    members = {name for name in vars(Host) if not name.startswith("_")}
    assert len(members) >= 11
    for made in (host(), FakeHost()):
        assert [name for name in members if not hasattr(made, name)] == []


def test_id_test_mode_and_whether_it_stays_are_of_the_minion_s_options():
    assert (host().id, host().test, host().stays) == ("web1", False, False)
    assert (host(id=7).id, host(test=True).test, host(__cli="salt-minion").stays) == ("7", True, True)
    assert (host(test=None).test, host(__cli="salt-call").stays) == (False, False)


def test_what_the_loader_binds_to_a_thread_is_taken_out_of_it():
    pillar = {"ckan": {"env": "production"}}
    made = SaltHost(Named({"a.b": lambda: 5}), Named({"id": "web1"}), Named(pillar), Named({}))
    assert (made.id, made.pillar, made.has("a.b"), made.call("a.b")) == ("web1", pillar, True, (5, 0))
    # A dictionary may hold anything under that name.
    assert host(pillar={"value": 1}).pillar == {"value": 1}


def test_a_minion_that_stays_takes_the_pillar_anew():
    asked: list[dict] = []

    def items(**kwargs: Any) -> dict:
        asked.append(kwargs)
        return {"ckan": {"env": "new"}, "other": 2}

    known = {"ckan": {"env": "old"}, "ckan_fleet": {"lock": {}}, "_errors": ["x"], "other": 1}
    assert host({"pillar.items": items}, known, __cli="salt-minion").refresh_pillar() is True
    # What is not of the formula is left as it was; secrets come as they are.
    assert (known, asked) == ({"ckan": {"env": "new"}, "other": 1}, [{"unmask": True}])


def test_salt_call_has_rendered_the_pillar_for_this_very_call():
    known = {"ckan": {"env": "old"}}
    before = copy.deepcopy(known)
    assert host({}, known, __cli="salt-call").refresh_pillar() is False
    assert known == before


def test_files_come_from_the_file_server_once_a_job():
    asked = []

    def cache_file(source: str) -> str | bool:
        asked.append(source)
        return "/cache/a" if source == "salt://a" else False

    made = host({"cp.cache_file": cache_file})
    assert [made.file(source) for source in ("salt://a", "salt://b", "salt://a")] == ["/cache/a", "", "/cache/a"]
    assert asked == ["salt://a", "salt://b"]


def test_a_download_that_fails_is_a_sentence_or_nothing():
    def get_url(source: str, target: str) -> str:
        if source == "https://h/refused":
            raise CommandExecutionError("404")
        return target if source == "https://h/a" else ""

    made = host({"cp.get_url": get_url})
    assert (made.download("https://h/a", "/t"), made.download("https://h/b", "/t")) == ("/t", "")
    with pytest.raises(FormulaError, match="404"):
        made.download("https://h/refused", "/t")


def test_a_file_is_given_to_the_master_under_a_name_of_ours():
    asked = []

    def push(path: str, upload_path: str = "") -> bool:
        asked.append((path, upload_path))
        return path == "/a"

    made = host({"cp.push": push})
    assert (made.push("/a", "ckan-ship/x"), made.push("/b", "ckan-ship/y")) == (True, False)
    assert asked == [("/a", "ckan-ship/x"), ("/b", "ckan-ship/y")]


@pytest.mark.parametrize(
    ("function", "ask"),
    [
        ("pillar.items", lambda made: made.refresh_pillar()),
        ("cp.cache_file", lambda made: made.file("salt://a")),
        ("cp.push", lambda made: made.push("/a", "b")),
        ("cp.get_url", lambda made: made.download("https://h/a", "/t")),
        ("schedule.add", lambda made: made.schedule("a", "x.y", 5)),
        ("schedule.is_enabled", lambda made: made.unschedule("a")),
        ("state.sls_exists", lambda made: made.call("state.sls_exists", "a")),
    ],
)
def test_a_master_that_does_not_answer_is_an_error_that_reverts_a_deploy(function: str, ask: Any):
    def silent(*args: Any, **kwargs: Any) -> None:
        raise SaltReqTimeoutError("Message timed out")

    with pytest.raises(FormulaError, match="Message timed out"):
        ask(host({function: silent}, __cli="salt-minion"))


def test_a_function_that_a_hook_names_has_an_exit_code_of_its_own():
    context: dict[str, Any] = {"retcode": 3}

    def fails(*args: Any, **kwargs: Any) -> tuple:
        assert "retcode" not in context
        context["retcode"] = 7
        return args, kwargs

    made = host({"cmd.run": fails, "test.ping": lambda: True, "test.exception": lambda: 1 / 0}, context=context)
    assert (made.has("cmd.run"), made.has("cmd.ran")) == (True, False)
    assert made.call("cmd.run", "x", cwd="/") == ((("x",), {"cwd": "/"}), 7)
    assert made.call("test.ping") == (True, 0)
    with pytest.raises(ZeroDivisionError):
        made.call("test.exception")
    # That of the job is what it was.
    assert context == {"retcode": 3}


def test_what_is_to_be_done_later_is_scheduled_once_and_taken_back():
    jobs: dict[str, dict] = {}

    def add(name: str, **job: Any) -> dict:
        jobs[name] = job
        return {"result": job["seconds"] > 0, "comment": ""}

    functions = {"schedule.add": add, "schedule.is_enabled": lambda name: name in jobs, "schedule.delete": jobs.pop}
    made = host(functions)
    assert made.schedule("ckan-standby", "ckan_release.stop", 60) is True
    assert jobs == {
        "ckan-standby": {"function": "ckan_release.stop", "seconds": 60, "run_on_start": False, "maxrunning": 1}
    }
    made.unschedule("ckan-standby")
    made.unschedule("ckan-standby")
    assert jobs == {}
    assert made.schedule("x", "y", 0) is False


# Errors.


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (FormulaError("no base"), CommandExecutionError, "no base"),
        (InvalidArgument("no id"), SaltInvocationError, "no id"),
        (FileNotFoundError(2, "No such file or directory", "/srv/x"), CommandExecutionError,
         "No such file or directory (/srv/x)"),
        (PermissionError(13, "Permission denied"), CommandExecutionError, "Permission denied"),
        (OSError("odd"), CommandExecutionError, "odd"),
    ],
)  # fmt: skip
def test_errors_of_the_package_are_raised_as_salt_s(raised, kind, said):
    with pytest.raises(kind) as failure, salt_errors():
        raise raised
    assert type(failure.value) is kind and str(failure.value) == said
    assert failure.value.__cause__ is raised


def test_a_fault_of_the_formula_and_an_error_of_salt_are_left_as_they_are():
    for raised in (KeyError("x"), CommandExecutionError("y"), SaltInvocationError("z")):
        with pytest.raises(type(raised)) as failure, salt_errors():
            raise raised
        assert failure.value is raised


def test_nothing_is_raised_where_nothing_was():
    with salt_errors():
        pass


def test_salt_is_asked_for_one_file_at_a_time():
    """Its connection to the master fails where two threads use it: extensions are prepared in several."""
    at_once = [0, 0]

    def noted(*_: Any, **__: Any) -> str:
        at_once[0] += 1
        at_once[1] = max(at_once)
        time.sleep(0.02)
        at_once[0] -= 1
        return "text"

    made = host(dict.fromkeys(("cp.cache_file", "cp.get_url", "cp.push"), noted))
    calls = (
        lambda: made.file("salt://a"), lambda: made.file("salt://b"),
        lambda: made.download("salt://a", "/a"), lambda: made.push("/a", "a"),
    )  # fmt: skip
    with ThreadPoolExecutor(8) as pool:
        for job in [pool.submit(call) for call in calls * 3]:
            job.result()
    assert at_once == [0, 1]
