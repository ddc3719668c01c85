"""
What a release is made of: a clone of the base with its patches, a checkout per extension, one install of all of them,
the ini.

``resolve`` decides what that is, down to commits and versions: the *contents*, the same for all hosts of a fleet.
``fill`` makes it so in a directory. Nothing here knows of states, of the link or of web servers.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import glob
import os
import pwd
import re
import shutil
import stat
import time

from packaging.utils import canonicalize_name
from salt.exceptions import CommandExecutionError

__virtualname__ = "ckan_build"

AT_ONCE = 8
# What root writes at the top of a release after the build: nothing of these names may come from build code.
OURS = re.compile(r"^(run|starter|serve\.sh|.*\.ini|release\.json\.tmp)$")


def __virtual__() -> str:
    return __virtualname__


def installer(settings: dict) -> dict:
    """
    Return how packages are installed: the settings ``ckan:installer`` with ``cache`` and ``user``.

    settings
        The settings.

    CLI Example: not for the command line, since an index may have a password.
    """
    return {
        **settings["installer"],
        "cache": os.path.join(settings["paths"]["shared"], "cache"),
        "user": settings["build_user"] if os.geteuid() == 0 else "",
        "link": settings["link"],
    }


def obstacles(settings: dict, release: str, any_age: bool = False) -> list[str]:
    """
    Say what keeps a release from being made here: no base, no build user, older than what is there, disk, web server.

    settings
        The settings.
    release
        The id of the release to make.
    any_age
        It may be older than others here: a host takes up what it has missed.

    Returns a list of sentences, empty when nothing is in the way.

    CLI Example: not for the command line; use ``ckan_release.plan``.
    """
    paths = settings["paths"]
    problems = []
    if not settings["base"]["version"] and not os.path.exists(os.path.join(paths["base"], "bin", "python")):
        problems.append(f"there is no virtualenv in {paths['base']}; run state.apply ckan first")
    if os.geteuid() == 0:
        try:
            pwd.getpwnam(settings["build_user"])
        except KeyError:
            problems.append(f"there is no user {settings['build_user']} (ckan:build_user); run state.apply ckan first")
    newest = [] if any_age else [manifest["id"] for manifest in __salt__["ckan_store.all_manifests"](paths)][-1:]
    if newest and newest[0] >= release:
        problems.append(f"release {newest[0]} here is not older than {release}; compare the clocks of master and host")
    free = __salt__["ckan_plan.free_mb"](paths["releases"])
    if free < settings["disk_free_mb"]:
        problems.append(
            f"{free} MB are free under {paths['releases']}, ckan:disk_free_mb asks for {settings['disk_free_mb']}; "
            "make room (ckan_release.prune)"
        )
    asked = [__salt__[name](settings) for name in ("ckan_web.supervisor_problem", "ckan_front.front_problem")]
    problems += [problem for problem in asked if problem]
    return [*problems, *__salt__["ckan_jobs.problems"](settings), *__salt__["ckan_hooks.problems"](settings)]


def resolve(settings: dict) -> dict:
    """
    Decide what a release will hold: refs become commits, requirements become versions, all resolved together.

    Nothing is installed. What is fetched for it (mirrors, checkouts, a base that is to be made) stays under ``shared``.

    settings
        The settings.

    Returns the contents: ``{"base": {"ckan", "python"}, "extensions": {name: pin}, "patches": [{"patch", "sha256"}],
    "packages": {name: version}, "overridden": {name: {...}}}``. Nothing in it is secret. Raises
    ``CommandExecutionError`` that names what cannot be had, what does not go together, or a plugin that nothing brings.

    CLI Example: not for the command line; use ``ckan_release.plan``.
    """
    shared, extensions = settings["paths"]["shared"], settings["extensions"]
    base = __salt__["ckan_base.ensure"](settings)
    patches = __salt__["ckan_patch.read"](settings["patches"])
    pins = _at_once("ckan_origin.resolve", {name: (name, extensions[name], shared) for name in extensions})
    how = installer(settings)
    wanted = _prepared(settings, pins, how["user"])
    had = __salt__["ckan_packages.freeze"](base["path"])
    locked = __salt__["ckan_packages.lock"](
        base["path"], _wanted(wanted, settings), had,
        {name: extension["override"] for name, extension in extensions.items() if extension["override"]}, how,
    )  # fmt: skip
    if "ckan.plugins" not in settings["config"]:  # which wins over ckan:plugins
        new = {name: version for name, version in locked["packages"].items() if had.get(name) != version}
        __salt__["ckan_plugins.check"](settings["plugins"], base["path"], wanted, new, how["find_links"])
    for name, pin in pins.items():
        pin.update(wanted[name]["notes"])
        if pin["kind"] != "git":
            pin["version"] = locked["packages"].get(canonicalize_name(name), "")
        elif extensions[name]["upstream"]:
            pin["upstream"] = _upstream(extensions[name], pin["commit"], shared)
    return {
        "base": {"ckan": base["ckan"], "python": base["python"]},
        "extensions": pins,
        "patches": [{"patch": patch["patch"], "sha256": patch["sha256"]} for patch in patches],
        "packages": locked["packages"],
        "overridden": locked["overridden"],
    }


def fill(path: str, settings: dict, contents: dict) -> dict:
    """
    Fill the directory of a new release.

    path
        The directory of the release; holds its manifest and nothing else.
    settings
        The settings.
    contents
        What ``resolve`` decided, here or on another host.

    Returns what the manifest says of it: the contents, with ``plugins``, ``configuration``, ``build_seconds`` and what
    became of patches. Raises ``CommandExecutionError``.

    CLI Example: not for the command line; use ``ckan_release.build``.
    """
    how = installer(settings)
    base = __salt__["ckan_base.ensure"](settings)
    if {"ckan": base["ckan"], "python": base["python"]} != contents["base"]:
        planned = contents["base"]
        raise CommandExecutionError(
            f"the base here ({base['path']}) is CKAN {base['ckan']} on Python {base['python']}, the plan was made for "
            f"CKAN {planned['ckan']} on Python {planned['python']}; make the bases of all hosts alike."
        )
    if set(contents["extensions"]) != set(settings["extensions"]):
        raise CommandExecutionError("the pillar of this host has other extensions than the plan; make them alike.")
    seconds: dict[str, float] = {}
    with _timed(seconds, "clone"):
        __salt__["ckan_venv.clone"](base["path"], path, link=settings["link"], owner=how["user"] or None)
        patched = _patch_core(path, contents["patches"])
    with _timed(seconds, "sources"):
        wanted = _prepared(settings, contents["extensions"], how["user"])
    for name, item in wanted.items():
        if "checkout" in item:
            shutil.rmtree(os.path.join(path, "src", name), ignore_errors=True)  # the base brought one of its own
            item["place"] = os.path.join(path, "src", name, settings["extensions"][name]["subdirectory"]).rstrip("/")
    with _timed(seconds, "packages"):
        __salt__["ckan_packages.install"](path, _wanted(wanted, settings), contents["packages"], how)
        os.makedirs(os.path.join(path, "src"), exist_ok=True)
        for name, item in wanted.items():
            if "checkout" in item:
                # After the install: build code may have compiled something in it.
                shutil.copytree(item["checkout"], os.path.join(path, "src", name), symlinks=True)
        __salt__["ckan_namespace.unify"](path)
    lost = __salt__["ckan_namespace.missing"](path, user=how["user"])
    # Some versions of CKAN name plugins of their tests that they do not bring.
    lost.pop("ckan", None)
    if lost:
        each = "; ".join(f"{name}: {reason}" for name, reason in sorted(lost.items()))
        raise CommandExecutionError(f"installed, but it cannot be imported: {each}; correct the extension.")
    with _timed(seconds, "bytecode"):
        __salt__["ckan_venv.compile"](path, user=how["user"] or None)
    if how["user"]:
        _take_over(path, how["user"])
    return {
        **contents,
        "base": {**contents["base"], "path": base["path"]},
        "extensions": {name: {**pin, **wanted[name]["notes"]} for name, pin in contents["extensions"].items()},
        "patches": patched,
        "packages": __salt__["ckan_packages.freeze"](path),
        "plugins": settings["plugins"],
        **__salt__["ckan_ini.write"](path, settings),
        "settings": __salt__["ckan_plan.hashes"](settings),
        "disk_mb": __salt__["ckan_plan.used_mb"](path),
        "build_seconds": seconds,
    }


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str):
    begun = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - begun, 3)


def _prepared(settings: dict, pins: dict, user: str) -> dict:
    """Bring all that the pins name onto this host, several at once."""
    shared, extensions = settings["paths"]["shared"], settings["extensions"]
    return _at_once("ckan_origin.prepare", {name: (name, extensions[name], pins[name], shared, user) for name in pins})


def _at_once(function: str, calls: dict) -> dict:
    """Call a function for each extension, several at once; all the failures in one error."""
    # Looked up here, not in the threads: Salt's loader finds its context only in the calling thread.
    run = __salt__[function]
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        jobs = {name: pool.submit(run, *arguments) for name, arguments in sorted(calls.items())}
    failures = [str(job.exception()) for job in jobs.values() if isinstance(job.exception(), CommandExecutionError)]
    if failures:
        raise CommandExecutionError("; ".join(failures))
    return {name: job.result() for name, job in jobs.items()}


def _wanted(prepared: dict, settings: dict) -> list[dict]:
    """What is installed into a release: the extensions, and uWSGI, which a base that was adopted may not have."""
    keys = ("name", "editable", "place", "requirement", "files")
    wanted = [{key: item[key] for key in keys if key in item} for _, item in sorted(prepared.items())]
    return wanted + ([{"name": "uwsgi", "requirement": "uwsgi"}] if settings["web"]["app"] == "uwsgi" else [])


def _patch_core(path: str, planned: list[dict]) -> list[dict]:
    """Patch CKAN itself in a fresh clone; returns what became of each patch."""
    if not planned:
        return []
    patches = __salt__["ckan_patch.read"]([patch["patch"] for patch in planned])
    for patch, plan in zip(patches, planned, strict=True):
        if patch["sha256"] != plan["sha256"]:
            raise CommandExecutionError(f"{patch['patch']} was changed since the plan was made; deploy again.")
    # From the index CKAN stands in site-packages, from a source install in a checkout of the clone.
    places = [*glob.glob(os.path.join(glob.escape(path), "lib/python*/site-packages")), os.path.join(path, "src/ckan")]
    for place in places:
        if os.path.isfile(os.path.join(place, "ckan", "__init__.py")):
            return __salt__["ckan_patch.apply"](place, patches, only=("ckan/", "ckanext/"))
    raise CommandExecutionError(f"no CKAN was found to patch in {path}; correct the base.")


def _take_over(path: str, user: str) -> None:
    """
    Take the directories of a release from the build user, so that nothing that it left running can change what is in
    them. Files that are linked from its cache stay its own: as root's they could not be linked another time.
    """
    uid = pwd.getpwnam(user).pw_uid
    for name in os.listdir(path):
        if OURS.match(name):
            entry = os.path.join(path, name)
            shutil.rmtree(entry) if os.path.isdir(entry) and not os.path.islink(entry) else os.unlink(entry)
    for folder, folders, files in os.walk(path):
        os.chown(folder, 0, 0)
        for name in [*folders, *files]:
            entry = os.path.join(folder, name)
            status = os.lstat(entry)
            if status.st_uid == uid and (status.st_nlink == 1 or stat.S_ISDIR(status.st_mode)):
                os.chown(entry, 0, 0, follow_symlinks=False)


def _upstream(extension: dict, commit: str, shared: str) -> dict:
    """How far a fork is from its upstream. That one is only for comparison: a failure is noted, no more."""
    try:
        return __salt__["ckan_source.compare_upstream"](extension, commit, os.path.join(shared, "mirrors"))
    except CommandExecutionError as exc:
        return {"url": extension["upstream"], "problem": str(exc)}
